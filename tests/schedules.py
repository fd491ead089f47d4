"""Proxies with adapters that have learnt a little, for tests of the schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spice_select.config import GradientConfig, ScheduleConfig
from spice_select.gradients import GradientEngine, Proxy
from spice_select.schedule.adapters import attach_adapters, trained_scope
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.trainer import ProxyTrainer
from tests.proxies import tiny_model

SEED = 5


def schedule(**values: Any) -> ScheduleConfig:
    return ScheduleConfig.model_validate({"lora": {"r": 4, "alpha": 8.0, "dropout": 0.1}, "batch_size": 3, **values})


def learner(family: str = "llama", **values: Any) -> Proxy:
    """A tiny proxy as the schedule trains it; its factors B are zero."""
    proxy = Proxy.from_model(tiny_model(family), None, GradientConfig())
    return attach_adapters(proxy, schedule(**values), SEED)


def engine(proxy: Proxy, plan: ScheduleConfig | None = None, **gradients: Any) -> GradientEngine:
    """Gradients of the weights that are trained."""
    plan = schedule() if plan is None else plan
    config = trained_scope(GradientConfig.model_validate({"batch_tokens": 40, **gradients}), plan)
    return GradientEngine(proxy, config)


def trained(family: str = "llama", **values: Any) -> Proxy:
    """A tiny proxy whose adapters look trained."""
    proxy = learner(family, **values)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in ProxyTrainer(proxy, schedule(**values), SEED, 10).parameters.items():
            if name.endswith("lora_B"):
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return proxy


def flat(found: GradientEngine, ids: list[np.ndarray], masks: list[np.ndarray]) -> np.ndarray:
    """Whole gradients side by side, float64."""
    whole = found.materialise(ids, masks)
    return torch.cat([table.flatten(1).double() for table in whole.values()], dim=1).numpy()


ALONE = Ranks()
