"""Results that are kept to save work: one that is not what was written is made anew, and never taken for another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spice_select import trials
from spice_select.analysis.contest import ChoiceCost
from spice_select.choices import Choices, SavedChoice
from spice_select.evaluation.harness import TaskResult
from spice_select.evaluation.record import TASKS, read_finished, write_finished
from spice_select.features import bench
from spice_select.files import write_text
from spice_select.seals import kept, sealed


def other_digit(path: Path, pattern: str) -> None:
    """Change one digit, which leaves JSON that reads as well as before."""
    text = path.read_text()
    match = re.search(pattern + r"\D*(\d)", text)
    assert match is not None
    digit = str((int(match[1]) + 1) % 10)
    path.write_text(text[: match.start(1)] + digit + text[match.end(1) :])


@pytest.fixture
def choice() -> SavedChoice:
    cost = ChoiceCost(seconds=1.0, process_seconds=1.0, memory_bytes=0, taken=())
    return SavedChoice(
        label="random", method="random", settings={}, seed=0, identity="i", indices=(3, 1), scores=(0.5, None),
        score_name="draw", stop_reason="budget", warnings=(), notes=(), cost=cost,
    )  # fmt: skip


def test_a_choice_with_another_row_number_is_none(choice: SavedChoice, tmp_path: Path) -> None:
    choices = Choices(tmp_path)
    choices.write(choice)
    assert choices.read("random", 0, "i") == choice
    other_digit(choices.path("random", 0), '"indices"')
    assert choices.read("random", 0, "i") is None
    # Of before there were checksums.
    choices.path("random", 0).write_text(choice.model_dump_json())
    assert choices.read("random", 0, "i") == choice


def test_a_training_with_another_loss_is_none(tmp_path: Path) -> None:
    path = tmp_path / "trial.json"
    made = trials.SavedTrial(identity="i", numbers=None, error="The training diverged at step 7.")
    trials._write(path, made)
    assert trials._read(path, "i") == made
    other_digit(path, "step")
    assert trials._read(path, "i") is None


def test_a_suite_with_another_number_is_asked_again(tmp_path: Path) -> None:
    result = TaskResult.model_construct(name="gsm8k", title="GSM8K", metrics={})
    content = result.model_dump(mode="json")
    write_finished(tmp_path, "gsm8k", "i", result)
    path = tmp_path / TASKS / "gsm8k.json"
    found = kept(path)
    assert found is not None and found["result"] == content
    other_digit(path, '"name": "gsm')
    assert read_finished(tmp_path, "gsm8k", "i", TaskResult) is None and kept(path) is None


def test_work_that_was_counted_otherwise_is_counted_anew(tmp_path: Path) -> None:
    path = tmp_path / "passes.json"
    write_text(path, sealed(bench.Passes(what="gradients", tokens=31).model_dump()))
    found = bench._read(path)
    assert found is not None and found.tokens == 31
    other_digit(path, '"tokens"')
    assert bench._read(path) is None
