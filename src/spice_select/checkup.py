"""Whether this machine, and a model on it, give the gradients that they should."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from spice_select.config import GradientConfig, ModelConfig
from spice_select.errors import ModelError
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.proxy import Proxy, load_proxy, resolve_device
from spice_select.results import versions

TOLERANCE = 1e-4
"""Largest relative error of a layer's gradient in float32; half precision rounds products of other shapes otherwise."""
HALF_TOLERANCE = 5e-2


class GradientCheck(BaseModel):
    """Per-example gradients from hooks against autograd's, on the model itself.

    Attributes:
        model: The model.
        layers: Layers compared.
        unchecked: Layers in scope whose weights autograd gives in another form, such as stacked experts.
        coverage: Share of the non-embedding weights in scope.
        loss: Loss of the first example.
        largest_relative_error: Largest |difference| / |gradient| over the layers.
        sketch_relative_error: The same of the sketched row against the sketch of autograd's gradients; None where some
            layer could not be checked.
        passed: Whether the errors are those of rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    layers: int
    unchecked: int
    coverage: float
    loss: float
    largest_relative_error: float
    sketch_relative_error: float | None
    passed: bool


class Checkup(BaseModel):
    """What the doctor found.

    Attributes:
        versions: Python and libraries.
        device: Device that ``auto`` stands for.
        device_name: Its name.
        cores: Cores this process may use.
        memory_bytes: Memory of the machine.
        device_memory_bytes: Memory of the accelerator, if there is one.
        disk_free_bytes: Room in the working folder.
        gradients: The check of a model, if one was named.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: dict[str, str]
    device: str
    device_name: str
    cores: int
    memory_bytes: int
    device_memory_bytes: int | None
    disk_free_bytes: int
    gradients: GradientCheck | None = None


def examine(model: ModelConfig, gradients: GradientConfig) -> Checkup:
    """Look at the machine, and test the gradients of the model if one is named.

    Raises:
        ModelError: The model cannot be read or used.
    """
    device = resolve_device(model.device)
    on_gpu = device.type == "cuda"
    return Checkup(
        versions=versions(),
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if on_gpu else device.type,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        device_memory_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        gradients=check_gradients(load_proxy(model, gradients), gradients) if model.name else None,
    )


def check_gradients(proxy: Proxy, config: GradientConfig) -> GradientCheck:
    """Compare gradients from hooks with autograd's for two short examples of different length in one batch.

    Args:
        proxy: The model, frozen.
        config: Scope and sketch.

    Raises:
        ModelError: No layer can be compared.
    """
    engine = GradientEngine(proxy, config)
    generator = np.random.default_rng(0)
    vocabulary = int(proxy.model.config.get_text_config().vocab_size)
    ids = [generator.integers(0, vocabulary, size=size) for size in (24, 15)]
    masks = [np.arange(len(row)) >= 8 for row in ids]
    measured = engine.materialise(ids, masks)
    row = engine.batch(ids, masks)
    expected = _autograd(proxy, ids[0], masks[0])
    if not expected:
        raise ModelError(f"No layer of {proxy.name} in scope holds a weight matrix that autograd can be asked for.")
    errors = [_relative(measured[name][0], gradient) for name, gradient in expected.items()]
    whole = len(expected) == len(proxy.layers)
    sketched = engine.sketch(expected) if whole else None
    sketch_error = None if sketched is None else _relative(torch.from_numpy(row.rows[0]), sketched)
    tolerance = TOLERANCE if proxy.dtype == torch.float32 else HALF_TOLERANCE
    return GradientCheck(
        model=proxy.name,
        layers=len(expected),
        unchecked=len(proxy.layers) - len(expected),
        coverage=proxy.coverage,
        loss=float(row.losses[0]),
        largest_relative_error=max(errors),
        sketch_relative_error=sketch_error,
        passed=max(errors) < tolerance and (sketch_error is None or sketch_error < tolerance),
    )


def _autograd(proxy: Proxy, ids: np.ndarray, mask: np.ndarray) -> dict[str, Tensor]:
    """Gradients of one example's loss by autograd and the model's own loss, as [outputs, inputs] by layer name."""
    modules = dict(proxy.model.named_modules())
    shapes = {layer.name: (layer.rows, layer.columns) for layer in proxy.layers}
    weights = {
        name: weight
        for name in shapes
        if isinstance(weight := getattr(modules.get(name), "weight", None), Tensor) and weight.ndim == 2
    }
    if not weights:
        return {}
    tokens = torch.from_numpy(ids).to(proxy.device)[None]
    labels = torch.where(torch.from_numpy(mask).to(proxy.device)[None], tokens, -100)
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        loss = proxy.model(input_ids=tokens, labels=labels, use_cache=False).loss
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    gradients: dict[str, Tensor] = {}
    for (name, weight), gradient in zip(weights.items(), found, strict=True):
        value = torch.zeros_like(weight) if gradient is None else gradient
        # A Conv1D keeps its weight as [inputs, outputs].
        transposed = type(modules[name]).__name__ == "Conv1D"
        gradients[name] = (value.t() if transposed else value).float()
    return gradients


def _relative(found: Tensor, expected: Tensor) -> float:
    difference = (found.double().cpu() - expected.double().cpu()).norm()
    size = expected.double().norm().cpu()
    return float(difference / size) if size > 0 else float(difference)
