"""spice-select: choose the part of an instruction-tuning set that teaches a language model the most.

The method is SPICE (Submodular Penalized Information-Conflict Selection), ICLR 2026, arXiv 2601.23155.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spice_select import errors

if TYPE_CHECKING:
    from spice_select.gradients.store import GradientStore
    from spice_select.selection import Selection, select, select_gram

# Loaded on first use, so that `import spice_select` doesn't wait for torch.
_HOMES = {
    "GradientStore": "spice_select.gradients.store",
    "Selection": "spice_select.selection",
    "select": "spice_select.selection",
    "select_gram": "spice_select.selection",
}

__all__ = ["GradientStore", "Selection", "errors", "select", "select_gram"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'spice_select' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
