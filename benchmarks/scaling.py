"""How well the predicted cost holds: predictions from small runs beside larger runs as they went.

    python benchmarks/scaling.py                 three collects and three selections, a table of each; minutes
    python benchmarks/scaling.py --cpu           the same in processor time, for a machine that does other work
    python benchmarks/scaling.py --only select   one half of it
    python benchmarks/scaling.py --fit           count what the lazy loop does on small pools, and fit how that grows

A collect is priced from 400 rows of the demo with the demo's model, and measured on more rows and at other dimensions.
A selection is priced from the speeds of this machine alone, and measured on synthetic gradients (clusters of unequal
size, heavy-tailed norms) in a memory map. Every prediction and every measurement has a process of its own; memory is
what that process holds beside mapped files, looked at from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SMALL_ROWS = 400
COLLECTS = [
    {"rows": 1000, "dim": 4096, "dtype": "float32"},
    {"rows": 2000, "dim": 1024, "dtype": "float32"},
    {"rows": 3000, "dim": 8192, "dtype": "float16"},
]
SELECTIONS = [
    {"rows": 50_000, "dim": 256, "picks": 5_000, "loop": "lazy"},
    {"rows": 100_000, "dim": 1024, "picks": 4_000, "loop": "lazy"},
    {"rows": 200_000, "dim": 512, "picks": 4_000, "loop": "lazy"},
    {"rows": 100_000, "dim": 512, "picks": 2_000, "loop": "stochastic"},
    {"rows": 8_000, "dim": 512, "picks": 400, "loop": "dense"},
    {"rows": 4_000, "dim": 1024, "picks": 800, "loop": "kernel"},
]
FITTED = [
    (rows, dim, max(8, round(share * rows)))
    for dim in (128, 256, 512)
    for rows in (5_000, 10_000, 20_000, 40_000)
    for share in (0.01, 0.03, 0.1)
] + [(20_000, 1024, 2_000), (40_000, 1024, 1_000), (100_000, 256, 3_000), (200_000, 512, 4_000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="processor time instead of the clock's")
    parser.add_argument("--only", choices=["collect", "select"])
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that it works")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(json.loads(options.child))
        return
    if options.fit:
        fit()
        return
    print(f"Load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {'processor time' if options.cpu else 'clock'}.\n")
    with tempfile.TemporaryDirectory(prefix="scaling-") as scratch:
        if options.only != "select":
            _table("Collect", _collects(Path(scratch), options.cpu, options.smoke))
        if options.only != "collect":
            _table("Select", _selections(Path(scratch), options.cpu, options.smoke))


def _collects(scratch: Path, cpu: bool, smoke: bool) -> list[dict[str, Any]]:
    lines = []
    for case in [{"rows": 600, "dim": 256, "dtype": "float32"}] if smoke else COLLECTS:
        priced = _run({"kind": "price", "scratch": str(scratch), "cpu": cpu, **case})[0]
        measured, memory = _run({"kind": "collect", "scratch": str(scratch), "cpu": cpu, **case})
        name = f"{case['rows']:,} x {case['dim']:,}, {case['dtype']}"
        lines += [
            _line(name, "gradients, s", priced["gradient_seconds"], measured["gradients"]),
            _line(name, "all of it, s", priced["collect_seconds"], measured["all"]),
            _line(name, "memory, MB", priced["collect_memory_bytes"] / 1e6, memory / 1e6),
            _line(name, "disk, MB", priced["disk_bytes"] / 1e6, measured["disk"] / 1e6),
        ]
    return lines


def _selections(scratch: Path, cpu: bool, smoke: bool) -> list[dict[str, Any]]:
    lines = []
    for case in [{"rows": 3000, "dim": 64, "picks": 100, "loop": "lazy"}] if smoke else SELECTIONS:
        path = scratch / "rows.npy"
        subprocess.run(_command({"kind": "write", "path": str(path), **case}), check=True)
        priced = _run({"kind": "price-selection", "cpu": cpu, **case})[0]
        measured, memory = _run({"kind": "select", "path": str(path), "cpu": cpu, **case})
        path.unlink()
        name = f"{case['rows']:,} x {case['dim']:,}, k = {case['picks']:,}, {case['loop']}"
        lines += [
            _line(name, "selection, s", priced["selection"], measured["selection"]),
            _line(name, "certificate, s", priced["certificate"], measured["certificate"]),
            _line(name, "activity, s", priced["activity"], measured["activity"]),
            _line(name, "all with penalty, s", priced["all"], measured["all"]),
            _line(name, "memory, MB", (measured["before"] + priced["memory"]) / 1e6, memory / 1e6),
            _line(name, "memory beyond the process, MB", priced["memory"] / 1e6, (memory - measured["before"]) / 1e6),
        ]
    return lines


def _line(case: str, what: str, predicted: float, measured: float) -> dict[str, Any]:
    line = {"case": case, "what": what, "predicted": predicted, "measured": measured}
    print(f"  {case}: {what}: {predicted:.4g} for {measured:.4g}", file=sys.stderr, flush=True)
    return line


def _table(title: str, lines: list[dict[str, Any]]) -> None:
    print(f"| {title} | what | predicted | measured | ratio |\n|---|---|---|---|---|")
    for line in lines:
        ratio = line["predicted"] / line["measured"] if line["measured"] else float("nan")
        print(f"| {line['case']} | {line['what']} | {line['predicted']:.4g} | {line['measured']:.4g} | {ratio:.2f} |")
    print(flush=True)


def _command(task: dict[str, Any]) -> list[str]:
    return [sys.executable, __file__, "--child", json.dumps(task)]


def _run(task: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What a process of its own reports, and the most memory that it held beside mapped files."""
    process = subprocess.Popen(_command(task), stdout=subprocess.PIPE, text=True)
    most = [0]

    def watch() -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while process.poll() is None:
            try:
                resident, shared = Path(f"/proc/{process.pid}/statm").read_text().split()[1:3]
            except (OSError, ValueError):
                return
            most[0] = max(most[0], (int(resident) - int(shared)) * page)
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    text, _ = process.communicate()
    thread.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(text.splitlines()[-1]), most[0]


