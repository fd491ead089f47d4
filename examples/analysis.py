"""Analyse a run: tables on the terminal, a figure in a file.

    python examples/analysis.py RUN          a folder that `spice-select run` or `demo` left
    python examples/analysis.py              makes a small demo run first (no network, under a minute)

Add `--figure FILE` to choose where the figure goes (`analysis.png`), and `--demo-rows N` for a smaller demo.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from spice_select import pipeline
from spice_select.analysis import figures
from spice_select.analysis_of import analyse_folder
from spice_select.config import load_config
from spice_select.demo import demo_model_path, write_demo_rows
from spice_select.reporter import Silent


def demo_run(folder: Path, rows: int) -> Path:
    """A run on generated rows, with the model that comes with the package."""
    pool = write_demo_rows(folder / "rows.jsonl", rows=rows)
    settings = {
        "data": {"sources": [str(pool)]},
        "model": {"name": str(demo_model_path())},
        "gradients": {"dim": 256},
        "selection": {"budget": "10%", "groups": "domain"},
        "output": {"folder": str(folder / "run")},
    }
    pipeline.run(load_config(values=settings), Silent())
    return folder / "run"


def main() -> None:
    parser = argparse.ArgumentParser(description="Analyse a run.")
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--figure", type=Path, default=Path("analysis.png"))
    parser.add_argument("--demo-rows", type=int, default=400)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or demo_run(Path(folder), given.demo_rows)
        analysis = analyse_folder(run)
    for line in analysis.describe():
        print(line)
    if analysis.theory is None:
        print("\nThere are no gradients here, so no figure of them.")
        return
    # The other functions of figures draw gains, epsilons, conflicts and norms in the same way.
    figures.information_curves(analysis.theory.trajectory.curves).savefig(given.figure, dpi=120)
    print(f"\nThe figure is in {given.figure}.")


if __name__ == "__main__":
    main()
