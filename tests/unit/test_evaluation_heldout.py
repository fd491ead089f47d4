"""The held-out loss as a suite: worked numbers, the model's own log-likelihoods, and adapters."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from spice_select.config import ModelConfig, RunConfig, load_config
from spice_select.demo import demo_model_path, demo_rows
from spice_select.errors import ConfigError, DataError, ModelError
from spice_select.evaluation.heldout import HeldOutRows, heldout_losses, read_rows, summed
from spice_select.evaluation.model import Loaded, load_model, resolve_model
from spice_select.gradients.proxy import quiet
from spice_select.reporter import Silent
from tests.integration.rows import write_jsonl


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows of two domains, and one without a response."""
    rows = [{**row, "subtask": "even" if i % 2 == 0 else "odd"} for i, row in enumerate(demo_rows(seed=8)[:5])]
    empty = {**rows[0], "output": "", "subtask": "odd"}
    path = tmp_path_factory.mktemp("held") / "held.jsonl"
    write_jsonl(path, [*rows, empty])
    return path


@pytest.fixture(scope="module")
def demo() -> Loaded:
    return load_model("demo", ModelConfig(name=str(demo_model_path()), device="cpu"))


@pytest.fixture(scope="module")
def config(file: Path) -> RunConfig:
    return load_config(values={"training": {"heldout": (str(file),)}})


@pytest.fixture(scope="module")
def held(demo: Loaded, config: RunConfig) -> HeldOutRows:
    return read_rows(config, demo.proxy, Silent())


def test_means_and_errors_are_those_of_a_worked_example(held: HeldOutRows):
    """Domain even has the rows 0, 2, 4 and odd the rows 1, 3."""
    assert held.rows.subtasks == ("even", "odd", "even", "odd", "even")
    losses = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    result = summed(held, losses, ["held.jsonl"], 1.5)
    assert {name: domain.loss for name, domain in result.domains.items()} == {"even": 3.0, "odd": 3.0}
    assert [domain.rows for domain in result.domains.values()] == [3, 2]
    # Standard deviations 2 and sqrt(2), over the roots of 3 and 2.
    assert result.domains["even"].stderr == pytest.approx(2 / math.sqrt(3))
    assert result.domains["odd"].stderr == pytest.approx(1.0)
    assert result.macro.value == 3.0
    assert result.macro.stderr == pytest.approx(math.sqrt(4 / 3 + 1) / 2)
    assert result.micro.value == 3.0
    assert result.micro.stderr == pytest.approx(math.sqrt(2.5) / math.sqrt(5))
    tokens = [int(held.rows.encoded.example(row).labels_mask.sum()) for row in range(5)]
    assert result.token_loss == pytest.approx(sum(t * x for t, x in zip(tokens, losses, strict=True)) / sum(tokens))
    assert result.perplexity == pytest.approx(math.exp(result.token_loss))
    assert (result.rows, result.left_out, result.files) == (5, 1, ("held.jsonl",))


def test_unequal_domains_set_macro_and_micro_apart(held: HeldOutRows):
    result = summed(held, np.array([1.0, 8.0, 1.0, 8.0, 1.0]), [], 0.0)
    assert result.macro.value == pytest.approx(4.5)
    assert result.micro.value == pytest.approx(19 / 5)


def test_losses_are_those_of_the_models_own_logits(demo: Loaded, held: HeldOutRows):
    found = heldout_losses(demo.proxy, held, 1024, Silent())
    for row, loss in enumerate(found):
        example = held.rows.encoded.example(row)
        ids = torch.from_numpy(example.input_ids.astype(np.int64))
        with torch.no_grad():
            logits = demo.proxy.model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        each = -logits[torch.arange(len(ids) - 1), ids[1:]].numpy()
        assert loss == pytest.approx(each[example.labels_mask[1:]].mean(), abs=1e-5)
    one_by_one = heldout_losses(demo.proxy, held, 1, Silent())
    np.testing.assert_allclose(found, one_by_one, atol=1e-5)


