"""Trainings on the picks of every method of a comparison, and what they come to on held-out rows.

Each starts from the model as it came. The base weights are frozen throughout, and adapters start anew for every
training, so that none knows of another. A training that has ended is on disk, whole or absent, and is known again by
all that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from spice_select.analysis.contest import Contestant
from spice_select.analysis.contest_training import TrainingNumbers, TrainingSetup
from spice_select.config import AdapterConfig, GradientConfig, ModelConfig, RunConfig, ScheduleConfig, TrainingConfig
from spice_select.data.encoded import Encoded, Example
from spice_select.errors import ModelError, OutputError, ResourceError, SpiceError
from spice_select.features.heldout import HeldOut, trained_model
from spice_select.features.heldout_losses import domain_means, row_losses
from spice_select.features.losses import LossEngine
from spice_select.features.target import encode_as
from spice_select.files import make_folder, write_text
from spice_select.gradients.proxy import Proxy, load_proxy
from spice_select.pool import Pool
from spice_select.reporter import Clock, Reporter, heard
from spice_select.schedule.adapters import attach_adapters, reset_adapters
from spice_select.schedule.trainer import Diverged, ProxyTrainer
from spice_select.seals import kept, sealed

STAGE = "training"
"""Name of the trainings' line among the timings."""
UNTRAINED = "untrained.json"
"""The losses of the model as it came, beside the folders of the methods."""


