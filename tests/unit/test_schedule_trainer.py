"""Training of the proxy: what it computes, that it repeats itself, and that checkpoints lose nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from spice_select.config import GradientConfig, LoraConfig, ModelConfig, ScheduleConfig
from spice_select.errors import ConfigError, ModelError, OutputError, ResourceError, StoreCorrupt, StoreMismatch
from spice_select.gradients import GradientEngine, Proxy, load_proxy
from spice_select.gradients.layers import initial_factor
from spice_select.gradients.loss import TokenLoss
from spice_select.schedule import trainer as trainer_module
from spice_select.schedule.adapters import attach_adapters, trained_scope
from spice_select.schedule.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from spice_select.schedule.trainer import Diverged, ProxyTrainer, learning_rate
from tests.proxies import examples, own_loss, tiny_model
from tests.schedules import SEED, engine, learner, schedule
from tests.support import shared_path
from tests.unit.test_gradients_proxy import write_model

# PEFT asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TOTAL = 12
SCOPES = ["lora", "full"]


def _trainer(proxy: Proxy | None = None, seed: int = SEED, total: int = TOTAL, **values: Any) -> ProxyTrainer:
    values = {"learning_rate": 1e-2, **values}
    return ProxyTrainer(proxy or learner(**values), schedule(**values), seed, total, batch_tokens=40)


def _weights(trainer: ProxyTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.parameters.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("layers", ["all-linear", r".*\.[01]\..*(q_proj|down_proj|c_attn)"])
def test_adapters_go_on_the_layers_that_are_named(family: str, layers: str) -> None:
    proxy = Proxy.from_model(tiny_model(family), None, GradientConfig())
    names = [layer.name for layer in proxy.layers]
    ids, masks = examples(3)
    before = GradientEngine(proxy, GradientConfig()).losses(ids, masks)
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    found = attach_adapters(proxy, schedule(), 9, layers)
    assert torch.equal(torch.random.get_rng_state(), state)
    wanted = [name for name in names if layers == "all-linear" or re.fullmatch(layers, name)]
    assert 0 < len(wanted) <= len(names)
    assert [layer.name for layer in found.layers] == [f"{name}.lora_{f}" for name in wanted for f in "AB"]
    weights = ProxyTrainer(found, schedule(), SEED, 1).parameters
    for name in wanted:
        first = weights[f"{name}.lora_A"]
        torch.testing.assert_close(first.data, initial_factor(9, name, 4, first.shape[1]), rtol=0, atol=0)
        assert not weights[f"{name}.lora_B"].any()
    np.testing.assert_allclose(engine(found).losses(ids, masks), before, rtol=1e-6)
    assert not found.model.training and not any(weight.requires_grad for weight in found.model.parameters())


def test_the_hash_is_that_of_the_files_as_loaded(tmp_path: Path) -> None:
    base = load_proxy(ModelConfig(name=str(write_model(tmp_path / "base", "llama")), device="cpu"), GradientConfig())
    trainer = _trainer(attach_adapters(base, schedule(), SEED))
    trainer.train(*examples(3), 0, "a")
    assert trainer.proxy.weights_hash == base.weights_hash
    assert trainer.proxy.name == base.name and trainer.proxy.tokenizer is base.tokenizer


def test_adapters_on_adapters_are_refused() -> None:
    with pytest.raises(ConfigError, match="trained adapters"):
        attach_adapters(learner(), schedule(), SEED)


def test_full_layers_of_half_precision_are_refused() -> None:
    proxy = Proxy.from_model(tiny_model("llama").bfloat16(), None, GradientConfig())
    with pytest.raises(ConfigError, match=r"schedule\.scope.*bfloat16"):
        attach_adapters(proxy, schedule(scope="full"), SEED)


def test_half_precision_keeps_its_adapters_in_float32() -> None:
    proxy = attach_adapters(Proxy.from_model(tiny_model("llama").bfloat16(), None, GradientConfig()), schedule(), SEED)
    trainer = _trainer(proxy)
    assert {weight.dtype for weight in trainer.parameters.values()} == {torch.float32}
    ids, masks = examples(6)
    before = _weights(trainer)
    trainer.train(ids, masks, 0, "a")
    assert all(not torch.equal(before[name], weight) for name, weight in trainer.parameters.items() if "_B" in name)


def test_the_scope_of_an_engine() -> None:
    gradients = GradientConfig(layers=".*q_proj", dim=32)
    lora = trained_scope(gradients, schedule()).lora
    assert lora == LoraConfig(r=4, alpha=8.0, factors="both")
    assert trained_scope(gradients, schedule(scope="full")) == gradients


@pytest.mark.parametrize("scope", SCOPES)
def test_a_step_is_that_of_autograd_and_adamw(scope: Any) -> None:
    plan = {"scope": scope, "lora": {"r": 4, "alpha": 8.0, "dropout": 0.0}, "batch_size": 5, "max_grad_norm": 0.5}
    ours, theirs = (_trainer(**plan, warmup_ratio=0.0) for _ in range(2))
    ids, masks = examples(5)
    result = ours.train(ids, masks, 0, "a")
    model = theirs.proxy.model.train()
    weights = list(theirs.parameters.values())
    for weight in weights:
        weight.requires_grad_(True)
    loss: Any = sum(own_loss(model, row, mask) for row, mask in zip(ids, masks, strict=True)) / 5
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights, 0.5)
    assert norm > 0.5
    torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.01).step()
    assert result.losses == pytest.approx([loss.item()], rel=1e-6)
    assert result.steps == ours.step == 1 and result.tokens == sum(map(len, ids)) and result.seconds > 0
    for name, weight in theirs.parameters.items():
        # AdamW's first step is the sign of the gradient, and the sign of a tiny one is a matter of rounding.
        difference = (ours.parameters[name] - weight).detach().abs()
        assert float(difference.mean()) < 1e-5


@pytest.mark.parametrize("scope", SCOPES)
def test_only_what_is_in_scope_learns(scope: Any) -> None:
    trainer = _trainer(scope=scope)
    before = {name: value.clone() for name, value in trainer.proxy.model.state_dict().items()}
    ids, masks = examples(7)
    trainer.train(ids, masks, 0, "a")
    trained = {weight.data_ptr() for weight in trainer.parameters.values()}
    after = trainer.proxy.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(before[name], value)}
    assert changed == {name for name, value in after.items() if value.data_ptr() in trained}
    assert not trainer.proxy.model.training
    assert all(weight.grad is None and not weight.requires_grad for weight in trainer.proxy.model.parameters())


def test_stacked_experts_learn() -> None:
    trainer = _trainer(learner("mixtral", scope="full"), scope="full")
    experts = [name for name in trainer.parameters if "expert" in name]
    assert len(experts) == 4
    before = _weights(trainer)
    trainer.train(*examples(6), 0, "a")
    assert all(not torch.equal(before[name], trainer.parameters[name]) for name in experts)


def test_training_repeats_itself_and_follows_seed_and_key() -> None:
    ids, masks = examples(10)
    runs = []
    for seed, key in ((SEED, "a"), (SEED, "a"), (SEED + 1, "a"), (SEED, "b")):
        trainer = _trainer(learner(), seed)
        # Whatever the global random state is.
        torch.manual_seed(len(runs))
        state = torch.random.get_rng_state()
        result = trainer.train(ids, masks, 0, key)
        assert torch.equal(torch.random.get_rng_state(), state)
        runs.append((trainer.digest, result.losses))
    assert runs[0] == runs[1]
    assert len({digest for digest, _ in runs}) == 3
    assert len({losses for _, losses in runs}) == 3


def test_dropout_is_there_in_training_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, masks = examples(4)
    heavy = {"lora": {"r": 4, "alpha": 8.0, "dropout": 0.5}, "learning_rate": 1e-2}
    trainer = _trainer(**heavy)
    trainer.train(ids, masks, 0, "a")
    seen: list[bool] = []
    honest = TokenLoss.backward

    def watched(self: TokenLoss, batch: Any) -> Any:
        seen.append(trainer.proxy.model.training)
        return honest(self, batch)

    monkeypatch.setattr(TokenLoss, "backward", watched)
    measured = engine(trainer.proxy, schedule(**heavy))
    whole, again = measured.materialise(ids, masks), measured.materialise(ids, masks)
    assert not any(seen)
    assert all(torch.equal(table, again[name]) for name, table in whole.items())
    saved, moments, step = _weights(trainer), {k: v.clone() for k, v in trainer.moments().items()}, trainer.step
    losses = []
    # Without a learning rate the weights stay, so that only dropout can move the loss.
    for number in (step, step + 1):
        still = _trainer(trainer.proxy, **{**heavy, "learning_rate": 1e-30, "weight_decay": 0.0, "batch_size": 4})
        still.restore(saved, moments, number)
        seen.clear()
        losses.append(still.train(ids, masks, number, "a").losses)
        assert seen and all(seen)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine"])
def test_the_learning_rate_follows_optimiser_steps(scheduler: Any) -> None:
    plan = ScheduleConfig(learning_rate=0.4, warmup_ratio=0.2, scheduler=scheduler)
    rates = [learning_rate(plan, step, 20) for step in range(20)]
    np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)
    expected = {"constant": 0.4, "linear": 0.2, "cosine": 0.2}[scheduler]
    assert rates[12] == pytest.approx(expected)
    assert min(rates) > 0
    assert learning_rate(plan, 25, 20) == pytest.approx(0.4 if scheduler == "constant" else 0.0)
    assert learning_rate(plan, 0, 1) == pytest.approx(0.4)


def test_steps_count_on_across_trainings() -> None:
    trainer = _trainer(warmup_ratio=0.5, batch_size=4)
    ids, masks = examples(6)
    rates = []
    for number in range(3):
        result = trainer.train(ids, masks, 2 * number, str(number))
        assert result.steps == 2
        rates.append(result.learning_rate)
    np.testing.assert_allclose(rates, [1e-2 * 2 / 6, 1e-2 * 4 / 6, 1e-2])
    with pytest.raises(AssertionError):
        trainer.train(ids, masks, 2, "again")


def test_each_example_is_seen_once_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, masks = examples(8)
    trainer = _trainer(batch_size=3)
    seen: list[bytes] = []
    honest = trainer_module.TokenBatch.build

    def build(rows: Any, marks: Any, device: Any) -> Any:
        seen.extend(row.tobytes() for row in rows)
        return honest(rows, marks, device)

    monkeypatch.setattr(trainer_module.TokenBatch, "build", build)
    assert trainer.train(ids, masks, 0, "a").steps == 3
    assert sorted(seen) == sorted(row.tobytes() for row in ids)


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_proxy_that_diverges_says_so_and_stays(fault: str) -> None:
    trainer = _trainer(batch_size=2)
    ids, masks = examples(4)
    trainer.train(ids, masks, 0, "a")
    before = trainer.digest
    weight = trainer.proxy.model.get_base_model().model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight.mul_(float("nan") if fault == "loss" else 1e38)
    with pytest.raises(Diverged, match="optimiser step 3") as caught:
        trainer.train(ids, masks, 2, "b")
    assert isinstance(caught.value, ModelError)
    assert caught.value.step == 2 and trainer.step == 2 and trainer.digest == before
    assert not trainer.proxy.model.training
    assert not any(weight.requires_grad for weight in trainer.proxy.model.parameters())


def test_running_out_of_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(TokenLoss, "backward", fail)
    with pytest.raises(ResourceError, match=r"gradients\.batch_tokens"):
        trainer.train(*examples(3), 0, "a")


def test_the_loss_falls_on_a_real_model() -> None:
    folder = str(shared_path("models", "stories260k"))
    base = load_proxy(ModelConfig(name=folder, device="cpu"), GradientConfig())
    generator = np.random.default_rng(0)
    # Sentences of a few words in one fixed cycle: easy to learn.
    ids = [np.resize(np.arange(300, 312), size).astype(np.int32) for size in generator.integers(10, 30, 16)]
    masks = [np.arange(len(row)) >= 4 for row in ids]
    plan = ScheduleConfig(learning_rate=5e-3, batch_size=4)
    trainer = ProxyTrainer(attach_adapters(base, plan, SEED), plan, SEED, 24)
    losses = [loss for number in range(6) for loss in trainer.train(ids, masks, 4 * number, str(number)).losses]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])


@pytest.mark.parametrize("scope", SCOPES)
def test_a_run_resumed_is_a_run_uninterrupted(scope: Any, tmp_path: Path) -> None:
    ids, masks = examples(9)
    whole = _trainer(scope=scope)
    first = whole.train(ids, masks, 0, "a")
    assert save_checkpoint(tmp_path / "one", whole, {"pools": 10, "none": None}) == whole.digest
    second = whole.train(ids, masks, first.steps, "b")
    resumed = _trainer(scope=scope)
    assert load_checkpoint(tmp_path / "one", resumed) == {"pools": 10, "none": None}
    assert resumed.step == first.steps
    assert read_checkpoint(tmp_path / "one").digest == resumed.digest != whole.digest
    again = resumed.train(ids, masks, first.steps, "b")
    assert again.losses == second.losses
    assert resumed.digest == whole.digest
    ours, theirs = resumed.moments(), whole.moments()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_before_the_first_step(tmp_path: Path) -> None:
    fresh = _trainer()
    save_checkpoint(tmp_path / "zero", fresh, {})
    moved = _trainer()
    moved.train(*examples(4), 0, "a")
    load_checkpoint(tmp_path / "zero", moved)
    assert moved.step == 0 and moved.digest == fresh.digest and not moved.moments()


def test_a_checkpoint_takes_the_place_of_another(tmp_path: Path) -> None:
    trainer = _trainer()
    save_checkpoint(tmp_path / "it", trainer, {"number": 1})
    trainer.train(*examples(4), 0, "a")
    # As a run leaves it that is killed while it writes.
    (tmp_path / ".it.abc.tmp" / "adapter").mkdir(parents=True)
    save_checkpoint(tmp_path / "it", trainer, {"number": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert load_checkpoint(tmp_path / "it", _trainer()) == {"number": 2}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_of_a_checkpoint_are_pefts(family: str, tmp_path: Path) -> None:
    proxy = learner(family)
    trainer = _trainer(proxy)
    ids, masks = examples(6)
    trainer.train(ids, masks, 0, "a")
    save_checkpoint(tmp_path / "kept", trainer, {})
    base = write_model(tmp_path / "base", family)
    loaded = peft.PeftModel.from_pretrained(tiny_model(family), str(tmp_path / "kept" / "adapter")).eval()
    expected = GradientEngine(proxy, trained_scope(GradientConfig(), schedule())).losses(ids, masks)
    found = [float(own_loss(loaded, row, mask)) for row, mask in zip(ids, masks, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    lora = LoraConfig(r=4, alpha=8.0, factors="both", adapter=str(tmp_path / "kept" / "adapter"))
    config = GradientConfig(lora=lora, dim=64)
    again = GradientEngine(load_proxy(ModelConfig(name=str(base), device="cpu"), config), config)
    np.testing.assert_allclose(again.losses(ids, masks), expected, rtol=1e-5)
    rows = GradientEngine(proxy, config).batch(ids, masks).rows
    np.testing.assert_allclose(again.batch(ids, masks).rows, rows, rtol=1e-4, atol=1e-5 * np.abs(rows).max())


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "record flipped": lambda folder: _flip(folder / "checkpoint.json"),
    "record gone": lambda folder: (folder / "checkpoint.json").unlink(),
    "record empty": lambda folder: (folder / "checkpoint.json").write_bytes(b""),
    "record a list": lambda folder: (folder / "checkpoint.json").write_bytes(b"[1]"),
    "weights flipped": lambda folder: _flip(folder / "adapter" / "adapter_model.safetensors"),
    "weights cut": lambda folder: (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"123"),
    "weights gone": lambda folder: (folder / "adapter" / "adapter_model.safetensors").unlink(),
    "moments flipped": lambda folder: _flip(folder / "optimizer.safetensors"),
    "moments gone": lambda folder: (folder / "optimizer.safetensors").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    trainer = _trainer()
    trainer.train(*examples(4), 0, "a")
    save_checkpoint(tmp_path / "it", trainer, {})
    DAMAGE[damage](tmp_path / "it")
    fresh = _trainer()
    before = fresh.digest
    with pytest.raises(StoreCorrupt, match="not what was written"):
        load_checkpoint(tmp_path / "it", fresh)
    assert fresh.digest == before and fresh.step == 0


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: _trainer(learning_rate=1e-3), "schedule"),
        (lambda: _trainer(seed=SEED + 1), "seed"),
        (lambda: _trainer(total=TOTAL + 1), "total_steps"),
        (lambda: _trainer(learner("gpt2")), "layers"),
        (lambda: _trainer(scope="full"), "layers, schedule"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    other: Callable[[], ProxyTrainer], named: str, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "it", _trainer(), {})
    with pytest.raises(StoreMismatch, match=rf"\({named} differ"):
        load_checkpoint(tmp_path / "it", other())


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_checkpoint(tmp_path / "file" / "it", _trainer(), {})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "it", _trainer(), {"no": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer()
    save_checkpoint(tmp_path / "it", trainer, {"number": 1})
    trainer.train(*examples(4), 0, "a")
    from spice_select.schedule import checkpoints

    honest = checkpoints.write_bytes

    def full(path: Path, content: bytes) -> None:
        if path.name == "checkpoint.json":
            raise ResourceError("The disk is full.")
        honest(path, content)

    monkeypatch.setattr(checkpoints, "write_bytes", full)
    with pytest.raises(ResourceError):
        save_checkpoint(tmp_path / "it", trainer, {"number": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert json.loads((tmp_path / "it" / "checkpoint.json").read_text())["meta"] == {"number": 1}
