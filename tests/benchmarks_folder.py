"""A folder of benchmark files with a few rows of our own, in the forms of the authors, and models that know them."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spice_select.evaluation.harness import CodeRunner

SOLVED = 30


def write_benchmarks(folder: Path) -> Path:
    """All eight; the first rows of GSM8K and ARC serve as solved examples."""
    folder.mkdir(parents=True, exist_ok=True)
    _lines(
        folder / "gsm8k_test.jsonl",
        [{"question": f"What is {n} and {n}?", "answer": f"Both make <<{n}+{n}>>.\n#### {2 * n}"} for n in range(8)],
    )
    (folder / "arc_challenge_test.json").write_text(
        json.dumps(
            [
                {
                    "id": str(n),
                    "question": f"Which is number {n}?",
                    "label": ["1", "2", "3"] if n % 2 else ["A", "B", "C"],
                    "answer": "3" if n % 2 else "A",
                    **dict(zip("123" if n % 2 else "ABC", ("a tree", f"the number {n}", f"{n}"), strict=True)),
                }
                for n in range(SOLVED)
            ]
        )
    )
    for split, count in (("dev", 5), ("test", 3)):
        for subject in ("clock_reading", "knots"):
            path = folder / "mmlu" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["question", "choice0", "choice1", "choice2", "choice3", "answer"])
                writer.writerows([f'{subject}, "{n}"?', "one, two", "b", "c", "d", n % 4] for n in range(count))
    for kind, target in (("sorting_words", "apple pear"), ("which_option", "(B)")):
        rows = [{"input": f"{kind} {n}?", "target": target} for n in range(3)]
        _json(folder / "bbh" / "bbh" / f"{kind}.json", {"canary": "none", "examples": rows})
        worked = "\n\n".join(
            f"Q: {kind} example {n}?\nA: Let's think step by step.\nIt is plain. So the answer is {target}."
            for n in range(3)
        )
        prompt = folder / "bbh" / "cot-prompts" / f"{kind}.txt"
        prompt.parent.mkdir(parents=True, exist_ok=True)
        prompt.write_text(f"a line above the rule\n-----\nDo the task.\n\n{worked}\n")
    with gzip.open(folder / "HumanEval.jsonl.gz", "wt") as file:
        for n in range(2):
            row = {
                "task_id": f"HumanEval/{n}",
                "prompt": f'import math\n\ndef plus_{n}(x):\n    """Add {n}."""\n',
                "entry_point": f"plus_{n}",
                "canonical_solution": f"    return x + {n}\n",
                "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
            }
            file.write(json.dumps(row) + "\n")
    _lines(
        folder / "mbpp.jsonl",
        [
            {
                "task_id": n,
                "text": f"Write a function to return {n}.",
                "code": f"def give_{n}():\r\n  return {n}",
                "test_list": [f"assert give_{n}() == {n}", f"assert give_{n}() == base"],
                "test_setup_code": f"base = {n}",
                "challenge_test_list": [],
            }
            for n in (1, 2, 3, 4, 11, 12, 510, 511)
        ],
    )
    _json(
        folder / "truthfulqa_mc.json",
        [
            {
                "question": f"What of {n}?",
                "mc1_targets": {"It is false.": 0, "It is true.": 1},
                "mc2_targets": {"True.": 1, "False.": 0, "Also true.": 1},
            }
            for n in range(2)
        ],
    )
    _lines(
        folder / "ifeval.jsonl",
        [
            {
                "key": 1,
                "prompt": "Say it without commas and in quotes.",
                "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
                "kwargs": [{}, {}],
            },
            {
                "key": 2,
                "prompt": "Name trees twice.",
                "instruction_id_list": ["keywords:frequency", "length_constraints:number_words"],
                "kwargs": [
                    {"keyword": "tree", "frequency": 2, "relation": "at least"},
                    {"num_words": 9, "relation": "less than"},
                ],
            },
        ],
    )
    return folder


def knowing(right: bool, programs: dict[str, str] | None = None) -> Any:
    """A model of the harness that reads the answer in each row, and gives it or another.

    Args:
        right: Whether what it gives is right.
        programs: By the tests of a row, the program to give for it; needed of rows that are not ours.
    """
    from lm_eval.api.model import LM

    class Knowing(LM):
        def __init__(self) -> None:
            super().__init__()
            self.prompts: list[str] = []

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            self.prompts += [request.args[0] for request in requests]
            return [(0.0, True) if self._true(request) == right else (-1e4, False) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: list[Any]) -> list[str]:
            self.prompts += [request.args[0] for request in requests]
            return [self._text(request.doc) if right else "7 7 , no" for request in requests]

        @staticmethod
        def _true(request: Any) -> bool:
            doc, place = request.doc, request.idx
            if "gold" in doc:
                return place == doc["gold"]
            return bool(doc[request.task_name.rpartition("_")[2]]["labels"][place])

        @staticmethod
        def _text(doc: dict[str, Any]) -> str:
            if "target" in doc:
                return f"Thoughts. So the answer is {doc['target']}."
            if "instructions" in doc:
                return '"A tree and a tree"'
            if "answer" in doc:
                return doc["answer"]
            given = programs or {}
            if "entry_point" in doc:
                return given.get(doc["test"], f"    return x + {doc['entry_point'].rpartition('_')[2]}\n")
            return given.get(doc["test_list"][0], f"{doc['code']}\n[DONE]")

    return Knowing()


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    passed: bool
    status: str


def trusting() -> CodeRunner:
    """Runs programs of our own right here."""

    def run(programs: Any) -> list[Ended]:
        found = []
        for program in programs:
            try:
                exec(compile(program, "program", "exec"), {"__name__": "program"})
            except Exception as error:
                found.append(Ended(False, type(error).__name__))
            else:
                found.append(Ended(True, "passed"))
        return found

    return run


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
