"""The eight benchmarks of the paper's tables: shots, metrics and where their rows come from.

The paper (arXiv 2601.23155) names the benchmarks, not their settings; those here are the usual ones of each
benchmark's own paper and of lm-evaluation-harness.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from spice_select.errors import ConfigError

ALL = "paper"
"""The name that stands for all eight."""


@dataclass(frozen=True)
class Metric:
    """One number of a benchmark.

    Attributes:
        name: Its name in the results; what a task file of ours calls it for each row.
        hub_metric: lm-evaluation-harness's name for it.
        hub_filter: The harness's name for the way an answer is read from the text.
        hub_task: The one stock task that it is taken from; None for all of the suite.
    """

    name: str
    hub_metric: str
    hub_filter: str = "none"
    hub_task: str | None = None


@dataclass(frozen=True)
class SuiteTask:
    """One benchmark.

    Attributes:
        name: What a user calls it.
        title: What its paper calls it.
        source: arXiv id of the paper that brought it.
        shots: Solved examples in front of each question.
        metrics: Its numbers; the first is the one that a table shows.
        hub_tasks: Stock tasks or groups of the harness, used with rows from the Hub; none where ours run there too.
        local_tasks: Our own task files, used with rows from a folder.
        files: Names in that folder, of files or folders.
        needs: Python modules that the stock tasks need besides the harness.
        executes_code: Whether answers are programs that must be run to be judged.
        hub_notes: What a reader of the numbers must know when the rows come from the Hub.
        local_notes: Where our task differs from the stock one.
    """

    name: str
    title: str
    source: str
    shots: int
    metrics: tuple[Metric, ...]
    hub_tasks: tuple[str, ...]
    local_tasks: tuple[str, ...]
    files: tuple[str, ...]
    needs: tuple[str, ...] = ()
    executes_code: bool = False
    hub_notes: tuple[str, ...] = ()
    local_notes: tuple[str, ...] = ()


_RUN_APART = "programs run in this package's sandbox, never through the evaluate library's code_eval"

PAPER: tuple[SuiteTask, ...] = (
    SuiteTask(
        name="gsm8k",
        title="GSM8K",
        source="2110.14168",
        shots=5,
        metrics=(
            Metric("exact_match_strict", "exact_match", "strict-match"),
            Metric("exact_match_flexible", "exact_match", "flexible-extract"),
        ),
        hub_tasks=("gsm8k",),
        local_tasks=("gsm8k",),
        files=("gsm8k_test.jsonl",),
        local_notes=("numbers are compared by value, so that 18 and 18.00 agree",),
    ),
    SuiteTask(
        name="mmlu",
        title="MMLU",
        source="2009.03300",
        shots=5,
        metrics=(Metric("acc", "acc"),),
        hub_tasks=("mmlu",),
        local_tasks=("mmlu",),
        files=("mmlu",),
    ),
    SuiteTask(
        name="bbh",
        title="BIG-Bench Hard",
        source="2210.09261",
        shots=3,
        metrics=(Metric("exact_match", "exact_match", "get-answer"),),
        hub_tasks=("bbh_cot_fewshot",),
        local_tasks=("bbh",),
        files=("bbh",),
        local_notes=(
            "an answer ends at the next question or an empty line, not at any letter Q; one final full stop is ignored",
        ),
    ),
    SuiteTask(
        name="humaneval",
        title="HumanEval",
        source="2107.03374",
        shots=0,
        metrics=(Metric("pass@1", "pass@1"),),
        hub_tasks=(),
        local_tasks=("humaneval",),
        files=("HumanEval.jsonl.gz",),
        executes_code=True,
        hub_notes=(_RUN_APART,),
        local_notes=(_RUN_APART,),
    ),
    SuiteTask(
        name="mbpp",
        title="MBPP",
        source="2108.07732",
        shots=3,
        metrics=(Metric("pass@1", "pass@1"),),
        hub_tasks=(),
        local_tasks=("mbpp",),
        files=("mbpp.jsonl",),
        executes_code=True,
        hub_notes=(_RUN_APART, "the set-up code that two rows carry runs before their tests"),
        local_notes=(_RUN_APART, "the set-up code that two rows carry runs before their tests"),
    ),
    SuiteTask(
        name="arc_challenge",
        title="ARC-Challenge",
        source="1803.05457",
        shots=25,
        metrics=(Metric("acc_norm", "acc_norm"), Metric("acc", "acc")),
        hub_tasks=("arc_challenge",),
        local_tasks=("arc_challenge",),
        files=("arc_challenge_test.json",),
    ),
    SuiteTask(
        name="truthfulqa",
        title="TruthfulQA",
        source="2109.07958",
        shots=0,
        metrics=(
            Metric("mc2", "acc", hub_task="truthfulqa_mc2"),
            Metric("mc1", "acc", hub_task="truthfulqa_mc1"),
        ),
        hub_tasks=("truthfulqa_mc1", "truthfulqa_mc2"),
        local_tasks=("truthfulqa_mc1", "truthfulqa_mc2"),
        files=("truthfulqa_mc.json",),
        local_notes=("without the six questions and answers that the stock task puts in front",),
    ),
    SuiteTask(
        name="ifeval",
        title="IFEval",
        source="2311.07911",
        shots=0,
        metrics=(
            Metric("prompt_strict", "prompt_level_strict_acc"),
            Metric("prompt_loose", "prompt_level_loose_acc"),
        ),
        hub_tasks=("ifeval",),
        local_tasks=("ifeval",),
        files=("ifeval.jsonl",),
        needs=("langdetect", "nltk", "immutabledict"),
        local_notes=(
            "instructions are checked by this package's own code: sentences are told apart by their punctuation, "
            "languages by their script and their commonest words",
        ),
    ),
)
"""The benchmarks in the order of the paper's table."""


def tasks_of(names: str) -> tuple[SuiteTask, ...]:
    """The benchmarks that a user names.

    Args:
        names: ``paper`` for all of them, or names with commas between.

    Returns:
        Them, each once, in the order of the names.

    Raises:
        ConfigError: No name, or one that is none of them.
    """
    known = {task.name: task for task in PAPER}
    found: dict[str, SuiteTask] = {}
    for name in (part.strip() for part in names.split(",")):
        if name == ALL:
            found |= known
        elif name in known:
            found[name] = known[name]
        elif name:
            near = get_close_matches(name.lower(), [ALL, *known], n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"known are {ALL}, {', '.join(known)}."
            raise ConfigError(f"--suite names no benchmark {name!r}; {hint}")
    if not found:
        raise ConfigError(f"--suite is empty; name {ALL}, or some of {', '.join(known)}.")
    return tuple(found.values())