def test_a_limit_is_one_of_each_domain(demo: Loaded, config: RunConfig, held: HeldOutRows):
    few = read_rows(config, demo.proxy, Silent(), limit=1)
    assert few.rows.subtasks == ("even", "odd")
    assert few.rows.encoded.example(1).digest == held.rows.encoded.example(1).digest
    assert few.digest != held.digest


def test_rows_and_files_that_cannot_be_used_are_named(demo: Loaded, config: RunConfig, tmp_path: Path):
    with pytest.raises(ConfigError, match="name a file of them with --heldout FILE"):
        read_rows(RunConfig(), demo.proxy, Silent())
    missing = load_config(values={"training": {"heldout": (str(tmp_path / "none.jsonl"),)}})
    with pytest.raises(DataError, match="held-out file"):
        read_rows(missing, demo.proxy, Silent())


def test_a_loss_that_is_no_number_is_refused(held: HeldOutRows):
    broken = load_model("demo", ModelConfig(name=str(demo_model_path()), device="cpu"))
    with torch.no_grad():
        next(broken.proxy.model.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"is not finite; set model\.dtype to float32"):
        heldout_losses(broken.proxy, held, 1024, Silent())


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters on the demo model that change what it says."""
    folder = tmp_path_factory.mktemp("adapters")
    model = AutoModelForCausalLM.from_pretrained(demo_model_path())
    with quiet():
        wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=numbers))
    wrapped.save_pretrained(folder)
    return folder


def test_adapters_are_put_on_the_model_that_they_name(adapters: Path, demo: Loaded, held: HeldOutRows):
    model = resolve_model(str(adapters), None, ModelConfig(device="cpu"))
    assert (model.name, model.adapter) == (str(demo_model_path()), str(adapters))
    loaded = load_model(str(adapters), model)
    assert (loaded.facts.name, loaded.facts.base) == (adapters.name, Path(demo_model_path()).name)
    assert loaded.facts.weights != demo.facts.weights
    plain = heldout_losses(demo.proxy, held, 1024, Silent())
    changed = heldout_losses(loaded.proxy, held, 1024, Silent())
    assert np.abs(plain - changed).max() > 1e-3


def test_other_settings_of_the_same_adapters_are_another_model(adapters: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(adapters, other)
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 8}))
    one, two = (
        load_model(str(folder), resolve_model(str(folder), None, ModelConfig(device="cpu")))
        for folder in (adapters, other)
    )
    assert one.facts.weights == two.facts.weights
    assert one.facts.settings != two.facts.settings


def test_the_tokenizer_that_comes_with_adapters_is_theirs(adapters: Path, tmp_path: Path, demo: Loaded):
    own = tmp_path / "own"
    shutil.copytree(adapters, own)
    demo.proxy.tokenizer.save_pretrained(own)
    (own / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    loaded = load_model(str(own), resolve_model(str(own), None, ModelConfig(device="cpu")))
    assert loaded.proxy.tokenizer.chat_template.startswith("{% for m in messages %}{{ m['content'] }}")
    assert loaded.facts.tokenizer != demo.facts.tokenizer


def test_a_base_that_is_missing_or_not_wanted_is_named(adapters: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="is for adapters"):
        resolve_model(str(demo_model_path()), "x/y", ModelConfig())
    moved = tmp_path / "moved"
    shutil.copytree(adapters, moved)
    settings = json.loads((moved / "adapter_config.json").read_text())
    for base, said in (("/not/here", "which is not on this machine"), (None, "do not name the model they belong on")):
        (moved / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
        with pytest.raises(ModelError, match=said):
            resolve_model(str(moved), None, ModelConfig())
        assert resolve_model(str(moved), str(demo_model_path()), ModelConfig()).name == str(demo_model_path())
    (moved / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        resolve_model(str(moved), None, ModelConfig())