def _child(task: dict[str, Any]) -> None:
    kind = task["kind"]
    clock = time.process_time if task.get("cpu") else time.perf_counter
    if kind == "write":
        from selection import synthetic_gradients

        np.save(task["path"], synthetic_gradients(task["rows"], task["dim"]))
        return
    found = {
        "price": _price,
        "collect": _collect,
        "price-selection": _price_selection,
        "select": _select,
    }[kind](task, clock)
    print(json.dumps(found))


def _config(task: dict[str, Any], rows: int, output: Path | None) -> Any:
    from spice_select.config import load_config
    from spice_select.demo import demo_model_path, demo_rows

    path = Path(task["scratch"]) / f"rows-{rows}.jsonl"
    if not path.exists():
        # A seed has no more than about three thousand distinct rows to give.
        made = [row for seed in range(-(-rows // 1000)) for row in demo_rows(seed=seed, rows=min(rows, 1000))]
        path.write_text("".join(json.dumps(row) + "\n" for row in made[:rows]))
    return load_config(
        values={
            "data": {"sources": [str(path)]},
            "model": {"name": str(demo_model_path())},
            "gradients": {"dim": task["dim"], "store_dtype": task["dtype"]},
            "output": {"folder": "" if output is None else str(output)},
        }
    )


def _price(task: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    from spice_select.pricing import dry_run
    from spice_select.reporter import Silent

    _use(clock)
    config = _config(task, SMALL_ROWS, None)
    return dry_run(config, Silent(), selection=False, rows=task["rows"], ticks=clock).model_dump()


def _collect(task: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    from spice_select import pipeline
    from spice_select.reporter import Silent

    _use(clock)
    output = Path(task["scratch"]) / "collected"
    config = _config(task, task["rows"], output)
    try:
        result = pipeline.collect(config, Silent())
        assert result is not None
        disk = sum(path.stat().st_size for path in (output / "gradients").rglob("*") if path.is_file())
    finally:
        shutil.rmtree(output, ignore_errors=True)
    return {"gradients": result.timings["gradients"], "all": sum(result.timings.values()), "disk": disk}


def _use(clock: Callable[[], float]) -> None:
    """Let the stages of a run be told by that clock."""
    from types import SimpleNamespace

    from spice_select import reporter

    reporter.time = SimpleNamespace(perf_counter=clock)  # pyright: ignore[reportAttributeAccessIssue]


def _price_selection(task: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    from spice_select.cost.machine import measure_speeds
    from spice_select.cost.memory import select_bytes
    from spice_select.cost.selecting import (
        PLAIN,
        Work,
        activity_seconds,
        certificate_seconds,
        loop_seconds,
    )

    speeds = measure_speeds(task["dim"], "float32", clock)
    work = Work(task["rows"], task["dim"], task["picks"], task["loop"])
    parts = {
        "selection": loop_seconds(work, speeds),
        "certificate": certificate_seconds(work, speeds),
        "activity": activity_seconds(work, speeds),
    }
    return {**parts, "all": sum(parts.values()) + PLAIN * parts["selection"], "memory": select_bytes(work)}


def _select(task: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    from spice_select.analysis.activity import measure_activity
    from spice_select.analysis.certificate import certify_selection
    from spice_select.metering import own_memory
    from spice_select.selection import select

    np.ones((256, 256)) @ np.ones((256, 256))  # starts the threads of the linear algebra library
    rows = np.load(task["path"], mmap_mode="r")
    before = own_memory()
    begun = [clock()]

    def lap() -> float:
        begun.append(clock())
        return begun[-1] - begun[-2]

    chosen = select(rows, budget=task["picks"], alpha="auto", loop=task["loop"])
    found = {"selection": lap()}
    _ = chosen.changed_by_penalty
    lap()
    certify_selection(rows, chosen, budget=task["picks"])
    found["certificate"] = lap()
    from spice_select.selection.rows import as_rows

    measure_activity(as_rows(rows), chosen)
    found["activity"] = lap()
    return {**found, "all": begun[-1] - begun[0], "before": before}


def fit() -> None:
    """Print how often the lazy loop does what, as :mod:`spice_select.cost.selecting` has it."""
    from scipy.optimize import least_squares
    from selection import synthetic_gradients

    from spice_select.selection import select
    from spice_select.selection.blocked import BlockedLazy
    from spice_select.selection.fisher import LogDet
    from spice_select.selection.rows import Pool

    counts: dict[str, int] = {}

    def counting(owner: Any, name: str, label: str, size: Callable[..., int]) -> None:
        plain = getattr(owner, name)

        def counted(self: Any, *args: Any) -> Any:
            counts[label] = counts.get(label, 0) + size(*args)
            return plain(self, *args)

        setattr(owner, name, counted)

    counting(Pool, "take", "LOOKED_AT", len)
    counting(LogDet, "potentials", "BY_MATRIX", len)
    counting(LogDet, "times", "products", len)
    counting(BlockedLazy, "_rebuild", "rebuilds", lambda: 1)
    found = []
    for rows, dim, picks in FITTED:
        counts.clear()
        select(synthetic_gradients(rows, dim, seed=rows + dim + picks), budget=picks, alpha="auto", loop="lazy")
        found.append((rows, dim, picks, dict(counts)))
        print(rows, dim, picks, counts, flush=True)
    n, d, k = (np.array([one[at] for one in found], float) for at in range(3))
    first = np.minimum(n, 2 * np.maximum(64, np.minimum(1024, n // 32)))
    for label, floor in (("LOOKED_AT", first), ("BY_MATRIX", np.full(len(n), 20.0))):
        seen = np.maximum([one[3].get(label, 0) for one in found], floor)

        def misfit(p: np.ndarray, seen: np.ndarray = seen, floor: np.ndarray = floor) -> np.ndarray:
            set_in = 1 / (1 + np.exp(np.minimum(p[3] * np.log(abs(p[4]) * d / k), 500)))
            count = np.exp(p[0] + p[1] * np.log(n) + p[2] * np.log(k / n)) * set_in * (1 + k / d / 5) ** -abs(p[5])
            return np.log((floor + count) / seen)

        starts = [[0, power, 0.5, onset, 1, 0.5] for power in (0, 1) for onset in (2, 5)]
        tried = [least_squares(misfit, start, loss="soft_l1", f_scale=0.2) for start in starts]
        p = min(tried, key=lambda one: one.cost).x
        spread = float(np.sqrt(np.mean(misfit(p) ** 2)))
        print(
            f"{label} = Count(scale={np.exp(p[0]):.4g}, rows={p[1]:.3f}, share={p[2]:.3f}, onset={p[3]:.1f}, "
            f"knee={abs(p[4]):.2f}, decay={abs(p[5]):.2f})  # spread {spread:.0%}"
        )
    renewed = [one[3]["LOOKED_AT"] / one[3]["rebuilds"] / at * 2 for one, at in zip(found, first, strict=True)]
    print(f"RENEWED = {np.mean(renewed):.2f}")
    print(f"PRODUCTS_A_PICK = {np.mean([one[3]['products'] / one[2] for one in found]):.2f}")


if __name__ == "__main__":
    main()