class SavedTrial(BaseModel):
    """One training that has ended: the content of ``methods/LABEL/seed-S.trial-T.json``.

    Attributes:
        schema_version: Version of this layout.
        identity: Digest of everything that the training depends on.
        numbers: What it came to; None where it diverged.
        error: How it diverged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    identity: str
    numbers: TrainingNumbers | None
    error: str | None = None


def training_schedule(settings: TrainingConfig) -> ScheduleConfig:
    """The training section as the trainer takes it."""
    return ScheduleConfig(
        scope="lora",
        lora=AdapterConfig(r=settings.lora_r, alpha=settings.lora_alpha, dropout=settings.dropout),
        learning_rate=settings.lr,
        weight_decay=0.0,
        warmup_ratio=settings.warmup_ratio,
        scheduler=settings.scheduler,
        batch_size=settings.batch_size,
    )


class Trials:
    """Trains one model again and again, each time from where it came.

    Args:
        config: The settings.
        pool: The rows.
        held: What the losses are taken of.
        folder: ``methods`` of the comparison's folder.
        reporter: Hears the progress.
        clock: Seconds by stage.
    """

    def __init__(
        self, config: RunConfig, pool: Pool, held: HeldOut, folder: Path, reporter: Reporter, clock: Clock
    ) -> None:
        self._config = config
        self._pool = pool
        self._held = held
        self._folder = folder
        self._reporter = reporter
        self._clock = clock
        self._schedule = training_schedule(config.training)
        self._batch_tokens = config.gradients.batch_tokens
        with clock.stage(STAGE), heard(reporter):
            base = load_proxy(trained_model(config), GradientConfig())
            self._weights = {"weights": base.weights_hash, "tokenizer": base.tokenizer_hash, "dtype": str(base.dtype)}
            self._proxy: Proxy = attach_adapters(base, self._schedule, config.seed)
        self._losses = LossEngine(self._proxy)
        self._ended: dict[str, SavedTrial] = {}

    def run(
        self, entries: Sequence[Contestant], picks: Mapping[str, Sequence[tuple[int, ...]]], seeds: int
    ) -> tuple[list[Contestant], TrainingSetup]:
        """Train on every choice.

        A choice under a seed of its own is trained under that seed; that of a method that does not vary, under several.

        Args:
            entries: One for each method and seed.
            picks: By method, the rows chosen under each seed that led to a choice, in the order of the entries.
            seeds: Trainings on the choice of a method that does not vary.

        Returns:
            The entries with their trainings, and what all share.
        """
        untrained = self._untrained()
        examples = self._examples(sorted({row for sets in picks.values() for rows in sets for row in rows}))
        places = dict.fromkeys(picks, 0)
        found = []
        for entry in entries:
            if entry.error is not None:
                found.append(entry)
                continue
            rows = picks[entry.label][places[entry.label]]
            places[entry.label] += 1
            first = self._config.seed
            under = range(first, first + seeds) if entry.varies == "no" else (entry.seed,)
            found.append(self._train_all(entry, [examples[row] for row in sorted(rows)], under))
        settings = self._config.training
        setup = TrainingSetup(
            model=_shown(trained_model(self._config)),
            settings=settings.model_dump(mode="json", exclude={"model", "heldout"}),
            rows=len(self._held.rows),
            domains=self._held.domains,
            in_pool=self._held.in_pool,
            untrained=untrained,
            fingerprints={"weights": self._weights["weights"], "heldout": self._held.digest},
        )
        return found, setup

    def _untrained(self) -> TrainingNumbers:
        identity = _digest([self._weights, self._held.digest, self._batch_tokens, _version()])
        path = self._folder / UNTRAINED
        kept = _read(path, identity)
        if kept is not None and kept.numbers is not None:
            return kept.numbers
        with self._clock.stage(STAGE):
            reset_adapters(self._proxy.model, self._config.seed)
            losses = self._measure()
        if not np.isfinite(losses).all():
            raise ModelError(
                f"The held-out loss of {self._proxy.name} is not finite before any training; set model.dtype to "
                "float32, or name another model."
            )
        numbers = self._numbers(self._config.seed, losses)
        _write(path, SavedTrial(identity=identity, numbers=numbers))
        self._reporter.note(f"untrained: held-out loss {numbers.loss_macro:.4f}")
        return numbers

    def _examples(self, rows: Sequence[int]) -> dict[int, Example | None]:
        """What is trained on by row number; None for a row without a response as the trained model reads it."""
        encoded: Encoded = self._pool.encoded
        places: Sequence[int] = rows
        if self._held.tokenizer is not self._pool.tokenizer:
            encoded = encode_as(self._pool.rows.subset(rows), self._pool.schemas, self._held.tokenizer, self._config)
            places = range(len(rows))
        usable = encoded.usable
        return {row: encoded.example(place) if usable[place] else None for row, place in zip(rows, places, strict=True)}

    def _train_all(self, entry: Contestant, picks: Sequence[Example | None], seeds: Sequence[int]) -> Contestant:
        numbers: list[TrainingNumbers] = []
        for seed in seeds:
            label = f"{entry.label}, seed {seed}"
            try:
                trial = self._trial(entry, picks, seed)
                if trial.numbers is None:
                    raise ModelError(str(trial.error))
            except OutputError:
                raise
            except (SpiceError, MemoryError) as error:
                told = error if isinstance(error, SpiceError) else ResourceError("Memory ran out while it trained.")
                self._reporter.warn(f"{label}: no training: {told}")
                return entry.model_copy(
                    update={"training": tuple(numbers), "training_error": str(told), "exit_code": told.exit_code}
                )
            numbers.append(trial.numbers)
            self._reporter.note(f"{label}: held-out loss {trial.numbers.loss_macro:.4f}")
        return entry.model_copy(update={"training": tuple(numbers)})

    def _trial(self, entry: Contestant, picks: Sequence[Example | None], seed: int) -> SavedTrial:
        examples = [example for example in picks if example is not None]
        identity = _digest(
            [
                [example.digest.hex() for example in examples],
                len(picks),
                self._config.training.model_dump(mode="json", exclude={"model", "heldout"}),
                self._weights,
                self._held.digest,
                self._batch_tokens,
                seed,
                _version(),
            ]
        )
        path = self._folder / entry.label / f"seed-{entry.seed}.trial-{seed}.json"
        kept = _read(path, identity)
        if kept is None:
            # Methods that chose the same rows share a training.
            kept = self._ended.get(identity) or self._trained(examples, len(picks), seed, identity)
            _write(path, kept)
        self._ended[identity] = kept
        return kept

    def _trained(self, examples: Sequence[Example], picks: int, seed: int, identity: str) -> SavedTrial:
        settings = self._config.training
        if not examples:
            return SavedTrial(
                identity=identity, numbers=None, error="None of the picks has a response that the model can learn from."
            )
        ids, masks = [one.input_ids for one in examples], [one.labels_mask for one in examples]
        total = settings.epochs * math.ceil(len(examples) / settings.batch_size)
        tokens, seconds = 0, 0.0
        with self._clock.stage(STAGE), heard(self._reporter):
            reset_adapters(self._proxy.model, seed)
            trainer = ProxyTrainer(self._proxy, self._schedule, seed, total, self._batch_tokens)
            try:
                for epoch in range(settings.epochs):
                    done = trainer.train(ids, masks, trainer.step, f"trial {epoch}")
                    tokens, seconds = tokens + done.tokens, seconds + done.seconds
                    self._reporter.advance((epoch + 1) * len(ids), settings.epochs * len(ids), tokens, seconds)
            except Diverged as error:
                return SavedTrial(
                    identity=identity,
                    numbers=None,
                    error=f"The training on the picks diverged (loss {error.loss:g} at step {error.step + 1}); set "
                    f"training.lr below {settings.lr:g}.",
                )
            losses = self._measure()
        if not np.isfinite(losses).all():
            return SavedTrial(
                identity=identity,
                numbers=None,
                error=f"The held-out loss after the training is not finite; set training.lr below {settings.lr:g}.",
            )
        numbers = self._numbers(seed, losses).model_copy(
            update={"steps": trainer.step, "tokens": tokens, "seconds": seconds, "left_out": picks - len(examples)}
        )
        return SavedTrial(identity=identity, numbers=numbers)

    def _measure(self) -> np.ndarray:
        """Loss of every held-out row with the weights as they are, without dropout."""
        return row_losses(self._losses, self._held.rows, self._batch_tokens)

    def _numbers(self, seed: int, losses: np.ndarray) -> TrainingNumbers:
        means = domain_means(self._held.rows.subtasks, losses)
        return TrainingNumbers(seed=seed, loss_macro=means.macro, loss_micro=means.micro, by_domain=means.by_domain)


def _read(path: Path, identity: str) -> SavedTrial | None:
    """The training that is there, if it is whole and of this very identity."""
    try:
        found = SavedTrial.model_validate_json(json.dumps(kept(path)))
    except ValidationError:
        return None
    return found if found.identity == identity else None


def _write(path: Path, trial: SavedTrial) -> None:
    make_folder(path.parent)
    write_text(path, sealed(json.loads(trial.model_dump_json())))


def _shown(model: ModelConfig) -> str:
    """A model's name; of a folder the last part."""
    return Path(model.name).name if Path(model.name).exists() else model.name


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _version() -> str:
    try:
        return version("spice-select")
    except PackageNotFoundError:
        return ""
