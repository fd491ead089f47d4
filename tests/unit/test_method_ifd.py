"""Instruction-following difficulty against worked answers, and what has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spice_select.methods import Inputs, Need, make_method
from spice_select.methods.ifd import Ifd, ifd
from tests.method_inputs import make_inputs, picks

# L(y|x), L(y), and the difficulty by either variant.
WORKED = np.array(
    [
        (3.2, 4.0, 0.8, 0.449329),
        (0.7, 1.0, 0.7, 0.740818),
        (1.2, 1.0, 1.2, 1.221403),
        (0.45, 0.5, 0.9, 0.951229),
        (2.4, 3.0, 0.8, 0.548812),
    ]
)


def inputs_of(budget: int, given: object = WORKED[:, 0], alone: object = WORKED[:, 1], **more: Any) -> Inputs:
    given, alone = np.asarray(given, float), np.asarray(alone, float)
    return make_inputs(len(given), budget, losses=given, direct_losses=alone, **more)


def test_worked_answers() -> None:
    np.testing.assert_allclose(ifd(WORKED[:, 0], WORKED[:, 1]), WORKED[:, 2], rtol=1e-12)
    np.testing.assert_allclose(ifd(WORKED[:, 0], WORKED[:, 1], "superfiltering"), WORKED[:, 3], atol=5e-7)


def test_the_variants_rank_differently() -> None:
    assert picks(Ifd(), inputs_of(2, WORKED[:2, 0], WORKED[:2, 1])) == [0, 1]
    assert picks(Ifd(variant="superfiltering"), inputs_of(2, WORKED[:2, 0], WORKED[:2, 1])) == [1, 0]
    # 3.2 / 4 and 2.4 / 3 are 0.8 both, to the last bit or not.
    assert picks(Ifd(), inputs_of(4))[0] == 3 and set(picks(Ifd(), inputs_of(3))) == {0, 3, 4}
    assert picks(Ifd(variant="superfiltering"), inputs_of(4)) == [3, 1, 4, 0]


@pytest.mark.parametrize("variant", ["cherry", "superfiltering"])
def test_a_prompt_that_does_not_help_is_left_out_unless_kept(variant: str) -> None:
    choice = make_method("ifd", {"variant": variant}).choose(inputs_of(5))
    bound = "above 1" if variant == "cherry" else "of 1 or more"
    assert sorted(choice.indices) == [0, 1, 3, 4] and choice.stop_reason == "exhausted"
    assert choice.notes == (f"1 rows have a difficulty {bound}: their prompt does not help; they were left out.",)
    assert choice.warnings == (
        f"4 of the 5 rows asked for were chosen, as 1 other has a difficulty {bound}; "
        "set method.keep_above=true, or give a smaller budget.",
    )
    assert choice.pool_scores is not None and choice.pool_scores[2] > 1, "it has a score, which is why it was left out"
    kept = make_method("ifd", {"variant": variant, "keep_above": True}).choose(inputs_of(5))
    assert kept.indices[0] == 2 and len(kept) == 5 and not kept.warnings and not kept.notes


def test_a_difficulty_of_exactly_one() -> None:
    inputs = inputs_of(2, [1.5, 1.0], [1.5, 2.0])
    assert picks(Ifd(), inputs) == [0, 1], "kept by the ratio of losses"
    assert picks(Ifd(variant="superfiltering"), inputs) == [1], "and not by that of perplexities"


@pytest.mark.parametrize("variant", ["cherry", "superfiltering"])
def test_a_loss_that_is_no_number_gives_no_difficulty(variant: str) -> None:
    given, alone = [np.nan, 1.0, 1.0, 1.0, np.inf], [2.0, np.nan, np.inf, 2.0, 2.0]
    method = make_method("ifd", {"variant": variant, "keep_above": True})
    choice = method.choose(inputs_of(5, given, alone))
    assert choice.indices.tolist() == [3]
    assert choice.notes == ("4 rows have no loss, as it is NaN or infinite, and were left out.",)
    assert choice.warnings == (
        "1 of the 5 rows asked for were chosen, as no other row has both losses; give a smaller budget.",
    )
    assert choice.pool_scores is not None and np.isnan(choice.pool_scores).tolist() == [1, 1, 1, 0, 1]


def test_a_ratio_over_zero_is_no_difficulty() -> None:
    choice = Ifd(keep_above=True).choose(inputs_of(3, [0.0, 1.0, 1.0], [0.0, 0.0, 2.0]))
    assert choice.indices.tolist() == [2]
    assert choice.notes == ("2 rows have a loss of 0 without their prompt, and so no ratio, and were left out.",)
    assert picks(Ifd(variant="superfiltering", keep_above=True), inputs_of(2, [0.0, 1e4], [0.0, 1.0])) == [1, 0]


def test_needs() -> None:
    assert Ifd().required() == {Need.LOSSES, Need.DIRECT_LOSSES}
