"""What one of several processes does in a test; each writes what it found to a file of its own.

The processes are forks of one that has imported everything, which saves most of the time that torchrun would take.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spice_select.errors import DataError, ResourceError, SpiceError
from spice_select.gradients import GradientEngine
from spice_select.schedule.gram import pool_gram, pool_rows
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.trainer import ProxyTrainer
from tests.proxies import examples
from tests.schedules import SEED, engine, learner, schedule, trained

PLENTY = 1 << 30
FULL = schedule(scope="full")
POOLS = {"one": 1, "ragged": 11}


def measured(ranks: Ranks) -> dict[str, np.ndarray]:
    """Products and losses of several pools and memory limits."""
    adapters, full = engine(trained()), engine(learner(scope="full"), FULL, dim=64)
    found: dict[str, np.ndarray] = {}
    for name, count in POOLS.items():
        ids, masks = examples(count, seed=count)
        size = 4 * count * sum(layer.size for layer in adapters.proxy.layers)
        for kind, source, memory in (
            ("adapters", adapters, PLENTY),
            ("tight", adapters, size),
            ("full", full, PLENTY),
            ("fold", full, 1 << 12),
        ):
            pool = pool_gram(source, ids, masks, ranks=ranks, memory=memory)
            assert pool.exact == (kind != "fold")
            found[f"{name} {kind} gram"], found[f"{name} {kind} losses"] = pool.gram, pool.losses
        rows = pool_rows(full, ids, masks, ranks=ranks)
        found[f"{name} rows"], found[f"{name} norms"] = rows.rows, rows.squared_norms
    return found


def training(ranks: Ranks) -> dict[str, Any]:
    """The same training everywhere, and what becomes of a process that went astray."""
    trainer = ProxyTrainer(learner(), schedule(learning_rate=1e-2), SEED, 20, batch_tokens=40)
    ids, masks = examples(10)
    with ranks.together():
        first = trainer.train(ids, masks, 0, "a")
    equal = trainer.share(ranks)
    digest = trainer.digest
    if ranks.rank == ranks.world - 1:
        with torch.no_grad():
            next(iter(trainer.parameters.values())).add_(1e-6)
    astray = trainer.share(ranks)
    return {"equal": equal, "digest": digest, "astray": astray, "mended": trainer.digest, "losses": first.losses}


def failing(ranks: Ranks) -> list[list[str]]:
    """Faults of the last process, in every place where the others may be waiting for it."""
    found: list[list[str]] = []
    last = ranks.rank == ranks.world - 1
    source = engine(trained())
    ids, masks = examples(6)

    def note(step: Any) -> None:
        try:
            step()
            found.append(["nothing", ""])
        except SpiceError as error:
            found.append([type(error).__name__, str(error)])
        except ValueError as error:
            found.append([type(error).__name__, str(error)])
        ranks.barrier()

    def by_itself() -> None:
        with ranks.together():
            if last:
                raise DataError("Row 7 is broken; mend it.")

    def of_a_bug() -> None:
        with ranks.together():
            if last:
                raise ValueError("a bug")

    def before_an_exchange() -> None:
        with ranks.together():
            if last:
                raise DataError("Row 8 is broken; mend it.")
            pool_gram(source, ids, masks, ranks=ranks, memory=PLENTY)

    def inside_of_a_pool() -> None:
        with ranks.together():
            honest = GradientEngine.fill
            if last:
                source.fill = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))  # type: ignore
            try:
                pool_gram(source, ids, masks, ranks=ranks, memory=PLENTY)
            finally:
                source.fill = honest.__get__(source)  # type: ignore[method-assign]

    def before_a_broadcast() -> None:
        with ranks.together():
            if last:
                raise ResourceError("No memory is left; add some.")
            ranks.broadcast_tensor(torch.zeros(3))
            ranks.all_gather(1)

    def told_otherwise() -> None:
        with ranks.together():
            try:
                by_itself()
            except DataError as error:
                raise DataError(f"Again: {error}") from None

    for step in (by_itself, of_a_bug, before_an_exchange, inside_of_a_pool, before_a_broadcast, told_otherwise):
        note(step)
    # Nothing is left in the wires.
    found.append(gram_sum(ranks))
    return found


def gram_sum(ranks: Ranks) -> list[str]:
    """All bits of a pool's products in a few."""
    gram = pool_gram(engine(trained()), *examples(6), ranks=ranks, memory=PLENTY).gram
    return ["sum", float(gram.sum()).hex()]


def talking(ranks: Ranks) -> dict[str, Any]:
    """Calls by themselves."""
    own = torch.full((ranks.rank, 2), float(ranks.rank))
    gathered = ranks.gather_to(own, ranks.world - 1)
    numbers = torch.arange(3.0) * (ranks.rank + 1)
    ranks.broadcast_tensor(numbers, ranks.world - 1)
    return {
        "main": ranks.main,
        "told": ranks.broadcast({"rank": ranks.rank, "text": "é" * ranks.rank}),
        "all": ranks.all_gather("x" * ranks.rank),
        "nan": str(ranks.all_gather(float("nan"))),
        "gathered": None if gathered is None else [part.tolist() for part in gathered],
        "numbers": numbers.tolist(),
    }


def work(folder: Path) -> None:
    """Everything, and a file with what came of it."""
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    arrays = measured(ranks)
    told = {"training": training(ranks), "failing": failing(ranks), "talking": talking(ranks)}
    np.savez(folder / f"{ranks.rank}.npz", **arrays)  # type: ignore[arg-type]
    (folder / f"{ranks.rank}.json").write_text(json.dumps(told))
    ranks.close()


def fork(world: int, folder: Path) -> None:
    """Start the processes, with the environment that torchrun gives, and wait for them."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    children = []
    for rank in range(world):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(folder)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    failed = [status for status in (os.waitpid(child, 0)[1] for child in children) if status]
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    # Imports what transformers and PEFT import when they are first used.
    learner()
    for number in map(int, sys.argv[2:]):
        fork(number, Path(sys.argv[1], str(number)))
