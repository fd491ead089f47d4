"""The eight benchmarks end to end from a folder: models that know the answers, and a real one."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spice_select.errors import ConfigError, DataError
from spice_select.evaluation.harness import SuiteResults, run_suites
from spice_select.evaluation.suites import PAPER, tasks_of
from spice_select.reporter import Listening, Silent
from tests.benchmarks_folder import SOLVED, Ended, knowing, trusting, write_benchmarks
from tests.support import shared_path

pytest.importorskip("lm_eval", reason="needs the extra eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def run(model: Any, names: str, data: Path, **settings: Any) -> SuiteResults:
    settings = {"execute_code": True, "code_runner": trusting(), "reporter": Silent()} | settings
    return run_suites(model, settings.pop("tokenizer", None), tasks_of(names), data=data, **settings)


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_knows_every_answer_scores_one_and_one_that_knows_none_zero(folder: Path, right: bool) -> None:
    results = run(knowing(right), "paper", folder)
    assert [result.name for result in results.tasks] == [task.name for task in PAPER]
    for result, task in zip(results.tasks, PAPER, strict=True):
        assert set(result.metrics) == {metric.name for metric in task.metrics}
        for name, found in result.metrics.items():
            assert found.value == float(right), f"{result.name} {name}"
            assert found.stderr == 0.0
    assert {result.name: result.rows for result in results.tasks} == {
        "gsm8k": 3,
        "mmlu": 6,
        "bbh": 6,
        "humaneval": 2,
        "mbpp": 3,
        "arc_challenge": SOLVED - 25,
        "truthfulqa": 2,
        "ifeval": 2,
    }
    by_name = {result.name: result for result in results.tasks}
    assert set(by_name["mmlu"].subjects) == {"clock_reading", "knots"}
    assert sum(by_name["mbpp"].outcomes.values()) == 3
    assert "the first 5 test rows are the solved examples" in " ".join(by_name["gsm8k"].notes)
    assert SuiteResults.model_validate_json(results.model_dump_json()) == results


def test_prompts_hold_the_solved_examples_and_never_the_answer(folder: Path) -> None:
    model = knowing(True)
    run(model, "gsm8k", folder, limit=1)
    assert model.prompts == [
        "".join(f"Question: What is {n} and {n}?\nAnswer: Both make <<{n}+{n}>>.\n#### {2 * n}\n\n" for n in range(5))
        + "Question: What is 5 and 5?\nAnswer:"
    ]
    model = knowing(True)
    run(model, "bbh", folder, limit=1)
    example = "Q: which_option example {}?\nA: Let's think step by step.\nIt is plain. So the answer is (B).\n\n"
    assert model.prompts[1] == (
        "Do the task.\n\n"
        + "".join(map(example.format, range(3)))
        + "Q: which_option 0?\nA: Let's think step by step.\n"
    )
    model = knowing(True)
    run(model, "mmlu", folder, limit=1)
    opening = "The following are multiple choice questions (with answers) about clock reading.\n\n"
    assert model.prompts[0].startswith(opening + 'clock_reading, "0"?\nA. one, two\nB. b\nC. c\nD. d\nAnswer: A\n\n')
    assert model.prompts[0].endswith("D. d\nAnswer:")
    assert model.prompts[0].count("Answer:") == 6


def test_training_rows_beside_the_test_rows_give_the_solved_examples(tmp_path: Path) -> None:
    folder = write_benchmarks(tmp_path / "files")
    (folder / "gsm8k_train.jsonl").write_text(
        "".join(json.dumps({"question": f"Half of {n}?", "answer": f"#### {n / 2}"}) + "\n" for n in range(7))
    )
    model = knowing(True)
    result = run(model, "gsm8k", folder).tasks[0]
    assert result.rows == 8
    assert model.prompts[0].startswith("Question: Half of 0?")
    assert not any("test rows" in note for note in result.notes)


def test_programs_run_only_where_they_are_allowed_to(folder: Path) -> None:
    def never(programs: Any) -> Any:
        raise AssertionError("programs must not run")

    heard = Listening(Silent())
    results = run_suites(knowing(True), None, PAPER, data=folder, limit=1, code_runner=never, reporter=heard)
    assert set(results.left_out) == {"humaneval", "mbpp"}
    assert all("--execute-code" in reason for reason in results.left_out.values())
    assert [line.split()[0] for line in heard.warnings] == ["humaneval", "mbpp"]
    assert "humaneval" not in {result.name for result in results.tasks}
    with pytest.raises(ConfigError, match="humaneval runs programs that the model wrote; set --execute-code"):
        run(knowing(True), "gsm8k,humaneval", folder, execute_code=False)
    with pytest.raises(ConfigError, match="code_runner"):
        run(knowing(True), "mbpp", folder, code_runner=None)


def test_nothing_is_asked_while_files_are_missing(tmp_path: Path) -> None:
    model = knowing(True)
    with pytest.raises(ConfigError, match="is no folder"):
        run(model, "paper", tmp_path / "absent")
    with pytest.raises(DataError, match=r"has no gsm8k_test\.jsonl, bbh;"):
        run(model, "gsm8k,bbh", tmp_path)
    with pytest.raises(ConfigError, match=r"evaluation\.limit must be 1 or more"):
        run(model, "paper", tmp_path, limit=0)
    assert not model.prompts


@pytest.mark.parametrize("right", [True, False])
def test_known_answers_on_the_real_files(right: bool) -> None:
    data = shared_path("data", "eval")
    with gzip.open(data / "HumanEval.jsonl.gz", "rt") as file:
        solutions = {row["test"]: row["canonical_solution"] for row in map(json.loads, file)}
    with (data / "mbpp.jsonl").open() as file:
        solutions |= {row["test_list"][0]: row["code"] for row in map(json.loads, file)}

    def apart(programs: Any) -> list[Ended]:
        ended = [
            subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, timeout=60)
            for program in programs
        ]
        return [Ended(found.returncode == 0, str(found.returncode)) for found in ended]

    names = "gsm8k,bbh,humaneval,mbpp,arc_challenge,truthfulqa"
    results = run(knowing(right, solutions), names, data, limit=3, code_runner=apart)
    for result in results.tasks:
        assert {name: found.value for name, found in result.metrics.items()} == dict.fromkeys(
            result.metrics, float(right)
        ), result.name
    assert results.tasks[1].rows == 27 * 3


def random_states() -> tuple[Any, ...]:
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()


def small_model(data: Path, context: int, **settings: Any) -> SuiteResults:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = shared_path("models", "stories260k")
    model = AutoModelForCausalLM.from_pretrained(name).train()
    model.config.max_position_embeddings = context
    tokenizer = AutoTokenizer.from_pretrained(name)
    pad = tokenizer.pad_token
    states = random_states()
    results = run(model, "paper", data, tokenizer=tokenizer, batch_size=8, **settings)
    assert model.training
    assert tokenizer.pad_token == pad
    assert random_states() == states
    assert len(results.tasks) == 8
    for result in results.tasks:
        assert all(0.0 <= found.value <= 1.0 for found in result.metrics.values())
    return results


def test_a_small_model_end_to_end(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = small_model(folder, context=64, limit=1)
    by_name = {result.name: result for result in results.tasks}
    assert "answers end after 32 tokens, not 512: half of the model's context" in by_name["gsm8k"].notes
    assert any("longer than the model's context of 64 tokens" in note for note in by_name["arc_challenge"].notes)
    assert by_name["mmlu"].rows == by_name["bbh"].rows == 2
    written = capfd.readouterr()
    assert "requests" not in written.err and "Tokenizing" not in written.err and not written.out


class Hub:
    """Stands for the Hub: rows of our own as it would give them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, path: str, name: str | None = None, **settings: Any) -> Any:
        from datasets import Dataset, DatasetDict

        splits: dict[str, list[dict[str, Any]]] = {}
        if path == "openai/gsm8k":
            rows = [json.loads(line) for line in (self._folder / "gsm8k_test.jsonl").read_text().splitlines()]
            splits = {"train": rows[:6], "test": rows[6:]}
        elif path == "allenai/ai2_arc":
            rows = [
                {
                    "id": str(n),
                    "question": f"Number {n}?",
                    "choices": {"text": ["right", "wrong"], "label": ["A", "B"]},
                    "answerKey": "A",
                }
                for n in range(30)
            ]
            splits = {"train": rows[:26], "validation": rows[26:27], "test": rows[27:]}
        elif path == "truthfulqa/truthful_qa":
            mc1 = {"choices": ["true", "false"], "labels": [1, 0]}
            mc2 = {"choices": ["true", "so true", "false"], "labels": [1, 1, 0]}
            splits = {"validation": [{"question": "What?", "mc1_targets": mc1, "mc2_targets": mc2}] * 2}
        elif path == "openai/openai_humaneval":
            with gzip.open(self._folder / "HumanEval.jsonl.gz", "rt") as file:
                splits = {"test": [json.loads(line) for line in file]}
        elif path == "google-research-datasets/mbpp":
            rows = [json.loads(line) for line in (self._folder / "mbpp.jsonl").read_text().splitlines()]
            splits = {"train": [rows[-1]], "test": rows[4:7], "prompt": rows[:4]}
        else:
            raise ConnectionError(f"nothing at {path}")
        return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})


