"""Selection inside a training: a few rows of every pool, chosen by the gradients of the model that is being trained.

The online mode of SPICE (ICLR 2026, arXiv 2601.23155, section 4), with the target in the place of the proxy.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from spice_select.errors import ConfigError, ModelError
from spice_select.schedule.gram import PoolGram
from spice_select.schedule.walk import Walk
from spice_select.selection import select_gram
from spice_select.selection.options import NormalizeName, PenaltyName, ReferenceName
from spice_select.training.live_checks import check_trainer
from spice_select.training.live_log import LivePool, identity_of, read_live, write_live
from spice_select.training.live_measure import LiveGradients
from spice_select.training.live_rows import LiveBatches, LiveLoader, TrainerRows, epoch_walk
from spice_select.training.live_settings import LiveSettings

# Rows that are all without a finite gradient only where the training has diverged.
_TELLING = 8


class LiveSelection:
    """Trains on the most telling rows of each pool, by the gradients of the model as it is at that moment.

    ::

        live = LiveSelection(pool_size=120, share=0.1)
        live.attach(trainer)
        trainer.train()

    Rows are shuffled anew in each epoch and offered in pools, each row once. Where the trainer asks for a batch and no
    pick is left, the next pool's loss gradients are taken, with respect to the linear weights or LoRA factors that are
    trained, and rows are picked from their exact inner products. Nothing is read ahead: gradients are those of the
    weights after the last optimiser step.

    Args:
        pool_size: Rows of a pool.
        share: Part of the rows to train on: a number, or such as ``"10%"``; a tenth where ``keep`` is not given either.
        keep: The same as picks of a whole pool.
        interval: Pools that are measured together, between two trainings on their picks.
        conflict_weight: As in :func:`spice_select.select`, and so are the next five.
        alpha: Fisher scale, or ``"auto"``.
        penalty: ``"absolute"`` or ``"relative"``.
        reference: What conflict is with, ``"selected"`` or ``"pool"``.
        hinge: Cosine below which a row is in conflict.
        normalize: ``"none"``, ``"unit"``, ``"sqrt_tokens"`` or ``"clip"``.
        seed: Of the order of rows; that of the trainer's data where absent.
        dim: Least numbers a row where whole layers are trained and their gradients must be folded (8,192 at least).
        batch_tokens: Padded tokens of one pass when gradients are taken; 1,024 on a CPU and 8,192 elsewhere.
        gram_bytes: Memory that a pool's gradients may take.

    Raises:
        ConfigError: A setting that cannot be used.
    """

    def __init__(
        self,
        pool_size: int = 120,
        share: float | str | None = None,
        *,
        keep: int | None = None,
        interval: int = 1,
        conflict_weight: float = 0.1,
        alpha: float | Literal["auto"] = 1.0,
        penalty: PenaltyName = "absolute",
        reference: ReferenceName = "selected",
        hinge: float | str = 0.0,
        normalize: NormalizeName = "none",
        seed: int | None = None,
        dim: int = 8192,
        batch_tokens: int | None = None,
        gram_bytes: int = 1 << 32,
    ) -> None:
        self.settings = LiveSettings(
            pool_size, share, keep, interval, conflict_weight, alpha, penalty, reference, hinge, normalize, seed, dim,
            batch_tokens, gram_bytes,
        )  # fmt: skip
        self.settings.check()
        self._trainer: Any = None
        self._new_loader: Any = None
        self._rows: TrainerRows | None = None
        self._rows_of: Any = None
        self._collate: Any = None
        self._gradients: LiveGradients | None = None
        self._log: list[LivePool] = []
        self._resumed: Path | None = None

    @property
    def log(self) -> Sequence[LivePool]:
        """Pools that are done, in the order of the training; those before a resumption too."""
        return tuple(self._log)

    @property
    def picks(self) -> list[int]:
        """Numbers of the rows that were picked, in the order of the training."""
        return [row for pool in self._log for row in pool.picks]

    @property
    def identity(self) -> str:
        """SHA-256 of rows and settings, known once a training has begun."""
        assert self._rows is not None
        return identity_of({**self.settings.identity(), "seed": self._seed, "rows": self._rows.digest})

    def attach(self, trainer: Any) -> None:
        """Let the selection decide what a trainer trains on.

        Args:
            trainer: TRL's ``SFTTrainer``, or a ``Trainer`` of transformers for a causal language model, ready to train.

        Raises:
            ConfigError: The trainer packs or streams its rows, runs on several devices, or has another setting that a
                live selection cannot work with.
        """
        if self._trainer is not None or isinstance(getattr(trainer, "live_selection", None), LiveSelection):
            raise ConfigError("A live selection belongs to one trainer, and a trainer to one; make a new one for each.")
        check_trainer(trainer)
        self._trainer = trainer
        self._new_loader = trainer.get_train_dataloader
        train = trainer.train

        @functools.wraps(train)
        def begin(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
            self._begin(resume_from_checkpoint)
            return train(resume_from_checkpoint, *args, **kwargs)

        trainer.live_selection = self
        trainer.train = begin
        trainer.get_train_dataloader = self._loader
        trainer.add_callback(_Keeper(self))
        # First in line: the others close their writers at the end of the training.
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())

    def save(self, folder: str | Path) -> Path:
        """Write ``live.jsonl``: rows, picks, gains, conflicts and seconds of each pool; :func:`read_live` reads it.

        Raises:
            ConfigError: No training has begun.
            OutputError: It cannot be written.
        """
        if self._rows is None:
            raise ConfigError("The live selection has picked nothing yet; save it after the training.")
        return write_live(folder, self.identity, self._log)

    def summary(self) -> dict[str, float]:
        """What was picked and what it took, as the trainer's log has it."""
        return {
            "spice/kept": len(self.picks),
            "spice/offered": sum(len(pool.rows) for pool in self._log),
            "spice/pools": len(self._log),
            "spice/seconds": round(sum(pool.seconds for pool in self._log), 3),
        }

    @property
    def _seed(self) -> int:
        if self.settings.seed is not None:
            return self.settings.seed
        args = self._trainer.args
        return int(args.seed if args.data_seed is None else args.data_seed)

    def _begin(self, resume: Any) -> None:
        """A training starts, anew or from a checkpoint."""
        check_trainer(self._trainer)
        self._log = []
        self._gradients = None
        if resume is True:
            resume = get_last_checkpoint(self._trainer.args.output_dir)
        self._resumed = Path(resume) if resume else None

    def _loader(self) -> LiveLoader:
        """In the place of the trainer's ``get_train_dataloader``."""
        trainer = self._trainer
        if self._rows is None or self._rows_of is not trainer.train_dataset:
            made = self._new_loader()
            self._rows = TrainerRows(made.dataset, made.collate_fn)
            self._rows_of = trainer.train_dataset
            self._collate = made.collate_fn
        rows = self._rows
        rows.kept = self.settings.total(int(rows.usable.sum()))
        if self._resumed is not None:
            self._log = read_live(self._resumed, self.identity)
            self._resumed = None
        batches = LiveBatches(
            self._epoch, rows.kept, trainer.args.per_device_train_batch_size, trainer.args.dataloader_drop_last
        )
        pinned = trainer.args.dataloader_pin_memory and trainer.args.device.type == "cuda"
        return LiveLoader(rows, batches, self._collate, pin_memory=pinned)

    def _epoch(self, epoch: int) -> Iterator[list[int]]:
        """Picks of an epoch, those of an interval at a time: measured when they are asked for, if not before."""
        assert self._rows is not None
        walk = epoch_walk(self._rows.usable, self.settings.pool_size, self._seed, epoch)
        done = {pool.pool: pool for pool in self._log if pool.epoch == epoch}
        spent = 0
        for first in range(0, len(walk), self.settings.interval):
            picks: list[int] = []
            for number in range(first, min(len(walk), first + self.settings.interval)):
                if number not in done:
                    done[number] = self._pool(walk, epoch, number, walk.due(self._rows.kept, number, spent))
                    self._log.append(done[number])
                spent += len(done[number].picks)
                picks += done[number].picks
            yield picks
        if spent < self._rows.kept:
            warnings.warn(
                f"{self._rows.kept - spent} of {self._rows.kept} picks are missing in epoch {epoch + 1}, as rows of "
                "its last pools have gradients that are not finite; its last step is smaller, or left out.",
                stacklevel=2,
            )

    def _pool(self, walk: Walk, epoch: int, number: int, due: int) -> LivePool:
        assert self._rows is not None
        rows = walk.pool(number)
        step = int(self._trainer.state.global_step)
        common = {"pool": number, "rows": tuple(rows.tolist()), "due": due, "epoch": epoch, "step": step}
        if due == 0:
            # Without anything to pick nothing needs to be measured.
            return LivePool(**common, seconds=0.0)
        began = time.perf_counter()
        examples = [self._rows.example(int(row)) for row in rows]
        if self._gradients is None:
            self._gradients = LiveGradients(self._trainer.model, self.settings)
        measured = self._gradients.measure([ids for ids, _ in examples], [mask for _, mask in examples])
        lengths = np.array([int(mask[1:].sum()) for _, mask in examples])
        chosen = self._choose(measured, rows, lengths, common)
        return LivePool(**common, **chosen, seconds=time.perf_counter() - began)

    def _choose(
        self, measured: PoolGram, rows: np.ndarray, lengths: np.ndarray, common: dict[str, Any]
    ) -> dict[str, Any]:
        norms = np.diagonal(measured.gram)
        usable = int(np.isfinite(norms).sum())
        found = {
            "losses": _finite(measured.losses),
            "squared_norms": _finite(norms),
            "tokens": measured.tokens,
            "gram": measured.how,
        }
        if usable == 0:
            if len(rows) >= _TELLING:
                raise ModelError(
                    f"The training diverged: at step {common['step']} no gradient of pool {common['pool'] + 1} is "
                    f"finite (loss {measured.losses[0]:g}); set learning_rate below "
                    f"{self._trainer.args.learning_rate:g}."
                )
            return {**found, "stop_reason": "exhausted"}
        settings = self.settings
        chosen = select_gram(measured.gram, min(common["due"], usable), lengths=lengths, **settings.picking())
        return {
            **found,
            "picks": tuple(rows[chosen.indices].tolist()),
            "gains": tuple(chosen.gains.tolist()),
            "bases": tuple(chosen.bases.tolist()),
            "epsilons": tuple(chosen.epsilons.tolist()),
            "conflicts": tuple(chosen.conflicts.tolist()),
            "scores": tuple(chosen.scores.tolist()),
            "alpha": chosen.alpha,
            "stop_reason": chosen.stop_reason,
            "changed": chosen.changed_by_penalty if settings.conflict_weight else None,
            "first_gain_outlier": chosen.first_gain_outlier,
            "warnings": chosen.warnings,
        }


class _Keeper(TrainerCallback):
    """Puts the picks into every checkpoint, and the summary into the trainer's log."""

    def __init__(self, live: LiveSelection) -> None:
        self._live = live

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._live.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._live._trainer.log(self._live.summary())


def _finite(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(value) if np.isfinite(value) else None for value in values)
