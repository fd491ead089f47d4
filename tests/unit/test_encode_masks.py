"""Where responses lie: templates that break prefixes, strip, drop, fold or hide."""

from __future__ import annotations

import numpy as np
import pytest

from spice_select.config import DataConfig
from spice_select.data.conversation import Conversation
from spice_select.data.encode import Encoder
from spice_select.data.encoded import Example
from spice_select.data.status import Status
from tests.encoding import CHATML, CHATML_SPECIAL, assistant, byte_level, runs, sentence_piece, system, talk, user

TALK = talk(user("Hi there"), assistant("Hello!"), user("And you?"), assistant("Fine."))


def encode(
    conversation: Conversation, template: str | None = CHATML, **options: object
) -> tuple[Encoder, Example, list[str]]:
    tokenizer = byte_level([*CHATML_SPECIAL, "</s>", "<end>"], template, eos_token="</s>")
    encoder = Encoder(tokenizer, DataConfig.model_validate(options))
    example = encoder.encode(conversation)
    return encoder, example, runs(example, tokenizer)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_all_turns_with_their_end_and_without_the_newline_after_it(make) -> None:
    tokenizer = make()
    encoder = Encoder(tokenizer, DataConfig())
    example = encoder.encode(TALK)
    assert runs(example, tokenizer) == ["Hello!<|im_end|>", "Fine.<|im_end|>"]
    assert encoder.stats.strategies == {"prefix": 1}
    assert encoder.stats.response_tokens == example.labels_mask.sum()


def test_last_turn_only_on_request() -> None:
    _, _, trained = encode(TALK, train_on="last")
    assert trained == ["Fine.<|im_end|>"]


def test_an_untrained_turn_stays_out() -> None:
    conversation = talk(user("a"), assistant("first", trained=False), user("b"), assistant("second"))
    _, _, trained = encode(conversation)
    assert trained == ["second<|im_end|>"]
    _, example, _ = encode(talk(user("b"), assistant("only", trained=False)))
    assert example.status is Status.NO_RESPONSE
    assert len(example.input_ids) == 0


@pytest.mark.parametrize("content", ["", "  \n\t "])
def test_no_response_in_nothing_but_white_space(content: str) -> None:
    encoder, example, _ = encode(talk(user("b"), assistant(content)))
    assert example.status is Status.NO_RESPONSE
    assert encoder.stats.no_response == 1


def test_generation_blocks_are_extended_to_the_end_of_the_turn() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    )
    encoder, _, trained = encode(TALK, template)
    assert trained == ["Hello!<|im_end|>", "Fine.<|im_end|>"]
    assert encoder.stats.strategies == {"generation": 1}
    assert encode(TALK, template, train_on="last")[2] == ["Fine.<|im_end|>"]


def test_a_heading_that_the_generation_prompt_lacks_is_no_response() -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>\n' }}{% endfor %}"
    encoder, _, trained = encode(TALK, template)
    assert [run.lstrip() for run in trained] == ["Hello!</s>", "Fine.</s>"]
    assert encoder.stats.strategies == {"sentinel": 1}


