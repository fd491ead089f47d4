"""What holds for any conversation, whatever its characters."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.config import DataConfig
from spice_select.data.conversation import Conversation
from spice_select.data.encode import Encoder, fit
from spice_select.data.status import Status
from tests.encoding import CHATML, assistant, byte_level, decode, runs, sentence_piece, talk, user

# A control token of its own after the heading: no merge across the border, so that the trained text is exact.
SHARP = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<s>")
TEMPLATES = {
    "sharp": SHARP,
    "blocks": SHARP.replace("{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content", (
        "{{ '<|im_start|>' + m.role + '<|im_sep|>' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ ''"
    )),
    "no prefix": "{{ messages | length }}" + SHARP,
    "stripping": SHARP.replace("m.content", "m.content.strip()"),
}  # fmt: skip

pieces = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "<|im_end|>",
            "<|im_start|>assistant<|im_sep|>",
            "<s>",
            "\n",
            "  ",
            "🙂",
            "e\u0301",
            "\U00100001",
            "\U0010fffd",
            "日本",
        ]
    ),
    st.text(st.characters(min_codepoint=0x100000, max_codepoint=0x10FFFF), max_size=3),
)
contents = st.lists(pieces, max_size=5).map("".join).map(lambda text: text.encode("utf-8", "replace").decode())
turns = st.lists(st.tuples(contents, contents), min_size=1, max_size=3)


@cache
def tokenizer(kind: str, template: str) -> Any:
    make = byte_level if kind == "bytes" else sentence_piece
    return make(SPECIAL, TEMPLATES[template], bos_token="<s>")


@cache
def encoder(kind: str, template: str) -> Encoder:
    return Encoder(tokenizer(kind, template), DataConfig(max_length=100_000))


def conversation(pairs: list[tuple[str, str]]) -> Conversation:
    return talk(*(message for question, answer in pairs for message in (user(question), assistant(answer))))


def stripped(text: str) -> str:
    bare = text.rstrip()
    while ending := next((special for special in SPECIAL if bare.endswith(special)), None):
        text = bare.removesuffix(ending)
        bare = text.rstrip()
    return text


@pytest.mark.parametrize("template", TEMPLATES)
@given(turns)
@settings(max_examples=60)
def test_trained_is_every_response_with_its_end_and_nothing_else(template: str, pairs: list[tuple[str, str]]) -> None:
    model = tokenizer("bytes", template)
    example = encoder("bytes", template).encode(conversation(pairs))
    answers = [stripped(answer) for _, answer in pairs]
    expected = [answer.strip() if template == "stripping" else answer for answer in answers if answer.strip()]
    if not expected:
        assert example.status is Status.NO_RESPONSE
        assert len(example.input_ids) == 0
        return
    assert example.status is Status.OK
    assert runs(example, model) == [answer + "<|im_end|>" for answer in expected]
    # Each turn has one control token of each kind, whatever the data says.
    ids = example.input_ids.tolist()
    for text in SPECIAL[:3]:
        assert ids.count(model.convert_tokens_to_ids(text)) == 2 * len(pairs)
    assert ids.count(model.bos_token_id) == 1


@given(turns)
@settings(max_examples=40)
def test_ids_are_those_of_the_tokenizer_where_no_control_string_is_in_the_data(pairs: list[tuple[str, str]]) -> None:
    for kind in ("bytes", "pieces"):
        model = tokenizer(kind, "sharp")
        clean = [
            (question, answer) for question, answer in pairs if not any(s in question or s in answer for s in SPECIAL)
        ]
        example = encoder(kind, "sharp").encode(conversation(clean)) if clean else None
        if example is None or example.status is not Status.OK:
            continue
        messages = [
            {"role": role, "content": text}
            for pair in clean
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        assert example.input_ids.tolist() == model.apply_chat_template(messages, return_dict=False)


@given(st.lists(turns, min_size=1, max_size=6))
@settings(max_examples=40)
def test_a_row_does_not_depend_on_its_batch(batch: list[list[tuple[str, str]]]) -> None:
    model = tokenizer("pieces", "sharp")
    together = Encoder(model, DataConfig(max_length=64)).encode_batch([conversation(pairs) for pairs in batch])
    for pairs, example in zip(batch, together, strict=True):
        alone = Encoder(model, DataConfig(max_length=64)).encode(conversation(pairs))
        assert alone.digest == example.digest
        assert alone.status is example.status


@given(turns, st.integers(8, 80))
@settings(max_examples=60)
def test_truncation_keeps_a_response_in_view(pairs: list[tuple[str, str]], length: int) -> None:
    model = tokenizer("bytes", "sharp")
    whole = encoder("bytes", "sharp").encode(conversation(pairs))
    cut = Encoder(model, DataConfig(max_length=length)).encode(conversation(pairs))
    if whole.status is Status.NO_RESPONSE:
        assert cut.status is Status.NO_RESPONSE
        return
    assert 0 < len(cut.input_ids) <= max(length, 0)
    assert cut.labels_mask.any()
    assert not cut.labels_mask[0]
    if cut.status is Status.OK:
        np.testing.assert_array_equal(cut.input_ids, whole.input_ids[: len(cut.input_ids)])
        assert cut.labels_mask.sum() == whole.labels_mask.sum()


@given(st.integers(2, 60), st.data())
def test_fit_cuts_prompt_before_response(total: int, data: st.DataObject) -> None:
    mask = np.zeros(total, bool)
    first = data.draw(st.integers(1, total - 1))
    mask[first : data.draw(st.integers(first + 1, total))] = True
    length = data.draw(st.integers(8, 80))
    ids, kept, cut = fit(np.arange(total, dtype=np.int32), mask, length, 0)
    assert len(ids) <= length
    assert (np.diff(ids) > 0).all()
    trained = int(mask.sum())
    assert kept.sum() == min(trained, max(length - min(first, max(length // 4, 1)), length - first))
    if kept.sum() < trained:  # the prompt has given way first
        assert (~kept).sum() <= max(length // 4, 1)
    assert ids[0] == 0 or not cut or (~kept).sum() == 1


@given(contents)
def test_texts_decode_to_themselves(text: str) -> None:
    model = tokenizer("bytes", "sharp")
    example = encoder("bytes", "sharp").encode(Conversation((assistant(text),), kind="text"))
    bare = stripped(text)
    if len(model(bare, add_special_tokens=False)["input_ids"]) < 2 or not bare.strip():
        return
    assert decode(model, example.input_ids) == bare


def test_the_plain_template_is_exact_too() -> None:
    model = byte_level(["</s>"], None, eos_token="</s>")
    example = Encoder(model, DataConfig()).encode(talk(user("a"), assistant("b\n"), user("c"), assistant("d")))
    assert [run.lstrip("\n") for run in runs(example, model)] == ["b\n</s>", "d</s>"]
    assert CHATML not in (model.chat_template or "")
