"""Gradients as Adam sees them: the step that the optimiser would take for an example, instead of its gradient.

Adam divides each weight's step by the root of its own second moment, so that one example's gradient and the step it
causes can point in rather different directions. The influence of a training example on a loss is that of its step
(LESS, arXiv 2402.04333, section 2), which needs the moments of a training that has gone on for a while.

The transform is not linear and works on every number by itself, so that each layer's gradient of each example must be
whole before it is sketched. What follows it, the sketch, is the same as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from spice_select.config import RunConfig
from spice_select.errors import ConfigError, ModelError
from spice_select.gradients.factors import Factors, Materialising, Sketch
from spice_select.gradients.identity import state_hash
from spice_select.gradients.layers import Layer, Scope

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

Moments = Mapping[str, tuple[Tensor, Tensor]]
"""Adam's first and second moment of each layer's weights, ``[rows, columns]`` both, by layer name."""


def adam_direction(
    gradient: Float[Tensor, "*shape"],
    first: Float[Tensor, "*shape"],
    second: Float[Tensor, "*shape"],
    *,
    beta1: float = BETA1,
    beta2: float = BETA2,
    eps: float = EPSILON,
) -> Float[Tensor, "*shape"]:
    """Adam's step for a gradient, by its moments before: ``m' / sqrt(v' + eps)``.

    As LESS has it (arXiv 2402.04333): ``m' = beta1 m + (1 - beta1) g`` and ``v' = beta2 v + (1 - beta2) g^2`` without
    the correction of their early values, and with ``eps`` inside the root.

    Args:
        gradient: Gradient g of one example.
        first: First moment m.
        second: Second moment v, nowhere negative.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: What keeps the root from 0.
    """
    new_first = beta1 * first + (1 - beta1) * gradient
    new_second = beta2 * second + (1 - beta2) * gradient.square()
    return new_first / (new_second + eps).sqrt()


@final
class Preconditioned(Materialising):
    """Turns every gradient into Adam's step, and hands that to a sketch.

    A layer that no gradient of an example has reached has a gradient of zero, and a step by the moments alone.

    Args:
        sketch: Takes the steps, times ``scale``.
        moments: By layer name, on the sketch's device, float32.
        scale: Factor on the gradients that come in.
        wanted: Positions of the layers that will come; none: all.
        scratch: Memory that is used again from batch to batch.
    """

    def __init__(
        self,
        sketch: Sketch,
        moments: Moments,
        scale: float = 1.0,
        wanted: frozenset[int] | None = None,
        scratch: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__(sketch.layers, sketch.device)
        self._inner = sketch
        self._moments = moments
        self._scale = scale
        self._wanted = range(len(sketch.layers)) if wanted is None else sorted(wanted)
        self._scratch = {} if scratch is None else scratch
        self._seen = np.zeros((0, 0), dtype=bool)

    @property
    @override
    def dim(self) -> int:
        return self._inner.dim

    @override
    def begin(self, examples: int) -> None:
        self._seen = np.zeros((len(self.layers), examples), dtype=bool)
        self._inner.begin(examples)

    @override
    def add(self, factors: Factors) -> None:
        for first, gradients in self._gradients(factors):
            self.add_whole(factors.layer, factors.examples[first : first + len(gradients)], gradients)

    @override
    def add_whole(self, layer: int, examples: Sequence[int], gradients: Float[Tensor, "g rows columns"]) -> None:
        self._seen[layer, list(examples)] = True
        first, second = self._moments[self.layers[layer].name]
        # As adam_direction has it, in place.
        root = self._buffer("root", *gradients.shape)
        if self._scale != 1.0:
            gradients.div_(self._scale)
        torch.mul(gradients, gradients, out=root)
        root.mul_(1 - BETA2).add_(second, alpha=BETA2).add_(EPSILON).sqrt_()
        gradients.mul_((1 - BETA1) * self._scale).add_(first, alpha=BETA1 * self._scale).div_(root)
        self._inner.add_whole(layer, examples, gradients)

    def complete(self) -> None:
        """Add the steps of the layers that no gradient has reached."""
        for layer in self._wanted:
            for example in np.flatnonzero(~self._seen[layer]).tolist():
                shape = self.layers[layer].rows, self.layers[layer].columns
                self.add_whole(layer, [example], torch.zeros(1, *shape, device=self.device))

    @override
    def finish(self) -> Float[Tensor, "b dim"]:
        self.complete()
        return self._inner.finish()

    @override
    def squared_norms(self) -> Float64[Tensor, " b"]:
        return self._inner.squared_norms()

    @override
    def _take(self, layer: int, examples: Sequence[int], flat: Float[Tensor, "g size"]) -> None:
        raise AssertionError("every gradient goes through add_whole")


def layer_moments(scope: Scope, state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """AdamW's moments of the weights in a scope, each in the shape of its layer.

    Args:
        scope: The layers, which are weights of the model themselves.
        state: ``{name}.exp_avg`` and ``{name}.exp_avg_sq`` by layer name, in the shapes of the parameters; those of
            stacked experts by the name of the stack.

    Returns:
        The moments of the layers that have any.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for module, site in scope.modules:
        name = scope.layers[site.layer].name
        if f"{name}.exp_avg" in state:
            first, second = state[f"{name}.exp_avg"], state[f"{name}.exp_avg_sq"]
            found[name] = (first.t(), second.t()) if isinstance(module, Conv1D) else (first, second)
    for experts in scope.experts:
        for site in (*experts.up, *experts.down):
            if site is None:
                continue
            name = scope.layers[site.layer].name
            stack, _, number = name.rpartition(".")
            if f"{stack}.exp_avg" in state:
                pair = state[f"{stack}.exp_avg"][int(number)], state[f"{stack}.exp_avg_sq"][int(number)]
                transposed = bool(getattr(experts.module, "is_transposed", False))
                found[name] = (pair[0].t(), pair[1].t()) if transposed else pair
    return found


def require_moments(layers: Sequence[Layer], moments: Moments, device: torch.device) -> Moments:
    """The moments of all layers, float32 on a device.

    Raises:
        ModelError: A layer has none.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in layers:
        if layer.name not in moments:
            missing = sum(each.name not in moments for each in layers)
            more = f" (and {missing - 1} more)" if missing > 1 else ""
            raise ModelError(
                f"Layer {layer.name}{more} has no Adam moments, as no gradient has reached it in the warm-up; leave it "
                "out with gradients.layers, or warm up on more rows."
            )
        first, second = (each.detach().to(device, torch.float32).contiguous() for each in moments[layer.name])
        assert first.shape == second.shape == (layer.rows, layer.columns)
        found[layer.name] = first, second
    return found


def moments_digest(moments: Moments) -> str:
    """SHA-256 of names, shapes and bytes of the moments."""
    parts = ((name, kind, value) for name, pair in moments.items() for kind, value in zip("mv", pair, strict=True))
    return state_hash({f"{name}.{kind}": value for name, kind, value in parts})


def check_precondition(config: RunConfig) -> None:
    """Refuse settings under which there are no moments of the weights whose gradients are taken.

    Raises:
        ConfigError: There is no warm-up, a schedule of pools, or another scope than the warm-up's.
    """
    gradients, schedule = config.gradients, config.schedule
    if gradients.precondition == "none":
        return
    if schedule.kind == "pools":
        raise ConfigError(
            "Setting 'gradients.precondition' cannot be 'adam' with schedule.kind pools, which trains between "
            "measurements; use schedule.kind fixed."
        )
    if not schedule.warmup_steps and schedule.warmup_share is None:
        raise ConfigError(
            "Setting 'gradients.precondition' cannot be 'adam' without a warm-up, which Adam's moments come from; set "
            "schedule.warmup_share, such as 0.05."
        )
    if gradients.lora is None:
        return
    if schedule.scope == "full":
        raise ConfigError(
            "Setting 'gradients.lora' cannot name adapters with gradients.precondition adam and schedule.scope full, "
            "which trains no adapters; leave it out."
        )
    trained = (schedule.lora.r, schedule.lora.alpha, "both", None)
    if (gradients.lora.r, gradients.lora.alpha, gradients.lora.factors, gradients.lora.adapter) != trained:
        raise ConfigError(
            "Setting 'gradients.lora' cannot name other adapters than the warm-up trains (schedule.lora, both factors) "
            "with gradients.precondition adam; leave it out."
        )
