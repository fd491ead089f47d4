"""``train`` from the command line: the demo's model on eight rows that a run has chosen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from spice_select.cli.console import ConsoleReporter
from spice_select.config import load_config
from spice_select.data.encoded import Example
from spice_select.demo import demo_model_path, demo_rows
from spice_select.features.heldout import read_heldout_rows
from spice_select.pool import read_pool
from spice_select.reporter import Clock, Silent
from spice_select.training.card import render_model_card
from spice_select.training.record import TrainRecord
from spice_select.training.subset import examples_digest, used_template
from spice_select.training.train import train
from tests import train_ranks
from tests.integration.command import Command
from tests.integration.rows import write_jsonl
from tests.proxies import own_loss
from tests.support import ROOT

pytest.importorskip("trl", reason="needs the train extra")
pytestmark = pytest.mark.filterwarnings("default")  # TRL and its own dependencies warn as they please
FAST = ("--epochs", "1", "--lr", "1e-2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("train")
    write_jsonl(made / "rows.jsonl", demo_rows(seed=3)[:24])
    held = [{**row, "subtask": "even" if i % 2 else "o|dd <b>"} for i, row in enumerate(demo_rows(seed=8)[:6])]
    write_jsonl(made / "held.jsonl", held)
    return made


@pytest.fixture
def run(command: Command, folder: Path) -> Path:
    """A finished run of SPICE; made once."""
    out = folder / "picked"
    if not out.exists():
        done = command(
            *("run", folder / "rows.jsonl", "-m", demo_model_path(), "-b", "8", "-o", out, "-q"),
            *("--set", "gradients.dim=64"),
        )
        assert done.code == 0, done.err
    return out


@pytest.fixture
def adapters(command: Command, folder: Path, run: Path) -> Path:
    """Adapters that were trained to the end; made once."""
    out = folder / "adapters"
    if not out.exists():
        done = command("train", run, "--output", out, *FAST, "--heldout", folder / "held.jsonl")
        assert done.code == 0, done.err
        assert "Held-out loss" in done.out and "PeftModel.from_pretrained" in done.out
        assert "Tokenizer and chat template are those of the selection" in done.err
        assert "the proxy of the run" in done.err
    return out


def picks(run: Path) -> list[Example]:
    """What the run encoded, of the rows that it chose."""
    pool = read_pool(load_config(run / "config.yaml"), Silent(), Clock())
    record = json.loads((run / "selection.json").read_text())
    assert pool.encoded.digest == record["fingerprints"]["encoded"]
    chosen = sorted(pq.read_table(run / "trace.parquet").column("index").to_pylist())
    return [pool.encoded.example(index) for index in chosen]


def heldout_means(folder: Path, run: Path, model: Any) -> dict[str, float]:
    """Held-out losses by an ordinary forward pass of each row."""
    config = load_config(run / "config.yaml", values={"training": {"heldout": [str(folder / "held.jsonl")]}})
    rows = read_heldout_rows(config, AutoTokenizer.from_pretrained(demo_model_path()), Silent())
    found: dict[str, list[float]] = {}
    with torch.no_grad():
        for index, name in enumerate(rows.subtasks):
            one = rows.encoded.example(index)
            found.setdefault(name, []).append(float(own_loss(model, one.input_ids, one.labels_mask)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()


def test_the_first_loss_is_that_of_the_tokens_that_the_run_measured(run: Path, adapters: Path) -> None:
    record, examples = TrainRecord.read(adapters / "training.json"), picks(run)
    assert record.subset.digest == examples_digest(examples) and record.subset.read_from == "sources"
    assert (record.subset.rows, record.subset.pool, record.subset.same_encoding) == (8, 24, True)
    assert record.steps == 2 and len(record.history) == 2
    model, counts = base(), np.array([int(one.labels_mask.sum()) for one in examples])
    with torch.no_grad():
        losses = np.array([float(own_loss(model, one.input_ids, one.labels_mask)) for one in examples])
    # The first batch is one of the sets of four; the two losses before any step are those of some split.
    single = train(
        run, adapters.parent / "one", Silent(), settings={"max_steps": 1, "batch_size": 8, "lr": 1e-3}, seed=4
    )
    assert single is not None and single.record.seed == 4
    assert single.record.first_loss == pytest.approx(float(np.dot(losses, counts) / counts.sum()), abs=1e-4)
    assert record.subset.response_tokens == counts.sum()


def test_loaded_again_the_adapters_have_the_losses_of_the_record(folder: Path, run: Path, adapters: Path) -> None:
    names = {entry.name for entry in adapters.iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter_config.json", "README.md", "training.json", "tokenizer.json"}
    assert "checkpoints" not in names and not any(name.endswith(".tmp") for name in names)
    found = TrainRecord.read(adapters / "training.json").heldout
    assert found is not None and found.domains == {"o|dd <b>": 3, "even": 3} and found.trained_on == 0
    model = PeftModel.from_pretrained(base(), str(adapters)).eval()
    after = heldout_means(folder, run, model)
    before = heldout_means(folder, run, base())
    for name in found.domains:
        assert found.before.by_domain[name] == pytest.approx(before[name], abs=1e-5)
        assert found.after.by_domain[name] == pytest.approx(after[name], abs=1e-5)
        assert abs(before[name] - after[name]) > 1e-4
    settings = json.loads((adapters / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(demo_model_path()) and settings["r"] == 16
    assert AutoTokenizer.from_pretrained(adapters).chat_template


def test_the_card_says_what_it_is(folder: Path, adapters: Path) -> None:
    card = (adapters / "README.md").read_text("utf-8")
    record = TrainRecord.read(adapters / "training.json")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft" and "base_model" not in front and "datasets" not in front
    assert "8 of 24 rows, chosen by SPICE" in card and record.subset.digest in card and "96" in card
    assert "| o\\|dd \\<b\\> |" in card and "<b>" not in card.replace("\\<b\\>", "")
    assert str(folder) not in card
    hub = record.model_copy(
        update={
            "mode": "full",
            "model": record.model.model_copy(update={"name": "ann/small", "local": False, "revision": "main"}),
            "subset": record.subset.model_copy(
                update={"sources": (record.subset.sources[0].model_copy(update={"hub": "ann/rows"}),), "method": "a*b*"}
            ),
        }
    )
    card = render_model_card(hub, 'my "model" `x` {{ 7 * 7 }}\n---')
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "ann/small" and front["library_name"] == "transformers"
    assert front["datasets"] == ["ann/rows"] and "49" not in card.split("## What")[0] and "a\\*b\\*" in card
    assert card.count("```") == 2


def test_the_same_command_again_trains_nothing_and_another_is_refused(
    command: Command, folder: Path, run: Path, adapters: Path
) -> None:
    weights = (adapters / "adapter_model.safetensors").read_bytes()
    same = ("train", run, "--output", adapters, "--heldout", folder / "held.jsonl")
    again = command(*same, *FAST, "--resume")
    assert again.code == 0 and "nothing was trained" in again.out
    said = command.refused(4, *same, "--epochs", "1", "--lr", "1e-3")
    assert "training.lr was 0.01 and is now 0.001" in said and "--overwrite" in said
    assert "seed was 0 and is now 9" in command.refused(4, *same, *FAST, "--seed", "9")
    assert "the rows was" in command.refused(4, *same, *FAST, "--all-rows")
    assert (adapters / "adapter_model.safetensors").read_bytes() == weights


def test_all_weights_and_all_rows(command: Command, folder: Path, run: Path) -> None:
    out = folder / "whole"
    said = command.json(
        *("train", run, "-o", out, "--full", "--all-rows", "--max-steps", "2", "--lr", "1e-3"),
        *("--heldout", folder / "held.jsonl", "--keep-checkpoints", "--batch-size", "6"),
    )
    record = TrainRecord.model_validate(said)
    assert record.mode == "full" and record.subset.whole_pool and record.subset.rows == record.subset.usable
    assert record.steps == 2 and record.heldout is not None
    assert "model.safetensors" in record.files and "config.json" in record.files
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert heldout_means(folder, run, model) == pytest.approx(record.heldout.after.by_domain, abs=1e-5)
    assert (out / "checkpoints" / "checkpoint-2" / "sealed.json").is_file()
    # Adapters take the place of a whole model, and leave nothing of it behind.
    assert command("train", run, "-o", out, *FAST, "--overwrite", "-q").code == 0
    names = {entry.name for entry in out.iterdir()}
    assert "adapter_model.safetensors" in names and not names & {"model.safetensors", "config.json", "checkpoints"}


def test_without_its_sources_a_run_trains_on_its_own_rows(
    command: Command, folder: Path, run: Path, adapters: Path, tmp_path: Path
) -> None:
    source = folder / "rows.jsonl"
    before = source.read_bytes()
    digest = TrainRecord.read(adapters / "training.json").subset.digest
    try:
        source.write_bytes(before.splitlines(keepends=True)[0] + before)
        changed = command("train", run, "-o", tmp_path / "a", "--max-steps", "1", "--json")
        assert changed.code == 0 and "have changed since the run" in changed.err
        found = TrainRecord.model_validate_json(changed.out)
        assert found.subset.read_from == "data" and found.subset.digest == digest and found.warnings
        assert "have changed" in command.refused(4, "train", run, "-o", tmp_path / "b", "--all-rows")
        assert not (tmp_path / "b" / "training.json").exists()
    finally:
        source.write_bytes(before)


@pytest.mark.parametrize("template", ["own", "none"])
def test_another_model_has_its_own_template(run: Path, tmp_path: Path, template: str) -> None:
    target = tmp_path / "target"
    shutil.copytree(demo_model_path(), target)
    own = target / "chat_template.jinja"
    if template == "own":
        own.write_text(own.read_text().replace("<|user|>", "Q:").replace("<|assistant|>", "A:") + "{# other #}")
    else:
        own.unlink()

    class Told(Silent):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def note(self, line: str) -> None:
            self.lines.append(line)

    told = Told()
    result = train(run, tmp_path / "out", told, model=str(target), settings={"max_steps": 1, "batch_size": 8})
    assert result is not None and not result.record.subset.same_encoding
    words = "its own chat template is used" if template == "own" else "the plain one is used"
    assert any(words in line for line in told.lines)
    assert "by the model's own tokenizer" in (tmp_path / "out" / "README.md").read_text()
    # What the tokenizer now renders is what was trained on.
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert saved.chat_template == used_template(tokenizer, None)
    row = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rendered = saved.apply_chat_template(row, tokenize=False)
    assert ("### User:\nHi" in rendered) == (template == "none")


def test_cut_off_by_hand_it_goes_on(
    command: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, given = tmp_path / "out", ("--epochs", "2", "--lr", "1e-2", "--set", "training.save_steps=1", "--heldout")
    held = run.parent / "held.jsonl"
    straight = tmp_path / "straight"
    assert command("train", run, "-o", straight, *given, held, "-q").code == 0

    def stop(self: Any, done: int, *args: Any) -> None:
        if done >= 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleReporter, "advance", stop)
        outcome = command("train", run, "-o", out, *given, held)
        assert outcome.code == 130 and "the same command takes up the work" in outcome.err
    assert {entry.name for entry in out.iterdir()} == {"checkpoints", ".lock"}
    said = command.refused(4, "train", run, "-o", out, *given, held, "--batch-size", "2")
    assert "training.batch_size was 4 and is now 2" in said
    done = command("train", run, "-o", out, *given, held)
    assert done.code == 0 and "Going on from checkpoint-2" in done.err
    ended, expected = (load_file(place / "adapter_model.safetensors") for place in (out, straight))
    assert ended.keys() == expected.keys() and all(torch.equal(ended[name], expected[name]) for name in expected)
    assert TrainRecord.read(out / "training.json").history == TrainRecord.read(straight / "training.json").history


def test_killed_it_goes_on_and_two_processes_end_where_one_does(run: Path, tmp_path: Path) -> None:
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.train_ranks", str(run), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {entry.name for entry in (tmp_path / "killed").iterdir()} == {"checkpoints", ".lock"}
    straight, alone = [
        train(run, tmp_path / name, Silent(), settings=train_ranks.SETTINGS, overrides=overrides)
        for name, overrides in (("straight", train_ranks.DROPOUT), ("alone", train_ranks.OVERRIDES))
    ]
    killed = train(run, tmp_path / "killed", Silent(), settings=train_ranks.SETTINGS, overrides=train_ranks.DROPOUT)
    assert straight is not None and alone is not None and killed is not None and not killed.repeated
    ended, expected = (load_file(one.folder / "adapter_model.safetensors") for one in (killed, straight))
    assert all(torch.equal(ended[name], expected[name]) for name in expected)
    shared = TrainRecord.read(tmp_path / "shared" / "training.json")
    assert shared.processes == 2 and shared.steps == alone.record.steps == 4
    for name in ("loss", "grad_norm"):
        own = [getattr(step, name) for step in alone.record.history]
        assert [getattr(step, name) for step in shared.history] == pytest.approx(own, abs=1e-5), name
    ended, expected = (load_file(place / "adapter_model.safetensors") for place in (tmp_path / "shared", alone.folder))
    apart = torch.cat([(ended[name] - value).abs().flatten() for name, value in expected.items()])
    # Adam divides by the size of the gradient: where that is of the order of rounding, so is the direction of the step.
    assert (apart > 1e-5).float().mean() < 1e-3 and apart.max() < 4e-3


def test_what_cannot_be_trained_is_one_sentence(command: Command, run: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--output" in command.refused(2, "train", run)
    assert "cannot go together" in command.refused(2, "train", run, "-o", out, "--resume", "--overwrite")
    assert "is finished" in command.refused(2, "train", run, "-o", out, "--set", "selection.budget=3")
    assert "--model" in command.refused(2, "train", run, "-o", out, "--set", "model.name=x")
    assert "training.lrr" in command.refused(2, "train", run, "-o", out, "--set", "training.lrr=3")
    assert "no folder" in command.refused(3, "train", tmp_path / "nowhere", "-o", out)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(run / "config.yaml", unfinished)
    assert "no finished selection" in command.refused(3, "train", unfinished, "-o", out)
    assert "no training has left" in command.refused(4, "train", run, "-o", run)
    (tmp_path / "file").write_text("")
    assert "is a file" in command.refused(4, "train", run, "-o", tmp_path / "file")
    assert "does not exist" in command.refused(3, "train", run, "-o", out, "-m", "./nowhere")
    held = ("--heldout", tmp_path / "missing.jsonl")
    assert "missing.jsonl" in command.refused(3, "train", run, "-o", out, *held)
    half = command.refused(2, "train", run, "-o", out, "--full", "--set", "model.dtype=bfloat16")
    assert "'full' with weights in bfloat16" in half
    # Nothing was trained yet, and so nothing is in the way of other settings.
    assert command("train", run, "-o", out, "--max-steps", "1", "-q").code == 0
    merged = command.refused(2, "train", run, "-o", out, "--set", f"model.adapter={folder}")
    assert "model.adapter" in merged
    assert "diverged" in command.refused(3, "train", run, "-o", out, "--lr", "1e30", "--overwrite")


def test_held_out_rows_that_were_trained_on_are_told(run: Path, folder: Path, tmp_path: Path) -> None:
    result = train(run, tmp_path / "out", Silent(), settings={"max_steps": 1, "heldout": (str(folder / "rows.jsonl"),)})
    assert result is not None and result.record.heldout is not None
    assert result.record.heldout.trained_on >= 8
    assert any("were trained on as well" in line for line in result.record.warnings)
