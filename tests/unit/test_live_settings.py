"""Settings of a live selection, and the trainers that it refuses: one sentence each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from spice_select.errors import BudgetError, ConfigError
from spice_select.training import LiveSelection
from spice_select.training.live_checks import check_trainer


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pool_size": 0}, "pool_size cannot be 0"),
        ({"pool_size": 2.5}, "pool_size cannot be 2.5"),
        ({"keep": 0}, "keep cannot be 0"),
        ({"keep": 121}, "keep cannot be 121 of pools of 120 rows"),
        ({"keep": 12, "share": 0.1}, "cannot go together"),
        ({"share": 0}, "share cannot be 0"),
        ({"share": 1.5}, "share cannot be 1.5"),
        ({"share": "ten"}, "share cannot be 'ten'"),
        ({"share": "1/0"}, "share cannot be '1/0'"),
        ({"share": True}, "share cannot be True"),
        ({"share": float("nan")}, "share cannot be nan"),
        ({"interval": 0}, "interval cannot be 0"),
        ({"interval": True}, "interval cannot be True"),
        ({"batch_tokens": 0}, "batch_tokens cannot be 0"),
        ({"gram_bytes": -1}, "gram_bytes cannot be -1"),
        ({"seed": -1}, "seed cannot be -1"),
        ({"penalty": "relativ"}, "did you mean 'relative'"),
        ({"reference": "all"}, "reference cannot be 'all'"),
        ({"alpha": 0}, "alpha cannot be 0"),
        ({"conflict_weight": 2, "penalty": "relative"}, "conflict_weight cannot be 2"),
        ({"hinge": "25%"}, "needs reference 'pool'"),
        ({"normalize": "l2"}, "normalize cannot be 'l2'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LiveSelection(**settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "rows", "total"),
    [
        ({}, 1200, 120),
        ({"share": 0.1}, 1234, 123),
        ({"share": "10%"}, 1235, 124),
        # 0.29 is a little more than 29 hundredths in binary; the share is what was written.
        ({"share": 0.29}, 50, 15),
        ({"share": 1}, 7, 7),
        ({"pool_size": 120, "keep": 12}, 1200, 120),
        ({"pool_size": 7, "keep": 2}, 70, 20),
        ({"pool_size": 7, "keep": 2}, 72, 21),
    ],
)
def test_rows_of_an_epoch(settings: dict[str, Any], rows: int, total: int) -> None:
    assert LiveSelection(**settings).settings.total(rows) == total


def test_a_share_of_nothing() -> None:
    with pytest.raises(BudgetError, match=r"A share of 0\.01 of 40 rows is none"):
        LiveSelection(share="1%").settings.total(40)


def trainer(**changes: Any) -> Any:
    """What is asked of a trainer before it starts."""
    args = {
        "packing": False, "world_size": 1, "n_gpu": 1, "dataloader_num_workers": 0, "auto_find_batch_size": False,
        "ignore_data_skip": False, "torch_compile": False, "loss_type": "nll", "label_smoothing_factor": 0.0,
        "train_sampling_strategy": "random",
    }  # fmt: skip
    own = {"train_dataset": [1, 2], "is_deepspeed_enabled": False, "is_fsdp_enabled": False, "compute_loss_func": None}
    for name, value in changes.items():
        (own if name in own else args)[name] = value
    return SimpleNamespace(args=SimpleNamespace(**args), **own)


def test_an_ordinary_trainer_will_do() -> None:
    check_trainer(trainer())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_dataset": None}, "no train_dataset"),
        ({"train_dataset": iter([1])}, "is streamed"),
        ({"packing": True}, "packing cannot be True"),
        ({"world_size": 2}, "runs on 2 devices"),
        ({"n_gpu": 4}, "runs on 4 devices"),
        ({"is_fsdp_enabled": True}, "DeepSpeed or FSDP"),
        ({"dataloader_num_workers": 4}, "dataloader_num_workers cannot be 4"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size cannot be True"),
        ({"ignore_data_skip": True}, "ignore_data_skip cannot be True"),
        ({"torch_compile": True}, "torch_compile cannot be True"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy cannot be 'group_by_length'"),
        ({"loss_type": "dft"}, "loss_type cannot be 'dft'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor cannot be 0.1"),
        ({"compute_loss_func": len}, "compute_loss_func cannot go"),
    ],
)
def test_trainers_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_trainer(trainer(**changes))
    assert says in str(caught.value)
    assert str(caught.value).count(". ") == 0
