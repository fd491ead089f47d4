"""``spice-select report``: one page from a finished run, or from several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spice_select.cli import options as o
from spice_select.cli.console import say


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Outputs of `run` or `select`.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Page to write; RUN/report.html where there is one run."),
    ] = None,
    markdown: Annotated[
        str | None,
        typer.Option("--markdown", metavar="FILE", help="Also write a short markdown; - prints it."),
    ] = None,
    gradients: Annotated[
        Path | None,
        typer.Option("--gradients", help="Folder of the run's gradients, where they have moved."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Write one self-contained page of a finished run, or set several runs side by side.

    The page opens from disk, loads nothing from anywhere, and shows rows of your data: share it as you would those.
    """
    import json

    from spice_select.pages import report_runs

    done = report_runs(runs, output=output, markdown=markdown, gradients=gradients)
    file = None if done.markdown_file is None else str(done.markdown_file)
    if as_json:
        say(
            json.dumps({"page": None if done.page is None else str(done.page), "markdown": done.markdown, "file": file})
        )
        return
    if done.markdown is not None and file is None:
        say(done.markdown, nl=False)
    for written in (done.page, done.markdown_file):
        if written is not None:
            # The markdown alone goes to stdout, so that it can be piped.
            say(f"The report is {written}.", err=done.markdown is not None and file is None)
