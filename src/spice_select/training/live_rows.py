"""The trainer's own rows: what its collator makes of each, and the loader that asks for them as late as can be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch.utils.data import DataLoader, Dataset, Sampler

from spice_select.errors import ConfigError, DataError
from spice_select.gradients.random import Stream
from spice_select.schedule.walk import Walk


class TrainerRows(Dataset[Any]):
    """The rows of a training set, and token ids and trained labels of each as the training will have them.

    Attributes:
        usable: Which rows have a trained token with another before it.
        digest: SHA-256 of all ids and labels.

    Args:
        rows: What the trainer's loader reads from.
        collate: The trainer's collator.

    Raises:
        ConfigError: The rows are more than token ids with labels.
        DataError: No row has a trained token.
    """

    def __init__(self, rows: Any, collate: Callable[[list[Any]], Any]) -> None:
        self._rows = rows
        self._collate = collate
        self.kept = 0
        usable = np.zeros(len(rows), dtype=bool)
        digest = hashlib.sha256()
        for number in range(len(rows)):
            ids, mask = self.example(number)
            usable[number] = mask[1:].any()
            digest.update(np.int64(len(ids)).tobytes() + ids.tobytes() + mask.tobytes())
        self.usable: Bool[np.ndarray, " rows"] = usable
        self.digest = digest.hexdigest()
        if not usable.any():
            raise DataError(f"None of the {len(rows)} rows has a trained token; check the labels of the train_dataset.")

    def __len__(self) -> int:
        # What the trainer reports as its examples: those that an epoch trains on.
        return self.kept

    def __getitem__(self, number: int) -> Any:
        return self._rows[number]

    def example(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of a row and which of them are trained labels, both ``[t]``, without padding.

        Raises:
            ConfigError: The row is more than token ids, or is trained on other tokens than its own.
        """
        batch = self._collate([self._rows[number]])
        if not isinstance(batch.get("labels"), torch.Tensor) or any(key.startswith("pixel") for key in batch):
            raise ConfigError(
                "The train_dataset has more than token ids and labels in a batch; a live selection takes text alone."
            )
        ids, labels = (batch[key][0].numpy() for key in ("input_ids", "labels"))
        if "attention_mask" in batch:
            there = batch["attention_mask"][0].numpy().astype(bool)
            ids, labels = ids[there], labels[there]
        mask = labels != -100
        if not np.array_equal(ids[mask], labels[mask]):
            raise ConfigError(
                f"Row {number} of the train_dataset is trained on other tokens than its own; a live selection takes "
                "labels that are the token ids, or -100."
            )
        return ids.astype(np.int64), mask


class LiveBatches(Sampler[list[int]]):
    """Row numbers of the next batch, found out when it is asked for and no sooner.

    Args:
        picks: Yields the picks of an epoch, some pools' at a time.
        rows: Rows of an epoch.
        batch_size: Rows of a batch.
        drop_last: Leave out a last batch that is not full.
    """

    def __init__(
        self, picks: Callable[[int], Iterator[list[int]]], rows: int, batch_size: int, drop_last: bool
    ) -> None:
        self._picks = picks
        self._rows = rows
        self._size = batch_size
        self._drop_last = drop_last
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration walks."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows // self._size if self._drop_last else -(-self._rows // self._size)

    def __iter__(self) -> Iterator[list[int]]:
        waiting: list[int] = []
        for picks in self._picks(self._epoch):
            waiting += picks
            while len(waiting) >= self._size:
                yield waiting[: self._size]
                del waiting[: self._size]
        if waiting and not self._drop_last:
            yield waiting


class LiveLoader(DataLoader[Any]):
    """A loader in this process that reads nothing ahead: accelerate's fetches a batch before it is needed.

    Args:
        rows: The rows.
        batches: Which of them come next.
        collate: The trainer's collator.
        pin_memory: As the trainer's settings have it.
    """

    def __init__(
        self, rows: TrainerRows, batches: LiveBatches, collate: Callable[[list[Any]], Any], *, pin_memory: bool
    ) -> None:
        # With a generator of its own, it draws none of the training's random numbers.
        super().__init__(
            rows,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=0,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Handed on to the batches."""
        self._batches.set_epoch(epoch)


def epoch_walk(usable: Bool[np.ndarray, " rows"], pool_size: int, seed: int, epoch: int) -> Walk:
    """The pools of an epoch: in the first those of :meth:`Walk.plan`, in the others shuffled anew.

    Args:
        usable: Which rows may be picked.
        pool_size: Rows of a pool.
        seed: Of the order.
        epoch: From 0.
    """
    if epoch == 0:
        return Walk.plan(usable, pool_size, seed)
    rows = np.flatnonzero(usable)
    keys = Stream(seed, f"walk {epoch}", "order").uniform(len(rows))
    return Walk(rows[np.argsort(keys, kind="stable")], pool_size)