def test_a_template_that_rewrites_earlier_turns_breaks_prefixes_only() -> None:
    # Earlier turns lose their first line; the count of messages stands in front of everything.
    template = (
        "{{ messages | length }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if loop.last or m.role == 'user' %}{{ m.content }}{% else %}{{ m.content.split('\n')[-1] }}{% endif %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    conversation = talk(user("a"), assistant("thought\nHello!"), user("b"), assistant("thought\nFine."))
    encoder, _, trained = encode(conversation, template)
    assert trained == ["Hello!<|im_end|>", "thought\nFine.<|im_end|>"]
    assert encoder.stats.strategies == {"sentinel": 1}
    assert encoder.stats.altered == 1


def test_the_last_turn_closed_by_another_token() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{{ '</s>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert encode(TALK, template)[2] == ["Hello!<|im_end|>", "Fine.</s>"]


def test_what_ends_the_whole_text_is_not_the_end_of_a_turn() -> None:
    template = CHATML + "{% if not add_generation_prompt %}{{ '</s>' }}{% endif %}"
    assert encode(TALK, template)[2] == ["Hello!<|im_end|>", "Fine.<|im_end|>"]


def test_without_closing_tokens_the_next_heading_is_not_trained() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    encoder, _, trained = encode(TALK, template)
    assert trained == ["Hello!", "Fine."]
    assert encoder.stats.without_end == 1


def test_a_turn_that_is_left_out_is_not_trained() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{{ m.content if loop.last or m.role == 'user' else '...' }}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    encoder, _, trained = encode(TALK, template)
    assert trained == ["Fine.<|im_end|>"]
    assert (encoder.stats.altered, encoder.stats.left_out) == (1, 1)


def test_the_last_turn_alone_is_the_last_resort_and_counted() -> None:
    # Headings with the length of what follows: sentinels change them, and "x" may be anywhere.
    template = (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ (m.content | length) ~ '\n' ~ m.content ~ '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    encoder, _, trained = encode(talk(user("x"), assistant("x"), user("y"), assistant("Fine.")), template)
    assert trained == ["Fine.<|im_end|>"]
    assert encoder.stats.last_turn_only == 1
    assert encoder.stats.strategies == {"last-turn": 1}
    assert any("last turn alone" in line for line in encoder.stats.describe())
    encoder, example, _ = encode(talk(user("x"), assistant("x")), template)
    assert example.status is Status.NO_RESPONSE
    assert "cannot be found" in encoder.stats.failures[0].reason


def test_a_refused_system_turn_goes_into_the_user_turn() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    ignoring = (
        "{% for m in messages %}{% if m.role != 'system' %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for template in (refusing, ignoring):
        encoder, example, trained = encode(talk(system("Be brief."), user("Hi"), assistant("Yo")), template)
        assert trained == ["Yo<|im_end|>"]
        assert encoder.stats.system_folded == 1
        tokenizer = byte_level([*CHATML_SPECIAL, "</s>", "<end>"], template, eos_token="</s>")
        assert "user\nBe brief.\n\nHi<|im_end|>" in tokenizer.decode(example.input_ids)


def test_neighbours_of_one_role_are_joined_only_where_refused() -> None:
    alternating = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
    )
    conversation = talk(user("a"), user("b"), assistant("c"), assistant("d"))
    encoder, _, trained = encode(conversation, alternating)
    assert trained == ["c\n\nd<|im_end|>"]
    assert encoder.stats.merged == 1
    assert encode(conversation, CHATML)[2] == ["c<|im_end|>", "d<|im_end|>"]


def test_a_row_that_the_template_refuses_is_counted_with_its_reason() -> None:
    template = "{% if messages | length > 2 %}{{ raise_exception('too long for me') }}{% endif %}" + CHATML
    encoder, example, _ = encode(talk(user("a"), assistant("b")), template)
    assert example.status is Status.OK
    for _ in range(3):
        assert encoder.encode(TALK).status is Status.NO_RESPONSE
    (failure,) = encoder.stats.failures
    assert "too long for me" in failure.reason
    assert (failure.count, failure.first_row) == (3, 1)
    assert any("too long for me" in line for line in encoder.stats.describe())


def test_calls_and_tools_that_the_template_does_not_write() -> None:
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"word": "été"}}}
    tools = [{"type": "function", "function": {"name": "lookup", "parameters": {}}}]
    conversation = Conversation((user("Mean?"), assistant("", tool_calls=(call,))), tools=tools)
    encoder, _, trained = encode(conversation, CHATML)
    assert trained == ['{"name": "lookup", "arguments": {"word": "été"}}<|im_end|>']
    assert (encoder.stats.calls_written, encoder.stats.tools_left_out, encoder.stats.left_out) == (1, 0, 0)
    silent = Conversation((user("Hi"), assistant("Yo")), tools=tools)
    assert encode(silent, CHATML)[0].stats.tools_left_out == 1
    writing = CHATML.replace(
        "message['content']", "message['content'] ~ (message.tool_calls | tojson if message.tool_calls else '')"
    )
    writing = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + writing
    encoder, _, trained = encode(conversation, writing)
    assert "lookup" in trained[0]
    assert (encoder.stats.calls_written, encoder.stats.tools_left_out) == (0, 0)


def test_contents_as_parts_where_the_template_wants_them() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% for part in m.content %}{{ part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert encode(TALK, template)[2] == ["Hello!<|im_end|>", "Fine.<|im_end|>"]


def test_private_characters_of_the_data_are_no_sentinels() -> None:
    odd = "".join(chr(0x100000 + step) for step in range(20)) + "\U0010fffd\U000f0000"
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>\n' }}{% endfor %}"
    _, _, trained = encode(talk(user(odd), assistant(odd + "</s> x")), template)
    assert [run.lstrip() for run in trained] == [odd + "</s> x</s>"]


def test_text_is_trained_whole_but_for_its_first_token() -> None:
    conversation = talk(assistant("Some plain text."), kind="text")
    for names, start in (({}, ""), ({"bos_token": "<s>"}, "")):
        tokenizer = byte_level(["<s>", "</s>"], None, eos_token="</s>", **names)
        example = Encoder(tokenizer, DataConfig()).encode(conversation)
        assert tokenizer.decode(example.input_ids) == start + "Some plain text.</s>"
        np.testing.assert_array_equal(example.labels_mask, np.arange(len(example.input_ids)) > 0)
