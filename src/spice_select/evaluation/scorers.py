"""What a model is asked, row by row, and how what it says is scored.

The task files name these functions. Each takes a row as ``local_data`` gives it; a score takes what
lm-evaluation-harness hands on: the text of the answer, or for each choice its log-likelihood and whether it was the
model's own. Scores are 0 or 1, but for TruthfulQA's mc2, a share of probability.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from spice_select.evaluation.instructions import follows

Doc = Mapping[str, Any]
Likelihoods = Sequence[tuple[float, bool]]

_NUMBER = r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_COT = "Let's think step by step."


# GSM8K


def gsm8k_question(doc: Doc) -> str:
    """The question."""
    return f"Question: {doc['question']}\nAnswer:"


def gsm8k_target(doc: Doc) -> str:
    """The worked solution; its number stands behind ``####``."""
    return doc["answer"]


def gsm8k_score(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """The first number behind ``####`` (strict), and the last number of all (flexible)."""
    gold = _value(doc["answer"].rpartition("####")[2])
    strict = re.search(rf"####\s*({_NUMBER})", results[0])
    numbers = re.findall(_NUMBER, results[0])
    return {
        "exact_match_strict": float(strict is not None and gold is not None and _value(strict[1]) == gold),
        "exact_match_flexible": float(bool(numbers) and gold is not None and _value(numbers[-1]) == gold),
    }


def _value(text: str) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[,$\s]", "", text))
    except InvalidOperation:
        return None


# Questions with choices


def mmlu_question(doc: Doc) -> str:
    """The question and its lettered choices."""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", doc["choices"], strict=True))
    return f"{doc['question'].strip()}\n{listed}\nAnswer:"


def question_answer(doc: Doc) -> str:
    """The question alone."""
    return f"Question: {doc['question']}\nAnswer:"


def truthfulqa_question(doc: Doc) -> str:
    """The question alone, in TruthfulQA's letters."""
    return f"Q: {doc['question']}\nA:"


def choices(doc: Doc) -> list[str]:
    """The choices."""
    return list(doc["choices"])


def gold(doc: Doc) -> int:
    """Place of the right choice."""
    return doc["gold"]


def choice_score(doc: Doc, results: Likelihoods) -> dict[str, float]:
    """Whether the right choice is the likeliest: as it stands, and by character of its text."""
    found = [likelihood for likelihood, _ in results]
    by_length = [value / max(len(text), 1) for value, text in zip(found, doc["choices"], strict=True)]
    return {"acc": float(_first_best(found) == doc["gold"]), "acc_norm": float(_first_best(by_length) == doc["gold"])}


def mc1_choices(doc: Doc) -> list[str]:
    """Answers of which one is true."""
    return list(doc["mc1"]["choices"])


def mc2_choices(doc: Doc) -> list[str]:
    """True and false answers."""
    return list(doc["mc2"]["choices"])


def mc1_score(doc: Doc, results: Likelihoods) -> dict[str, float]:
    """Whether the true answer is the likeliest."""
    return {"mc1": float(doc["mc1"]["labels"][_first_best([likelihood for likelihood, _ in results])])}


def mc2_score(doc: Doc, results: Likelihoods) -> dict[str, float]:
    """The true answers' share of the probability of all of them."""
    found = [likelihood for likelihood, _ in results]
    # Against underflow: the likeliest is the unit.
    weights = [math.exp(value - max(found)) for value in found]
    true = math.fsum(weight for weight, label in zip(weights, doc["mc2"]["labels"], strict=True) if label)
    return {"mc2": true / math.fsum(weights)}


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda place: (values[place], -place))


# BIG-Bench Hard


def bbh_question(doc: Doc) -> str:
    """The question and the opening of a chain of thought."""
    return f"Q: {doc['input']}\nA: {_COT}\n"


def bbh_target(doc: Doc) -> str:
    """The answer; of a worked example with the thoughts that lead there."""
    return doc["target"]


def bbh_score(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Whether what follows the first "the answer is" of the line is the target, but for one final full stop."""
    found = re.search(r"the answer is\s+(.*)", results[0])
    return {"exact_match": float(found is not None and _bare(found[1]) == _bare(doc["target"]))}


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").strip()


# Programs


def humaneval_prompt(doc: Doc) -> str:
    """The head of a function and what it should do."""
    return doc["prompt"]


def humaneval_target(doc: Doc) -> str:
    """The tests."""
    return f"{doc['test']}\ncheck({doc['entry_point']})"


def humaneval_program(doc: Doc, completion: str) -> str:
    """The program that passes if the answer is right.

    An answer that holds the whole function (as chat models give it, in a fenced block) replaces the one that the
    prompt opens, and the prompt stays before it for its imports; any other goes on where the prompt ends.
    """
    block = fenced(completion)
    answer = completion if block is None else block
    if re.search(rf"^(?:async )?def {re.escape(doc['entry_point'])}\b", answer, re.MULTILINE):
        body = f"{doc['prompt'].rstrip()}\n    pass\n\n{answer}"
    else:
        body = doc["prompt"] + answer
    return f"{body}\n{doc['test']}\ncheck({doc['entry_point']})\n"


def humaneval_result(doc: Doc, results: Sequence[str]) -> dict[str, str]:
    """The program to run."""
    return {"program": humaneval_program(doc, results[0])}


def mbpp_prompt(doc: Doc) -> str:
    """The task and its tests, in the words of MBPP's authors."""
    tests = "\n".join(doc["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {doc['text']} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def mbpp_target(doc: Doc) -> str:
    """The solution of a solved example."""
    return f"{doc['code']}\n[DONE]"


def mbpp_program(doc: Doc, completion: str) -> str:
    """The program that passes if the answer is right: the answer, what the tests need, and the tests."""
    answer = completion.split("[DONE]", 1)[0]
    answer = answer.split("[BEGIN]", 1)[-1]
    code = fenced(answer)
    tests = "\n".join(doc["test_list"])
    return f"{answer if code is None else code}\n{doc['test_setup_code']}\n{tests}\n"


def mbpp_result(doc: Doc, results: Sequence[str]) -> dict[str, str]:
    """The program to run."""
    return {"program": mbpp_program(doc, results[0])}


def fenced(text: str) -> str | None:
    """The first block of Python between fences of a Markdown text, or of code of no language; None without any."""
    blocks = [(language.lower(), code) for language, code in _FENCE.findall(text)]
    named = [code for language, code in blocks if language in ("python", "py", "python3")]
    plain = [code for language, code in blocks if not language]
    return next(iter([*named, *plain]), None)


# IFEval


def prompt(doc: Doc) -> str:
    """The prompt."""
    return doc["prompt"]


def ifeval_score(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Whether every instruction is followed: by the answer itself, and by any of its lenient readings.

    Lenient readings leave out the first line, the last or both (often a greeting or an offer), and asterisks.
    """
    given = [json.loads(text) for text in doc["instructions"]]
    answer = results[0]
    lines = answer.split("\n")
    readings = [answer, *("\n".join(kept).strip() for kept in (lines[1:], lines[:-1], lines[1:-1]))]
    readings += [reading.replace("*", "") for reading in readings]
    return {
        "prompt_strict": float(all(follows(kind, settings, answer) for kind, settings in given)),
        "prompt_loose": float(
            all(any(follows(kind, settings, reading) for reading in readings) for kind, settings in given)
        ),
    }
