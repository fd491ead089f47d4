"""FisherSFT: rows whose tokens together span the most in the space of hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from spice_select.errors import ConfigError
from spice_select.methods.base import Choice, Method, Need, finished
from spice_select.methods.inputs import Inputs, Tokens
from spice_select.selection.greedy import lowest_best, slack

# Numbers of float64 in the arrays of one piece of work: 8 MiB.
_PIECE = 1 << 20
_FIRST_BATCH = 4


class FisherSft(Method):
    """Greedy maximisation of the log-determinant of the hidden states' second moment (FisherSFT)."""

    name: ClassVar[str] = "fisher_sft"
    summary: ClassVar[str] = "log-determinant of the hidden states' second moment"
    source: ClassVar[str] = "arXiv 2505.14826"
    cost: ClassVar[str] = "one forward pass a row, then T d^2 for every gain looked at and d^3 a pick"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TOKEN_FEATURES})

    positions: Literal["response", "all"] = "response"
    """Tokens whose hidden states count: those that predict a trained token, or those that predict any."""
    dim: int | None = Field(default=None, ge=1)
    """Project hidden states to this length by random signs; none: as they are."""
    sigma0: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The information before any row is sigma0 squared times the identity."""
    loop: Literal["lazy", "exact"] = "lazy"
    """Look again only at rows whose last gain could still win, or at all of them at every pick; the picks agree."""
    normalize_tokens: bool = False
    """Divide a row's states by the root of their number, so that long responses do not lead by their length."""

    def choose(self, inputs: Inputs) -> Choice:
        """Choose rows; scores are gains in nats."""
        assert inputs.tokens is not None
        gains = _Gains(inputs.tokens, self.sigma0, self.normalize_tokens)
        for index in inputs.in_hand:
            gains.add(index)
        limits = inputs.limits(known=inputs.tokens.counts > 0)
        asked = limits.remaining
        bounds = np.full(inputs.n, np.inf)
        picks: list[int] = []
        scores: list[float] = []
        pick = _lazy if self.loop == "lazy" else _exact
        while limits.remaining > 0 and limits.eligible.any():
            index = pick(gains, bounds, limits.eligible)
            picks.append(index)
            scores.append(float(bounds[index]))
            limits.take(index)
            if limits.remaining > 0:
                gains.add(index)
        note = f"Gains were worked out {gains.evaluations:,} times for {len(picks):,} picks."
        return finished(
            inputs,
            picks,
            scores,
            "information gain in nats",
            asked,
            notes=(note,),
            dropped="no other row has hidden states that count",
        )


def _exact(gains: _Gains, bounds: Float[np.ndarray, " n"], eligible: Bool[np.ndarray, " n"]) -> int:
    """The best eligible row by gains that are all worked out anew."""
    rows = np.flatnonzero(eligible)
    bounds[rows] = gains.of(rows)
    at = lowest_best(bounds[rows])
    assert at is not None
    return int(rows[at])


def _lazy(gains: _Gains, bounds: Float[np.ndarray, " n"], eligible: Bool[np.ndarray, " n"]) -> int:
    """The same row: a gain only ever shrinks, so that an earlier one bounds it from above."""
    waiting = np.where(eligible, bounds, -np.inf)
    fresh = np.zeros(len(bounds), dtype=np.bool_)
    size, best = _FIRST_BATCH, -np.inf
    while True:
        # Twice the slack: a bound may lie a rounding error below the gain that it bounds.
        open_rows = np.flatnonzero((waiting > -np.inf) & (waiting >= best - 2 * slack(best)))
        if not len(open_rows):
            break
        first = np.isinf(waiting[open_rows])
        if first.any():
            top = open_rows[first]
        else:
            order = np.argsort(-waiting[open_rows], kind="stable")
            top = np.sort(open_rows[order[:size]])
            size *= 2
        bounds[top] = gains.of(top)
        best = max(best, float(bounds[top].max()))
        fresh[top], waiting[top] = True, -np.inf
    rows = np.flatnonzero(fresh)
    at = lowest_best(bounds[rows])
    assert at is not None
    return int(rows[at])


