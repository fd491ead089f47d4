"""``spice-select proxy-check`` from rows and two models to a verdict, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from spice_select import proxy_gradients
from spice_select.analysis.agreement import LABELS
from spice_select.config import GradientConfig
from spice_select.demo import demo_rows
from spice_select.gradients import GradientEngine, Proxy
from spice_select.proxy_check import ProxyCheck
from tests.integration.command import Command
from tests.integration.rows import write_jsonl
from tests.proxies import examples, tiny_model
from tests.support import shared_path

FAST = ("--sample", "24", "--budget", "25%")


def untrained(folder: Path, like: Path, seed: int) -> Path:
    """A model of the same shape and tokenizer with random weights."""
    model = AutoModelForCausalLM.from_pretrained(like, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.03 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.fill_(1.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One random layer of the embedded model's shape, for what does not depend on the weights."""
    folder = tmp_path_factory.mktemp("small")
    config = AutoConfig.from_pretrained(model)
    config.num_hidden_layers = 1
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def test_a_model_stands_for_itself(command: Command, model: Path, rows_file: Path) -> None:
    found = command.json("proxy-check", rows_file, "--proxy", model, "--target", model, *FAST)
    agreement = found["agreement"]
    assert isinstance(agreement, dict)
    for name in LABELS:
        assert agreement[name]["value"] == pytest.approx(1.0, abs=1e-9), name
    assert agreement["verdict"] == "trust"
    assert agreement["rows"] == 24 and agreement["proxy_picks"] == agreement["target_picks"] == 6
    again = ProxyCheck.model_validate(found)
    assert again.proxy == again.target and again.proxy.exact
    assert again.notes == ()
    assert again.agreement.cosine_spearman.untrained is not None
    assert again.agreement.cosine_spearman.untrained < 0.9


