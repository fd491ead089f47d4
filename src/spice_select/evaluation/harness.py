"""The benchmarks through lm-evaluation-harness, and what they come to.

The harness asks the model and scores its answers row by row; means and standard errors are taken here, over all rows
of a benchmark. Programs that a model wrote are never run here: they go to whoever was named for that.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from spice_select.errors import ConfigError
from spice_select.evaluation.local_data import check_folder
from spice_select.evaluation.suites import PAPER, Metric, SuiteTask
from spice_select.reporter import Reporter, heard

FLAG = "--execute-code"
"""What a user sets to have programs run."""


class Outcome(Protocol):
    """How a program ended."""

    @property
    def passed(self) -> bool:
        """Whether it ran to its end without an error."""
        ...

    @property
    def status(self) -> str:
        """How it ended, in a word or two."""
        ...


CodeRunner = Callable[[Sequence[str]], Sequence[Outcome]]


class MetricValue(BaseModel):
    """A mean over rows.

    Attributes:
        value: The mean.
        stderr: Its standard error, s/sqrt(n) over rows; None of a single row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    stderr: float | None


class TaskResult(BaseModel):
    """What one benchmark came to.

    Attributes:
        name: The benchmark.
        task: The harness's tasks, or ours, that it was asked through.
        shots: Solved examples in front of each question.
        metric: The one of the metrics that a table shows.
        metrics: All of them by name.
        rows: Questions asked.
        subjects: Of a benchmark in several parts, the shown metric of each.
        version: Version of the tasks.
        outcomes: How the programs ended, by the runner's words.
        notes: What a reader of the numbers must know.
        seconds: Time it took.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    task: str
    shots: int
    metric: str
    metrics: dict[str, MetricValue]
    rows: int
    subjects: dict[str, float] = {}
    version: str
    outcomes: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    seconds: float


class SuiteResults(BaseModel):
    """What the benchmarks came to, with all that the numbers depend on besides the model.

    Attributes:
        tasks: The benchmarks in the order asked for.
        left_out: Benchmarks that were not run, and why.
        lm_eval: Version of lm-evaluation-harness.
        data: Where the rows came from: ``hub`` or ``folder``.
        limit: Rows of each task and subject at most; None for all.
        seed: What the harness draws examples with, where a stock task draws.
        chat_template: Whether questions were put through the tokenizer's chat template.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[TaskResult, ...]
    left_out: dict[str, str] = {}
    lm_eval: str
    data: str
    limit: int | None
    seed: int
    chat_template: bool


def run_suites(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[SuiteTask],
    *,
    data: Path | None,
    limit: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
    execute_code: bool = False,
    apply_chat_template: bool = False,
    code_runner: CodeRunner | None = None,
    reporter: Reporter,
) -> SuiteResults:
    """Ask a model the benchmarks.

    Args:
        model: A causal language model of transformers, or a model as lm-evaluation-harness wraps it.
        tokenizer: Its tokenizer; not needed with a wrapped model.
        tasks: The benchmarks.
        data: Folder of their files; None for rows from the Hub.
        limit: Rows of each task and subject at most.
        batch_size: Questions at a time.
        seed: For stock tasks that draw their solved examples.
        execute_code: Whether programs that the model wrote may be run. Without, benchmarks that need it are left out
            of the whole set.
        apply_chat_template: Whether to put questions as turns of a conversation, solved examples too.
        code_runner: Runs programs, each for itself, and says how each ended. Needed where programs may be run.
        reporter: Hears the progress.

    Returns:
        The numbers.

    Raises:
        ConfigError: The harness is not installed, or a setting cannot be used.
        DataError: Files of the benchmarks are missing or not in their form, or the Hub cannot be reached.
    """
    from spice_select.evaluation import asking

    if limit is not None and limit < 1:
        raise ConfigError(f"evaluation.limit must be 1 or more, got {limit}.")
    chosen, left_out = _allowed(tasks, execute_code)
    for name, reason in left_out.items():
        reporter.warn(f"{name} is left out: {reason}")
    if any(task.executes_code for task in chosen) and code_runner is None:
        raise ConfigError("Programs may be run (execute_code), but nothing was given to run them; give a code_runner.")
    if data is not None:
        check_folder(data, chosen)
    results = []
    with heard(reporter):
        asking.require_harness()
        if data is None:
            asking.require_modules(chosen)
        with asking.quiet(reporter), asking.unchanged(model):
            asked = asking.wrapped(model, tokenizer, batch_size, apply_chat_template)
            for task in chosen:
                results.append(_asked(asked, task, data, limit, seed, apply_chat_template, code_runner, reporter))
    return SuiteResults(
        tasks=tuple(results),
        left_out=left_out,
        lm_eval=version("lm_eval"),
        data="hub" if data is None else "folder",
        limit=limit,
        seed=seed,
        chat_template=apply_chat_template,
    )


