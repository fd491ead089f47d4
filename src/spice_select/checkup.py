"""Whether this machine, and a model on it, give the gradients that they should."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from spice_select.config import GradientConfig, ModelConfig
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.check import autograd_error
from spice_select.gradients.proxy import Proxy, load_proxy, resolve_device
from spice_select.results import versions

TOLERANCE = 1e-4
"""Largest relative error of a layer's gradient in float32; half precision rounds products of other shapes otherwise."""
HALF_TOLERANCE = 5e-2
COMPARED = 6
"""Layers compared."""


class GradientCheck(BaseModel):
    """Per-example gradients from hooks against autograd's, on the model itself.

    Attributes:
        model: The model.
        layers: Layers in scope.
        compared: Most layers that were compared, spread over the depth of the model.
        coverage: Share of the non-embedding weights in scope.
        loss: Loss of the first example, in nats a token.
        largest_relative_error: Largest |difference| / |gradient| over layers and examples.
        passed: Whether that is rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    layers: int
    compared: int
    coverage: float
    loss: float
    largest_relative_error: float
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
    """
    engine = GradientEngine(proxy, config)
    generator = np.random.default_rng(0)
    vocabulary = int(proxy.model.config.get_text_config().vocab_size)
    ids = [generator.integers(0, vocabulary, size=size) for size in (24, 15)]
    masks = [np.arange(len(row)) >= 8 for row in ids]
    error = autograd_error(engine, ids, masks, COMPARED)
    return GradientCheck(
        model=proxy.name,
        layers=len(proxy.layers),
        compared=min(COMPARED, len(proxy.layers)),
        coverage=proxy.coverage,
        loss=float(engine.losses(ids, masks)[0]),
        largest_relative_error=error,
        passed=error < (TOLERANCE if proxy.dtype == torch.float32 else HALF_TOLERANCE),
    )
