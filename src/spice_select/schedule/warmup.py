"""A warm-up: the proxy trained on randomly drawn rows before the first gradient is taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from spice_select.analysis.record import ScheduleRecord, TrainingRecord
from spice_select.config import RunConfig, ScheduleConfig
from spice_select.data.encoded import Encoded
from spice_select.errors import ModelError, StoreError, StoreMismatch
from spice_select.files import make_folder
from spice_select.gradients.proxy import Proxy
from spice_select.gradients.random import Stream
from spice_select.reporter import Reporter
from spice_select.schedule.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.trainer import Diverged, ProxyTrainer

_PURPOSE = "warm-up"


@dataclass(frozen=True)
class WarmUp:
    """A warm-up that was done.

    Attributes:
        folder: Its checkpoint.
        training: What it did.
        digest: SHA-256 of the trained weights.
        moments: AdamW's state by layer name and kind, where ``gradients.precondition`` asks for it.
    """

    folder: Path
    training: TrainingRecord
    digest: str
    moments: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


def wanted(schedule: ScheduleConfig) -> bool:
    """Whether the settings ask for a warm-up."""
    return schedule.warmup_steps > 0 or schedule.warmup_share is not None


def warmup_rows(usable: Bool[np.ndarray, " rows"], schedule: ScheduleConfig, seed: int) -> Int[np.ndarray, " m"]:
    """Rows of the warm-up: a share of them once each, or as many as the steps take, all before any comes again.

    Args:
        usable: Rows that can be trained on.
        schedule: Steps or share, and the batch size.
        seed: Of the draw.
    """
    rows = np.flatnonzero(usable)
    if schedule.warmup_share is not None:
        count = max(1, int(np.floor(schedule.warmup_share * len(rows) + 0.5)))
    else:
        count = schedule.warmup_steps * schedule.batch_size
    rounds = -(-count // len(rows))
    keys = Stream(seed, _PURPOSE, "rows").uniform(rounds * len(rows)).reshape(rounds, len(rows))
    return rows[np.argsort(keys, axis=1, kind="stable")].ravel()[:count]


def warm_up(
    config: RunConfig,
    encoded: Encoded,
    usable: Bool[np.ndarray, " rows"],
    proxy: Proxy,
    folder: Path,
    ranks: Ranks,
    reporter: Reporter,
) -> WarmUp:
    """Train the proxy's weights in scope on a random sample, or take what an earlier run has left of the same.

    Args:
        config: The settings of the run.
        encoded: Token ids of all rows.
        usable: Rows that may be drawn.
        proxy: With the weights that are trained; it is warm afterwards.
        folder: Of the checkpoint, which is kept.
        ranks: The processes of the run: all train alike, the first writes.
        reporter: Hears what is done.

    Raises:
        ModelError: The proxy diverged.
        OutputError: The checkpoint cannot be written.
    """
    schedule = config.schedule
    rows = warmup_rows(usable, schedule, config.seed)
    steps = -(-len(rows) // schedule.batch_size)
    trainer = ProxyTrainer(proxy, schedule, config.seed, steps, config.gradients.batch_tokens)
    identity = _identity(encoded, rows, proxy, config)
    with ranks.together():
        found = _earlier(folder, trainer, identity)
    if found is not None:
        reporter.note(f"Took up the warm-up of {found.steps} steps that is there already.")
        return WarmUp(folder, found, trainer.digest, _moments(config, trainer))
    reporter.stage("Warm-up")
    examples = [encoded.example(int(row)) for row in rows]
    with ranks.together():
        try:
            result = trainer.train(
                [example.input_ids for example in examples], [example.labels_mask for example in examples], 0, _PURPOSE
            )
        except Diverged as error:
            raise ModelError(
                f"The proxy diverged in the warm-up (loss {error.loss:g} at step {error.step + 1}); set "
                f"schedule.learning_rate below {schedule.learning_rate:g}."
            ) from None
        trainer.share(ranks)
        training = TrainingRecord(
            after=0,
            examples=len(rows),
            steps=result.steps,
            loss=float(np.mean(result.losses)),
            learning_rate=result.learning_rate,
        )
        if ranks.main:
            make_folder(folder.parent)
            save_checkpoint(folder, trainer, {"identity": identity, "training": training.model_dump()})
    first, last = (float(np.mean(part)) for part in (result.losses[:5], result.losses[-5:]))
    reporter.note(
        f"{result.steps} optimiser steps on {len(rows):,} rows: loss {first:.3f} in the first steps, {last:.3f} in the "
        "last."
    )
    return WarmUp(folder, training, trainer.digest, _moments(config, trainer))


def take_up(config: RunConfig, proxy: Proxy, folder: Path) -> WarmUp:
    """Bring a proxy to where a warm-up has left it, in a process that has no rows to train on.

    Args:
        config: The settings of the run.
        proxy: With the weights that were trained; it is warm afterwards.
        folder: The checkpoint of :func:`warm_up`.

    Raises:
        StoreCorrupt: The checkpoint is missing or damaged.
        StoreMismatch: It was made of another proxy or by other settings.
    """
    training = TrainingRecord.model_validate(read_checkpoint(folder).meta["training"])
    trainer = ProxyTrainer(proxy, config.schedule, config.seed, training.steps, config.gradients.batch_tokens)
    load_checkpoint(folder, trainer)
    return WarmUp(folder, training, trainer.digest, _moments(config, trainer))


def _moments(config: RunConfig, trainer: ProxyTrainer) -> dict[str, Tensor]:
    return trainer.moments() if config.gradients.precondition == "adam" else {}


def _earlier(folder: Path, trainer: ProxyTrainer, identity: str) -> TrainingRecord | None:
    """The warm-up that is there, if it is whole and of the same rows and settings; the trainer then has its weights."""
    if not folder.is_dir():
        return None
    try:
        if read_checkpoint(folder).meta.get("identity") != identity:
            return None
        meta = load_checkpoint(folder, trainer)
    except (StoreError, StoreMismatch):
        return None
    return TrainingRecord.model_validate(meta["training"])


def _identity(encoded: Encoded, rows: Int[np.ndarray, " m"], proxy: Proxy, config: RunConfig) -> str:
    content = {
        "rows": hashlib.sha256(encoded.digests[rows].tobytes()).hexdigest(),
        "weights": proxy.weights_hash,
        "dtype": str(proxy.dtype),
        "batch_tokens": config.gradients.batch_tokens,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def warm_record(warm: WarmUp) -> ScheduleRecord:
    """A warm-up as ``selection.json`` has it."""
    return ScheduleRecord(kind="fixed", steps=warm.training.steps, trainings=(warm.training,))
