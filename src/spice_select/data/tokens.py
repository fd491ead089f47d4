"""Token ids of rendered text, with the response found token by token.

The whole rendering is tokenised at once and spans of characters become spans of tokens, so that merges across a border
are those the model was trained with. A token belongs to the response if any of its characters does.

Control tokens are those that a template writes. Where the data itself contains their strings, a second copy of the
tokenizer is used in which the control tokens go by other, private names: the strings of the data are then ordinary
text, and everything else is as before.
"""

from __future__ import annotations

import json
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from spice_select.data.sentinels import PRIVATE
from spice_select.errors import ModelError

Span = tuple[int, int]

# Private names of control tokens: from the other private plane than the sentinels.
_ALIAS_FIRST = 0xF0000
_ALIAS = re.compile("[\U000f0000-\U000ffffd]")


@dataclass(frozen=True)
class Rendered:
    """Text to tokenise.

    Attributes:
        text: The text, in which private characters stand for control-token strings of the data.
        spans: The responses in it.
        literals: What each private character stands for.
    """

    text: str
    spans: tuple[Span, ...]
    literals: Mapping[str, str]


class StringSet:
    """Finds strings of a large set in texts, the longest first."""

    def __init__(self, strings: Iterable[str]) -> None:
        self.strings = tuple(sorted(set(strings), key=lambda s: (-len(s), s)))
        self._by_last: dict[str, list[str]] = {}
        by_head: dict[str, list[str]] = {}
        for string in self.strings:
            by_head.setdefault(string[:3], []).append(string)
            self._by_last.setdefault(string[-1], []).append(string)
        heads = sorted(by_head, key=lambda h: (-len(h), h))
        # One alternative for each beginning: vocabularies have thousands of reserved tokens, but few beginnings.
        self.pattern = re.compile(
            "|".join(
                re.escape(head) + "(?:" + "|".join(re.escape(s[len(head) :]) for s in by_head[head]) + ")"
                for head in heads
            )
            or "(?!)"
        )

    def at_end(self, text: str) -> str | None:
        """The longest of the strings that the text ends with."""
        return next((s for s in self._by_last.get(text[-1:], ()) if text.endswith(s)), None)


class TextTokenizer:
    """Tokenises renderings.

    Args:
        tokenizer: A transformers tokenizer, fast or slow.
        controls: Strings of the control tokens.
    """

    def __init__(self, tokenizer: Any, controls: StringSet) -> None:
        self._tokenizer = tokenizer
        self._controls = controls
        self._aliases = {string: chr(_ALIAS_FIRST + number) for number, string in enumerate(controls.strings)}
        self._aliased: Tokenizer | None = None
        self._aliased_tried = False
        backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
        self._state: str | None = backend.to_str() if isinstance(backend, Tokenizer) else None
        try:
            self._backend = _bare(self._state) if self._state is not None else None
        except Exception as error:  # tokenizers raises nothing narrower, where merges and vocabulary do not fit
            raise ModelError(
                f"The tokenizer cannot be used ({' '.join(str(error).split())}): its merges and vocabulary do not fit "
                "each other, as in a damaged tokenizer.json; save it again."
            ) from None
        if self._backend is not None and not self._agrees():
            self._backend = self._state = None
        self.in_pieces = 0

    @property
    def has_positions(self) -> bool:
        """Whether the tokenizer tells which characters a token covers."""
        return self._backend is not None

    def encode(self, batch: Sequence[Rendered]) -> list[tuple[Int[np.ndarray, " t"], Bool[np.ndarray, " t"]]]:
        """Ids and response mask of each text."""
        results: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(batch)
        whole = [number for number, item in enumerate(batch) if not item.literals] if self._backend is not None else []
        if whole and self._backend is not None:
            encodings = self._backend.encode_batch([batch[number].text for number in whole], add_special_tokens=False)
            for number, encoding in zip(whole, encodings, strict=True):
                results[number] = _by_positions(encoding, batch[number].spans)
        for number, item in enumerate(batch):
            if results[number] is None:
                results[number] = self._encode_literal(item)
        return [result for result in results if result is not None]

    def _encode_literal(self, item: Rendered) -> tuple[np.ndarray, np.ndarray]:
        """A text that holds control-token strings as data."""
        aliased = self._with_aliases()
        if aliased is not None and not _ALIAS.search(item.text):
            text, spans = _rewrite(item, self._controls, self._aliases)
            return _by_positions(aliased.encode(text, add_special_tokens=False), spans)
        self.in_pieces += 1
        return self._encode_pieces(item)

    def _encode_pieces(self, item: Rendered) -> tuple[np.ndarray, np.ndarray]:
        """Piece by piece: for tokenizers that give no positions."""
        borders = {0, len(item.text), *(border for span in item.spans for border in span)}
        for match in PRIVATE.finditer(item.text):
            if match.group() in item.literals:
                borders |= {match.start(), match.end()}
        ordered = sorted(borders)
        ids: list[int] = []
        mask: list[bool] = []
        for start, end in pairwise(ordered):
            piece = item.text[start:end]
            literal = item.literals.get(piece)
            # A control token's string in two halves is no control token.
            halves = [piece] if literal is None else [literal[:1], literal[1:]]
            new = [token for half in halves for token in self._tokenizer.encode(half, add_special_tokens=False)]
            ids += new
            mask += [any(first <= start and end <= last for first, last in item.spans)] * len(new)
        return np.asarray(ids, np.int32), np.asarray(mask, np.bool_)

    def _with_aliases(self) -> Tokenizer | None:
        if not self._aliased_tried and self._state is not None:
            self._aliased_tried = True
            self._aliased = _renamed(self._state, self._aliases)
            if self._aliased is not None and not self._same_controls(self._aliased):
                self._aliased = None
        return self._aliased

    def _same_controls(self, aliased: Tokenizer) -> bool:
        """Whether every renamed token still has its id, alone and inside text."""
        assert self._backend is not None
        for string, alias in self._aliases.items():
            expected = self._backend.encode(f"a{string}a", add_special_tokens=False).ids
            if aliased.encode(f"a{alias}a", add_special_tokens=False).ids != expected:
                return False
        return True

    def _agrees(self) -> bool:
        """Whether the bare copy gives the ids that the tokenizer itself gives."""
        assert self._backend is not None
        controls = self._controls.strings[:4]
        sample = "Hello, wörld!\n\n 12 " + "x\n".join(controls) + " end."
        expected = self._tokenizer(sample, add_special_tokens=False)["input_ids"]
        return self._backend.encode(sample, add_special_tokens=False).ids == expected


