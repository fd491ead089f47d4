"""How a pool's work falls into parts: groups of layers, and micro-batches for each process."""

from __future__ import annotations

from collections.abc import Sequence

from spice_select.gradients.layers import Layer

_GROUPS = 16


def layer_groups(layers: Sequence[Layer], count: int, memory: int) -> list[range]:
    """Consecutive layers whose gradients of ``count`` examples take at most a quarter of the memory; 16 or more."""
    limit = min(sum(layer.size for layer in layers) / _GROUPS, memory / 4 / (4 * count))
    groups: list[range] = []
    first, size = 0, 0
    for index, layer in enumerate(layers):
        if index > first and size + layer.size > limit:
            groups.append(range(first, index))
            first, size = index, 0
        size += layer.size
    groups.append(range(first, len(layers)))
    return groups


def share_batches(costs: Sequence[int], world: int) -> list[list[int]]:
    """Which batches each process takes, given the costliest first: each goes to whom has the least to do."""
    loads = [0] * world
    shares: list[list[int]] = [[] for _ in range(world)]
    for number, cost in enumerate(costs):
        rank = loads.index(min(loads))
        shares[rank].append(number)
        loads[rank] += cost
    return shares
