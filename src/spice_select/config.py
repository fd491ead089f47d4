"""The resolved configuration of a run, and the only home of its defaults.

Every section forbids unknown keys. A preset is a named set of values laid under what the user gave; the configuration that a run
writes is always fully resolved, so that it replays the run whatever later versions take as defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from spice_select.errors import ConfigError


class Section(BaseModel):
    """A group of settings; frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(Section):
    """Where the rows come from and how they become token ids and a response mask."""

    sources: tuple[str, ...] = ()
    """Files, folders or Hub ids (``owner/name``, ``owner/name@revision``, ``owner/name:config``)."""
    split: str = "train"
    """Split of a Hub data set."""
    limit: int | None = Field(None, ge=1)
    """Use only the first this many rows of all sources together."""
    columns: dict[str, str] = {}
    """Column mapping laid over the schema found: role (messages, prompt, response, context, system, history, tools, text) to column."""
    train_on: Literal["all-assistant", "last"] = "all-assistant"
    """Which assistant turns of a conversation are trained, and so have a loss."""
    max_length: int = Field(2048, ge=8)
    """Tokens kept of one example; the response is kept in view, and truncation is counted."""
    chat_template: str | None = None
    """A Jinja chat template, or the path of a file that holds one, instead of the tokenizer's own."""
    contamination: tuple[str, ...] = ()
    """Evaluation files; rows that match one of their rows are left out and counted."""


class ModelConfig(Section):
    """The proxy whose loss gradients are measured."""

    name: str = ""
    """Folder or Hub id of a causal language model."""
    revision: str | None = None
    """Revision of a Hub id."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Dtype of the weights and of the forward and backward pass; accumulation is float32 or better."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``."""
    attention: str | None = None
    """Attention implementation handed to transformers; its own choice when absent."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless asked for."""


class LoraConfig(Section):
    """Low-rank adapters whose gradients stand for those of the full weights."""

    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    factors: Literal["both", "B"] = "B"
    """At initialisation B = 0, so the gradient of A is exactly 0; ``both`` is for trained adapters."""
    adapter: str | None = None
    """Folder of trained PEFT adapters; none: adapters as at initialisation."""


class GradientConfig(Section):
    """Which gradients are taken and how they are sketched."""

    layers: str = "all-linear"
    """``all-linear`` (every linear layer but the output head), or a regular expression that full module names must match."""
    lora: LoraConfig | None = None
    """Take the gradients of low-rank adapters on those layers instead of the full weights."""
    sketch: Literal["fold", "two-sided", "dense", "none"] = "fold"
    dim: int = Field(4096, ge=1)
    """Sketch dimension D of ``fold`` and ``dense``."""
    rank: int = Field(64, ge=1)
    """Side of the two-sided sketch, per layer."""
    seed: int = Field(0, ge=0)
    """Seed of the sketch's counter-based random numbers."""
    loss: Literal["response", "all"] = "response"
    """Mean over response tokens, or over every token of the example."""
    batch_tokens: int = Field(4096, ge=1)
    """Padded tokens in one forward and backward pass; halved when memory runs out."""
    shard_rows: int = Field(1024, ge=1, le=1024)
    store_dtype: Literal["float32", "float16"] = "float32"
    """float16 holds rows divided by their norm, the norms beside in float32."""


class SelectionConfig(Section):
    """What is maximised, what is penalised, and when to stop."""

    budget: int | float | str | None = None
    """Rows (12), a share (0.1 or ``10%``), or response tokens (``50000 tokens``); may be absent with a stop ratio."""
    alpha: float | Literal["auto"] = 1.0
    """Fisher scale a; ``auto`` is 1 over the median squared gradient norm."""
    conflict_weight: float = Field(0.1, ge=0)
    """Weight lambda of the conflict."""
    penalty: Literal["absolute", "relative"] = "absolute"
    reference: Literal["selected", "pool"] = "selected"
    hinge: float | str = 0.0
    normalize: Literal["none", "unit", "sqrt_tokens", "clip"] = "none"
    stop_ratio: float | None = Field(None, gt=0)
    robust_stop: bool = False
    """Compare with the median of the first few gains instead of the first alone."""
    fisher: Literal["exact", "diag-logdet", "paper-diag", "released"] = "exact"
    loop: Literal["auto", "brute", "dense", "kernel", "lazy"] = "auto"
    per_token: bool = False
    groups: str | None = None
    """Column (or ``source``) whose values share the budget by ``quotas``."""
    quotas: Literal["proportional"] | dict[str, dict[Literal["min", "max"], int | float]] | None = None
    initial: str | None = None
    """File of row numbers already in hand: JSON list, or one number a line."""
    exclude: str | None = None
    """File of row numbers to leave out, in the same form."""


class OutputConfig(Section):
    """Where results go."""

    folder: str = ""
    keep_gradients: bool = True
    """Keep the gradient store under the output folder for the next run."""


class RunConfig(Section):
    """All settings of one run."""

    preset: Literal["paper", "recommended"] = "recommended"
    seed: int = Field(0, ge=0)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    gradients: GradientConfig = GradientConfig()
    selection: SelectionConfig = SelectionConfig()
    output: OutputConfig = OutputConfig()
