"""Determinantal point process: the rows whose kernel matrix has the largest determinant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field, model_validator

from spice_select.methods.base import Choice, Method, Need, Varies, finished
from spice_select.methods.inputs import Inputs
from spice_select.methods.vectors import Features, Products, Vectors, lowest_best, need_of, unknown_note, vectors_of
from spice_select.selection.quotas import Limits

Kernel = Literal["rbf", "vmf", "linear", "cosine"]

FLOOR = 1e-10
"""What is left of a row beside the chosen ones, below which it is taken for a combination of them."""
_SAMPLE = 512
_STEPS = 7
_COPY = 1e-9
_BLOCK = 256
_LEFT = "no other row was left"
_QUALITY = "loss to take for its quality"


class Dpp(Method):
    """Greedy maximisation of log det K over the chosen rows: fast greedy MAP inference."""

    name: ClassVar[str] = "dpp"
    summary: ClassVar[str] = "the volume that the chosen rows span: log det of their kernel matrix"
    source: ClassVar[str] = "arXiv 2402.02318"
    cost: ClassVar[str] = "picks^2 x rows, and picks x rows x dimension for the kernel"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})

    features: Features = "gradients"
    """Vectors that rows are compared by, each divided by its norm."""
    kernel: Kernel = "rbf"
    """Similarity of unit vectors x and y: ``rbf`` exp(-gamma |x - y|^2), ``vmf`` exp(gamma (x.y - 1) / 2), ``linear``
    (x.y + 1) / 2, ``cosine`` x.y; the last two can choose no more rows than the vectors have numbers, and one."""
    gamma: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Width of ``rbf`` and ``vmf``; ``auto`` makes |x - y|^2 count in units of its median over a sample, and is raised
    by 4 again and again where the kernel cannot tell enough rows apart."""
    quality: Literal["none", "loss", "ifd"] = "none"
    """What a row is worth by itself: nothing, its loss, or its perplexity given the prompt over that without it."""
    theta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of log quality; 1 - theta is that of diversity. 0.5 where there is a quality and this is absent."""
    fill: Literal["none", "random"] = "none"
    """What follows when no row is left that is no combination of the chosen ones: fewer rows, or random ones."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Dpp:
        if self.quality == "none" and self.theta is not None:
            raise ValueError("theta weighs a quality; name one with method.quality, or leave theta out")
        if self.kernel in ("linear", "cosine") and self.gamma != "auto":
            raise ValueError(f"kernel '{self.kernel}' has no gamma; leave gamma out, or use rbf or vmf")
        return self

    def varying(self) -> Varies:
        """Nothing but a random fill depends on the seed."""
        return "draw" if self.fill == "random" else "no"

    def required(self) -> frozenset[Need]:
        """The vectors, and losses for a quality."""
        losses = {
            "none": frozenset[Need](),
            "loss": frozenset({Need.LOSSES}),
            "ifd": frozenset({Need.LOSSES, Need.DIRECT_LOSSES}),
        }[self.quality]
        return losses | {need_of(self.features)}

    def choose(self, inputs: Inputs) -> Choice:
        """Choose rows greedily by what each adds to log det K, plus its log quality where there is one."""
        vectors = vectors_of(inputs, self.features, unit=True)
        log_quality = self._log_quality(inputs)
        theta = 0.0 if log_quality is None else 0.5 if self.theta is None else self.theta
        asked = 0
        walk, gamma = None, 1.0
        for gamma in self._gammas(inputs, vectors):
            limits = inputs.limits(None if log_quality is None else np.isfinite(log_quality))
            asked = limits.remaining
            walk = _Walk(vectors, _kernel(self.kernel, gamma), limits, log_quality, theta)
            walk.run(inputs.in_hand)
            if walk.whole or walk.only_copies:
                break
        assert walk is not None
        return self._finished(inputs, vectors, walk, gamma, asked)

    def _finished(self, inputs: Inputs, vectors: Vectors, walk: _Walk, gamma: float, asked: int) -> Choice:
        notes = list(
            unknown_note(inputs, vectors, self.features, "come last" if self.fill == "random" else "are never chosen")
        )
        if self.kernel in ("rbf", "vmf"):
            notes.append(f"Kernel {self.kernel} with gamma {gamma:.6g}.")
        picks, scores = list(walk.picks), list(walk.scores)
        short = not walk.whole
        if short and self.fill == "random":
            drawn = _fill(walk.limits, vectors.known, inputs.seed)
            notes.append(
                f"{len(drawn):,} rows were drawn at random after the first {len(picks):,}, as {self._why(walk)}."
            )
            picks += drawn
            scores += [np.nan] * len(drawn)
        name = "gain of log det K"
        if walk.theta > 0:
            name = f"{walk.theta:g} x log {self.quality} + {1 - walk.theta:g} x {name}"
        return finished(
            inputs,
            picks,
            scores,
            name,
            asked,
            notes=tuple(notes),
            dropped=self._why(walk) if short else _LEFT if self.quality == "none" else f"no other row has a {_QUALITY}",
            remedy=self._remedy(walk) if short else "give a smaller budget",
        )

    def _why(self, walk: _Walk) -> str:
        if walk.only_copies:
            return f"the {self.features} of all other rows are copies of those of chosen ones, or zeros"
        return f"the {self.kernel} kernel of their {self.features} makes all other rows combinations of the chosen ones"

    def _remedy(self, walk: _Walk) -> str:
        if walk.only_copies:
            return "give a smaller budget, or set method.fill to random"
        if self.kernel in ("linear", "cosine"):
            return "set method.kernel to rbf, or method.fill to random"
        return "raise method.gamma, or set method.fill to random"

    def _log_quality(self, inputs: Inputs) -> Float[np.ndarray, " n"] | None:
        if self.quality == "none":
            return None
        assert inputs.losses is not None
        losses = np.asarray(inputs.losses, dtype=np.float64)
        if self.quality == "loss":
            return np.log(np.maximum(losses, 1e-12))
        assert inputs.direct_losses is not None
        return losses - np.asarray(inputs.direct_losses, dtype=np.float64)

    def _gammas(self, inputs: Inputs, vectors: Vectors) -> list[float]:
        """The gammas to try, in order."""
        if self.gamma != "auto":
            return [self.gamma]
        if self.kernel in ("linear", "cosine"):
            return [1.0]
        first = 1.0 / _median_squared_distance(vectors, inputs.candidates & vectors.known)
        # exp(gamma (x.y - 1) / 2) is exp(-gamma |x - y|^2 / 4) for unit vectors.
        return [(4.0 if self.kernel == "vmf" else 1.0) * first * 4.0**step for step in range(_STEPS)]


