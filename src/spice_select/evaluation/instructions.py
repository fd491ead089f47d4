"""The 25 kinds of instruction of IFEval (arXiv 2311.07911), each with a check that a program can make.

Written from the paper's descriptions, and held against lm-evaluation-harness's checks. They differ in what the
harness leaves to downloaded models: sentences and words are told apart by punctuation, languages by ``languages``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from spice_select.errors import DataError
from spice_select.evaluation.languages import abbreviations, language_of

Settings = Mapping[str, Any]

_END = re.compile(r"""[.!?]+[)"'\]*_\u201d\u2019]*(?=\s)""")
_INSIDE = r"[^\s.,;:!?()\[\]{}\"\u201c\u201d<>`*#&%$@]"
_TOKEN = re.compile(rf"{_INSIDE}+(?:\.(?=\w){_INSIDE}+)*\.?")
_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def follows(kind: str, settings: Settings, answer: str) -> bool:
    """Whether an answer follows one instruction.

    Args:
        kind: The instruction's id, as in ``keywords:existence``.
        settings: What it asks for; settings that are None count as absent.
        answer: The answer; an empty one follows nothing.

    Raises:
        DataError: An id that is none of IFEval's, or settings that are not those of its kind.
    """
    check = _CHECKS.get(kind)
    if check is None:
        raise DataError(f"ifeval.jsonl holds an instruction {kind!r} that is none of IFEval's; fetch the file again.")
    try:
        return bool(answer.strip()) and check(
            answer, {key: value for key, value in settings.items() if value is not None}
        )
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"ifeval.jsonl holds settings of {kind} that are not its own; fetch the file again.") from None


def sentences(text: str) -> int:
    """How many sentences a text has: marks at the end of a word that is no abbreviation, and what is left over.

    The number of a list's entry, ``1.``, counts as one, as it does to the tokenizer of the benchmark's authors.
    """
    count, start = 0, 0
    padded = text.strip() + "\n"
    for found in _END.finditer(padded):
        before = padded[start : found.start()].split()
        last = before[-1].lower().strip("(\"'*") if before else ""
        if found.group(0).startswith(".") and (last in abbreviations() or _initial(last, padded[found.end() :])):
            continue
        if before:
            count, start = count + 1, found.end()
    return count + bool(padded[start:].strip())


def _initial(word: str, rest: str) -> bool:
    """A single letter with a name behind it, as in J. Smith."""
    return len(word) == 1 and word.isalpha() and word != "i" and rest.lstrip()[:1].isupper()


def _compared(count: int, settings: Settings, relation: str, threshold: str) -> bool:
    wanted = settings[relation]
    if wanted not in ("at least", "less than"):
        raise KeyError(wanted)
    return count >= settings[threshold] if wanted == "at least" else count < settings[threshold]


def _occurrences(pattern: str, text: str) -> int:
    # Keywords are patterns to the benchmark's authors; one that is no pattern is taken letter by letter.
    try:
        return len(re.findall(pattern, text, re.IGNORECASE))
    except re.error:
        return len(re.findall(re.escape(pattern), text, re.IGNORECASE))


def _keywords(answer: str, settings: Settings) -> bool:
    return all(_occurrences(word, answer) for word in settings["keywords"])


def _keyword_count(answer: str, settings: Settings) -> bool:
    return _compared(_occurrences(settings["keyword"].strip(), answer), settings, "relation", "frequency")


def _forbidden(answer: str, settings: Settings) -> bool:
    return not any(_occurrences(rf"\b{word}\b", answer) for word in settings["forbidden_words"])


def _letter_count(answer: str, settings: Settings) -> bool:
    count = answer.lower().count(settings["letter"].strip().lower())
    return _compared(count, settings, "let_relation", "let_frequency")


def _language(answer: str, settings: Settings) -> bool:
    # Without letters there is no language to be wrong about.
    return language_of(answer) in (settings["language"], None)


def _sentence_count(answer: str, settings: Settings) -> bool:
    return _compared(sentences(answer), settings, "relation", "num_sentences")


