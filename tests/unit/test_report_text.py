"""Texts of rows are hostile until they are made plain and escaped."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spice_select.report.text import markup, plain, preview, shown_turns


@given(st.text(st.characters(), max_size=60))
def test_plain_text_holds_nothing_that_steers(text: str) -> None:
    shown = plain(text)
    shown.encode("utf-8")
    for character in shown:
        assert character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cs"}
        assert character not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\ufeff"
    assert not set("<>\"'") & set(markup(text))


@pytest.mark.parametrize("text", ["Grüße, 世界 👩\u200d🔬", "שלום", "a\tb\nc", "x = {y: 'z'}", "a\u0301"])
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31m\x7f", "a\u2400b\u241b[31m\u2421"),
        ("\u202egnp.exe", "[U+202E]gnp.exe"),
        ("one\r\ntwo\rthree\u2028four\x85five", "one\ntwo\nthree\nfour\nfive"),
        ("\ud800 \x9b \ufffe", "\ufffd \ufffd \ufffd"),
        ("hidden\U000e0041", "hidden[U+E0041]"),
    ],
)
def test_marks_stand_for_what_was_there(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=300)), max_size=6))
def test_a_row_is_cut_to_its_limit_and_says_what_is_left_out(messages: list[tuple[str, str]]) -> None:
    turns = shown_turns(messages, limit=90)
    assert len(turns) == len(messages)
    assert sum(len(turn.text) for turn in turns) <= 90
    for turn, (_, text) in zip(turns, messages, strict=True):
        assert turn.left_out > 0 or turn.text == plain(text)[: len(turn.text)]


def test_a_long_prompt_leaves_room_for_the_response() -> None:
    prompt, response = shown_turns([("user", "p" * 100_000), ("assistant", "r" * 100_000)], limit=300)
    assert (len(prompt.text), prompt.left_out) == (200, 99_800)
    assert (len(response.text), response.left_out) == (100, 99_900)


def test_preview_is_one_short_line_without_the_system_turn() -> None:
    turns = shown_turns([("system", "be kind"), ("user", "a\n\n b " + "word " * 100)])
    line = preview(turns)
    assert line.startswith("a b word")
    assert len(line) <= 140 and line.endswith("\u2026") and "\n" not in line
    assert preview(shown_turns([("system", "alone")])) == "alone"
    assert preview(()) == ""
