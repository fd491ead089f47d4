"""What a user may ask of a selection, checked: every fault is one sentence that names the value and the remedy."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from spice_select.errors import ConfigError
from spice_select.selection.fisher import FisherName

PenaltyName = Literal["absolute", "relative"]
ReferenceName = Literal["selected", "pool"]
NormalizeName = Literal["none", "unit", "sqrt_tokens", "clip"]
LoopName = Literal["auto", "brute", "dense", "kernel", "lazy", "stochastic"]


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`spice_select.selection.select`, as given."""

    budget: Any = None
    alpha: Any = 1.0
    conflict_weight: float = 0.1
    penalty: PenaltyName = "absolute"
    reference: ReferenceName = "selected"
    hinge: float | str = 0.0
    normalize: NormalizeName = "none"
    stop_ratio: float | None = None
    fisher: FisherName = "exact"
    loop: LoopName = "auto"
    lengths: Any = None
    per_token: bool = False
    groups: Any = None
    quotas: Any = None
    initial: Any = None
    exclude: Any = None
    robust_stop: bool = False
    sampling_epsilon: float = 0.01
    partitions: int = 1
    seed: int = 0
    device: str = "cpu"
    earlier: Any = None

    def check(self) -> None:
        """Check what can be checked without the rows.

        Raises:
            ConfigError: A setting that cannot be used.
        """
        _choice("penalty", self.penalty, get_args(PenaltyName))
        _choice("reference", self.reference, get_args(ReferenceName))
        _choice("normalize", self.normalize, get_args(NormalizeName))
        _choice("fisher", self.fisher, get_args(FisherName))
        _choice("loop", self.loop, get_args(LoopName))
        if self.loop == "kernel" and self.fisher != "exact":
            raise ConfigError(
                f"loop 'kernel' works on inner products and cannot go with fisher '{self.fisher}'; "
                "use loop 'lazy' or 'dense'."
            )
        _number("sampling_epsilon", self.sampling_epsilon, 0.0, 1.0, above=True, below=True)
        whole = isinstance(self.partitions, numbers.Integral) and not isinstance(self.partitions, bool)
        if not whole or self.partitions < 1:
            raise ConfigError(f"partitions cannot be {self.partitions!r}; give a whole number of them, 1 at least.")
        if not isinstance(self.seed, numbers.Integral) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"seed cannot be {self.seed!r}; give a whole number, 0 at least.")
        self._check_approximate()
        _number("conflict_weight", self.conflict_weight, 0.0, 1.0 if self.penalty == "relative" else math.inf)
        if self.alpha != "auto":
            _number("alpha", self.alpha, 0.0, math.inf, above=True, other=" or 'auto'")
        if self.stop_ratio is not None:
            _number("stop_ratio", self.stop_ratio, 0.0, 1.0, above=True)
        self.hinge_value()

    @property
    def approximate(self) -> bool:
        """Whether picks are not those of the exact greedy."""
        return self.loop == "stochastic" or self.partitions > 1

    def _check_approximate(self) -> None:
        if self.loop == "stochastic" and self.fisher != "exact":
            raise ConfigError(
                f"loop 'stochastic' keeps the inverse of the exact information and cannot go with fisher "
                f"'{self.fisher}'; use loop 'lazy' or 'dense'."
            )
        if self.approximate and self.budget is None:
            what = "loop 'stochastic'" if self.loop == "stochastic" else f"partitions {self.partitions}"
            raise ConfigError(f"{what} needs a budget, by which samples and rounds are sized; give one.")
        if self.partitions > 1 and self.quotas is not None:
            raise ConfigError(
                f"partitions {self.partitions} cannot go with quotas, as no partition knows what the others fill; "
                "leave one of them out."
            )
        if self.device != "cpu" and (self.loop not in ("auto", "dense", "lazy") or self.fisher != "exact"):
            what = f"loop '{self.loop}'" if self.fisher == "exact" else f"fisher '{self.fisher}'"
            raise ConfigError(
                f"device '{self.device}' runs loop 'dense' or 'lazy' with fisher 'exact', not {what}; use device 'cpu'."
            )

    def hinge_value(self) -> tuple[float, bool]:
        """The hinge as a number, and whether it is a quantile in percent.

        Raises:
            ConfigError: Not a cosine, nor a quantile that the reference allows.
        """
        value = self.hinge
        if isinstance(value, str) and value.strip().endswith("%"):
            if self.reference != "pool":
                raise ConfigError(
                    f"hinge '{value}' is a quantile of the pool's cosines and needs reference 'pool'; "
                    "set it, or give a cosine."
                )
            return _number("hinge", _float("hinge", value.strip()[:-1]), 0.0, 100.0, other=" followed by %"), True
        return _number("hinge", _float("hinge", value) if isinstance(value, str) else value, -1.0, 1.0), False

    def wants_tokens(self) -> bool:
        """Whether the budget counts response tokens."""
        return isinstance(self.budget, str) and self.budget.lower().rstrip().endswith(("token", "tokens"))


