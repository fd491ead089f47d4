"""Embeddings: hidden states against the model's own, and a sentence-transformers model against its own encode."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spice_select.config import EmbeddingConfig, resolve
from spice_select.data.conversation import Conversation, Message
from spice_select.errors import ConfigError, ModelError
from spice_select.features.embeddings import embed_pool, embed_target
from spice_select.features.sentences import SentenceEngine, encode_texts, plain_text
from spice_select.features.states import StateEngine
from spice_select.features.target import read_target
from spice_select.gradients import Proxy
from tests.benches import Told, family_proxy, make_bench

FAMILIES = ["llama", "qwen2", "gemma2", "gpt2", "opt", "mixtral"]
ROWS = [
    {"prompt": "Add two and three.", "response": "Five."},
    {"prompt": "Name a colour of the sky on a clear day at noon.", "response": "Blue, as a rule."},
    {"prompt": "Say nothing.", "response": ""},
    {"prompt": "Hi", "response": "Hello there, how may I help you today? Ask me anything you like."},
]


def _states(proxy: Proxy, ids: np.ndarray) -> list[np.ndarray]:
    """All hidden states of one example by itself, by the model's own account."""
    with torch.no_grad():
        found = proxy.model(input_ids=torch.from_numpy(ids).long()[None], use_cache=False, output_hidden_states=True)
    return [state[0].double().numpy() for state in found.hidden_states]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_hidden_states_are_those_of_each_example_by_itself(tmp_path: Path, family: str, layer: int) -> None:
    proxy = family_proxy(family)
    found = embed_pool(make_bench(tmp_path, ROWS, proxy=proxy, embeddings={"layer": layer}))
    bench = make_bench(tmp_path / "again", ROWS, proxy=proxy)
    assert found.dtype == np.float32
    for row in (0, 1, 3):
        expected = _states(proxy, bench.pool.encoded.example(row).input_ids)[layer].mean(axis=0)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    assert not found[2].any()


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("span", ["all", "prompt", "response"])
def test_pooling_and_span(tmp_path: Path, pooling: str, span: str) -> None:
    proxy = family_proxy("llama")
    bench = make_bench(tmp_path, ROWS, proxy=proxy, embeddings={"pooling": pooling, "span": span})
    found = embed_pool(bench)
    for row in (0, 1, 3):
        example = bench.pool.encoded.example(row)
        counted = {"all": example.labels_mask | True, "prompt": ~example.labels_mask, "response": example.labels_mask}
        states = _states(proxy, example.input_ids)[-1][counted[span]]
        expected = states.mean(axis=0) if pooling == "mean" else states[-1]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_neighbours_in_a_batch_change_nothing(tmp_path: Path) -> None:
    engine = StateEngine(family_proxy("gemma2"), EmbeddingConfig())
    ids = [np.arange(1, 1 + size) for size in (40, 7, 23)]
    masks = [np.arange(len(row)) > 2 for row in ids]
    together = engine.batch(ids, masks)
    for place in range(3):
        alone = engine.batch([ids[place]], [masks[place]])
        np.testing.assert_allclose(together.rows[place], alone.rows[0], atol=1e-5)
    np.testing.assert_allclose(together.squared_norms, (together.rows.astype(np.float64) ** 2).sum(axis=1), rtol=1e-5)


def test_no_logits_are_computed() -> None:
    proxy = family_proxy("llama")
    engine = StateEngine(proxy, EmbeddingConfig())
    called = []
    handle = proxy.model.get_output_embeddings().register_forward_hook(lambda *args: called.append(1))
    try:
        engine.batch([np.arange(9)], [np.arange(9) > 3])
        assert not called
        proxy.model(input_ids=torch.arange(9)[None])
        assert called
    finally:
        handle.remove()


