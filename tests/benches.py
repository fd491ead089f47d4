"""Benches for tests: a pool of rows or conversations, a small proxy, and a folder for what is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from spice_select.config import RunConfig, merge, resolve
from spice_select.data.conversation import Conversation, Message
from spice_select.data.encode import encode_rows
from spice_select.data.schema import detect_schemas
from spice_select.data.sources import load_rows
from spice_select.demo import demo_model_path
from spice_select.features.bench import Bench
from spice_select.gradients.proxy import Proxy, load_proxy
from spice_select.pool import Pool
from spice_select.reporter import Clock, Silent
from tests.encoding import CHATML_SPECIAL, byte_level
from tests.proxies import FAMILIES

POSITIONS = 256
"""Tokens that the models of :func:`family_proxy` take."""


class Told(Silent):
    """A reporter that keeps what it is told.

    Attributes:
        stages: Stages announced.
        notes: Facts.
        warnings: Warnings.
    """

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def warn(self, line: str) -> None:
        self.warnings.append(line)


def make_bench(
    folder: Path,
    rows: Sequence[Mapping[str, Any] | Conversation],
    *,
    proxy: str | Path | Proxy = "llama",
    reporter: Silent | None = None,
    **config: Any,
) -> Bench:
    """A bench whose pool is read from rows as a run reads it.

    Args:
        folder: Where rows and measurements go.
        rows: Rows such as ``{"prompt": ..., "response": ...}``, or conversations; all of one schema.
        proxy: A family of :data:`tests.proxies.FAMILIES` (tiny, random, with a tokenizer of 600 tokens or less that has
            an EOS and no BOS), ``"demo"`` (small, trained, with both), a model's folder, or a proxy in memory.
        reporter: Hears what is told; :class:`Told` keeps it.
        config: Sections of the configuration, such as ``data={"max_length": 64}``, or whole settings (``seed=3``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(_row(row)) + "\n" for row in rows))
    given = merge({"data": {"sources": [str(file)], "max_length": POSITIONS}, "model": {"device": "cpu"}}, config)
    if isinstance(proxy, Path) or proxy == "demo":
        given = merge({"model": {"name": str(demo_model_path() if proxy == "demo" else proxy)}}, given)
    settings = resolve(given)
    loaded = proxy if isinstance(proxy, Proxy) else _loaded(proxy, settings)
    return bench_of(settings, loaded, folder / "measured", reporter)


def bench_of(config: RunConfig, proxy: Proxy, folder: Path, reporter: Silent | None = None) -> Bench:
    """A bench of the rows that a configuration names, with a proxy that is in memory."""
    table = load_rows(config.data.sources, split=config.data.split, limit=config.data.limit)
    pool = Pool(
        table,
        detect_schemas(table, config.data.columns),
        proxy.tokenizer,
        encode_rows(table, proxy.tokenizer, config.data, loss=config.gradients.loss),
        (),
    )
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(config, pool, folder, reporter or Silent(), Clock(), lambda: proxy, lambda: proxy)


@cache
def chat_tokenizer(bos: bool = False) -> Any:
    """A byte-level tokenizer with a chat template and an EOS token, and a BOS token where asked for."""
    special = [*CHATML_SPECIAL, "</s>", *(["<s>"] if bos else [])]
    return byte_level(special, eos_token="</s>", **({"bos_token": "<s>"} if bos else {}))


def family_proxy(family: str, *, bos: bool = False, seed: int = 0, **settings: Any) -> Proxy:
    """A tiny random model of a family with :func:`chat_tokenizer`; ``settings`` are those of the gradients."""
    tokenizer = chat_tokenizer(bos)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = FAMILIES[family]()
        shape.vocab_size = len(tokenizer)
        shape.max_position_embeddings = POSITIONS
        model = tf.AutoModelForCausalLM.from_config(shape)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.15)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return Proxy.from_model(model, tokenizer, resolve({"gradients": settings}).gradients)


def _loaded(proxy: str | Path, config: RunConfig) -> Proxy:
    if isinstance(proxy, Path) or proxy == "demo":
        return load_proxy(config.model, config.gradients)
    return family_proxy(proxy, **config.gradients.model_dump(exclude_unset=True))


def _row(row: Mapping[str, Any] | Conversation) -> Mapping[str, Any]:
    if not isinstance(row, Conversation):
        return row
    if row.kind == "text":
        return {"text": row.messages[0].content}
    found: dict[str, Any] = {"messages": [_turn(message) for message in row.messages]}
    return {**found, "tools": list(row.tools)} if row.tools else found


def _turn(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        found["name"] = message.name
    if message.tool_calls:
        found["tool_calls"] = list(message.tool_calls)
    if not message.trained:
        found["weight"] = 0
    return found
