"""Rows by loss: orders, quantiles, and losses that are no numbers."""

from __future__ import annotations

import numpy as np
import pytest

from spice_select.errors import ConfigError
from spice_select.methods import make_method
from spice_select.methods.loss import Loss
from spice_select.selection.budget import Budget
from tests.method_inputs import make_inputs, picks

LOSSES = np.array([2.0, 5.0, 1.0, 4.0, 3.0, 100.0, 0.1])


def chosen(budget: int, losses: np.ndarray = LOSSES, **settings: object) -> list[int]:
    return picks(make_method("loss", settings), make_inputs(len(losses), budget, losses=losses))


def test_orders() -> None:
    assert chosen(3) == [5, 1, 3]
    assert chosen(3, order="lowest") == [6, 2, 0]
    # By rank 3 is the middle, then 2 and 4 at equal ranks from it, the earlier row first; 100 is no further than 0.1.
    assert chosen(7, order="middle") == [4, 0, 3, 1, 2, 5, 6]


def test_quantiles_cut_off_both_ends() -> None:
    # The seven stand at 1/14, 3/14, ..., 13/14.
    assert chosen(2, high=0.9) == [1, 3], "the outlier goes"
    assert chosen(2, order="lowest", low=0.1) == [2, 0]
    assert chosen(3, order="middle", low=0.5, high=1.0) == [1, 3, 5], "the middle of those between"
    choice = Loss(low=0.1, high=0.9).choose(make_inputs(7, 5, losses=LOSSES))
    assert sorted(choice.indices) == [0, 1, 2, 3, 4] and not choice.warnings
    assert choice.notes == ("2 rows outside quantiles 0.1 and 0.9 of the losses were left out.",)


def test_fewer_than_asked_for_is_said() -> None:
    choice = Loss(low=0.25, high=0.75).choose(make_inputs(7, 6, losses=LOSSES))
    assert sorted(choice.indices) == [0, 3, 4] and choice.stop_reason == "exhausted"
    assert choice.warnings == (
        "3 of the 6 rows asked for were chosen, as no other row lies between quantiles 0.25 and 0.75 of the losses; "
        "widen method.low and method.high.",
    )


@pytest.mark.parametrize("order", ["highest", "lowest", "middle"])
def test_a_loss_that_is_no_number_is_no_loss(order: str) -> None:
    losses = LOSSES.copy()
    losses[[1, 5]] = np.nan, np.inf
    choice = make_method("loss", {"order": order}).choose(make_inputs(7, 7, losses=losses, leave_out=[0]))
    assert sorted(choice.indices) == [2, 3, 4, 6] and choice.stop_reason == "exhausted"
    assert choice.notes == ("2 rows have no loss, as it is NaN or infinite, and were left out.",)
    assert choice.warnings == (
        "4 of the 7 rows asked for were chosen, as no other row has a loss; give a smaller budget.",
    )
    assert choice.pool_scores is not None and np.isnan(choice.pool_scores).tolist() == [1, 1, 0, 0, 0, 1, 0]


def test_rows_left_out_beforehand_do_not_move_the_quantiles() -> None:
    losses = np.arange(10.0)
    inputs = make_inputs(10, 1, losses=losses, leave_out=[5, 6, 7, 8, 9])
    assert picks(Loss(order="middle"), inputs) == [2]


def test_equal_losses_stand_at_one_quantile() -> None:
    losses = np.array([1.0, 1, 1, 1, 2, 3])
    assert sorted(chosen(4, losses, high=0.5)) == [0, 1, 2, 3], "all four at 1/3, not at 1/12 to 7/12"


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="low must be less than high"):
        make_method("loss", {"low": 0.6, "high": 0.5})
    with pytest.raises(ConfigError, match=r"'method\.high' of method 'loss' cannot be 1\.5"):
        make_method("loss", {"high": 1.5})
    with pytest.raises(ConfigError, match=r"did you mean 'method\.order'"):
        make_method("loss", {"oder": "lowest"})


def test_tokens_that_rows_without_a_loss_leave_over_are_said() -> None:
    losses = np.array([1.0, np.nan, 2.0, np.nan])
    choice = Loss().choose(make_inputs(4, Budget(4, 50), tokens=[10] * 4, losses=losses))
    assert choice.indices.tolist() == [2, 0] and choice.stop_reason == "exhausted"
    assert choice.warnings == (
        "Tokens are left of the budget after 2 rows, as no other row has a loss; give a smaller budget.",
    )


def test_tokens_that_no_row_fits_are_left_without_a_word() -> None:
    losses = np.array([1.0, np.nan, 2.0, np.nan])
    choice = Loss().choose(make_inputs(4, Budget(4, 29), tokens=[10] * 4, losses=losses))
    assert choice.indices.tolist() == [2, 0] and choice.stop_reason == "tokens" and not choice.warnings
