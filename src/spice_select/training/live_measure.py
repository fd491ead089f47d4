"""Gradients of a model in the midst of its training, which finds everything as it was when it goes on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spice_select.config import GradientConfig, LoraConfig
from spice_select.errors import ConfigError, ModelError, ResourceError
from spice_select.gradients.batches import out_of_memory
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.layers import ALL_LINEAR, causal_model
from spice_select.gradients.proxy import Proxy
from spice_select.schedule.gram import PoolGram, pool_gram
from spice_select.schedule.ranks import Ranks
from spice_select.training.live_settings import LiveSettings


class LiveGradients:
    """Exact inner products of a pool's loss gradients with respect to the weights that a training trains.

    Gradients are taken in eval mode and in the dtype of the weights: the trainer's autocast is for its own steps.

    Args:
        model: The trainer's model; PEFT's wrapper where adapters are trained.
        settings: How many tokens go together, and how much memory gradients may take.

    Raises:
        ConfigError: No linear layer or low-rank adapter is trained.
        ModelError: The model is no causal language model.
    """

    def __init__(self, model: nn.Module, settings: LiveSettings) -> None:
        self._model = model
        self._memory = settings.gram_bytes
        device = next(model.parameters()).device
        tokens = settings.batch_tokens or (1024 if device.type == "cpu" else 8192)
        config = trained_scope(model).model_copy(update={"dim": settings.dim, "batch_tokens": tokens})
        with untouched(model), warnings.catch_warnings():
            # Whoever trains a few layers alone knows it.
            warnings.filterwarnings("ignore", message="The gradients cover")
            self._engine = GradientEngine(Proxy.from_model(model, None, config), config)

    @property
    def engine(self) -> GradientEngine:
        """What measures; only to be used within :func:`untouched`."""
        return self._engine

    def measure(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> PoolGram:
        """Inner products of the examples' gradients at the weights as they are.

        Args:
            ids: Token ids of each example, ``[t]``.
            masks: True where the token is a trained label, ``[t]``.

        Raises:
            ResourceError: Memory ran out.
        """
        with untouched(self._model):
            try:
                return pool_gram(self._engine, ids, masks, ranks=Ranks(), memory=self._memory)
            except ResourceError:
                tokens = self._engine.config.batch_tokens
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                tokens = self._engine.config.batch_tokens
        raise ResourceError(
            f"Gradients of {tokens} padded tokens at once don't fit into memory beside the training; set batch_tokens "
            f"below {tokens}, or gram_bytes below {self._memory}."
        )


def trained_scope(model: nn.Module) -> GradientConfig:
    """The gradient settings whose scope is the linear weights that are trained.

    Raises:
        ConfigError: There are none, or they belong to several adapters.
        ModelError: The model is no causal language model.
    """
    causal = causal_model(model)
    if not callable(getattr(causal, "get_output_embeddings", None)) or causal.get_output_embeddings() is None:
        raise ModelError(
            f"{type(model).__name__} has no output head over a vocabulary; train a causal language model of "
            "transformers."
        )
    head = causal.get_output_embeddings().weight
    linear = {
        name: module.weight.requires_grad
        for name, module in causal.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module.weight is not head
    }
    adapters = {name: trained for name, trained in linear.items() if ".lora_" in name}
    if not adapters and hasattr(model, "peft_config"):
        raise ConfigError("The adapters that are trained are no low-rank ones (LoRA), whose gradients are taken.")
    if adapters:
        if len({name.partition(".lora_")[2].partition(".")[2] for name in adapters}) > 1:
            raise ConfigError("The model carries several adapters; leave on it the one that is trained.")
        factors = "both" if any(trained for name, trained in adapters.items() if ".lora_A" in name) else "B"
        lora = LoraConfig(factors=factors)
        parts = {name.partition(".lora_")[0]: False for name in adapters}
        for name, trained in adapters.items():
            parts[name.partition(".lora_")[0]] |= trained
    else:
        lora, parts = None, linear
    chosen = [name for name, trained in parts.items() if trained]
    if not chosen:
        raise ConfigError(
            "No linear layer and no low-rank adapter of the model is trained, so that there are no gradients to choose "
            "by; train some."
        )
    layers = ALL_LINEAR if len(chosen) == len(parts) else "|".join(map(re.escape, chosen))
    return GradientConfig(layers=layers, lora=lora)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """A block in which the model is frozen, in eval mode and out of autocast; after it all is as it was.

    That is: the mode of each module, which weights ask for gradients, the random numbers of torch, autocast, and
    accelerate's wrapper around ``forward``, which would cast in the block.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    device = next(model.parameters()).device.type
    asks = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    wrapped: list[tuple[Any, Any]] = [
        (module, vars(module)["forward"])
        for module in dict.fromkeys((model, causal_model(model)))
        if "forward" in vars(module) and hasattr(module, "_original_forward")
    ]
    with torch.random.fork_rng(devices), torch.autocast(device, enabled=False):
        try:
            for module, _ in wrapped:
                module.forward = module._original_forward
            model.requires_grad_(False)
            model.eval()
            yield
        finally:
            for module, forward in wrapped:
                module.forward = forward
            for parameter, asked in asks:
                parameter.requires_grad_(asked)
            for module, training in modes:
                module.training = training
