"""Reads inputs and output gradients of a model's linear layers while a batch runs through it.

The weights stay frozen, so that autograd forms no weight gradient of its own. The first watched layer's output is the
leaf from which gradients are asked for: nothing before it needs one, and not even its own input gradient is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spice_select.errors import ModelError
from spice_select.gradients.factors import Factors
from spice_select.gradients.layers import Experts, Scope, Site


class Recorder:
    """Watches the sites of a scope for one batch and hands over each layer's factors once they are complete.

    Args:
        scope: What is watched.
        lengths: Tokens of each example, padding aside.
        padded_length: Tokens of each example, with padding.
        take: Called with the factors of each layer that a gradient reached.
        wanted: Layers to record; none: all.
    """

    def __init__(
        self,
        scope: Scope,
        lengths: tuple[int, ...],
        padded_length: int,
        take: Callable[[Factors], None],
        wanted: frozenset[int] | None = None,
    ) -> None:
        self._scope = scope
        self._lengths = lengths
        self._padded = padded_length
        self._take = take
        self._wanted = wanted
        # Calls of a layer in this batch whose gradients are still to come, and those that have come.
        self._awaited: dict[int, int] = {}
        self._arrived: dict[int, list[tuple[Tensor, Tensor, Tensor | None]]] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Hooks in place; layers that are shared, or that some call's gradient never reached, follow at the end."""
        handles: list[RemovableHandle] = []
        patched: list[nn.Module] = []
        try:
            for module, site in self._scope.modules:
                if self._wants(site):
                    handles.append(module.register_forward_hook(self._forward_hook(site)))
            for experts in self._scope.experts:
                if any(self._wants(site) for site in (*experts.up, *experts.down)):
                    experts.module.forward = self._experts_forward(experts)
                    patched.append(experts.module)
            yield
            for layer in sorted(self._arrived):
                self._complete(layer)
        finally:
            for handle in handles:
                handle.remove()
            for module in patched:
                del module.forward

    def _wants(self, site: Site | None) -> bool:
        return site is not None and (self._wanted is None or site.layer in self._wanted)

    def _forward_hook(self, site: Site) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            given = self._shaped(site, inputs[0])
            return self._tap(site, given, output, None)

        return hook

    def _tap(self, site: Site, inputs: Tensor, output: Tensor, tokens: Int[Tensor, " n"] | None) -> Tensor:
        """Make an output ask for its gradient, which then meets the inputs."""
        inputs = inputs.detach()
        if site.projection is not None:
            inputs = inputs @ site.projection.t().to(inputs.dtype)
        self._awaited[site.layer] = self._awaited.get(site.layer, 0) + 1
        if not output.requires_grad:
            # A leaf may not be changed in place, and its model might; the copy may.
            output = output.detach().requires_grad_().clone()
        held = [inputs]

        def arrive(gradient: Tensor) -> None:
            # A second backward pass through the same graph is not meant, and would find nothing here.
            given = held.pop()
            shaped = gradient if tokens is not None else self._shaped(site, gradient)
            self._arrived.setdefault(site.layer, []).append(
                (given, shaped.detach() * site.scale if site.scale != 1.0 else shaped.detach(), tokens)
            )
            self._awaited[site.layer] -= 1
            if self._awaited[site.layer] == 0:
                self._complete(site.layer)

        output.register_hook(arrive)
        return output

    def _shaped(self, site: Site, values: Tensor) -> Float[Tensor, "b t width"]:
        """Examples by tokens by width; some models flatten the first two, or put a head axis of one between them."""
        examples = len(self._lengths)
        if values.dim() == 4 and values.shape[:3] == (examples, 1, self._padded):
            return values[:, 0]
        if values.dim() == 3 and values.shape[:2] == (examples, self._padded):
            return values
        if values.dim() == 2 and len(values) == examples * self._padded:
            return values.view(examples, self._padded, -1)
        name = self._scope.layers[site.layer].name
        raise ModelError(
            f"Layer '{name}' gets values of shape {tuple(values.shape)}, not one per token of an example; leave it out "
            "with a regular expression in gradients.layers."
        )

    def _complete(self, layer: int) -> None:
        """Hand over a layer; several calls of it add up, and so become more tokens of the same example."""
        calls = self._arrived.pop(layer)
        examples = range(len(self._lengths))
        if len(calls) == 1 and calls[0][2] is None:
            inputs, outputs, _ = calls[0]
            self._take(
                Factors(
                    layer,
                    examples,
                    [inputs[e, : self._lengths[e]] for e in examples],
                    [outputs[e, : self._lengths[e]] for e in examples],
                    (inputs, outputs),
                )
            )
            return
        split = [self._split(*call) for call in calls]
        found = [e for e in examples if any(e in call for call in split)]
        inputs, outputs = (
            [torch.cat([call[e][side] for call in split if e in call]) for e in found] for side in (0, 1)
        )
        self._take(Factors(layer, found, inputs, outputs))

    def _split(self, inputs: Tensor, outputs: Tensor, tokens: Tensor | None) -> dict[int, tuple[Tensor, Tensor]]:
        """One call's factors by example."""
        if tokens is None:
            return {e: (inputs[e, :length], outputs[e, :length]) for e, length in enumerate(self._lengths)}
        owners = torch.div(tokens, self._padded, rounding_mode="floor")
        counts = torch.bincount(owners, minlength=len(self._lengths)).tolist()
        pairs = zip(inputs.split(counts), outputs.split(counts), strict=True)
        return {e: pair for e, pair in enumerate(pairs) if counts[e]}

    def _experts_forward(self, experts: Experts) -> Callable[..., Tensor]:
        """The experts' own arithmetic, one expert at a time, with both maps of each watched."""
        module: Any = experts.module
        transposed, has_bias = module.is_transposed, getattr(module, "has_bias", False)

        def linear(values: Tensor, key: str, expert: int) -> Tensor:
            weight = getattr(module, key)[expert]
            bias = getattr(module, f"{key}_bias")[expert] if has_bias else None
            return nn.functional.linear(values, weight.t() if transposed else weight, bias)

        def forward(states: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
            total = torch.zeros_like(states)
            for expert in range(len(experts.up)):
                # Sorted by token, so that an example's tokens lie together.
                tokens, rank = torch.where(choice == expert)
                if not len(tokens):
                    continue
                given = states[tokens]
                hidden = self._watched(experts.up[expert], given, linear(given, experts.up_name, expert), tokens)
                hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
                result = self._watched(experts.down[expert], hidden, linear(hidden, "down_proj", expert), tokens)
                result = result * weights[tokens, rank, None]
                total = total.index_add(0, tokens, result.to(total.dtype))
            return total

        return forward

    def _watched(self, site: Site | None, inputs: Tensor, output: Tensor, tokens: Tensor) -> Tensor:
        if site is None or not self._wants(site) or not torch.is_grad_enabled():
            return output
        return self._tap(site, inputs, output, tokens)