class _Gains:
    """Gains in the log-determinant of V = sigma0^2 I + the sum of the added rows' second moments.

    V is summed in float64 and factorised anew after a row was added, which no error outlives; keeping its inverse by
    updates would be cheaper for short rows, and loses digits where hidden states are large.
    """

    def __init__(self, tokens: Tokens, sigma0: float, normalize: bool) -> None:
        self.evaluations = 0
        self._tokens = tokens
        self._counts = np.asarray(tokens.counts)
        self._sigma0 = sigma0
        self._normalize = normalize
        self._moment: Float[np.ndarray, "d d"] | None = None
        self._factor: Float[np.ndarray, "d d"] | None = None

    def add(self, index: int) -> None:
        """Count a row as chosen."""
        if not self._counts[index]:
            return
        if self._moment is None:
            self._moment = np.eye(self._tokens.dim) * self._sigma0**2
        states = self._states(index)
        self._moment += states.T @ states
        self._factor = None

    def of(self, rows: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Gain of each of some rows, in nats.

        Raises:
            ConfigError: ``sigma0`` is too small against the hidden states for float64.
        """
        found = np.empty(len(rows))
        try:
            for piece in self._pieces(rows):
                found[piece] = self._piece(rows[piece].tolist())
        except LinAlgError:
            raise ConfigError(
                f"method.sigma0 is {self._sigma0:g}, too small against the hidden states for their log-determinant in "
                "float64; raise it."
            ) from None
        self.evaluations += len(rows)
        return found

    def _pieces(self, rows: Int[np.ndarray, " m"]) -> Iterator[Int[np.ndarray, " p"]]:
        """Places in ``rows`` of rows with like numbers of tokens, few enough for one array each."""
        dim, counts = self._tokens.dim, self._counts[rows]
        order = np.argsort(-counts, kind="stable")
        begin = 0
        while begin < len(order):
            longest = max(1, int(counts[order[begin]]))
            # Padding costs no more than half of the largest row's share.
            alike = int(np.searchsorted(-counts[order], -(longest // 2), side="left"))
            side = min(longest, dim)
            most = max(1, _PIECE // (longest * dim + side * side))
            end = max(begin + 1, min(begin + most, alike))
            yield order[begin:end]
            begin = end

    def _piece(self, rows: Sequence[int]) -> Float[np.ndarray, " m"]:
        """Gains of rows in one go: logdet(I + Y Y') or logdet(I + Y' Y), the smaller, of whitened states Y."""
        dim, counts = self._tokens.dim, self._counts[list(rows)]
        white = self._whitened(np.concatenate([self._states(row) for row in rows]))
        padded = np.zeros((len(rows), max(1, int(counts.max())), dim))
        # A row of zeros adds a 1 to the diagonal of the smaller matrix, and nothing to the larger.
        padded[np.arange(padded.shape[1]) < counts[:, None]] = white
        turned = padded.transpose(0, 2, 1)
        grams = padded @ turned if padded.shape[1] <= dim else turned @ padded
        diagonal = np.arange(grams.shape[1])
        grams[:, diagonal, diagonal] += 1.0
        factors = np.linalg.cholesky(grams)
        gains = 2 * np.log(factors[:, diagonal, diagonal]).sum(axis=1)
        if not np.isfinite(gains).all():
            raise LinAlgError
        return gains

    def _whitened(self, states: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "t d"]:
        """States in coordinates in which V is the identity."""
        if self._moment is None:
            return states / self._sigma0
        if self._factor is None:
            self._factor = cholesky(self._moment, lower=True)
        return solve_triangular(self._factor, states.T, lower=True, check_finite=False).T

    def _states(self, row: int) -> Float[np.ndarray, "t d"]:
        states = np.asarray(self._tokens.of(row), dtype=np.float64)
        return states / np.sqrt(len(states)) if self._normalize else states