def test_an_untrained_model_is_not_trusted(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    blank = untrained(tmp_path / "blank", model, 5)
    outcome = command("proxy-check", rows_file, "--proxy", blank, "--target", model, *FAST)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("Proxy ") and "inner products exact over 28 layers" in lines[0]
    assert lines[1].startswith("Target ")
    assert lines[-1].startswith("Verdict: do not trust. ")
    assert all(any(line.startswith(label) for line in lines) for label in LABELS.values())
    assert "Rows" in outcome.err and "Proxy" in outcome.err and "Target" in outcome.err
    assert "24/24 examples" in outcome.err


def test_an_untrained_model_is_not_trusted_for_one_of_another_tokenizer(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    target = shared_path("models", "stories260k")
    blank = untrained(tmp_path / "blank", model, 6)
    found = ProxyCheck.model_validate(command.json("proxy-check", rows_file, "-m", blank, "-t", target, *FAST))
    assert found.agreement.verdict == "do not trust"
    assert found.proxy.response_tokens != found.target.response_tokens


def test_a_proxy_close_to_the_target_is_trusted(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "close"
    close = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in close.parameters():
            if parameter.dim() > 1:
                parameter += 0.01 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    close.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    found = ProxyCheck.model_validate(command.json("proxy-check", rows_file, "-m", folder, "-t", model, *FAST))
    assert found.agreement.verdict == "trust", found.agreement.reason
    assert 0.9 < (found.agreement.cosine_spearman.value or 0) < 1.0


def test_the_sample_follows_the_seed_and_the_settings_follow_set(
    command: Command, small: Path, rows_file: Path
) -> None:
    ask = ("proxy-check", rows_file, "-m", small, "-t", small, "--sample", "10", "--budget", "3")
    first, again = (ProxyCheck.model_validate(command.json(*ask, "--seed", "1")) for _ in range(2))
    assert again == first
    other = ProxyCheck.model_validate(
        command.json(*ask, "--seed", "2", "--set", "selection.normalize=unit", "--set", "selection.reference=pool")
    )
    assert len(first.sampled) == len(other.sampled) == 10
    assert list(first.sampled) == sorted(first.sampled) and first.sampled != other.sampled
    assert first.settings["normalize"] == "sqrt_tokens" and other.settings["normalize"] == "unit"
    assert other.settings["reference"] == "pool"
    assert first.agreement.proxy_picks == 3


def test_fewer_rows_than_asked_for_are_all_taken(command: Command, small: Path, tmp_path: Path) -> None:
    rows = [*demo_rows(seed=4)[:9], {"instruction": "say", "output": ""}]
    file = write_jsonl(tmp_path / "few.jsonl", [dict(row) for row in rows])
    found = ProxyCheck.model_validate(command.json("proxy-check", file, "-m", small, "-t", small, "--budget", "2"))
    assert found.sampled == tuple(range(9))
    assert found.asked == 128
    assert any("9 rows, fewer than the 128 asked for" in note for note in found.notes)


def test_rows_left_out_stay_out(command: Command, small: Path, rows_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text(json.dumps(list(range(0, 40, 2))))
    found = ProxyCheck.model_validate(
        command.json(
            *("proxy-check", rows_file, "-m", small, "-t", small, "--sample", "12", "--budget", "3"),
            *("--set", f"selection.exclude={tmp_path / 'out.json'}"),
            *("--set", "selection.groups=source", "--set", "selection.quotas=proportional"),
        )
    )
    assert all(number % 2 for number in found.sampled)
    assert found.notes == ("selection.quotas has no part in this comparison.",)


def test_gradients_too_large_for_exact_products_are_folded(command: Command, small: Path, rows_file: Path) -> None:
    ask = ("proxy-check", rows_file, "-m", small, "-t", small, *FAST)
    exact = ProxyCheck.model_validate(command.json(*ask))
    found = ProxyCheck.model_validate(command.json(*ask, "--set", "schedule.gram_bytes=1048576"))
    assert exact.proxy.exact and not found.proxy.exact
    assert found.proxy.method == "fold, D = 8,192"
    assert found.proxy.loss == pytest.approx(exact.proxy.loss, rel=1e-5)
    assert found.agreement.cosine_spearman.value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("family", "norm"), [("llama-biases", 1.0), ("llama-tied", 1.0), ("gpt2", 1.0), ("gemma2", 0.0)]
)
def test_a_model_before_training_keeps_shape_and_loses_content(family: str, norm: float) -> None:
    proxy, again = (Proxy.from_model(tiny_model(family), None, GradientConfig()) for _ in range(2))
    before = {name: value.clone() for name, value in proxy.model.named_parameters()}
    proxy_gradients.forget(proxy, 3)
    proxy_gradients.forget(again, 3)
    once = dict(again.model.named_parameters())
    for name, value in proxy.model.named_parameters():
        assert torch.equal(value, once[name])
        if value.dim() > 1:
            assert float(value.std()) == pytest.approx(0.02, rel=0.15)
            assert abs(np.corrcoef(value.flatten(), before[name].flatten())[0, 1]) < 0.1
        else:
            assert torch.equal(value, torch.full_like(value, 0.0 if "bias" in name else norm)), name
    state = torch.get_rng_state()
    proxy_gradients.forget(proxy, 4)
    assert torch.equal(state, torch.get_rng_state())
    ids, masks = examples(4)
    assert np.isfinite(GradientEngine(proxy, GradientConfig(dim=64)).gram(ids, masks)).all()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["ROWS", "-m", "MODEL"], 2, "--target"),
        (["ROWS", "-t", "MODEL"], 2, "--proxy"),
        (["-m", "MODEL", "-t", "MODEL"], 2, "No data"),
        (["ROWS", "-m", "MODEL", "-t", "MODEL", "--sample", "7"], 2, "--sample cannot be 7"),
        (["ROWS", "-m", "MODEL", "-t", "MODEL", "--budget", "0"], 2, "budget"),
        (["ROWS", "-m", "MODEL", "-t", "MODEL", "--budget", "500"], 2, "40 of 40 can be chosen"),
        (["ROWS", "-m", "MODEL", "-t", "MODEL", "--set", "selection.hinge=10%"], 2, "hinge"),
        (["ROWS", "-m", "MODEL", "-t", "no-such-folder/x/y"], 3, "no-such-folder"),
        (["no-rows.jsonl", "-m", "MODEL", "-t", "MODEL"], 3, "no-rows.jsonl"),
        (["ROWS", "-m", "MODEL", "-t", "MODEL", "--set", "gradients.layers=nothing"], 3, "gradients.layers"),
        (["ROWS", "-m", "MODEL", "-t", "MODEL", "--limit", "7"], 3, "Only 7 rows"),
        (["ROWS", "-m", "MODEL", "-t", "MODEL", "--set", "gradients.lora.adapter=x"], 2, "gradients.lora.adapter"),
    ],
)
def test_what_is_refused(command: Command, small: Path, rows_file: Path, args: list[str], code: int, said: str) -> None:
    given = [{"ROWS": str(rows_file), "MODEL": str(small)}.get(arg, arg) for arg in args]
    assert said in command.refused(code, "proxy-check", *given)