def row_numbers(name: str, value: Any, n: int) -> Int[np.ndarray, " m"]:
    """Row numbers from numbers or a mask of n booleans, sorted, each once.

    Raises:
        ConfigError: Neither, or a number that no row has.
    """
    if value is None:
        return np.zeros(0, dtype=np.int64)
    array = plain_array(name, value)
    if array.dtype == np.bool_:
        if array.shape != (n,):
            raise ConfigError(f"{name} is a mask of shape {list(array.shape)} for {n} rows; give one boolean per row.")
        return np.flatnonzero(array)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ConfigError(f"{name} must be row numbers (whole numbers) or a mask of {n} booleans, not {array.dtype}.")
    outside = array[(array < 0) | (array >= n)]
    if len(outside):
        raise ConfigError(f"{name} names row {outside[0]}, and rows run from 0 to {n - 1}; leave it out.")
    return np.unique(array.astype(np.int64))


def plain_array(name: str, value: Any) -> np.ndarray:
    """A numpy array of what the user gave.

    Raises:
        ConfigError: Nothing that makes an array.
    """
    if isinstance(value, torch.Tensor):
        # numpy has no bfloat16.
        narrow = value.is_floating_point() and value.dtype != torch.float64
        return (value.detach().float() if narrow else value.detach()).cpu().numpy()
    try:
        return np.asarray(list(value) if isinstance(value, (set, frozenset, range)) else value)
    except ValueError:
        raise ConfigError(f"{name} must be numbers in rows of one length; pass an array.") from None


def token_lengths(value: Any, n: int) -> Int[np.ndarray, " n"] | None:
    """Response tokens of each row.

    Raises:
        ConfigError: Not one whole number >= 0 per row.
    """
    if value is None:
        return None
    array = plain_array("lengths", value)
    if array.shape != (n,):
        raise ConfigError(f"lengths has shape {list(array.shape)} for {n} rows; give one number of tokens per row.")
    if array.dtype.kind not in "iuf" or not np.all(np.isfinite(array)) or np.any(array != np.floor(array)):
        raise ConfigError("lengths must be whole numbers of tokens; one of them is not.")
    if np.any(array < 0):
        row = int(np.argmax(array < 0))
        raise ConfigError(f"lengths of row {row} is {array[row]}; give a number of tokens, 0 at least.")
    return array.astype(np.int64)


def scale_of(
    normalize: NormalizeName,
    norms: Float[np.ndarray, " n"],
    members: Bool[np.ndarray, " n"],
    lengths: Int[np.ndarray, " n"] | None,
) -> tuple[Float[np.ndarray, " n"] | None, float]:
    """The factor of each row, and the norm that ``clip`` allows.

    Raises:
        ConfigError: Lengths that are needed and absent.
    """
    safe = np.where(norms > 0, norms, 1.0)
    if normalize == "unit":
        return 1.0 / safe, math.inf
    if normalize == "sqrt_tokens":
        if lengths is None:
            raise ConfigError("normalize 'sqrt_tokens' needs lengths, the response tokens of each row; pass lengths.")
        return np.sqrt(lengths.astype(np.float64)), math.inf
    if normalize == "clip":
        clip_at = float(np.median(norms[members]))
        return np.minimum(1.0, clip_at / safe), clip_at
    return None, math.inf


LARGEST_SCALE = 1e8
"""alpha |g|^2 beyond which float64 no longer tells collinear rows apart to the slack of a tie."""
SMALLEST_SCALE = 1e-9
"""alpha |g|^2 below which every gain is within the slack of a tie."""


def alpha_of(alpha: Any, squared_norms: Float[np.ndarray, " n"]) -> tuple[float, str | None]:
    """The Fisher scale, and a warning where ``"auto"`` has nothing to go by."""
    if alpha != "auto":
        return float(alpha), None
    known = squared_norms[squared_norms > 0]
    if not len(known):
        return 1.0, "alpha 'auto' was taken as 1: all gradients are zero."
    return 1.0 / float(np.median(known)), None


def scale_warning(alpha: float, squared_norms: Float[np.ndarray, " n"]) -> str | None:
    """A warning where gains are so large or so small that picks depend on rounding."""
    largest = alpha * float(np.max(squared_norms, initial=0.0))
    if largest > LARGEST_SCALE:
        return (
            f"alpha |g|^2 reaches {largest:.1e}, where nearly collinear rows differ by rounding alone; use a smaller "
            "alpha, or 'auto'."
        )
    if 0.0 < largest < SMALLEST_SCALE:
        return (
            f"alpha |g|^2 is {largest:.1e} at most, so that all gains tie and the first rows are chosen; use a larger "
            "alpha, or 'auto'."
        )
    return None


def _choice(name: str, value: object, known: Iterable[str]) -> None:
    known = list(known)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"give {', '.join(known[:-1])} or {known[-1]}."
        raise ConfigError(f"{name} cannot be {value!r}; {hint}")


def _float(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name} '{text}' is no number; give one.") from None


def _number(
    name: str, value: object, low: float, high: float, *, above: bool = False, below: bool = False, other: str = ""
) -> float:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if (
        not real
        or not math.isfinite(number)
        or not low <= number <= high
        or (above and number == low)
        or (below and number == high)
    ):
        least = f"above {low:g}" if above else f"{low:g} at least"
        most = "" if high == math.inf else f" and below {high:g}" if below else f" and {high:g} at most"
        raise ConfigError(f"{name} cannot be {value!r}; give a number {least}{most}{other}.")
    return number
