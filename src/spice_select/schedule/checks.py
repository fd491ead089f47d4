"""Settings of a schedule that do not go together, refused before anything is read."""

from __future__ import annotations

from spice_select.config import RunConfig
from spice_select.errors import ConfigError
from spice_select.reporter import Reporter
from spice_select.schedule.tracking import check_tracker
from spice_select.schedule.warmup import wanted


def check_pools(config: RunConfig, reporter: Reporter) -> None:
    """Refuse what pools cannot do, and say which settings they do not use.

    Raises:
        ConfigError: A setting that does not go with pools.
    """
    selection, gradients = config.selection, config.gradients
    if selection.fisher != "exact":
        raise ConfigError(
            f"selection.fisher '{selection.fisher}' needs gradients by coordinate, and pools have inner products; "
            "use exact, or schedule.kind fixed."
        )
    if selection.initial is not None:
        raise ConfigError(
            "selection.initial cannot go with schedule.kind pools, whose pools start empty; exclude those rows with "
            "selection.exclude, or use schedule.kind fixed."
        )
    if isinstance(selection.quotas, dict) and any(
        isinstance(limit, int) for limits in selection.quotas.values() for limit in limits.values()
    ):
        raise ConfigError(
            "selection.quotas in rows cannot be kept pool by pool; give shares of the budget (0.25), or proportional."
        )
    if gradients.lora is not None:
        reporter.warn("gradients.lora is not used by pools, whose adapters are those of schedule.lora.")
    if selection.loop not in ("auto", "kernel"):
        reporter.warn(f"selection.loop '{selection.loop}' is not used by pools, which work on inner products.")
    if selection.partitions > 1:
        reporter.warn(f"selection.partitions {selection.partitions} is not used by pools.")
    if selection.device != "cpu":
        reporter.warn(f"selection.device '{selection.device}' is not used by pools, which work on inner products.")
    if config.schedule.tracker is not None:
        check_tracker(config.schedule.tracker)


def check_warmup(config: RunConfig) -> None:
    """Refuse gradients of adapters that are not those of a warm-up.

    Raises:
        ConfigError: Adapters that are trained already, or of another shape than those that the warm-up trains.
    """
    lora, trained = config.gradients.lora, config.schedule.lora
    if lora is None or not wanted(config.schedule):
        return
    if lora.adapter is not None:
        raise ConfigError(
            "Setting 'gradients.lora.adapter' names trained adapters, and a warm-up trains its own; leave out one."
        )
    if config.schedule.scope == "lora" and (lora.r, lora.alpha) != (trained.r, trained.alpha):
        raise ConfigError(
            f"Setting 'gradients.lora' has r {lora.r} and alpha {lora.alpha:g}, and the adapters of the warm-up, whose "
            f"gradients are taken, r {trained.r} and alpha {trained.alpha:g} (schedule.lora); make them equal."
        )
