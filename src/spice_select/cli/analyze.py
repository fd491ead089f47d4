"""``spice-select analyze``: what was chosen, whether the theory holds on it, and how good it is."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from spice_select.cli import options as o
from spice_select.cli.console import ConsoleReporter, say

WIDEST = 120


def analyze(
    folder: Annotated[str, typer.Argument(help="Output of `run`, `select` or `collect`, or a gradient store.")],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Another run on the same rows to compare picks with; may be repeated."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Column of the rows to count the picks by; may be repeated."),
    ] = None,
    gradients: Annotated[
        str | None, typer.Option("--gradients", help="Gradient store of the run, where it has moved.")
    ] = None,
    clusters: Annotated[int, typer.Option("--clusters", min=1, help="Clusters of gradient directions.")] = 8,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Random rows and sets of each size that the theory is tried on.")
    ] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")] = 0,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure a selection: theory, certificate, gain curves, conflict, diversity, coverage and overlap.

    Reads FOLDER and writes nothing. What FOLDER doesn't allow is left out and said at the end.
    """
    from spice_select.analysis_of import analyse_folder

    with ConsoleReporter(quiet=quiet or as_json) as reporter:
        analysis = analyse_folder(
            folder,
            gradients=gradients,
            against=against or (),
            by=by or (),
            clusters=clusters,
            samples=samples,
            seed=seed,
            reporter=reporter,
        )
    if as_json:
        say(analysis.model_dump_json())
        return
    width = max(80, min(shutil.get_terminal_size((80, 24)).columns, WIDEST))
    for line in analysis.describe(width):
        say(line)
