"""How much measured gradients differ between ways of running, and whether the picks do.

One pool with many exact copies is measured in several ways, each in a process of its own: batches of other sizes,
more threads, shards of other sizes. The rows of the store are compared with those of the first way, and so are the
picks, of which there is a tenth. Selection is compared by itself on synthetic rows: threads, loops, blocks of rows.

    python -m tests.determinism --model MODEL --data-dir DATA --rows 400
    python -m tests.determinism --selection --rows 20000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.support import ROOT

FILES = ("gsm8k_train.jsonl", "code_alpaca_2k.json", "alpaca_1k.json")
LOOPS = ("lazy", "dense")


@dataclass(frozen=True)
class Way:
    """A way of running.

    Attributes:
        batch_tokens: Padded tokens of a batch.
        threads: Threads of PyTorch and of the linear algebra beneath NumPy.
        shard_rows: Rows of a shard.
    """

    batch_tokens: int = 1024
    threads: int = 1
    shard_rows: int = 64


WAYS = (Way(), Way(batch_tokens=256), Way(batch_tokens=4096), Way(threads=2), Way(threads=4), Way(shard_rows=1024))


@dataclass(frozen=True)
class Compared:
    """What a way of running changed.

    Attributes:
        largest: Largest norm of a row's difference over the norm of the row.
        median: The median of the same.
        losses: Largest relative difference of a loss.
        picks: Picks, as a set, that are not among those of the first way.
        places: Places in the order of the picks where another row stands.
    """

    largest: float
    median: float
    losses: float
    picks: int
    places: int


def pool(rows: int, data: Path | None, tokenizer: object, max_length: int = 256) -> list[tuple]:
    """Token ids and masks, a third of them copies of others: of real rows, or random tokens without a folder."""
    random = np.random.default_rng(0)
    if data is None:
        from tests.proxies import examples

        made = list(zip(*examples(rows, seed=1), strict=True))
    else:
        from spice_select.config import DataConfig
        from spice_select.data.encode import encode_rows
        from spice_select.data.sources import load_rows

        made = []
        for file in FILES:
            table = load_rows([str(data / file)], limit=rows)
            encoded = encode_rows(table, tokenizer, DataConfig(max_length=max_length))
            found = [encoded.example(i) for i in range(len(encoded))]
            made += [(x.input_ids, x.labels_mask) for x in found if x.labels_mask.any()][: -(-rows // len(FILES))]
        made = [made[i] for i in random.permutation(len(made))[:rows]]
    for copy in random.choice(np.arange(1, rows), rows // 3, replace=False).tolist():
        made[copy] = made[int(random.integers(0, copy))]
    return made


def collect_one(folder: Path, way: Way, model: str | None, rows: int, data: Path | None, dim: int) -> None:
    """Collect in this process."""
    import torch

    torch.set_num_threads(way.threads)
    from spice_select.config import GradientConfig, ModelConfig
    from spice_select.data.encoded import EncodingStats, Example, collect_examples
    from spice_select.data.status import Status
    from spice_select.gradients import GradientEngine, load_proxy
    from spice_select.gradients.collect import collect
    from tests.proxies import tiny_proxy

    config = GradientConfig(dim=dim, batch_tokens=way.batch_tokens, shard_rows=way.shard_rows)
    proxy = load_proxy(ModelConfig(name=model, device="cpu"), config) if model else tiny_proxy("llama", dim=dim)
    made = [Example(np.asarray(ids, np.int32), mask, Status.OK) for ids, mask in pool(rows, data, proxy.tokenizer)]
    encoded = collect_examples(made, EncodingStats(rows=len(made)), {})
    collect(encoded, GradientEngine(proxy, config), folder, config, identity={"model": model})


def picks(folder: Path, loop: str = "auto", **settings: object) -> list[int]:
    """A tenth of a store's rows."""
    from spice_select import select
    from spice_select.gradients.store import GradientStore

    store = GradientStore.open(folder)
    return select(store, budget=len(store) // 10, loop=loop, **settings).indices.tolist()  # type: ignore[arg-type]


def compare(first: Path, other: Path) -> Compared:
    """One store with another."""
    from spice_select.gradients.store import GradientStore

    a, b = GradientStore.open(first), GradientStore.open(other)
    rows, others = a.rows(range(len(a))).astype(np.float64), b.rows(range(len(b))).astype(np.float64)
    relative = np.linalg.norm(rows - others, axis=1) / np.linalg.norm(rows, axis=1)
    losses = np.abs(a.losses / b.losses - 1)
    chosen, again = picks(first), picks(other)
    places = sum(x != y for x, y in zip(chosen, again, strict=True))
    return Compared(
        float(relative.max()), float(np.median(relative)), float(losses.max()), len({*again} - {*chosen}), places
    )


def started(way: Way, arguments: Sequence[str]) -> None:
    """This module in a process of its own, with so many threads."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(way.threads))
    # Threads that wait must not keep others from the processor.
    environment = {**os.environ, **threads, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "tests.determinism", *arguments], cwd=ROOT, env=environment, check=True)


def measure(folder: Path, options: argparse.Namespace, ways: Sequence[Way] = WAYS) -> list[tuple[Way, Compared]]:
    """Each way in its own process, compared with the first."""
    found = []
    for number, way in enumerate(ways):
        task = {"way": asdict(way), "folder": str(folder / str(number)), "model": options.model, "rows": options.rows}
        task |= {"data": None if options.data_dir is None else str(options.data_dir), "dim": options.dim}
        started(way, ["--task", json.dumps(task)])
        if number:
            found.append((way, compare(folder / "0", folder / str(number))))
            print(way, found[-1][1], flush=True)
    return found


def clustered(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Heavy-tailed clusters, a tenth of the rows copies of others and a tenth all but copies."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((64, dim))
    made = centres[random.integers(0, 64, rows)] + random.standard_normal((rows, dim))
    made *= np.exp(random.standard_normal((rows, 1))) / dim**0.5
    for share in (0.0, 1e-7):
        copies = random.choice(np.arange(1, rows), rows // 10, replace=False)
        made[copies] = made[random.integers(0, copies)] * (1 + share * random.standard_normal((len(copies), 1)))
    return made.astype(np.float32)


def selected(rows: int, dim: int, picked: int) -> dict[str, list[int]]:
    """Picks of each loop, in this process and with its threads."""
    from spice_select import select

    table = clustered(rows, dim)
    return {loop: select(table, budget=picked, loop=loop).indices.tolist() for loop in LOOPS}  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder of a model; a tiny random one without")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--selection", action="store_true")
    parser.add_argument("--picks", type=int, default=300)
    parser.add_argument("--task", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task is not None:
        task = json.loads(options.task)
        if "picks" in task:
            Path(task["file"]).write_text(json.dumps(selected(task["rows"], task["dim"], task["picks"])))
            return
        data = None if task["data"] is None else Path(task["data"])
        collect_one(Path(task["folder"]), Way(**task["way"]), task["model"], task["rows"], data, task["dim"])
        return
    with tempfile.TemporaryDirectory() as folder:
        if not options.selection:
            measure(Path(folder), options)
            return
        for threads in (1, 2, 4):
            task = {"picks": options.picks, "rows": options.rows, "dim": options.dim, "file": f"{folder}/{threads}"}
            started(Way(threads=threads), ["--task", json.dumps(task)])
        found = [json.loads(Path(folder, str(threads)).read_text()) for threads in (1, 2, 4)]
        same = all(each[loop] == found[0]["lazy"] for each in found for loop in LOOPS)
        print(f"{options.rows} x {options.dim}, {options.picks} picks, threads 1, 2, 4, loops {LOOPS}: same {same}")


if __name__ == "__main__":
    main()
