"""``spice-select export``: the chosen rows in the form of a trainer, as one file, or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spice_select.cli import options as o
from spice_select.cli.console import say
from spice_select.errors import ConfigError
from spice_select.export.formats import FOLDERS, TABLES, Format

if TYPE_CHECKING:
    from spice_select.export.trainers import Exported
    from spice_select.run_folder import RunFolder


def export(
    folder: Annotated[str, typer.Argument(help="Output of `run` or `select`.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, or folder for llama-factory and axolotl."),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="By default what the ending of the file says."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the data set, for llama-factory and axolotl; default: the run's folder."),
    ] = None,
    messages_only: Annotated[
        bool, typer.Option("--messages-only", help="Keep the messages (and tools) alone.")
    ] = False,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="All rows of the pool, with their scores and a column `selected`.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload the rows and their card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the new repository private.")] = False,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Write the chosen rows, in order of choice, for a trainer; or put them on the Hub.

    The folder itself is a data set already: datasets.load_dataset(FOLDER) returns the same rows.
    """
    import json

    from spice_select.run_folder import RunFolder

    if output is None and push_to_hub is None:
        raise ConfigError("export needs --output (a file or folder) or --push-to-hub (owner/name); give one of them.")
    _refuse_misfits(output, form, name, messages_only, keep_all, push_to_hub, private)
    run = RunFolder(folder)
    run.require_finished()
    said: dict[str, Any] = {}
    lines: list[str] = []
    if output is not None:
        written, more = _write(run, output, form, name, messages_only, keep_all, overwrite)
        said |= {"rows": written.rows, "file": str(output), "files": [str(file) for file in written.files]}
        if written.name:
            said["name"] = written.name
        said |= {"notes": list(written.notes), "warnings": [written.warning] if written.warning else []}
        lines += [f"{written.rows:,} rows are in {written.files[0]}.", *written.notes]
        lines += [f"Warning: {written.warning}"] if written.warning else []
        lines += more
    if push_to_hub is not None:
        from spice_select.analysis.record import SelectionRecord
        from spice_select.export.hub import push_dataset

        pushed = push_dataset(run.path, SelectionRecord.read(run.record), push_to_hub, private=private)
        said["hub"] = {"repository": pushed.repository, "address": pushed.address, "files": list(pushed.files)}
        lines.append(f"{len(pushed.files)} files are at {pushed.address}.")
    say(json.dumps(said) if as_json else "\n".join(lines))


def _refuse_misfits(
    output: Path | None,
    form: Format | None,
    name: str | None,
    messages_only: bool,
    keep_all: bool,
    push_to_hub: str | None,
    private: bool,
) -> None:
    """Refuse flags that say nothing, or opposite things, before anything is read."""
    table = form is None or form in TABLES
    if output is None:
        given = {"--format": form, "--name": name, "--messages-only": messages_only, "--keep-all": keep_all}
        if stray := next((flag for flag, value in given.items() if value), None):
            raise ConfigError(f"{stray} is about --output, which is missing; add it, or leave {stray} out.")
    if private and push_to_hub is None:
        raise ConfigError("--private is about --push-to-hub, which is missing; add it, or leave --private out.")
    if name is not None and form not in FOLDERS:
        raise ConfigError("--name is for --format llama-factory and axolotl; add one of these, or leave --name out.")
    if messages_only and not table:
        raise ConfigError(
            "--messages-only is for files of rows; a trainer's --format holds nothing else: leave it out."
        )
    if keep_all and messages_only:
        raise ConfigError("--keep-all and --messages-only cannot go together; leave one of them out.")
    if keep_all and output is not None:
        ending = form.value if form is not None else output.suffix.lower().removeprefix(".")
        if ending not in (Format.JSONL.value, Format.PARQUET.value):
            raise ConfigError("--keep-all writes jsonl or parquet; name an --output that ends so, without --format.")


def _write(
    run: RunFolder,
    output: Path,
    form: Format | None,
    name: str | None,
    messages_only: bool,
    keep_all: bool,
    overwrite: bool,
) -> tuple[Exported, list[str]]:
    """Write what was asked for; what there is to paste comes as lines beside it."""
    from spice_select.export.chosen import read_trained
    from spice_select.export.tables import export_rows, table_format
    from spice_select.export.trainers import Exported, dataset_name, write_axolotl, write_llama_factory, write_trl

    if form is None or form in TABLES:
        table_format(output, None if form is None else form.value)
        if keep_all:
            return _write_all(run, output, overwrite), []
        return Exported(export_rows(run.data, output, messages_only=messages_only, overwrite=overwrite), (output,)), []
    if form not in FOLDERS:
        return write_trl(read_trained(run.data), output, form, overwrite=overwrite), []
    called = dataset_name(name, run.path)
    last_only = run.read_config().data.train_on == "last"
    chosen = read_trained(run.data)
    if form is Format.LLAMA_FACTORY:
        written = write_llama_factory(chosen, output, called, last_only=last_only, overwrite=overwrite)
        return written, [f"Train with dataset: {called} and dataset_dir: {output}."]
    written, stanza = write_axolotl(chosen, output, called, last_only=last_only, overwrite=overwrite)
    return written, [f"For axolotl's configuration (also in {written.files[1]}):", "", stanza.rstrip()]


def _write_all(run: RunFolder, output: Path, overwrite: bool) -> Exported:
    from spice_select.analysis.record import SelectionRecord
    from spice_select.export.tables import write_table
    from spice_select.export.trainers import Exported, refuse_existing
    from spice_select.export.whole import whole_pool

    refuse_existing([output], overwrite)
    record = SelectionRecord.read(run.record)
    whole = whole_pool(run.read_config(), record, run.trace, run.path / "pool.parquet")
    rows = write_table(whole.table, output, overwrite=overwrite)
    note = f"{record.k:,} of them are selected; {whole.scored:,} have a score."
    return Exported(rows, (output,), "", (note, *whole.notes))
