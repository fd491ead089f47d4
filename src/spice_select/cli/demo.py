"""``spice-select demo``: the whole thing on a generated instruction set, without network."""

from __future__ import annotations

from typing import Annotated

import typer

from spice_select.cli import options as o
from spice_select.cli.console import ConsoleReporter
from spice_select.cli.show import show_result


def demo(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write.")] = "spice-demo",
    budget: Annotated[str, typer.Option("--budget", "-b", help="Rows, a share, or response tokens.")] = "10%",
    overrides: o.Set = None,
    preset: o.Preset = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Choose from about 800 generated rows with planted duplicates and wrong answers, by a small model of our own.

    Needs neither network nor other files, and takes under a minute on two cores. The folder is that of `run`.
    """
    from spice_select import pipeline
    from spice_select.demo import demo_model_path, write_demo_rows
    from spice_select.files import make_folder
    from spice_select.run_folder import RunFolder

    folder = RunFolder(output)
    settings = o.settings(
        config=None,
        overrides=overrides,
        preset=preset,
        data__sources=(str(folder.demo_rows.absolute()),),
        model__name=str(demo_model_path()),
        selection__budget=budget,
        selection__groups="origin",
        output__folder=output,
    )
    with ConsoleReporter(quiet=quiet or as_json) as reporter:
        # The rows lie in the output folder, so that its configuration replays the run.
        folder.check(settings, overwrite=overwrite, selection=True)
        make_folder(folder.path)
        write_demo_rows(folder.demo_rows)
        result = pipeline.run(settings, reporter, overwrite=overwrite)
        if result is not None:
            show_result(result, as_json=as_json)
