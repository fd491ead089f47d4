"""Partitions of a selection, each walked by a worker of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from spice_select.distributed.cluster import Cluster, Shape
from spice_select.distributed.messages import Failed
from spice_select.distributed.worker import failed
from spice_select.errors import ResourceError, retold

_Part = TypeVar("_Part")
_Picks = TypeVar("_Picks")
# Times that a partition is given to another worker where one is lost.
_RETRIES = 3


def each_part(
    cluster: Cluster, shape: Shape, function: Callable[[_Part], _Picks], parts: Sequence[_Part]
) -> Iterator[_Picks]:
    """Apply a function to every partition, at most as many at a time as there are workers.

    What a worker is sent holds the members' numbers and norms, and the name of the store that it reads them from:
    the partitions under way are all that lies in Ray's object store.

    Args:
        cluster: Started.
        shape: Its workers.
        function: Can be named by another process.
        parts: Its arguments.

    Yields:
        The results, as they come.

    Raises:
        SpiceError: As the function raises it.
        ResourceError: A partition has ended several workers.
    """
    ray = cluster.ray
    # Ray's own retries have no end where memory ran out.
    task = ray.remote(guarded).options(num_cpus=shape.cpus, num_gpus=shape.gpus, max_retries=0)
    left, running = deque((part, 0) for part in parts), {}
    while left or running:
        while left and len(running) < shape.workers:
            part, losses = left.popleft()
            running[task.remote(function, part, shape.threads)] = part, losses
        (first, *_), _ = ray.wait(list(running), num_returns=1)
        part, losses = running.pop(first)
        try:
            found = ray.get(first)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            if losses < _RETRIES:
                left.appendleft((part, losses + 1))
                continue
            raise ResourceError(
                f"A partition has ended {_RETRIES + 1} workers one after another ({type(error).__name__}); ask for "
                "more --partitions or fewer --workers if memory is short."
            ) from None
        if isinstance(found, Failed):
            known = retold(list(found.kinds), found.sentence)
            assert known is not None
            raise known
        yield found


def guarded(function: Callable[[Any], Any], part: Any, threads: int) -> Any:
    """The function's result, or the sentence that it failed with."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            return function(part)
    except Exception as error:
        return failed(error, "ask for more --partitions or fewer --workers")
