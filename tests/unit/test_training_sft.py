"""Fine-tuning on the selection's own tokens: losses and gradients, what it leaves alone, and what it goes on from."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, TrainerCallback

from spice_select.config import GradientConfig, TrainingConfig
from spice_select.data.encoded import Example
from spice_select.data.status import Status
from spice_select.demo import demo_model_path
from spice_select.errors import ConfigError, DataError, ModelError
from spice_select.gradients.loss import TokenBatch, TokenLoss
from spice_select.gradients.proxy import Proxy
from spice_select.training import checkpoints, sft
from spice_select.training.checkpoints import SEAL, last_whole, seal
from spice_select.training.sft import Trained, fine_tune, planned_steps, restore, trainable
from tests import proxies

pytest.importorskip("trl", reason="needs the train extra")
pytestmark = pytest.mark.filterwarnings("default")  # TRL and its own dependencies warn as they please

FAMILIES = ["llama", "qwen2", "gpt2", "gemma2"]
TOKENIZER = AutoTokenizer.from_pretrained(demo_model_path())


def base(family: str = "llama") -> Proxy:
    model = proxies.tiny_model(family)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # gpt2 has dropout of its own, which no setting of the training is about
    return Proxy.from_model(model, TOKENIZER, GradientConfig())


def rows(count: int = 8) -> list[Example]:
    ids, masks = proxies.examples(count)
    return [Example(one, mask & (np.arange(len(mask)) > 0), Status.OK) for one, mask in zip(ids, masks, strict=True)]


def settings(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"lr": 1e-2, "dropout": 0.0, "warmup_ratio": 0.0, "epochs": 2, **values})


def losses(trained: Trained) -> list[float]:
    return [entry["loss"] for entry in trained.history]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def own_losses(model: Any, examples: Sequence[Example]) -> list[float]:
    with torch.no_grad():
        return [float(proxies.own_loss(model, one.input_ids, one.labels_mask)) for one in examples]


class Gradients(TrainerCallback):
    """Keeps the gradients of every step."""

    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


class Stop(TrainerCallback):
    """Ends a training as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_loss_is_the_mean_over_the_trained_tokens(family: str, tmp_path: Path) -> None:
    proxy, examples = base(family), rows()
    counts = np.array([int(one.labels_mask.sum()) for one in examples])
    by_model = float(np.dot(own_losses(proxy.model, examples), counts) / counts.sum())
    ids, masks = [one.input_ids for one in examples], [one.labels_mask for one in examples]
    own = TokenLoss(proxy.model).losses(TokenBatch.build(ids, masks, proxy.device)).numpy()
    assert float(np.dot(own, counts) / counts.sum()) == pytest.approx(by_model, abs=1e-5)
    trained = fine_tune(proxy, examples, settings(batch_size=8, max_steps=1, dropout=0.1), 0, tmp_path)
    assert trained.first_loss == pytest.approx(by_model, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_trl(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(mode: str, steps: int) -> tuple[Trained, list[dict[str, torch.Tensor]]]:
        seen = Gradients()
        given = settings(mode=mode, batch_size=4, max_steps=steps, max_grad_norm=1e9)
        return fine_tune(base(family), rows(), given, 3, tmp_path, callbacks=[seen]), seen.found

    paths: list[Any] = []
    honest = sft._token_loss

    def spied(*args: Any) -> Any:
        paths.append(honest(*args))
        return paths[-1]

    monkeypatch.setattr(sft, "_token_loss", spied)
    own, own_gradients = both("full", 1)
    own_adapters = both("lora", 3)[0] if family == "llama" else None
    assert all(path is not None for path in paths) and paths
    monkeypatch.setattr(sft, "_token_loss", lambda *_: None)
    theirs, their_gradients = both("full", 1)
    assert losses(own) == pytest.approx(losses(theirs), abs=1e-5)
    if own_adapters is not None:
        assert losses(own_adapters) == pytest.approx(losses(both("lora", 3)[0]), abs=1e-5)
    assert own_gradients[0].keys() == their_gradients[0].keys() and len(own_gradients[0]) > 10
    for name, value in their_gradients[0].items():
        torch.testing.assert_close(own_gradients[0][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_random_numbers_of_the_process_go_on_as_before(tmp_path: Path) -> None:
    torch_state, numpy_state, state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    fine_tune(base(), rows(), settings(dropout=0.2), 5, tmp_path)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == state
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))


def test_without_its_adapters_the_model_is_as_it_came(tmp_path: Path) -> None:
    proxy, examples = base(), rows()
    before, untouched = own_losses(proxy.model, examples), weights(proxy.model)
    first = fine_tune(proxy, examples, settings(), 7, tmp_path)
    assert first.last_loss is not None and first.first_loss is not None and first.last_loss < first.first_loss
    assert own_losses(first.model, examples) != before
    restore(first)
    assert own_losses(proxy.model, examples) == before
    assert all(torch.equal(value, untouched[name]) for name, value in proxy.model.state_dict().items())
    again = fine_tune(proxy, examples, settings(), 7, tmp_path)
    assert losses(again) == losses(first)
    restore(again)
    other = fine_tune(proxy, examples, settings(), 8, tmp_path)
    assert losses(other) != losses(first)


def test_every_weight_is_trained_in_full_mode(tmp_path: Path) -> None:
    proxy = base("qwen2")
    before = weights(proxy.model)
    trained = fine_tune(proxy, rows(), settings(mode="full", lr=1e-3), 0, tmp_path)
    assert trained.model is proxy.model
    assert all(not torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())
    assert not trained.model.training


def test_steps_epochs_and_tokens(tmp_path: Path) -> None:
    examples = rows(6)
    tokens = sum(len(one.input_ids) for one in examples)
    given = settings(batch_size=4, epochs=3)
    trained = fine_tune(base(), examples, given, 0, tmp_path)
    assert (
        (trained.steps, trained.rows, trained.tokens) == (planned_steps(6, given), 6, 3 * tokens) == (6, 6, 3 * tokens)
    )
    assert trained.response_tokens == sum(int(one.labels_mask.sum()) for one in examples)
    assert len(trained.history) == 6 and trained.seconds > 0
    given = settings(batch_size=4, max_steps=7)
    trained = fine_tune(base(), examples, given, 0, tmp_path)
    assert trained.steps == planned_steps(6, given) == 7


def test_smaller_passes_of_a_step_change_nothing(tmp_path: Path) -> None:
    whole = fine_tune(base(), rows(), settings(batch_size=4), 2, tmp_path)
    parts = fine_tune(base(), rows(), settings(batch_size=4, micro_batch=1), 2, tmp_path)
    assert parts.steps == whole.steps
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_activations_computed_twice_give_the_same_gradients(mode: str, tmp_path: Path) -> None:
    found = []
    for twice in (False, True):
        seen = Gradients()
        given = settings(mode=mode, gradient_checkpointing=twice, max_steps=2, lr=1e-3)
        trained = fine_tune(base(), rows(), given, 2, tmp_path, callbacks=[seen])
        found.append((losses(trained), seen.found[0]))
    (plain, gradients), (checked, recomputed) = found
    assert checked == pytest.approx(plain, abs=1e-5)
    assert any(value.abs().max() > 1e-4 for value in recomputed.values())
    for name, value in gradients.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_rows_without_a_response_are_left_out(tmp_path: Path) -> None:
    empty = Example(np.zeros(0, np.int32), np.zeros(0, bool), Status.NO_RESPONSE)
    asked = Example(np.arange(1, 6, dtype=np.int32), np.zeros(5, bool), Status.OK)
    first_alone = Example(np.arange(1, 6, dtype=np.int32), np.arange(5) == 0, Status.OK)
    assert trainable([empty, asked, first_alone]) == []
    trained = fine_tune(base(), [empty, *rows(4), asked], settings(), 0, tmp_path)
    assert trained.rows == 4
    with pytest.raises(DataError, match="choose other rows"):
        fine_tune(base(), [empty, asked], settings(), 0, tmp_path)


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"diverged.*training\.lr below 1e\+30"):
        fine_tune(base(), rows(), settings(lr=1e30), 0, tmp_path)


def test_settings_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"training\.micro_batch.*divisor"):
        fine_tune(base(), rows(), settings(batch_size=4, micro_batch=3), 0, tmp_path)
    proxy = base()
    proxy.model.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="'full' with weights in bfloat16"):
        fine_tune(proxy, rows(), settings(mode="full"), 0, tmp_path)
    proxy = base()
    kept = fine_tune(proxy, rows(), settings(max_steps=1), 0, tmp_path)
    with pytest.raises(ConfigError, match="has adapters on already"):
        fine_tune(proxy, rows(), settings(), 0, tmp_path)
    restore(kept)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"training\.batch_size.*3 processes"):
        fine_tune(base(), rows(), settings(batch_size=4), 0, tmp_path)


