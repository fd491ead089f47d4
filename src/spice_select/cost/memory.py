"""What a selection holds at its height."""

from __future__ import annotations

from spice_select.cost.selecting import Work, active_rows
from spice_select.selection.blocked import GATHER, window
from spice_select.selection.fisher import LARGEST_INVERSE
from spice_select.selection.rows import BLOCK_BYTES, CACHE_BYTES

ALLOCATOR_BYTES = 16 << 20
"""Memory that was freed and is not given back at once."""
ROW_BYTES = 160
"""Bytes a row of the pool of all that is kept or passing of it: norms, bounds, potentials, records, orders."""


def select_bytes(work: Work) -> int:
    """Memory that a selection takes at its height, beyond the rows themselves, which stay on disk."""
    if not work.picks:
        return 0
    n, d, k = work.rows, work.dim, work.picks
    if work.partitions > 1:
        part, union = work.rounds()
        # One partition at a time in this process; elsewhere each worker holds one.
        return ROW_BYTES * n + max(select_bytes(part), select_bytes(union))
    block = 2 * BLOCK_BYTES
    rows = ROW_BYTES * n
    if work.loop == "kernel":
        return rows + block + ALLOCATOR_BYTES + 8 * k * n + (8 * n * d if 8 * n * d <= CACHE_BYTES else 0)
    if work.loop == "stochastic":
        matrix = 12 * d * d if 2 * k >= d and d <= LARGEST_INVERSE else 16 * k * d
        return rows + block + ALLOCATOR_BYTES + matrix * (2 if work.penalised else 1)
    if work.loop != "lazy" or work.fisher != "exact":
        cached = 8 * n * d if 8 * n * d <= CACHE_BYTES else 0
        return rows + block + cached + (16 * d * d if work.fisher == "exact" else 0)
    active = int(active_rows(work)) * 2
    kept = window(d)
    # Beyond the largest inverse the update vectors stand for the matrix, and all of them stay.
    inverse = 2 * k >= d and d <= LARGEST_INVERSE
    vectors = 8 * d * (min(3 * kept, k) if inverse else k)
    formed = 8 * d * d if inverse else 0
    gathered = min(GATHER, n) * d * 20
    lazy = 2 * 8 * active * d + gathered + 64 * 8 * (3 * active + 2 * d) + vectors + formed
    # The selection without penalty runs while the other's factorisation is kept for the certificate.
    again = (formed or vectors) if work.penalised else 0
    return rows + ALLOCATOR_BYTES + max(block, lazy + again)
