"""Loading a proxy: what is refused, and what identifies one."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from spice_select.config import GradientConfig, ModelConfig
from spice_select.errors import ConfigError, ModelError, SpiceError
from spice_select.gradients import GradientEngine, Proxy, load_proxy, load_tokenizer
from tests.proxies import VOCABULARY, examples, tiny_model, tiny_proxy

GRADIENTS = GradientConfig(dim=32)


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer without a padding token."""
    words = {f"w{number}": number for number in range(VOCABULARY - 2)} | {"<s>": VOCABULARY - 2, "</s>": VOCABULARY - 1}
    backend = Tokenizer(WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def write_model(folder: Path, family: str) -> Path:
    tiny_model(family).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "llama")


def _load(folder: Path | str, **settings: str) -> Proxy:
    return load_proxy(ModelConfig(name=str(folder), device="cpu", **settings), GRADIENTS)  # type: ignore[arg-type]


def _refusal(folder: Path | str) -> str:
    with pytest.raises(SpiceError) as caught:
        _load(folder)
    assert caught.value.exit_code == 3 and isinstance(caught.value, ModelError)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and str(folder) in message
    return message


def test_loads_without_a_pad_token(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    proxy = _load(folder)
    assert proxy.tokenizer.pad_token is None
    assert proxy.dtype == torch.float32 and not proxy.model.training
    assert GradientEngine(proxy, GRADIENTS).batch(*examples()).squared_norms.min() > 0
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_summary_prints_the_coverage(folder: Path) -> None:
    proxy = _load(folder)
    assert f"{proxy.coverage:.1%} of the non-embedding weights covered" in proxy.summary()
    assert "14 linear layers" in proxy.summary() and "float32 on cpu" in proxy.summary()


def test_default_dtype_is_float32_whatever_the_checkpoint_says(tmp_path: Path) -> None:
    tiny_model("llama").bfloat16().save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert _load(tmp_path).dtype == torch.float32
    assert _load(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert _load(tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def test_hashes_do_not_depend_on_the_path(folder: Path, tmp_path: Path) -> None:
    first = _load(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    second = _load(tmp_path / "elsewhere")
    assert first.weights_hash == second.weights_hash
    assert first.tokenizer_hash == second.tokenizer_hash
    assert first.layer_digest == second.layer_digest


def test_weights_hash_knows_a_changed_weight(folder: Path) -> None:
    before = _load(folder).weights_hash
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    model.save_pretrained(folder)
    assert _load(folder).weights_hash != before


def test_weights_hash_of_a_model_in_memory() -> None:
    first, second = tiny_proxy("llama"), tiny_proxy("llama")
    assert first.weights_hash == second.weights_hash
    assert Proxy.from_model(tiny_model("llama", seed=1), None, GRADIENTS).weights_hash != first.weights_hash


def test_tokenizer_hash_knows_the_template_but_not_the_padding(folder: Path) -> None:
    proxy = _load(folder)
    before = proxy.tokenizer_hash
    tokenizer = load_tokenizer(ModelConfig(name=str(folder)))
    tokenizer(["w1 w2 w3"], truncation=True, max_length=2)
    other = Proxy.from_model(tiny_model("llama"), tokenizer, GRADIENTS)
    assert other.tokenizer_hash == before
    tokenizer.chat_template = "{{ messages }}"
    assert Proxy.from_model(tiny_model("llama"), tokenizer, GRADIENTS).tokenizer_hash != before


def test_missing_folder(tmp_path: Path) -> None:
    assert "does not exist" in _refusal(tmp_path / "nothing")


def test_hub_id_that_cannot_be_fetched() -> None:
    assert "cannot be fetched" in _refusal("nobody/nothing-of-that-name")


def test_no_name() -> None:
    with pytest.raises(ConfigError, match=r"model\.name"):
        load_proxy(ModelConfig(), GRADIENTS)


def test_folder_without_config(tmp_path: Path) -> None:
    assert "config.json" in _refusal(tmp_path)


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{broken")
    assert "config.json" in _refusal(folder)


def test_unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-type"}))
    _refusal(folder)


def test_no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in _refusal(folder)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(ModelConfig(name=str(folder)))


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights in safetensors" in _refusal(folder)


def test_pickles_are_named_and_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"would run code")
    assert "pytorch_model.bin" in _refusal(folder)


def test_truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be loaded" in _refusal(folder)


def test_missing_tensors(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in _refusal(folder)


def test_encoder_is_not_causal(tmp_path: Path) -> None:
    config = tf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
    )
    tf.BertForMaskedLM(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert "no causal language model" in _refusal(tmp_path)


def test_base_model_without_a_head_is_not_causal(tmp_path: Path) -> None:
    tiny_model("llama").model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert "no causal language model" in _refusal(tmp_path)


def test_model_that_sees_later_tokens() -> None:
    config = tf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
    )
    model = tf.BertLMHeadModel(config).eval()
    proxy = Proxy.from_model(model, None, GRADIENTS)
    with pytest.raises(ModelError, match="no causal language model"):
        GradientEngine(proxy, GRADIENTS)


def test_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"model\.device"):
        load_proxy(ModelConfig(name="x", device="cuda:99"), GRADIENTS)
    with pytest.raises(ConfigError, match=r"model\.device"):
        load_proxy(ModelConfig(name="x", device="abacus"), GRADIENTS)


def test_pattern_chooses_by_full_name() -> None:
    with pytest.warns(UserWarning, match="of the non-embedding weights"):
        proxy = tiny_proxy("llama", layers=r"model\.layers\.1\.mlp\..*")
    assert [layer.name for layer in proxy.layers] == [
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    assert proxy.coverage == pytest.approx(0.3, abs=0.05)


def test_pattern_that_matches_nothing() -> None:
    with pytest.raises(ModelError, match=r"gradients\.layers 'mlp'.*model\.layers\.0"):
        tiny_proxy("llama", layers="mlp")


def test_pattern_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"gradients\.layers"):
        tiny_proxy("llama", layers="(")


def test_full_coverage_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny_proxy("llama").coverage > 0.98
