"""The resolved configuration of a run, and the only home of its defaults.

Every section forbids unknown keys. A preset is a named set of values laid under what the user gave; the configuration
that a run writes is always fully resolved, so that it replays the run whatever later versions take as defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from spice_select.errors import ConfigError
from spice_select.files import read_regular


class Section(BaseModel):
    """A group of settings; frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _listed(value: Any) -> Any:
    """A single name where a list of names is taken."""
    return (value,) if isinstance(value, str) else value


def _no_truth_value(value: Any) -> Any:
    """Python counts True as 1."""
    if isinstance(value, bool):
        raise ValueError("a truth value is no amount")
    return value


class DataConfig(Section):
    """Where the rows come from and how they become token ids and a response mask."""

    sources: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Files, folders or Hub ids (``owner/name``, ``owner/name@revision``, ``owner/name:config``)."""
    split: str = "train"
    """Split of a Hub data set."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first this many rows of all sources together."""
    columns: dict[str, str] = {}
    """Column mapping laid over the schema found: role to column, the roles being messages, prompt, response, context,
    system, history, tools and text."""
    train_on: Literal["all-assistant", "last"] = "all-assistant"
    """Which assistant turns of a conversation are trained, and so have a loss."""
    max_length: int = Field(default=2048, ge=8)
    """Tokens kept of one example; the response is kept in view, and truncation is counted."""
    chat_template: str | None = None
    """A Jinja chat template, or the path of a file that holds one, instead of the tokenizer's own."""
    contamination: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Evaluation files; rows that match one of their rows are left out and counted."""
    target: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Files of target examples, for methods that choose towards them; their column ``subtask``, if they have one, names
    each example's subtask."""


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
    adapter: str | None = None
    """Folder of trained PEFT adapters that are merged into the weights."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless asked for."""


class LoraConfig(Section):
    """Low-rank adapters whose gradients stand for those of the full weights."""

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    factors: Literal["both", "B"] = "B"
    """At initialisation B = 0, so the gradient of A is exactly 0; ``both`` is for trained adapters."""
    adapter: str | None = None
    """Folder of trained PEFT adapters; none: adapters as at initialisation."""


class GradientConfig(Section):
    """Which gradients are taken and how they are sketched."""

    layers: str = "all-linear"
    """``all-linear`` (every linear layer but the output head), or a regular expression for full module names."""
    lora: LoraConfig | None = None
    """Take the gradients of low-rank adapters on those layers instead of the full weights."""
    sketch: Literal["fold", "two-sided", "tensor", "dense", "none"] = "fold"
    """``tensor`` is as exact as ``fold`` and cheaper for models with layers wider than about 1,500."""
    dim: int = Field(default=4096, ge=1)
    """Sketch dimension D of ``fold``, ``tensor`` and ``dense``."""
    rank: int = Field(default=64, ge=1)
    """Side of the two-sided sketch, per layer."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sketch's counter-based random numbers; the run's own seed where it is not given."""
    precondition: Literal["none", "adam"] = "none"
    """``adam``: the step that Adam would take instead of the gradient, by its moments after the schedule's warm-up, of
    the weights that the warm-up trains."""
    loss: Literal["response", "all"] = "response"
    """Mean over response tokens, or over every token of the example."""
    batch_tokens: int = Field(default=1024, ge=1)
    """Padded tokens in one forward and backward pass; halved when memory runs out. What stays near a CPU's cache is
    fastest there and takes the least memory; on a GPU, 8192 and more keep it busy."""
    shard_rows: int = Field(default=1024, ge=1, le=1024)
    store_dtype: Literal["float32", "float16"] = "float32"
    """float16 holds rows divided by their norm, the norms beside in float32."""


