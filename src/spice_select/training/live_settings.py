"""What a live selection may be told, checked: every fault is one sentence."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

from spice_select.errors import BudgetError, ConfigError
from spice_select.selection.options import NormalizeName, Options, PenaltyName, ReferenceName


@dataclass(frozen=True)
class LiveSettings:
    """The settings of :class:`spice_select.training.LiveSelection`, as given there."""

    pool_size: int
    share: float | str | None
    keep: int | None
    interval: int
    conflict_weight: float
    alpha: float | Literal["auto"]
    penalty: PenaltyName
    reference: ReferenceName
    hinge: float | str
    normalize: NormalizeName
    seed: int | None
    dim: int
    batch_tokens: int | None
    gram_bytes: int

    def check(self) -> None:
        """Check what can be checked without a trainer.

        Raises:
            ConfigError: A setting that cannot be used.
        """
        for name in ("pool_size", "interval", "dim", "batch_tokens", "gram_bytes", "keep"):
            value = getattr(self, name)
            if value is not None and not (_whole(value) and value >= 1):
                raise ConfigError(f"{name} cannot be {value!r}; give a whole number, 1 at least.")
        if self.seed is not None and not (_whole(self.seed) and self.seed >= 0):
            raise ConfigError(f"seed cannot be {self.seed!r}; give a whole number, 0 at least.")
        if self.keep is not None and self.share is not None:
            raise ConfigError(f"keep {self.keep} and share {self.share!r} cannot go together; give one of them.")
        if self.keep is not None and self.keep > self.pool_size:
            raise BudgetError(f"keep cannot be {self.keep} of pools of {self.pool_size} rows; give {self.pool_size}.")
        _ = self.part
        Options(
            alpha=self.alpha, conflict_weight=self.conflict_weight, penalty=self.penalty, reference=self.reference,
            hinge=self.hinge, normalize=self.normalize,
        ).check()  # fmt: skip

    @property
    def part(self) -> Fraction:
        """The part of the rows that is trained on.

        Raises:
            ConfigError: A share that is none.
        """
        if self.keep is not None:
            return Fraction(self.keep, self.pool_size)
        given = 0.1 if self.share is None else self.share
        try:
            if isinstance(given, bool):
                raise ValueError
            text = str(given).strip()
            found = Fraction(text[:-1].strip()) / 100 if text.endswith("%") else Fraction(text)
        except (ValueError, ZeroDivisionError):
            found = Fraction(0)
        if not 0 < found <= 1:
            raise BudgetError(f"share cannot be {given!r}; give a number above 0 and 1 at most, or '10%'.")
        return found

    def total(self, rows: int) -> int:
        """Rows that an epoch trains on: the part of the rows, rounded half up.

        Raises:
            BudgetError: None at all.
        """
        total = math.floor(self.part * rows + Fraction(1, 2))
        if total < 1:
            raise BudgetError(f"A share of {float(self.part):g} of {rows} rows is none; give a larger share.")
        return total

    def picking(self) -> dict[str, Any]:
        """The arguments of :func:`spice_select.selection.select_gram`."""
        return {
            "alpha": self.alpha,
            "conflict_weight": self.conflict_weight,
            "penalty": self.penalty,
            "reference": self.reference,
            "hinge": self.hinge,
            "normalize": self.normalize,
        }

    def identity(self) -> dict[str, Any]:
        """What decides the picks, in what JSON can hold."""
        found = asdict(self)
        del found["keep"], found["share"], found["seed"]
        return {**found, "part": str(self.part)}


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
