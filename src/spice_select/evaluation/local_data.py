"""Rows of the benchmarks from a folder of files, in the forms in which their authors publish them.

========================== =====================================================================================
``gsm8k_test.jsonl``       question, answer; ``gsm8k_train.jsonl`` beside it gives the shots, if it is there
``mmlu/{dev,test}/*.csv``  one file a subject: question, choice0 to choice3, answer (0 to 3)
``bbh/bbh/*.json``         examples of input and target; the worked examples are in ``bbh/cot-prompts/*.txt``
``HumanEval.jsonl.gz``     prompt, test, entry_point (also without ``.gz``)
``mbpp.jsonl``             task_id, text, code, test_list, test_setup_code
``arc_challenge_test.json`` question, a column a label, label, answer; ``arc_challenge_train.json`` as above
``truthfulqa_mc.json``     question, mc1_targets, mc2_targets
``ifeval.jsonl``           prompt, instruction_id_list, kwargs
========================== =====================================================================================
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spice_select.data.json_files import open_bytes
from spice_select.errors import ConfigError, DataError
from spice_select.evaluation.suites import SuiteTask

Row = dict[str, Any]

MBPP_SHOTS = (2, 3, 4)
"""Numbers of the rows that MBPP's authors show as solved examples."""
MBPP_TEST = range(11, 511)
"""Numbers of MBPP's test rows."""
_COT = "Let's think step by step."


@dataclass(frozen=True)
class Part:
    """Rows that share their solved examples: a whole benchmark, or one subject of it.

    Attributes:
        label: Name of the subject; empty for a whole benchmark.
        rows: What is asked.
        shots: Solved examples.
        description: What the prompt opens with.
        notes: What is unusual about the rows.
    """

    label: str
    rows: tuple[Row, ...]
    shots: tuple[Row, ...] = ()
    description: str = ""
    notes: tuple[str, ...] = ()


def check_folder(folder: Path, tasks: Sequence[SuiteTask]) -> None:
    """See that the files of the benchmarks are there, before a model is asked anything.

    Raises:
        ConfigError: The folder is none.
        DataError: Files are missing.
    """
    if not folder.is_dir():
        raise ConfigError(f"--data {folder} is no folder; name the folder of the benchmarks' files.")
    missing = [name for task in tasks for name in task.files if not _found(folder, name).exists()]
    if missing:
        raise DataError(f"--data {folder} has no {', '.join(missing)}; put the files there or name other benchmarks.")


def read_parts(name: str, folder: Path, shots: int) -> tuple[Part, ...]:
    """The rows of one benchmark.

    Args:
        name: The benchmark's name.
        folder: The folder of the files.
        shots: Solved examples that will stand in front of a question.

    Returns:
        Its parts, in the order of their names, each with at least one row.

    Raises:
        DataError: A file cannot be read, or is not in its benchmark's form.
    """
    parts = _READERS[name](folder, shots)
    if not parts or not all(part.rows for part in parts):
        raise DataError(f"{folder} holds no rows of {name}; fetch its files again.")
    return parts


def mbpp_part(rows: Sequence[Mapping[str, Any]]) -> Part:
    """MBPP's rows told apart by their numbers, whichever way they were read."""
    found = [
        {
            "task_id": int(row["task_id"]),
            "text": _text(row, "text"),
            "code": _text(row, "code").replace("\r\n", "\n"),
            "test_list": _texts(row["test_list"]),
            "test_setup_code": (row.get("test_setup_code") or "").replace("\r\n", "\n"),
        }
        for row in rows
    ]
    shots = {row["task_id"]: row for row in found if row["task_id"] in MBPP_SHOTS}
    return Part(
        "",
        tuple(row for row in found if row["task_id"] in MBPP_TEST),
        tuple(shots[number] for number in MBPP_SHOTS if number in shots),
    )


def humaneval_part(rows: Sequence[Mapping[str, Any]]) -> Part:
    """HumanEval's rows, whichever way they were read."""
    return Part(
        "", tuple({key: _text(row, key) for key in ("task_id", "prompt", "entry_point", "test")} for row in rows)
    )


def _gsm8k(folder: Path, shots: int) -> tuple[Part, ...]:
    def row(given: Row) -> Row:
        return {"question": _text(given, "question"), "answer": _text(given, "answer")}

    return (_with_shots(folder, "gsm8k_test.jsonl", "gsm8k_train.jsonl", row, shots),)


def _arc(folder: Path, shots: int) -> tuple[Part, ...]:
    def row(given: Row) -> Row:
        return {
            "question": _text(given, "question"),
            "choices": [_text(given, label) for label in given["label"]],
            "gold": given["label"].index(given["answer"]),
        }

    return (_with_shots(folder, "arc_challenge_test.json", "arc_challenge_train.json", row, shots),)


def _with_shots(folder: Path, test: str, train: str, row: Callable[[Row], Row], shots: int) -> Part:
    """Rows with solved examples from a file of training rows or, without one, from their own beginning."""
    with _form(folder / test):
        rows = tuple(row(given) for given in _rows(folder / test))
    if (folder / train).exists():
        with _form(folder / train):
            return Part("", rows, tuple(row(given) for given in _rows(folder / train)[:shots]))
    note = f"no {train}: the first {shots} test rows are the solved examples and are not asked"
    return Part("", rows[shots:], rows[:shots], notes=(note,))


