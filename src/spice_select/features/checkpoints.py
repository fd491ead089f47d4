"""Gradients at the checkpoints of a warm-up, for methods that follow a training (LESS, arXiv 2402.04333).

Adapters on the proxy are trained for a few epochs on a share of the rows. After each epoch the training's state is
kept, and every row's Adam step and every target example's gradient are taken with the weights as they then are.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spice_select.config import AdapterConfig, GradientConfig, ScheduleConfig
from spice_select.data.encoded import Example
from spice_select.errors import DataError, ModelError, StoreError, StoreMismatch
from spice_select.features.bench import Bench, Passes
from spice_select.features.target import TargetRows
from spice_select.files import Lock, make_folder
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.precondition import layer_moments
from spice_select.gradients.proxy import Proxy
from spice_select.methods import Checkpoint, Method
from spice_select.methods.less import Less
from spice_select.pool import excluded_rows
from spice_select.reporter import heard
from spice_select.schedule.adapters import attach_adapters, trained_scope
from spice_select.schedule.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from spice_select.schedule.trainer import Diverged, ProxyTrainer, learning_rate
from spice_select.schedule.warmup import warmup_rows

WARM_UP = "less-warm-up"
"""Name of the training's line among the passes."""
FEW_STEPS = 20
"""Optimiser steps below which Adam's second moment, which looks back over a thousand, has hardly begun."""


