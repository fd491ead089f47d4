"""What a study plans, what each of its trainings came to, and the record of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spice_select.analysis.study_summary import Summary
from spice_select.errors import StoreError
from spice_select.files import write_text

SCHEMA_VERSION = 1
UNTRAINED = "untrained"
"""Budget of the outcome that is the model before any training."""
WHOLE = "100%"
"""Budget of the trainings on the whole pool."""

Equal = Literal["rows", "tokens", "steps"]
"""What the sets of one budget have as much of."""


class Finite(BaseModel):
    """Base of what a study keeps: frozen, closed to unknown fields, and every number finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Losses(Finite):
    """Loss on the held-out rows, in nats for each response token.

    Attributes:
        macro: Mean over the domains of the mean loss in each.
        micro: Mean over all rows.
        by_domain: Mean over the rows of each domain.
        rows: Loss of every held-out row, in file order.
    """

    macro: float
    micro: float
    by_domain: dict[str, float]
    rows: tuple[float, ...]


class Cost(Finite):
    """What one training took, and the selection before it.

    Attributes:
        selection_forward_tokens: Tokens that went forward through the proxy.
        selection_backward_tokens: Tokens that went backward through it.
        selection_seconds: Time of the selection.
        selection_flops: Floating-point operations of the selection.
        training_tokens: Tokens trained on, all epochs together.
        training_seconds: Time of the training.
        training_flops: Floating-point operations of the training.
    """

    selection_forward_tokens: int
    selection_backward_tokens: int
    selection_seconds: float
    selection_flops: float
    training_tokens: int
    training_seconds: float
    training_flops: float


class Outcome(Finite):
    """One finished training: one line of the ledger.

    Attributes:
        schema_version: Version of this layout.
        key: Digest of everything that the training depends on.
        arm: Label of the arm.
        seed: Seed of the choice, where it varies, and of the training.
        budget: As it was given; ``100%`` is the whole pool, ``untrained`` the model before any training.
        equal: What the sets of this budget have as much of.
        rows: Rows trained on.
        response_tokens: Their response tokens.
        tokens: All their tokens.
        steps: Optimiser steps.
        subset: Digest of the set.
        sources: Rows by source.
        first_loss: Training loss of the first step; None without one.
        train_loss: Mean training loss; None without one.
        losses: Loss on the held-out rows; None where it was not measured, or the training failed.
        suites: Metrics of benchmarks, by task and metric.
        cost: What it took.
        error: Why the training failed.
        written: Time, as ISO 8601.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    key: str
    arm: str
    seed: int
    budget: str
    equal: Equal
    rows: int
    response_tokens: int
    tokens: int
    steps: int
    subset: str
    sources: dict[str, int] = Field(default_factory=dict)
    first_loss: float | None = None
    train_loss: float | None = None
    losses: Losses | None = None
    suites: dict[str, dict[str, float]] = Field(default_factory=dict)
    cost: Cost
    error: str | None = None
    written: str


class Arm(Finite):
    """One way of choosing rows.

    Attributes:
        label: Its name in this study.
        method: Name of the method.
        settings: Settings of the method.
        overrides: Other settings that are its own, by dotted key.
        varies: What of the choice depends on the seed.
        summary: What it chooses by, in one line.
    """

    label: str
    method: str
    settings: dict[str, Any] = Field(default_factory=dict)
    overrides: dict[str, Any] = Field(default_factory=dict)
    varies: Literal["no", "draw", "training"]
    summary: str = ""


class StudyPlan(Finite):
    """What a study compares, and what all its trainings share.

    Attributes:
        data: Names of the sources of the pool.
        model: Name of the trained model.
        proxy: Name of the model that selects.
        rows: Rows of the pool that could be chosen.
        response_tokens: Their response tokens.
        arms: Ways of choosing.
        budgets: Budgets, the whole pool among them where it is trained on.
        equals: What sets of one budget have as much of; one table for each.
        seeds: Seeds.
        training: Settings of the training.
        heldout: Held-out rows by domain.
        heldout_rows: Domain of every held-out row, in file order; without it no interval over rows is given.
        fingerprints: Digests of pool, weights and held-out rows, by name.
        note: What to know of seeds and selection, in one sentence.
    """

    data: tuple[str, ...]
    model: str
    proxy: str
    rows: int
    response_tokens: int
    arms: tuple[Arm, ...]
    budgets: tuple[str, ...]
    equals: tuple[Equal, ...]
    seeds: tuple[int, ...]
    training: dict[str, Any]
    heldout: dict[str, int] = Field(default_factory=dict)
    heldout_rows: tuple[str, ...] = ()
    fingerprints: dict[str, str | None] = Field(default_factory=dict)
    note: str = ""


class Study(Finite):
    """The content of ``study.json``.

    Attributes:
        schema_version: Version of this layout.
        plan: What was planned.
        outcomes: Every finished training.
        untrained: Losses of the model before any training.
        summary: What the outcomes say.
        missing: Planned trainings without an outcome yet.
        versions: Versions of Python and the libraries.
        seconds: Time of this command.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    plan: StudyPlan
    outcomes: tuple[Outcome, ...]
    untrained: Losses | None
    summary: Summary
    missing: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Study:
        """Read the file.

        Raises:
            StoreError: It is missing or not what :meth:`write` writes.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise StoreError(f"{path} cannot be read ({reason}); run the study again.") from None
        except ValidationError:
            raise StoreError(f"{path} is no study of this version; run the study again.") from None