class SelectionConfig(Section):
    """What is maximised, what is penalised, and when to stop."""

    budget: Annotated[int | float | str | None, BeforeValidator(_no_truth_value)] = None
    """Rows (12), a share (0.1 or ``10%``), or response tokens (``50000 tokens``); may be absent with a stop ratio."""
    alpha: Annotated[float, Field(gt=0)] | Literal["auto"] = 1.0
    """Fisher scale a; ``auto`` is 1 over the median squared gradient norm."""
    conflict_weight: float = Field(default=0.1, ge=0)
    """Weight lambda of the conflict."""
    penalty: Literal["absolute", "relative"] = "absolute"
    reference: Literal["selected", "pool"] = "selected"
    hinge: float | str = 0.0
    normalize: Literal["none", "unit", "sqrt_tokens", "clip"] = "none"
    stop_ratio: float | None = Field(default=None, gt=0)
    robust_stop: bool = False
    """Compare with the median of the first few gains instead of the first alone."""
    fisher: Literal["exact", "diag-logdet", "paper-diag", "released"] = "exact"
    loop: Literal["auto", "brute", "dense", "kernel", "lazy", "stochastic"] = "auto"
    """All give the same picks but ``stochastic``, where each pick is the best of a random sample."""
    sampling_epsilon: float = Field(default=0.01, gt=0, lt=1)
    """Expected shortfall of the stochastic loop, which sizes its samples."""
    partitions: int = Field(default=1, ge=1)
    """More than 1: rows are dealt to so many partitions, and the picks of each make up the pool of a second round."""
    device: str = "cpu"
    """Torch device of the dense and the lazy loop."""
    per_token: bool = False
    groups: str | None = None
    """Column (or ``source``) whose values share the budget by ``quotas``."""
    quotas: Literal["proportional"] | dict[str, dict[str, int | float]] | None = None
    initial: str | None = None
    """File of row numbers already in hand: JSON list, or one number a line."""
    exclude: str | None = None
    """File of row numbers to leave out, in the same form."""

    @property
    def approximate(self) -> bool:
        """Whether the picks are not those of the exact greedy, so that samples or partitions have a say."""
        return self.loop == "stochastic" or self.partitions > 1

    def identity(self) -> dict[str, Any]:
        """What decides the picks beside the rows: all but how they are reached, and the files that name rows."""
        said = self.model_dump(
            mode="json", exclude={"loop", "sampling_epsilon", "partitions", "device", "initial", "exclude"}
        )
        if self.loop == "stochastic":
            said |= {"loop": self.loop, "sampling_epsilon": self.sampling_epsilon}
        return said if self.partitions == 1 else {**said, "partitions": self.partitions}


class AdapterConfig(Section):
    """Low-rank adapters that the proxy is trained with."""

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout while training; gradients for the selection are always taken without it."""


class ScheduleConfig(Section):
    """When the proxy is trained, and on what the selection then works (SPICE, arXiv 2601.23155, section 4)."""

    kind: Literal["fixed", "pools"] = "fixed"
    """``fixed``: one checkpoint, one selection from all rows. ``pools``: the rows in shuffled pools, a few picks from
    each, the proxy trained on the picks as they come."""
    pool_size: int = Field(default=120, ge=1)
    """Rows of a pool; the picks of each follow from the budget."""
    interval: int = Field(default=10, ge=1)
    """Pools between two trainings of the proxy (T), each on the picks since the last."""
    memory: Literal["none", "sketch"] = "none"
    """``sketch``: what earlier pools taught counts in the next, through a sketch; beyond the paper, where every pool
    starts empty."""
    memory_rows: int = Field(default=256, ge=1)
    """Rows of the sketch that stands for all earlier picks."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps on randomly drawn rows before the first gradient is taken."""
    warmup_share: float | None = Field(default=None, gt=0, le=1)
    """The same as a share of the rows, each seen once."""
    scope: Literal["lora", "full"] = "lora"
    """Train adapters, or the linear layers themselves; in pools the gradients are of the same weights."""
    lora: AdapterConfig = AdapterConfig()
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the optimiser steps in which the learning rate rises."""
    scheduler: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after that; it follows optimiser steps."""
    batch_size: int = Field(default=4, ge=1)
    """Examples of one optimiser step."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    gram_bytes: int = Field(default=1 << 32, ge=1 << 20)
    """Memory for the gradients of one pool; with less, the pool is passed through the model more than once."""
    keep_gram: bool = True
    """Keep the inner products of each pool (8 bytes a pair of its rows), for other settings on the same gradients."""
    tracker: str | None = None
    """Tracker of accelerate that is told of every pool: tensorboard, wandb, mlflow, ..."""

    @model_validator(mode="after")
    def _one_warmup(self) -> ScheduleConfig:
        if self.warmup_steps and self.warmup_share is not None:
            raise ValueError("give warmup_steps or warmup_share, not both")
        return self


class EmbeddingConfig(Section):
    """How a row becomes one vector, for methods that compare rows by distance."""

    model: str | None = None
    """Folder or Hub id of a sentence-transformers model (needs the extra ``embeddings``); none: the proxy itself."""
    revision: str | None = None
    """Revision of a Hub id."""
    layer: int = -1
    """Hidden layer of the proxy: 0 is the embedding, -1 the last."""
    pooling: Literal["mean", "last"] = "mean"
    """Mean over the tokens of the span, or its last token."""
    span: Literal["all", "prompt", "response"] = "all"
    """Tokens that count."""


class MethodConfig(Section):
    """Which method selects; its own settings stand beside its name, and the method knows which there are."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)

    name: str = "spice"
    """``spice`` maximises what the selection section says; ``spice-select methods`` lists the others."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the method, by name."""
        return dict(self.model_extra or {})


