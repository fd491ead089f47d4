"""The command on a tiny model: held-out rows, benchmarks from local files, programs in the sandbox, and resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from spice_select.demo import demo_model_path, demo_rows
from spice_select.evaluation.record import Evaluation
from tests.integration.command import Command
from tests.integration.rows import write_jsonl
from tests.support import shared_path


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "held.jsonl"
    write_jsonl(path, [{**row, "subtask": f"part{i % 2}"} for i, row in enumerate(demo_rows(seed=8)[:6])])
    return path


def read(folder: Path) -> Evaluation:
    return Evaluation.model_validate_json((folder / "evaluation.json").read_bytes())


def test_the_held_out_loss_is_printed_kept_and_taken_up(command: Command, held: Path, tmp_path: Path):
    out = tmp_path / "out"
    arguments = ("evaluate", demo_model_path(), "--suite", "heldout", "--heldout", held)
    printed = command(*arguments)
    assert printed.code == 0, printed.err
    assert "Nothing was kept; --output" in printed.out
    assert not out.exists()

    first = command(*arguments, "--output", out)
    assert first.code == 0, first.err
    found = read(out)
    assert found.heldout is not None
    assert found.suites == ("heldout",)
    assert set(found.heldout.domains) == {"part0", "part1"}
    assert found.heldout.macro.value == pytest.approx(np.mean([d.loss for d in found.heldout.domains.values()]))
    macro = found.heldout.macro
    assert f"loss, mean of domains  {macro.value:.4f}    {macro.stderr:.4f}     6" in first.out
    assert {"spice-select", "torch", "transformers", "python"} <= set(found.versions)

    again = command(*arguments, "--output", out)
    assert "Held-out loss: taken from" in again.err
    assert again.out == first.out
    assert read(out) == found

    # Other rows, a limit or a template that reads them otherwise are other results.
    for change in (["--limit", "1"], ["--set", "data.max_length=32"], ["--overwrite"]):
        assert "taken from" not in command(*arguments, "--output", out, *change).err
    one = command.json(*arguments, "--output", out)
    assert one["schema_version"] == 1


def test_the_folder_of_another_model_is_not_overwritten_unasked(command: Command, held: Path, tmp_path: Path):
    out = tmp_path / "out"
    command("evaluate", demo_model_path(), "--suite", "heldout", "--heldout", held, "-o", out)
    path = out / "evaluation.json"
    record = json.loads(path.read_text())
    record["model"] |= {"weights": "0" * 64, "name": "other"}
    path.write_text(json.dumps(record))
    arguments = ("evaluate", demo_model_path(), "--suite", "heldout", "--heldout", held, "-o", out)
    said = command.refused(4, *arguments)
    assert "holds the evaluation of other, whose weights are others; name another folder, or add --overwrite." in said
    assert json.loads(path.read_text()) == record
    assert command(*arguments, "--overwrite").code == 0


def test_a_run_says_how_rows_are_read(command: Command, held: Path, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    (run / "config.yaml").write_text(
        json.dumps({"data": {"max_length": 48, "chat_template": template}, "model": {"name": "x", "dtype": "float16"}})
    )
    arguments = ("evaluate", demo_model_path(), "--suite", "heldout", "--heldout", held)
    by_run = command.json(*arguments, "--run", run)
    by_flags = command.json(*arguments, "--set", "data.max_length=48", "--set", f"data.chat_template={template!r}")
    plain = command.json(*arguments)
    digests = [said["heldout"]["digest"] for said in (by_run, by_flags, plain)]  # type: ignore[index]
    assert digests[0] == digests[1] != digests[2]
    assert by_run["model"]["dtype"] == "float32"  # type: ignore[index]
    assert by_run["settings"]["max_length"] == 48  # type: ignore[index]


@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [
        (2, ["--suite", "heldout"], "name a file of them with --heldout FILE"),
        (2, ["--suite", ""], "--suite is empty; name paper, heldout, or some of gsm8k"),
        (2, ["--suite", "gsm9k"], "gsm8k"),
        (2, ["--suite", "gsm8k", "--heldout", "HELD"], "Held-out files are for the suite heldout"),
        (2, ["--suite", "heldout", "--heldout", "HELD", "--data", "."], "--data names files of benchmarks"),
        (2, ["--suite", "heldout", "--heldout", "HELD", "--limit", "0"], "--limit must be 1 or more, got 0"),
        (2, ["--suite", "heldout", "--heldout", "HELD", "--base", "x"], "--base x is for adapters"),
        (2, ["--suite", "heldout", "--heldout", "HELD", "--set", "model.name=x"], "--set model.name would name"),
        (2, ["--suite", "humaneval"], "add --execute-code to allow it, in a sandbox"),
        (2, ["--suite", "mbpp,paper"], "add --execute-code to allow it, in a sandbox"),
        (3, ["--suite", "heldout", "--heldout", "none.jsonl"], "The held-out file 'none.jsonl' cannot be found"),
        (3, ["--suite", "heldout", "--heldout", "HELD", "--run", "nowhere"], "There is no folder nowhere"),
        (4, ["--suite", "heldout", "--heldout", "HELD", "--output", "HELD"], "is a file; name a folder"),
    ],
)
def test_a_mistake_is_one_sentence(command: Command, held: Path, code: int, arguments: list[str], said: str):
    given = [str(held) if argument == "HELD" else argument for argument in arguments]
    assert said in command.refused(code, "evaluate", demo_model_path(), *given)


def test_benchmarks_and_programs_of_a_tiny_model(command: Command, held: Path, tmp_path: Path):
    """Through the harness and the real sandbox, two rows of each."""
    model, data = shared_path("models", "stories260k"), shared_path("data", "eval")
    pytest.importorskip("lm_eval")
    out = tmp_path / "out"
    arguments = [*("evaluate", model, "--data", data, "--limit", "2", "--heldout", held, "--output", out)]
    outcome = command(*arguments, "--suite", "heldout,humaneval,truthfulqa", "--execute-code")
    assert outcome.code == 0, outcome.err
    found = read(out)
    assert [task.name for task in found.tasks] == ["humaneval", "truthfulqa"]
    code, truthful = found.tasks
    assert (code.rows, code.outcomes) == (2, {"failed": 2})
    assert (truthful.rows, truthful.shots) == (2, 0)
    assert found.sandbox is not None
    assert "system calls (seccomp)" in found.sandbox.layers
    assert found.sandbox.limits["memory_bytes"] == 1 << 30
    assert "pass@1" in outcome.out

    # One suite is lost, as by a kill in the middle: it alone is asked again.
    (out / "evaluation.json").unlink()
    (out / "tasks" / "truthfulqa.json").write_text("{")
    again = command(*arguments, "--suite", "heldout,humaneval,truthfulqa", "--execute-code")
    assert "HumanEval: taken from" in again.err
    assert "TruthfulQA: taken from" not in again.err
    assert read(out).tasks[0] == code
    assert read(out).tasks[1].metrics == truthful.metrics


def test_the_paper_without_the_flag_leaves_programs_out(command: Command, tmp_path: Path):
    from spice_select.evaluation.evaluating import EvaluationRequest, _plan

    plan = _plan(EvaluationRequest(model="x", suites="paper,heldout"))
    assert plan.heldout
    assert [task.name for task in plan.tasks] == [
        *("gsm8k", "mmlu", "bbh", "arc_challenge", "truthfulqa", "ifeval"),
    ]
    assert list(plan.left_out) == ["humaneval", "mbpp"]
    everything = _plan(EvaluationRequest(model="x", suites="paper", execute_code=True))
    assert len(everything.tasks) == 8 and not everything.left_out


def test_a_full_model_folder_moves_without_a_change(command: Command, held: Path, tmp_path: Path):
    """The same weights elsewhere are the same model."""
    out, copy = tmp_path / "out", tmp_path / "copy"
    shutil.copytree(demo_model_path(), copy)
    command("evaluate", demo_model_path(), "--suite", "heldout", "--heldout", held, "-o", out)
    again = command("evaluate", copy, "--suite", "heldout", "--heldout", held, "-o", out)
    assert again.code == 0
    assert "Held-out loss: taken from" in again.err
    assert read(out).model.name == "copy"