def test_the_last_layer_has_two_numbers_and_one_store(tmp_path: Path) -> None:
    proxy = family_proxy("llama")
    by_name = StateEngine(proxy, EmbeddingConfig(layer=-1))
    by_number = StateEngine(proxy, EmbeddingConfig(layer=2))
    assert by_name.spec() == by_number.spec()
    assert StateEngine(proxy, EmbeddingConfig(layer=1)).spec() != by_name.spec()


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_is_not_there(layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"'embeddings.layer' cannot be {layer}, .* the hidden layers 0 to 2"):
        StateEngine(family_proxy("llama"), EmbeddingConfig(layer=layer))


def test_spans_need_a_response_of_their_own(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, ROWS, embeddings={"span": "response"}, gradients={"loss": "all"})
    with pytest.raises(ConfigError, match=r"'embeddings.span' cannot be 'response' with gradients.loss 'all'"):
        embed_pool(bench)
    bench = make_bench(tmp_path, ROWS, embeddings={"revision": "main"})
    with pytest.raises(ConfigError, match=r"'embeddings.revision' cannot be 'main' without embeddings.model"):
        embed_pool(bench)


def test_measured_once_and_counted(tmp_path: Path) -> None:
    proxy = family_proxy("llama")
    bench = make_bench(tmp_path, ROWS, proxy=proxy)
    first = embed_pool(bench)
    (passes,) = bench.passes.values()
    assert (passes.forwards, passes.backwards) == (3, 0)
    assert passes.tokens == int(bench.pool.encoded.lengths.sum())
    again = make_bench(tmp_path, ROWS, proxy=proxy)
    np.testing.assert_array_equal(embed_pool(again), first)
    assert next(iter(again.passes.values())).forwards == 3


def test_target_examples_are_embedded_as_rows_are(tmp_path: Path) -> None:
    file = tmp_path / "target.jsonl"
    file.write_text("".join(json.dumps(ROWS[row]) + "\n" for row in (3, 0)))
    bench = make_bench(tmp_path / "pool", ROWS, data={"target": [str(file)]})
    target = read_target(bench.config, bench.pool, bench.reporter, bench.clock)
    np.testing.assert_allclose(embed_target(bench, target), embed_pool(bench)[[3, 0]], atol=1e-5)


