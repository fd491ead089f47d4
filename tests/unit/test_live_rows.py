"""The rows and batches of a live selection, and the file of its log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spice_select.errors import ConfigError, DataError, OutputError, StoreCorrupt, StoreMismatch
from spice_select.schedule.walk import Walk
from spice_select.training.live_log import LivePool, identity_of, read_live, write_live
from spice_select.training.live_rows import LiveBatches, LiveLoader, TrainerRows, epoch_walk


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Padded to four, on the left, as some collators do."""
    width = max(4, *(len(row["input_ids"]) for row in rows))

    def padded(values: list[int], filler: int) -> list[int]:
        return [filler] * (width - len(values)) + values

    return {
        "input_ids": torch.tensor([padded(row["input_ids"], 0) for row in rows]),
        "labels": torch.tensor([padded(row["labels"], -100) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
    }


ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8, 9], "labels": [8, -100]},
    {"input_ids": [8, 9, 10, 11, 12], "labels": [-100, -100, 10, 11, 12]},
]


def test_rows_are_what_the_collator_makes_of_them() -> None:
    rows = TrainerRows(ROWS, collate)
    ids, mask = rows.example(0)
    assert ids.tolist() == [5, 6, 7]
    assert mask.tolist() == [False, True, True]
    assert rows.usable.tolist() == [True, False, True]
    other = TrainerRows([*ROWS[:2], {"input_ids": [8, 9, 10, 11, 12], "labels": [-100, 9, 10, 11, 12]}], collate)
    assert other.digest != rows.digest
    assert TrainerRows(ROWS, collate).digest == rows.digest


def test_rows_that_cannot_be() -> None:
    with pytest.raises(DataError, match="None of the 1 rows has a trained token"):
        TrainerRows(ROWS[1:2], collate)
    with pytest.raises(ConfigError, match="Row 1 of the train_dataset is trained on other tokens"):
        TrainerRows([ROWS[0], {"input_ids": [5, 6], "labels": [-100, 7]}], collate)
    with pytest.raises(ConfigError, match="text alone"):
        TrainerRows(ROWS, lambda rows: {**collate(rows), "pixel_values": torch.zeros(1)})
    with pytest.raises(ConfigError, match="text alone"):
        TrainerRows(ROWS, lambda rows: {"input_ids": collate(rows)["input_ids"]})


def test_picks_are_asked_for_when_they_are_needed() -> None:
    asked: list[str] = []

    def picks(epoch: int) -> Iterator[list[int]]:
        for number in range(3):
            asked.append(f"{epoch}.{number}")
            yield [10 * number, 10 * number + 1, 10 * number + 2, 10 * number + 3]

    batches = LiveBatches(picks, 12, 2, False)
    loader = LiveLoader(_rows(40), batches, lambda rows: rows, pin_memory=False)
    before = torch.random.get_rng_state()
    loader.set_epoch(4)
    walk = iter(loader)
    found = []
    for _ in range(len(loader)):
        found.append((next(walk), len(asked)))
    assert found == [([0, 1], 1), ([2, 3], 1), ([10, 11], 2), ([12, 13], 2), ([20, 21], 3), ([22, 23], 3)]
    assert asked == ["4.0", "4.1", "4.2"]
    assert next(walk, None) is None
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("size", "drop_last"), [(1, False), (3, False), (3, True), (5, False), (5, True), (40, False)])
def test_as_many_batches_as_were_promised(size: int, drop_last: bool) -> None:
    pools = [[0, 1], [2, 3, 4, 5], [], [6], [7, 8, 9, 10]]
    batches = LiveBatches(lambda epoch: iter(pools), 11, size, drop_last)
    found = list(batches)
    assert len(found) == len(batches)
    assert [row for batch in found for row in batch] == list(range(11 // size * size if drop_last else 11))
    assert all(len(batch) == size for batch in found[:-1])


def test_orders_of_epochs() -> None:
    usable = np.ones(50, dtype=bool)
    usable[7] = False
    walks = [epoch_walk(usable, 12, 3, epoch) for epoch in range(3)]
    assert walks[0].order.tolist() == Walk.plan(usable, 12, 3).order.tolist()
    assert len({tuple(walk.order.tolist()) for walk in walks}) == 3
    assert all(sorted(walk.order.tolist()) == [row for row in range(50) if row != 7] for walk in walks)


def pools() -> list[LivePool]:
    return [
        LivePool(pool=number, rows=(1, 2, 3), due=1, picks=(2,), gains=(0.5,), epoch=0, step=number, seconds=0.1)
        for number in range(3)
    ]


def test_the_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    identity = identity_of({"rows": 3})
    write_live(tmp_path / "new", identity, pools())
    assert read_live(tmp_path / "new") == read_live(tmp_path / "new", identity) == pools()


def test_logs_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not there"):
        read_live(tmp_path)
    path = write_live(tmp_path, "one", pools())
    with pytest.raises(StoreMismatch, match="other rows, another seed or other settings"):
        read_live(tmp_path, "two")
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    for damaged in (
        "",
        whole[:-30],
        "".join(lines[:-1]),
        "[]\n" + "".join(lines[1:]),
        whole.replace("gains", "grains"),
    ):
        path.write_text(damaged)
        with pytest.raises(StoreCorrupt, match="is not what was written"):
            read_live(tmp_path, "one")


class _rows(TrainerRows):
    """Rows whose content is their number."""

    def __init__(self, count: int) -> None:
        self.kept = count

    def __getitem__(self, number: int) -> int:
        return number
