"""Overlap of selections, coverage of a pool, the tables that show them, and figures."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

import spice_select.analysis as analysis
from spice_select import select
from spice_select.analysis import figures
from spice_select.analysis.coverage import cluster_labels, length_labels, measure_coverage
from spice_select.analysis.curves import Curve
from spice_select.analysis.overlap import expected_jaccard, overlaps
from spice_select.analysis.tables import aligned, number
from spice_select.errors import ConfigError, DataError


def pool(seed: int = 0, rows: int = 90, dim: int = 12) -> np.ndarray:
    """Rows of three directions, of sizes that differ."""
    random = np.random.default_rng(seed)
    kinds = np.linalg.qr(random.standard_normal((dim, 3)))[0].T
    part = random.permutation(np.repeat(np.arange(3), [rows - 45, 30, 15]))
    return 3.0 * kinds[part] + 0.2 * random.standard_normal((rows, dim))


def test_overlap_by_hand() -> None:
    found = overlaps({"a": [0, 1, 2, 3], "b": [2, 3, 4], "c": []}, 10)
    ab, ac, bc = found.pairs
    assert (ab.both, ab.jaccard, ab.a_in_b, ab.b_in_a) == (2, 2 / 5, 2 / 4, 2 / 3)
    assert (ac.jaccard, ac.a_in_b, ac.b_in_a) == (0.0, 0.0, None)
    assert (bc.a, bc.b) == ("b", "c")
    matrix = found.jaccard()
    assert np.array_equal(matrix, matrix.T)
    assert matrix[0].tolist() == [1.0, 0.4, 0.0]
    assert found.to_pandas()["jaccard"].tolist() == [0.4, 0.0, 0.0]
    assert json.loads(found.model_dump_json())["pairs"][0]["both"] == 2
    with pytest.raises(ConfigError):
        overlaps({"a": [0, 1, 2]}, 2)


def test_expected_overlap() -> None:
    # One row of each set among two: alike or apart with equal chance.
    assert expected_jaccard(2, 1, 1) == pytest.approx(0.5)
    assert expected_jaccard(7, 7, 7) == pytest.approx(1.0)
    assert expected_jaccard(5, 0, 3) == 0.0
    # Far from certain, about p / (2 - p).
    assert expected_jaccard(97_500, 9_750, 9_750) == pytest.approx(0.1 / 1.9, rel=1e-3)


def test_overlap_tables_name_every_run() -> None:
    lines = overlaps({"one": [1, 2], "two": [2, 3], "three": [5]}, 9).describe()
    assert sum("0.333" in line for line in lines) == 3, "once in the line of the pair and twice in the matrix"
    assert [line.split()[1] for line in lines[-3:]] == ["one", "two", "three"]


def test_long_names_are_told_apart_by_their_ends() -> None:
    names = ["/a/very/long/path/to/experiments/first/run", "/a/very/long/path/to/experiments/second/run", "x" * 60]
    lines = overlaps({key: [1] for key in names}, 9).describe()
    assert max(map(len, lines)) <= 80
    assert any("first/run" in line and "second/run" in line for line in lines)


def test_coverage_by_hand() -> None:
    labels = ["x", "x", "x", "x", "y", "y", None, "z"]
    found = measure_coverage(labels, [0, 4, 5, 6], pool=[0, 1, 2, 3, 4, 5, 6], by="domain")
    assert [(group.name, group.pool, group.picks) for group in found.groups] == [
        ("x", 4, 1),
        ("y", 2, 2),
        ("(none)", 1, 1),
    ]
    x, y, _ = found.groups
    assert x.ratio == pytest.approx((1 / 4) / (4 / 7))
    assert y.picks_share == 0.5
    shares = np.array([1, 2, 1]) / 4
    assert found.picks_entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(3))
    assert found.to_pandas().shape == (3, 7)
    alone = measure_coverage(labels, by="domain")
    assert alone.picks_entropy is None
    assert alone.groups[0].picks is None
    assert "evenness" in alone.describe()[-1]


def test_evenness_of_even_and_single_groups() -> None:
    even = measure_coverage(["a", "b", "c", "a"], [0, 1, 2], pool=[0, 1, 2])
    assert (even.pool_entropy, even.picks_entropy) == (pytest.approx(1.0), pytest.approx(1.0))
    one = measure_coverage(["a", "b", "c"], [1, 1])
    assert one.picks_entropy == 0.0
    assert one.reached == 1
    assert "1 of 3 groups reached" in one.describe()[-1]
    assert measure_coverage(["a", "a"], [0]).pool_entropy == 0.0


def test_many_groups_are_cut_in_text_and_whole_in_numbers() -> None:
    labels = [f"group {row % 50}" for row in range(200)]
    found = measure_coverage(labels, range(0, 200, 3))
    assert len(found.groups) == 50
    lines = found.describe()
    assert len(lines) == 23
    rest = sum(group.pool for group in found.groups[20:])
    assert f"30 more groups with {rest} rows" in lines[-2]


def test_length_bins_hold_about_as_many_rows() -> None:
    lengths = np.random.default_rng(0).geometric(0.05, 1000)
    labels, order = length_labels(lengths)
    counts = [labels.count(name) for name in order]
    assert len(order) == 5
    assert sum(counts) == 1000
    assert max(counts) < 1.3 * min(counts)
    for length, label in zip(lengths.tolist(), labels, strict=True):
        low, _, high = label.partition("-")
        assert int(low) <= length <= int(high or low)


def test_length_bins_of_few_lengths() -> None:
    assert length_labels([7, 7, 7, 9])[1] == ["7", "8-9"]
    assert length_labels([3])[1] == ["3"]
    labels, order = length_labels([1, 2, 3, 50], pool=[0, 1, 2], bins=3)
    assert order == ["1", "2", "3"]
    assert labels[3] == "3", "a row outside the pool goes to the nearest bin"
    with pytest.raises(ConfigError):
        length_labels([1], bins=0)


def test_clusters_find_the_kinds() -> None:
    rows = pool()
    labels, order = cluster_labels(rows, clusters=3)
    sizes = [labels.count(name) for name in order]
    assert sizes == [45, 30, 15, 0]
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    same = np.array(labels)[:, None] == np.array(labels)[None]
    cosines = unit @ unit.T
    assert cosines[same].min() > cosines[~same].max()


def test_clusters_are_deterministic_and_bounded() -> None:
    rows = pool(1)
    assert cluster_labels(rows, seed=4) == cluster_labels(rows, seed=4)
    copies, order = cluster_labels(np.repeat(np.eye(4)[:2], 5, axis=0), clusters=8)
    assert len(set(copies)) == 2, "no more clusters than directions"
    assert order[-1] == "no direction"
    zeros, _ = cluster_labels(np.zeros((3, 2)))
    assert set(zeros) == {"no direction"}
    broken = np.array([[1.0, 0.0], [np.nan, 1.0], [0.0, 0.0]])
    assert cluster_labels(broken, pool=[0])[0] == ["cluster 1", "no direction", "no direction"]
    with pytest.raises(ConfigError):
        cluster_labels(rows, clusters=0)


def test_clusters_fit_a_sample_and_assign_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spice_select.analysis.coverage.FIT_ROWS", 30)
    monkeypatch.setattr("spice_select.analysis.coverage._BLOCK", 7)
    labels, order = cluster_labels(pool(), clusters=3)
    assert [labels.count(name) for name in order] == [45, 30, 15, 0]


def test_numbers_as_a_person_reads_them() -> None:
    shown = [number(value) for value in (None, 0.0, 1.0, -2.5, 12.3456, 0.0123456, 123456.7, 3e9, 1e-7, np.inf, np.nan)]
    assert shown == ["-", "0", "1.000", "-2.500", "12.35", "0.01235", "123,457", "3.00e+09", "1.00e-07", "inf", "-"]


def test_tables_are_aligned_whatever_the_text() -> None:
    lines = aligned(("name", "rows"), [("数学", "1,000"), ("\x1b[31mred\x07", "2"), ("long " * 20, "30")])
    assert all("\x1b" not in line and "\x07" not in line for line in lines)
    assert len(lines[2]) == len(lines[3]) == len(lines[0])
    assert len(lines[1]) == len(lines[0]) - 2, "two characters of two columns each"
    assert max(map(len, lines)) < 50


def curves() -> list[Curve]:
    random = Curve(name="random", picks=(1, 4), information=(1.0, 2.0), low=(0.5, 1.5), high=(1.5, 2.5), runs=5)
    return [random, random.model_copy(update={"name": "picks", "runs": 1})]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.gain_curve([3.0, 2.0, 1.0]),
        lambda: figures.gain_curve([]),
        lambda: figures.epsilon_curve([3.0, 2.0], [0.0, -0.5]),
        lambda: figures.conflict_curve([0.0, 0.2, 0.0]),
        lambda: figures.conflict_curve([]),
        lambda: figures.norm_histogram([1.0, 10.0, 0.0, np.nan], [1]),
        lambda: figures.norm_histogram([0.0]),
        lambda: figures.norm_histogram([2.0, 2.0]),
        lambda: figures.information_curves(curves()),
        lambda: figures.information_curves([]),
    ],
)
def test_figures_are_returned_and_can_be_saved(draw) -> None:
    figure = draw()
    assert isinstance(figure, Figure)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    assert out.getvalue().startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert axes.get_title(loc="left")
    assert axes.get_xlabel()
    assert axes.get_ylabel()


def test_figures_draw_the_numbers() -> None:
    (axes,) = figures.epsilon_curve([3.0, 2.0], [0.0, -0.5]).axes
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert drawn["gain: base + epsilon"] == [3.0, 1.5]
    (axes,) = figures.norm_histogram([1.0, 10.0, 0.0], [1]).axes
    assert "1 rows" in axes.get_xlabel()


def test_figures_touch_nothing_global() -> None:
    code = (
        "import sys\n"
        "from spice_select.analysis import figures\n"
        "figures.gain_curve([2.0, 1.0])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=400)


def test_the_public_face() -> None:
    assert dir(analysis) == sorted(analysis.__all__)
    for name in analysis.__all__:
        assert getattr(analysis, name) is not None
        assert f"``{name}``" in (analysis.__doc__ or "") or name[0].isupper(), name
    code = "import sys, spice_select.analysis; assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=400)
    with pytest.raises(AttributeError):
        _ = analysis.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_an_array_with_its_selection() -> None:
    rows = pool(2)
    chosen = select(rows, budget=12, alpha="auto", lengths=list(range(1, 91)), normalize="sqrt_tokens")
    result = analysis.analyse_rows(
        rows,
        chosen,
        lengths=list(range(1, 91)),
        labels={"half": ["first"] * 45 + ["second"] * 45},
        against={"first rows": range(12)},
        samples=20,
        clusters=3,
    )
    assert result.theory is not None
    assert result.theory.error < 1e-9
    assert result.certificate is not None
    assert result.subject.information == pytest.approx(result.certificate.information)
    assert [one.by for one in result.coverage] == ["half", "response tokens", "direction"]
    assert result.overlap is not None
    assert result.overlap.pairs[0].both == len(set(range(12)) & set(chosen.indices.tolist()))
    assert result == analysis.analyse_rows(
        rows,
        chosen,
        lengths=list(range(1, 91)),
        labels={"half": ["first"] * 45 + ["second"] * 45},
        against={"first rows": range(12)},
        samples=20,
        clusters=3,
    )
    tables = result.to_pandas()
    assert {"subject", "picks", "bounds", "curvature", "diversity", "coverage", "overlap"} <= set(tables)
    assert len(tables["picks"]) == 12
    lines = result.describe()
    assert max(map(len, lines)) <= 80
    assert {"Certificate", "Diversity of directions", "Coverage by half", "Overlap"} <= set(lines)


def test_an_array_without_selection() -> None:
    rows = pool(3)
    result = analysis.analyse_rows(rows, samples=10)
    assert result.pool_theory is not None
    assert result.theory is None
    assert result.subject.alpha == pytest.approx(1 / np.median(np.square(rows).sum(axis=1)))
    assert "Certificate" in result.left_out[0]
    assert {"random", "bounds", "curvature", "diversity"} <= set(result.to_pandas())
    assert max(map(len, result.describe())) <= 80


def test_a_diagonal_form_has_no_theory_but_the_rest() -> None:
    rows = pool(4)
    result = analysis.analyse_rows(rows, select(rows, budget=6, fisher="diag-logdet"), samples=10)
    assert result.theory is None
    assert result.trace is not None
    assert result.trace.picks == 6
    assert result.certificate is None
    assert any("diag-logdet" in sentence for sentence in result.left_out)
    assert result.diversity is not None


def test_rows_without_direction_and_rows_left_out() -> None:
    rows = pool(5)
    rows[:5] = 0.0
    rows[7] = np.nan
    chosen = select(rows, budget=84)
    result = analysis.analyse_rows(rows, chosen, samples=10)
    assert result.subject.usable == 89
    assert result.diversity is not None
    assert result.diversity.pool == 84
    few = analysis.analyse_rows(rows, select(rows, budget=1), samples=10)
    assert few.diversity is None
    assert any("Diversity" in sentence for sentence in few.left_out)


def test_what_does_not_fit_the_rows_is_refused() -> None:
    rows = pool(6)
    with pytest.raises(ConfigError, match="domain"):
        analysis.analyse_rows(rows, labels={"domain": ["x"]})
    with pytest.raises(DataError):
        analysis.analyse_rows(np.zeros((0, 3)))
