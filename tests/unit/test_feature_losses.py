"""Losses of responses, given their prompts and by themselves, against transformers' own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spice_select.data.conversation import Conversation
from spice_select.data.encoded import Encoded
from spice_select.data.status import Status
from spice_select.demo import demo_rows
from spice_select.errors import ModelError
from spice_select.features import losses as module
from spice_select.features.bench import Bench
from spice_select.features.losses import LossEngine, anchor_token, collect_losses, direct_examples, losses_of_store
from spice_select.gradients.batches import Engine
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.proxy import Proxy
from spice_select.gradients.store import GradientStore
from spice_select.methods.ifd import ifd
from tests.benches import Told, bench_of, chat_tokenizer, family_proxy, make_bench
from tests.encoding import assistant, byte_level, talk, user

WORDS = ["user", "asks", "question", "assistant", "answers", "it", "fine", "thanks", "weather", "Oslo", "sunny"]


def rows(count: int = 8, seed: int = 0) -> list[Conversation]:
    """Conversations of one, two or three turns, with responses of 1 to 9 words."""
    random = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(random.choice(WORDS, size=int(random.integers(1, 10))))

    return [
        talk(*(turn for _ in range(int(random.integers(1, 4))) for turn in (user(text()), assistant(text()))))
        for _ in range(count)
    ]


@torch.no_grad()
def own_losses(proxy: Proxy, encoded: Encoded, anchor: int) -> tuple[np.ndarray, np.ndarray]:
    """Both losses of every row by ``model(input_ids, labels).loss``, one example at a time."""
    found = np.full((2, len(encoded)), np.nan)
    for row in np.flatnonzero(encoded.usable):
        example = encoded.example(int(row))
        ids = torch.from_numpy(example.input_ids).long()
        mask = torch.from_numpy(example.labels_mask)
        alone = torch.cat([torch.tensor([anchor]), ids[mask]])
        unscored = alone.clone()
        unscored[0] = -100
        found[0, row] = proxy.model(input_ids=ids[None], labels=torch.where(mask, ids, -100)[None]).loss
        found[1, row] = proxy.model(input_ids=alone[None], labels=unscored[None]).loss
    return found[0], found[1]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_losses_are_those_of_transformers(tmp_path: Path, family: str, bos: bool) -> None:
    proxy = family_proxy(family, bos=bos)
    bench = make_bench(tmp_path, rows(), proxy=proxy)
    tokenizer = proxy.tokenizer
    anchor = tokenizer.convert_tokens_to_ids("<s>" if bos else "</s>")
    assert (tokenizer.bos_token_id is None) is not bos and anchor_token(proxy) == anchor
    losses, alone = collect_losses(bench, direct=True)
    assert alone is not None
    expected = own_losses(proxy, bench.pool.encoded, anchor)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
    np.testing.assert_allclose(alone, expected[1], rtol=1e-5)
    assert np.abs(losses - alone).min() > 1e-3, "the prompt makes a difference in every row"
    np.testing.assert_allclose(ifd(losses, alone), expected[0] / expected[1], rtol=2e-5)
    np.testing.assert_allclose(ifd(losses, alone, "superfiltering"), np.exp(expected[0] - expected[1]), rtol=2e-4)


def test_the_trained_demo_proxy_finds_prompts_helpful(tmp_path: Path) -> None:
    told = [{"prompt": row["instruction"], "response": row["output"]} for row in demo_rows(rows=16) if not row["input"]]
    bench = make_bench(tmp_path, told, proxy="demo")
    losses, alone = collect_losses(bench, direct=True)
    assert alone is not None and (ifd(losses, alone) < 0.7).all()
    expected = own_losses(bench.proxy, bench.pool.encoded, 1)
    np.testing.assert_allclose([losses, alone], expected, rtol=1e-5)


def test_both_passes_score_the_same_tokens(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, rows())
    encoded = bench.pool.encoded
    made = direct_examples(encoded, 5)
    assert np.array_equal(made.response_tokens, encoded.response_tokens)
    assert np.array_equal(made.lengths, encoded.response_tokens + 1) and (made.lengths <= encoded.lengths).all()
    for row in range(len(encoded)):
        given, alone = encoded.example(row), made.example(row)
        assert alone.input_ids[0] == 5 and not alone.labels_mask[0] and alone.labels_mask[1:].all()
        assert np.array_equal(alone.input_ids[1:], given.input_ids[given.labels_mask])


def test_turns_stand_one_after_the_other_behind_one_anchor(tmp_path: Path) -> None:
    proxy = family_proxy("llama")
    both = talk(user("Hi there"), assistant("Fine, thanks."), user("And?"), assistant("It is 4."))
    apart = [talk(user("x"), assistant(text)) for text in ("Fine, thanks.", "It is 4.")]
    encoded = make_bench(tmp_path, [both, *apart], proxy=proxy).pool.encoded
    made = direct_examples(encoded, 7)
    joined = np.concatenate([[7], made.example(1).input_ids[1:], made.example(2).input_ids[1:]])
    assert np.array_equal(made.example(0).input_ids, joined)


def test_rows_without_a_loss_are_nan_and_keep_their_status(tmp_path: Path) -> None:
    told = rows(6)
    told[2] = talk(user("What is it?"), assistant(""))
    bench = make_bench(tmp_path, told)
    bench.pool = type(bench.pool)(
        bench.pool.rows,
        bench.pool.schemas,
        bench.pool.tokenizer,
        bench.pool.encoded.with_excluded(np.arange(6) == 4),
        (),
    )
    losses, alone = collect_losses(bench, direct=True)
    assert alone is not None
    assert np.flatnonzero(np.isnan(losses)).tolist() == np.flatnonzero(np.isnan(alone)).tolist() == [2, 4]
    made = direct_examples(bench.pool.encoded, 0)
    assert made.status.tolist() == [0, 0, Status.NO_RESPONSE, 0, Status.EXCLUDED, 0]


def test_a_loss_that_is_no_number_is_nan_and_said(tmp_path: Path) -> None:
    proxy = family_proxy("llama")
    token = chat_tokenizer().encode("Q", add_special_tokens=False)[0]
    with torch.no_grad():
        proxy.model.get_input_embeddings().weight[token] = torch.nan
    told = [talk(user("fine"), assistant("It is.")), talk(user("Q"), assistant("It is.")), *rows(3)]
    reporter = Told()
    bench = make_bench(tmp_path, told, proxy=proxy, reporter=reporter)
    losses, alone = collect_losses(bench, direct=True)
    assert alone is not None
    assert np.flatnonzero(np.isnan(losses)).tolist() == [1], "NaN given the prompt"
    assert not np.isnan(alone).any(), "which the response alone does not hold"
    assert any(line.startswith("Row 1 has a NaN") for line in reporter.warnings)
    assert np.isnan(ifd(losses, alone)).tolist() == [False, True, False, False, False]


def test_batches_do_not_show(tmp_path: Path) -> None:
    told, proxy = rows(), family_proxy("gemma2")
    small = collect_losses(make_bench(tmp_path / "a", told, proxy=proxy, gradients={"batch_tokens": 1}), direct=True)
    large = collect_losses(make_bench(tmp_path / "b", told, proxy=proxy, gradients={"batch_tokens": 9999}), direct=True)
    assert small[1] is not None and large[1] is not None
    np.testing.assert_allclose(small[0], large[0], rtol=1e-5)
    np.testing.assert_allclose(small[1], large[1], rtol=1e-5)


def test_passes_are_forward_and_count_the_tokens_that_went_through(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, rows())
    encoded = bench.pool.encoded
    assert collect_losses(bench, direct=False)[1] is None
    assert [passes.what for passes in bench.passes.values()] == ["losses"]
    collect_losses(bench, direct=True)
    given, alone = bench.passes.values()
    assert (given.what, given.forwards, given.backwards) == ("losses", 8, 0)
    assert (alone.what, alone.forwards, alone.backwards) == ("direct-losses", 8, 0)
    assert given.tokens == encoded.lengths.sum() and given.backward_tokens == alone.backward_tokens == 0
    assert alone.tokens == encoded.response_tokens.sum() + 8


class Refusing(LossEngine):
    """Measures nothing."""

    def batch(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> module.LossBatch:
        raise AssertionError("measured again")


class Dying(LossEngine):
    """Dies in the third batch."""

    batches = 0

    def batch(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> module.LossBatch:
        Dying.batches += 1
        if Dying.batches == 3:
            raise KeyboardInterrupt
        return super().batch(ids, masks)


def test_what_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = family_proxy("llama")
    bench = make_bench(tmp_path, rows(), proxy=proxy)
    first = collect_losses(bench, direct=True)
    monkeypatch.setattr(module, "LossEngine", Refusing)
    again = bench_of(bench.config, proxy, bench.folder)
    second = collect_losses(again, direct=True)
    assert np.array_equal(first[0], second[0])
    assert first[1] is not None and second[1] is not None and np.array_equal(first[1], second[1])
    assert again.passes == bench.passes, "and the count is of all runs together"


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, told = family_proxy("llama"), rows()
    settings: dict[str, Any] = {"gradients": {"shard_rows": 3, "batch_tokens": 64}}
    whole = collect_losses(make_bench(tmp_path / "whole", told, proxy=proxy, **settings), direct=False)[0]
    bench = make_bench(tmp_path / "cut", told, proxy=proxy, **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "LossEngine", Dying)
        collect_losses(bench, direct=False)
    done = int(next(iter(bench.passes.values())).forwards)
    assert 0 < done < 8
    resumed = bench_of(bench.config, proxy, bench.folder)
    assert np.array_equal(collect_losses(resumed, direct=False)[0], whole)
    assert next(iter(resumed.passes.values())).forwards <= done + 8


def gradients_of(bench: Bench) -> GradientStore:
    engine: Engine = GradientEngine(bench.proxy, bench.config.gradients)
    return bench.collect("gradients", bench.pool.encoded, engine, backwards=1)


def test_losses_that_came_with_gradients_save_a_pass(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, rows(), gradients={"dim": 16})
    store = gradients_of(bench)
    losses, alone = collect_losses(bench, direct=True, store=store)
    assert alone is not None and losses is store.losses
    assert [passes.what for passes in bench.passes.values()] == ["gradients", "direct-losses"]
    np.testing.assert_allclose(losses, collect_losses(bench, direct=False)[0], rtol=1e-5)


def test_gradients_of_all_tokens_have_other_losses(tmp_path: Path) -> None:
    told = rows()
    proxy = family_proxy("llama", dim=16)
    bench = make_bench(tmp_path / "all", told, proxy=proxy, gradients={"dim": 16, "loss": "all"})
    store = gradients_of(bench)
    responses = make_bench(tmp_path / "responses", told, proxy=proxy)
    assert losses_of_store(store, responses.pool.encoded) is None
    found = collect_losses(bench, direct=True, store=store)
    expected = collect_losses(responses, direct=True)
    assert found[1] is not None and expected[1] is not None
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert np.abs(found[0] - store.losses).max() > 1e-2


def test_a_row_that_is_nothing_but_its_response_has_difficulty_one(tmp_path: Path) -> None:
    told = [talk(assistant(text), kind="text") for text in ("The weather in Oslo is sunny", "It is 4.", "Hi there")]
    bench = make_bench(tmp_path, told, proxy="demo", gradients={"batch_tokens": 20})
    losses, alone = collect_losses(bench, direct=True)
    assert alone is not None
    assert np.array_equal(ifd(losses, alone), np.ones(3)), "to the bit, so that rounding cannot put it above 1"


def test_the_anchor_is_part_of_what_was_measured() -> None:
    proxy = family_proxy("llama")
    assert LossEngine(proxy, 3).spec() != LossEngine(proxy, 4).spec() != LossEngine(proxy).spec()


def test_a_tokenizer_without_either_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = family_proxy("llama")
    monkeypatch.setattr(proxy, "tokenizer", byte_level())
    bench = make_bench(tmp_path, rows(3), proxy=proxy)
    with pytest.raises(ModelError, match="neither a BOS nor an EOS token") as caught:
        collect_losses(bench, direct=True)
    assert "bos_token" in str(caught.value) and not bench.passes, "found before anything is measured"
    assert collect_losses(bench, direct=False)[0].shape == (3,), "which needs no anchor"
