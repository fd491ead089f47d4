"""``python -m tests.fuzz --inputs 100000 --seed 0``: counts outcomes, and keeps the inputs that fail."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.fuzz.campaign import LONGEST_S, Count, campaign, minimised, save_found, spread
from tests.fuzz.formats import FORMATS


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.fuzz")
    options.add_argument("--inputs", type=int, default=100_000, help="inputs over all formats")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--format", action="append", choices=[one.name for one in FORMATS], help="only this one")
    options.add_argument("--longest", type=float, default=LONGEST_S, help="seconds that an input may take")
    options.add_argument("--jobs", type=int, default=1, help="formats at a time")
    options.add_argument("--keep", action="store_true", help="make failing inputs smaller and keep them in found/")
    given = options.parse_args()
    chosen = [one for one in FORMATS if not given.format or one.name in given.format]
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    failed = 0
    print(f"{'format':<22}{'inputs':>9}{'read':>9}{'refused':>9}{'faults':>8}{'per s':>8}", flush=True)
    totals = [0, 0, 0, 0, 0.0]
    try:
        plan = spread(given.inputs, chosen)
        with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("fork")) as workers:
            counts = [
                workers.submit(_campaign, one.name, given.seed, plan[one.name], scratch, given.longest)
                for one in chosen
            ]
        for one, found in zip(chosen, counts, strict=True):
            count = found.result()
            figures = [count.inputs, count.read, count.refused, len(count.faults), count.seconds]
            totals = [a + b for a, b in zip(totals, figures, strict=True)]
            print(_line(one.name, figures), flush=True)
            seen: set[str] = set()
            for fault in count.faults:
                key = f"{fault.kind} {fault.detail.split(' ')[0]}"
                if key in seen:
                    continue
                seen.add(key)
                alike = sum(f"{other.kind} {other.detail.split(' ')[0]}" == key for other in count.faults)
                print(f"    {fault.kind} at input {fault.number} ({alike} alike): {fault.detail}", flush=True)
                if given.keep:
                    content = one(scratch / "again").input(given.seed, fault.number)
                    alive = fault.detail != ""
                    small = _apart(one, content, scratch / "small") if alive else content
                    print(f"      kept as {save_found(one.name, small)}", flush=True)
                    shutil.rmtree(scratch / "again", ignore_errors=True)
            failed += len(count.faults)
        print(_line("all", totals), flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return int(failed > 0)


def _campaign(name: str, seed: int, inputs: int, scratch: Path, longest: float) -> Count:
    one = next(one for one in FORMATS if one.name == name)
    count = campaign(one, seed, range(inputs), scratch / name.replace("/", "-"), longest=longest)
    print(f"  {name}: {inputs:,} inputs, {len(count.faults)} faults", file=sys.stderr, flush=True)
    return count


def _line(name: str, figures: list[float]) -> str:
    inputs, read, refused, faults, seconds = figures
    return f"{name:<22}{inputs:>9,}{read:>9,}{refused:>9,}{faults:>8,}{inputs / max(seconds, 1e-9):>8,.0f}"


def _apart(one: type, content: bytes, folder: Path) -> bytes:
    """Make an input smaller in a process of its own, which takes the limits on."""
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.bin"
    child = os.fork()
    if child == 0:
        try:
            result.write_bytes(minimised(one, content, folder / "format"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    small = result.read_bytes() if result.is_file() else content
    shutil.rmtree(folder, ignore_errors=True)
    return small


if __name__ == "__main__":
    sys.exit(main())
