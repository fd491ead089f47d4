"""``spice-select select``: a subset from gradients that are there."""

from __future__ import annotations

from typing import Annotated

import typer

from spice_select.cli import options as o
from spice_select.cli.console import ConsoleReporter
from spice_select.cli.show import show_result


def select(
    folder: Annotated[str, typer.Argument(help="Output of `collect` or `run`.")],
    budget: o.Budget = None,
    output: o.Output = None,
    method: o.Method = None,
    partitions: o.Partitions = None,
    engine: o.Engine = "local",
    workers: o.Workers = None,
    address: o.Address = None,
    overrides: o.Set = None,
    preset: o.Preset = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Choose a subset from the gradients in FOLDER; without --output the result goes into FOLDER itself.

    Settings of the selection section that are not given are those of the command that left FOLDER.
    """
    from spice_select import pipeline

    named = {"method.name": method, "selection.partitions": partitions}
    given = [f"{name}={value}" for name, value in named.items() if value is not None]
    with ConsoleReporter(quiet=quiet or as_json) as reporter, o.crew(engine, workers, address) as crew:
        result = pipeline.select_from(
            folder,
            reporter,
            budget=budget,
            output=output,
            overrides=[*given, *(overrides or [])],
            preset=preset,
            overwrite=overwrite,
            workers=crew,
        )
        show_result(result, as_json=as_json)
