"""A proxy that is trained while rows are selected, for methods that choose by what a training shows."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import final

import numpy as np
from jaxtyping import Float
from typing_extensions import override

from spice_select.config import AdapterConfig, ScheduleConfig
from spice_select.errors import ModelError
from spice_select.features.bench import Bench, Passes
from spice_select.gradients.batches import plan_batches
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.proxy import Proxy
from spice_select.gradients.random import Stream
from spice_select.methods import Learner, Method, Step
from spice_select.methods.lead import Lead
from spice_select.reporter import heard
from spice_select.schedule.adapters import attach_adapters, trained_scope
from spice_select.schedule.trainer import Diverged, ProxyTrainer

NAME = "lead-training"
"""Name of the training among the measurements."""
_NO_CLIPPING = 1e9


def make_learner(bench: Bench, method: Method, *, seed: int) -> Learner:
    """Start a training from the proxy as it came.

    Args:
        bench: Loads the proxy and counts what the training takes.
        method: Its settings are those of :class:`~spice_select.methods.lead.Lead`; others' defaults where it has none.
        seed: Of the adapters, the order of examples, and the dropout.

    Raises:
        ConfigError, ModelError: A proxy that cannot be loaded or trained.
    """
    settings = _settings(method)
    bench.reporter.stage("Training while selecting")
    with bench.clock.stage(NAME), heard(bench.reporter):
        return ProxyLearner(bench, settings, seed)


def learning_schedule(settings: Lead) -> ScheduleConfig:
    """How the proxy is trained; the decay comes on top."""
    return ScheduleConfig(
        scope="lora",
        lora=AdapterConfig(r=settings.lora_r, alpha=settings.lora_alpha, dropout=settings.dropout),
        learning_rate=settings.learning_rate,
        weight_decay=0.0,
        warmup_ratio=0.0,
        scheduler="constant",
        batch_size=settings.batch_size,
        max_grad_norm=_NO_CLIPPING,
    )


class ProxyLearner:
    """Trains adapters on the proxy, and measures every example just before the optimiser step that it is part of.

    Losses and gradients are taken without dropout, so an example goes forward and backward twice: once to be measured,
    once to be learnt from.

    Args:
        bench: The pool and the proxy.
        settings: Of the training.
        seed: Of all that is random in it.
    """

    def __init__(self, bench: Bench, settings: Lead, seed: int) -> None:
        config, schedule = bench.config, learning_schedule(settings)
        proxy = attach_adapters(bench.load_base(), schedule, seed, config.gradients.layers)
        scope = trained_scope(config.gradients, schedule).model_copy(update=_sketch(settings))
        self._bench = bench
        self._settings = settings
        self._seed = seed
        self._engine = GradientEngine(proxy, scope)
        self._trainer = _DecayingTrainer(proxy, schedule, settings, seed, config.gradients.batch_tokens)
        self._digest = _digest(bench, proxy, settings, seed)
        self._calls = 0

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the trained weights as they are now."""
        return self._trainer.digest

    def losses(self, rows: Sequence[int]) -> Float[np.ndarray, " m"]:
        """Losses of rows under the model as it is now, in nats."""
        begun = time.perf_counter()
        examples = [self._bench.pool.encoded.example(int(row)) for row in rows]
        found = np.zeros(len(rows))
        for members in self._batches([len(example.input_ids) for example in examples]):
            found[members] = self._engine.losses(
                [examples[i].input_ids for i in members], [examples[i].labels_mask for i in members]
            )
        tokens = sum(len(example.input_ids) for example in examples)
        self._count(Passes(what=NAME, forwards=len(rows), tokens=tokens, seconds=time.perf_counter() - begun))
        return found

    def train(self, rows: Sequence[int]) -> Step:
        """Go once over some rows, in an order of the seed's making, learning from them.

        Raises:
            ModelError: The proxy diverged.
            ResourceError: A batch does not fit into memory.
        """
        assert len(rows) > 0
        begun = time.perf_counter()
        key = f"{NAME} {self._calls}"
        self._calls += 1
        order = np.argsort(Stream(self._seed, key, "order of rows").raw(len(rows)), kind="stable")
        losses, total = np.zeros(len(rows)), np.zeros(self._engine.dim)
        examples = [self._bench.pool.encoded.example(int(row)) for row in rows]
        ids, masks = [e.input_ids for e in examples], [e.labels_mask for e in examples]
        with self._bench.clock.stage(NAME):
            for first in range(0, len(order), self._settings.batch_size):
                batch = order[first : first + self._settings.batch_size]
                for part in self._batches([len(ids[i]) for i in batch]):
                    members = batch[part]
                    found = self._engine.batch([ids[i] for i in members], [masks[i] for i in members])
                    losses[members] = found.losses
                    total += found.rows.sum(axis=0, dtype=np.float64)
                self._learn([ids[i] for i in batch], [masks[i] for i in batch], f"{key} {first}")
        tokens = 2 * sum(map(len, ids))
        self._count(
            Passes(
                what=NAME,
                forwards=2 * len(rows),
                backwards=2 * len(rows),
                tokens=tokens,
                backward_tokens=tokens,
                seconds=time.perf_counter() - begun,
            )
        )
        gradient = total / len(rows)
        return Step(losses, gradient, float(gradient @ gradient), self._trainer.rate)

    def _learn(self, ids: list[np.ndarray], masks: list[np.ndarray], key: str) -> None:
        try:
            self._trainer.train(ids, masks, self._trainer.step, key)
        except Diverged as error:
            raise ModelError(
                f"The proxy diverged while rows were selected (loss {error.loss:g} at step {error.step + 1}); set "
                f"method.learning_rate below {self._settings.learning_rate:g}."
            ) from None

    def _batches(self, lengths: Sequence[int]) -> list[np.ndarray]:
        return plan_batches(np.array(lengths, dtype=np.int64), self._bench.config.gradients.batch_tokens)

    def _count(self, passes: Passes) -> None:
        self._bench.count(NAME, self._digest, passes)


@final
class _DecayingTrainer(ProxyTrainer):
    """A trainer whose learning rate falls by a factor every few optimiser steps.

    Attributes:
        rate: Learning rate of the last optimiser step.
    """

    def __init__(self, proxy: Proxy, schedule: ScheduleConfig, settings: Lead, seed: int, batch_tokens: int) -> None:
        super().__init__(proxy, schedule, seed, 1, batch_tokens)
        self.rate = schedule.learning_rate
        self._decay, self._every = settings.decay, settings.decay_steps

    @override
    def _step(self, ids: list[np.ndarray], masks: list[np.ndarray], rate: float) -> float:
        self.rate = rate * self._decay ** (self.step // self._every)
        return super()._step(ids, masks, self.rate)


def _settings(method: Method) -> Lead:
    """The method's settings by the names that LEAD gives them."""
    if isinstance(method, Lead):
        return method
    return Lead.model_validate({name: getattr(method, name) for name in Lead.model_fields if hasattr(method, name)})


def _sketch(settings: Lead) -> dict[str, object]:
    return {"sketch": "fold", "dim": settings.dim}


def _digest(bench: Bench, proxy: Proxy, settings: Lead, seed: int) -> str:
    """What decides the training, beside the rows that it is given."""
    content = {
        "examples": bench.pool.encoded.digest,
        **bench.identity(proxy),
        "settings": settings.model_dump(mode="json"),
        "batch_tokens": bench.config.gradients.batch_tokens,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
