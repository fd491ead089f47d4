"""Trainings on the picks: the real command line on fifty rows, one epoch, and twelve held-out rows of two domains."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from spice_select.analysis.contest import Contest
from spice_select.cli import main
from spice_select.config import RunConfig, load_config
from spice_select.demo import demo_model_path, demo_rows
from spice_select.features.heldout import read_heldout
from spice_select.gradients.identity import state_hash
from spice_select.methods.random import Random
from spice_select.pool import read_pool
from spice_select.reporter import Clock, Silent
from spice_select.schedule.trainer import Diverged, ProxyTrainer, TrainResult
from spice_select.trials import Trials
from tests.integration.command import Command, Outcome
from tests.integration.rows import write_jsonl
from tests.integration.test_cli_compare import record, timeless

TRIALS = {
    "random/seed-0.trial-0.json",
    "random/seed-1.trial-1.json",
    "length/seed-0.trial-0.json",
    "length/seed-0.trial-1.json",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool, and held-out rows that are none of it."""
    folder = tmp_path_factory.mktemp("files")
    write_jsonl(folder / "pool.jsonl", demo_rows(seed=3)[:50])
    held = [{**row, "subtask": "even" if i % 3 else "third"} for i, row in enumerate(demo_rows(seed=8)[:12])]
    write_jsonl(folder / "held.jsonl", held)
    return folder


def arguments(files: Path, out: Path, methods: str) -> list[str | Path]:
    return [
        *("compare", files / "pool.jsonl", "-m", demo_model_path(), "--methods", methods, "--budget", "8"),
        *("--seeds", "2", "--no-information", "--train", "--heldout", files / "held.jsonl", "--train-seeds", "2"),
        *("--set", "training.epochs=1", "--set", "training.lr=0.001", "--output", out),
    ]


@pytest.fixture
def compare(command: Command, files: Path):
    def call(out: Path, methods: str = "random,length", *more: str | Path) -> Outcome:
        return command(*arguments(files, out, methods), *more)

    return call


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Path:
    """A comparison with all its trainings, which no test changes."""
    out = tmp_path_factory.mktemp("compare") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spice-select", *map(str, arguments(files, out, "random,length"))])
        patch.setattr(sys, "warnoptions", ["error"])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    return out


@pytest.fixture
def whole(done: Path, tmp_path: Path) -> Path:
    """The same comparison, to go on with."""
    return Path(shutil.copytree(done, tmp_path / "whole"))


def trial(out: Path, name: str) -> dict[str, Any]:
    # The checksum is of the seconds as well.
    record = json.loads((out / "methods" / name).read_text())
    return timeless({field: value for field, value in record.items() if field != "checksum"})


def trials(out: Path) -> dict[str, int]:
    folder = out / "methods"
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.trial-*.json")}


