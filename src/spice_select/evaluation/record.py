"""What an evaluation leaves on disk: ``evaluation.json``, and each finished suite by itself, to be taken up again."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from spice_select.analysis.tables import aligned, number
from spice_select.evaluation.harness import MetricValue, TaskResult
from spice_select.evaluation.heldout import NAME as HELDOUT
from spice_select.evaluation.heldout import HeldOutResult
from spice_select.files import make_folder, write_text
from spice_select.seals import kept, sealed

FILE = "evaluation.json"
"""The record, in the output folder; written last."""
TASKS = "tasks"
"""Folder of the finished suites beside it."""
_PACKAGES = ("spice-select", "torch", "transformers", "peft", "lm_eval")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EvaluatedModel(_Frozen):
    """The model, and what tells it from others.

    Attributes:
        name: What the user called it; of a folder the last part.
        base: Of adapters, the model they were put on.
        weights: SHA-256 of the weight files, of adapters too.
        tokenizer: SHA-256 of vocabulary, special tokens and chat template.
        settings: SHA-256 of the model's configuration, and of the adapters'.
        dtype: Dtype of the weights.
        device: Kind of device.
    """

    name: str
    base: str | None
    weights: str
    tokenizer: str
    settings: str
    dtype: str
    device: str


class EvaluationSettings(_Frozen):
    """What the numbers depend on besides the model.

    Attributes:
        data: Where the rows of the benchmarks came from: ``hub`` or ``folder``.
        limit: Rows of each task, subject or domain at most; None for all.
        batch_size: Questions at a time.
        seed: What stock tasks draw their solved examples with.
        chat_template: Whether questions were put through the tokenizer's chat template.
        execute_code: Whether programs that the model wrote were run.
        max_length: Tokens kept of a held-out row.
        train_on: Assistant turns of a held-out conversation that count.
        template: SHA-256 of a chat template given instead of the tokenizer's, for held-out rows.
    """

    data: str
    limit: int | None
    batch_size: int
    seed: int
    chat_template: bool
    execute_code: bool
    max_length: int
    train_on: str
    template: str | None


class SandboxRecord(_Frozen):
    """What held the programs that were run.

    Attributes:
        layers: By name.
        limits: Of each program.
    """

    layers: tuple[str, ...]
    limits: dict[str, float]


class Evaluation(_Frozen):
    """What a model is worth by some suites.

    Attributes:
        schema_version: Version of this layout.
        model: The model.
        suites: What was asked for, in order.
        tasks: The benchmarks.
        left_out: Benchmarks that were not run, and why.
        heldout: The loss on held-out rows.
        settings: What the numbers depend on besides.
        sandbox: What held generated programs, where any were run.
        versions: Of the packages that matter, and of Python.
        warnings: What was warned of.
        seconds: Time of the suites, whenever they ran.
    """

    schema_version: Literal[1] = 1
    model: EvaluatedModel
    suites: tuple[str, ...]
    tasks: tuple[TaskResult, ...]
    left_out: dict[str, str] = {}
    heldout: HeldOutResult | None = None
    settings: EvaluationSettings
    sandbox: SandboxRecord | None = None
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
    seconds: float

    def write(self, folder: Path) -> Path:
        """Write ``evaluation.json``, whole or not at all.

        Raises:
            OutputError, ResourceError: It cannot be written.
        """
        path = folder / FILE
        write_text(path, self.model_dump_json(indent=1) + "\n")
        return path

    def describe(self) -> list[str]:
        """Lines for a terminal."""
        return [
            f"{self.model.name}{f' on {self.model.base}' if self.model.base else ''}",
            "",
            *_table(self),
            *_under(self),
        ]


Result = TypeVar("Result", TaskResult, HeldOutResult)


def read_evaluation(folder: Path) -> Evaluation | None:
    """The evaluation in a folder, or None where there is none that can be read."""
    try:
        return Evaluation.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def read_finished(folder: Path | None, name: str, identity: str, kind: type[Result]) -> Result | None:
    """A suite's result that is in the folder, if it is whole and of this very identity."""
    if folder is None:
        return None
    try:
        found = kept(folder / TASKS / f"{name}.json") or {}
        return kind.model_validate(found["result"]) if found.get("identity") == identity else None
    except (ValueError, KeyError):
        return None


def write_finished(folder: Path | None, name: str, identity: str, result: TaskResult | HeldOutResult) -> None:
    """Keep a suite's result, whole or not at all.

    Raises:
        OutputError, ResourceError: It cannot be written.
    """
    if folder is not None:
        make_folder(folder / TASKS)
        content = {"schema_version": 1, "identity": identity, "result": result.model_dump(mode="json")}
        write_text(folder / TASKS / f"{name}.json", sealed(content))


def identity_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of everything that a result depends on."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that matter and are here, and of Python."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _table(evaluation: Evaluation) -> list[str]:
    lines: list[Sequence[str]] = []
    for task in evaluation.tasks:
        names = [task.metric, *(name for name in task.metrics if name != task.metric)]
        for name in names:
            own = (task.name, str(task.shots), f"{task.rows:,}") if name == task.metric else ("", "", "")
            lines.append((*own[:2], name, *_numbers(task.metrics[name]), own[2]))
    held = evaluation.heldout
    if held is not None:
        lines.append((HELDOUT, "-", "loss, mean of domains", *_numbers(held.macro), f"{held.rows:,}"))
        if len(held.domains) > 1:
            for name, domain in held.domains.items():
                numbers = _numbers(MetricValue(value=domain.loss, stderr=domain.stderr))
                lines.append(("", "", f"  {name}", *numbers, f"{domain.rows:,}"))
        lines.append(("", "", "loss, mean of rows", *_numbers(held.micro), ""))
        lines.append(("", "", "perplexity of a token", number(held.perplexity), "", ""))
    return aligned(("suite", "shots", "metric", "value", "± stderr", "rows"), lines, words=(0, 2)) if lines else []


def _numbers(metric: MetricValue) -> tuple[str, str]:
    return f"{metric.value:.4f}", "" if metric.stderr is None else f"{metric.stderr:.4f}"


def _under(evaluation: Evaluation) -> list[str]:
    lines = []
    for task in evaluation.tasks:
        if task.outcomes:
            told = ", ".join(f"{count:,} {status}" for status, count in task.outcomes.items())
            lines.append(f"{task.name}: of {sum(task.outcomes.values()):,} programs {told}")
        lines += [f"{task.name}: {note}" for note in task.notes]
    held = evaluation.heldout
    if held is not None and held.truncated:
        lines.append(f"{HELDOUT}: {held.truncated:,} rows were cut to {evaluation.settings.max_length:,} tokens")
    if held is not None and held.left_out:
        lines.append(f"{HELDOUT}: {held.left_out:,} rows have no response and were left out")
    lines += [f"{name}: left out, as {reason.rstrip('.')}" for name, reason in evaluation.left_out.items()]
    if evaluation.settings.limit is not None:
        lines.append(
            f"--limit {evaluation.settings.limit:,}: only the first rows of each part; not to be compared with others' "
            "results"
        )
    return ["", "Notes", *(f"  {line}" for line in lines)] if lines else []
