"""Time and memory of selection: every loop, plain references, and the paper's scale.

Ratios are taken within one process on one synthetic pool: clusters of unequal size, heavy-tailed norms, float32.

    python benchmarks/selection.py                                    the grid
    python benchmarks/selection.py --rows 20000 --picks 2000          one size
    python benchmarks/selection.py --paper-scale                      N = 97,500, D = 1,024, k = 9,750, lazy loop only
    python benchmarks/selection.py --rows 4000 --picks 400 --released the loop of the code published with the paper, too
    python benchmarks/selection.py --paper-scale --dim 4096 --device cuda --loops dense lazy
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

GRID = [(1000, 1024, 100), (4000, 1024, 400), (20000, 256, 2000), (20000, 1024, 2000)]


def synthetic_gradients(rows: int, dim: int, seed: int = 0, clusters: int = 64, tail: float = 0.6) -> np.ndarray:
    """Clustered rows with heavy-tailed norms, shape [rows, dim], float32, made in blocks."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=dim)
    centres = 0.1 * common + rng.normal(size=(clusters, dim))
    sizes = rng.dirichlet(np.full(clusters, 0.5))
    spectrum = np.arange(1, dim + 1) ** -0.25
    out = np.empty((rows, dim), dtype=np.float32)
    for start in range(0, rows, 4096):
        stop = min(rows, start + 4096)
        own = rng.normal(size=(stop - start, dim)) * spectrum * 2.5
        label = rng.choice(clusters, size=stop - start, p=sizes)
        norm = np.exp(tail * rng.standard_t(4, size=(stop - start, 1)).clip(-6, 6))
        out[start:stop] = (0.4 * centres[label] + own) * norm / np.sqrt(dim)
    return out


def plain_dense(gradients: np.ndarray, picks: int, alpha: float, weight: float) -> list[int]:
    """A plain exact greedy in NumPy: inverse and all inner products kept up to date, one matrix product a step."""
    rows, dim = gradients.shape
    norms = np.sqrt(np.einsum("ij,ij->i", gradients, gradients, dtype=np.float64))
    potentials = norms**2
    inverse = np.eye(dim)
    total = np.zeros(dim)
    dots = np.zeros(rows)
    free = np.ones(rows, dtype=bool)
    chosen: list[int] = []
    for _ in range(picks):
        scores = np.log1p(alpha * potentials)
        norm = np.linalg.norm(total)
        if weight and norm:
            scores = scores - weight * np.maximum(0.0, -dots / np.maximum(norms * norm, 1e-300))
        scores[~free] = -np.inf
        best = int(np.argmax(scores))
        row = gradients[best].astype(np.float64)
        image = inverse @ row
        denominator = 1.0 + alpha * (row @ image)
        both = gradients @ np.stack([image, row], axis=1).astype(gradients.dtype)
        potentials -= alpha * both[:, 0].astype(np.float64) ** 2 / denominator
        dots += both[:, 1]
        inverse -= np.outer(image * (alpha / denominator), image)
        total += row
        free[best] = False
        chosen.append(best)
    return chosen


def released_loop(gradients: np.ndarray, picks: int, alpha: float, weight: float) -> list[int]:
    """The cost shape of the published code: one candidate after the other, the selected gradients stacked for each."""
    import torch

    rows = [torch.from_numpy(row) for row in gradients]
    fisher = torch.zeros(gradients.shape[1])
    left = list(range(len(rows)))
    chosen: list[int] = []
    while len(chosen) < picks:
        best, best_score = -1, -np.inf
        for index in left:
            row = rows[index]
            gain = torch.log1p(alpha * torch.sum(row**2 / (1.0 + alpha * fisher))).item()
            conflict = 0.0
            if chosen:
                mean = torch.stack([rows[other] for other in chosen]).mean(dim=0)
                cosine = torch.dot(row, mean) / (torch.norm(row) * torch.norm(mean) + 1e-8)
                conflict = max(0.0, -cosine.item())
            score = gain - weight * conflict
            if score > best_score:
                best, best_score = index, score
        fisher += rows[best] ** 4
        left.remove(best)
        chosen.append(best)
    return chosen