def _paragraphs(answer: str, settings: Settings) -> bool:
    pieces = [bool(piece.strip()) for piece in re.split(r"\s?\*{3}\s?", answer)]
    inner = pieces[1:-1] if len(pieces) > 1 else []
    return all(inner) and sum(pieces) == settings["num_paragraphs"]


def _word_count(answer: str, settings: Settings) -> bool:
    return _compared(len(re.findall(r"\w+", answer)), settings, "relation", "num_words")


def _paragraph_start(answer: str, settings: Settings) -> bool:
    pieces = answer.split("\n\n")
    count = sum(bool(piece.strip()) for piece in pieces)
    place = settings["nth_paragraph"]
    if place > count or not pieces[place - 1].strip():
        return False
    word = pieces[place - 1].split()[0].lstrip("'").lstrip('"')
    first = re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower()
    return count == settings["num_paragraphs"] and first == settings["first_word"].lower()


def _placeholders(answer: str, settings: Settings) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= settings["num_placeholders"]


def _postscript(answer: str, settings: Settings) -> bool:
    marker = settings["postscript_marker"].strip()
    # The final full stop of a P.P.S may be missing, a space may stand within either.
    forms = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    form = forms[marker] if marker in forms else re.escape(marker.lower())
    return re.search(form, answer.lower()) is not None


def _bullets(answer: str, settings: Settings) -> bool:
    starred = re.findall(r"^\s*\*[^*].*$", answer, re.MULTILINE)
    dashed = re.findall(r"^\s*-.*$", answer, re.MULTILINE)
    return len(starred) + len(dashed) == settings["num_bullets"]


def _one_of(answer: str, settings: Settings) -> bool:
    return any(option in answer for option in _OPTIONS)


def _highlights(answer: str, settings: Settings) -> bool:
    # Text in double asterisks counts once as bold and, where a pair of single ones is found in it, as the other does.
    single = [found for found in re.findall(r"\*([^\n*]*)\*", answer) if found.strip()]
    double = [found for found in re.findall(r"\*\*([^\n*]*)\*\*", answer) if found.strip()]
    return len(single) + len(double) >= settings["num_highlights"]


def _sections(answer: str, settings: Settings) -> bool:
    return len(re.findall(rf"{settings['section_spliter'].strip()}\s?\d+", answer)) >= settings["num_sections"]


def _json(answer: str, settings: Settings) -> bool:
    body = answer.strip()
    opening = re.match(r"```(?:json|Json|JSON)?", body)
    body = body[opening.end() :] if opening else body
    try:
        json.loads(body.removesuffix("```").strip())
    except ValueError:
        return False
    return True


def _title(answer: str, settings: Settings) -> bool:
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", answer))


def _two_answers(answer: str, settings: Settings) -> bool:
    pieces = [piece.strip() for piece in answer.split("******")]
    given = [piece for piece in pieces if piece]
    return all(pieces[1:-1]) and len(given) == 2 and given[0] != given[1]


def _repeats(answer: str, settings: Settings) -> bool:
    return answer.strip().lower().startswith(settings["prompt_to_repeat"].strip().lower())


def _ends(answer: str, settings: Settings) -> bool:
    return answer.strip().strip('"').lower().endswith(settings["end_phrase"].strip().lower())


def _capital_words(answer: str, settings: Settings) -> bool:
    count = sum(word.isupper() for word in _TOKEN.findall(answer))
    return _compared(count, settings, "capital_relation", "capital_frequency")


def _english(answer: str) -> bool:
    return language_of(answer.lower()) in ("en", None)


def _capitals(answer: str, settings: Settings) -> bool:
    return answer.isupper() and _english(answer)


def _small_letters(answer: str, settings: Settings) -> bool:
    return answer.islower() and _english(answer)


def _no_comma(answer: str, settings: Settings) -> bool:
    return "," not in answer


def _quoted(answer: str, settings: Settings) -> bool:
    text = answer.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


_CHECKS: dict[str, Callable[[str, Settings], bool]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_count,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter_count,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentence_count,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _word_count,
    "length_constraints:nth_paragraph_first_word": _paragraph_start,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _one_of,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_answers,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capitals,
    "change_case:english_lowercase": _small_letters,
    "punctuation:no_comma": _no_comma,
}
