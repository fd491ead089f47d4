"""What a collect by workers of Ray costs beside the same by processes that are started by hand.

Three ways, each a command of its own in a fresh folder, in turn for some rounds: two processes with one thread each
that collect into one folder (which is what Ray's two workers are to do), one process with two threads, and `--engine
ray --workers 2`. The stores must be the same byte for byte, but for the one of two threads, whose sums may round
otherwise. Printed are the wall-clock seconds of the whole command, those of the stage of gradients alone, and the
ratios to the two processes, of each round and their median.

    python benchmarks/ray_engine.py --model MODEL --folder /tmp/ray-engine --rows 20000 --rounds 3

The rows are generated, short, and the gradients small, so that the model has little to do: on real rows and real models
the share of what surrounds it is less.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from spice_select.demo import demo_model_path, demo_rows

SETTINGS = ("gradients.dim=256", "gradients.shard_rows={shard_rows}", "data.max_length={length}")
WAYS = ("processes", "threads", "ray")


@dataclass(frozen=True)
class Timed:
    """Seconds of a way.

    Attributes:
        whole: From the first start of a process to the last end of one.
        gradients: Of the stage of gradients, the longest of its processes.
        opening: Of the stages before it that load the model.
    """

    whole: float
    gradients: float
    opening: float


def make_rows(path: Path, count: int) -> None:
    """Generated rows, each its own by a number in its prompt."""
    found = 0
    with path.open("w", encoding="utf-8") as file:
        seed = 0
        while found < count:
            for row in demo_rows(seed=seed):
                if found == count:
                    break
                file.write(json.dumps({**row, "instruction": f"{row['instruction']} ({found})"}) + "\n")
                found += 1
            seed += 1


def command(way: str, rows: Path, out: Path, asked: argparse.Namespace) -> list[str]:
    words = [sys.executable, "-m", "spice_select", "collect", str(rows), "-m", str(asked.model), "-o", str(out)]
    for setting in SETTINGS:
        words += ["--set", setting.format(shard_rows=asked.shard_rows, length=asked.length)]
    words += ["--quiet", "--json"]
    return words + (["--engine", "ray", "--workers", "2"] if way == "ray" else [])


def measure(way: str, rows: Path, out: Path, asked: argparse.Namespace) -> Timed:
    """Run one way to its end."""
    threads = "2" if way == "threads" else "1"
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    begun = time.perf_counter()
    started = [
        subprocess.Popen(command(way, rows, out, asked), stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(2 if way == "processes" else 1)
    ]
    said = [process.communicate()[0] for process in started]
    whole = time.perf_counter() - begun
    if any(process.returncode for process in started):
        sys.exit(f"{way}: a command failed")
    stages = [json.loads(text)["timings"] for text in said]
    return Timed(whole, max(stage["gradients"] for stage in stages), max(stage.get("model", 0.0) for stage in stages))


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of a store's shards and manifest."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "locks"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=demo_model_path())
    parser.add_argument("--folder", type=Path, required=True, help="for rows and stores; its stores are removed")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="'processes' is always among them")
    parser.add_argument("--shard-rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    rows = asked.folder / f"rows-{asked.rows}.jsonl"
    make_rows(rows, asked.rows)
    ways = tuple(way for way in WAYS if way == "processes" or way in asked.ways)
    ratios: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(asked.rounds):
        # In another order each time, so that a machine that slows down favours none.
        order = ways[number % len(ways) :] + ways[: number % len(ways)]
        timed: dict[str, Timed] = {}
        for way in order:
            out = asked.folder / way
            shutil.rmtree(out, ignore_errors=True)
            timed[way] = measure(way, rows, out, asked)
        for way in ways:
            found, base = timed[way], timed["processes"]
            ratios[way].append((found.whole / base.whole, found.gradients / base.gradients))
            print(
                f"round {number + 1}  {way:<9}  whole {found.whole:7.1f} s  model {found.opening:5.1f} s  gradients "
                f"{found.gradients:7.1f} s  ratio {ratios[way][-1][0]:.3f} whole, {ratios[way][-1][1]:.3f} gradients",
                flush=True,
            )
        if "ray" in ways:
            same = contents(asked.folder / "ray" / "gradients") == contents(asked.folder / "processes" / "gradients")
            print(f"round {number + 1}  Ray and two processes leave {'the same bytes' if same else 'OTHER BYTES'}")
            if not same:
                sys.exit(1)
    for way in ways:
        whole, gradients = (statistics.median(pair[place] for pair in ratios[way]) for place in (0, 1))
        print(f"median of {asked.rounds}  {way:<9}  {whole:.3f} whole, {gradients:.3f} gradients, to two processes")
    for way in ways:
        shutil.rmtree(asked.folder / way, ignore_errors=True)


if __name__ == "__main__":
    main()
