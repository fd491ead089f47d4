"""Which weights the gradients are taken with respect to, and where in the model their parts are found.

A *site* is a linear map of the model whose inputs and output gradients are read. A *layer* is one weight matrix, and
so one block of the gradient. A site usually feeds one layer; with low-rank adapters as at initialisation the site is
the frozen layer beneath, and its inputs are projected first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spice_select.config import GradientConfig, LoraConfig
from spice_select.errors import ConfigError, ModelError
from spice_select.gradients.random import Stream

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Layer:
    """One weight matrix of the gradient.

    Attributes:
        name: Full module name; the key of its random numbers.
        rows: Outputs of the linear map.
        columns: Inputs of the linear map.
    """

    name: str
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.rows * self.columns


@dataclass(frozen=True, eq=False)
class Site:
    """A linear map of the model that is watched, and the layer that it feeds.

    Attributes:
        layer: Position in :attr:`Scope.layers`.
        projection: Adapter factor A, ``[r, inputs]``, that stands between the inputs and the layer; none without
            adapters, or where the adapters are layers of the model.
        scale: What the gradient is multiplied by (alpha / r of an adapter that is no layer of the model).
    """

    layer: int
    projection: Float[Tensor, "r inputs"] | None = None
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Experts:
    """A module that keeps the weights of its experts as stacked matrices.

    Attributes:
        module: The experts module of transformers.
        up: One site per expert for the first map (gate and up together, where there is a gate).
        down: One site per expert for the second map.
        up_name: Parameter that holds the first maps.
    """

    module: nn.Module
    up: tuple[Site | None, ...]
    down: tuple[Site | None, ...]
    up_name: str


@dataclass(frozen=True, eq=False)
class Scope:
    """The layers of the gradient, and the modules that feed them.

    Attributes:
        layers: All layers, in the order of the model.
        modules: Watched linear modules. Two modules that share a weight share a site.
        experts: Watched mixture-of-experts modules.
        covered: Weights covered; with adapters, the weights of the layers that carry them.
        total: All weights but the embeddings and the output head.
    """

    layers: tuple[Layer, ...]
    modules: tuple[tuple[nn.Module, Site], ...]
    experts: tuple[Experts, ...]
    covered: int
    total: int

    @property
    def coverage(self) -> float:
        """Share of the non-embedding weights covered."""
        return self.covered / max(1, self.total)


def causal_model(model: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def find_scope(model: nn.Module, config: GradientConfig) -> Scope:
    """Resolve ``gradients.layers`` and ``gradients.lora`` against a model.

    Biases are outside of every scope, as are norms and embeddings; the output head is left out even where its weight
    is that of the embeddings.

    Raises:
        ConfigError: ``gradients.layers`` is no regular expression.
        ModelError: No layer is left.
    """
    causal = causal_model(model)
    wanted = _matcher(config.layers)
    adapters = config.lora is not None and any(".lora_" in name for name, _ in causal.named_modules())
    builder = _Builder(config.seed)
    for name, module in _linear_modules(causal):
        base = name.removesuffix(".base_layer")
        if ".lora_" in name:
            target, _, rest = name.partition(".lora_")
            factor = f"lora_{rest.split('.')[0]}"
            if adapters and config.lora and wanted(target) and factor in _factors(config.lora):
                builder.watch(module, f"{target}.{factor}")
        elif not wanted(base):
            continue
        elif config.lora is None:
            builder.watch(module, base)
            builder.cover(module.weight)
        elif adapters and base != name:
            builder.cover(module.weight)
        elif not adapters:
            builder.watch_adapter(module, base, config.lora)
            builder.cover(module.weight)
    if config.lora is None:
        for name, module in causal.named_modules():
            builder.watch_experts(module, name, wanted)
    if not builder.layers:
        raise ModelError(
            f"No linear layer of the model matches gradients.layers '{config.layers}'; "
            f"use 'all-linear' or a regular expression for full names such as '{_example_name(causal)}'."
        )
    return Scope(
        tuple(builder.layers), tuple(builder.modules), tuple(builder.experts), builder.covered, _total_weights(causal)
    )


def shape_of(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear module; Conv1D keeps its weight transposed."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    assert isinstance(module, nn.Linear)
    return module.out_features, module.in_features


def initial_factor(seed: int, name: str, rank: int, columns: int) -> Float[Tensor, "rank columns"]:
    """Factor A of an adapter as PEFT initialises it (uniform in +-1/sqrt(inputs)), from counter-based numbers."""
    values = Stream(seed, name, "lora_A").uniform(rank * columns)
    return torch.from_numpy((2 * values - 1) * columns**-0.5).float().view(rank, columns)


class _Builder:
    """Collects the layers of a scope."""

    def __init__(self, seed: int) -> None:
        self.layers: list[Layer] = []
        self.modules: list[tuple[nn.Module, Site]] = []
        self.experts: list[Experts] = []
        self.covered = 0
        self._seed = seed
        self._sites: dict[int, Site] = {}
        self._counted: set[int] = set()

    def watch(self, module: nn.Module, name: str) -> None:
        site = self._sites.get(id(module.weight))
        if site is None:
            site = self._sites[id(module.weight)] = Site(self._add(name, *shape_of(module)))
        self.modules.append((module, site))

    def watch_adapter(self, module: nn.Module, name: str, lora: LoraConfig) -> None:
        rows, columns = shape_of(module)
        if "lora_A" in _factors(lora):
            # B = 0 at initialisation, so that this block is exactly 0; nothing needs to be watched for it.
            self._add(f"{name}.lora_A", lora.r, columns)
        device = next(module.parameters()).device
        factor = initial_factor(self._seed, name, lora.r, columns).to(device)
        self.modules.append((module, Site(self._add(f"{name}.lora_B", rows, lora.r), factor, lora.alpha / lora.r)))

    def watch_experts(self, module: nn.Module, name: str, wanted: Any) -> None:
        up_name = "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"
        stacks: list[Any] = [getattr(module, key, None) for key in (up_name, "down_proj")]
        # The attributes are those that transformers gives every experts module whose implementation is exchangeable.
        if not hasattr(module, "is_transposed") or not hasattr(module, "_apply_gate"):
            return
        if any(not isinstance(stack, nn.Parameter) or stack.dim() != 3 for stack in stacks):
            return
        if getattr(module, "has_post_expert_norm", False) or not _is_callable_per_expert(module):
            return
        found = []
        for key, stack in zip((up_name, "down_proj"), stacks, strict=True):
            chosen = wanted(f"{name}.{key}")
            sites: list[Site | None] = []
            for expert in range(stack.shape[0]):
                rows, columns = stack.shape[1:] if not module.is_transposed else stack.shape[:0:-1]
                sites.append(Site(self._add(f"{name}.{key}.{expert}", rows, columns)) if chosen else None)
            if chosen:
                self.cover(stack)
            found.append(tuple(sites))
        if any(sites[0] is not None for sites in found):
            self.experts.append(Experts(module, found[0], found[1], up_name))

    def cover(self, weight: Any) -> None:
        if id(weight) not in self._counted:
            self._counted.add(id(weight))
            self.covered += weight.numel()

    def _add(self, name: str, rows: int, columns: int) -> int:
        self.layers.append(Layer(name, int(rows), int(columns)))
        return len(self.layers) - 1


def _is_callable_per_expert(module: nn.Module) -> bool:
    return not getattr(module, "_is_expert_parallel", False)


def _factors(lora: LoraConfig) -> tuple[str, ...]:
    return ("lora_A", "lora_B") if lora.factors == "both" else ("lora_B",)


def _matcher(pattern: str) -> Any:
    if pattern == ALL_LINEAR:
        return lambda name: True
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"Setting 'gradients.layers' cannot be '{pattern}': it is no regular expression ({error})."
        ) from None
    return lambda name: compiled.fullmatch(name) is not None


def _linear_modules(causal: Any) -> Iterator[tuple[str, nn.Module]]:
    head = causal.get_output_embeddings()
    head_weight = getattr(head, "weight", None)
    for name, module in causal.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head and module.weight is not head_weight:
            yield name, module


def _example_name(causal: Any) -> str:
    return next((name for name, _ in _linear_modules(causal)), "model.layers.0.mlp.down_proj")


def _total_weights(causal: Any) -> int:
    outside = {id(module.weight) for module in causal.modules() if isinstance(module, nn.Embedding)}
    head = causal.get_output_embeddings()
    if head is not None:
        outside |= {id(parameter) for parameter in head.parameters()}
    return sum(
        parameter.numel()
        for name, parameter in causal.named_parameters()
        if id(parameter) not in outside and ".lora_" not in name
    )
