"""Per-example gradients of a frozen proxy, sketched, and the store that keeps them."""

from __future__ import annotations

from spice_select.gradients.capture import GradientBatch, GradientEngine
from spice_select.gradients.proxy import Proxy, load_proxy, load_tokenizer

__all__ = ["GradientBatch", "GradientEngine", "Proxy", "load_proxy", "load_tokenizer"]
