"""F(S) of exact greedy against that of the published diagonal form, at every number of picks.

    python benchmarks/released.py picked/gradients [another/gradients ...] --budget 10%

Both orders are measured by the exact information. Greedy is not optimal, so that the other order may be ahead at some
k: each such k is printed. No time is taken.
"""

from __future__ import annotations

import argparse

import numpy as np

from spice_select import GradientStore, select
from spice_select.analysis.given import given_trace

SETTINGS = (("none", 1.0), ("sqrt_tokens", "auto"))
SHOWN = (1, 2, 5, 10, 30, 60, 100, 200)


def compare(folder: str, budget: str) -> None:
    store = GradientStore.open(folder)
    for normalize, alpha in SETTINGS:
        for weight in (0.0, 0.1):
            exact = select(store, budget=budget, normalize=normalize, alpha=alpha, conflict_weight=weight)  # type: ignore[arg-type]
            other = select(
                store,
                budget=budget,
                normalize=normalize,  # type: ignore[arg-type]
                alpha=exact.alpha,
                conflict_weight=weight,
                fisher="released",
            )
            ours, theirs = (
                np.cumsum(given_trace(store, order.indices, normalize=normalize, alpha=exact.alpha).gains)
                for order in (exact, other)
            )
            k = len(ours)
            behind = [step + 1 for step in range(k) if ours[step] < theirs[step] - 1e-9 * theirs[step]]
            both = len(np.intersect1d(exact.indices, other.indices))
            points = "  ".join(f"{at}: {ours[at - 1]:.2f}/{theirs[at - 1]:.2f}" for at in SHOWN if at <= k)
            print(f"{folder}  normalize {normalize}, a {alpha}, lambda {weight}, k {k}")
            print(f"  exact/released by k, in nats  {points}  {k}: {ours[-1]:.2f}/{theirs[-1]:.2f}")
            print(f"  least released/exact {float((theirs / ours).min()):.4f}; rows in both {both} of {k}")
            print(f"  exact behind at {behind or 'no k'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--budget", default="10%")
    arguments = parser.parse_args()
    for store_folder in arguments.stores:
        compare(store_folder, arguments.budget)
