"""Chat templates: the tokenizer's own, one that was asked for, or the plain one of this package.

Templates are rendered here and not by ``apply_chat_template`` for three reasons: the clock that some of them read must
stand still, generation blocks must be found as spans of text, and a template that is compiled once renders a row in
microseconds. The rendering itself is that of transformers, character by character.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from spice_select.data.template_limits import (
    MOST_STEPS_IN_ALL,
    LimitedEnvironment,
    Steps,
    TemplateLimit,
    TemplateSlow,
    most_steps,
)
from spice_select.errors import ConfigError, ModelError
from spice_select.files import read_regular

CLOCK = datetime(2025, 1, 1)
"""The moment that every template is told: a rendering that changed overnight would change every gradient."""

PLAIN_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}
{{- message.content + '\\n\\n' }}
{%- elif message.role == 'assistant' %}
{{- '### Assistant:\\n' }}
{%- generation %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- ('\\n' if message.content or not loop.first else '') + (call.function or call) | tojson }}
{%- endfor %}
{{- eos_token }}
{%- endgeneration %}
{{- '\\n\\n' }}
{%- else %}
{{- '### ' + message.role | capitalize + ':\\n' + message.content + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '### Assistant:\\n' }}
{%- endif %}"""
"""Template of a tokenizer that has none; every assistant turn ends with the end-of-sequence token."""


class TemplateFailure(Exception):
    """A template that refuses a conversation; the reason is the template's own."""


class TemplateOverrun(Exception):
    """A conversation over which the template takes more than any needs, whatever the machine; the reason is told."""


class _Generation(Extension):
    """``{% generation %}`` blocks, whose borders can be marked in the rendering."""

    tags: ClassVar[set[str]] = {"generation"}
    marks: tuple[str, str] | None = None

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        text = caller()
        return text if self.marks is None else self.marks[0] + text + self.marks[1]


class _Namespace(jinja2.utils.Namespace):
    """A namespace without underscored attributes: templates are code of strangers."""

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a chat template may not set the attribute {name!r}")
        super().__setitem__(name, value)


