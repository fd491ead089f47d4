"""Trains the proxy on picks, a few optimiser steps at a time.

Whatever is random in a step (which examples, which units drop out) is a function of the seed and the step's number,
and so is the learning rate: a run that goes on from a checkpoint needs the weights, AdamW's moments and the number of
the step, and no state of a random generator or scheduler, to end in the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spice_select.config import GradientConfig, ScheduleConfig
from spice_select.errors import ModelError, ResourceError
from spice_select.gradients.batches import out_of_memory, plan_batches
from spice_select.gradients.capture import choose_path
from spice_select.gradients.identity import layers_hash, state_hash
from spice_select.gradients.loss import TokenBatch, TokenLoss
from spice_select.gradients.proxy import Proxy
from spice_select.gradients.random import Stream
from spice_select.schedule.ranks import Ranks

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Diverged(ModelError):
    """A loss or gradient norm that is NaN or infinite.

    Attributes:
        loss: Loss of the step.
        step: Number of the optimiser step, from 0; it was not taken.
    """

    def __init__(self, loss: float, step: int) -> None:
        super().__init__(
            f"The proxy diverged at optimiser step {step + 1} (loss {loss}); set a smaller schedule.learning_rate."
        )
        self.loss = loss
        self.step = step


@dataclass(frozen=True)
class TrainResult:
    """What a training on some picks did.

    Attributes:
        steps: Optimiser steps taken.
        losses: Mean loss of each step's examples, in nats.
        tokens: Tokens worked through, padding aside.
        seconds: Wall-clock time.
        learning_rate: That of the last step.
    """

    steps: int
    losses: tuple[float, ...]
    tokens: int
    seconds: float
    learning_rate: float


def learning_rate(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Learning rate of an optimiser step: a linear rise, then what ``schedule.scheduler`` names.

    No step is lost: the first is above 0, and so is the last.

    Args:
        schedule: Peak, share of the rise, and shape of the fall.
        step: Number of the step, from 0.
        total_steps: Steps there will be.
    """
    rise = math.ceil(schedule.warmup_ratio * total_steps)
    if step < rise:
        return schedule.learning_rate * (step + 1) / rise
    done = min(1.0, (step - rise) / max(1, total_steps - rise))
    fall = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return schedule.learning_rate * fall[schedule.scheduler]


