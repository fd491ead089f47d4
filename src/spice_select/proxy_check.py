"""Whether one model may choose rows for another: both measure the same sample, and their gradients are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict

from spice_select.analysis.agreement import Agreement, compare_gradients
from spice_select.analysis.geometry import Geometry
from spice_select.config import ModelConfig, RunConfig
from spice_select.data.contamination import contaminated
from spice_select.data.encode import encode_conversations
from spice_select.data.encoded import Example
from spice_select.data.row_numbers import read_row_numbers
from spice_select.data.schema import Schema, detect_schemas, to_conversation
from spice_select.data.sources import RowSet, load_rows
from spice_select.errors import ConfigError, DataError
from spice_select.gradients.proxy import load_tokenizer
from spice_select.proxy_gradients import Measured, MeasuredModel, measure_model
from spice_select.reporter import Reporter
from spice_select.selection import Selection, select_gram
from spice_select.selection.budget import resolve_budget
from spice_select.selection.options import Options

SAMPLE = 128
"""Rows compared unless told otherwise."""
LEAST_ROWS = 8


class ProxyCheck(BaseModel):
    """How well the proxy's gradients stand for the target's.

    Attributes:
        proxy: The model that would choose.
        target: The model that it would choose for.
        sampled: Row numbers that were compared.
        asked: Rows that were asked for.
        budget: Budget of the selections.
        settings: Settings of the selections.
        agreement: The numbers and the verdict.
        notes: What the numbers leave out, in plain sentences.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    proxy: MeasuredModel
    target: MeasuredModel
    sampled: tuple[int, ...]
    asked: int
    budget: int | float | str
    settings: dict[str, Any]
    agreement: Agreement
    notes: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """Lines for the terminal, the verdict last."""
        lines = [
            f"{role} {model.name}: {model.gradient_values:,} gradient values, inner products {model.method}"
            for role, model in (("Proxy ", self.proxy), ("Target", self.target))
        ]
        count = self.agreement
        lines.append(
            f"{count.rows:,} rows; the proxy chooses {count.proxy_picks:,} of them, the target {count.target_picks:,}"
        )
        return [*lines, *self.notes, *count.describe()]


def check_proxy(
    config: RunConfig,
    target: str,
    reporter: Reporter,
    *,
    sample: int = SAMPLE,
    budget: int | float | str = "10%",
) -> ProxyCheck:
    """Measure how well a proxy's gradients stand for a target's on a seeded sample of the rows.

    One model is in memory at a time. The proxy is measured twice: as it is, and with the weights of a network before
    training, which shows what any network of its shape gets from the rows alone.

    Args:
        config: Rows, proxy (``model.name``), gradients and selection; its dtype and device hold for both models.
        target: Folder or Hub id of the model that is to be trained.
        reporter: Hears the progress.
        sample: Rows to compare; all usable ones where there are fewer.
        budget: Budget of the selections, of the sample.

    Raises:
        ConfigError: A setting that is missing or does not fit.
        DataError: Rows that cannot be read, or fewer than 8 that both models can use.
        ModelError: A model that cannot be read or used.
    """
    _require(config, target, sample)
    Options(**_selection_settings(config)).check()
    notes = _left_out(config)
    models = (config.model, config.model.model_copy(update={"name": target, "revision": None, "adapter": None}))
    numbers, examples = _sample(config, models, sample, reporter)
    if len(numbers) < sample:
        notes.append(
            f"Both models can use {len(numbers):,} rows, fewer than the {sample:,} asked for: all were compared."
        )
    resolve_budget(budget, len(numbers), len(numbers), stops=config.selection.stop_ratio is not None)
    memory = config.schedule.gram_bytes
    reporter.stage("Proxy")
    first, blank = measure_model(
        models[0], config.gradients, examples[0], reporter, memory=memory, untrained_seed=config.seed
    )
    reporter.stage("Target")
    second, _ = measure_model(models[1], config.gradients, examples[1], reporter, memory=memory)
    finite = np.isfinite(np.diagonal(first.gram)) & np.isfinite(np.diagonal(second.gram))
    if not finite.all():
        row = numbers[int(np.argmin(finite))]
        notes.append(
            f"{int((~finite).sum()):,} rows, first row {row}, were left out: a gradient of theirs is no number."
        )
        _require_rows(int(finite.sum()))
    reporter.stage("Comparison")

    def side(measured: Measured) -> Geometry:
        gram = measured.gram[np.ix_(finite, finite)]
        return Geometry(gram, _choose(gram, config, budget, measured.tokens[finite]))

    usable = blank is not None and bool(np.isfinite(blank.gram[np.ix_(finite, finite)]).all())
    return ProxyCheck(
        proxy=first.model,
        target=second.model,
        sampled=tuple(numbers[finite].tolist()),
        asked=sample,
        budget=budget,
        settings=_selection_settings(config),
        agreement=compare_gradients(
            side(first), side(second), side(blank) if blank is not None and usable else None, seed=config.seed
        ),
        notes=tuple(notes),
    )


