"""Training on what was selected, and selecting while a model is trained."""

from spice_select.training.live import LiveSelection
from spice_select.training.live_log import LivePool, read_live

__all__ = ["LivePool", "LiveSelection", "read_live"]
