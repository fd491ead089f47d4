"""One benchmark put to a model through lm-evaluation-harness: the only code that knows the harness.

It is imported by the functions, never by the module: the import takes seconds, and the extra may not be installed.
"""

from __future__ import annotations

import copy
import importlib
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from spice_select.errors import ConfigError, DataError, SpiceError
from spice_select.evaluation.local_data import Part, Row, humaneval_part, mbpp_part, read_parts
from spice_select.evaluation.suites import SuiteTask
from spice_select.reporter import Reporter

_TASKS = Path(__file__).parent / "tasks"
_EXTRA = "pip install 'spice-select[eval]'"


@dataclass(frozen=True)
class Answers:
    """What a model's answers to one benchmark came to, row by row.

    Attributes:
        rows: For each row and way of scoring: ``subject``, and each number by its metric's name; of a benchmark of
            programs the ``program``.
        task: The tasks' names.
        version: Their versions.
        notes: What a reader of the numbers must know.
    """

    rows: list[dict[str, Any]]
    task: str
    version: str
    notes: tuple[str, ...]


def require_harness() -> None:
    """See that lm-evaluation-harness is installed.

    Raises:
        ConfigError: It is not.
    """
    try:
        importlib.import_module("lm_eval.evaluator")
    except ImportError as error:
        raise ConfigError(f"Benchmarks need lm-evaluation-harness ({error}); {_EXTRA}.") from None


def require_modules(tasks: Sequence[SuiteTask]) -> None:
    """See that the modules are installed which stock tasks need, before a model is asked anything.

    Raises:
        ConfigError: Some are not.
    """
    for task in tasks:
        missing = [name for name in task.needs if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"--suite {task.name} with rows from the Hub needs {', '.join(missing)}; pip install "
                f"'lm_eval[{task.name}]', or name a folder of files by --data."
            )


@contextmanager
def quiet(reporter: Reporter) -> Iterator[None]:
    """Keep the harness's log to errors, and give its progress to the reporter instead of bars of its own."""
    names = ("lm_eval.models.huggingface", "lm_eval.api.task", "lm_eval.api.model")
    modules = [importlib.import_module(name) for name in names]
    bars = [module.__dict__.get("tqdm") for module in modules]
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    modules[0].__dict__["tqdm"] = partial(_Bar, reporter=reporter)
    for module in modules[1:]:
        module.__dict__["tqdm"] = _Bar
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for module, bar in zip(modules, bars, strict=True):
            module.__dict__["tqdm"] = bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Leave a model in training mode, or not, as it came, and the global random states of all libraries."""
    training = getattr(model, "training", None)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if training:
            model.train()


class _Bar:
    """Stands for a progress bar."""

    def __init__(
        self, given: Iterable[Any] = (), *, total: int = 0, reporter: Reporter | None = None, **ignored: Any
    ) -> None:
        self._given = given
        self._total = total
        self._done = 0
        self._reporter = reporter

    def __iter__(self) -> Iterator[Any]:
        return iter(self._given)

    def update(self, count: int = 1) -> None:
        self._done += count
        if self._reporter is not None and self._total:
            self._reporter.advance(self._done, self._total, 0, 0.0)

    def close(self) -> None:
        """Nothing."""


def wrapped(model: Any, tokenizer: Any, batch_size: int, chat: bool) -> Any:
    """A model as the harness asks it; one that is so already comes back as it is.

    Raises:
        ConfigError: A chat template is asked for, and the tokenizer has none.
    """
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM

    if isinstance(model, LM):
        return model
    if chat and not getattr(tokenizer, "chat_template", None):
        raise ConfigError("The chat template is asked for, and the tokenizer has none; leave --chat-template out.")
    # A copy: the harness gives the tokenizer a padding token.
    settings: dict[str, Any] = {
        "pretrained": model,
        "tokenizer": copy.deepcopy(tokenizer),
        "batch_size": batch_size,
    }
    return HFLM(**settings)


def ask(lm: Any, suite: SuiteTask, data: Path | None, limit: int | None, seed: int, chat: bool) -> Answers:
    """Put one benchmark to a model.

    Args:
        lm: The model, wrapped.
        suite: The benchmark.
        data: Folder of its files; None for rows from the Hub.
        limit: Rows of each task and subject at most.
        seed: For stock tasks that draw solved examples.
        chat: Whether to put questions through the chat template.

    Returns:
        The scores by row.

    Raises:
        DataError: The rows cannot be had.
    """
    from lm_eval.evaluator import evaluate

    notes = list(suite.hub_notes if data is None else suite.local_notes)
    stock = data is None and bool(suite.hub_tasks)
    if stock:
        tasks = _stock(suite)
    else:
        parts = read_parts(suite.name, data, suite.shots) if data is not None else (_from_hub(suite),)
        notes += dict.fromkeys(note for part in parts for note in part.notes)
        tasks = {name: task for stem in suite.local_tasks for name, task in _ours(stem, suite, parts, chat).items()}
    for task in tasks.values():
        if stock and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=suite.shots)
        task.set_fewshot_seed(seed=seed)
    notes += _fit(lm, tasks)
    found = evaluate(
        lm,
        tasks,
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    samples = (found or {}).get("samples")
    assert samples is not None, "this process is the only one, and samples were asked for"
    notes += _cut(lm, samples)
    rows = []
    for name, asked in samples.items():
        subject = _subject(name, suite, stock)
        for sample in asked:
            numbers = _stock_numbers(sample, name, suite) if stock else _our_numbers(sample, suite)
            if numbers:
                rows.append({"subject": subject, **numbers})
    versions = sorted({str(task.VERSION) for task in tasks.values()})
    shown = suite.hub_tasks if stock else tuple(f"spice_{stem}" for stem in suite.local_tasks)
    return Answers(rows, ", ".join(shown), ", ".join(versions), tuple(notes))


def _ours(stem: str, suite: SuiteTask, parts: Sequence[Part], chat: bool) -> dict[str, Any]:
    """Tasks of one of our files, one a part."""
    from lm_eval.api.task import ConfigurableTask

    tasks = {}
    for part in parts:
        config = _read_task(_TASKS / f"{stem}.yaml")
        if part.label:
            config["task"] += f"_{part.label}"
        if part.description:
            config["description"] = part.description
        if suite.executes_code and chat:
            # Where a chat model writes its own function, the usual stops would cut it at its head.
            config["generation_kwargs"]["until"] = []
        split = {"test": _dataset(part.rows)}
        if part.shots:
            split["shots"] = _dataset(part.shots)
        config |= {"num_fewshot": suite.shots, "custom_dataset": lambda split=split, **_: split}
        tasks[config["task"]] = ConfigurableTask(config=config)
    return tasks


def _dataset(rows: Sequence[Row]) -> Any:
    """Rows as a table of datasets; with a name given to it, which otherwise takes longer to make than the table."""
    import pyarrow
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(pyarrow.Table.from_pylist(list(rows))), fingerprint=f"{id(rows):016x}")


class _Loader(yaml.SafeLoader):
    """Reads task files; ``!function scorers.name`` is a function of this package."""


def _function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    module, _, name = str(loader.construct_scalar(node)).rpartition(".")
    return getattr(importlib.import_module(f"spice_select.evaluation.{module}"), name)


_Loader.add_constructor("!function", _function)


def _read_task(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        return yaml.load(file, Loader=_Loader)  # a SafeLoader: it makes nothing but text, numbers and our functions


def _stock(suite: SuiteTask) -> dict[str, Any]:
    """The harness's own tasks, groups taken apart."""
    from lm_eval import tasks

    # The benchmark's own folder alone: reading all of the harness's thousands of task files takes longer than asking.
    folder = Path(str(tasks.__file__)).parent / suite.hub_tasks[0].split("_")[0]
    manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)
    if not set(suite.hub_tasks) <= set(manager.all_tasks):
        manager = tasks.TaskManager()
    try:
        return dict(manager.load(list(suite.hub_tasks))["tasks"])
    except SpiceError:
        raise
    except Exception as error:
        raise _unreachable(suite, error) from error


