"""Worked answers, to an absolute 1e-6."""

from __future__ import annotations

import numpy as np
import pytest

from spice_select.selection import log_det, select, select_gram

G = np.array([(2, 0, 0), (-0.9, 0.9, 0), (0, 0.93, 0), (0, 0, 0.5)])
G5 = np.array([(2, 0, 0), (1.8, 0.2, 0), (-1.5, 0.5, 0), (0, 1, 0), (0, 0, 0.8)])
LOOPS = ["brute", "dense", "kernel", "lazy"]


def close(values, expected) -> None:
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("weight", "indices", "gains"),
    [
        (0.0, [0, 1, 2], [1.609438, 0.679048, 0.411872]),
        (0.1, [0, 2, 1], [1.609438, 0.623207, 0.467713]),
        (1.0, [0, 2, 3], [1.609438, 0.623207, 0.223144]),
    ],
)
def test_picks_and_gains_by_conflict_weight(loop, weight, indices, gains):
    selection = select(G, budget=3, conflict_weight=weight, loop=loop)
    assert selection.indices.tolist() == indices
    close(selection.gains, gains)
    close(selection.scores, selection.gains - weight * selection.conflicts)


@pytest.mark.parametrize("loop", LOOPS)
def test_conflict_with_the_mean_of_the_picks(loop):
    close(select(G, budget=3, loop=loop).conflicts, [0, 0, 0.343030])
    # lambda = 0 picks row 1 straight after row 0, and its conflict is measured all the same.
    close(select(G, budget=2, conflict_weight=0.0, loop=loop).conflicts, [0, 0.707107])


@pytest.mark.parametrize("loop", LOOPS)
def test_epsilon_is_what_the_earlier_picks_take_away(loop):
    selection = select(G, budget=2, conflict_weight=0.0, loop=loop)
    close(selection.epsilons, [0, -0.284126])
    close(selection.bases + selection.epsilons, selection.gains)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("ratio", "indices"), [(0.5, [0]), (0.35, [0, 2])])
def test_stop_ratio(loop, ratio, indices):
    selection = select(G, budget=4, stop_ratio=ratio, loop=loop)
    assert selection.indices.tolist() == indices
    assert selection.stop_reason == "stop_ratio"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("fisher", "indices", "gains"),
    [
        ("exact", [0, 3, 1, 4, 2], [1.609438, 0.693147, 0.511625, 0.494696, 0.358412]),
        ("paper-diag", [0, 3, 1, 4, 2], [1.609438, 0.693147, 0.511625, 0.494696, 0.333330]),
        ("diag-logdet", [0, 3, 1, 4, 2], [1.609438, 0.693147, 0.519365, 0.494696, 0.357024]),
        ("released", [0, 3, 4, 1, 2], [1.609438, 0.693147, 0.494696, 0.191106, 0.187910]),
    ],
)
def test_fisher_forms(loop, fisher, indices, gains):
    if loop == "kernel" and fisher != "exact":
        pytest.skip("the kernel loop works on inner products, which know no coordinates")
    selection = select(G5, budget=5, fisher=fisher, loop=loop)
    assert selection.indices.tolist() == indices
    close(selection.gains, gains)
    close(selection.conflicts[-1], 0.793588)


@pytest.mark.parametrize(
    ("vector", "fisher", "second"),
    [
        ((0.1, 0), "exact", 0.009852),
        ((0.1, 0), "released", 0.009949),
        ((3, 0), "exact", 0.641854),
        ((3, 0), "released", 0.104140),
    ],
)
def test_the_same_vector_twice(vector, fisher, second):
    close(select([vector, vector], budget=2, fisher=fisher).gains[1], second)


def test_paper_diag_is_no_set_function():
    one, other = (1, 1), (2, 0)

    def total(first, second):
        picks = select([second], budget=1, initial=np.array([first], dtype=float), fisher="paper-diag")
        return select([first], budget=1, fisher="paper-diag").information + picks.information

    close(total(one, other), 2.197225)
    close(total(other, one), 2.397895)


def test_gram_alone_gives_the_same():
    selection = select_gram(G @ G.T, 3)
    assert selection.indices.tolist() == [0, 2, 1]
    close(selection.gains, [1.609438, 0.623207, 0.467713])
    close(selection.conflicts, [0, 0, 0.343030])
    close(selection.epsilons, selection.gains - selection.bases)


def test_information_is_the_log_determinant():
    selection = select(G5, budget=4)
    close(selection.information, log_det(G5[selection.indices], 1.0))


def test_changed_by_penalty_counts_picks_outside_the_plain_answer():
    assert select(G, budget=3, conflict_weight=1.0).changed_by_penalty == 1
    assert select(G, budget=3, conflict_weight=0.1).changed_by_penalty == 0
    assert select(G, budget=3, conflict_weight=0.0).changed_by_penalty == 0


def test_relative_penalty_takes_a_share_of_the_gain():
    # Row 1: 0.679048 * (1 - 0.707107) = 0.198892, below row 2's 0.623207 and row 3's 0.223144.
    selection = select(G, budget=4, conflict_weight=1.0, penalty="relative")
    assert selection.indices.tolist()[:2] == [0, 2]
    close(selection.scores, selection.gains * (1 - selection.conflicts))
