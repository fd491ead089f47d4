"""The rows of a finished run as a model is trained on them: the selection's own template and mask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from spice_select.analysis.record import SelectionRecord
from spice_select.config import RunConfig
from spice_select.data.encode import encode_conversations
from spice_select.data.encoded import Encoded, Example
from spice_select.data.hub import parse_hub_id
from spice_select.data.rows import RowSet
from spice_select.data.schema import Schema, detect_schemas, to_conversation
from spice_select.data.sources import load_rows
from spice_select.data.templates import PLAIN_TEMPLATE, TemplateSet, leading_token
from spice_select.errors import DataError, StoreError, StoreMismatch
from spice_select.export.chosen import trained_columns
from spice_select.export.tables import read_chosen
from spice_select.features.target import encode_as
from spice_select.gradients.identity import tokenizer_hash
from spice_select.pool import excluded_rows, read_pool
from spice_select.reporter import Clock, Reporter
from spice_select.run_folder import RunFolder
from spice_select.training.record import SubsetRecord, TrainedSource
from spice_select.training.sft import trainable

_INDEX = "spice_index"
_BOS = "{{ bos_token }}"


@dataclass(frozen=True, eq=False)
class Subset:
    """Rows to train on.

    Attributes:
        examples: Token ids and masks, in the order of the pool; each has something to learn from.
        encoded: All that were offered, those included that cannot be trained.
        record: What they are.
    """

    examples: tuple[Example, ...]
    encoded: Encoded
    record: SubsetRecord


def read_subset(
    run: RunFolder, config: RunConfig, tokenizer: Any, proxy: str, reporter: Reporter, *, whole_pool: bool
) -> Subset:
    """Read a run's rows and encode them for the model that is trained.

    The rows come from the run's sources, as they were when they were chosen; where these are not at hand, those of the
    picks from the run's own ``data`` folder, with a warning.

    Args:
        run: The run.
        config: Its settings, with the model that is trained in place of the proxy; the data section and the loss make
            the tokens and the mask.
        tokenizer: Tokenizer of the model that is trained.
        proxy: Name of the model that the run was made with.
        reporter: Hears what was found.
        whole_pool: Take all usable rows, and not the picks.

    Raises:
        StoreError: There is no finished selection, or it cannot be read.
        StoreMismatch: The whole pool is wanted, and the sources no longer hold it.
        DataError: The whole pool is wanted and cannot be read, or no row has a response for this model.
    """
    run.require_finished()
    record = SelectionRecord.read(run.record)
    read_from: Literal["sources", "data"] = "sources"
    if whole_pool:
        encoded = _whole(config, record, reporter)
    else:
        encoded, read_from = _picks(run, config, record, tokenizer, reporter)
    examples = tuple(trainable([encoded.example(int(index)) for index in np.flatnonzero(encoded.usable)]))
    if not examples:
        raise DataError(
            f"None of the {len(encoded):,} rows has a response that {config.model.name} could learn from; choose other "
            "rows, or set data.chat_template."
        )
    left_out = 0 if whole_pool else len(encoded) - len(examples)
    same = _same_encoding(record, encoded, tokenizer, config.model.name == proxy)
    template = encoded.stats.template
    reporter.note(_template_sentence(same, template, config))
    found = SubsetRecord(
        run=str(run.path.absolute()),
        method="" if whole_pool else record.label,
        settings={} if whole_pool else _settings(record),
        whole_pool=whole_pool,
        pool=record.n,
        usable=record.usable,
        rows=len(examples),
        left_out=left_out,
        response_tokens=sum(int(one.labels_mask[1:].sum()) for one in examples),
        digest=examples_digest(examples),
        pool_fingerprint=record.fingerprints.rows,
        read_from=read_from,
        same_encoding=same,
        template=template,
        information=None if whole_pool else record.information,
        certificate=None if whole_pool or record.certificate is None else record.certificate.value,
        sources=tuple(
            TrainedSource(
                name=source.name,
                hub=_hub_id(source.origin) if source.format == "hub" else None,
                revision=source.revision,
                rows=source.rows,
            )
            for source in record.sources
        ),
    )
    reporter.note(
        f"{found.described[:1].upper()}{found.described[1:]}: {found.response_tokens:,} response tokens of "
        f"{sum(len(one.input_ids) for one in examples):,}."
    )
    if left_out:
        reporter.warn(f"{left_out:,} of the {len(encoded):,} chosen rows have no response for this model's template.")
    return Subset(examples, encoded, found)


def examples_digest(examples: Sequence[Example]) -> str:
    """SHA-256 over ids and masks, in order."""
    return hashlib.sha256(b"".join(example.digest for example in examples)).hexdigest()


def used_template(tokenizer: Any, chosen: str | None) -> Any:
    """The chat template that the rows were rendered by, as transformers' tokenizers keep it.

    Args:
        tokenizer: The tokenizer as it came.
        chosen: ``data.chat_template``.
    """
    templates = TemplateSet(tokenizer, chosen)
    if templates.origin == "tokenizer":
        return tokenizer.chat_template
    if templates.origin == "setting":
        return templates.pick(None).source
    # The plain template writes a beginning-of-sequence token only where the tokenizer does by itself.
    return PLAIN_TEMPLATE if leading_token(tokenizer) else PLAIN_TEMPLATE.removeprefix(_BOS)


def _whole(config: RunConfig, record: SelectionRecord, reporter: Reporter) -> Encoded:
    pool = read_pool(config, reporter, Clock())
    _require_same_rows(pool.rows, record, config)
    return pool.encoded.with_excluded(excluded_rows(config, pool))


def _picks(
    run: RunFolder, config: RunConfig, record: SelectionRecord, tokenizer: Any, reporter: Reporter
) -> tuple[Encoded, Literal["sources", "data"]]:
    reporter.stage("Rows")
    table = read_chosen(run.data)
    if _INDEX not in table.column_names:
        raise StoreError(f"The rows in {run.data} lack the column {_INDEX}; run the selection again.")
    order = np.argsort(table.column(_INDEX).to_numpy(), kind="stable")
    picks = table.column(_INDEX).to_numpy()[order]
    try:
        rows = load_rows(config.data.sources, split=config.data.split, limit=config.data.limit)
        _require_same_rows(rows, record, config)
    except (DataError, StoreMismatch) as error:
        told = str(error).split(";")[0].rstrip(".")
        reporter.warn(
            f"{told}; the chosen rows are read from {run.data} instead, where turns that came with a prompt, and text "
            "beside conversations, count as responses too."
        )
        chosen = trained_columns(table.take(order))
        texts = [{"text": text} for text in chosen.texts]
        chats = [{"messages": chat.messages, "tools": chat.tools} for chat in chosen.chats]
        kind = Schema("text", {"text": "text"})
        if chats:
            kind = Schema("messages", {"messages": "messages", "tools": "tools"})
        conversations = [to_conversation(row, kind) for row in texts or chats]
        return encode_conversations(conversations, tokenizer, config.data, loss=config.gradients.loss), "data"
    schemas = detect_schemas(rows, config.data.columns)
    return encode_as(rows.subset(picks), schemas, tokenizer, config), "sources"


def _require_same_rows(rows: RowSet, record: SelectionRecord, config: RunConfig) -> None:
    if len(rows) != record.n or rows.fingerprint != record.fingerprints.rows:
        raise StoreMismatch(
            f"The sources ({', '.join(config.data.sources)}) have changed since the run, whose {record.n:,} rows had "
            f"the fingerprint {(record.fingerprints.rows or 'none')[:12]}; bring the rows back, or run anew."
        )


def _same_encoding(record: SelectionRecord, encoded: Encoded, tokenizer: Any, same_model: bool) -> bool:
    known = record.fingerprints
    if known.template != encoded.identity.get("template"):
        return False
    if known.tokenizer is not None:
        return known.tokenizer == tokenizer_hash(tokenizer)
    # Methods that run no model leave its name alone.
    return same_model


def _template_sentence(same: bool, template: str, config: RunConfig) -> str:
    if same:
        return "Tokenizer and chat template are those of the selection."
    if config.data.chat_template is not None:
        return "The model has another tokenizer than the proxy; the chat template of the settings is used."
    if template == "plain":
        return "The model has another tokenizer than the proxy and no chat template; the plain one is used."
    return "The model has another tokenizer than the proxy; its own chat template is used."


def _settings(record: SelectionRecord) -> dict[str, Any]:
    found: dict[str, Any] = {"seed": record.seed, "budget": record.budget.asked}
    if record.maximised and record.objective is not None:
        found |= record.objective.model_dump(mode="json")
    if record.method is not None:
        found |= record.method.settings
    return json.loads(json.dumps(found))


def _hub_id(origin: str) -> str | None:
    """The ``owner/name`` of a Hub source, without configuration and revision."""
    found = parse_hub_id(origin)
    return None if found is None else found.id
