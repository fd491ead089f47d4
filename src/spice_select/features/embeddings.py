"""One vector per row: hidden states of the proxy, or what a sentence-transformers model makes of the text."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from spice_select.config import EmbeddingConfig
from spice_select.data.conversation import Conversation
from spice_select.data.encoded import Encoded
from spice_select.data.rows import RowSet
from spice_select.data.schema import Schema, to_conversation
from spice_select.errors import ConfigError
from spice_select.features.bench import Bench
from spice_select.features.sentences import SentenceEngine, encode_texts, plain_text
from spice_select.features.states import StateEngine
from spice_select.features.target import TargetRows
from spice_select.gradients.store import GradientStore


def embed_pool(bench: Bench) -> Float32[np.ndarray, "n d"]:
    """An embedding of every row of the pool, as ``embeddings`` says; zeros where a row cannot be used.

    Raises:
        ConfigError: A setting that the model does not allow, or a library that is missing.
        ModelError: A sentence-transformers model that cannot be read.
    """
    return _embed(bench, "embeddings", bench.pool.encoded, bench.pool.rows, bench.pool.schemas)


def embed_target(bench: Bench, target: TargetRows) -> Float32[np.ndarray, "m d"]:
    """An embedding of every target example, as those of the pool are.

    Raises:
        ConfigError: A setting that the model does not allow, or a library that is missing.
        ModelError: A sentence-transformers model that cannot be read.
    """
    return _embed(bench, "target-embeddings", target.encoded, target.rows, target.schemas)


def _embed(
    bench: Bench, name: str, encoded: Encoded, rows: RowSet, schemas: tuple[Schema, ...]
) -> Float32[np.ndarray, "n d"]:
    settings = bench.config.embeddings
    if settings.span != "all" and settings.model is None and bench.config.gradients.loss == "all":
        raise ConfigError(
            f"Setting 'embeddings.span' cannot be '{settings.span}' with gradients.loss 'all', which takes every token "
            "for the response; set embeddings.span to all, or gradients.loss to response."
        )
    if settings.model is None and settings.revision is not None:
        raise ConfigError(
            f"Setting 'embeddings.revision' cannot be '{settings.revision}' without embeddings.model; leave it out, or "
            "name the model."
        )
    if settings.model is None:
        return _whole(bench.collect(name, encoded, StateEngine(bench.proxy, settings)))
    engine = SentenceEngine(settings, bench.config.model)
    conversations = (
        to_conversation(row, schemas[int(source)])
        for row, source in zip(rows.iter_rows(), rows.source_ids, strict=True)
    )
    texts = [_text(conversation, settings) for conversation in conversations]
    found = bench.collect(name, encode_texts(texts, encoded), engine, identity=engine.identity)
    return _whole(found)


def _text(conversation: Conversation | None, settings: EmbeddingConfig) -> str:
    return "" if conversation is None else plain_text(conversation, settings.span)


def _whole(store: GradientStore) -> Float32[np.ndarray, "n d"]:
    found = np.zeros(store.shape, np.float32)
    for start, block in store.blocks(1024):
        found[start : start + len(block)] = block
    return found
