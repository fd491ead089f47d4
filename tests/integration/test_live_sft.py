"""A live selection in a real SFTTrainer run: gradients of which weights, rows in which order, and how it goes on."""

from __future__ import annotations

import math
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spice_select.errors import ConfigError, ModelError, OutputError, StoreMismatch
from spice_select.training import LiveSelection, read_live
from spice_select.training.live_measure import LiveGradients
from tests.live_runs import Snapshots, attached, expected_picks, fed, model_of, new_trainer, rows
from tests.support import ROOT

pytest.importorskip("trl")


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        # Each pool's four picks are two steps of two; three pools.
        ({"learning_rate": 0.0}, [0, 2, 4]),
        ({}, [0, 2, 4]),
        # One step takes four picks in two batches.
        ({"gradient_accumulation_steps": 2}, [0, 1, 2]),
        # A step of three takes its last two rows from the next pool.
        ({"per_device_train_batch_size": 3}, [0, 1, 2]),
    ],
)
def test_picks_are_those_of_the_weights_after_the_last_step(
    tmp_path: Path, kind: str, settings: dict[str, Any], steps: list[int]
) -> None:
    snapshots = Snapshots()
    trainer = new_trainer(tmp_path, model_of(kind), callbacks=[snapshots], **settings)
    batches = fed(trainer)
    live = attached(trainer, conflict_weight=0.5)
    trainer.train()
    data = rows()
    assert [pool.step for pool in live.log] == steps
    fresh = model_of(kind)
    for pool in live.log:
        assert list(pool.picks) == expected_picks(fresh, snapshots.weights, data, pool, 0.5)
    # Every row is offered once, and what was picked is what was trained on, in that order.
    assert sorted(row for pool in live.log for row in pool.rows) == list(range(30))
    assert [ids for batch in batches for ids in batch] == [data[row]["input_ids"] for row in live.picks]
    args = trainer.args
    together = args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert len(live.picks) == 12
    assert trainer.state.global_step == trainer.state.max_steps == math.ceil(12 / together)
    moved = any(
        not torch.equal(value, snapshots.weights[0][name])
        for name, value in snapshots.weights[trainer.state.global_step].items()
    )
    assert moved == (args.learning_rate > 0)


def test_an_interval_measures_several_pools_at_the_same_weights(tmp_path: Path) -> None:
    snapshots = Snapshots()
    trainer = new_trainer(tmp_path, model_of("lora"), callbacks=[snapshots])
    live = attached(trainer, interval=2)
    trainer.train()
    assert [pool.step for pool in live.log] == [0, 0, 4]
    for pool in live.log:
        assert list(pool.picks) == expected_picks(model_of("lora"), snapshots.weights, rows(), pool, 0.1)


def test_epochs_are_shuffled_anew_and_counted(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, model_of("lora"), rows(25), num_train_epochs=2, lr_scheduler_type="linear")
    live = attached(trainer, keep=None, share="20%")
    trainer.train()
    # Five of 25 in each epoch, two of each pool of ten and one of the last five: three steps of two.
    assert [(pool.epoch, pool.pool, len(pool.rows), len(pool.picks)) for pool in live.log] == [
        (0, 0, 10, 2), (0, 1, 10, 2), (0, 2, 5, 1), (1, 0, 10, 2), (1, 1, 10, 2), (1, 2, 5, 1),
    ]  # fmt: skip
    orders = [[row for pool in live.log if pool.epoch == epoch for row in pool.rows] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(25))
    assert trainer.state.global_step == trainer.state.max_steps == 6
    assert trainer.state.num_train_epochs == 2
    logged = [entry for entry in trainer.state.log_history if "spice/kept" in entry]
    assert len(logged) == 1
    assert logged[0]["spice/kept"] == 10
    assert logged[0]["spice/offered"] == 50
    assert logged[0]["spice/pools"] == 6
    assert logged[0]["spice/seconds"] > 0


