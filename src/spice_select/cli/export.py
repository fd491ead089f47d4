"""``spice-select export``: the chosen rows as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spice_select.cli import options as o


def export(
    folder: Annotated[str, typer.Argument(help="Output of `run` or `select`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .jsonl, .json, .csv or .parquet.")],
    messages_only: Annotated[
        bool, typer.Option("--messages-only", help="Keep the messages (and tools) alone.")
    ] = False,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Write the chosen rows, in order of choice, as one file.

    The folder itself is a data set already: datasets.load_dataset(FOLDER) returns the same rows.
    """
    import json

    from spice_select.export.tables import export_rows
    from spice_select.run_folder import RunFolder

    run = RunFolder(folder)
    run.require_finished()
    rows = export_rows(run.data, output, messages_only=messages_only, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps({"rows": rows, "file": str(output)}))
    else:
        typer.echo(f"{rows:,} rows are in {output}.")