def submodlib_greedy(gradients: np.ndarray, picks: int, alpha: float) -> tuple[list[int], Seconds]:
    """The lazy greedy of submodlib on a ready kernel, no penalty; the kernel is not in the time."""
    import warnings

    wide = gradients.astype(np.float64)
    kernel = np.eye(len(wide)) + alpha * (wide @ wide.T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from submodlib.functions.logDeterminant import LogDeterminantFunction

        function = LogDeterminantFunction(n=len(wide), mode="dense", lambdaVal=0.0, sijs=kernel)
        return timed(
            lambda: [
                int(index) for index, _ in function.maximize(budget=picks, optimizer="LazyGreedy", show_progress=False)
            ]
        )


class Seconds(NamedTuple):
    """Time by the clock, and processor time of all threads, which other programs on the machine disturb less."""

    wall: float
    cpu: float


def timed(run: Callable[[], list[int]]) -> tuple[list[int], Seconds]:
    """What a run returns, and its seconds."""
    start, start_cpu = time.perf_counter(), time.process_time()
    found = run()
    return found, Seconds(time.perf_counter() - start, time.process_time() - start_cpu)


def copied_bytes_a_second(device: str) -> float:
    """Bytes a second that a device reads and writes while it copies a gigabyte."""
    import torch

    source = torch.zeros(1 << 27, dtype=torch.float64, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    float(target[0])
    start = time.perf_counter()
    for _ in range(4):
        target.copy_(source)
    float(target[0])
    return 4 * 2 * 8 * len(source) / (time.perf_counter() - start)


def resident() -> int:
    """Bytes resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def reset_peak() -> None:
    """Start the kernel's high-water mark of resident memory afresh, where it allows that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> int:
    """High-water mark of resident memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(rows: int, dim: int, picks: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """One line per way of selecting, ratios to the plain dense greedy of the same process."""
    from spice_select.selection import select

    gradients = synthetic_gradients(rows, dim, options.seed)
    squared = np.einsum("ij,ij->i", gradients, gradients, dtype=np.float64)
    alpha = 1.0 / float(np.median(squared)) if options.alpha == "auto" else float(options.alpha)
    weight = options.conflict_weight
    lines: list[dict[str, object]] = []
    reference: set[int] | None = None
    reference_time: Seconds | None = None

    def note(name: str, found: list[int], seconds: Seconds, extra: int | None = None) -> None:
        line: dict[str, object] = {"rows": rows, "dim": dim, "picks": picks, "way": name}
        line |= {"seconds": round(seconds.wall, 3), "cpu seconds": round(seconds.cpu, 3)}
        if reference_time:
            line["ratio"] = round(seconds.wall / reference_time.wall, 4)
            line["cpu ratio"] = round(seconds.cpu / reference_time.cpu, 4)
        line["same set"] = set(found) == reference if reference and found else None
        line["MB over the matrix"] = None if extra is None else round(extra / 2**20)
        lines.append(line)
        print(json.dumps(line), flush=True)

    np.ones((256, 256)) @ np.ones((256, 256))  # starts the threads of the linear algebra library
    if not options.skip_plain:
        found, reference_time = timed(lambda: plain_dense(gradients, picks, alpha, weight))
        reference = set(found)
        note("plain dense NumPy", found, reference_time)
    for loop in options.loops:
        reset_peak()
        before = resident()
        found, seconds = timed(
            lambda loop=loop: select(
                gradients,
                budget=picks,
                alpha=alpha,
                conflict_weight=weight,
                penalty=options.penalty,
                loop=loop,
                device=options.device,
            ).indices.tolist()
        )
        note(loop if options.device == "cpu" else f"{loop} on {options.device}", found, seconds, peak() - before)
        if options.device != "cpu" and loop == "dense":
            share = picks * gradients.size * 8 / seconds.wall / copied_bytes_a_second(options.device)
            print(json.dumps({"share of the bandwidth of a copy, rows as float64": round(share, 3)}), flush=True)
    if options.released:
        _, seconds = timed(lambda: released_loop(gradients, picks, alpha, weight))
        note("released algorithm", [], seconds)
    if options.submodlib:
        found, seconds = submodlib_greedy(gradients, picks, alpha)
        ours = select(gradients, budget=picks, alpha=alpha, conflict_weight=0.0).indices.tolist()
        note("submodlib LazyGreedy, no penalty", found, seconds)
        print(json.dumps({"submodlib": "same picks as ours without penalty", "same": found == ours}), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="N; the grid where absent")
    parser.add_argument("--dim", type=int, default=1024, help="D")
    parser.add_argument("--picks", type=int, help="k; a tenth of the rows where absent")
    parser.add_argument("--conflict-weight", type=float, default=0.1)
    parser.add_argument("--penalty", choices=["absolute", "relative"], default="absolute")
    parser.add_argument("--alpha", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loops", nargs="*", default=["dense", "kernel", "lazy"])
    parser.add_argument("--skip-plain", action="store_true", help="no plain dense greedy, and so no ratios")
    parser.add_argument("--released", action="store_true", help="time the loop of the published code (minutes)")
    parser.add_argument("--submodlib", action="store_true", help="time submodlib-py, if installed")
    parser.add_argument("--paper-scale", action="store_true", help="N = 97,500, k = 9,750, lazy only on the CPU")
    parser.add_argument("--device", default="cpu", help="torch device of the dense and the lazy loop")
    options = parser.parse_args()
    if options.paper_scale:
        options.loops, options.skip_plain = (["lazy"] if options.device == "cpu" else options.loops), True
        measure(97_500, options.dim, 9_750, options)
    elif options.rows:
        measure(options.rows, options.dim, options.picks or max(1, options.rows // 10), options)
    else:
        for rows, dim, picks in GRID:
            measure(rows, dim, picks, options)


if __name__ == "__main__":
    main()