def _mmlu(folder: Path, shots: int) -> tuple[Part, ...]:
    parts = []
    for path in sorted((folder / "mmlu" / "test").glob("*_test.csv")):
        subject = path.name.removesuffix("_test.csv")
        solved = _choices(folder / "mmlu" / "dev" / f"{subject}_dev.csv")
        if len(solved) < shots:
            raise DataError(f"{folder}/mmlu/dev/{subject}_dev.csv has {len(solved)} rows, and {shots} are needed.")
        title = subject.replace("_", " ")
        # The opening line of the benchmark's authors: numbers are comparable only with it.
        opening = f"The following are multiple choice questions (with answers) about {title}.\n\n"
        parts.append(Part(subject, _choices(path), solved[:shots], opening))
    return tuple(parts)


def _choices(path: Path) -> tuple[Row, ...]:
    with _form(path), _opened(path) as lines:
        return tuple(
            {
                "question": _text(given, "question"),
                "choices": [_text(given, f"choice{number}") for number in range(4)],
                "gold": range(4).index(int(given["answer"])),
            }
            for given in csv.DictReader(lines)
        )


def _bbh(folder: Path, shots: int) -> tuple[Part, ...]:
    parts = []
    for path in sorted((folder / "bbh" / "bbh").glob("*.json")):
        with _form(path):
            examples = json.loads("".join(_lines(path)))["examples"]
            rows = tuple({"input": _text(given, "input"), "target": _text(given, "target")} for given in examples)
        worked = folder / "bbh" / "cot-prompts" / f"{path.stem}.txt"
        opening, solved = _worked(worked)
        if len(solved) < shots:
            raise DataError(f"{worked} has {len(solved)} worked examples, and {shots} are needed.")
        parts.append(Part(path.stem, rows, solved[:shots], opening))
    return tuple(parts)


def _worked(path: Path) -> tuple[str, tuple[Row, ...]]:
    """The opening and the worked examples of a chain-of-thought prompt; what stands above its rule is no part of it."""
    text = "".join(_lines(path))
    opening, *examples = text.split("-----\n", 1)[-1].split("\n\nQ: ")
    solved = []
    for example in examples:
        question, _, answer = example.partition(f"\nA: {_COT}")
        solved.append({"input": question, "target": answer.strip()})
    return f"{opening.strip()}\n\n", tuple(solved)


def _humaneval(folder: Path, shots: int) -> tuple[Part, ...]:
    path = _found(folder, "HumanEval.jsonl.gz")
    with _form(path):
        return (humaneval_part(_rows(path)),)


def _mbpp(folder: Path, shots: int) -> tuple[Part, ...]:
    with _form(folder / "mbpp.jsonl"):
        part = mbpp_part(_rows(folder / "mbpp.jsonl"))
    if len(part.shots) < shots:
        raise DataError(f"{folder}/mbpp.jsonl lacks the solved examples, rows {MBPP_SHOTS}; fetch it again.")
    return (part,)


def _truthfulqa(folder: Path, shots: int) -> tuple[Part, ...]:
    def targets(given: Mapping[str, int]) -> Row:
        labels = [int(label) for label in given.values()]
        if 1 not in labels:
            raise ValueError("a question has no true answer")
        return {"choices": list(given), "labels": labels}

    path = folder / "truthfulqa_mc.json"
    with _form(path):
        rows = [
            {
                "question": _text(given, "question"),
                "mc1": targets(given["mc1_targets"]),
                "mc2": targets(given["mc2_targets"]),
            }
            for given in _rows(path)
        ]
    return (Part("", tuple(rows)),)


def _ifeval(folder: Path, shots: int) -> tuple[Part, ...]:
    path = folder / "ifeval.jsonl"
    with _form(path):
        # Settings differ from kind to kind, which one column of a table cannot hold: they stay JSON.
        rows = [
            {
                "prompt": _text(given, "prompt"),
                "instructions": [
                    json.dumps([kind, dict(settings)])
                    for kind, settings in zip(_texts(given["instruction_id_list"]), given["kwargs"], strict=True)
                ],
            }
            for given in _rows(path)
        ]
    return (Part("", tuple(rows)),)


_READERS: dict[str, Callable[[Path, int], tuple[Part, ...]]] = {
    "gsm8k": _gsm8k,
    "mmlu": _mmlu,
    "bbh": _bbh,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "arc_challenge": _arc,
    "truthfulqa": _truthfulqa,
    "ifeval": _ifeval,
}


def _text(given: Mapping[str, Any], column: str) -> str:
    """A text of a row; a number in its place would only be met by the harness."""
    value = given[column]
    if not isinstance(value, str):
        raise TypeError(f"{column!r} is no text")
    return value


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("a list of texts is none")
    return values


def _found(folder: Path, name: str) -> Path:
    """A file by its name, or by that without ``.gz``."""
    path = folder / name
    plain = folder / name.removesuffix(".gz")
    return plain if plain.exists() and not path.exists() else path


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[str]]:
    try:
        if path.suffix == ".gz":
            with io.TextIOWrapper(open_bytes(path), encoding="utf-8", newline="") as file:
                yield iter(file)
        else:
            with open(path, encoding="utf-8-sig", newline="") as file:
                yield iter(file)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read ({reason.lower()}); name another --data.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; fetch it again.") from None


def _lines(path: Path) -> list[str]:
    with _opened(path) as lines:
        return [line.replace("\r\n", "\n") for line in lines]


def _rows(path: Path) -> list[Row]:
    """The rows of a JSON list, or of lines of JSON."""
    lines = _lines(path)
    if path.name.endswith(".json"):
        found = json.loads("".join(lines))
    else:
        found = [json.loads(line) for line in lines if line.strip()]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise TypeError("not a list of rows")
    return found


@contextmanager
def _form(path: Path) -> Iterator[None]:
    """Turn a row that is not in its benchmark's form into one sentence about the file."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        told = f"no column {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} is not in the form that its authors publish ({told}); fetch it again.") from None
