"""Agreement of two gradient geometries: each number against its definition, and verdicts that compare with chance."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from spice_select.analysis.agreement import (
    LABELS,
    AgainstChance,
    Agreement,
    compare_gradients,
    judge,
    overlap,
)
from spice_select.analysis.geometry import Geometry, alignment, cosine_matrix, gains_alone, gains_given, information_of
from spice_select.selection import log_det, select_gram


def cloud(n: int = 60, dim: int = 12, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = 1.5 * random.standard_normal((4, dim))
    rows = random.standard_normal((n, dim)) + centres[random.integers(0, 4, n)]
    return rows * np.exp(0.5 * random.standard_normal(n))[:, None]


def side(rows: np.ndarray, budget: Any = "20%", **settings: Any) -> Geometry:
    gram = rows @ rows.T
    return Geometry(gram, select_gram(gram, budget, **{"alpha": "auto", **settings}))


def near(rows: np.ndarray, noise: float, seed: int = 9) -> np.ndarray:
    """The rows in another basis, with noise beside."""
    random = np.random.default_rng(seed)
    turned = rows @ np.linalg.qr(random.standard_normal((rows.shape[1], rows.shape[1])))[0]
    return turned + noise * random.standard_normal(rows.shape)


@pytest.mark.parametrize("settings", [{}, {"normalize": "unit"}, {"alpha": 1.0}, {"reference": "pool"}])
def test_a_geometry_agrees_with_itself_and_with_itself_in_another_basis(settings: dict[str, Any]) -> None:
    rows = cloud()
    for other in (rows, near(rows, 0.0)):
        found = compare_gradients(side(rows, **settings), side(other, **settings))
        for name in LABELS:
            value = getattr(found, name).value
            # Unit rows all gain alike; what rounding leaves of their order is nothing.
            if name == "gain_spearman" and settings.get("normalize") == "unit":
                continue
            assert value == pytest.approx(1.0, abs=1e-9), name
        assert found.verdict == "trust", found.reason
        assert found.proxy_picks == found.target_picks == 12 and found.rows == 60


def test_unrelated_geometries_are_not_trusted() -> None:
    for seed in range(5):
        found = compare_gradients(side(cloud(seed=seed)), side(cloud(seed=seed + 100)), seed=seed)
        assert found.verdict == "do not trust"
        for name in ("inner_pearson", "inner_spearman", "cosine_pearson", "cosine_spearman", "norm_spearman"):
            number = getattr(found, name)
            assert abs(number.value) < 0.35 and abs(number.chance) < 0.1, name


def test_agreement_falls_with_noise() -> None:
    rows = cloud()
    found = [compare_gradients(side(rows), side(near(rows, noise))) for noise in (0.1, 1.0, 4.0)]
    for name in ("inner_spearman", "cosine_spearman", "cka", "gain_spearman"):
        values = [getattr(agreement, name).value for agreement in found]
        assert values == sorted(values, reverse=True), name
    assert [agreement.verdict for agreement in found] == ["trust", "trust", "do not trust"]


def test_an_untrained_copy_that_agrees_as_well_takes_the_trust_away() -> None:
    rows = cloud()
    target, proxy = side(rows), side(near(rows, 1.0))
    trusted = compare_gradients(proxy, target)
    beside = compare_gradients(proxy, target, side(near(rows, 1.0, seed=4)))
    assert trusted.verdict == "trust" and trusted.cosine_spearman.untrained is None
    assert beside.verdict == "do not trust"
    assert "before any training" in beside.reason
    assert beside.cosine_spearman.value == trusted.cosine_spearman.value
    assert beside.cosine_spearman.untrained == pytest.approx(beside.cosine_spearman.value, abs=0.1)
    blank = compare_gradients(proxy, target, side(cloud(seed=77)))
    assert blank.verdict == "trust"


def test_numbers_are_their_definitions() -> None:
    first, second = cloud(), near(cloud(), 1.0)
    proxy, target = side(first, normalize="unit"), side(second, normalize="unit")
    found = compare_gradients(proxy, target)
    upper = np.triu_indices(60, 1)
    left, right = first @ first.T, second @ second.T
    assert found.inner_pearson.value == pytest.approx(np.corrcoef(left[upper], right[upper])[0, 1])
    ranks = [np.argsort(np.argsort(gram[upper])) for gram in (left, right)]
    assert found.inner_spearman.value == pytest.approx(np.corrcoef(ranks[0], ranks[1])[0, 1])
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]
    cosines = [(unit @ unit.T)[upper] for unit in units]
    assert found.cosine_pearson.value == pytest.approx(np.corrcoef(*cosines)[0, 1])
    norms = [np.argsort(np.argsort(np.linalg.norm(rows, axis=1))) for rows in (first, second)]
    assert found.norm_spearman.value == pytest.approx(np.corrcoef(*norms)[0, 1])
    picked, own = proxy.selection.indices, target.selection.indices
    share = len(set(picked) & set(own)) / len(set(picked) | set(own))
    assert found.jaccard.value == share
    alpha = target.selection.alpha
    expected = log_det(units[1][picked], alpha) / log_det(units[1][own], alpha)
    assert found.information.value == pytest.approx(expected)
    assert 0 < found.information.chance < found.information.value <= 1 + 1e-9
    others = np.setdiff1d(np.arange(60), picked)
    gains = []
    for unit, chosen in zip(units, (proxy, target), strict=True):
        scale = chosen.selection.alpha
        base = log_det(unit[picked], scale)
        gains.append([log_det(unit[[*picked, x]], scale) - base for x in others])
    given = np.corrcoef(*[np.argsort(np.argsort(gain)) for gain in gains])[0, 1]
    assert found.gain_given_spearman.value == pytest.approx(given)


def test_alignment_is_hsic_normalised() -> None:
    first, second = cloud(20), cloud(20, seed=3)
    centre = np.eye(20) - 1 / 20
    left, right = (centre @ (rows @ rows.T) @ centre for rows in (first, second))
    expected = np.trace(left @ right) / np.sqrt(np.trace(left @ left) * np.trace(right @ right))
    assert alignment(first @ first.T, second @ second.T) == pytest.approx(expected)
    assert alignment(1e-200 * first @ first.T, 1e150 * second @ second.T) == pytest.approx(expected)
    assert alignment(np.ones((4, 4)), np.eye(4)) is None


def test_gains_from_inner_products_are_differences_of_information() -> None:
    rows = cloud(10, 5)
    geometry = side(rows, 3, normalize="clip")
    scaled = rows * geometry.selection.factors[:, None]
    alpha, given = geometry.selection.alpha, geometry.selection.indices
    base = log_det(scaled[given], alpha)
    assert information_of(geometry, given) == pytest.approx(base)
    expected = [log_det(scaled[[*given, x]], alpha) - base for x in range(10) if x not in given]
    assert gains_given(geometry, given)[np.setdiff1d(np.arange(10), given)] == pytest.approx(expected)
    assert gains_alone(geometry) == pytest.approx([log_det(scaled[[x]], alpha) for x in range(10)])


@pytest.mark.parametrize(("a", "b", "n"), [(2, 3, 6), (4, 4, 6), (1, 1, 5), (5, 5, 5)])
def test_overlap_by_chance_is_the_mean_over_all_subsets(a: int, b: int, n: int) -> None:
    first = set(range(a))
    values = [len(first & set(s)) / len(first | set(s)) for s in combinations(range(n), b)]
    found = overlap(np.arange(a), np.arange(b), n)
    assert found.value == min(a, b) / max(a, b)
    assert found.chance == pytest.approx(np.mean(values))
    assert found.spread == pytest.approx(np.std(values), abs=1e-7)


def test_rows_without_a_gradient_have_no_cosine_and_break_nothing() -> None:
    rows = cloud()
    rows[[4, 17]] = 0.0
    assert np.isnan(cosine_matrix(rows @ rows.T)[4]).all()
    found = compare_gradients(side(rows), side(rows))
    assert found.cosine_spearman.value == pytest.approx(1.0) and found.verdict == "trust"
    nothing = compare_gradients(side(np.zeros((12, 3)), 2), side(np.zeros((12, 3)), 2))
    assert nothing.cosine_spearman.value is None and nothing.information.value is None
    assert nothing.verdict == "with care" and "few rows" in nothing.reason


def test_every_row_chosen_leaves_the_picks_out_of_the_verdict() -> None:
    found = compare_gradients(side(cloud(), 60), side(near(cloud(), 0.1), 60))
    assert found.jaccard.value == found.jaccard.chance == 1.0
    assert found.jaccard.skill is None and found.information.skill is None
    assert found.gain_given_spearman.value is None
    assert found.verdict == "trust"


def number(value: float, chance: float = 0.0, spread: float = 0.05, untrained: float | None = None) -> AgainstChance:
    return AgainstChance(value=value, chance=chance, spread=spread, untrained=untrained)


GOOD = number(0.9)


@pytest.mark.parametrize(
    ("cosines", "information", "jaccard", "verdict", "said"),
    [
        (GOOD, number(0.9, 0.6), number(0.4, 0.05), "trust", "weakest side"),
        (number(0.5), number(0.9, 0.6), GOOD, "trust", "50%"),
        (number(0.49), number(0.9, 0.6), GOOD, "with care", "0.49"),
        (number(0.7, untrained=0.45), number(0.9, 0.6), GOOD, "with care", "0.45 before any training"),
        (number(0.7, untrained=0.65), number(0.9, 0.6), GOOD, "do not trust", "14%"),
        (number(0.6, untrained=0.65), number(0.9, 0.6), GOOD, "do not trust", "0%"),
        (number(0.19, spread=0.01), number(0.9, 0.6), GOOD, "do not trust", "19%"),
        (number(0.14), GOOD, GOOD, "do not trust", "0.14, which is not clearly more than chance (0.00 +- 0.05)"),
        (GOOD, number(0.75, 0.6, 0.02), GOOD, "with care", "information"),
        (GOOD, number(0.7, 0.6, 0.05), GOOD, "do not trust", "information"),
        (GOOD, GOOD, number(0.1, 0.05), "with care", "no more than chance"),
        # Where 1 itself would not stand out from chance, a number has no say.
        (GOOD, number(0.9, 0.6, 0.2), number(0.0, 0.3, 0.4), "trust", "cosines"),
    ],
)
def test_verdicts(
    cosines: AgainstChance, information: AgainstChance, jaccard: AgainstChance, verdict: str, said: str
) -> None:
    found, reason = judge(cosines, information, jaccard)
    assert found == verdict
    assert said in reason
    assert reason.endswith(".") and ". " not in reason


def test_a_seed_gives_the_same_numbers_and_json_keeps_them() -> None:
    first, second = side(cloud()), side(near(cloud(), 1.0))
    found = compare_gradients(first, second, first, seed=3)
    assert compare_gradients(first, second, first, seed=3) == found
    assert compare_gradients(first, second, first, seed=4).cka.chance != found.cka.chance
    assert Agreement.model_validate_json(found.model_dump_json()) == found
    lines = found.describe()
    assert len(lines) == len(LABELS) + 2
    assert lines[-1].startswith(f"Verdict: {found.verdict}. ")
