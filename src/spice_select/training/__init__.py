"""Training on what was selected, and selecting while a model is trained."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spice_select.training.live import LiveSelection
    from spice_select.training.live_log import LivePool, read_live

# Loaded on first use: what is trained beforehand need not wait for it.
_HOMES = {
    "LivePool": "spice_select.training.live_log",
    "LiveSelection": "spice_select.training.live",
    "read_live": "spice_select.training.live_log",
}

__all__ = ["LivePool", "LiveSelection", "read_live"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'spice_select.training' has no attribute '{name}'")
