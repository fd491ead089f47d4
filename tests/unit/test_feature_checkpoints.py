"""Gradients at the checkpoints of a warm-up: what they are, that they are kept, and that kills leave no trace."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spice_select.config import GradientConfig
from spice_select.errors import ConfigError, DataError, ModelError
from spice_select.features import checkpoints as feature
from spice_select.features.bench import Bench
from spice_select.features.checkpoints import collect_checkpoints
from spice_select.features.target import TargetRows, read_target
from spice_select.gradients import GradientEngine
from spice_select.gradients.precondition import adam_direction
from spice_select.methods import Checkpoint, Inputs, Target
from spice_select.methods.length import Length
from spice_select.methods.less import Less
from spice_select.schedule.adapters import attach_adapters, trained_scope
from spice_select.schedule.trainer import ProxyTrainer
from spice_select.schedule.warmup import warmup_rows
from spice_select.selection.budget import Budget
from tests.benches import Told, family_proxy, make_bench
from tests.proxies import own_loss
from tests.stores import contents

# PEFT asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

ROWS = [{"prompt": f"Add {i} and {i % 4}.", "response": f"{i + i % 4} it is{'!' * (i % 3)}"} for i in range(18)]
TARGET = [
    {"prompt": "Add 2 and 2.", "response": "4 it is", "subtask": "sums"},
    {"prompt": "Say no.", "response": "No.", "subtask": "words"},
    {"prompt": "Add 7 and 1.", "response": "8 it is", "subtask": "sums"},
]
METHOD = Less(
    warmup_share=0.4, epochs=2, lora_r=4, lora_alpha=16.0, dropout=0.1, learning_rate=1e-2, batch_size=3, dim=128
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads of the parent are not there in a forked child; and sums of other threads are other sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bench_in(folder: Path, family: str = "llama", rows: Any = ROWS, **config: Any) -> Bench:
    """A bench that loads the proxy afresh each time, as a run does."""
    target = folder / "target.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(f"{row}\n".replace("'", '"') for row in TARGET))
    given = {"data": {"target": str(target), "max_length": 64}, "gradients": {"batch_tokens": 120, "shard_rows": 4}}
    bench = make_bench(folder, rows, proxy=family_proxy(family), reporter=Told(), **{**given, **config})

    def no_proxy() -> Any:
        raise AssertionError("the run's own proxy is not needed")

    bench.load, bench.load_base = no_proxy, lambda: family_proxy(family)
    return bench


def target_of(bench: Bench) -> TargetRows:
    return read_target(bench.config, bench.pool, bench.reporter, bench.clock)


def collected(bench: Bench, method: Any = METHOD, seed: int = 3) -> tuple[Checkpoint, ...]:
    return collect_checkpoints(bench, method, target_of(bench), seed=seed)


def kept(folder: Path) -> dict[str, bytes]:
    """All that measurements have left, but for the counts of passes, which remember interruptions."""
    files = {
        name: content
        for name, content in contents(folder).items()
        if not name.endswith((".lock", ".tmp")) and ("/" in name or not name.endswith(".json"))
    }
    assert files
    return files


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, tuple[Checkpoint, ...]]:
    bench = bench_in(tmp_path_factory.mktemp("undisturbed"))
    return bench, collected(bench)


def rows_of(checkpoint: Checkpoint, side: str = "rows") -> np.ndarray:
    rows = getattr(checkpoint, side)
    return np.asarray(rows.rows(np.arange(rows.shape[0])))


def test_they_are_what_a_training_by_hand_gives(undisturbed: tuple[Bench, tuple[Checkpoint, ...]]) -> None:
    """The same training without stores; then autograd, one example at a time, and the step by its definition."""
    bench, found = undisturbed
    schedule = feature.warm_schedule(METHOD)
    proxy = attach_adapters(family_proxy("llama"), schedule, 3)
    rows = warmup_rows(bench.pool.encoded.usable, schedule, 3)
    assert len(rows) == 7 and len(set(rows.tolist())) == 7
    trainer = ProxyTrainer(proxy, schedule, 3, 6, 120)
    scope = trained_scope(GradientConfig(dim=128), schedule)
    sketch = GradientEngine(proxy, scope).new_sketch()
    drawn = [bench.pool.encoded.example(int(row)) for row in rows]
    for epoch, checkpoint in enumerate(found, 1):
        result = trainer.train(
            [x.input_ids for x in drawn], [x.labels_mask for x in drawn], trainer.step, f"less epoch {epoch}"
        )
        assert result.steps == 3
        state = trainer.moments()
        for side, encoded in (("rows", bench.pool.encoded), ("target", target_of(bench).encoded)):
            table = rows_of(checkpoint, side)
            assert len(table) == len(encoded)
            for number in range(0, len(encoded), 2):
                example = encoded.example(number)
                for weight in trainer.parameters.values():
                    weight.requires_grad_(True)
                loss = own_loss(proxy.model, example.input_ids, example.labels_mask)
                gradients = torch.autograd.grad(loss, list(trainer.parameters.values()))
                proxy.model.requires_grad_(False)
                whole = dict(zip(trainer.parameters, gradients, strict=True))
                if side == "rows":
                    whole = {
                        name: adam_direction(each, state[f"{name}.exp_avg"], state[f"{name}.exp_avg_sq"])
                        for name, each in whole.items()
                    }
                expected = sketch.apply(whole).numpy()
                assert np.linalg.norm(table[number] - expected) < 2e-4 * np.linalg.norm(expected)


def test_weights_are_the_mean_learning_rates(undisturbed: tuple[Bench, tuple[Checkpoint, ...]]) -> None:
    # Six steps in all: one of rise, then five that fall from the peak to above 0.
    weights = [checkpoint.weight for checkpoint in undisturbed[1]]
    np.testing.assert_allclose(weights, [1e-2 * (1 + 1 + 0.8) / 3, 1e-2 * (0.6 + 0.4 + 0.2) / 3], rtol=1e-6)


def test_every_pass_is_counted(undisturbed: tuple[Bench, tuple[Checkpoint, ...]]) -> None:
    bench, _ = undisturbed
    counted = {name.rsplit("-", 1)[0]: passes for name, passes in bench.passes.items()}
    assert list(counted) == ["less-warm-up", "less-1", "less-target-1", "less-2", "less-target-2"]
    rows = warmup_rows(bench.pool.encoded.usable, feature.warm_schedule(METHOD), 3)
    tokens = int(bench.pool.encoded.lengths[rows].sum())
    training = counted["less-warm-up"]
    assert (training.forwards, training.backwards) == (14, 14)
    assert (training.tokens, training.backward_tokens) == (2 * tokens, 2 * tokens)
    assert [counted[name].backwards for name in ("less-1", "less-target-1", "less-2")] == [18, 3, 18]
    assert training.seconds > 0


def test_a_second_run_takes_up_everything(undisturbed: tuple[Bench, tuple[Checkpoint, ...]]) -> None:
    bench, first = undisturbed
    before = kept(bench.folder)
    again = bench_in(bench.folder.parent)
    found = collected(again)
    assert kept(bench.folder) == before
    assert again.passes == bench.passes
    assert any("Took up 2 of the warm-up's 2 epochs" in line for line in again.reporter.reporter.notes)  # type: ignore[attr-defined]
    for one, other in zip(first, found, strict=True):
        assert one.weight == other.weight
        np.testing.assert_array_equal(rows_of(one), rows_of(other))


def _killed_in(folder: Path, arm: Callable[[], None]) -> int:
    """Collect in a child that ``arm`` lets die; returns how it ended."""
    child = os.fork()
    if child == 0:
        try:
            arm()
            collected(bench_in(folder))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _dies_at(owner: Any, name: str, call: int) -> Callable[[], None]:
    """SIGKILL at the given call of a function, from 0."""

    def arm() -> None:
        real, left = getattr(owner, name), [call]

        def deadly(*args: Any, **options: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*args, **options)

        setattr(owner, name, deadly)

    return arm


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        # In the second epoch, in the first; before the first epoch and after the second are kept; while they are.
        (ProxyTrainer, "_step", (4, 1)),
        (feature, "save_checkpoint", (0,)),
        (feature, "load_checkpoint", (1,)),
        (os, "replace", (0, 3, 7, 12)),
        (GradientEngine, "batch", (2, 9)),
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(
    undisturbed: tuple[Bench, tuple[Checkpoint, ...]], tmp_path: Path, owner: Any, name: str, calls: tuple[int, ...]
) -> None:
    for call in calls:
        assert _killed_in(tmp_path, _dies_at(owner, name, call)) == -signal.SIGKILL
    bench = bench_in(tmp_path)
    collected(bench)
    assert kept(bench.folder) == kept(undisturbed[0].folder)


def test_an_epoch_that_is_whole_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _killed_in(tmp_path, _dies_at(ProxyTrainer, "_step", 4)) == -signal.SIGKILL
    steps: list[int] = []
    real = ProxyTrainer._step

    def noted(self: ProxyTrainer, *args: Any) -> float:
        steps.append(self.step)
        return real(self, *args)

    monkeypatch.setattr(ProxyTrainer, "_step", noted)
    bench = bench_in(tmp_path)
    collected(bench)
    assert steps == [3, 4, 5]
    assert "Took up 1 of the warm-up's 2 epochs that are there already." in bench.reporter.reporter.notes  # type: ignore[attr-defined]


def test_a_damaged_checkpoint_is_trained_again(
    undisturbed: tuple[Bench, tuple[Checkpoint, ...]], tmp_path: Path
) -> None:
    first = bench_in(tmp_path)
    collected(first)
    file = next(first.folder.glob("less-warm-up-*/epoch-1/optimizer.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    again = bench_in(tmp_path)
    collected(again)
    assert kept(again.folder) == kept(undisturbed[0].folder)
    assert not any("Took up" in line for line in again.reporter.reporter.notes)  # type: ignore[attr-defined]


def test_another_seed_or_setting_is_another_training(tmp_path: Path) -> None:
    short = METHOD.model_copy(update={"epochs": 1})
    bench = bench_in(tmp_path)
    (first,), (other,) = collected(bench, short), collected(bench, short, seed=4)
    assert np.abs(rows_of(first) - rows_of(other)).max() > 1e-3
    (faster,) = collected(bench, short.model_copy(update={"learning_rate": 2e-2}))
    assert np.abs(rows_of(first) - rows_of(faster)).max() > 1e-3
    assert len(list(bench.folder.glob("less-warm-up-*[0-9a-f]"))) == 3
    # Another sketch is measured anew, and the training is the same.
    (narrow,) = collected(bench, short.model_copy(update={"dim": 32}))
    assert narrow.rows.shape == (18, 32) and narrow.target.shape == (3, 32)
    assert len(list(bench.folder.glob("less-warm-up-*[0-9a-f]"))) == 3


def test_no_global_random_state_changes(tmp_path: Path) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    state, numbers = torch.random.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    collected(bench_in(tmp_path), METHOD.model_copy(update={"epochs": 1}))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numbers)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2"])
def test_any_family_and_rows_that_cannot_be_used(family: str, tmp_path: Path) -> None:
    bench = bench_in(tmp_path, family, [*ROWS[:9], {"prompt": "Nothing?", "response": ""}])
    (found,) = collected(bench, METHOD.model_copy(update={"epochs": 1, "dim": 64}))
    rows = rows_of(found)
    assert np.isfinite(rows).all() and not rows[9].any() and rows[:9].any(1).all()
    choice = Less().choose(
        Inputs(
            n=10,
            candidates=bench.pool.encoded.usable,
            response_tokens=bench.pool.encoded.response_tokens,
            sources=["rows"] * 10,
            budget=Budget(rows=4),
            target=Target(target_of(bench).subtasks),
            checkpoints=(found,),
        )
    )
    assert len(choice) == 4 and choice.pool_scores is not None and np.isnan(choice.pool_scores[9])
    assert "sums" in choice.notes[-1] or "words" in choice.notes[-1]


def test_rows_left_out_are_not_trained_on(tmp_path: Path) -> None:
    left_out = tmp_path / "exclude.json"
    left_out.write_text(str(list(range(1, 18))))
    bench = bench_in(tmp_path, selection={"exclude": str(left_out)})
    collected(bench, METHOD.model_copy(update={"epochs": 1}))
    assert any(line.startswith("Epoch 1 of 1: 1 optimiser steps on 1 rows") for line in bench.reporter.reporter.notes)  # type: ignore[attr-defined]
    left_out.write_text(str(list(range(18))))
    with pytest.raises(DataError, match="No row is left for the warm-up"):
        collected(bench)


def test_a_warm_up_of_few_steps_is_told(undisturbed: tuple[Bench, tuple[Checkpoint, ...]]) -> None:
    told = [line for line in undisturbed[0].reporter.warnings if "few for Adam's moments" in line]  # type: ignore[attr-defined]
    assert told == [
        "The warm-up of method 'less' has 6 optimiser steps on 7 rows, few for Adam's moments; set method.warmup_share "
        "or method.epochs higher, or method.batch_size lower."
    ]


def test_a_training_that_diverges_names_its_setting(tmp_path: Path) -> None:
    bench = bench_in(tmp_path)
    base = family_proxy("llama")
    with torch.no_grad():
        base.model.get_input_embeddings().weight.fill_(float("nan"))
    bench.load_base = lambda: base
    with pytest.raises((ModelError, ConfigError), match=r"method\.learning_rate below 0\.01"):
        collected(bench)


def test_a_method_with_other_settings_gets_the_defaults_of_the_rest(tmp_path: Path) -> None:
    class Other(Length):
        epochs: int = 1
        dim: int = 16
        warmup_share: float = 0.5

    settings = feature._settings(Other())
    assert (settings.epochs, settings.dim, settings.warmup_share, settings.lora_r) == (1, 16, 0.5, Less().lora_r)
