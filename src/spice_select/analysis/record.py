"""What a run did and what came of it: the content of ``selection.json``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spice_select.analysis.certificate import Certificate
from spice_select.analysis.summary import Summary
from spice_select.errors import StoreError
from spice_select.files import write_text
from spice_select.seals import opened, sealed

SCHEMA_VERSION = 1
REMEDY = "select again to write a new one"
SPICE = "spice"
"""Name of the method of runs that name none."""
SCORE_COLUMN = "spice_score"
"""Column of the output that has the score of every pick."""


class Entry(BaseModel):
    """Base of the parts of a record: frozen, and closed to unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectiveRecord(Entry):
    """What was maximised, or, for a method that maximises something else, under which settings F was measured.

    Attributes:
        fisher: Form of the information: ``exact`` or a diagonal one.
        alpha: Fisher scale a, a number also where ``auto`` was asked for.
        alpha_asked: What was asked for.
        conflict_weight: Weight of the conflict.
        penalty: ``absolute`` or ``relative``.
        reference: What a gradient conflicts with: the mean of the picks (``selected``) or of the pool.
        hinge: Cosine below which there is conflict, a number also where a quantile was asked for.
        normalize: Normalisation of the rows.
    """

    fisher: str
    alpha: float
    alpha_asked: float | str
    conflict_weight: float
    penalty: str
    reference: str
    hinge: float
    normalize: str


class BudgetRecord(Entry):
    """How much was to be chosen.

    Attributes:
        asked: The setting as given.
        rows: Rows that it comes to.
        tokens: Response tokens that it comes to, for a token budget.
        stop_ratio: Stop ratio, if one was set.
        groups: Column whose values shared the budget, if one was set.
        initial: Rows in hand before the first pick.
        excluded: Rows left out by number.
    """

    asked: int | float | str | None
    rows: int | None
    tokens: int | None = None
    stop_ratio: float | None = None
    groups: str | None = None
    initial: int = 0
    excluded: int = 0


class SourceRecord(Entry):
    """One source of rows.

    Attributes:
        name: Unique name, as the column ``spice_source`` has it.
        origin: File, folder or Hub id.
        revision: Commit of a Hub data set.
        format: Format the rows came in.
        rows: Rows read.
        fingerprint: SHA-256 of their content.
        columns: How the columns were read, in one line.
    """

    name: str
    origin: str
    revision: str | None = None
    format: str
    rows: int
    fingerprint: str
    columns: str = ""


class ModelRecord(Entry):
    """The proxy.

    Attributes:
        name: Folder or Hub id.
        revision: Revision of a Hub id.
        dtype: Dtype of weights and passes.
        device: Where the gradients were taken.
        coverage: Share of the weights outside the embeddings whose gradients were taken.
        summary: Lines that describe it.
    """

    name: str
    revision: str | None = None
    dtype: str
    device: str = ""
    coverage: float | None = None
    summary: tuple[str, ...] = ()


class PoolRecord(Entry):
    """One pool of a schedule.

    Attributes:
        pool: Its number, from 0.
        step: Optimiser steps that the proxy had been trained for.
        offered: Rows in it.
        picks: Rows chosen from it.
        loss: Mean loss of the offered rows before any further training, in nats.
        information: Information of the picks within the pool, in nats.
        opposing_picks: Share of the picks in conflict when they were picked.
        opposing_pairs: Share of the pairs of offered rows whose gradients oppose each other.
        changed_by_penalty: Picks that the penalty changed, on the same gradients.
        certificate: Proven share of the best possible information of as many rows of this pool.
        alpha: Fisher scale a.
        stop_reason: Why it ended.
        first_gain_outlier: Whether its first gain stands far above those that follow.
    """

    pool: int
    step: int
    offered: int
    picks: int
    loss: float | None
    information: float
    opposing_picks: float
    opposing_pairs: float | None = None
    changed_by_penalty: int | None = None
    certificate: float | None = None
    alpha: float | None = None
    stop_reason: str
    first_gain_outlier: bool = False


class TrainingRecord(Entry):
    """One training of the proxy.

    Attributes:
        after: Pools that were done; 0 for the warm-up.
        examples: Rows that it was trained on.
        steps: Optimiser steps.
        loss: Mean loss over these steps, in nats.
        learning_rate: Learning rate of the last step.
    """

    after: int
    examples: int
    steps: int
    loss: float
    learning_rate: float


