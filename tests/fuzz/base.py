"""What a format is to the campaign: seeds, mutations, and a reader whose answer is checked."""

from __future__ import annotations

import random
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from spice_select.errors import SpiceError
from tests.fuzz.mutators import Mutator, flip_bits, unchanged

READ, REFUSED = "read", "refused"
LONGEST_SENTENCE = 1510


class Wrong(AssertionError):
    """Something was read that is not what is there."""


class Format(ABC):
    """One thing that the program reads.

    Attributes:
        name: Its name in the counts, and of its folder of found inputs.
        mutators: How its seeds are damaged.
        weight: Share of a campaign's inputs, relative to the others.
        folder: Scratch folder of its own.
    """

    name: ClassVar[str]
    mutators: ClassVar[Sequence[Mutator]]
    weight: ClassVar[float] = 1.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.seeds = self.make_seeds()

    @abstractmethod
    def make_seeds(self) -> list[bytes]:
        """Whole inputs, the same every time; files that stay as they are may be written as well."""

    @abstractmethod
    def read(self, content: bytes) -> None:
        """Read an input as the program does.

        Raises:
            SpiceError: It is refused.
            Wrong: The answer is not what is there.
        """

    def input(self, seed: int | str, number: int) -> bytes:
        """One input of a campaign."""
        rng = random.Random(f"{seed} {self.name} {number}")
        if number < len(self.seeds):
            return self.seeds[number]
        content = self._mutated(rng, self.seeds)
        if content and rng.random() < 0.15:
            content = self._mutated(rng, [content, *self.seeds[:1]])
        return content

    def _mutated(self, rng: random.Random, contents: Sequence[bytes]) -> bytes:
        mutate = rng.choice(self.mutators) if rng.random() < 0.99 else unchanged
        try:
            return mutate(rng, contents)
        except Exception:  # a mutation by structure, of what has lost its structure
            return flip_bits(rng, contents)

    def place(self, path: Path, content: bytes) -> Path:
        """Write an input as a new file: one that is mapped by an earlier reader stays as it is."""
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        return path

    def outcome(self, content: bytes) -> str:
        """What comes of an input; anything but an answer or one sentence is an exception."""
        try:
            self.read(content)
        except SpiceError as error:
            require_sentence(str(error))
            return REFUSED
        return READ


def require_sentence(text: str) -> None:
    """An error is one line of printable characters, of a length that a person reads."""
    if not text.strip() or len(text) > LONGEST_SENTENCE:
        raise Wrong(f"an error of {len(text)} characters: {text[:80]!r}")
    odd = next((one for one in text if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")), None)
    if odd is not None:
        raise Wrong(f"an error with the character {odd!r}: {text[:200]!r}")
