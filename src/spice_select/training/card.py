"""The model card: what the model was trained on, how, and how to load it."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from spice_select.export.card import Raw, code_span, escape_markdown, python_string
from spice_select.training.record import TrainRecord

_LOCAL = re.compile(r"(^|=)[~/].*")
_BREAKS = str.maketrans("\n\r", "  ")


def front_matter(record: TrainRecord) -> Raw:
    """YAML that the Hub reads: base model, library, tags, and data sets that are at the Hub."""
    content: dict[str, Any] = {}
    if not record.model.local:
        content["base_model"] = record.model.name
        content["base_model_relation"] = "adapter" if record.mode == "lora" else "finetune"
    content["library_name"] = "peft" if record.mode == "lora" else "transformers"
    content["pipeline_tag"] = "text-generation"
    tags = ["spice-select", "data-selection", "sft", "trl"]
    content["tags"] = [*tags, "lora"] if record.mode == "lora" else tags
    hub = list(dict.fromkeys(source.hub for source in record.subset.sources if source.hub))
    if hub:
        content["datasets"] = hub
    return Raw(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000).strip())


def render_model_card(record: TrainRecord, title: str) -> str:
    """The card as Markdown with YAML in front.

    Args:
        record: The training.
        title: Heading; the name of the folder.
    """
    environment = Environment(
        autoescape=False,  # the escaping is Markdown's, by ``finalize``, and not HTML's
        finalize=lambda value: value if isinstance(value, Raw) else escape_markdown(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        code=code_span,
        literal=python_string,
        number=lambda value: Raw(f"{value:,}"),
        loss=lambda value: Raw(f"{value:.4f}"),
        percent=lambda value: Raw(f"{100 * value:.1f}%"),
        nats=lambda value: Raw(f"{value:.6g}"),
    )
    template = environment.from_string(files("spice_select.training").joinpath("card.md.jinja").read_text("utf-8"))
    model, subset = record.model, record.subset
    return template.render(
        front=front_matter(record),
        title=title,
        record=record,
        subset=subset,
        base=Path(model.name).name if model.local else model.name,
        run=Path(subset.run).name,
        command=_command(record.command),
        picked={name: value for name, value in subset.settings.items() if value is not None},
    )


def _command(text: str) -> Raw:
    """A command on one line of an indented block, where nothing is markup; local folders shrink to their names."""
    words = [_LOCAL.sub(lambda match: match[1] + Path(match[0]).name, word) for word in shlex.split(text)]
    return Raw(shlex.join(words).translate(_BREAKS))