class TrainingConfig(Section):
    """How a model is fine-tuned on a subset: by ``train``, by a study, and by a comparison that trains."""

    model: str = ""
    """Folder or Hub id of the model that is trained; the proxy where empty."""
    mode: Literal["lora", "full"] = "lora"
    """Train low-rank adapters, or every weight."""
    epochs: int = Field(default=3, ge=1)
    """Passes over the picks."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps in place of epochs; the rows are passed again and again until then."""
    lr: float = Field(default=5e-5, gt=0)
    """Highest learning rate."""
    lora_r: int = Field(default=16, ge=1)
    lora_alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    batch_size: int = Field(default=4, ge=1)
    """Examples of one optimiser step, over all devices."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Examples of one forward pass on one device, gradients being summed to ``batch_size``; all if absent."""
    scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after its rise; it follows optimiser steps."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the optimiser steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients longer than this are cut to it."""
    autocast: bool = True
    """Compute in bfloat16 where the device can and the weights are float32."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    save_steps: int = Field(default=200, ge=1)
    """Optimiser steps between two checkpoints of ``train``, from which it resumes."""
    heldout: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Files of held-out rows; their column ``subtask``, else the file, names each row's domain."""


class OutputConfig(Section):
    """Where results go."""

    folder: str = ""


class RunConfig(Section):
    """All settings of one run."""

    preset: Literal["paper", "recommended"] = "recommended"
    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    gradients: GradientConfig = GradientConfig()
    selection: SelectionConfig = SelectionConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    embeddings: EmbeddingConfig = EmbeddingConfig()
    method: MethodConfig = MethodConfig()
    training: TrainingConfig = TrainingConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="before")
    @classmethod
    def _under_preset(cls, values: Any) -> Any:
        """Lay the preset under what was given."""
        if not isinstance(values, Mapping):
            return values
        if "seed" in values:
            values = merge({"gradients": {"seed": values["seed"]}}, values)
        preset = values.get("preset", cls.model_fields["preset"].default)
        return merge(PRESETS[preset], values) if isinstance(preset, str) and preset in PRESETS else values


PRESETS: dict[str, dict[str, Any]] = {
    # The paper to the letter: raw gradients, a = 1, lambda = 0.1 against the mean of the picks.
    "paper": {
        "selection": {
            "alpha": 1.0,
            "conflict_weight": 0.1,
            "penalty": "absolute",
            "reference": "selected",
            "hinge": 0.0,
            "normalize": "none",
            "fisher": "exact",
        }
    },
    # Evens out the noise of a token mean, so that short responses don't lead by their noise alone, and makes the
    # picks free of the scale of the loss. Of the recipes of docs/evidence.md the one that was no worse than random rows
    # without taking nearly all of them from one source.
    "recommended": {
        "selection": {
            "alpha": "auto",
            "conflict_weight": 0.1,
            "penalty": "absolute",
            "reference": "selected",
            "hinge": 0.0,
            "normalize": "sqrt_tokens",
            "fisher": "exact",
        }
    },
}


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested settings over others; values of ``top`` win."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def load_config(
    file: Path | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    preset: str | None = None,
) -> RunConfig:
    """Resolve a configuration: file, then preset, then flags, then ``--set`` overrides.

    Args:
        file: YAML file, such as the ``config.yaml`` that a run writes.
        overrides: ``section.key=value`` strings; the value is read as YAML.
        values: Nested settings from command-line flags.
        preset: Name of a preset; its values replace those of the file.

    Raises:
        ConfigError: A file that cannot be read, an unknown key, or a value that doesn't fit.
    """
    settings: dict[str, Any] = {}
    if file is not None:
        settings = _read_yaml(file)
    parsed = [_parse_override(override) for override in overrides]
    settings = _for_the_method(settings, [values or {}, *parsed])
    preset = next((override["preset"] for override in reversed(parsed) if "preset" in override), preset)
    if isinstance(preset, str):
        # A written configuration is fully resolved: a preset asked for must win over it, though not over other flags.
        settings = {**merge(settings, PRESETS.get(preset, {})), "preset": preset}
    if values:
        settings = merge(settings, values)
    # The one seed is the sketch's as well; a written configuration has both.
    parsed = [{"gradients": {"seed": given["seed"]}} for given in parsed if "seed" in given] + parsed
    for override in parsed:
        settings = merge(settings, override)
    return resolve(settings)


