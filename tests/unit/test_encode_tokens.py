"""Control-token strings in data, truncation, the clock, template sources, statistics, and rows in columns."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from spice_select.config import DataConfig
from spice_select.data.encode import Encoder, encode_conversations, encode_rows, fit
from spice_select.data.sources import load_rows
from spice_select.data.status import Status
from spice_select.data.templates import CLOCK
from spice_select.errors import ConfigError, ModelError
from tests.encoding import (
    CHATML,
    CHATML_SPECIAL,
    assistant,
    byte_level,
    decode,
    runs,
    sentence_piece,
    system,
    talk,
    user,
)
from tests.support import smollm2_path

PAIR = talk(user("What is 2+2?"), assistant("It is 4."))


def count(tokenizer, ids, text: str) -> int:
    return [int(token) for token in ids].count(tokenizer.convert_tokens_to_ids(text))


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_control_strings_in_data_are_text(make) -> None:
    tokenizer = make()
    encoder = Encoder(tokenizer, DataConfig())
    example = encoder.encode(talk(user("a <|im_end|> b<|im_start|>"), assistant("say <|im_end|> now")))
    assert runs(example, tokenizer) == ["say <|im_end|> now<|im_end|>"]
    assert count(tokenizer, example.input_ids, "<|im_end|>") == 2
    assert count(tokenizer, example.input_ids, "<|im_start|>") == 2
    assert encoder.stats.special_text == 1
    assert encoder.stats.fallback_tokens == 0
    # Around them the tokens are those of the same text without control tokens.
    harmless = encoder.encode(talk(user("a"), assistant("say < | im_end|> now")))
    assert decode(tokenizer, harmless.input_ids[harmless.labels_mask]) == "say < | im_end|> now<|im_end|>"


def test_text_tokens_of_control_strings_are_those_of_a_tokenizer_without_them() -> None:
    tokenizer, bare = byte_level(), byte_level(special=("<|im_start|>",))
    example = Encoder(tokenizer, DataConfig()).encode(talk(user("x"), assistant("say <|im_end|> now")))
    expected = bare("say <|im_end|> now", add_special_tokens=False)["input_ids"]
    assert example.input_ids[example.labels_mask][:-1].tolist() == expected


def test_control_strings_that_the_template_joins_from_data_and_itself_are_the_templates() -> None:
    tokenizer = byte_level(("<|user|>", "<|assistant|>", "<|end|>"), (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ))  # fmt: skip
    example = Encoder(tokenizer, DataConfig()).encode(talk(user("<|end|>"), assistant("<|user|> x")))
    assert [count(tokenizer, example.input_ids, text) for text in ("<|user|>", "<|assistant|>", "<|end|>")] == [1, 1, 2]


def test_a_special_string_at_the_end_of_a_response_is_stripped_and_counted() -> None:
    tokenizer = byte_level()
    encoder = Encoder(tokenizer, DataConfig())
    example = encoder.encode(talk(user("a"), assistant("done<|im_end|> \n<|im_end|>\n")))
    assert runs(example, tokenizer) == ["done<|im_end|>"]
    assert (encoder.stats.stripped, encoder.stats.special_text) == (1, 0)
    assert encoder.encode(talk(user("a"), assistant("<|im_end|>"))).status is Status.NO_RESPONSE


def test_added_tokens_that_are_not_special() -> None:
    tokenizer = byte_level(template=CHATML + "{# <think> #}{{ '' if true else '<think>' }}")
    tokenizer.add_tokens(["<think>"])
    example = Encoder(tokenizer, DataConfig()).encode(talk(user("is <think> a tag?"), assistant("<think>ok")))
    # A response may hold them, as the model writes them; what it reads is text, as the template writes them itself.
    assert count(tokenizer, example.input_ids[example.labels_mask], "<think>") == 1
    assert count(tokenizer, example.input_ids, "<think>") == 1


def test_half_a_character_does_not_stop_a_run() -> None:
    tokenizer = byte_level()
    example = Encoder(tokenizer, DataConfig()).encode(talk(user("a \ud83d b"), assistant("ok \udc00")))
    assert runs(example, tokenizer) == ["ok \ufffd<|im_end|>"]


def test_a_tokenizer_without_character_positions(tmp_path: Path) -> None:
    class Slow:
        """A fast tokenizer that hides what makes it fast."""

        def __init__(self, inner) -> None:
            self._inner, self.is_fast = inner, False

        def __getattr__(self, name: str):
            return getattr(self._inner, name)

        def __call__(self, *args, **kwargs):
            return self._inner(*args, **kwargs)

    inner = byte_level()
    conversation = talk(user("a <|im_end|> b"), assistant("say <|im_end|> now"), user("x"), assistant("Fine."))
    encoder = Encoder(Slow(inner), DataConfig())
    example = encoder.encode(conversation)
    assert runs(example, inner) == ["say <|im_end|> now<|im_end|>", "Fine.<|im_end|>"]
    assert count(inner, example.input_ids, "<|im_end|>") == 4
    assert encoder.stats.fallback_tokens == 1
    np.testing.assert_array_equal(
        decode(inner, example.input_ids), decode(inner, Encoder(inner, DataConfig()).encode(conversation).input_ids)
    )


@pytest.mark.parametrize("eos", [None, "</s>"])
def test_a_tokenizer_with_neither_template_nor_pad(eos: str | None) -> None:
    tokenizer = byte_level([eos] if eos else [], None, **({"eos_token": eos} if eos else {}))
    assert tokenizer.pad_token is None
    encoder = Encoder(tokenizer, DataConfig())
    example = encoder.encode(talk(system("Short."), user("Hi"), assistant("Yo"), user("And"), assistant("So")))
    end = eos or ""
    text = f"Short.\n\n### User:\nHi\n\n### Assistant:\nYo{end}\n\n### User:\nAnd\n\n### Assistant:\nSo{end}\n\n"
    assert tokenizer.decode(example.input_ids) == text
    assert encoder.stats.template == "plain"
    assert encoder.stats.without_end == (0 if eos else 1)
    if eos:
        assert [run.lstrip() for run in runs(example, tokenizer)] == ["Yo</s>", "So</s>"]


def test_the_clock_stands_still_and_is_recorded() -> None:
    dated = "{{ 'Today: ' + strftime_now('%d %B %Y') + '\n' }}" + CHATML
    tokenizer = byte_level(template=dated)
    encoder = Encoder(tokenizer, DataConfig())
    text = tokenizer.decode(encoder.encode(PAIR).input_ids)
    assert text.startswith(f"Today: {CLOCK:%d %B %Y}\n")
    assert encoder.identity["clock"] == encoder.stats.clock == "2025-01-01"
    assert any("2025-01-01" in line for line in encoder.stats.describe())
    # Nothing of that leaks into transformers.
    assert f"{datetime.now():%Y}" in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert Encoder(byte_level(), DataConfig()).identity["clock"] is None


def test_the_template_of_the_settings_as_text_or_file(tmp_path: Path) -> None:
    tokenizer = byte_level(template=None)
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML)
    by_text = Encoder(tokenizer, DataConfig(chat_template=CHATML))
    by_file = Encoder(tokenizer, DataConfig(chat_template=str(file)))
    assert by_text.encode(PAIR).digest == by_file.encode(PAIR).digest
    assert by_text.identity == by_file.identity
    assert by_text.stats.template == "setting"
    with pytest.raises(ConfigError, match=r"chat_template.*nowhere\.jinja"):
        Encoder(tokenizer, DataConfig(chat_template="nowhere.jinja"))
    with pytest.raises(ConfigError, match="no Jinja template"):
        Encoder(tokenizer, DataConfig(chat_template="{% for %}"))
    with pytest.raises(ModelError, match="no Jinja template"):
        Encoder(byte_level(template="{% for %}"), DataConfig())


def test_a_template_cannot_reach_python() -> None:
    evil = "{{ messages.__class__.__mro__ }}" + CHATML
    encoder = Encoder(byte_level(template=evil), DataConfig())
    assert encoder.encode(PAIR).status is Status.NO_RESPONSE
    assert "unsafe" in encoder.stats.failures[0].reason


def test_prompts_give_way_first_and_responses_stay_in_view() -> None:
    tokenizer = byte_level([*CHATML_SPECIAL, "<s>"], "{{ bos_token }}" + CHATML, bos_token="<s>")
    long_prompt = talk(user("word " * 200), assistant("It is 4."))
    encoder = Encoder(tokenizer, DataConfig(max_length=32))
    example = encoder.encode(long_prompt)
    assert example.status is Status.TRUNCATED
    assert len(example.input_ids) == 32
    assert example.input_ids[0] == tokenizer.bos_token_id
    assert runs(example, tokenizer) == ["It is 4.<|im_end|>"]
    assert (encoder.stats.truncated, encoder.stats.responses_cut) == (1, 0)
    long_response = encoder.encode(talk(user("hi " * 100), assistant("word " * 200)))
    assert len(long_response.input_ids) == 32
    assert long_response.labels_mask.sum() == 24
    assert (encoder.stats.truncated, encoder.stats.responses_cut) == (2, 1)


def test_what_follows_the_response_goes_without_a_word() -> None:
    ids, mask = np.arange(12, dtype=np.int32), np.zeros(12, bool)
    mask[3:6] = True
    kept, kept_mask, cut = fit(ids, mask, 8, None)
    assert kept.tolist() == [0, 1, 2, 3, 4, 5]
    assert kept_mask.sum() == 3
    assert cut is False


def test_every_token_but_the_first_with_the_loss_of_all() -> None:
    encoder = Encoder(byte_level(), DataConfig(), loss="all")
    example = encoder.encode(PAIR)
    np.testing.assert_array_equal(example.labels_mask, np.arange(len(example.input_ids)) > 0)
    assert encoder.identity["loss"] == "all"
    assert Encoder(byte_level(), DataConfig(max_length=12), loss="all").encode(PAIR).labels_mask.sum() == 11


def test_rows_keep_their_number(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add 2 and 2.", "output": "4"},
        {"instruction": "Say nothing.", "output": ""},
        {"instruction": "Add 3 and 3.", "output": "6"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    tokenizer = byte_level()
    encoded = encode_rows(load_rows([str(file)]), tokenizer, DataConfig())
    assert len(encoded) == 3
    assert encoded.status.tolist() == [Status.OK, Status.NO_RESPONSE, Status.OK]
    assert encoded.usable.tolist() == [True, False, True]
    assert encoded.offsets[1] == encoded.offsets[2]
    assert runs(encoded.example(2), tokenizer) == ["6<|im_end|>"]
    assert encoded.response_tokens.tolist() == [int(encoded.example(row).labels_mask.sum()) for row in range(3)]
    assert encoded.digests[0].tobytes() == encoded.example(0).digest
    assert encoded.stats.rows == 3
    assert encoded.stats.usable == 2
    assert "2 of 3 rows" in encoded.stats.describe()[0]


def test_digests_follow_content_and_order() -> None:
    tokenizer = byte_level()
    other = talk(user("What is 2+3?"), assistant("It is 5."))
    one, two = (encode_conversations(order, tokenizer, DataConfig()) for order in ([PAIR, other], [other, PAIR]))
    assert one.digest != two.digest
    assert one.digest == encode_conversations([PAIR, other], tokenizer, DataConfig()).digest
    excluded = one.with_excluded(np.array([True, False]))
    assert excluded.status.tolist() == [Status.EXCLUDED, Status.OK]
    assert excluded.digest != one.digest


def test_no_rows_and_one_row() -> None:
    tokenizer = byte_level()
    nothing = encode_conversations([], tokenizer, DataConfig())
    assert (len(nothing), len(nothing.ids), nothing.offsets.tolist()) == (0, 0, [0])
    assert len(nothing.digest) == 64
    assert nothing.stats.describe()[0].startswith("0 of 0 rows")
    assert len(encode_conversations([PAIR], tokenizer, DataConfig())) == 1


def test_identity_changes_with_what_changes_the_ids() -> None:
    tokenizer = byte_level()
    base = Encoder(tokenizer, DataConfig()).identity
    for options in (DataConfig(max_length=99), DataConfig(train_on="last"), DataConfig(chat_template=CHATML + " ")):
        assert Encoder(tokenizer, options).identity != base
    assert json.loads(json.dumps(base)) == base


def test_smollm2_writes_its_system_turn_and_a_newline_after_the_end() -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path())
    encoder = Encoder(tokenizer, DataConfig())
    example = encoder.encode(talk(user("What is 2+2?"), assistant("It is 4."), user("Thanks"), assistant("Welcome.")))
    assert runs(example, tokenizer) == ["It is 4.<|im_end|>", "Welcome.<|im_end|>"]
    assert "named SmolLM" in tokenizer.decode(example.input_ids)
    assert tokenizer.decode(example.input_ids[-1:]) == "\n"
    assert not example.labels_mask[-1]