def test_plain_text() -> None:
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"key": "a"}}}
    turns = (
        Message("system", "Be brief."),
        Message("user", " Who? \n"),
        Message("assistant", "", tool_calls=[call]),
        Message("tool", "x"),
        Message("assistant", "Me."),
    )
    conversation = Conversation(turns)
    written = json.dumps(call, sort_keys=True)
    assert plain_text(conversation, "all") == f"Be brief.\n\nWho?\n\n{written}\n\nx\n\nMe."
    assert plain_text(conversation, "prompt") == "Be brief.\n\nWho?\n\nx"
    assert plain_text(conversation, "response") == f"{written}\n\nMe."


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with mean pooling, saved as sentence-transformers saves one."""
    pytest.importorskip("sentence_transformers", reason="the extra 'embeddings' is not installed")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers as tf
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        folder = tmp_path_factory.mktemp("bert")
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.,?!"]
        vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        tokenizer = tf.BertTokenizerFast(vocab={word: place for place, word in enumerate(vocabulary)})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = tf.BertModel(
                tf.BertConfig(
                    vocab_size=len(vocabulary),
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    intermediate_size=48,
                    max_position_embeddings=64,
                )
            )
        model.save_pretrained(folder / "plain")
        tokenizer.save_pretrained(folder / "plain")
        transformer = Transformer(str(folder / "plain"))
        whole = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
        whole.save_pretrained(str(folder / "whole"))
    return folder / "whole"


def _encoded_by_library(folder: Path, texts: list[str]) -> np.ndarray:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        return np.stack([SentenceTransformer(str(folder), device="cpu").encode(text) for text in texts])


def test_sentence_model_sees_the_plain_text(tmp_path: Path, sentence_model: Path) -> None:
    bench = make_bench(tmp_path, ROWS, embeddings={"model": str(sentence_model)})
    found = embed_pool(bench)
    texts = [f"{row['prompt']}\n\n{row['response']}" for row in ROWS]
    np.testing.assert_allclose(found[[0, 1, 3]], _encoded_by_library(sentence_model, texts)[[0, 1, 3]], atol=1e-5)
    assert not found[2].any()
    (passes,) = bench.passes.values()
    assert passes.forwards == 3
    prompts = embed_pool(make_bench(tmp_path / "p", ROWS, embeddings={"model": str(sentence_model), "span": "prompt"}))
    expected = _encoded_by_library(sentence_model, [row["prompt"] for row in ROWS])
    np.testing.assert_allclose(prompts[[0, 1, 3]], expected[[0, 1, 3]], atol=1e-5)


def test_other_text_is_measured_anew(tmp_path: Path, sentence_model: Path) -> None:
    settings: dict[str, Any] = {"embeddings": {"model": str(sentence_model)}}
    first = embed_pool(make_bench(tmp_path, ROWS, **settings))
    changed = [{**ROWS[0], "response": "Six."}, *ROWS[1:]]
    second = embed_pool(make_bench(tmp_path, changed, **settings))
    assert np.abs(first[0] - second[0]).max() > 1e-4
    np.testing.assert_allclose(first[1:], second[1:], atol=1e-5)


@pytest.mark.parametrize("text", ["", "a", "abcd", "abcde", "é ☃ 𝄞", "a\0b", "\ud800"])
def test_texts_survive_as_numbers(tmp_path: Path, text: str) -> None:
    from spice_select.features.sentences import _packed, _unpacked

    back = _unpacked(_packed(text)[0])
    assert back == text.replace("\0", " ").replace("\ud800", "?")
    encoded = make_bench(tmp_path, ROWS).pool.encoded
    numbered = encode_texts([text] * 4, encoded)
    assert len(numbered) == 4 and numbered.usable.tolist() == encoded.usable.tolist()
    assert numbered.lengths[2] == 0


def _engine(model: Path | str, **settings: Any) -> SentenceEngine:
    config = resolve({"embeddings": {"model": str(model), **settings}, "model": {"device": "cpu"}})
    return SentenceEngine(config.embeddings, config.model)


def test_settings_of_the_proxy_do_not_go_with_a_sentence_model(sentence_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"'embeddings.pooling' cannot be 'last' beside embeddings.model"):
        _engine(sentence_model, pooling="last")
    with pytest.raises(ConfigError, match=r"'embeddings.layer' cannot be 3 beside embeddings.model"):
        _engine(sentence_model, layer=3)
    with pytest.raises(ConfigError, match=r"'embeddings.revision' cannot be 'main'"):
        _engine(sentence_model, revision="main")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, sentence_model: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "sentence_transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'pip install "spice-select\[embeddings\]"'):
        _engine(sentence_model)


def test_pickles_and_foreign_code_are_refused(tmp_path: Path, sentence_model: Path) -> None:
    import shutil

    pickled = tmp_path / "pickled"
    shutil.copytree(sentence_model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin and none in safetensors"):
        _engine(pickled)
    foreign = tmp_path / "foreign"
    shutil.copytree(sentence_model, foreign)
    modules = json.loads((foreign / "modules.json").read_text())
    modules[1]["type"] = "evil.Pooling"
    (foreign / "modules.json").write_text(json.dumps(modules))
    (foreign / "evil.py").write_text("raise SystemExit('code of the model was run')\n")
    with pytest.raises(ModelError, match=r"runs code of its own \(evil.Pooling\).*model.trust_remote_code"):
        _engine(foreign)
    (foreign / "modules.json").unlink()
    with pytest.raises(ModelError, match=r"no modules.json"):
        _engine(foreign)
    with pytest.raises(ModelError, match=r"does not exist"):
        _engine(tmp_path / "nowhere")


def test_progress_is_told(tmp_path: Path) -> None:
    told = Told()
    embed_pool(make_bench(tmp_path, ROWS, reporter=told))
    assert told.stages == ["Embeddings"]