class ChatTemplate:
    """A compiled chat template with a fixed clock.

    Args:
        source: Jinja text.
        variables: Variables beside the messages: the special tokens by name.
        origin: Where the template comes from, for messages: ``tokenizer``, ``setting`` or ``plain``.
        clock: What ``strftime_now`` formats.

    Raises:
        ConfigError: Jinja text from the settings that doesn't parse.
        ModelError: The same from the tokenizer.
    """

    def __init__(self, source: str, variables: Mapping[str, Any], origin: str, clock: datetime = CLOCK) -> None:
        self.source = source
        self.variables = dict(variables)
        self.origin = origin
        self.clock = clock
        environment = LimitedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, Steps, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.limit()
        environment.globals.update(
            raise_exception=_refuse, strftime_now=clock.strftime, dict=_TemplateDict(), namespace=_Namespace
        )
        blocks, steps = environment.extensions[_Generation.identifier], environment.extensions[Steps.identifier]
        assert isinstance(blocks, _Generation) and isinstance(steps, Steps)
        self._blocks, self._steps = blocks, steps
        self._left: int | None = None
        steps.start()
        try:
            self._compiled = environment.from_string(source)
            tree = environment.parse(source)
        except Exception as error:  # Jinja makes Python of it, and Python's compiler has limits of its own
            said = str(error).strip() or type(error).__name__
            if origin == "setting":
                raise ConfigError(
                    f"Setting 'data.chat_template' is no Jinja template ({said}); mend it or leave it out."
                ) from None
            raise ModelError(
                f"The tokenizer's chat template is no Jinja template ({said}); set data.chat_template to another."
            ) from None
        self.has_generation = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        self.reads_clock = "strftime_now" in source
        texts = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
        texts += [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
        self.literals = "\0".join(texts)
        """All the text that the template writes itself."""

    @property
    def digest(self) -> str:
        """SHA-256 of the template, its variables and its clock."""
        text = json.dumps([self.source, self.variables, self.clock.isoformat()], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        generation_prompt: bool = False,
        marks: tuple[str, str] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: Plain JSON types only.
            tools: JSON schemas of tools.
            generation_prompt: End with what asks the model for its answer.
            marks: Characters to write before and after each generation block.

        Raises:
            TemplateFailure: The template refuses the conversation or fails at it.
            TemplateOverrun: It loops or grows without end, within :meth:`conversation`.
            ConfigError: The same elsewhere, or a template from the settings that is too slow.
            ModelError: The same from the tokenizer.
        """
        self._blocks.marks = marks
        left = MOST_STEPS_IN_ALL if self._left is None else self._left
        self._steps.start(most_steps(len(messages) + len(tools or ())), left=left)
        try:
            return self._compiled.render(
                messages=list(messages),
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self.variables,
            )
        except (TemplateLimit, MemoryError) as error:
            if self._left is not None and isinstance(error, TemplateLimit) and not isinstance(error, TemplateSlow):
                raise TemplateOverrun(str(error)) from None
            raise self.refusal(str(error) or "it takes more memory than there is") from None
        except Exception as error:  # the template's own code fails as Python does
            raise TemplateFailure(str(error).strip() or type(error).__name__) from None
        finally:
            self._blocks.marks = None
            if self._left is not None:
                self._left -= min(self._left, self._steps.taken)

    @contextmanager
    def conversation(self) -> Iterator[None]:
        """All renderings of one conversation, which together have a bound; what breaks it is that row's own fault."""
        self._left = MOST_STEPS_IN_ALL
        try:
            yield
        finally:
            self._left = None

    def refusal(self, said: str) -> ConfigError | ModelError:
        """The error of a template that cannot be used at all.

        Args:
            said: Why.
        """
        if self.origin == "setting":
            return ConfigError(f"Setting 'data.chat_template' cannot be used: {said}; give another.")
        return ModelError(f"The tokenizer's chat template cannot be used: {said}; set data.chat_template to another.")


class TemplateSet:
    """The templates of a tokenizer: one, or one more for conversations with tools.

    Args:
        tokenizer: A transformers tokenizer.
        chosen: ``data.chat_template``: Jinja text, a file that holds it, or None for the tokenizer's own.

    Raises:
        ConfigError: A file that can't be read.
    """

    def __init__(self, tokenizer: Any, chosen: str | None = None) -> None:
        own = getattr(tokenizer, "chat_template", None)
        if chosen is not None:
            sources, origin = {"default": _template_text(chosen)}, "setting"
        elif own:
            sources = dict(own) if isinstance(own, Mapping) else {"default": own}
            origin = "tokenizer"
        else:
            sources, origin = {"default": PLAIN_TEMPLATE}, "plain"
        if "default" not in sources:
            sources["default"] = next(iter(sources.values()))
        self.origin = origin
        self.clock = CLOCK
        variables = dict(tokenizer.special_tokens_map)
        if origin == "plain":
            variables = {"bos_token": leading_token(tokenizer), "eos_token": tokenizer.eos_token or ""}
        self._templates = {
            name: ChatTemplate(text, variables, origin)
            for name, text in sources.items()
            if name in ("default", "tool_use")
        }

    def __iter__(self) -> Iterator[ChatTemplate]:
        return iter(self._templates.values())

    def pick(self, tools: Any) -> ChatTemplate:
        """The template for a conversation with or without tools."""
        return self._templates["tool_use" if tools and "tool_use" in self._templates else "default"]

    @property
    def digest(self) -> str:
        """SHA-256 over all templates."""
        text = "\n".join(f"{name} {template.digest}" for name, template in sorted(self._templates.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def reads_clock(self) -> bool:
        """Whether a template prints the date."""
        return any(template.reads_clock for template in self._templates.values())


def leading_token(tokenizer: Any) -> str:
    """The beginning-of-sequence token where the tokenizer writes one by itself, else nothing."""
    bos = tokenizer.bos_token
    return bos if bos and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else ""


def _template_text(chosen: str) -> str:
    if "{%" in chosen or "{{" in chosen:
        return chosen
    try:
        return read_regular(Path(chosen).expanduser()).decode("utf-8")
    except (OSError, UnicodeDecodeError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(
            f"Setting 'data.chat_template' cannot be '{chosen}' ({reason}); give Jinja text or a file that holds it."
        ) from None


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


class _TemplateDict:
    """``dict(...)`` without the methods of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)