def _asked(
    lm: Any,
    task: SuiteTask,
    data: Path | None,
    limit: int | None,
    seed: int,
    chat: bool,
    code_runner: CodeRunner | None,
    reporter: Reporter,
) -> TaskResult:
    """One benchmark from its first question to its numbers."""
    from spice_select.evaluation import asking

    shots = f"{task.shots} solved examples" if task.shots else "no solved examples"
    reporter.stage(f"{task.title}, {shots}")
    started = time.perf_counter()
    answers = asking.ask(lm, task, data, limit, seed, chat)
    rows, outcomes = answers.rows, Counter()
    if task.executes_code:
        assert code_runner is not None
        rows, outcomes = _run(rows, code_runner)
    result = _summed(task, rows, answers, outcomes, time.perf_counter() - started)
    shown = result.metrics[result.metric]
    error = "" if shown.stderr is None else f" ± {shown.stderr:.4f}"
    reporter.note(f"{task.title}: {result.metric} {shown.value:.4f}{error} over {result.rows} rows")
    return result


def _allowed(tasks: Sequence[SuiteTask], execute_code: bool) -> tuple[list[SuiteTask], dict[str, str]]:
    """The benchmarks that may be run, and why others of the whole set may not."""
    if execute_code or not any(task.executes_code for task in tasks):
        return list(tasks), {}
    if set(tasks) != set(PAPER):
        named = " and ".join(task.name for task in tasks if task.executes_code)
        raise ConfigError(
            f"--suite {named} runs programs that the model wrote; set {FLAG} to allow it, or leave it out."
        )
    reason = f"it runs programs that the model wrote; set {FLAG} to allow it."
    return [task for task in tasks if not task.executes_code], {
        task.name: reason for task in tasks if task.executes_code
    }


def _run(rows: Sequence[Mapping[str, Any]], runner: CodeRunner) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows with the outcome of their programs."""
    ended = list(runner([row["program"] for row in rows]))
    assert len(ended) == len(rows), "a runner says of every program how it ended"
    judged = [{**row, "pass@1": float(outcome.passed)} for row, outcome in zip(rows, ended, strict=True)]
    return judged, Counter(outcome.status for outcome in ended)


def _summed(
    task: SuiteTask, rows: Sequence[Mapping[str, Any]], answers: Any, outcomes: Counter[str], seconds: float
) -> TaskResult:
    metrics = {metric.name: _mean([row[metric.name] for row in rows if metric.name in row]) for metric in task.metrics}
    shown: Metric = task.metrics[0]
    by_subject: dict[str, list[float]] = {}
    for row in rows:
        if row["subject"] and shown.name in row:
            by_subject.setdefault(row["subject"], []).append(row[shown.name])
    return TaskResult(
        name=task.name,
        task=answers.task,
        shots=task.shots,
        metric=shown.name,
        metrics=metrics,
        rows=sum(shown.name in row for row in rows),
        subjects={name: _mean(found).value for name, found in by_subject.items()},
        version=answers.version,
        outcomes=dict(sorted(outcomes.items())),
        notes=answers.notes,
        seconds=seconds,
    )


def _mean(values: Sequence[float]) -> MetricValue:
    found = np.asarray(values, dtype=np.float64)
    assert found.size, "a benchmark has at least one row"
    error = float(found.std(ddof=1) / np.sqrt(found.size)) if found.size > 1 else None
    return MetricValue(value=float(found.mean()), stderr=error)
