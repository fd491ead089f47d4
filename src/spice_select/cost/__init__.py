"""What a run would cost on machines like this one, from a few batches of its own model and data."""

from spice_select.cost.estimate import Scale, estimate, in_pools, with_warmup
from spice_select.cost.record import Cost

__all__ = ["Cost", "Scale", "estimate", "in_pools", "with_warmup"]
