"""What a question of the demo is, and the small helpers that the domains share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

T = TypeVar("T")

NAMES = (
    "Ada", "Bram", "Cleo", "Dario", "Edda", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Lena", "Milo",
    "Nadia", "Otto", "Petra", "Quinn", "Rosa", "Sven", "Tara", "Umar", "Vera", "Wim", "Yara",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WORDS = (
    "amber", "anchor", "apple", "barrel", "basket", "beacon", "blanket", "bottle", "branch", "bridge", "bucket",
    "butter", "candle", "canyon", "carpet", "castle", "cherry", "circle", "clover", "copper", "corner",
    "cotton", "desert", "dragon", "engine", "fabric", "falcon", "feather", "finger", "forest", "garden",
    "ginger", "hammer", "harbor", "helmet", "island", "jacket", "jungle", "kettle", "ladder", "lantern",
    "lemon", "magnet", "marble", "meadow", "mirror", "mountain", "needle", "ocean", "orange", "oyster", "paper",
    "pebble", "pencil", "pepper", "pillow", "planet", "pocket", "rabbit", "ribbon", "river", "rocket", "saddle",
    "silver", "spider", "spoon", "stable", "summer", "tablet", "temple", "thunder", "ticket", "timber",
    "tunnel", "turtle", "valley", "velvet", "violin", "walnut", "window", "winter", "yellow",
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """One way to put a question.

    Attributes:
        instruction: what is asked.
        input: the material that it is asked about, or nothing where the instruction holds it all.
    """

    instruction: str
    input: str = ""


@dataclass(frozen=True)
class Example:
    """A question with a computed answer.

    Attributes:
        domain: name of the domain.
        prompts: at least two phrasings of the one question; the first is canonical and tells questions apart.
        output: a right response.
        wrong_output: the same response with a wrong answer.
    """

    domain: str
    prompts: tuple[Prompt, ...]
    output: str
    wrong_output: str


def make_example(
    rng: Random, domain: str, prompts: Sequence[Prompt | str], answers: Sequence[str], right: str, wrong: str
) -> Example:
    """Fill one of several response forms with the right and with the wrong answer.

    Args:
        rng: generator that picks the form.
        domain: name of the domain.
        prompts: phrasings of the question; a bare string has no input.
        answers: response forms; each holds ``{v}`` where the answer goes.
        right: the right answer.
        wrong: a wrong answer.
    """
    assert right != wrong, (domain, right)
    form = rng.choice(list(answers))
    return Example(
        domain=domain,
        prompts=tuple(Prompt(p) if isinstance(p, str) else p for p in prompts),
        output=form.replace("{v}", right),
        wrong_output=form.replace("{v}", wrong),
    )


def pick_other(rng: Random, values: Sequence[T], taken: T) -> T:
    """Choose one of ``values`` that is not ``taken``."""
    return rng.choice([value for value in values if value != taken])
