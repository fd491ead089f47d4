"""How well one model's gradient geometry stands for another's, from two Gram matrices over the same rows.

References:
    SPICE, ICLR 2026, arXiv 2601.23155: a small proxy of the target's own family selects for the target.
    Kornblith, Norouzi, Lee, Hinton: Similarity of neural network representations revisited, arXiv 1905.00414 (CKA).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from spice_select.analysis.comparison import Numbers
from spice_select.analysis.geometry import (
    Geometry,
    alignment,
    cosine_matrix,
    gains_alone,
    gains_given,
    information_of,
)
from spice_select.analysis.ranks import average_ranks, pearson, spearman

DRAWS = 20
"""Random matchings of rows, and random subsets, that chance is measured by."""
SPREADS = 3.0
"""Standard deviations above chance from which a number is more than chance."""
TRUSTED = 0.5
"""Share of the way from knowing nothing to identity from which a number speaks for trust."""
DISTRUSTED = 0.2
"""The same, below which a number speaks against it."""

Verdict = Literal["trust", "with care", "do not trust"]
Statistic = Callable[[np.ndarray, np.ndarray], float | None]


class AgainstChance(Numbers):
    """A number beside what it would be for a proxy that knows nothing.

    Attributes:
        value: 1 for equal geometries; None where it is not defined, as where all rows are alike.
        chance: Its mean by chance: rows of the two models matched at random, or rows picked at random.
        spread: Its standard deviation by chance.
        untrained: Its value for a copy of the proxy with the weights of a network before training: what the lengths
            and words of the rows alone bring about. None where it was not measured.
    """

    value: float | None
    chance: float | None
    spread: float | None
    untrained: float | None = None

    @property
    def skill(self) -> float | None:
        """Share of the way from chance to 1; None where even 1 would be no more than chance, as on few rows."""
        return self._share_above(self.chance)

    @property
    def learned(self) -> float | None:
        """Share of the way to 1 from chance or from the untrained copy, whichever is more."""
        return self._share_above(max((b for b in (self.chance, self.untrained) if b is not None), default=None))

    @property
    def beyond_chance(self) -> bool:
        """Whether it lies more than three standard deviations above chance."""
        if self.value is None or self.chance is None:
            return False
        return self.value > self.chance + SPREADS * (self.spread or 0.0)

    def _share_above(self, baseline: float | None) -> float | None:
        if self.value is None or self.chance is None or baseline is None or baseline > 1.0 - 1e-9:
            return None
        if self.chance + SPREADS * (self.spread or 0.0) >= 1.0:
            return None
        return (self.value - baseline) / (1.0 - baseline)


class Agreement(Numbers):
    """How two models' gradients of the same rows agree.

    Attributes:
        rows: Rows compared.
        proxy_picks: Rows that the proxy's gradients choose.
        target_picks: Rows that the target's gradients choose.
        inner_pearson: Pearson correlation of the inner products of different rows.
        inner_spearman: Their Spearman correlation.
        cosine_pearson: Pearson correlation of the cosines of different rows.
        cosine_spearman: Their Spearman correlation.
        cka: Centred kernel alignment of the Gram matrices.
        norm_spearman: Spearman correlation of the gradient norms.
        gain_spearman: Spearman correlation of the gains of single rows before anything is chosen, as scaled for
            selection: without normalisation the order is that of the norms.
        gain_given_spearman: Spearman correlation of the gains of the other rows once the proxy's picks are chosen.
        jaccard: Rows that both choose over rows that either chooses.
        information: Information that the proxy's picks hold under the target's gradients, over that of the target's
            own picks.
        verdict: Whether to let the proxy choose for the target.
        reason: Why, in one sentence.
    """

    rows: int
    proxy_picks: int
    target_picks: int
    inner_pearson: AgainstChance
    inner_spearman: AgainstChance
    cosine_pearson: AgainstChance
    cosine_spearman: AgainstChance
    cka: AgainstChance
    norm_spearman: AgainstChance
    gain_spearman: AgainstChance
    gain_given_spearman: AgainstChance
    jaccard: AgainstChance
    information: AgainstChance
    verdict: Verdict
    reason: str

    def describe(self) -> list[str]:
        """A table for the terminal, the verdict last."""
        lines = [f"{'':<42}{'value':>8}{'untrained':>11}{'chance':>18}"]
        for name, label in LABELS.items():
            number: AgainstChance = getattr(self, name)
            chance = "-" if number.chance is None else f"{number.chance:.3f} +- {number.spread or 0.0:.3f}"
            lines.append(f"{label:<42}{_shown(number.value):>8}{_shown(number.untrained):>11}{chance:>18}")
        return [*lines, f"Verdict: {self.verdict}. {self.reason}"]


LABELS = {
    "inner_pearson": "Inner products, Pearson",
    "inner_spearman": "Inner products, Spearman",
    "cosine_pearson": "Cosines, Pearson",
    "cosine_spearman": "Cosines, Spearman",
    "cka": "Centred kernel alignment",
    "norm_spearman": "Gradient norms, Spearman",
    "gain_spearman": "Gains of single rows, Spearman",
    "gain_given_spearman": "Gains beside the picks, Spearman",
    "jaccard": "Picks in common, Jaccard",
    "information": "Information of the proxy's picks",
}


def compare_gradients(
    proxy: Geometry, target: Geometry, untrained: Geometry | None = None, *, seed: int = 0
) -> Agreement:
    """Compare two models' gradients of the same rows, and the selections made from them under the same settings.

    Args:
        proxy: The proxy's.
        target: The target's.
        untrained: Those of a copy of the proxy with the weights of a network before training.
        seed: Seed of the draws by which chance is measured.
    """
    assert proxy.gram.shape == target.gram.shape
    found = _measured(proxy, target, seed)
    if untrained is not None:
        beside = _measured(untrained, target, seed)
        found = {name: number.model_copy(update={"untrained": beside[name].value}) for name, number in found.items()}
    verdict, reason = judge(found["cosine_spearman"], found["information"], found["jaccard"])
    return Agreement(
        rows=len(proxy.gram),
        proxy_picks=len(proxy.selection.indices),
        target_picks=len(target.selection.indices),
        verdict=verdict,
        reason=reason,
        **found,
    )


def judge(cosines: AgainstChance, information: AgainstChance, jaccard: AgainstChance) -> tuple[Verdict, str]:
    """Whether a proxy may choose for a target, by how far it is from knowing nothing towards being the target.

    Two numbers count: the rank correlation of cosines, whose zero is chance or an untrained copy of the proxy,
    whichever is more, and the information of the proxy's picks, whose zero is a random subset. ``do not trust``: one of
    them is no more than chance (less than three standard deviations above it), or less than a fifth of the way to 1.
    ``trust``: both are at least half of the way, and the rows that both models choose are more than chance. ``with
    care``: what lies between. A number that could not tell 1 from chance on so few rows has no say.

    Args:
        cosines: Spearman correlation of the cosines between rows.
        information: Information of the proxy's picks over that of the target's.
        jaccard: Overlap of the picks.
    """
    asked = ((_COSINES, cosines, cosines.learned), (_INFORMATION, information, information.skill))
    known = [(share, what, number) for what, number, share in asked if share is not None]
    if not known:
        return "with care", "So few rows tell nothing from chance; compare more of them, or a smaller budget."
    for _, what, number in known:
        if not number.beyond_chance:
            by_chance = f"{number.chance:.2f} +- {number.spread or 0.0:.2f}"
            return "do not trust", f"{what} {number.value:.2f}, which is not clearly more than chance ({by_chance})."
    share, what, number = min(known, key=lambda entry: entry[0])
    below = what == _COSINES and number.untrained is not None and number.untrained > (number.chance or 0.0)
    zero = f"{number.untrained:.2f} before any training" if below else f"{number.chance:.2f} by chance"
    way = f"{max(share, 0.0):.0%} of the way from there to 1"
    said = f"{what} {number.value:.2f}, where the proxy would reach {zero}: {way}"
    if share < DISTRUSTED:
        return "do not trust", f"{said}."
    if share < TRUSTED:
        return "with care", f"{said}, and half is asked for."
    if jaccard.skill is not None and not jaccard.beyond_chance:
        return "with care", "The geometries agree, but the rows that both models choose are no more than chance."
    return "trust", f"{said}, its weakest side."


_COSINES = "The cosines between rows correlate by"
_INFORMATION = "The proxy's picks hold, of the information of the target's own,"


def _measured(proxy: Geometry, target: Geometry, seed: int) -> dict[str, AgainstChance]:
    """Every number, by its name in :class:`Agreement`."""
    generator = np.random.default_rng(seed)

    def matched(statistic: Statistic, left: np.ndarray, right: np.ndarray) -> AgainstChance:
        """A statistic of two matrices or columns, and the same with the rows of one matched at random."""
        draws = [generator.permutation(len(right)) for _ in range(DRAWS)]
        return _against(statistic(left, right), [statistic(left, right[np.ix_(*[m] * right.ndim)]) for m in draws])

    grams = proxy.gram, target.gram
    # A row of zero norm has no cosine.
    known = np.flatnonzero(np.logical_and(*(np.diagonal(gram) > 0.0 for gram in grams)))
    cosines = [cosine_matrix(gram[np.ix_(known, known)]) for gram in grams]
    given = np.asarray(proxy.selection.indices)
    others = np.setdiff1d(np.arange(len(proxy.gram)), given)
    return {
        "inner_pearson": matched(_pairwise, *grams),
        "inner_spearman": matched(_pairwise, *map(_ranked, grams)),
        "cosine_pearson": matched(_pairwise, *cosines),
        "cosine_spearman": matched(_pairwise, *map(_ranked, cosines)),
        "cka": matched(alignment, *grams),
        "norm_spearman": matched(spearman, *map(np.diagonal, grams)),
        "gain_spearman": matched(spearman, gains_alone(proxy), gains_alone(target)),
        "gain_given_spearman": matched(spearman, *(gains_given(side, given)[others] for side in (proxy, target))),
        "jaccard": overlap(given, np.asarray(target.selection.indices), len(proxy.gram)),
        "information": _information_share(target, given, generator),
    }


def overlap(first: Int[np.ndarray, " a"], second: Int[np.ndarray, " b"], n: int) -> AgainstChance:
    """Jaccard overlap of two sets of rows, beside that of two random sets as large, exactly.

    Args:
        first: Rows of the one.
        second: Rows of the other.
        n: Rows that there are.
    """
    common = len(np.intersect1d(first, second))
    a, b = len(first), len(second)
    possible = np.arange(max(0, a + b - n), min(a, b) + 1)
    weights = np.array([_choices(a, j) + _choices(n - a, b - j) - _choices(n, b) for j in possible.tolist()])
    chances = np.exp(weights)
    values = possible / np.maximum(a + b - possible, 1)
    mean = float(chances @ values)
    return AgainstChance(
        value=common / (a + b - common),
        chance=mean,
        spread=float(np.sqrt(max(0.0, chances @ (values - mean) ** 2))),
    )


def _choices(n: int, k: int) -> float:
    """Logarithm of the number of ways to take k of n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _information_share(target: Geometry, picks: Int[np.ndarray, " k"], generator: np.random.Generator) -> AgainstChance:
    own = information_of(target, np.asarray(target.selection.indices))
    if own <= 0.0:
        return AgainstChance(value=None, chance=None, spread=None)
    subsets = [generator.choice(len(target.gram), len(picks), replace=False) for _ in range(DRAWS)]
    by_chance = [information_of(target, subset) / own for subset in subsets]
    return _against(information_of(target, picks) / own, by_chance)


def _against(value: float | None, by_chance: Sequence[float | None]) -> AgainstChance:
    known = [number for number in by_chance if number is not None]
    if value is None or not known:
        return AgainstChance(value=value, chance=None, spread=None)
    return AgainstChance(value=value, chance=float(np.mean(known)), spread=float(np.std(known)))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _pairwise(left: Float[np.ndarray, "n n"], right: Float[np.ndarray, "n n"]) -> float | None:
    """Pearson correlation of the entries above the diagonal."""
    upper = np.triu_indices(len(left), 1)
    return pearson(left[upper], right[upper])


def _ranked(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """A symmetric matrix with the ranks of its entries off the diagonal: ranked once, and matched many times."""
    upper = np.triu_indices(len(matrix), 1)
    ranks = np.zeros_like(matrix, dtype=np.float64)
    ranks[upper] = average_ranks(matrix[upper])
    return ranks + ranks.T