@pytest.mark.parametrize("right", [True, False])
def test_rows_from_the_hub(folder: Path, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", Hub(folder))
    model = knowing(right)

    def likelihood(requests: list[Any]) -> list[tuple[float, bool]]:
        model.prompts += [request.args[0] for request in requests]
        return [
            (-1.0, True)
            if request.args[1].strip() in ("right", "true", "so true") and right
            else (-1e4, False)
            if right or request.args[1].strip() in ("right", "true", "so true")
            else (-1.0, True)
            for request in requests
        ]

    monkeypatch.setattr(model, "loglikelihood", likelihood)
    results = run_suites(
        model,
        None,
        tasks_of("gsm8k,arc_challenge,truthfulqa,humaneval,mbpp"),
        data=None,
        execute_code=True,
        code_runner=trusting(),
        reporter=Silent(),
    )
    assert results.data == "hub"
    for result in results.tasks:
        for name, found in result.metrics.items():
            assert found.value == pytest.approx(float(right), abs=1e-12), f"{result.name} {name}"
    assert [(result.name, result.task, result.rows) for result in results.tasks] == [
        ("gsm8k", "gsm8k", 2),
        ("arc_challenge", "arc_challenge", 3),
        ("truthfulqa", "truthfulqa_mc1, truthfulqa_mc2", 2),
        ("humaneval", "spice_humaneval", 2),
        ("mbpp", "spice_mbpp", 3),
    ]
    arc = [text for text in model.prompts if text.startswith("Question: Number")]
    assert arc and all(text.count("Answer:") == 26 for text in arc)
    with pytest.raises(DataError, match=r"rows of mmlu cannot be had from the Hub \(nothing at cais/mmlu\)"):
        run_suites(model, None, tasks_of("mmlu"), data=None, reporter=Silent())


def test_what_stock_tasks_need_is_looked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from spice_select.evaluation import asking

    monkeypatch.setattr(asking, "find_spec", lambda name: None if name == "langdetect" else object())
    model = knowing(True)
    with pytest.raises(ConfigError, match="ifeval with rows from the Hub needs langdetect; pip install"):
        run_suites(model, None, tasks_of("gsm8k,ifeval"), data=None, reporter=Silent())
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(
        ConfigError, match=r"Benchmarks need lm-evaluation-harness .*; pip install 'spice-select\[eval\]'"
    ):
        run_suites(model, None, tasks_of("gsm8k"), data=None, reporter=Silent())
    assert not model.prompts


@pytest.mark.slow
def test_a_small_model_end_to_end_on_the_real_files() -> None:
    results = small_model(shared_path("data", "eval"), context=512, limit=2)
    rows = {result.name: result.rows for result in results.tasks}
    assert rows == {task.name: 2 for task in PAPER} | {"mmlu": 57 * 2, "bbh": 27 * 2}
