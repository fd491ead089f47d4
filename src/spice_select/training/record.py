"""What a training was and what came of it: the content of ``training.json``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from spice_select.errors import StoreError
from spice_select.files import write_text
from spice_select.seals import FILES, opened, require_files, sealed

RECORD = "training.json"
REMEDY = "train again with --overwrite"
HELDOUT_ROWS = "the held-out rows"
"""Entry of the identity: SHA-256 of the rows themselves, whatever the files are called."""


class Entry(BaseModel):
    """Base of the parts of a record: frozen, and closed to unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainedSource(Entry):
    """One source of the pool.

    Attributes:
        name: Short name.
        hub: Id at the Hub, where it is one.
        revision: Commit of a Hub data set.
        rows: Rows read.
    """

    name: str
    hub: str | None = None
    revision: str | None = None
    rows: int


class SubsetRecord(Entry):
    """What was trained on.

    Attributes:
        run: Folder of the selection.
        method: Method that chose, as it stands in sentences; empty for the whole pool.
        settings: What it maximised or was set to.
        whole_pool: All usable rows were trained on, and not the picks.
        pool: Rows of the pool.
        usable: Rows of it that could be chosen.
        rows: Rows that were trained on.
        left_out: Rows that the model's tokenizer or template leaves without a response.
        response_tokens: Trained tokens in them.
        digest: SHA-256 over their token ids and masks, in the order of the pool.
        pool_fingerprint: SHA-256 of the contents of the pool's rows.
        read_from: The run's ``sources``, or its own ``data``.
        same_encoding: Whether tokenizer and template are those of the selection.
        template: Where the chat template comes from: ``tokenizer``, ``setting`` or ``plain``.
        information: Information of the picks, in nats.
        certificate: Share of the best possible information that is proven of them.
        sources: Where the pool came from.
    """

    run: str
    method: str
    settings: dict[str, Any] = {}
    whole_pool: bool
    pool: int
    usable: int
    rows: int
    left_out: int
    response_tokens: int
    digest: str
    pool_fingerprint: str | None = None
    read_from: Literal["sources", "data"]
    same_encoding: bool
    template: str
    information: float | None = None
    certificate: float | None = None
    sources: tuple[TrainedSource, ...] = ()

    @property
    def described(self) -> str:
        """The rows in a few words."""
        if self.whole_pool:
            return f"all {self.rows:,} usable rows of the pool"
        return f"{self.rows:,} of {self.pool:,} rows, chosen by {self.method}"


class TargetRecord(Entry):
    """The model that was trained.

    Attributes:
        name: Folder or Hub id.
        revision: Revision of a Hub id.
        dtype: Dtype of the weights.
        device: Where it was trained.
        weights: SHA-256 of the weights before the training.
        tokenizer: SHA-256 of vocabulary, merges, special tokens and chat template.
        local: Whether the name is that of a folder.
    """

    name: str
    revision: str | None = None
    dtype: str
    device: str
    weights: str
    tokenizer: str
    local: bool


class StepRecord(Entry):
    """One optimiser step.

    Attributes:
        step: Its number, from 1.
        loss: Mean loss of its trained tokens, in nats.
        lr: Learning rate.
        grad_norm: Norm of the gradient before it was cut.
    """

    step: int
    loss: float
    lr: float | None = None
    grad_norm: float | None = None


class LossRecord(Entry):
    """Losses of the held-out rows.

    Attributes:
        macro: Mean over the domains of the mean in each, in nats.
        micro: Mean over all rows.
        by_domain: Mean over the rows of each domain.
    """

    macro: float
    micro: float
    by_domain: dict[str, float]


class HeldOutRecord(Entry):
    """What the training did to the loss of rows that it did not see.

    Attributes:
        files: Files of the rows.
        digest: SHA-256 over token ids, masks and domains.
        domains: Rows by domain.
        trained_on: Rows of them that were trained on as well.
        before: Losses of the model as it came.
        after: Losses of the trained model.
    """

    files: tuple[str, ...]
    digest: str
    domains: dict[str, int]
    trained_on: int
    before: LossRecord
    after: LossRecord


