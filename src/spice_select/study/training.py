"""Trainings of a study: one model, trained again and again, each time from where it came."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from spice_select.analysis.study_record import UNTRAINED, Cost, Losses, Outcome
from spice_select.config import GradientConfig, RunConfig, TrainingConfig
from spice_select.data.encoded import Example
from spice_select.errors import DataError, ModelError
from spice_select.features.heldout import HeldOut, trained_model
from spice_select.features.heldout_losses import domain_means, row_losses
from spice_select.features.losses import LossEngine
from spice_select.features.target import encode_as
from spice_select.files import remove_tree
from spice_select.gradients.proxy import Proxy, load_proxy
from spice_select.pool import Pool
from spice_select.reporter import Reporter, heard
from spice_select.study.choosing import Chosen
from spice_select.training.sft import Trained, computes_in_bf16, fine_tune, planned_steps, restore, trainable

TRAINER_FOLDER = "trainer"
"""Where long trainings keep checkpoints until they have ended."""
TRAINER = 1
"""Version of how a study trains; a change that moves losses by more than rounding raises it."""

Suites = Callable[[Any, Any], dict[str, dict[str, float]]]
"""Evaluates a model and its tokenizer on benchmarks: metrics by task."""


@dataclass(frozen=True)
class Unit:
    """One training of the plan.

    Attributes:
        arm: Label.
        budget: As the user wrote it.
        equal: What sets of this budget have as much of.
        seed: Of the training, and of the choice where that varies.
        chosen: The rows.
        steps: Optimiser steps, where they are fixed.
    """

    arm: str
    budget: str
    equal: Any
    seed: int
    chosen: Chosen
    steps: int | None = None

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What of the plan it is."""
        return (self.arm, self.budget, self.equal, self.seed)


