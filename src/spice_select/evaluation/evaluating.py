"""One model by several suites: checks first, then the model, then suite by suite, each kept as it ends."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spice_select.config import RunConfig
from spice_select.errors import ConfigError, OutputError, StoreError, StoreMismatch
from spice_select.evaluation import harness, heldout
from spice_select.evaluation.asking import require_harness
from spice_select.evaluation.code import SandboxRunner
from spice_select.evaluation.harness import FLAG, TaskResult
from spice_select.evaluation.heldout import HeldOutResult
from spice_select.evaluation.local_data import check_folder, read_parts
from spice_select.evaluation.model import Loaded, load_model, resolve_model
from spice_select.evaluation.record import (
    Evaluation,
    EvaluationSettings,
    SandboxRecord,
    identity_of,
    read_evaluation,
    read_finished,
    versions,
    write_finished,
)
from spice_select.evaluation.sandbox import layers
from spice_select.evaluation.suites import ALL, PAPER, SuiteTask, tasks_of
from spice_select.files import Lock, make_folder
from spice_select.reporter import Listening, Reporter, heard
from spice_select.seals import opened, require_files

_LOCK = ".evaluation.lock"
_TRAINING = "training.json"
"""The record that ``train`` leaves beside a model."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What is asked for.

    Attributes:
        model: Folder or Hub id of a model, or folder of PEFT adapters.
        suites: Names with commas between: ``paper`` for its eight benchmarks, any of these, ``heldout``.
        base: The model that adapters are put on; none: what they name.
        data: Folder of the benchmarks' files; none: rows from the Hub.
        limit: Rows of each task, subject or domain at most.
        batch_size: Questions at a time.
        execute_code: Whether programs that the model writes may be run.
        chat_template: Whether questions are put through the tokenizer's chat template.
        output: Folder for the record; none: nothing is written.
        overwrite: Evaluate again what the folder holds already, or replace the evaluation of another model.
    """

    model: str
    suites: str
    base: str | None = None
    data: Path | None = None
    limit: int | None = None
    batch_size: int = 1
    execute_code: bool = False
    chat_template: bool = False
    output: Path | None = None
    overwrite: bool = False


@dataclass
class _Plan:
    tasks: list[SuiteTask] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    heldout: bool = False


def evaluate(request: EvaluationRequest, config: RunConfig, reporter: Reporter) -> Evaluation:
    """Evaluate a model by suites.

    A suite that the output folder holds from the same model, rows and settings is taken from there.

    Args:
        request: What is asked for.
        config: How held-out rows are read (``data``), their files (``training.heldout``), dtype and device
            (``model``), the seed, and ``gradients.batch_tokens`` for the held-out loss.
        reporter: Hears the progress.

    Returns:
        The record, which is in the output folder too.

    Raises:
        ConfigError: An unknown suite, or a setting that does not fit.
        DataError: Rows that cannot be read.
        ModelError: The model cannot be read or used.
        OutputError: The output folder cannot be written, belongs to another model, or is being written.
        ResourceError: Memory ran out, or generated code cannot be contained on this machine.
    """
    plan = _plan(request)
    _check(request, plan, config)
    listening = Listening(reporter)
    for name, reason in plan.left_out.items():
        listening.warn(f"{name} is left out: {reason}")
    with ExitStack() as stack:
        sandbox = _sandbox(plan, listening)
        model = resolve_model(request.model, request.base, config.model)
        _require_as_trained(Path(request.model).expanduser())
        listening.stage("Model")
        with heard(listening):
            loaded = load_model(request.model, model)
        listening.note(f"{loaded.facts.name}: {loaded.facts.dtype} on {loaded.proxy.device}")
        if request.output is not None:
            make_folder(request.output)
            stack.enter_context(Lock.exclusive(request.output / _LOCK, str(request.output)))
            _claim(request, request.output, loaded)
        evaluation = _Evaluator(request, config, loaded, listening).run(plan, sandbox)
        evaluation = evaluation.model_copy(update={"warnings": tuple(dict.fromkeys(listening.warnings))})
        if request.output is not None:
            evaluation.write(request.output)
    return evaluation


def _plan(request: EvaluationRequest) -> _Plan:
    names = [name for part in request.suites.split(",") if (name := part.strip())]
    plan = _Plan(heldout=heldout.NAME in names)
    others = [name for name in names if name != heldout.NAME]
    if not names:
        raise ConfigError(
            f"--suite is empty; name {ALL}, {heldout.NAME}, or some of {', '.join(task.name for task in PAPER)}."
        )
    for task in tasks_of(",".join(others)) if others else ():
        if not task.executes_code or request.execute_code:
            plan.tasks.append(task)
        elif task.name in names:
            raise ConfigError(
                f"--suite {task.name} runs programs that the model writes; add {FLAG} to allow it, in a sandbox."
            )
        else:
            plan.left_out[task.name] = f"it runs programs that the model writes; add {FLAG} to allow it, in a sandbox."
    return plan


def _check(request: EvaluationRequest, plan: _Plan, config: RunConfig) -> None:
    """Refuse what could not end well before anything is loaded."""
    for flag, value in (("--limit", request.limit), ("--batch-size", request.batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} must be 1 or more, got {value}.")
    if plan.heldout:
        heldout.require_files(config)
    elif config.training.heldout:
        raise ConfigError(f"Held-out files are for the suite {heldout.NAME}; add it to --suite, or leave them out.")
    if request.data is not None and not plan.tasks:
        raise ConfigError("--data names files of benchmarks, and none is asked for; leave it out, or add a benchmark.")
    if plan.tasks:
        require_harness()
        if request.data is not None:
            check_folder(request.data, plan.tasks)
    if request.output is not None and request.output.exists() and not request.output.is_dir():
        raise OutputError(f"The output {request.output} is a file; name a folder.")


def _sandbox(plan: _Plan, reporter: Reporter) -> SandboxRecord | None:
    """See that programs can be contained, before a model writes any."""
    if not any(task.executes_code for task in plan.tasks):
        return None
    found = layers()
    reporter.stage("Sandbox")
    reporter.note(f"Generated programs are held by: {', '.join(found)}.")
    return SandboxRecord(layers=found, limits=asdict(SandboxRunner().limits))


def _require_as_trained(model: Path) -> None:
    """Refuse a model of ``train`` whose files are not those that it wrote; of other models nothing is known.

    Raises:
        StoreError: Its record cannot be read.
        StoreCorrupt: A file is missing or has changed.
    """
    record = model / _TRAINING
    if not record.is_file():
        return
    remedy = f"train again with --overwrite; if it was you who changed the model, take {_TRAINING} away"
    try:
        written = record.read_bytes()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise StoreError(f"{record} cannot be read ({reason}); {remedy}.") from None
    content = opened(written, str(record), version=1, what="record of a training", remedy=remedy)
    require_files(record, content, remedy=remedy)


def _claim(request: EvaluationRequest, folder: Path, loaded: Loaded) -> None:
    """Refuse a folder that holds the evaluation of another model."""
    there = read_evaluation(folder)
    if there is not None and there.model.weights != loaded.facts.weights and not request.overwrite:
        raise StoreMismatch(
            f"The output {folder} holds the evaluation of {there.model.name}, whose weights are others; name another "
            "folder, or add --overwrite."
        )


class _Evaluator:
    """Runs the suites of a plan, or takes them up."""

    def __init__(self, request: EvaluationRequest, config: RunConfig, loaded: Loaded, reporter: Reporter) -> None:
        self._request = request
        self._config = config
        self._loaded = loaded
        self._reporter = reporter
        self._versions = versions()
        self._programs = SandboxRunner()

    def run(self, plan: _Plan, sandbox: SandboxRecord | None) -> Evaluation:
        request, config = self._request, self._config
        held = self._heldout() if plan.heldout else None
        tasks = tuple(self._benchmark(task) for task in plan.tasks)
        template = config.data.chat_template
        return Evaluation(
            model=self._loaded.facts,
            suites=tuple(dict.fromkeys(part.strip() for part in request.suites.split(",") if part.strip())),
            tasks=tasks,
            left_out=plan.left_out,
            heldout=held,
            settings=EvaluationSettings(
                data="hub" if request.data is None else "folder",
                limit=request.limit,
                batch_size=request.batch_size,
                seed=config.seed,
                chat_template=request.chat_template,
                execute_code=request.execute_code,
                max_length=config.data.max_length,
                train_on=config.data.train_on,
                template=None if template is None else _template_hash(template),
            ),
            sandbox=sandbox,
            versions=self._versions,
            seconds=sum(task.seconds for task in tasks) + (0.0 if held is None else held.seconds),
        )

    def _heldout(self) -> HeldOutResult:
        files = self._config.training.heldout
        self._reporter.stage("Held-out rows")
        with heard(self._reporter):
            rows = heldout.read_rows(self._config, self._loaded.proxy, self._reporter, self._request.limit)
        batch_tokens = self._config.gradients.batch_tokens

        def measure() -> HeldOutResult:
            self._reporter.stage(f"Held-out loss of {len(rows.rows):,} rows")
            began = time.perf_counter()
            with heard(self._reporter):
                losses = heldout.heldout_losses(self._loaded.proxy, rows, batch_tokens, self._reporter)
            return heldout.summed(rows, losses, [Path(file).name for file in files], time.perf_counter() - began)

        content = {"rows": rows.digest, "left_out": rows.left_out, "batch_tokens": batch_tokens}
        return self._kept(heldout.NAME, "Held-out loss", HeldOutResult, content, measure)

    def _benchmark(self, task: SuiteTask) -> TaskResult:
        request, config = self._request, self._config
        content = {
            "shots": task.shots,
            "limit": request.limit,
            "seed": config.seed,
            "chat_template": request.chat_template,
            "data": "hub" if request.data is None else _rows_digest(task, request.data),
            "programs": asdict(self._programs.limits) if task.executes_code else None,
        }

        def ask() -> TaskResult:
            found = harness.run_suites(
                self._loaded.proxy.model,
                self._loaded.proxy.tokenizer,
                [task],
                data=request.data,
                limit=request.limit,
                batch_size=request.batch_size,
                seed=config.seed,
                execute_code=request.execute_code,
                apply_chat_template=request.chat_template,
                code_runner=self._programs,
                reporter=self._reporter,
            )
            return found.tasks[0]

        return self._kept(task.name, task.title, TaskResult, content, ask)

    def _kept(self, name: str, title: str, kind: type[Any], content: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """The result that the output folder holds from all the same; else it is measured, and put there."""
        facts = self._loaded.facts.model_dump(exclude={"name", "base"})
        packages = {key: value for key, value in self._versions.items() if key != "python"}
        identity = identity_of({"suite": name, "model": facts, "versions": packages, **content})
        folder = self._request.output
        found = None if self._request.overwrite else read_finished(folder, name, identity, kind)
        if found is not None:
            self._reporter.note(f"{title}: taken from {folder}, where it is from the same model, rows and settings.")
            return found
        result = measure()
        write_finished(folder, name, identity, result)
        return result


def _rows_digest(task: SuiteTask, folder: Path) -> str:
    """SHA-256 over the questions and solved examples of a benchmark."""
    parts: Sequence[Any] = [asdict(part) for part in read_parts(task.name, folder, task.shots)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _template_hash(template: str) -> str:
    """SHA-256 of a template, or of the file that holds it."""
    path = Path(template)
    content = path.read_bytes() if len(template) < 4096 and path.is_file() else template.encode()
    return hashlib.sha256(content).hexdigest()
