"""Conflict by training step, what other settings keep on the same gradients, and overlap of finished runs.

    python benchmarks/activity.py RUN_IN_POOLS [OTHER_RUN ...]

Reads what the runs have left; nothing is measured anew. Settings other than the run's own are replayed on the inner
products of its pools, so that they say what one pool would give, not how the proxy would then have learnt.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from spice_select import GradientStore, select, select_gram
from spice_select.analysis.record import SelectionRecord
from spice_select.config import load_config

PENALTIES: tuple[tuple[Literal["absolute", "relative"], float], ...] = (
    ("absolute", 0.1),
    ("absolute", 0.5),
    ("absolute", 1.0),
    ("relative", 0.5),
    ("relative", 1.0),
)


def grams(folder: Path) -> list[np.ndarray]:
    return [np.load(path, allow_pickle=False) for path in sorted((folder / "schedule" / "gram").glob("*.npy"))]


def picks(folder: Path) -> set[int]:
    record = folder / "schedule" / "log.jsonl"
    if record.exists():
        entries = [json.loads(line)["entry"] for line in record.read_text().splitlines()[1:]]
        return {row for entry in entries for row in entry["picks"]}
    import pyarrow.parquet as pq

    return set(pq.read_table(folder / "trace.parquet")["index"].to_pylist())


def cosines(gram: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.diagonal(gram))
    return (gram / norms[:, None] / norms)[np.triu_indices(len(gram), 1)]


def by_step(folder: Path) -> None:
    record = SelectionRecord.read(folder / "selection.json")
    assert record.schedule is not None
    print("| pool | steps | loss | median norm | mean cosine | opposing pairs | opposing picks | changed |")
    print("|---|---|---|---|---|---|---|---|")
    for pool, gram in zip(record.schedule.pools, grams(folder), strict=True):
        pairs = cosines(gram)
        print(
            f"| {pool.pool + 1} | {pool.step} | {pool.loss:.3f} | {np.sqrt(np.median(np.diagonal(gram))):.3g} |"
            f" {pairs.mean():.3f} | {np.mean(pairs < 0):.1%} | {pool.opposing_picks:.0%} | {pool.changed_by_penalty} |"
        )


def replayed(folder: Path) -> None:
    """Share kept by stop ratio, and picks changed by weight and penalty, on the same gradients."""
    tables = grams(folder)
    budget = [len(entry) for entry in tables]
    share = 0.1
    print("\n| stop ratio | kept | by the robust reference |\n|---|---|---|")
    for ratio in (0.1, 0.3, 0.5, 0.7):
        kept = [sum(len(select_gram(g, stop_ratio=ratio, robust_stop=r)) for g in tables) for r in (False, True)]
        print(f"| {ratio} | {kept[0] / sum(budget):.1%} | {kept[1] / sum(budget):.1%} |")
    print("\n| penalty | weight | alpha | picks changed | picks in conflict without penalty |\n|---|---|---|---|---|")
    for alpha in (1.0, "auto"):
        for penalty, weight in PENALTIES:
            changed = total = opposing = 0
            for gram in tables:
                rows = round(share * len(gram))
                chosen = select_gram(gram, rows, alpha=alpha, penalty=penalty, conflict_weight=weight)
                plain = select_gram(gram, rows, alpha=alpha, conflict_weight=0.0)
                changed += len(set(chosen.indices.tolist()) - set(plain.indices.tolist()))
                opposing += int((plain.conflicts > 0).sum())
                total += rows
            print(f"| {penalty} | {weight} | {alpha} | {changed} of {total} | {opposing / total:.0%} |")


def overlaps(named: dict[str, set[int]]) -> None:
    print("\n| runs | in both | Jaccard | random |\n|---|---|---|---|")
    for (a, first), (b, second) in combinations(named.items(), 2):
        both = len(first & second)
        print(f"| {a}, {b} | {both} | {both / len(first | second):.3f} | {chance(len(first), len(second)):.3f} |")


def chance(a: int, b: int, n: int = 1200) -> float:
    both = a * b / n
    return both / (a + b - both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pools", type=Path)
    parser.add_argument("others", type=Path, nargs="*")
    asked = parser.parse_args()
    by_step(asked.pools)
    replayed(asked.pools)
    named = {"pools": picks(asked.pools)}
    for folder in asked.others:
        named[folder.name] = picks(folder)
        if (folder / "gradients").is_dir():
            store = GradientStore.open(folder / "gradients")
            settings = load_config(folder / "config.yaml").selection
            plain = select(store, budget=settings.budget, alpha=settings.alpha, conflict_weight=0.0)
            named[f"{folder.name}, weight 0"] = set(plain.indices.tolist())
    overlaps(named)


if __name__ == "__main__":
    main()
