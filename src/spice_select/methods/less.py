"""Rows whose training step helps the target most, by gradients along a short training (LESS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import Field

from spice_select.errors import DataError
from spice_select.methods.base import Choice, Method, Need, ranked
from spice_select.methods.inputs import Checkpoint, Inputs
from spice_select.selection.rows import Rows

_BLOCK_BYTES = 32 << 20
_NAMED = 8


class Less(Method):
    """Takes the rows whose Adam step points most in the direction that lowers the loss of a subtask of the target.

    A row's score is its influence on the subtask that it helps most, so that a row need not help them all.
    """

    name: ClassVar[str] = "less"
    summary: ClassVar[str] = (
        "how much a training step on the row would lower the loss of its best subtask of the target"
    )
    source: ClassVar[str] = "arXiv 2402.04333"
    cost: ClassVar[str] = "a warm-up on a share of the rows, and 1 backward pass a row and epoch of it"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CHECKPOINTS, Need.TARGET, Need.TRAINING})
    varies: ClassVar = "training"

    warmup_share: float = Field(default=0.05, gt=0, le=1)
    """Share of the usable rows that the warm-up trains on, drawn with the seed."""
    epochs: int = Field(default=4, ge=1, le=64)
    """Times that the warm-up goes over them; gradients are taken after each."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapters that are trained and whose gradients are taken."""
    lora_alpha: float = Field(default=64.0, gt=0)
    """Adapters are scaled by lora_alpha / lora_r."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of the adapters in the warm-up; gradients are taken without."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate of the warm-up; it falls linearly."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the warm-up's steps in which the learning rate rises."""
    batch_size: int = Field(default=16, ge=1)
    """Rows of one optimiser step."""
    dim: int = Field(default=8192, ge=1)
    """Numbers kept of each gradient."""

    def choose(self, inputs: Inputs) -> Choice:
        """Rows by their influence on the subtask that they help most; a row without a gradient has no score.

        Raises:
            DataError: No target example has a gradient.
        """
        assert inputs.checkpoints and inputs.target is not None
        names, influence = subtask_influence(inputs.checkpoints, inputs.target.subtasks)
        unknown = np.isnan(influence[:, 0])
        best = np.argmax(np.where(unknown[:, None], -np.inf, influence), axis=1)
        # Rows are float32: what differs beyond this is the order of summation, and equal rows must tie.
        scores = np.round(influence[np.arange(inputs.n), best], 12)
        notes = ()
        if missing := int((inputs.candidates & unknown).sum()):
            notes = (f"{missing:,} rows have a gradient of zero at a checkpoint, or none, and were left out.",)
        choice = ranked(
            inputs,
            scores,
            "influence on the best subtask (cosine)",
            notes=notes,
            dropped="no other row has a gradient at every checkpoint",
        )
        if len(names) < 2 or not len(choice):
            return choice
        return replace(choice, notes=(*notes, _counted(Counter(names[number] for number in best[choice.indices]))))


def subtask_influence(
    checkpoints: Sequence[Checkpoint], subtasks: Sequence[str]
) -> tuple[list[str], Float[np.ndarray, "n subtasks"]]:
    """Influence of every row on every subtask of the target (arXiv 2402.04333, sections 2 and 4.2).

    The influence on an example is the sum over the checkpoints of the learning rate times the cosine of the row's
    and the example's gradient, with learning rates that sum to 1; that on a subtask is the mean over its examples. As
    the mean of cosines with a row is one inner product with a mean, each row meets each subtask once.

    Args:
        checkpoints: At least one; rows of any length, which may differ between checkpoints.
        subtasks: Subtask of each target example, in any order and of any size.

    Returns:
        Names of the subtasks that have an example with a gradient at every checkpoint, in the order in which they are
        met first, and the influences, NaN for a row that has a zero or infinite gradient at a checkpoint.

    Raises:
        DataError: No target example has a gradient at every checkpoint.
    """
    assert all(checkpoint.target.shape[0] == len(subtasks) for checkpoint in checkpoints)
    known = np.all([_norms(checkpoint.target) > 0 for checkpoint in checkpoints], axis=0)
    if not known.any():
        raise DataError(
            "None of the target examples has a gradient other than zero at every checkpoint; give other examples."
        )
    names = list(dict.fromkeys(name for name, there in zip(subtasks, known, strict=True) if there))
    number = {name: place for place, name in enumerate(names)}
    members = np.zeros((len(names), len(subtasks)))
    for example, name in enumerate(subtasks):
        if known[example]:
            members[number[name], example] = 1.0
    members /= members.sum(axis=1, keepdims=True)
    weights = np.array([checkpoint.weight for checkpoint in checkpoints], dtype=np.float64)
    assert (weights > 0).all()
    weights /= weights.sum()
    influence = np.zeros((checkpoints[0].rows.shape[0], len(names)))
    for weight, checkpoint in zip(weights, checkpoints, strict=True):
        means = _means(checkpoint.target, members)
        for start, block in checkpoint.rows.blocks(_block(checkpoint.rows)):
            influence[start : start + len(block)] += weight * (_unit(block) @ means.T)
    return names, influence


def _means(rows: Rows, members: Float[np.ndarray, "subtasks m"]) -> Float[np.ndarray, "subtasks d"]:
    """Weighted sums of the normalised rows; rows of no weight may be anything."""
    total = np.zeros((len(members), rows.shape[1]))
    for start, block in rows.blocks(_block(rows)):
        share = members[:, start : start + len(block)]
        there = share.any(axis=0)
        total += share[:, there] @ _unit(block[there])
    return total


def _unit(block: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    """Rows over their norms in float64; NaN for a row that has no direction."""
    wide = np.asarray(block, dtype=np.float64)
    norms = _lengths(wide)
    with np.errstate(invalid="ignore"):
        return wide / np.where(norms > 0, norms, np.nan)[:, None]


def _norms(rows: Rows) -> Float[np.ndarray, " n"]:
    found = np.zeros(rows.shape[0])
    for start, block in rows.blocks(_block(rows)):
        found[start : start + len(block)] = _lengths(np.asarray(block, dtype=np.float64))
    return found


def _lengths(wide: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Norms of rows; NaN where a number is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return np.where(np.isfinite(norms), norms, np.nan)


def _block(rows: Rows) -> int:
    return max(1, _BLOCK_BYTES // (8 * rows.shape[1]))


def _counted(best: Counter[str]) -> str:
    shown = [f"{name} {count:,}" for name, count in best.most_common(_NAMED)]
    if len(best) > _NAMED:
        rest = sum(count for _, count in best.most_common()[_NAMED:])
        shown.append(f"{len(best) - _NAMED} other subtasks {rest:,}")
    return f"Chosen rows by the subtask that they help most: {', '.join(shown)}."
