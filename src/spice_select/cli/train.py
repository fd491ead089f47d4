"""``spice-select train``: a model fine-tuned on what a run has chosen."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated

import typer

from spice_select.cli import options as o
from spice_select.cli.console import ConsoleReporter, say
from spice_select.errors import ConfigError


def train(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="Output of `run` or `select`.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model to train: folder or Hub id; default: the run's."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder for the model.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Train every weight instead of low-rank adapters.")] = False,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the rows (default 3).")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Highest learning rate (default 5e-5).")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Examples of one step, over all devices (default 4).")
    ] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Optimiser steps in place of epochs.")] = None,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Train on all usable rows of the pool, to compare with the picks.")
    ] = False,
    heldout: Annotated[
        list[str] | None,
        typer.Option("--heldout", help="File of rows whose loss is taken before and after; may be repeated."),
    ] = None,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Leave the last checkpoints in OUTPUT/checkpoints.")
    ] = False,
    overrides: o.Set = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the training; default: the run's.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of OUTPUT; this is the default.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again, replacing the training in the output folder.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Fine-tune a model on the chosen rows, with the template and the loss mask that they were chosen by.

    A training that was cut off goes on from its last checkpoint when the same command is given again. On several GPUs:
    torchrun --nproc-per-node N -m spice_select train ...
    """
    from spice_select.training.train import train as train_model

    o.refuse_both(resume, overwrite)
    if output is None:
        raise ConfigError("train needs --output, a folder for the model; give one.")
    with ConsoleReporter(quiet=quiet or as_json) as reporter:
        result = train_model(
            folder,
            output,
            reporter,
            model=model,
            settings={
                "mode": "full" if full else None,
                "epochs": epochs,
                "lr": lr,
                "batch_size": batch_size,
                "max_steps": max_steps,
                "heldout": tuple(heldout) if heldout else None,
            },
            overrides=overrides or (),
            seed=seed,
            all_rows=all_rows,
            overwrite=overwrite,
            keep_checkpoints=keep_checkpoints,
            command=_command(),
        )
    if result is None or os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        say(result.record.model_dump_json())
        return
    for line in result.describe():
        say(line)


def _command() -> str:
    """What was typed, without the flags that say how to print and where to begin."""
    left = ("--json", "--quiet", "-q", "--overwrite", "--resume")
    return shlex.join(["spice-select", *(word for word in sys.argv[1:] if word not in left)])