class ScheduleRecord(Entry):
    """How the proxy was trained while rows were selected.

    Attributes:
        kind: ``fixed`` (one checkpoint, after a warm-up) or ``pools``.
        gram: How the inner products of a pool were formed.
        offered: Rows that were offered.
        kept: Share of them that was picked.
        steps: Optimiser steps in all.
        trainings: The warm-up and every training after it.
        pools: One line a pool.
    """

    kind: str
    gram: str = ""
    offered: int = 0
    kept: float = 0.0
    steps: int = 0
    trainings: tuple[TrainingRecord, ...] = ()
    pools: tuple[PoolRecord, ...] = ()

    @property
    def outlying(self) -> tuple[int, int] | None:
        """Pools whose first gain stands far above their next, and all with picks; None without pools."""
        if self.kind != "pools":
            return None
        picked = [pool for pool in self.pools if pool.picks]
        return sum(pool.first_gain_outlier for pool in picked), len(picked)

    def describe(self) -> list[str]:
        """The schedule in a few lines."""
        lines = []
        if self.kind == "pools":
            lines.append(
                f"{self.offered:,} rows were offered in {len(self.pools):,} pools, and {self.kept:.1%} of them kept;"
                f" inner products {self.gram}."
            )
            known = sorted(pool.certificate for pool in self.pools if pool.certificate is not None)
            if known:
                lines.append(
                    f"Within each pool the picks hold at least {100 * known[0]:.1f}% (median"
                    f" {100 * known[len(known) // 2]:.1f}%) of the Fisher information that as many of its rows could"
                    " hold (proven for this run)."
                )
        if self.trainings:
            first, last = self.trainings[0], self.trainings[-1]
            losses = f"loss {first.loss:.3f}" + (f", at last {last.loss:.3f}" if last is not first else "")
            lines.append(f"The proxy was trained for {self.steps:,} optimiser steps on the way: {losses}.")
        else:
            lines.append("The proxy was not trained on the way: there were no more pools than schedule.interval.")
        return lines


class PassRecord(Entry):
    """What one measurement took of the model, over all runs that worked on it.

    Attributes:
        what: What was measured.
        forwards: Examples that went forward through the model, each time counted.
        backwards: Examples that went backward through it.
        tokens: Tokens of the forward passes, padding aside.
        backward_tokens: Tokens of the backward passes.
        seconds: Time.
    """

    what: str
    forwards: int = 0
    backwards: int = 0
    tokens: int = 0
    backward_tokens: int = 0
    seconds: float = 0.0

    def describe(self) -> str:
        """The passes in a few words."""
        ways = [
            f"{count:,} examples {way} ({tokens:,} tokens)"
            for way, count, tokens in (
                ("forward", self.forwards, self.tokens),
                ("backward", self.backwards, self.backward_tokens),
            )
            if count
        ]
        return ", ".join(ways) or "no pass of the model"


class MethodRecord(Entry):
    """The method that chose.

    Attributes:
        name: Its name on the command line.
        settings: Its own settings, by name.
        summary: What it maximises, in one line.
        source: Paper that it is from.
        score: What the score of a pick is, in a few words.
        passes: What its measurements took of the model.
    """

    name: str
    settings: dict[str, Any] = {}
    summary: str = ""
    source: str = ""
    score: str = ""
    passes: tuple[PassRecord, ...] = ()

    @property
    def label(self) -> str:
        """The name as it stands in titles and sentences."""
        return {SPICE: "SPICE", "spice_plus": "SPICE+"}.get(self.name, self.name)

    @property
    def origin(self) -> str:
        """The paper, a bare number at arXiv as one; empty where there is none."""
        return f"arXiv {self.source}" if re.fullmatch(r"\d{4}\.\d{4,5}(v\d+)?", self.source) else self.source

    def describe(self) -> list[str]:
        """What the terminal says of it."""
        lines = [f"Score of a row ({SCORE_COLUMN}): {self.score}."] if self.score else []
        if self.passes:
            lines.append(
                "Passes of the model: " + "; ".join(f"{one.what}: {one.describe()}" for one in self.passes) + "."
            )
        return lines


class Fingerprints(Entry):
    """Hashes of everything that the picks depend on; None where there was no such thing."""

    rows: str | None = None
    encoded: str | None = None
    weights: str | None = None
    tokenizer: str | None = None
    template: str | None = None
    sketch: str | None = None