def test_the_first_loss_is_that_of_the_measured_rows(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, model_of("full"), per_device_train_batch_size=4)
    live = attached(trainer)
    trainer.train()
    first = live.log[0]
    data = rows()
    losses = dict(zip(first.rows, first.losses, strict=True))
    tokens = {row: sum(label != -100 for label in data[row]["labels"][1:]) for row in first.picks}
    mean = sum((losses[row] or 0) * tokens[row] for row in first.picks) / sum(tokens.values())
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    # The trainer rounds what it logs.
    assert logged == pytest.approx(mean, abs=1e-4)


# The sixth step ends the first epoch; the fifth is in the midst of a pool.
@pytest.mark.parametrize(("kind", "stop_before"), [("lora", 5), ("full", 6), ("lora", 9)])
def test_a_run_that_was_cut_off_goes_on_with_the_same_picks(tmp_path: Path, kind: str, stop_before: int) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2, "lr_scheduler_type": "cosine"}
    whole = Snapshots()
    trainer = new_trainer(tmp_path / "whole", model_of(kind), callbacks=[whole], **settings)
    undisturbed = attached(trainer)
    trainer.train()
    assert trainer.state.global_step == 12
    cut = new_trainer(tmp_path / "cut", model_of(kind), callbacks=[Snapshots(stop_before)], **settings)
    attached(cut)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = Snapshots()
    resumed = new_trainer(tmp_path / "cut", model_of(kind), callbacks=[again], **settings)
    live = attached(resumed)
    batches = fed(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert live.picks == undisturbed.picks
    assert [pool.step for pool in live.log] == [pool.step for pool in undisturbed.log]
    assert [pool.gains for pool in live.log] == [pool.gains for pool in undisturbed.log]
    trained = [ids for batch in batches for ids in batch]
    assert trained == [rows()[row]["input_ids"] for row in live.picks[2 * stop_before :]]
    assert all(torch.equal(value, again.weights[12][name]) for name, value in whole.weights[12].items())


def test_a_checkpoint_of_another_selection_is_refused(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    trainer = new_trainer(tmp_path, model_of("lora"), max_steps=2, **settings)
    attached(trainer)
    trainer.train()
    other = new_trainer(tmp_path, model_of("lora"), **settings)
    attached(other, conflict_weight=0.9)
    with pytest.raises(StoreMismatch, match="other settings"):
        other.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-2" / "live.jsonl").unlink()
    same = new_trainer(tmp_path, model_of("lora"), **settings)
    attached(same)
    with pytest.raises(OutputError, match="not there"):
        same.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_dropout_checkpointing_and_autocast_change_no_first_pick(tmp_path: Path) -> None:
    plain = new_trainer(tmp_path / "plain", model_of("lora"))
    expected = attached(plain)
    plain.train()
    model = model_of("lora", dropout=0.5)
    trainer = new_trainer(
        tmp_path / "all", model, gradient_checkpointing=True, bf16=True, gradient_accumulation_steps=2
    )
    live = attached(trainer)
    trainer.train()
    assert live.log[0].picks == expected.log[0].picks
    assert live.log[0].squared_norms == expected.log[0].squared_norms
    assert len(live.picks) == 12
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families(tmp_path: Path, family: str) -> None:
    snapshots = Snapshots()
    trainer = new_trainer(tmp_path, model_of("lora", family), callbacks=[snapshots])
    live = attached(trainer)
    trainer.train()
    fresh = model_of("lora", family)
    for pool in live.log:
        assert list(pool.picks) == expected_picks(fresh, snapshots.weights, rows(), pool, 0.1)


def test_weights_of_half_precision(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, model_of("full").to(torch.bfloat16), bf16=True)
    live = attached(trainer)
    trainer.train()
    assert len(live.picks) == 12
    assert all(gain > 0 for pool in live.log for gain in pool.gains)


def test_the_log_is_saved_and_read(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, model_of("lora"))
    live = attached(trainer)
    with pytest.raises(ConfigError, match="nothing yet"):
        live.save(tmp_path / "early")
    with pytest.raises(ConfigError, match="belongs to one trainer"):
        LiveSelection().attach(trainer)
    trainer.train()
    live.save(tmp_path / "kept")
    assert tuple(read_live(tmp_path / "kept")) == live.log
    assert all(pool.seconds > 0 and len(pool.losses) == len(pool.rows) for pool in live.log)
    assert "exact" in live.log[0].gram


def test_a_second_training_starts_its_log_anew(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, model_of("lora"), learning_rate=0.0)
    live = attached(trainer)
    trainer.train()
    first = [pool.picks for pool in live.log]
    trainer.train()
    assert [pool.picks for pool in live.log] == first


def test_rows_without_trained_tokens_are_never_offered(tmp_path: Path) -> None:
    data = rows().to_dict()
    for number in (3, 11, 12):
        data["labels"][number] = [-100] * len(data["labels"][number])
    # A first token has nothing before it to predict it from.
    data["labels"][5] = [data["input_ids"][5][0]] + [-100] * (len(data["labels"][5]) - 1)
    trainer = new_trainer(tmp_path, model_of("lora"), type(rows()).from_dict(data))
    live = attached(trainer, share=0.5, keep=None)
    trainer.train()
    assert {row for pool in live.log for row in pool.rows} == set(range(30)) - {3, 5, 11, 12}
    assert len(live.picks) == 13
    assert trainer.state.global_step == 7


def test_everything_is_picked_at_a_share_of_one(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, model_of("lora"))
    live = LiveSelection(pool_size=7, share=1)
    live.attach(trainer)
    trainer.train()
    assert sorted(live.picks) == list(range(30))
    assert trainer.state.global_step == 15
    assert np.isfinite(trainer.state.log_history[-1]["spice/seconds"])


def unfinite(monkeypatch: pytest.MonkeyPatch, pools: dict[int, int]) -> None:
    """The first rows of some pools, counted as they come, have gradients of NaN."""
    measure = LiveGradients.measure
    calls = iter(range(100))

    def broken(self: LiveGradients, *args: Any) -> Any:
        found = measure(self, *args)
        bad = pools.get(next(calls), 0)
        found.gram[:bad], found.gram[:, :bad], found.losses[:bad] = np.nan, np.nan, np.nan
        return found

    monkeypatch.setattr(LiveGradients, "measure", broken)


def test_later_pools_make_up_for_broken_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinite(monkeypatch, {0: 8})
    trainer = new_trainer(tmp_path, model_of("lora"))
    live = attached(trainer)
    trainer.train()
    assert [len(pool.picks) for pool in live.log] == [2, 6, 4]
    assert live.log[0].losses[:8] == (None,) * 8
    assert trainer.state.global_step == 6


def test_picks_that_no_pool_could_give_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinite(monkeypatch, {2: 9})
    trainer = new_trainer(tmp_path, model_of("lora"))
    live = attached(trainer)
    with pytest.warns(UserWarning, match="3 of 12 picks are missing in epoch 1"):
        trainer.train()
    assert len(live.picks) == 9


def test_a_training_that_diverged_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinite(monkeypatch, {1: 10})
    trainer = new_trainer(tmp_path, model_of("lora"))
    live = attached(trainer)
    with pytest.raises(ModelError, match=r"diverged: at step 2 no gradient of pool 2 is finite .* below 0\.02"):
        trainer.train()
    assert [len(pool.picks) for pool in live.log] == [4]


def test_the_example_trains_on_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(
        sys, "argv", ["live_sft.py", "--demo-rows", "60", "--pool-size", "30", "--output", str(tmp_path / "run")]
    )
    with warnings.catch_warnings():
        # What the trainer says of a machine without an accelerator.
        warnings.filterwarnings("ignore", message=".*(pin_memory|gradient_checkpointing).*")
        runpy.run_path(str(ROOT / "examples" / "live_sft.py"), run_name="__main__")
    assert "Trained on 6 of 60 rows" in capsys.readouterr().out
    pools = read_live(tmp_path / "run")
    assert [len(pool.picks) for pool in pools] == [3, 3]
    # Three of the first pool and one of the second fill a batch of four: both are measured before the first step.
    assert [pool.step for pool in pools] == [0, 0]