def collect_checkpoints(bench: Bench, method: Method, target: TargetRows, *, seed: int) -> tuple[Checkpoint, ...]:
    """Train the proxy for a while, and measure rows and target after every epoch, or take what is there of the same.

    A run that is cut off goes on where it stopped: epochs that are whole are not trained again, nor are rows measured
    again, and the end is the same to the bit on a CPU with the same number of threads.

    Args:
        bench: Measures; the proxy as it came is loaded once and trained in place.
        method: Its settings are those of :class:`~spice_select.methods.less.Less`; others' defaults where it has none.
        target: The target examples.
        seed: Of the rows that the warm-up draws, their order, the adapters and the dropout.

    Returns:
        One for each epoch, in order.

    Raises:
        ConfigError, ModelError: A proxy that cannot be trained, or that diverged.
        DataError: No row is left to train on.
        OutputError, ResourceError: Disk or memory that ran out.
    """
    settings = _settings(method)
    config, pool = bench.config, bench.pool
    schedule = warm_schedule(settings)
    base = bench.load_base()
    identity = bench.identity(base)
    proxy = attach_adapters(base, schedule, seed, config.gradients.layers)
    usable = pool.encoded.usable & ~excluded_rows(config, pool)
    if not usable.any():
        raise DataError(f"No row is left for the warm-up of method '{method.name}'; exclude fewer rows.")
    rows = warmup_rows(usable, schedule, seed)
    examples = [pool.encoded.example(int(row)) for row in rows]
    per_epoch = -(-len(rows) // schedule.batch_size)
    total = settings.epochs * per_epoch
    trainer = ProxyTrainer(proxy, schedule, seed, total, config.gradients.batch_tokens)
    drawn = {**identity, "rows": hashlib.sha256(pool.encoded.digests[rows].tobytes()).hexdigest()}
    training = _Training(bench, trainer, examples, per_epoch, drawn, settings.learning_rate)
    if total < FEW_STEPS:
        bench.reporter.warn(
            f"The warm-up of method '{method.name}' has {total} optimiser steps on {len(rows):,} rows, few for Adam's "
            "moments; set method.warmup_share or method.epochs higher, or method.batch_size lower."
        )
    with bench.clock.stage(WARM_UP), heard(bench.reporter):
        training.run(settings.epochs)
    scope = trained_scope(config.gradients, schedule).model_copy(update={"sketch": "fold", "dim": settings.dim})
    with heard(bench.reporter):
        plain = GradientEngine(proxy, scope)
    found = []
    for epoch in range(1, settings.epochs + 1):
        training.restore(epoch)
        sources = {**identity, "warm_up": trainer.digest, "seed": seed}
        place = f"{epoch} of {settings.epochs}"
        collected = [
            bench.collect(
                f"{name}-{epoch}",
                encoded,
                engine,
                identity=sources,
                forwards=1.0,
                backwards=1.0,
                stage=f"{stage}, epoch {place}",
            )
            for name, stage, encoded, engine in (
                ("less", "Adam's steps", pool.encoded, _adam(proxy, scope, trainer)),
                ("less-target", "Gradients of the target", target.encoded, plain),
            )
        ]
        steps = range((epoch - 1) * per_epoch, epoch * per_epoch)
        weight = float(np.mean([learning_rate(schedule, step, total) for step in steps]))
        found.append(Checkpoint(weight, *collected))
    return tuple(found)


def warm_schedule(settings: Less) -> ScheduleConfig:
    """How the warm-up trains."""
    return ScheduleConfig(
        scope="lora",
        lora=AdapterConfig(r=settings.lora_r, alpha=settings.lora_alpha, dropout=settings.dropout),
        warmup_share=settings.warmup_share,
        learning_rate=settings.learning_rate,
        weight_decay=0.0,
        warmup_ratio=settings.warmup_ratio,
        scheduler="linear",
        batch_size=settings.batch_size,
    )


@dataclass
class _Training:
    """A training of several epochs, each of which is kept.

    Attributes:
        bench: Keeps it and counts it.
        trainer: Fresh.
        examples: What is trained on.
        per_epoch: Optimiser steps of an epoch.
        identity: What decides the weights beside the trainer's settings.
        peak: Highest learning rate.
    """

    bench: Bench
    trainer: ProxyTrainer
    examples: Sequence[Example]
    per_epoch: int
    identity: dict[str, Any]
    peak: float

    def __post_init__(self) -> None:
        content = {
            **self.identity,
            "trainer": self.trainer.identity(),
            "batch_tokens": self.bench.config.gradients.batch_tokens,
        }
        self._digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self._folder = self.bench.place(WARM_UP, self._digest)

    def run(self, epochs: int) -> None:
        """Train the epochs that are not there yet."""
        make_folder(self._folder)
        path = self._folder / ".lock"
        lock = Lock.try_acquire(path)
        if lock is None:
            self.bench.reporter.note(f"Another run is at the warm-up in {self._folder}; waiting for it.")
            lock = Lock.acquire(path)
        with lock:
            done = self._whole(epochs)
            if done:
                self.bench.reporter.note(f"Took up {done} of the warm-up's {epochs} epochs that are there already.")
                # What was counted before is told again, whether or not anything is added.
                self.bench.count(WARM_UP, self._digest, Passes(what=WARM_UP))
            for epoch in range(done + 1, epochs + 1):
                self._epoch(epoch, epochs)

    def restore(self, epoch: int) -> None:
        """Bring weights and moments to the end of an epoch."""
        load_checkpoint(self._place(epoch), self.trainer)

    def _whole(self, epochs: int) -> int:
        """Epochs that are there, up to the first that is not or is damaged; the trainer is at the end of the last."""
        for epoch in range(1, epochs + 1):
            try:
                if read_checkpoint(self._place(epoch)).meta.get("identity") != self._digest:
                    return epoch - 1
                load_checkpoint(self._place(epoch), self.trainer)
            except (StoreError, StoreMismatch):
                return epoch - 1
        return epochs

    def _epoch(self, epoch: int, epochs: int) -> None:
        assert self.trainer.step == (epoch - 1) * self.per_epoch
        self.bench.reporter.stage(f"Warm-up, epoch {epoch} of {epochs}")
        ids, masks = [each.input_ids for each in self.examples], [each.labels_mask for each in self.examples]
        try:
            result = self.trainer.train(ids, masks, self.trainer.step, f"less epoch {epoch}")
        except Diverged as error:
            raise ModelError(
                f"The proxy diverged in the warm-up (loss {error.loss:g} at step {error.step + 1}); set "
                f"method.learning_rate below {self.peak:g}."
            ) from None
        count = len(self.examples)
        passes = Passes(
            what=WARM_UP,
            forwards=count,
            backwards=count,
            tokens=result.tokens,
            backward_tokens=result.tokens,
            seconds=result.seconds,
        )
        # Before the epoch is kept: one that is lost has been passed through the model all the same.
        self.bench.count(WARM_UP, self._digest, passes)
        save_checkpoint(self._place(epoch), self.trainer, {"identity": self._digest, "losses": list(result.losses)})
        self.bench.reporter.note(
            f"Epoch {epoch} of {epochs}: {result.steps} optimiser steps on {count:,} rows, mean loss "
            f"{float(np.mean(result.losses)):.3f}."
        )

    def _place(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch}"


def _adam(proxy: Proxy, scope: GradientConfig, trainer: ProxyTrainer) -> GradientEngine:
    """Adam's steps with the weights and moments as the trainer has them."""
    with warnings.catch_warnings():
        # Whatever there is to say of the proxy, the engine of the plain gradients has said.
        warnings.simplefilter("ignore")
        return GradientEngine(proxy, scope, precondition=layer_moments(proxy.scope, trainer.moments()))


def _settings(method: Method) -> Less:
    """The method's settings by the names that LESS gives them."""
    if isinstance(method, Less):
        return method
    return Less.model_validate({name: getattr(method, name) for name in Less.model_fields if hasattr(method, name)})