def _require(config: RunConfig, target: str, sample: int) -> None:
    if not any(config.data.sources):
        raise ConfigError(
            "No data was named; give files, folders or Hub ids, such as 'spice-select proxy-check rows.jsonl'."
        )
    if not config.model.name:
        raise ConfigError("No proxy model was named; give a folder or Hub id with --proxy.")
    if not target:
        raise ConfigError("No target model was named; give a folder or Hub id with --target.")
    if sample < LEAST_ROWS:
        raise ConfigError(f"--sample cannot be {sample}; give {LEAST_ROWS} rows at least.")
    if config.gradients.lora is not None and config.gradients.lora.adapter is not None:
        raise ConfigError(
            f"Setting 'gradients.lora.adapter' cannot be '{config.gradients.lora.adapter}' here, as no adapter "
            "fits two models; set model.adapter, which is merged into the proxy alone."
        )


def _require_rows(count: int) -> None:
    if count < LEAST_ROWS:
        raise DataError(
            f"Only {count} rows are usable under both models, and a comparison needs {LEAST_ROWS}; name more rows."
        )


def _left_out(config: RunConfig) -> list[str]:
    """Settings of the selection that have no part in the comparison."""
    settings = config.selection
    named = {
        "selection.quotas": settings.quotas is not None,
        "selection.initial": settings.initial is not None,
        f"selection.fisher={settings.fisher}": settings.fisher != "exact",
    }
    return [f"{name} has no part in this comparison." for name, there in named.items() if there]


def _selection_settings(config: RunConfig) -> dict[str, Any]:
    names = ("alpha", "conflict_weight", "penalty", "reference", "hinge", "normalize", "stop_ratio", "robust_stop")
    return {name: getattr(config.selection, name) for name in (*names, "per_token")}


def _choose(
    gram: Float[np.ndarray, "n n"], config: RunConfig, budget: int | float | str, lengths: Int[np.ndarray, " n"]
) -> Selection:
    return select_gram(gram, budget, lengths=lengths, **_selection_settings(config))


def _sample(
    config: RunConfig, models: Sequence[ModelConfig], size: int, reporter: Reporter
) -> tuple[Int[np.ndarray, " n"], tuple[list[Example], ...]]:
    """Rows at random that every model can use, in their order, and what each makes of them."""
    reporter.stage("Rows")
    rows = load_rows(config.data.sources, split=config.data.split, limit=config.data.limit)
    schemas = detect_schemas(rows, config.data.columns)
    for line in rows.notes:
        reporter.note(line)
    for source, schema in zip(rows.sources, schemas, strict=True):
        reporter.note(f"{source.name}: {source.rows:,} rows; {schema.describe()}")
    kept = _kept(config, rows, schemas)
    order = np.random.default_rng(config.seed).permutation(np.flatnonzero(kept))
    tokenizers = [load_tokenizer(model) for model in models]
    found: dict[int, tuple[Example, ...]] = {}
    # Encoded as far as needed: a sample of a large pool should not cost a pass over it.
    step = max(64, 2 * size)
    for start in range(0, len(order), step):
        part = order[start : start + step]
        chosen = rows.subset(part)
        talks = [to_conversation(row, schemas[int(s)]) for row, s in zip(chosen, chosen.source_ids, strict=True)]
        encoded = [encode_conversations(talks, t, config.data, loss=config.gradients.loss) for t in tokenizers]
        for at in np.flatnonzero(np.logical_and.reduce([each.usable for each in encoded])):
            found[int(part[at])] = tuple(each.example(int(at)) for each in encoded)
            if len(found) == size:
                break
        if len(found) == size:
            break
    _require_rows(len(found))
    numbers = sorted(found)
    reporter.note(f"{len(numbers):,} of {len(rows):,} rows are compared.")
    return np.array(numbers), tuple([found[number][m] for number in numbers] for m in range(len(models)))


def _kept(config: RunConfig, rows: RowSet, schemas: Sequence[Schema]) -> Bool[np.ndarray, " rows"]:
    """Rows that no setting leaves out."""
    kept = np.ones(len(rows), dtype=bool)
    if config.selection.exclude is not None:
        kept[read_row_numbers(config.selection.exclude, len(rows), field="selection.exclude")] = False
    if config.data.contamination:
        kept &= ~contaminated(rows, schemas, config.data.contamination).mask
    return kept
