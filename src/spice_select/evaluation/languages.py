"""Which language a text is in, well enough to tell whether an instruction to use one was followed.

A script of one language says which it is. Languages that share a script are told apart by letters that only some of
them use, and by their commonest words. Deterministic, and without a model.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_SCRIPTS = {
    "THAI": "th",
    "HANGUL": "ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "BENGALI": "bn",
    "GREEK": "el",
    "HEBREW": "he",
    "ARABIC": "ar",
    "DEVANAGARI": "hi",
    "CYRILLIC": "ru",
    "LATIN": "en",
}
"""Scripts by the first word of their letters' Unicode names, and the language taken for want of a better sign."""

_WORD = re.compile(r"[^\W\d_]+(?:[\u0300-\u036f\u0900-\u0dff]+[^\W\d_]*)*")


def language_of(text: str) -> str | None:
    """The language of a text by its ISO 639-1 code; None for a text without letters."""
    scripts: dict[str, int] = {}
    for letter in text:
        if letter.isalpha():
            script = unicodedata.name(letter, "").split(" ", 1)[0].split("-", 1)[0]
            scripts[script] = scripts.get(script, 0) + 1
    known = {script: count for script, count in scripts.items() if script in _SCRIPTS}
    if not known:
        return None
    if known.get("HIRAGANA", 0) + known.get("KATAKANA", 0) > 0.1 * sum(known.values()):
        return "ja"
    script = max(known, key=lambda name: known[name])
    common, letters = _signs()
    if script not in common:
        return _SCRIPTS[script]
    lowered = text.lower()
    words = _WORD.findall(lowered)
    scores = {language: sum(word in own for word in words) for language, own in common[script].items()}
    for language, own in letters.get(script, {}).items():
        scores[language] += 2 * sum(letter in own for letter in lowered)
    best = max(scores, key=lambda language: scores[language])
    return best if scores[best] else _SCRIPTS[script]


@cache
def abbreviations() -> frozenset[str]:
    """English abbreviations, in small letters and without their final full stop."""
    return frozenset(_file()["abbreviations"].split())


@cache
def _signs() -> tuple[dict[str, dict[str, frozenset[str]]], dict[str, dict[str, str]]]:
    """By script and language, the commonest words, and letters of its own."""
    found = _file()
    words = {
        script: {language: frozenset(text.split()) for language, text in languages.items()}
        for script, languages in found["words"].items()
    }
    return words, found["letters"]


@cache
def _file() -> dict[str, Any]:
    with (Path(__file__).parent / "common_words.yaml").open(encoding="utf-8") as file:
        return yaml.safe_load(file)
