"""What of the proxy is trained: low-rank adapters, or the linear layers themselves."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spice_select.config import GradientConfig, LoraConfig, ScheduleConfig
from spice_select.errors import ConfigError
from spice_select.gradients.layers import ALL_LINEAR, find_scope, initial_factor
from spice_select.gradients.proxy import Proxy


def trained_scope(gradients: GradientConfig, schedule: ScheduleConfig) -> GradientConfig:
    """The gradient settings whose scope is the weights that the schedule trains; those of an engine for its pools."""
    adapters = schedule.lora
    lora = LoraConfig(r=adapters.r, alpha=adapters.alpha, factors="both") if schedule.scope == "lora" else None
    return gradients.model_copy(update={"lora": lora})


def attach_adapters(proxy: Proxy, schedule: ScheduleConfig, seed: int, layers: str = ALL_LINEAR) -> Proxy:
    """The proxy with the weights in scope that the schedule trains; with ``scope: lora``, adapters are put on.

    Adapters go on every linear layer that ``layers`` names. Their factors A are drawn by layer name, as PEFT
    would from its own numbers, and B is zero, so that the model computes what it did. No global random state changes.

    Args:
        proxy: A proxy without adapters; its model is wrapped in place.
        schedule: Scope, and the adapters' rank, alpha and dropout.
        seed: Of the factors A.
        layers: As ``gradients.layers``.

    Raises:
        ConfigError: The proxy has adapters already, or full layers of half precision would be trained.
        ModelError: No layer is in scope.
    """
    config = trained_scope(GradientConfig(layers=layers), schedule)
    if hasattr(proxy.model, "peft_config"):
        raise ConfigError(
            "Setting 'gradients.lora.adapter' names trained adapters, and the schedule trains its own; leave it out."
        )
    if schedule.scope == "full":
        if proxy.dtype != torch.float32:
            shown = str(proxy.dtype).removeprefix("torch.")
            raise ConfigError(
                f"Setting 'schedule.scope' cannot be 'full' with weights in {shown}, which round small steps away; "
                "set model.dtype to float32, or schedule.scope to lora."
            )
        return proxy.rescoped(config)
    scope = find_scope(proxy.model, config.model_copy(update={"lora": None}))
    targets = {id(module): module for module, _ in scope.modules}
    names = [name for name, module in proxy.model.named_modules() if id(module) in targets]
    wrapped = _wrap(proxy.model, names, targets.values(), schedule)
    reset_adapters(wrapped, seed)
    return proxy.rescoped(config, wrapped)


@torch.no_grad()
def reset_adapters(wrapped: Any, seed: int) -> None:
    """Put the adapters of :func:`attach_adapters` back to where a seed starts them: the model is the untrained one.

    Args:
        wrapped: PEFT's wrapper, whose base weights no training of adapters has touched.
        seed: Of the factors A.
    """
    for name, module in wrapped.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            factor = module.lora_A["default"].weight
            factor.copy_(initial_factor(seed, name, *factor.shape))
            module.lora_B["default"].weight.zero_()


def _wrap(model: Any, names: list[str], targets: Any, schedule: ScheduleConfig) -> Any:
    import peft

    settings = peft.LoraConfig(
        r=schedule.lora.r,
        lora_alpha=schedule.lora.alpha,  # type: ignore[arg-type]  # PEFT divides by r, and any number will do
        lora_dropout=schedule.lora.dropout,
        target_modules=names,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in targets),
        task_type="CAUSAL_LM",  # type: ignore[arg-type]  # an enumeration of strings
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT asks transformers for an attribute by its old name.
        warnings.simplefilter("ignore")
        wrapped: nn.Module = peft.get_peft_model(model, settings)
    return wrapped