def _from_hub(suite: SuiteTask) -> Part:
    """Rows of a benchmark of programs, from the Hub and to our task file."""
    from datasets import concatenate_datasets, load_dataset

    config = _read_task(_TASKS / f"{suite.local_tasks[0]}.yaml")
    try:
        splits = load_dataset(config["dataset_path"], config.get("dataset_name"))
    except Exception as error:
        raise _unreachable(suite, error) from error
    rows = concatenate_datasets(list(splits.values())).to_list()
    return mbpp_part(rows) if suite.name == "mbpp" else humaneval_part(rows)


def _unreachable(suite: SuiteTask, error: Exception) -> DataError:
    # The harness and datasets raise whatever the network, the cache or a file of theirs raised.
    told = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"The rows of {suite.name} cannot be had from the Hub ({told}); name a folder of files by --data.")


def _subject(name: str, suite: SuiteTask, stock: bool) -> str:
    """Name of the part that a task asks; empty for a whole benchmark."""
    heads = suite.hub_tasks if stock else tuple(f"spice_{stem}" for stem in suite.local_tasks)
    return next((name.removeprefix(f"{head}_") for head in heads if name.startswith(f"{head}_")), "")


def _our_numbers(sample: Mapping[str, Any], suite: SuiteTask) -> dict[str, Any]:
    wanted = {"program"} if suite.executes_code else {metric.name for metric in suite.metrics}
    return {name: sample[name] for name in wanted if name in sample}


def _stock_numbers(sample: Mapping[str, Any], task: str, suite: SuiteTask) -> dict[str, float]:
    return {
        metric.name: float(sample[metric.hub_metric])
        for metric in suite.metrics
        if metric.hub_metric in sample and metric.hub_filter == sample["filter"] and metric.hub_task in (None, task)
    }


def _fit(lm: Any, tasks: Mapping[str, Any]) -> list[str]:
    """Shorten answers that a small model's context has no room for, and say so."""
    longest: int | None = getattr(lm, "max_length", None)
    cut = set()
    if longest is None:
        return []
    for task in tasks.values():
        settings = task.get_config("generation_kwargs")
        wanted = (settings or {}).get("max_gen_toks", 256)
        if task.OUTPUT_TYPE == "generate_until" and wanted > longest // 2:
            task.set_config(key="generation_kwargs", value={**settings, "max_gen_toks": longest // 2})
            cut.add(wanted)
    return [f"answers end after {longest // 2} tokens, not {max(cut)}: half of the model's context"] if cut else []


def _cut(lm: Any, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Say how many prompts lost their beginning."""
    longest, encode = getattr(lm, "max_length", None), getattr(lm, "tok_encode", None)
    if longest is None or encode is None:
        return []
    lengths: dict[str, int] = {}
    total, short = 0, 0
    for asked in samples.values():
        first = asked[0]["filter"] if asked else ""
        for sample in asked:
            if sample["filter"] != first:
                continue
            needed = 0
            for context, *rest in sample["arguments"]:
                if context not in lengths:
                    lengths[context] = len(encode(context))
                more = rest[0].get("max_gen_toks", 256) if isinstance(rest[0], dict) else len(encode(rest[0])) - 1
                needed = max(needed, lengths[context] + more)
            total += 1
            short += needed > longest
    if not short:
        return []
    return [f"{short} of {total} prompts were longer than the model's context of {longest} tokens and lost their start"]
