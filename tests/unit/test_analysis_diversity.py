"""Diversity measures: worked answers, options, samples that say so, and sets that have no answer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from spice_select import GradientStore
from spice_select.analysis.directions import directions
from spice_select.analysis.diversity import measure_diversity
from spice_select.analysis.ldd import ldd_wang, logdet_similarity
from spice_select.analysis.novel_sum import novelsum
from spice_select.analysis.vendi_score import g_vendi, vendi, vendi_of_kernel
from spice_select.errors import ConfigError, DataError
from tests.stores import FakeEngine, examples, fill

Z = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
D = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
AXES = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
G = np.array([[3.0, 0.0], [0.0, 2.0], [0.0, -5.0], [1.0, 1.0]])


def random_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def test_novelsum_worked_answers() -> None:
    paper = novelsum(Z, neighbours=2)
    assert paper.value == pytest.approx(1.366312, abs=1e-6)
    assert paper.total == pytest.approx(5.465250, abs=1e-6)
    counted = novelsum(Z, neighbours=2, self_counted=True)
    assert (counted.value, counted.total) == pytest.approx((0.864506, 3.458024), abs=1e-6)
    assert novelsum(Z, mode="official", neighbours=2).value == pytest.approx(0.391882, abs=1e-6)


def test_novelsum_density_alone() -> None:
    """Two rows: one distance, so that the value is the density times it."""
    rows = [[1.0, 0.0], [0.6, 0.8]]
    # Cosine distance .4, squared distance .8, its only neighbour's.
    assert novelsum(rows, neighbours=5).value == pytest.approx(0.4 / 0.8**0.5)
    assert novelsum(rows, neighbours=5, density_power=1.0).value == pytest.approx(0.4 / 0.8)
    assert novelsum(rows, neighbours=5, density_power=0.0).value == pytest.approx(0.4)
    assert novelsum(rows, neighbours=5, self_counted=True, distance_power=2.0, density_power=0.0).value == (
        pytest.approx(0.4 / 4)
    )


def brute_novelsum(unit: np.ndarray, reference: np.ndarray, k: int, *, official: bool) -> float:
    """The definition, row by row."""

    def sigma(x: np.ndarray) -> float:
        squared = sorted(float(((x - y) ** 2).sum()) for y in reference)
        used = squared[1 : k + 1] if official or squared[0] < 1e-12 else squared[:k]
        return float(1.0 / np.mean(used))

    values = []
    densities = [sigma(x) ** 0.5 for x in unit]
    for i, x in enumerate(unit):
        others = sorted((1 - float(x @ y), j) for j, y in enumerate(unit) if j != i)
        if official:
            weights = [1 / rank for rank in range(1, len(unit) + 1)]
            distances = [0.0, *(distance for distance, _ in others)]
            values.append(np.average(distances, weights=weights) * densities[i])
        else:
            values.append(sum(d * densities[j] / rank for rank, (d, j) in enumerate(others, 1)))
    return float(np.mean(values))


@pytest.mark.parametrize("official", [False, True])
def test_novelsum_against_the_definition(official: bool) -> None:
    rows, reference = random_rows(300, 12), random_rows(40, 12, 1)
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    against = reference / np.linalg.norm(reference, axis=1)[:, None]
    mode = "official" if official else "paper"
    expected = brute_novelsum(unit, against, 10, official=official)
    assert novelsum(rows, mode=mode, reference=reference).value == pytest.approx(expected, rel=1e-9)
    assert novelsum(rows, mode=mode).value == pytest.approx(brute_novelsum(unit, unit, 10, official=official), rel=1e-9)


def test_novelsum_deduplicates_the_reference() -> None:
    rows, reference = random_rows(12, 6), random_rows(9, 6, 1)
    twice = np.concatenate([reference, 3.0 * reference])
    once = novelsum(rows, reference=reference, neighbours=3)
    again = novelsum(rows, reference=twice, neighbours=3)
    assert again.value == pytest.approx(once.value)
    assert (again.reference_rows, again.reference_given) == (9, 18)
    assert novelsum(rows, reference=twice, neighbours=3, deduplicate=False).value > once.value


def test_novelsum_of_one_row_and_of_copies_is_zero() -> None:
    assert novelsum([[1.0, 2.0]]).value == 0.0
    assert novelsum([[1.0, 2.0]], mode="official").value == 0.0
    assert novelsum([[1.0, 2.0]] * 5).value == pytest.approx(0.0, abs=1e-9)


def test_ldd_worked_answers() -> None:
    assert ldd_wang(D, reference=AXES).value == pytest.approx(0.374104, abs=1e-6)
    assert ldd_wang(D).value == pytest.approx(0.374104, abs=1e-6), "the axes are the spread points themselves"
    assert logdet_similarity(D, ridge=1.0).value == pytest.approx(2.197225, abs=1e-6)


def test_spread_points_are_their_own_reference() -> None:
    assert ldd_wang(AXES).value == pytest.approx(0.0, abs=1e-12)
    assert ldd_wang(np.eye(5)[:4]).value == pytest.approx(0.0, abs=1e-12)
    clustered = np.eye(6)[0] + 0.2 * random_rows(6, 6)
    assert ldd_wang(clustered).value > 0.2


def test_determinants_that_vanish() -> None:
    rows = random_rows(6, 3)
    assert logdet_similarity(rows, ridge=0.0).value == -math.inf
    assert logdet_similarity([[1.0, 2.0], [2.0, 4.0]], ridge=0.0).value == -math.inf
    assert ldd_wang([[1.0, 2.0], [2.0, 4.0], [0.0, 1.0]]).value == math.inf
    assert math.isfinite(ldd_wang([[1.0, 2.0], [2.0, 4.0], [0.0, 1.0]], ridge=1e-3).value)


def test_logdet_similarity_has_two_equal_forms() -> None:
    wide, tall = random_rows(7, 20), random_rows(20, 7)
    for rows in (wide, tall):
        unit = rows / np.linalg.norm(rows, axis=1)[:, None]
        whole = np.linalg.slogdet(unit @ unit.T + 0.3 * np.eye(len(rows)))[1]
        assert logdet_similarity(rows, ridge=0.3).value == pytest.approx(whole)


def test_vendi_worked_answers() -> None:
    assert vendi(D).value == pytest.approx(2.0, abs=1e-6)
    assert vendi_of_kernel(D @ D.T) == pytest.approx(2.0, abs=1e-6)
    score = g_vendi(G)
    assert score.value == pytest.approx(1.876250, abs=1e-6)
    shares = np.array([0.323223, 0.676777])
    assert score.value == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), abs=1e-5)


def test_orders_of_vendi() -> None:
    # Kinds of 1, 1 and 2 rows: shares 1/4, 1/4, 1/2.
    rows = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, 2.0]])
    assert vendi(rows, q=0).value == pytest.approx(3.0)
    assert vendi(rows, q=0.5).value == pytest.approx((0.5 + 0.5 + 0.5**0.5) ** 2)
    assert vendi(rows, q=1).value == pytest.approx(2**1.5)
    assert vendi(rows, q=2).value == pytest.approx(1 / (1 / 16 + 1 / 16 + 1 / 4))
    assert vendi(rows, q=math.inf).value == pytest.approx(2.0)
    assert vendi(rows, q=2).measure == "Vendi, order 2"


# The package uses a namespace that scipy is giving up.
@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
def test_vendi_agrees_with_the_reference_package() -> None:
    package = pytest.importorskip("vendi_score.vendi", reason="needs the package vendi-score")
    for rows in (random_rows(12, 30), random_rows(30, 12)):
        unit = rows / np.linalg.norm(rows, axis=1)[:, None]
        assert vendi(rows).value == pytest.approx(package.score_K(unit @ unit.T), rel=1e-9)
        assert vendi(rows).value == pytest.approx(package.score_dual(unit), rel=1e-9)
        assert vendi(rows, q=2).value == pytest.approx(package.score_K(unit @ unit.T, q=2), rel=1e-9)


def test_g_vendi_in_chunks_and_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(60, 400) * np.exp(random_rows(60, 1, 1))
    rows[::20] = 0.0
    whole = g_vendi(rows, dim=None)
    assert whole.value == pytest.approx(vendi(rows).value, rel=1e-9)
    assert (whole.rows, whole.without_direction) == (57, 3)
    for module in ("vendi_score.READ_ROWS", "vendi_score._COLUMNS"):
        monkeypatch.setattr(f"spice_select.analysis.{module}", 13)
    assert g_vendi(rows, dim=None).value == pytest.approx(whole.value, rel=1e-9)
    assert g_vendi(rows[:, :20], dim=None).value == pytest.approx(vendi(rows[:, :20]).value, rel=1e-9)
    narrow = g_vendi(rows, dim=30)
    assert 1 < narrow.value < 30
    assert narrow.value == g_vendi(rows, dim=30).value
    assert narrow.value != g_vendi(rows, dim=30, seed=1).value


def test_projection_keeps_the_score_of_few_directions() -> None:
    kinds = random_rows(4, 3000)
    rows = kinds[np.arange(40) % 4]
    assert g_vendi(rows).value == pytest.approx(vendi(rows).value, rel=0.02)


def test_samples_say_so() -> None:
    rows = random_rows(30, 5)
    for measure in (novelsum, vendi, logdet_similarity, ldd_wang):
        score = measure(rows, most=10, seed=3)
        assert score.sampled
        assert (score.rows, score.given) == (10, 30)
        assert "a random 10 of 30 rows" in score.describe()[0]
        assert score.value == measure(rows, most=10, seed=3).value
        assert not measure(rows).sampled
    assert novelsum(rows, most=10).value != novelsum(rows, most=10, seed=1).value
    frame = vendi(rows, most=10).to_pandas()
    assert frame.loc[0, ["rows", "given", "sampled"]].tolist() == [10, 30, True]


def test_chosen_rows_of_a_store(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", examples(30), FakeEngine(dim=16)).store
    assert isinstance(store, GradientStore)
    picks = [3, 17, 5, 29]
    assert vendi(store, indices=picks).value == pytest.approx(vendi(store.rows(np.sort(picks))).value)
    assert g_vendi(store, indices=picks).value == pytest.approx(vendi(store, indices=picks).value)


def test_sizes_that_overflow_or_vanish_do_not_matter() -> None:
    rows = random_rows(8, 5)
    for scale in (1e-200, 1e-3, 1e200):
        assert vendi(scale * rows).value == pytest.approx(vendi(rows).value, rel=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: novelsum(Z, mode="other"),  # pyright: ignore[reportArgumentType]
        lambda: novelsum(Z, neighbours=0),
        lambda: novelsum(Z, density_power=-1.0),
        lambda: novelsum(Z, indices=[4]),
        lambda: vendi(Z, q=-1.0),
        lambda: vendi(Z, q=math.nan),
        lambda: vendi(Z, most=0),
        lambda: g_vendi(Z, dim=0),
        lambda: ldd_wang(Z, gamma=0.0),
        lambda: ldd_wang(Z, reference=Z[:3]),
        lambda: logdet_similarity(Z, ridge=-1.0),
        lambda: vendi([1.0, 2.0]),
    ],
)
def test_settings_that_cannot_be_used(call) -> None:
    with pytest.raises(ConfigError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: vendi([[0.0, 0.0]]),
        lambda: g_vendi([[0.0, 0.0]]),
        lambda: g_vendi([[1.0, 0.0], [math.nan, 0.0]]),
        lambda: novelsum([[1.0, math.inf]]),
        lambda: vendi_of_kernel(np.array([[1.0, 0.0]])),
        lambda: vendi_of_kernel(np.array([[1.0, 0.5], [0.1, 1.0]])),
        lambda: vendi_of_kernel(np.array([[2.0]])),
    ],
)
def test_rows_that_cannot_be_used(call) -> None:
    with pytest.raises(DataError):
        call()


def test_the_row_that_is_broken_is_named() -> None:
    rows = random_rows(6, 3)
    rows[4, 1] = math.nan
    for measure in (vendi, g_vendi):
        with pytest.raises(DataError, match="row 4"):
            measure(rows)


def test_diverse_and_narrow_picks_beside_random_rows() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((200, 30))
    rows[:100] = rows[0] + 0.1 * rows[:100]
    narrow = measure_diversity(rows, np.arange(20))
    words = {measure.name: measure.more_diverse for measure in narrow.measures}
    assert set(words.values()) == {False}, words
    broad = measure_diversity(rows, np.arange(100, 120))
    by_name = {measure.name: measure for measure in broad.measures}
    assert by_name["Vendi"].more_diverse
    assert by_name["mean cosine of two rows"].more_diverse
    assert by_name["Vendi"].picks == pytest.approx(vendi(rows[100:120]).value)
    assert broad.to_pandas().shape[0] == len(broad.measures)
    assert broad == measure_diversity(rows, np.arange(100, 120)), "the same seed gives the same numbers"
    assert broad != measure_diversity(rows, np.arange(100, 120), seed=1)


def test_the_pool_alone_and_a_sampled_comparison() -> None:
    rows = random_rows(60, 8)
    alone = measure_diversity(rows, pool=np.arange(40))
    assert alone.picks is None
    assert all(measure.random is None for measure in alone.measures)
    assert any("40 rows" in line for line in alone.describe())
    sampled = measure_diversity(rows, np.arange(30), most=10)
    assert sampled.sampled
    assert "a random 10 of them" in sampled.describe()[0]
    assert directions(rows, most=10).unit.shape == (10, 8)


@pytest.mark.parametrize("near", [1 - 1e-15, 1 - 1e-12, 1 + 1e-15, 1 + 1e-10])
def test_vendi_of_an_order_near_1_is_that_of_1(near: float) -> None:
    rows = np.random.default_rng(0).standard_normal((30, 8))
    assert vendi(rows, q=near).value == pytest.approx(vendi(rows).value, abs=1e-6)


@pytest.mark.parametrize("large", [1e3, 1e6, 1e300])
def test_vendi_of_a_large_order_nears_the_largest_share(large: float) -> None:
    rows = np.random.default_rng(0).standard_normal((30, 8))
    assert vendi(rows, q=large).value == pytest.approx(vendi(rows, q=np.inf).value, rel=5e-3)


def test_vendi_of_similarities_that_no_rows_can_have_is_refused() -> None:
    with pytest.raises(DataError, match="positive semidefinite"):
        vendi_of_kernel(np.array([[1.0, 2.0], [2.0, 1.0]]))