class TrainRecord(Entry):
    """One training.

    Attributes:
        schema_version: Version of this layout.
        identity: All that the weights depend on, by name; another training in the same folder is told by it.
        mode: ``lora`` or ``full``.
        subset: What was trained on.
        model: What was trained.
        settings: The training section.
        seed: Of adapters, order of rows, and dropout.
        processes: Processes that shared each step.
        steps: Optimiser steps.
        tokens: Tokens passed through the model.
        seconds: Time of the training alone.
        first_loss: Loss of the first step, in nats.
        last_loss: Loss of the last.
        history: Every step.
        heldout: Loss of held-out rows; None where none were given.
        versions: Version of every library that matters, and of Python.
        files: SHA-256 of each file of the model, by its path; of a record of an earlier version, the names alone.
        keeps_checkpoints: Whether checkpoints were to stay beside the model; None in a record of an earlier version.
        command: Command that repeats it.
        warnings: What to know before the model is used.
    """

    schema_version: Literal[1] = 1
    identity: dict[str, Any]
    mode: Literal["lora", "full"]
    subset: SubsetRecord
    model: TargetRecord
    settings: dict[str, Any]
    seed: int
    processes: int
    steps: int
    tokens: int
    seconds: float
    first_loss: float | None
    last_loss: float | None
    history: tuple[StepRecord, ...]
    heldout: HeldOutRecord | None = None
    versions: dict[str, str] = {}
    files: dict[str, str] | tuple[str, ...]
    keeps_checkpoints: bool | None = None
    command: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> TrainRecord:
        """Read ``training.json``.

        Raises:
            StoreError: It is missing, no record, or of another version.
            StoreCorrupt: It is not what was written.
        """
        try:
            written = path.read_bytes()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StoreError(f"{path} cannot be read ({reason}); name the folder of a training.") from None
        content = opened(written, str(path), version=1, what="record of a training", remedy=REMEDY)
        try:
            return cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            field = f" (at {where})" if where else ""
            raise StoreError(f"{path} is no record of a training{field}; {REMEDY}.") from None

    def write(self, path: Path) -> None:
        """Write ``training.json`` with a checksum, whole or not at all.

        Raises:
            OutputError: It cannot be written.
            ResourceError: The disk is full.
        """
        write_text(path, sealed(json.loads(self.model_dump_json())))

    def verify(self, path: Path) -> None:
        """See whether the model's files are those that were written with this record.

        Args:
            path: The record.

        Raises:
            StoreCorrupt: One is missing or has changed.
        """
        require_files(path, {FILES: self.files}, remedy=REMEDY)

    @property
    def depends_on(self) -> dict[str, Any]:
        """The identity, with what records of an earlier version hold in another place."""
        held = {HELDOUT_ROWS: self.heldout.digest} if self.heldout is not None else {}
        return {**held, **self.identity}

    def describe(self, folder: Path) -> list[str]:
        """What the terminal says at the end.

        Args:
            folder: Where the model lies.
        """
        kind = "adapters" if self.mode == "lora" else "model"
        lines = [f"The trained {kind} {'is' if kind == 'model' else 'are'} in {folder}."]
        lines.append(
            f"Trained on {self.subset.described}: {self.steps:,} steps, {self.tokens:,} tokens, {self.seconds:,.1f} s."
        )
        if self.first_loss is not None and self.last_loss is not None:
            lines.append(f"Loss of the first step {self.first_loss:.4f}, of the last {self.last_loss:.4f}.")
        if self.heldout is not None:
            lines += _heldout_lines(self.heldout)
        model = self.model.name if not self.model.local else Path(self.model.name).name
        if self.mode == "lora":
            lines.append(f'Load it on {model} with: PeftModel.from_pretrained(base, "{folder}")')
        else:
            lines.append(f'Load it with: AutoModelForCausalLM.from_pretrained("{folder}")')
        files = self.heldout.files if self.heldout is not None else ("FILE",)
        held = "".join(f" --heldout {shlex.quote(file)}" for file in files)
        lines.append(
            f"Evaluate it with: spice-select evaluate {shlex.quote(str(folder))} --suite heldout{held}"
            f" --run {shlex.quote(self.subset.run)}"
        )
        return lines


def _heldout_lines(found: HeldOutRecord) -> list[str]:
    lines = [
        f"Held-out loss, mean of domains: {found.before.macro:.4f} before, {found.after.macro:.4f} after;"
        f" mean of rows: {found.before.micro:.4f} before, {found.after.micro:.4f} after."
    ]
    if len(found.domains) > 1:
        width = max(map(len, found.domains))
        lines += [
            f"  {name:<{width}}  {found.before.by_domain[name]:.4f} -> {found.after.by_domain[name]:.4f}"
            f"  ({count:,} rows)"
            for name, count in found.domains.items()
        ]
    return lines


def changed(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """Entries of two identities that differ, each in a few words; digests by their beginnings."""
    names = [name for name in dict.fromkeys([*earlier, *later]) if earlier.get(name) != later.get(name)]
    return [f"{name} was {_short(earlier.get(name))} and is now {_short(later.get(name))}" for name in names]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and len(value) == 64 else repr(value)
    return text[:12] if len(text) == 64 else text