@pytest.mark.parametrize(("mode", "stop", "end"), [("lora", 3, 2), ("lora", 4, 2), ("full", 5, 4)])
def test_resumed_it_ends_in_the_same_weights(mode: str, stop: int, end: int, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, between two, and after a checkpoint; dropout goes on where it was."""
    given = settings(mode=mode, dropout=0.3, epochs=3, batch_size=2, save_steps=2, lr=1e-3)
    straight = fine_tune(base(), rows(), given, 4, tmp_path / "straight", checkpoints=True)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        fine_tune(base(), rows(), given, 4, cut, checkpoints=True, callbacks=[Stop(stop)])
    whole = last_whole(cut)
    assert whole is not None and whole[0].name == f"checkpoint-{end}" and whole[1].seconds > 0
    resumed = fine_tune(base(), rows(), given, 4, cut, resume=True, checkpoints=True)
    assert losses(resumed) == losses(straight) and resumed.steps == straight.steps == 12
    assert resumed.seconds > whole[1].seconds
    expected = weights(straight.model)
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    assert not list(cut.rglob("training_args.bin"))


def test_a_torn_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    given = settings(dropout=0.3, epochs=3, batch_size=2, save_steps=2)
    straight = fine_tune(base(), rows(), given, 4, tmp_path / "straight")
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        fine_tune(base(), rows(), given, 4, cut, checkpoints=True, callbacks=[Stop(7)])
    torn = cut / "checkpoint-6" / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-40])
    found = last_whole(cut)
    assert found is not None and found[0].name == "checkpoint-4"
    resumed = fine_tune(base(), rows(), given, 4, cut, resume=True, checkpoints=True)
    assert losses(resumed) == losses(straight)
    (cut / "checkpoint-12" / SEAL).unlink()
    (cut / "checkpoint-10" / SEAL).write_text("{")
    assert last_whole(cut) is None and last_whole(tmp_path / "nowhere") is None


@pytest.mark.parametrize("steps", [5, 8])
def test_killed_after_its_last_step_it_takes_no_further_one(steps: int, tmp_path: Path) -> None:
    """In the middle of an epoch, and at its end; a constant rate, by which one more step would move the weights."""
    given = settings(dropout=0.3, batch_size=2, save_steps=2, max_steps=steps, scheduler="constant")
    straight = fine_tune(base(), rows(), given, 4, tmp_path, checkpoints=True)
    found = last_whole(tmp_path)
    assert found is not None and found[0].name == f"checkpoint-{steps}"
    resumed = fine_tune(base(), rows(), given, 4, tmp_path, resume=True, checkpoints=True)
    assert resumed.steps == straight.steps == steps and resumed.tokens == straight.tokens
    assert losses(resumed) == losses(straight)
    expected = weights(straight.model)
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_a_checkpoint_goes_when_two_later_ones_are_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    real = checkpoints.seal

    def spied(path: Path, seconds: float) -> None:
        # Whatever a kill leaves at this moment, two are whole once there have been two.
        seen.append(sorted(mark.parent.name for mark in tmp_path.glob(f"*/{SEAL}")))
        real(path, seconds)

    monkeypatch.setattr(checkpoints, "seal", spied)
    fine_tune(base(), rows(), settings(batch_size=2, save_steps=2, max_steps=8), 4, tmp_path, checkpoints=True)
    names = [f"checkpoint-{number}" for number in (2, 4, 6, 8)]
    assert seen == [[], names[:1], names[:2], names[1:3]]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == names[2:]


class _Poison:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_no_checkpoint_can_run_code(name: str, tmp_path: Path) -> None:
    given = settings(epochs=2, batch_size=2, save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(base(), rows(), given, 4, tmp_path, checkpoints=True, callbacks=[Stop(3)])
    checkpoint, mark = tmp_path / "checkpoint-2", tmp_path / "mark"
    torch.save({"state": _Poison(mark), "param_groups": []}, checkpoint / name)
    seal(checkpoint, 1.0)
    with pytest.raises(pickle.UnpicklingError):
        fine_tune(base(), rows(), given, 4, tmp_path, resume=True)
    assert not mark.exists()


def test_tokens_are_counted_with_the_short_last_batch_of_every_epoch(tmp_path: Path) -> None:
    given = rows(5)
    tokens = sum(len(one.input_ids) for one in given)
    # Batches of 4 and 1: four steps are two epochs, and half as many again are not eight fifths of one.
    for steps, passes in ((2, 1.0), (4, 2.0), (3, 1.8)):
        found = fine_tune(base(), given, settings(max_steps=steps, batch_size=4), 0, tmp_path / str(steps))
        assert found.steps == steps and found.tokens == round(passes * tokens)
