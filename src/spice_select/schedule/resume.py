"""What a walk keeps beside its log: checkpoints of the trained weights, the last two, and inner products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float64

from spice_select.analysis.record import TrainingRecord
from spice_select.errors import StoreError, StoreMismatch
from spice_select.files import atomic_file, make_folder, remove_tree
from spice_select.schedule.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.trainer import ProxyTrainer

_KEPT = 2


class Checkpoints:
    """The folder of checkpoints.

    Args:
        folder: Holds one folder a checkpoint.
        identity: SHA-256 of everything that decides the picks; a checkpoint of another run is not taken.
        ranks: The processes of the run; all read, the first writes.
    """

    def __init__(self, folder: Path, identity: str, ranks: Ranks) -> None:
        self._folder = folder
        self._identity = identity
        self._ranks = ranks

    def restore(self, trainer: ProxyTrainer, *, at_most: int) -> tuple[int, list[TrainingRecord]]:
        """Bring the weights to the last checkpoint that is whole and not too late.

        A damaged one is passed over: the training since an earlier one, or since the start, is done again.

        Args:
            trainer: Takes the weights and the state of its optimiser.
            at_most: Pools that are done.

        Returns:
            Pools after which the checkpoint was made (0: there is none), and the trainings until then.
        """
        for pools in sorted(self._known(), reverse=True):
            if pools > at_most:
                continue
            try:
                if read_checkpoint(self._place(pools)).meta.get("identity") != self._identity:
                    continue
                meta = load_checkpoint(self._place(pools), trainer)
            except (StoreError, StoreMismatch):
                continue
            return pools, [TrainingRecord.model_validate(training) for training in meta["trainings"]]
        return 0, []

    def save(self, pools: int, trainer: ProxyTrainer, trainings: list[TrainingRecord]) -> None:
        """Keep the weights after some pools, and forget all but the last two checkpoints."""
        if not self._ranks.main:
            return
        make_folder(self._folder)
        meta = {"identity": self._identity, "trainings": [training.model_dump() for training in trainings]}
        save_checkpoint(self._place(pools), trainer, meta)
        for old in sorted(self._known())[:-_KEPT]:
            remove_tree(self._place(old))

    def _place(self, pools: int) -> Path:
        return self._folder / f"after-{pools:06d}"

    def _known(self) -> list[int]:
        names = [path.name.removeprefix("after-") for path in self._folder.glob("after-*")]
        return [int(name) for name in names if name.isdigit()]


def write_gram(path: Path, gram: Float64[np.ndarray, "n n"]) -> None:
    """Keep the inner products of a pool, whole or not at all."""
    make_folder(path.parent)
    with atomic_file(path) as file:
        np.save(file, gram, allow_pickle=False)
