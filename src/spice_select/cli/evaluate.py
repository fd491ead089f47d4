"""``spice-select evaluate``: what a model is worth, by benchmarks and by the loss on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spice_select.cli import options as o
from spice_select.cli.console import ConsoleReporter, say
from spice_select.config import RunConfig
from spice_select.errors import ConfigError

_READING = ("columns", "train_on", "max_length", "chat_template", "split")


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Folder or Hub id of a model, or folder of trained adapters.", show_default=False)
    ],
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            "-s",
            help="Suites with commas between: paper (its eight benchmarks), any of gsm8k, mmlu, bbh, humaneval, mbpp, "
            "arc_challenge, truthfulqa, ifeval; heldout (the loss on rows of --heldout).",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of the benchmarks' files; without it their rows come from the Hub."),
    ] = None,
    heldout: Annotated[
        list[str] | None,
        typer.Option("--heldout", help="File of held-out rows for the suite heldout; may be repeated."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of a selection: held-out rows are read by its template, columns and mask."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Model that adapters are put on; by default the one they name.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="First rows of each task, subject or domain alone, to try things out.")
    ] = None,
    execute_code: Annotated[
        bool,
        typer.Option("--execute-code", help="Run programs that the model writes (humaneval, mbpp), in a sandbox."),
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Questions put to the model at a time.")] = 1,
    chat_template: Annotated[
        bool,
        typer.Option(
            "--chat-template/--no-chat-template", help="Put the benchmarks' questions through the chat template."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for evaluation.json; suites that end are kept there."),
    ] = None,
    overrides: o.Set = None,
    seed: o.Seed = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Evaluate again, replacing what is in the output folder.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Evaluate a model by benchmarks and by the loss on held-out rows.

    An evaluation that was cut off goes on where it stopped when the same command is given again with --output.
    """
    from spice_select.evaluation.evaluating import EvaluationRequest
    from spice_select.evaluation.evaluating import evaluate as evaluate_model
    from spice_select.evaluation.record import FILE

    config = _settings(run, overrides, seed, heldout)
    request = EvaluationRequest(
        model=model,
        suites=suite,
        base=base,
        data=None if data is None else data.expanduser(),
        limit=limit,
        batch_size=batch_size,
        execute_code=execute_code,
        chat_template=chat_template,
        output=None if output is None else output.expanduser(),
        overwrite=overwrite,
    )
    with ConsoleReporter(quiet=quiet or as_json) as reporter:
        evaluation = evaluate_model(request, config, reporter)
    if as_json:
        say(evaluation.model_dump_json())
        return
    for line in evaluation.describe():
        say(line)
    say("")
    if output is not None:
        say(f"Record: {output / FILE}")
    else:
        place = Path(model).expanduser() / "evaluation" if Path(model).expanduser().is_dir() else "FOLDER"
        say(f"Nothing was kept; --output {place} keeps it, and takes it up when interrupted.")


def _settings(run: Path | None, overrides: list[str] | None, seed: int | None, heldout: list[str] | None) -> RunConfig:
    """The configuration: how the run read its rows, then the flags, then ``--set``.

    Raises:
        ConfigError: A setting that does not fit, or names the model, which the command's argument does.
        StoreError: The folder of the run is none.
    """
    from spice_select.run_folder import RunFolder

    for text in overrides or []:
        name = text.partition("=")[0].strip()
        if name in ("model.name", "model.adapter"):
            raise ConfigError(f"--set {name} would name the model a second time; give it as the command's argument.")
    reading = {} if run is None else RunFolder(run.expanduser()).read_config().data.model_dump(include=set(_READING))
    given = {f"data__{key}": value for key, value in reading.items()}
    return o.settings(
        config=None,
        overrides=overrides,
        seed=seed,
        training__heldout=tuple(heldout) if heldout else None,
        **given,
    )
