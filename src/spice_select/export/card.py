"""The data set card: what was selected, by which settings, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from spice_select.analysis.record import MethodRecord
from spice_select.data.rows import RowSet

ALL_COLUMNS = "all"
SPICE_PAPER = "2601.23155"
_ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$])")
_LEADING_MARK = re.compile(r"^(\d*)([-+=.)])")
_BREAKS = str.maketrans({"\n": " ", "\r": " ", "\t": " "})


@dataclass(frozen=True)
class CardFacts:
    """What the card says about a run, beyond what the rows say themselves.

    Attributes:
        title: Heading; the name of the output folder, say.
        proxy: The proxy model, with its revision where it has one.
        settings: Resolved settings worth reading, by name.
        stop_reason: Why the selection ended, in a few words.
        information: Information of the picks in nats.
        warnings: Warnings of the run.
        version: Version of this package.
        method: The method that chose; None: SPICE.
        maximised: Whether the picks maximise information.
        penalised: Whether they also avoid conflict.
        measured: Whether gains and conflicts of the picks are known.
        prefixes: Whether every prefix is the selection of a smaller budget.
    """

    title: str
    proxy: str
    settings: Mapping[str, object] = field(default_factory=dict)
    stop_reason: str = ""
    information: float | None = None
    warnings: tuple[str, ...] = ()
    version: str = ""
    method: MethodRecord | None = None
    maximised: bool = True
    penalised: bool = True
    measured: bool = True
    prefixes: bool = True

    @property
    def papers(self) -> list[str]:
        """Numbers at arXiv of the papers that the method is from."""
        return [SPICE_PAPER] if self.method is None else list(dict.fromkeys(_ARXIV.findall(self.method.source)))

    @property
    def cites_spice(self) -> bool:
        """Whether the method is from the SPICE paper."""
        return SPICE_PAPER in self.papers


class Raw(str):
    """Text that goes into the card as it is."""


def escape_markdown(value: object) -> str:
    """Text on one line in which nothing is markup, HTML or a template any more."""
    text = _MARKUP.sub(r"\\\1", str(value).translate(_BREAKS).strip())
    return _LEADING_MARK.sub(r"\1\\\2", text)


def code_span(value: object) -> Raw:
    """Text as inline code, whatever back quotes it holds; a bar would end a table's cell and is escaped."""
    text = str(value).translate(_BREAKS).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text[:1] == "`" or text[-1:] == "`" or not text else ""
    return Raw(f"{fence}{space}{text}{space}{fence}")


def _sentence(value: str) -> str:
    """Words that end with a full stop."""
    return value if value.endswith((".", "!", "?")) else f"{value}."


def python_string(value: object) -> Raw:
    """Text as a Python literal for a fenced block, which no back quote of its own can end."""
    return Raw(json.dumps(str(value), ensure_ascii=False).replace("`", "\\x60"))


def size_category(count: int) -> str:
    """The Hub's name for a number of rows."""
    return next((name for limit, name in _SIZES if count < limit), "n>1M")


def front_matter(facts: CardFacts, count: int, columns: Sequence[str], hidden: Sequence[str]) -> Raw:
    """YAML that makes ``datasets.load_dataset`` return the rows of ``data/`` and nothing else of the folder."""
    data_files = [{"split": "train", "path": "data/train-*.parquet"}]
    configs: list[dict[str, Any]] = [{"config_name": "default", "data_files": data_files, "default": True}]
    if hidden:
        configs[0]["columns"] = [name for name in columns if name not in hidden]
        configs.append({"config_name": ALL_COLUMNS, "data_files": [dict(data_files[0])]})
    content = {
        "pretty_name": facts.title,
        "task_categories": ["text-generation"],
        "size_categories": [size_category(count)],
        "tags": ["spice-select", "data-selection", "instruction-tuning", *(f"arxiv:{paper}" for paper in facts.papers)],
        "configs": configs,
    }
    return Raw(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000).strip())


def render_card(
    facts: CardFacts,
    rows: RowSet,
    chosen: Mapping[str, int],
    columns: Sequence[str],
    hidden: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """The card as Markdown with YAML in front.

    Args:
        facts: What the run was.
        rows: The pool.
        chosen: Number of picks by name of source.
        columns: Columns of the parquet files.
        hidden: Those that the default configuration leaves out.
        notes: Sentences on columns.
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
        code=code_span, literal=python_string, number=lambda value: Raw(f"{value:,}"), plain=Raw, sentence=_sentence
    )
    template = environment.from_string(files("spice_select.export").joinpath("card.md.jinja").read_text("utf-8"))
    count = sum(chosen.values())
    return template.render(
        facts=facts,
        front=front_matter(facts, count, columns, hidden),
        rows=rows,
        count=count,
        chosen=chosen,
        originals=[name for name in columns if not name.startswith("spice_") and name != "messages"],
        hidden=hidden,
        notes=notes,
        trained="messages" if "messages" in columns else "text",
    )