class ProxyTrainer:
    """AdamW on the weights in a proxy's scope; between two trainings the proxy is frozen and in eval mode.

    A step's loss is the mean over its examples of each one's mean over trained tokens.

    Args:
        proxy: From :func:`~spice_select.schedule.adapters.attach_adapters`.
        schedule: Optimiser, learning rate, batch size.
        seed: Of the order of examples and of the dropout.
        total_steps: Optimiser steps of the whole run, which the learning rate follows.
        batch_tokens: Padded tokens in one forward and backward pass.

    Attributes:
        step: Optimiser steps taken so far.
        parameters: Trained weights by layer name.
    """

    def __init__(
        self,
        proxy: Proxy,
        schedule: ScheduleConfig,
        seed: int,
        total_steps: int,
        batch_tokens: int = GradientConfig().batch_tokens,
    ) -> None:
        self.proxy = proxy
        self.step = 0
        self.parameters: dict[str, nn.Parameter] = _weights(proxy)
        self._schedule = schedule
        self._seed = seed
        self._total = total_steps
        self._batch_tokens = batch_tokens
        self._scale = 1024.0 if proxy.dtype == torch.float16 else 1.0
        self._loss = TokenLoss(proxy.model, self._scale)
        choose_path(self._loss, proxy)
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the trained weights."""
        return state_hash(self.parameters)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to fit, in what JSON can hold."""
        schedule = self._schedule.model_dump(
            mode="json",
            include={"scope", "lora", "learning_rate", "weight_decay", "warmup_ratio", "scheduler", "batch_size"}
            | {"max_grad_norm"},
        )
        return {
            "schedule": schedule,
            "layers": layers_hash(self.proxy.layers),
            "seed": self._seed,
            "total_steps": self._total,
        }

    def train(
        self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray], step_from: int, shuffle_key: str
    ) -> TrainResult:
        """Go once over some examples, in an order of the seed's and the key's making.

        Args:
            ids: Token ids of each example, ``[t]``.
            masks: True where the token is a trained label, ``[t]``.
            step_from: Optimiser steps taken before; a check on the caller.
            shuffle_key: Names this training among those of the run.

        Raises:
            Diverged: A loss or gradient norm is not finite; the weights are those before that step.
            ResourceError: A batch doesn't fit into memory.
        """
        assert step_from == self.step
        begun = time.perf_counter()
        order = np.argsort(Stream(self._seed, shuffle_key, "training order").raw(len(ids)), kind="stable")
        losses: list[float] = []
        rate = 0.0
        with self._training():
            for first in range(0, len(order), self._schedule.batch_size):
                members = order[first : first + self._schedule.batch_size]
                rate = learning_rate(self._schedule, self.step, self._total)
                losses.append(self._step([ids[i] for i in members], [masks[i] for i in members], rate))
        tokens = sum(len(row) for row in ids)
        return TrainResult(len(losses), tuple(losses), tokens, time.perf_counter() - begun, rate)

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state by layer name and kind; a weight that has had no gradient yet has none."""
        states = ((name, self._optimizer.state.get(weight, {})) for name, weight in self.parameters.items())
        return {f"{name}.{kind}": state[kind] for name, state in states for kind in _MOMENTS if kind in state}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], step: int) -> None:
        """Go back to where :attr:`parameters` and :meth:`moments` were taken; names and shapes must fit."""
        assert weights.keys() == self.parameters.keys()
        self._optimizer.state.clear()
        for name, weight in self.parameters.items():
            weight.copy_(weights[name])
            found = {kind: moments[f"{name}.{kind}"] for kind in _MOMENTS if f"{name}.{kind}" in moments}
            if found:
                # AdamW counts its steps on the host.
                place = {"step": torch.device("cpu")}
                self._optimizer.state[weight] = {
                    kind: value.to(place.get(kind, weight.device)).clone() for kind, value in found.items()
                }
        self.step = step

    @torch.no_grad()
    def share(self, ranks: Ranks) -> bool:
        """Make all processes' weights and moments those of rank 0, bit for bit.

        On a CPU they are so without this; a GPU need not repeat itself.

        Returns:
            Whether they were equal before.
        """
        if ranks.world == 1:
            return True
        state = {**self.parameters, **self.moments()}
        equal = len(set(ranks.all_gather(state_hash(state)))) == 1
        if not equal:
            for _, tensor in sorted(state.items()):
                ranks.broadcast_tensor(tensor.data)
        return equal

    @contextmanager
    def _training(self) -> Iterator[None]:
        model = self.proxy.model
        model.train()
        for weight in self.parameters.values():
            weight.requires_grad_(True)
        try:
            yield
        finally:
            self._optimizer.zero_grad()
            model.requires_grad_(False)
            model.eval()

    def _step(self, ids: list[np.ndarray], masks: list[np.ndarray], rate: float) -> float:
        self._optimizer.zero_grad()
        total = 0.0
        with _seeded(self.proxy.device, int(Stream(self._seed, str(self.step), "dropout").raw(1)[0] >> np.uint64(1))):
            for members in plan_batches(np.array([len(row) for row in ids]), self._batch_tokens):
                total += self._backward([ids[i] for i in members], [masks[i] for i in members])
        loss = total / len(ids)
        for weight in self.parameters.values():
            if weight.grad is not None:
                weight.grad /= len(ids) * self._scale
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self._schedule.max_grad_norm)
        if not (math.isfinite(loss) and bool(torch.isfinite(norm))):
            raise Diverged(loss, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.step += 1
        return loss

    def _backward(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> float:
        batch = TokenBatch.build(ids, masks, self.proxy.device)
        try:
            return float(self._loss.backward(batch).sum())
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        raise ResourceError(
            f"Training on {batch.ids.numel()} padded tokens at once doesn't fit into memory; set "
            f"gradients.batch_tokens below {self._batch_tokens}, or a smaller data.max_length."
        )


def _weights(proxy: Proxy) -> dict[str, nn.Parameter]:
    """Weights of the scope, by layer name; those of stacked experts by the name of the stack."""
    found: dict[str, Any] = {}
    for module, site in proxy.scope.modules:
        assert site.projection is None
        found[proxy.layers[site.layer].name] = module.weight
    for experts in proxy.scope.experts:
        for sites, key in ((experts.up, experts.up_name), (experts.down, "down_proj")):
            if sites[0] is not None:
                found[proxy.layers[sites[0].layer].name.rpartition(".")[0]] = getattr(experts.module, key)
    return found


@contextmanager
def _seeded(device: torch.device, number: int) -> Iterator[None]:
    """Global random numbers of torch that start at ``number`` in the block, and are as they were after it."""
    cuda = [device.index or 0] if device.type == "cuda" else []
    before = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(cuda, device_type="cuda"):
        torch.default_generator.manual_seed(number)
        if cuda:
            with torch.cuda.device(cuda[0]):
                torch.cuda.manual_seed(number)
        try:
            if before is not None:
                torch.mps.manual_seed(number)
            yield
        finally:
            if before is not None:
                torch.mps.set_rng_state(before)