class SelectionRecord(Entry):
    """One run.

    Attributes:
        schema_version: Version of this layout.
        n: Rows read.
        usable: Rows that could be chosen.
        k: Rows chosen.
        objective: What was maximised, or under which settings F was measured; None without gradients.
        budget: How much was to be chosen.
        information: F of the picks, in nats; None without gradients.
        certificate: What the picks are proven to hold; None for a diagonal form, and without gradients.
        certificate_sentence: The same in words.
        stop_reason: Why the run ended.
        summary: Picks against pool, with the activity of the conflict penalty.
        loop: Loop that maximised the information; empty where the method maximises something else.
        sampling_epsilon: Expected shortfall of the stochastic loop; None where every candidate was looked at.
        partitions: Partitions of a first round; 1: there was none.
        timings: Seconds by stage.
        seed: Seed of the run.
        preset: Preset laid under the settings.
        sketch: Sketch of the gradients, in words.
        versions: Version of every library that matters, and of Python.
        model: The proxy; None where no model was run.
        fingerprints: What the picks depend on.
        sources: Where the rows came from.
        schedule: How the proxy was trained, where it was.
        method: The method that chose; None: SPICE, as in all records that were written before there were others.
        gradients: Folder of the gradients where it is not the run's own; None where it is, or where none were kept.
        notes: What was found while rows were read and encoded, in plain sentences.
        warnings: Everything the user should know before training on the picks, the summary's warnings included.
        files: SHA-256 of the files beside the record that later commands take the picks from.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    n: int = Field(ge=0)
    usable: int = Field(ge=0)
    k: int = Field(ge=0)
    objective: ObjectiveRecord | None
    budget: BudgetRecord
    information: float | None
    certificate: Certificate | None = None
    certificate_sentence: str | None = None
    stop_reason: str
    summary: Summary
    loop: str
    sampling_epsilon: float | None = None
    partitions: int = 1
    timings: dict[str, float] = {}
    seed: int = 0
    preset: str = ""
    sketch: str = ""
    versions: dict[str, str] = {}
    model: ModelRecord | None = None
    fingerprints: Fingerprints = Fingerprints()
    sources: tuple[SourceRecord, ...] = ()
    schedule: ScheduleRecord | None = None
    method: MethodRecord | None = None
    gradients: str | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    files: dict[str, str] = {}

    @property
    def shortcuts(self) -> list[str]:
        """What kept the picks from being those of the exact greedy, in sentences; empty where nothing did."""
        found = []
        if self.partitions > 1:
            found.append(
                f"The rows were dealt to {self.partitions:,} partitions, and the picks of each were the pool of a "
                "second round; the exact picks may be others."
            )
        if self.sampling_epsilon is not None:
            found.append(
                "Each pick is the best of a random sample of the candidates, for an expected shortfall of "
                f"{self.sampling_epsilon:g}; the exact picks may be others."
            )
        return found

    @property
    def maximised(self) -> bool:
        """Whether the picks maximise information, rather than being measured by it or not at all."""
        return self.method is None or bool(self.loop)

    @property
    def label(self) -> str:
        """Name of the method as it stands in titles and sentences."""
        return "SPICE" if self.method is None else self.method.label

    @property
    def prefixes(self) -> bool:
        """Whether every prefix of the picks is known to be the selection of a smaller budget."""
        pools = self.schedule is not None and self.schedule.kind == "pools"
        return self.maximised and not pools and self.budget.groups is None and self.budget.tokens is None

    def gradients_of(self, own: Path) -> Path:
        """Where the gradients of the run lie, if they are still there; ``own`` is the place in its own folder."""
        elsewhere = None if self.gradients is None else Path(self.gradients)
        return elsewhere if elsewhere is not None and elsewhere.is_dir() and not own.is_dir() else own

    def to_json(self) -> str:
        """Indented JSON that :meth:`from_json` reads back to an equal record; it ends with a checksum of all before."""
        return sealed(json.loads(self.model_dump_json()))

    @classmethod
    def from_json(cls, text: str | bytes, *, origin: str = "selection.json") -> SelectionRecord:
        """Read a record; of one that an earlier version has written without a checksum, only the form is checked.

        Raises:
            StoreError: No record, or one of another version.
            StoreCorrupt: It is not what was written.
        """
        content = opened(text, origin, version=SCHEMA_VERSION, what="record of a run", remedy=REMEDY)
        try:
            return cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            field = f" (at {where})" if where else ""
            raise StoreError(f"{origin} is no record of a run{field}; {REMEDY}.") from None

    def write(self, path: Path) -> None:
        """Write ``selection.json``, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> SelectionRecord:
        """Read ``selection.json``.

        Raises:
            StoreError: It is missing, or no record.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StoreError(f"{path} cannot be read ({reason}); name the folder of a run.") from None
        return cls.from_json(content, origin=str(path))