def resolve(settings: Mapping[str, Any]) -> RunConfig:
    """Validate nested settings; errors name the field, its value and the nearest known key.

    Raises:
        ConfigError: The first fault found, in one sentence.
    """
    try:
        return RunConfig.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


def to_yaml(config: RunConfig) -> str:
    """The fully resolved configuration as YAML that :func:`load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = read_regular(file).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration file {file} cannot be read ({_reason(error)}); name a YAML file."
        ) from None
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        at = f" at line {where.line + 1}" if where else ""
        raise ConfigError(f"The configuration file {file} is no valid YAML{at}; mend it or leave it out.") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(
            f"The configuration file {file} must hold sections such as 'selection:', not {_kind(settings)}."
        )
    return settings


def _for_the_method(settings: dict[str, Any], later: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A file's settings without those of its method, where a flag asks for another."""
    sections = [top["method"] for top in later if isinstance(top.get("method"), Mapping)]
    names = [section["name"] for section in sections if "name" in section]
    written = settings.get("method")
    if names and isinstance(written, Mapping) and written.get("name", "spice") != names[-1]:
        return {**settings, "method": {}}
    return settings


def _parse_override(text: str) -> dict[str, Any]:
    path, separator, value = text.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set takes section.key=value, such as selection.alpha=auto, not '{text}'.")
    try:
        parsed: Any = yaml.safe_load(value) if value.strip() else ""
    except (yaml.YAMLError, ValueError, RecursionError):
        parsed = value
    for key in reversed(keys):
        parsed = {key: parsed}
    return parsed


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden":
        path = _setting_path(path)
    field = ".".join(path) or "configuration"
    if first["type"] == "extra_forbidden":
        section = _section_at(path[:-1])
        known = list(section.model_fields) if section else list(RunConfig.model_fields)
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.0)
        hint = f"did you mean '{'.'.join([*path[:-1], near[0]])}'?" if near else f"known are {', '.join(known)}."
        return f"Unknown setting '{field}'; {hint}"
    value = repr(first.get("input"))
    shown = value if len(value) <= 60 else value[:57] + "..."
    if field in _FORMS:
        return f"Setting '{field}' cannot be {shown}; give {_FORMS[field]}."
    section = _section_at(path)
    if first["type"] in ("model_type", "model_attributes_type") and section is not None:
        example = f"{field}.{next(iter(section.model_fields))}"
        return f"'{field}' is a section, and was given {shown}; give one of its settings, such as {example}."
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"Setting '{field}' cannot be {shown}: {message[:1].lower()}{message[1:]}."


# Settings of several forms: pydantic's message would name the first of them alone.
_FORMS = {
    "selection.budget": "rows (12), a share (0.1 or 10%) or response tokens ('50000 tokens')",
    "selection.alpha": "a number above 0, or auto",
    "selection.hinge": "a cosine from -1 to 1, or a quantile of the pool such as 25%",
    "selection.quotas": "proportional, or per label {min: ..., max: ...} in rows or shares of the budget",
}


def _setting_path(path: list[str]) -> list[str]:
    """The part of an error's location that names a setting; pydantic adds the branch of a union that it tried."""
    for length in range(1, len(path) + 1):
        section = _section_at(path[: length - 1])
        if section is None or path[length - 1] not in section.model_fields:
            return path[: length - 1]
    return path


def _section_at(path: Iterable[str]) -> type[BaseModel] | None:
    model: type[BaseModel] = RunConfig
    for key in path:
        field = model.model_fields.get(key)
        inner = field.annotation if field else None
        candidates = [inner, *getattr(inner, "__args__", ())]
        found = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if found is None:
            return None
        model = found
    return model


def _reason(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8 text"
    return getattr(error, "strerror", None) or type(error).__name__


def _kind(value: object) -> str:
    return {list: "a list", str: "text", int: "a number", float: "a number"}.get(type(value), type(value).__name__)
