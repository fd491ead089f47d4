"""``python -m tests.memory_leak --batches 1000``: memory, tensors and objects stay level while batch follows batch."""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

MOST_BYTES_A_STEP = 1024.0
"""Growth of resident memory that a loop may show, in bytes a step: allocators never stand quite still."""
MOST_OBJECTS_A_STEP = 0.5
_LOOKS = 40


@dataclass(frozen=True)
class Growth:
    """Slopes of straight lines through what was seen in the second half of a loop."""

    name: str
    steps: int
    bytes_a_step: float
    objects_a_step: float
    tensors_a_step: float

    @property
    def level(self) -> bool:
        """Whether nothing grows with the steps."""
        return (
            self.bytes_a_step <= MOST_BYTES_A_STEP
            and self.objects_a_step <= MOST_OBJECTS_A_STEP
            and self.tensors_a_step <= 0.01
        )


def measure(name: str, step: Callable[[int], object], steps: int) -> Growth:
    """Run a loop, and look at the process between its steps.

    Args:
        name: What the loop is.
        step: One pass.
        steps: Passes; the first half is for caches to fill.
    """
    every = max(1, steps // (2 * _LOOKS))
    seen = []
    for number in range(steps):
        step(number)
        if 2 * number >= steps and number % every == 0:
            gc.collect()
            found = gc.get_objects()
            tensors = sum(issubclass(type(one), torch.Tensor) for one in found)
            seen.append((number, _resident(), len(found), tensors))
            del found
    at, *columns = np.asarray(seen, dtype=np.float64).T
    slopes = [float(np.polyfit(at - at[0], column, 1)[0]) for column in columns]
    return Growth(name, steps, *slopes)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def collecting(batches: int) -> Growth:
    """Batches of one to eight examples through the hooks of the gradient engine."""
    from spice_select.config import GradientConfig
    from spice_select.gradients import GradientEngine
    from tests.proxies import examples, tiny_proxy

    engine = GradientEngine(tiny_proxy("llama"), GradientConfig(dim=64, batch_tokens=200))
    ids, masks = examples(64)

    def step(number: int) -> None:
        size, begin = 1 + number % 8, number % 56
        engine.batch(ids[begin : begin + size], masks[begin : begin + size])

    return measure("batches of collect", step, batches)


def selecting(times: int, folder: Path) -> Growth:
    """Selections from one store, opened and mapped anew each time."""
    from spice_select.gradients.store import GradientStore
    from spice_select.selection import select
    from tests.stores import FakeEngine, examples, fill

    fill(folder, examples(60), FakeEngine(16))

    def step(number: int) -> None:
        select(GradientStore.open(folder), budget=6, alpha="auto", normalize="sqrt_tokens")

    return measure("selections from a store", step, times)


def training(steps: int) -> Growth:
    """Steps of a schedule: gradients of a pool, then the proxy trained on a few of its rows."""
    from spice_select.schedule.trainer import ProxyTrainer
    from tests.proxies import examples
    from tests.schedules import SEED, engine, learner, schedule

    proxy = learner()
    watching, trainer = engine(proxy), ProxyTrainer(proxy, schedule(), SEED, 2 * steps)
    ids, masks = examples(12)

    def step(number: int) -> None:
        watching.batch(ids[:6], masks[:6])
        trainer.train(ids[6:9], masks[6:9], trainer.step, "leak")

    return measure("pools of a schedule", step, steps)


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.memory_leak")
    options.add_argument("--batches", type=int, default=1000)
    options.add_argument("--selections", type=int, default=200)
    options.add_argument("--pools", type=int, default=200)
    given = options.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        found = [
            collecting(given.batches),
            selecting(given.selections, Path(folder) / "store"),
            training(given.pools),
        ]
    for one in found:
        print(
            f"{one.name:<26}{one.steps:>6} steps {one.bytes_a_step:>9.1f} B {one.objects_a_step:>7.3f} objects "
            f"{one.tensors_a_step:>7.4f} tensors a step  {'level' if one.level else 'GROWS'}"
        )
    return int(not all(one.level for one in found))


if __name__ == "__main__":
    sys.exit(main())
