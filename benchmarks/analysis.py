"""Time of the certificate beside its selection, and of everything that is measured of the theory.

Ratios are medians within one process, on the synthetic pool of ``benchmarks/selection.py``.

    python benchmarks/analysis.py --paper-scale                    N = 97,500, D = 1,024, k = 9,750
    python benchmarks/analysis.py --rows 20000 --dim 4096 --picks 2000
    python benchmarks/analysis.py --rows 5000 --theory             the theory, too
    python benchmarks/analysis.py --paper-scale --full             the certificate measured over the whole pool, too
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from selection import synthetic_gradients


def clock(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a run returns, its seconds, and those of the processor."""
    start, start_cpu = time.perf_counter(), time.process_time()
    found = run()
    return found, time.perf_counter() - start, time.process_time() - start_cpu


def measure(rows: int, dim: int, picks: int, options: argparse.Namespace) -> None:
    from spice_select.analysis.certificate import certify_selection
    from spice_select.analysis.theory import analyse_theory
    from spice_select.selection import select

    gradients = synthetic_gradients(rows, dim, options.seed)
    np.ones((256, 256)) @ np.ones((256, 256))  # starts the threads of the linear algebra library
    size = {"rows": rows, "dim": dim, "picks": picks}
    chosen, certified = [], []
    selection = certificate = None
    for _ in range(options.repeats):
        selection, *seconds = clock(
            lambda: select(gradients, budget=picks, alpha="auto", conflict_weight=options.conflict_weight)
        )
        chosen.append(seconds)
        for _ in range(options.repeats):
            certificate, *seconds = clock(partial(certify_selection, gradients, selection, budget=picks))
            certified.append(seconds)
    assert selection is not None and certificate is not None
    wall, cpu = ([statistics.median(one[kind] for one in times) for times in (chosen, certified)] for kind in range(2))
    line: dict[str, Any] = size | {"loop": selection.loop, "selection": round(wall[0], 3)}
    line |= {"certificate": round(wall[1], 3), "ratio": round(wall[1] / wall[0], 4)}
    line |= {"cpu ratio": round(cpu[1] / cpu[0], 4), "value": certificate.value, "prefix": certificate.prefix}
    print(json.dumps(line), flush=True)
    if options.full:
        plain = dataclasses.replace(selection, outlook=None)
        full, seconds, _ = clock(lambda: certify_selection(gradients, plain, budget=picks))
        line = {"way": "measured over the pool", "seconds": round(seconds, 3)}
        line |= {"ratio": round(seconds / wall[0], 4), "value": full.value, "prefix": full.prefix}
        print(json.dumps(size | line), flush=True)
    if options.theory:
        report, seconds, _ = clock(
            lambda: analyse_theory(
                gradients,
                selection.indices,
                alpha=selection.alpha,
                conflict_weight=selection.conflict_weight,
                gains=selection.gains,
                conflicts=selection.conflicts,
            )
        )
        line = {"way": "theory", "seconds": round(seconds, 3), "ratio": round(seconds / wall[0], 3)}
        print(json.dumps(size | line), flush=True)
        print("\n".join(report.describe()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="N")
    parser.add_argument("--dim", type=int, default=1024, help="D")
    parser.add_argument("--picks", type=int, help="k; a tenth of the rows where absent")
    parser.add_argument("--conflict-weight", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3, help="selections, and certificates of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="the certificate without what the run hands over, too")
    parser.add_argument("--theory", action="store_true", help="decomposition, bounds, curvature and curves, too")
    parser.add_argument("--paper-scale", action="store_true", help="N = 97,500, D = 1,024, k = 9,750")
    options = parser.parse_args()
    if options.paper_scale:
        measure(97_500, 1024, 9_750, options)
    else:
        measure(options.rows, options.dim, options.picks or max(1, options.rows // 10), options)


if __name__ == "__main__":
    main()
