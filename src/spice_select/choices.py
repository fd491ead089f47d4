"""Choices of several methods on disk: each whole or absent, and known again by all that it depends on."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from spice_select.analysis.contest import ChoiceCost
from spice_select.features.bench import Bench
from spice_select.features.target import TargetRows
from spice_select.files import make_folder, write_text
from spice_select.gradients.store import GradientStore
from spice_select.methods import Choice, Need
from spice_select.methods.specs import Spec
from spice_select.pool import excluded_rows, rows_in_hand
from spice_select.seals import kept, sealed
from spice_select.selection.budget import Budget
from spice_select.selection.result import StopReason

_TRAINS = frozenset({Need.CHECKPOINTS, Need.TRAINING})
_MEASURED = frozenset(Need) - {Need.TARGET}


class SavedChoice(BaseModel):
    """What a method chose under one seed: the content of ``methods/LABEL/seed-S.json``.

    Attributes:
        schema_version: Version of this layout.
        label: The method's name in the comparison.
        method: Name of the method.
        settings: All its settings.
        seed: Seed of its random choices.
        identity: Digest of everything that the choice depends on.
        indices: Row numbers in order of choice.
        scores: What each was chosen by; None where that is no finite number.
        score_name: What the scores are.
        stop_reason: Why the choice ended.
        warnings: What to act on.
        notes: What to know.
        cost: What it took.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    label: str
    method: str
    settings: dict[str, Any]
    seed: int
    identity: str
    indices: tuple[int, ...]
    scores: tuple[float | None, ...]
    score_name: str
    stop_reason: StopReason
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    cost: ChoiceCost

    @classmethod
    def of(cls, spec: Spec, seed: int, identity: str, choice: Choice, cost: ChoiceCost) -> SavedChoice:
        """A choice as it is kept."""
        return cls(
            label=spec.label,
            method=spec.name,
            settings=spec.method.model_dump(mode="json"),
            seed=seed,
            identity=identity,
            indices=tuple(np.asarray(choice.indices, dtype=np.int64).tolist()),
            scores=tuple(
                score if np.isfinite(score) else None for score in np.asarray(choice.scores, np.float64).tolist()
            ),
            score_name=choice.score_name,
            stop_reason=choice.stop_reason,
            warnings=tuple(choice.warnings),
            notes=tuple(choice.notes),
            cost=cost,
        )


class Choices:
    """The folder of all choices of a comparison.

    Args:
        folder: ``methods`` of the comparison's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, label: str, seed: int) -> Path:
        """Where a choice lies."""
        return self.folder / label / f"seed-{seed}.json"

    def read(self, label: str, seed: int, identity: str) -> SavedChoice | None:
        """The choice that is there, if it is whole and of these very settings, rows and model."""
        try:
            found = SavedChoice.model_validate_json(json.dumps(kept(self.path(label, seed))))
        except ValidationError:
            return None
        return found if found.identity == identity and found.label == label and found.seed == seed else None

    def write(self, choice: SavedChoice) -> None:
        """Keep a choice, whole or not at all.

        Raises:
            OutputError: It cannot be written.
            ResourceError: The disk is full.
        """
        path = self.path(choice.label, choice.seed)
        make_folder(path.parent)
        write_text(path, sealed(json.loads(choice.model_dump_json())))


def choice_identity(
    spec: Spec,
    seed: int,
    bench: Bench,
    budget: Budget,
    store: GradientStore | None,
    target: TargetRows | None,
) -> str:
    """Digest of everything that a choice depends on: method, settings, seed, budget, rows, and what was measured how.

    Args:
        spec: The method.
        seed: Seed of its random choices.
        bench: The pool and the proxy.
        budget: The budget, resolved.
        store: The gradients, where there are any.
        target: The target examples, where there are any.
    """
    config, pool, needs = bench.config, bench.pool, spec.method.required()
    content: dict[str, Any] = {
        "method": spec.identity,
        "seed": None if spec.method.varies == "no" and not config.selection.approximate else seed,
        "budget": [budget.rows, budget.tokens],
        "selection": config.selection.identity(),
        "rows": pool.rows.fingerprint,
        "examples": pool.encoded.digest,
        "candidates": _sha256((pool.encoded.usable & ~excluded_rows(config, pool)).tobytes()),
        "in_hand": rows_in_hand(config, pool),
        "version": _version(),
    }
    if needs & _MEASURED:
        content["proxy"] = bench.identity()
    if Need.GRADIENTS in needs and store is not None:
        content["gradients"] = [store.manifest.fingerprint, dict(store.manifest.sources)]
    if Need.EMBEDDINGS in needs:
        content["embeddings"] = config.embeddings.model_dump(mode="json")
    if needs & _TRAINS:
        content["gradient_settings"] = config.gradients.model_dump(mode="json", exclude={"shard_rows"})
        content["schedule"] = config.schedule.model_dump(mode="json", exclude={"tracker", "gram_bytes", "keep_gram"})
    if Need.TARGET in needs and target is not None:
        content["target"] = [target.encoded.digest, list(target.subtasks)]
    return _sha256(json.dumps(content, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _version() -> str:
    try:
        return version("spice-select")
    except PackageNotFoundError:
        return ""
