"""A million rows on one machine: exact lazy, stochastic and partition greedy from a float16 store on disk.

    python benchmarks/million.py FOLDER                          N = 100,000 and 1,000,000, D = 1,024, k = 10,000
    python benchmarks/million.py FOLDER --rows 20000 --picks 500 one size
    python benchmarks/million.py FOLDER --ways lazy stochastic   some ways only

The rows are clustered with heavy-tailed norms and lie in a gradient store of float16 rows over their norms, made once
and used again. Every way runs in a process of its own. Memory is anonymous memory, which the page cache of the files
of the store is no part of. Nothing may run beside it where times are to mean anything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

WAYS = {
    "lazy": {},
    "stochastic": {"loop": "stochastic"},
    "partitions": {"partitions": 8},
    # Minoux's lazy greedy alone: stale gains as bounds, and a batch of rows measured again at a time.
    "minoux": {},
}
SHARD = 1024
TAIL = 0.6


def write_store(folder: Path, rows: int, dim: int, seed: int = 0, clusters: int = 64, tail: float = TAIL) -> None:
    """A float16 gradient store of synthetic rows: clusters of unequal size, a falling spectrum, heavy-tailed norms."""
    from spice_select.gradients.manifest import build_manifest, write_manifest
    from spice_select.gradients.shards import META_DTYPE, ShardFiles, stored

    if (folder / "made").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    manifest = build_manifest(
        rows=rows,
        dim=dim,
        shard_rows=SHARD,
        store_dtype="float16",
        examples="0" * 64,
        gradient={"sketch": {"kind": "synthetic", "dim": dim, "seed": seed}},
        sources={"weights": "0" * 64, "tokenizer": "0" * 64, "template": {"hash": "0" * 64, "clock": None}},
        batch_tokens=1,
    )
    write_manifest(folder, manifest)
    files = ShardFiles(folder, manifest)
    files.folder.mkdir(exist_ok=True)
    rng = np.random.Generator(np.random.SFC64(seed))
    centres = (0.4 * (0.1 * rng.normal(size=dim) + rng.normal(size=(clusters, dim)))).astype(np.float32)
    sizes = rng.dirichlet(np.full(clusters, 0.5))
    spectrum = (2.5 * np.arange(1, dim + 1) ** -0.25).astype(np.float32)
    for shard in files.plan:
        count = len(shard)
        own = rng.standard_normal(size=(count, dim), dtype=np.float32) * spectrum
        size = np.exp(tail * rng.standard_t(4, size=(count, 1)).clip(-6, 6)).astype(np.float32)
        made = (centres[rng.choice(clusters, size=count, p=sizes)] + own) * size / np.float32(np.sqrt(dim))
        norms = np.linalg.norm(made.astype(np.float64), axis=1)
        meta = np.zeros(count, META_DTYPE)
        meta["row"] = np.arange(shard.start, shard.stop)
        meta["tokens"] = 1
        meta["norm"] = norms
        meta["squared_norm"] = norms**2
        files.write(shard, stored(made, norms, "float16"), meta)
    (folder / "made").touch()


def anonymous() -> int:
    """Bytes of anonymous resident memory now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


class Watch(threading.Thread):
    """The most anonymous memory seen, looked at twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = anonymous()
        self.start()

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            self.peak = max(self.peak, anonymous())
            time.sleep(0.05)


def measure(folder: Path, picks: int, way: str, epsilon: float) -> dict[str, object]:
    """One way of selecting, in this process."""
    from spice_select import GradientStore
    from spice_select.analysis.certificate import certify_selection
    from spice_select.selection import select

    np.ones((256, 256)) @ np.ones((256, 256))  # starts the threads of the linear algebra library
    if way == "minoux":
        from spice_select.selection import engines
        from spice_select.selection.lazy import Lazy

        engines.BlockedLazy = Lazy
    watch = Watch()
    store = GradientStore.open(folder)
    started, cpu = time.perf_counter(), time.process_time()
    found = select(
        store, budget=picks, alpha="auto", **WAYS[way], **({"sampling_epsilon": epsilon} if way == "stochastic" else {})
    )
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    # Before the certificate, which is another stage.
    line = {
        "rows": len(store),
        "dim": store.dim,
        "picks": picks,
        "way": way,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "milliseconds_a_pick": round(1000 * seconds / picks, 2),
        "information": found.information,
        "peak_mb": round(watch.peak / 2**20),
    }
    started = time.perf_counter()
    certificate = certify_selection(store, found, budget=picks)
    if certificate is not None:
        seconds = time.perf_counter() - started
        line |= {"certificate": round(certificate.value, 4), "certificate_seconds": round(seconds, 1)}
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--picks", type=int, default=10_000)
    parser.add_argument("--tail", type=float, default=TAIL, help="scale of the logarithms of the norms, Student's t4")
    parser.add_argument("--epsilon", type=float, default=0.01, help="of the samples")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS)[:3])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.folder, options.picks, options.one, options.epsilon)), flush=True)
        return
    for rows in options.rows:
        store = options.folder / (f"{rows}x{options.dim}" + ("" if options.tail == TAIL else f"-{options.tail:g}"))
        write_store(store, rows, options.dim, tail=options.tail)
        exact: dict[str, float] = {}
        for way in options.ways:
            call = [
                sys.executable,
                __file__,
                str(store),
                "--picks",
                str(options.picks),
                "--epsilon",
                str(options.epsilon),
                "--one",
                way,
            ]
            line = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)
            if way == "lazy":
                exact = line
            elif exact:
                line["information_of_exact"] = round(line["information"] / exact["information"], 4)
                line["time_of_exact"] = round(line["seconds"] / exact["seconds"], 3)
                line["cpu_of_exact"] = round(line["cpu_seconds"] / exact["cpu_seconds"], 3)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