def _bare(state: str) -> Tokenizer:
    """A copy of our own, without cutting, padding, and the step that shifts positions off white space."""
    backend = Tokenizer.from_str(state)
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = None
    return backend


def _renamed(state: str, aliases: Mapping[str, str]) -> Tokenizer | None:
    """A copy in which the control tokens go by their aliases; None where the vocabulary can't be renamed."""
    content = json.loads(state)
    for token in content.get("added_tokens", []):
        token["content"] = aliases.get(token["content"], token["content"])
    vocabulary = content["model"].get("vocab")
    if isinstance(vocabulary, dict):
        content["model"]["vocab"] = {aliases.get(text, text): number for text, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        content["model"]["vocab"] = [[aliases.get(text, text), score] for text, score in vocabulary]
    unknown = content["model"].get("unk_token")
    if unknown in aliases:
        content["model"]["unk_token"] = aliases[unknown]
    content["post_processor"] = None
    try:
        return _bare(json.dumps(content))
    except Exception:  # the library raises plain Exception for any vocabulary that it can't build
        return None


def _rewrite(item: Rendered, controls: StringSet, aliases: Mapping[str, str]) -> tuple[str, tuple[Span, ...]]:
    """Give control tokens their aliases and the data its own strings, and move the spans along."""
    pieces: list[str] = []
    shifts: list[tuple[int, int]] = []  # after this position of the old text, this much is added
    done = grown = 0
    pattern = re.compile(f"{controls.pattern.pattern}|[{re.escape(''.join(item.literals))}]")
    for match in pattern.finditer(item.text):
        new = item.literals.get(match.group()) or aliases[match.group()]
        pieces += [item.text[done : match.start()], new]
        grown += len(new) - len(match.group())
        shifts.append((match.end(), grown))
        done = match.end()
    pieces.append(item.text[done:])

    def moved(position: int) -> int:
        passed = bisect_right(shifts, (position, sys.maxsize))
        return position + (shifts[passed - 1][1] if passed else 0)

    return "".join(pieces), tuple((moved(start), moved(end)) for start, end in item.spans)


def _by_positions(encoding: Any, spans: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.asarray(encoding.ids, np.int32)
    mask = np.zeros(len(ids), np.bool_)
    if len(ids) and spans:
        offsets = np.asarray(encoding.offsets, np.int64)
        starts, ends = offsets[:, 0], offsets[:, 1]
        for start, end in spans:
            # A token of no width, such as a word-start sign, belongs to the character that follows it.
            mask |= (starts < end) & (ends > start) | (starts == ends) & (starts >= start) & (starts < end)
    return ids, mask