@dataclass
class Bench:
    """What all trainings share.

    Attributes:
        config: The settings.
        pool: The rows, as the proxy reads them, trained on their responses.
        held: What the losses are taken of.
        folder: Folder of the study.
        reporter: Hears the progress.
        suites: Evaluates on benchmarks, where that was asked for.
        suites_digest: What decides their numbers.
    """

    config: RunConfig
    pool: Pool
    held: HeldOut
    folder: Path
    reporter: Reporter
    suites: Suites | None = None
    suites_digest: str | None = None
    _base: Proxy | None = field(default=None, repr=False)
    _examples: dict[int, Example] = field(default_factory=dict, repr=False)
    _identity: dict[str, Any] | None = field(default=None, repr=False)
    _size: int | None = field(default=None, repr=False)

    @property
    def base(self) -> Proxy:
        """The model as it came."""
        if self._base is None:
            self.reporter.stage("Model")
            with heard(self.reporter):
                self._base = load_proxy(trained_model(self.config), GradientConfig())
        return self._base

    def identity(self) -> dict[str, Any]:
        """What decides every training beside its rows, seed and steps."""
        if self._identity is None:
            base = self.base
            self._identity = {
                "weights": base.weights_hash,
                "tokenizer": base.tokenizer_hash,
                "dtype": str(base.dtype),
                "training": self.config.training.model_dump(
                    mode="json",
                    exclude={"model", "heldout", "save_steps", "max_steps", "micro_batch", "gradient_checkpointing"},
                ),
                "heldout": self.held.digest,
                "suites": self.suites_digest,
                "trainer": TRAINER,
            }
            if computes_in_bf16(base, self.config.training):
                # Losses of another precision are other losses.
                self._identity["computed"] = "bfloat16"
        return self._identity

    def examples(self, rows: Sequence[int]) -> list[Example]:
        """Rows as the trained model reads them, in the order of the rows."""
        missing = [row for row in rows if row not in self._examples]
        if missing:
            if self.held.tokenizer is self.pool.tokenizer:
                self._examples |= {row: self.pool.encoded.example(row) for row in missing}
            else:
                encoded = encode_as(
                    self.pool.rows.subset(np.array(missing)), self.pool.schemas, self.held.tokenizer, self.config
                )
                self._examples |= {row: encoded.example(place) for place, row in enumerate(missing)}
        return [self._examples[row] for row in sorted(rows)]

    def key(self, unit: Unit) -> str:
        """Digest of everything that a training depends on."""
        steps = unit.steps or self.config.training.max_steps
        return _digest([self.subset(unit.chosen.rows), unit.seed, steps, self.identity()])

    def subset(self, rows: Sequence[int]) -> str:
        """Digest of a set of rows, whatever their order."""
        return _digest(sorted(one.digest.hex() for one in self.examples(rows)))

    def untrained_key(self) -> str:
        """Digest of everything that the losses of the model as it came depend on."""
        return _digest([UNTRAINED, self.identity()])

    def untrained(self) -> Outcome:
        """The model as it came."""
        losses = self._measure(self.base)
        suites = self.suites(self.base.model, self.base.tokenizer) if self.suites else {}
        return Outcome(
            key=self.untrained_key(),
            arm=UNTRAINED,
            seed=self.config.seed,
            budget=UNTRAINED,
            equal="rows",
            rows=0,
            response_tokens=0,
            tokens=0,
            steps=0,
            subset="",
            losses=losses,
            suites=suites,
            cost=_no_cost(),
            written=_now(),
        )

    def outcome(self, unit: Unit, twin: Outcome | None) -> Outcome:
        """Train on the rows of a unit and measure.

        Where another unit of the same key has been trained, its numbers are taken.

        Args:
            unit: What to train.
            twin: An outcome of the same key.
        """
        chosen, base = unit.chosen, self.base
        examples = self.examples(chosen.rows)
        good = trainable(examples)
        sources = self.pool.source_labels
        size = parameters(base.model)
        selection = {
            "selection_forward_tokens": chosen.forward_tokens,
            "selection_backward_tokens": chosen.backward_tokens,
            "selection_seconds": chosen.seconds,
            "selection_flops": self._proxy_size()
            * (2.0 * chosen.forward_tokens + chosen.backward_work * chosen.backward_tokens),
        }
        common: dict[str, Any] = {
            "key": self.key(unit),
            "arm": unit.arm,
            "seed": unit.seed,
            "budget": unit.budget,
            "equal": unit.equal,
            "rows": len(good),
            "response_tokens": sum(int(one.labels_mask[1:].sum()) for one in good),
            "tokens": sum(len(one.input_ids) for one in good),
            "subset": self.subset(chosen.rows),
            "sources": _counts(sources[row] for row in sorted(chosen.rows)),
            "written": _now(),
        }
        if twin is not None:
            return twin.model_copy(
                update={**common, "cost": twin.cost.model_copy(update=selection)},
            )
        settings = self._settings(unit)
        try:
            trained = self._train(examples, settings, unit.seed, common["key"])
        except (DataError, ModelError) as error:
            return Outcome(
                **common,
                steps=planned_steps(len(good), settings) if good else 0,
                cost=Cost(**selection, training_tokens=0, training_seconds=0.0, training_flops=0.0),
                error=str(error),
            )
        try:
            losses = self._measure(base.rescoped(GradientConfig(), trained.model))
            suites = self.suites(trained.model, base.tokenizer) if self.suites else {}
        finally:
            self._back(trained, settings)
        # Forward 2 P a token; backward 2 P for the activations, and 2 P for the weights where those are trained.
        passes = 4.0 if settings.mode == "lora" else 6.0
        mean = float(np.mean([entry["loss"] for entry in trained.history])) if trained.history else None
        finite = np.isfinite(losses.rows).all()
        return Outcome(
            **common,
            steps=trained.steps,
            first_loss=trained.first_loss,
            train_loss=mean,
            losses=losses if finite else None,
            suites=suites,
            cost=Cost(
                **selection,
                training_tokens=trained.tokens,
                training_seconds=trained.seconds,
                training_flops=passes * size * trained.tokens,
            ),
            error=None if finite else "The held-out loss after the training is not finite; set a lower training.lr.",
        )

    def forget(self, key: str) -> None:
        """Take away the checkpoints of a training whose outcome is in the ledger."""
        place = self.folder / TRAINER_FOLDER / key[:16]
        if place.is_dir():
            remove_tree(place)

    def _proxy_size(self) -> int:
        """Weights of the proxy, without loading them where it is another model than the trained one."""
        if self._size is None:
            model = self.config.model
            if trained_model(self.config) == model:
                self._size = parameters(self.base.model)
            else:
                import torch
                from transformers import AutoConfig, AutoModelForCausalLM

                shape = AutoConfig.from_pretrained(model.name, revision=model.revision)
                with torch.device("meta"):
                    self._size = parameters(AutoModelForCausalLM.from_config(shape))
        return self._size

    def _settings(self, unit: Unit) -> TrainingConfig:
        training = self.config.training
        return training if unit.steps is None else training.model_copy(update={"max_steps": unit.steps})

    def _train(self, examples: Sequence[Example], settings: TrainingConfig, seed: int, key: str) -> Trained:
        long = planned_steps(len(examples), settings) > settings.save_steps
        place = self.folder / TRAINER_FOLDER / key[:16]
        with heard(self.reporter):
            try:
                return fine_tune(
                    self.base,
                    examples,
                    settings,
                    seed,
                    place,
                    resume=long,
                    checkpoints=long,
                    callbacks=[_progress(self.reporter, examples, settings)],
                )
            except ModelError:
                # A training that diverged has left its numbers in the model.
                self._base = None
                raise
            finally:
                if place.is_dir() and not long:
                    remove_tree(place)

    def _back(self, trained: Trained, settings: TrainingConfig) -> None:
        if settings.mode == "lora":
            restore(trained)
        else:
            self._base = None

    def _measure(self, proxy: Proxy) -> Losses:
        losses = row_losses(LossEngine(proxy), self.held.rows, self.config.gradients.batch_tokens)
        means = domain_means(self.held.rows.subtasks, losses)
        return Losses.model_construct(
            macro=means.macro, micro=means.micro, by_domain=means.by_domain, rows=tuple(losses.tolist())
        )


def _progress(reporter: Reporter, examples: Sequence[Example], settings: TrainingConfig) -> Any:
    """Tells of steps as they are done."""
    from transformers import TrainerCallback

    total = planned_steps(len(examples), settings)
    each = sum(len(one.input_ids) for one in examples) / max(1, len(examples)) * settings.batch_size
    begun = time.perf_counter()

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = state.global_step
            reporter.advance(done, total, round(done * each), time.perf_counter() - begun, "steps")

    return Progress()


def parameters(model: Any) -> int:
    """Weights that every token is multiplied with: all but an input embedding that is not the head as well."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    total = sum(one.numel() for one in base.parameters())
    inputs, head = base.get_input_embeddings(), base.get_output_embeddings()
    tied = head is not None and inputs is not None and head.weight is inputs.weight
    return total if tied or inputs is None else total - inputs.weight.numel()


def _counts(names: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def _no_cost() -> Cost:
    return Cost(
        selection_forward_tokens=0,
        selection_backward_tokens=0,
        selection_seconds=0.0,
        selection_flops=0.0,
        training_tokens=0,
        training_seconds=0.0,
        training_flops=0.0,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