def test_every_choice_is_trained_on_and_every_form_tells_it_and_no_second_time(
    whole: Path, compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = Contest.read(whole / "comparison.json")
    setup = contest.training
    assert setup is not None and setup.domains == {"third": 4, "even": 8} and setup.in_pool == 0
    assert set(trials(whole)) == TRIALS
    for one in contest.contestants:
        assert one.training is not None
        seeds = [one.seed] if one.method == "random" else [0, 1]
        assert [each.seed for each in one.training] == seeds
        for each in one.training:
            assert each.steps == 2 and each.tokens > 0 and each.loss_macro != setup.untrained.loss_macro
            assert each.loss_macro == pytest.approx(np.mean(list(each.by_domain.values())), abs=1e-12)
            weighted = (4 * each.by_domain["third"] + 8 * each.by_domain["even"]) / 12
            assert each.loss_micro == pytest.approx(weighted, abs=1e-12)
    random, length = contest.methods
    assert random.training is not None and length.training is not None
    losses = [each.loss_macro for one in contest.contestants[:2] for each in one.training or ()]
    assert random.training.loss_macro == pytest.approx(np.mean(losses))
    assert random.training.deviation == pytest.approx(np.std(losses, ddof=1))
    assert "untrained the model has" in contest.verdict[0] and "over 2 seeds" in contest.verdict[0]
    # Every form has it.
    rows = list(csv.DictReader(io.StringIO((whole / "comparison.csv").read_text())))
    assert [row["trainings"] for row in rows] == ["1", "1", "2"]
    assert float(rows[0]["loss_macro"]) == losses[0]
    assert "### Training" in (whole / "comparison.md").read_text()
    assert "| untrained | " in (whole / "comparison.md").read_text()
    assert 'id="training"' in (whole / "report.html").read_text()
    # And the same command again has nothing left to train.
    before, times = record(whole), trials(whole)
    with monkeypatch.context() as patch:
        patch.setattr(ProxyTrainer, "train", lambda *_: pytest.fail("nothing is to be trained"))
        outcome = compare(whole)
    assert outcome.code == 0, outcome.err
    assert "held-out" in outcome.out and trials(whole) == times
    assert timeless(record(whole)) == timeless(before)


def test_a_training_knows_nothing_of_those_before_it(done: Path, compare, tmp_path: Path, model: Path) -> None:
    """By itself, and under another name of the same model with a tokenizer of its own, it ends in the same numbers."""
    other = tmp_path / "copy"
    shutil.copytree(model, other, copy_function=shutil.copyfile)
    outcome = compare(tmp_path / "alone", "length", "--set", f"training.model={other}", "--train-seeds", "1")
    assert outcome.code == 0, outcome.err
    name = "length/seed-0.trial-0.json"
    assert trial(tmp_path / "alone", name) == trial(done, name)
    assert Contest.read(tmp_path / "alone" / "comparison.json").training.model == "copy"  # type: ignore[union-attr]


def test_cut_off_it_goes_on_and_ends_the_same(
    done: Path, compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, train, calls = tmp_path / "out", ProxyTrainer.train, []

    def stop(self: ProxyTrainer, *args: Any) -> TrainResult:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ProxyTrainer, "train", stop)
        assert compare(out).code == 130
    assert set(trials(out)) == {"random/seed-0.trial-0.json"} and not (out / "comparison.json").exists()
    kept = trials(out)
    assert compare(out).code == 0
    assert trials(out).items() >= kept.items()
    assert timeless(record(out)) == timeless(record(done))


def test_other_settings_are_trained_anew_and_nothing_is_chosen_again(
    whole: Path, compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice, before = (whole / "methods" / "random" / "seed-0.json").read_bytes(), trials(whole)
    monkeypatch.setattr(Random, "choose", lambda *_: pytest.fail("nothing is to be chosen"))
    outcome = compare(whole, "random,length", "--set", "training.epochs=2", "--train-seeds", "1")
    assert outcome.code == 0, outcome.err
    assert (whole / "methods" / "random" / "seed-0.json").read_bytes() == choice
    found = record(whole)
    assert [len(one["training"]) for one in found["contestants"]] == [1, 1, 1]
    assert {each["steps"] for one in found["contestants"] for each in one["training"]} == {4}
    assert trials(whole)["length/seed-0.trial-1.json"] == before["length/seed-0.trial-1.json"]


def test_a_training_that_diverges_is_told_and_the_others_go_on(
    compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, train, calls = tmp_path / "out", ProxyTrainer.train, []

    def diverge(self: ProxyTrainer, *args: Any) -> TrainResult:
        calls.append(1)
        if len(calls) == 3:
            raise Diverged(float("nan"), 1)
        return train(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ProxyTrainer, "train", diverge)
        outcome = compare(out, "length,random")
    assert outcome.code == 3 and "Traceback" not in outcome.err
    assert "random, seed 0: no training: The training on the picks diverged (loss nan at step 2)" in outcome.err
    found = record(out)
    assert [len(one["training"]) for one in found["contestants"]] == [2, 0, 1]
    assert "set training.lr below 0.001" in found["contestants"][1]["training_error"]
    assert "diverged" in (out / "report.html").read_text()
    # It would diverge again, so that it is not tried again.
    monkeypatch.setattr(ProxyTrainer, "train", lambda *_: pytest.fail("nothing is to be trained"))
    assert compare(out, "length,random").code == 3


@pytest.mark.parametrize(
    ("code", "more", "said"),
    [
        (2, ("--train",), "--train needs rows to measure the loss on; name a file of them with --heldout FILE."),
        (2, ("--heldout", "held.jsonl"), "add --train"),
        (2, ("--train", "--heldout", "held.jsonl", "--set", "training.lr=0"), "training.lr"),
        (3, ("--train", "--heldout", "none.jsonl"), "The held-out file"),
        (3, ("--train", "--heldout", "empty.jsonl"), "has a response to measure the loss of"),
        (3, ("--train", "--heldout", "held.jsonl", "--set", "training.model=none/none/none"), "none/none/none"),
    ],
)
def test_faults_are_found_before_anything_is_chosen(
    command: Command, files: Path, model: Path, tmp_path: Path, code: int, more: tuple[str, ...], said: str
) -> None:
    write_jsonl(files / "empty.jsonl", [{"instruction": "Say it.", "output": ""}])
    out = tmp_path / "out"
    given = [files / one if one.endswith(".jsonl") else one for one in more]
    call = ("compare", files / "pool.jsonl", "-m", model, "--methods", "random", "-b", "5", "-o", out)
    assert said in command.refused(code, *call, "--no-information", *given)
    assert not out.exists()


@pytest.fixture
def config(files: Path) -> RunConfig:
    return load_config(
        values={
            "data": {"sources": [str(files / "pool.jsonl")]},
            "model": {"name": str(demo_model_path())},
            "training": {
                "heldout": [str(files / "held.jsonl"), str(files / "pool.jsonl")],
                "epochs": 1,
                "lr": 0.01,
            },
        }
    )


def test_base_weights_come_back_to_the_bit_and_losses_are_the_models_own(config: RunConfig, tmp_path: Path) -> None:
    clock, said = Clock(), _Heard()
    pool = read_pool(config, Silent(), clock)
    held = read_heldout(config, pool, said, clock)
    assert said.warnings[0].startswith("50 of the 62 held-out rows are rows of the pool as well")
    assert held.domains == {"third": 4, "even": 8, "pool": 50}
    trials = Trials(config, pool, held, tmp_path, Silent(), clock)
    base = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)
    weights = {name: value for name, value in base.state_dict().items() if name.endswith("weight")}

    def now() -> str:
        found = trials._proxy.model.get_base_model().state_dict()
        plain = {name.replace(".base_layer", ""): value for name, value in found.items() if "lora" not in name}
        assert plain.keys() >= weights.keys()
        return state_hash({name: plain[name] for name in weights})

    examples = [pool.encoded.example(row) for row in range(12)]
    first = trials._trained(examples, 12, 0, "a").numbers
    untrained = trials._untrained()
    trials._trained(examples[::-1], 12, 7, "b")
    again = trials._trained(examples, 12, 0, "a").numbers
    assert first is not None and again is not None
    assert again.model_copy(update={"seconds": 0.0}) == first.model_copy(update={"seconds": 0.0})
    assert now() == state_hash(weights)
    with torch.no_grad():
        own = []
        for row in range(len(held.rows)):
            example = held.rows.encoded.example(row)
            ids = torch.from_numpy(np.asarray(example.input_ids, dtype=np.int64))[None]
            table = torch.log_softmax(base(ids).logits[0, :-1].double(), dim=-1)
            token = -table.gather(1, ids[0, 1:, None])[:, 0].numpy()
            own.append(token[np.asarray(example.labels_mask)[1:]].mean())
    assert untrained.loss_micro == pytest.approx(np.mean(own), rel=1e-5)
    assert untrained.by_domain["third"] == pytest.approx(np.mean([own[i] for i in (0, 3, 6, 9)]), rel=1e-5)
    assert abs(first.loss_micro - untrained.loss_micro) > 1e-3


class _Heard(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, line: str) -> None:
        self.warnings.append(line)
