"""The real command line with a proxy that learns: pools, warm-up, memory, resume, refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from spice_select import select_gram
from spice_select.schedule.log import PoolEntry
from spice_select.schedule.pools import PoolSchedule
from spice_select.schedule.trainer import ProxyTrainer
from tests.integration.command import Command

POOLS = (
    *("--schedule", "pools", "--set", "schedule.pool_size=12", "--set", "schedule.interval=1"),
    *("--set", "schedule.lora.r=2", "--set", "schedule.batch_size=2"),
)


def lines(folder: Path) -> list[PoolEntry]:
    text = (folder / "schedule" / "log.jsonl").read_text().splitlines()[1:]
    return [PoolEntry.model_validate(json.loads(line)["entry"]) for line in text]


@pytest.fixture
def pools(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> Path:
    out = tmp_path / "pools"
    outcome = command("run", rows_file, "-m", model, "--budget", "20%", "--output", out, *POOLS)
    assert outcome.code == 0, outcome.err
    assert "pool 4/4" in outcome.err
    assert "offered in 4 pools" in outcome.out
    return out


def test_every_row_is_offered_once_and_the_budget_comes_out(pools: Path, tmp_path: Path) -> None:
    entries = lines(pools)
    assert [len(entry.rows) for entry in entries] == [12, 12, 12, 4]
    assert sorted(row for entry in entries for row in entry.rows) == list(range(40))
    assert [len(entry.picks) for entry in entries] == [2, 3, 2, 1]
    assert all(set(entry.picks) <= set(entry.rows) for entry in entries)
    record = json.loads((pools / "selection.json").read_text())
    assert (record["k"], record["usable"], record["certificate"]) == (8, 40, None)
    schedule = record["schedule"]
    assert (schedule["kind"], schedule["offered"], schedule["kept"]) == ("pools", 40, 0.2)
    # Steps of batch 2 on 2, 3 and 2 picks; after the last pool there is nothing left to train for.
    assert [training["steps"] for training in schedule["trainings"]] == [1, 2, 1]
    assert [pool["step"] for pool in schedule["pools"]] == [0, 1, 3, 4]
    assert all(0 < pool["certificate"] <= 1 for pool in schedule["pools"])
    assert record["summary"]["activity"]["pools"] == 4
    chosen = datasets.load_dataset(str(pools), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(chosen["spice_index"]) == [row for entry in entries for row in entry.picks]
    assert (pools / "report.html").stat().st_size > 10_000


def test_the_kept_products_are_those_that_the_log_speaks_of(pools: Path) -> None:
    for entry in lines(pools):
        gram = np.load(pools / "schedule" / "gram" / f"{entry.pool:06d}.npy", allow_pickle=False)
        np.testing.assert_allclose(np.diagonal(gram), np.array(entry.squared_norms, dtype=float))
        assert np.array_equal(gram, gram.T)


def test_plain_settings_give_the_plain_answer(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain"
    assert command("run", rows_file, "-m", model, "-b", "8", "-o", out, "--preset", "paper", *POOLS).code == 0
    for entry in lines(out):
        gram = np.load(out / "schedule" / "gram" / f"{entry.pool:06d}.npy", allow_pickle=False)
        again = select_gram(gram, len(entry.picks), alpha=1.0, conflict_weight=0.1)
        assert [entry.rows[index] for index in again.indices] == list(entry.picks)
        np.testing.assert_array_equal(again.gains, entry.gains)


def test_the_same_command_again_changes_nothing(pools: Path, command: Command, model: Path, rows_file: Path) -> None:
    before = (pools / "schedule" / "log.jsonl").read_bytes()
    again = command("run", "--config", pools / "config.yaml")
    assert again.code == 0, again.err
    assert "Taken up after pool 4 of 4" in again.err
    assert (pools / "schedule" / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("point", ["pool", "train", "append"])
def test_a_run_that_died_goes_on_to_the_same_log(
    pools: Path,
    command: Command,
    model: Path,
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    """Dies at every place of one kind in turn, and is started again each time."""
    whole = (pools / "schedule" / "log.jsonl").read_bytes()
    out = tmp_path / "dying"
    calls, deaths = 0, 0

    class Died(BaseException):
        pass

    kind, name = {"pool": (PoolSchedule, "_measure"), "train": (ProxyTrainer, "train"), "append": (os, "fsync")}[point]
    real = getattr(kind, name)

    def dying(*args: object, **keywords: object) -> object:
        nonlocal calls
        calls += 1
        # The second call of every life does not come back.
        if calls == 2 and deaths < 6:
            raise Died
        return real(*args, **keywords)

    while True:
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, dying)
            try:
                outcome = command("run", rows_file, "-m", model, "--budget", "20%", "--output", out, *POOLS)
            except Died:
                deaths += 1
                continue
        assert outcome.code == 0, outcome.err
        break
    assert deaths >= 2
    assert (out / "schedule" / "log.jsonl").read_bytes() == whole


def test_a_lost_or_broken_checkpoint_is_made_again(
    pools: Path, command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    """The proxy after some pools follows from the log alone."""
    log = pools / "schedule" / "log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    (pools / "selection.json").unlink()
    for checkpoint in (pools / "schedule" / "proxy").glob("after-*"):
        weights = checkpoint / "adapter" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    outcome = command("run", rows_file, "-m", model, "--budget", "20%", "--output", pools, *POOLS)
    assert outcome.code == 0, outcome.err
    assert log.read_bytes() == whole


def test_a_stop_ratio_keeps_a_share_that_is_reported(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    kept = {}
    for ratio in ("0.9", "0.3"):
        out = tmp_path / ratio
        record = command.json(
            *("run", rows_file, "-m", model, "-o", out, "--preset", "paper"),
            *(*POOLS, "--set", f"selection.stop_ratio={ratio}"),
        )
        assert record["stop_reason"] == "stop_ratio"
        kept[ratio] = record["schedule"]["kept"]  # type: ignore[index]
        for entry in lines(out):
            assert all(gain > float(ratio) * entry.gains[0] for gain in entry.gains[1:])
    assert 0 < kept["0.9"] < kept["0.3"] < 1


def test_memory_of_earlier_pools_counts(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    """Where all rows come twice, a pool with memory gains less than one without."""
    twice = tmp_path / "twice.jsonl"
    twice.write_text(rows_file.read_text() * 2)
    gains = {}
    for memory in ("none", "sketch"):
        out = tmp_path / memory
        outcome = command(
            *("run", twice, "-m", model, "-b", "20", "-o", out, *POOLS),
            *("--set", f"schedule.memory={memory}", "--set", "schedule.learning_rate=1e-9"),
            *("--set", "schedule.pool_size=40"),
        )
        assert outcome.code == 0, outcome.err
        gains[memory] = [entry.information for entry in lines(out)]
    assert gains["sketch"][1] < 0.9 * gains["none"][1]
    assert (tmp_path / "sketch" / "schedule" / "memory.f32").stat().st_size == 20 * 8192 * 4
    record = json.loads((tmp_path / "sketch" / "selection.json").read_text())
    assert "with a memory of earlier pools" in record["schedule"]["gram"]


def test_a_memory_survives_a_crash(
    command: Command, model: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: Path) -> int:
        extra = ("--set", "schedule.memory=sketch", "--set", "schedule.memory_rows=2")
        return command("run", rows_file, "-m", model, "-b", "8", "-o", out, *POOLS, *extra).code

    assert run(tmp_path / "whole") == 0

    class Died(BaseException):
        pass

    def dying(*args: object, **keywords: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        # Dies after the third pool's rows are remembered, before its line is in the log.
        real, calls = PoolSchedule._choose, []

        def third(self: PoolSchedule, *args: object) -> object:
            entry = real(self, *args)  # type: ignore[arg-type]
            calls.append(entry)
            if len(calls) == 3:
                raise Died
            return entry

        patch.setattr(PoolSchedule, "_choose", third)
        with pytest.raises(Died):
            run(tmp_path / "died")
    assert run(tmp_path / "died") == 0
    for name in ("log.jsonl", "memory.f32"):
        assert (tmp_path / "died/schedule" / name).read_bytes() == (tmp_path / "whole/schedule" / name).read_bytes()


def test_pools_run_on_full_layers(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    record = command.json(
        *("run", rows_file, "-m", model, "-b", "4", "--limit", "24", "-o", tmp_path / "full", *POOLS),
        *("--set", "schedule.scope=full"),
    )
    assert record["schedule"]["gram"] == "exact over 28 layers"  # type: ignore[index]
    record = command.json(
        *("run", rows_file, "-m", model, "-b", "4", "--limit", "24", "-o", tmp_path / "fold", *POOLS),
        *("--set", "schedule.scope=full", "--set", "schedule.gram_bytes=1048576"),
    )
    assert record["schedule"]["gram"] == "fold, D = 8,192"  # type: ignore[index]


def test_a_warm_up_is_kept_and_part_of_the_gradients_identity(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "warm"
    args = ("run", rows_file, "-m", model, "-b", "8", "--set", "gradients.dim=256", "--set", "schedule.lora.r=2")
    cold = command("run", rows_file, "-m", model, "-b", "8", "-o", tmp_path / "cold", "--set", "gradients.dim=256")
    first = command(*args, "-o", out, "--warmup-steps", "6")
    assert (cold.code, first.code) == (0, 0), first.err
    assert "6 optimiser steps on 24 rows" in first.err
    assert (out / "schedule" / "warm-up" / "adapter" / "adapter_model.safetensors").is_file()
    manifests = [json.loads((tmp_path / name / "gradients/manifest.json").read_text()) for name in ("cold", "warm")]
    assert "warm_up" not in manifests[0]["sources"]
    assert len(manifests[1]["sources"]["warm_up"]) == 64
    record = json.loads((out / "selection.json").read_text())
    assert record["schedule"]["trainings"][0]["steps"] == 6
    again = command(*args, "-o", out, "--warmup-steps", "6")
    assert again.code == 0, again.err
    assert "Took up the warm-up of 6 steps" in again.err
    assert "reused 1" in again.err
    other = command.refused(4, *args, "-o", out, "--warmup-steps", "7")
    assert "schedule.warmup_steps was 6 and is now 7" in other


def test_a_warm_up_by_share_sees_each_row_once(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    outcome = command(
        *("run", rows_file, "-m", model, "-b", "8", "-o", tmp_path / "out", "--warmup-steps", "25%"),
        *("--set", "gradients.dim=256", "--set", "schedule.scope=full"),
    )
    assert outcome.code == 0, outcome.err
    assert "3 optimiser steps on 10 rows" in outcome.err
    assert (tmp_path / "out/schedule/warm-up/weights.safetensors").is_file()


def test_a_proxy_that_diverges_names_the_pool_and_keeps_what_was_done(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "diverging"
    with np.errstate(all="ignore"):
        said = command.refused(
            *(3, "run", rows_file, "-m", model, "-b", "8", "-o", out, *POOLS),
            *("--set", "schedule.learning_rate=1e30", "--set", "schedule.max_grad_norm=1e30"),
        )
    assert "The proxy diverged at pool 2 of 4" in said or "The proxy diverged at pool 3 of 4" in said
    assert "kept in the selection log" in said
    assert "schedule.learning_rate below 1e+30" in said
    assert len(lines(out)) >= 1
    assert not (out / "selection.json").exists()


@pytest.mark.parametrize(
    ("settings", "code", "sentence"),
    [
        (("selection.fisher=released",), 2, "needs gradients by coordinate"),
        (("schedule.pool_size=0",), 2, "schedule.pool_size"),
        (("schedule.kind=ponds",), 2, "schedule.kind"),
        (("schedule.tracker=tensorbored",), 2, "did you mean 'tensorboard'?"),
        (("schedule.warmup_steps=3", "schedule.warmup_share=0.5"), 2, "not both"),
        (("schedule.lora.r=0",), 2, "schedule.lora.r"),
        (("schedule.intervall=3",), 2, "did you mean 'schedule.interval'?"),
        (("selection.groups=source", "selection.quotas={rows: {min: 3}}"), 2, "pool by pool"),
    ],
)
def test_what_pools_cannot_do_is_one_sentence(
    command: Command, model: Path, rows_file: Path, tmp_path: Path, settings: tuple[str, ...], code: int, sentence: str
) -> None:
    extra = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "none"
    assert sentence in command.refused(code, "run", rows_file, "-m", model, "-b", "8", "-o", out, *POOLS, *extra)
    assert not out.exists()


def test_a_collect_has_no_pools(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    said = command.refused(
        2, "collect", rows_file, "-m", model, "-o", tmp_path / "none", "--set", "schedule.kind=pools"
    )
    assert "use 'spice-select run'" in said


def test_other_settings_or_rows_are_refused(
    pools: Path, command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    said = command.refused(
        4, "run", rows_file, "-m", model, "-b", "20%", "-o", pools, *POOLS, "--set", "schedule.pool_size=10"
    )
    assert "schedule.pool_size was 12 and is now 10" in said
    changed = tmp_path / "rows.jsonl"
    changed.write_text(rows_file.read_text())
    out = tmp_path / "changing"
    assert command("run", changed, "-m", model, "-b", "20%", "-o", out, *POOLS).code == 0
    changed.write_text("".join(rows_file.read_text().splitlines(keepends=True)[::-1]))
    said = command.refused(4, "run", changed, "-m", model, "-b", "20%", "-o", out, *POOLS)
    assert "other rows, another model or other settings" in said


def test_tensorboard_hears_of_every_pool(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "tracked"
    outcome = command(
        "run", rows_file, "-m", model, "-b", "8", "-o", out, *POOLS, "--set", "schedule.tracker=tensorboard"
    )
    assert outcome.code == 0, outcome.err
    events = event_accumulator.EventAccumulator(str(out / "schedule" / "tracker" / "spice-select"))
    events.Reload()
    assert [event.step for event in events.Scalars("pool/loss")] == [1, 2, 3, 4]
    assert sum(event.value for event in events.Scalars("pool/picks")) == 8
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2, 3]


def test_the_global_random_state_is_left_alone(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert command("run", rows_file, "-m", model, "-b", "8", "-o", tmp_path / "out", *POOLS, "--limit", "24").code == 0
    assert torch.equal(torch.rand(1), expected)