@dataclass(eq=False)
class _Walk:
    """One greedy walk: c holds the rows of a Cholesky factor, rest what each row is beside the chosen ones."""

    vectors: Vectors
    kernel: Callable[[np.ndarray], np.ndarray]
    limits: Limits
    log_quality: np.ndarray | None
    theta: float
    picks: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    factor: list[np.ndarray] = field(default_factory=list)
    count: int = 0
    whole: bool = False
    only_copies: bool = False

    def run(self, in_hand: object) -> None:
        """Count rows in hand as chosen, then choose until the budget ends or no row has anything of its own."""
        products = Products(self.vectors)
        known = self.vectors.known
        self.rest = known.astype(np.float64)
        self.nearest = np.full(self.vectors.n, -1.0)
        for index in np.asarray(in_hand, dtype=np.int64).tolist():
            if self.rest[index] > FLOOR:
                self._add(index, products.of(index, np.full(self.vectors.n, -np.inf)))
        while self.limits.remaining and self.limits.eligible.any():
            open_rows = self.limits.eligible & (self.rest > FLOOR)
            scores = self._scores(open_rows)
            best = lowest_best(scores, open_rows)
            if best is None:
                left = self.limits.eligible & known
                self.only_copies = not left.any() or bool((self.nearest[left] > 1.0 - _COPY).all())
                return
            index, score = best
            self.limits.take(index)
            self.picks.append(index)
            self.scores.append(score)
            self._add(index, products.of(index, scores))
        self.whole = True

    def _scores(self, open_rows: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        scores = np.full(self.vectors.n, -np.inf)
        gains = np.log(self.rest[open_rows])
        if self.log_quality is not None:
            gains = self.theta * self.log_quality[open_rows] + (1.0 - self.theta) * gains
        scores[open_rows] = gains
        return scores

    def _add(self, index: int, cosines: Float[np.ndarray, " n"]) -> None:
        row = self.kernel(cosines)
        for number, block in enumerate(self.factor):
            size = min(_BLOCK, self.count - number * _BLOCK)
            row -= block[:size, index] @ block[:size]
        row /= np.sqrt(self.rest[index])
        row[~self.vectors.known] = 0.0
        if self.count % _BLOCK == 0:
            self.factor.append(np.empty((_BLOCK, self.vectors.n)))
        self.factor[-1][self.count % _BLOCK] = row
        self.count += 1
        self.rest = np.maximum(self.rest - row * row, 0.0)
        self.rest[index] = 0.0
        self.nearest = np.maximum(self.nearest, cosines)


def _kernel(name: Kernel, gamma: float) -> Callable[[np.ndarray], np.ndarray]:
    """Similarity by cosine; 1 for a row with itself."""
    if name == "rbf":
        return lambda cosines: np.exp(-gamma * np.maximum(2.0 - 2.0 * cosines, 0.0))
    if name == "vmf":
        return lambda cosines: np.exp(gamma * np.minimum(cosines - 1.0, 0.0) / 2.0)
    if name == "linear":
        return lambda cosines: (cosines + 1.0) / 2.0
    return lambda cosines: np.array(cosines)


def _median_squared_distance(vectors: Vectors, members: Bool[np.ndarray, " n"]) -> float:
    """Median squared distance of two rows that differ, over a fixed sample; 1 where there are no such rows."""
    numbers = np.flatnonzero(members)
    if len(numbers) > _SAMPLE:
        # Not of the run's seed: which rows stand for all is no choice that should vary.
        numbers = np.sort(np.random.default_rng(0).choice(numbers, _SAMPLE, replace=False))
    unit = vectors.take(numbers)
    squared = (2.0 - 2.0 * unit @ unit.T)[np.triu_indices(len(numbers), 1)]
    apart = squared[squared > _COPY]
    return float(np.median(apart)) if len(apart) else 1.0


def _fill(limits: Limits, known: Bool[np.ndarray, " n"], seed: int) -> list[int]:
    """Take rows at random while the budget lasts, those without a direction after all others."""
    order = np.random.default_rng(seed).permutation(len(known))
    drawn = []
    for index in [*order[known[order]].tolist(), *order[~known[order]].tolist()]:
        if limits.remaining and limits.eligible[index]:
            limits.take(index)
            drawn.append(index)
    return drawn
