"""Bounds on what a chat template may cost: templates come from strangers, with models and with data.

Jinja's sandbox keeps a template from reaching Python; it lets it loop for ever and build text without end. Here loops
and macros count their steps, and no one operation makes a text, a list or a number beyond any that a conversation has.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from jinja2 import nodes, pass_context
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_STEPS = 50_000
"""Passes through loops and macros in one rendering of a short conversation."""
STEPS_A_PAIR = 4
"""The same for each pair of messages of a long one: honest templates look back over all messages at each of them."""
MOST_STEPS_IN_ALL = 20_000_000
"""The same in all renderings of one conversation, which is rendered again for every response that is looked for."""
MOST_SECONDS = 2.0
"""Processor time of one rendering of a short conversation, for templates whose single steps are slow; of a long one as
much more as it may take steps."""
MOST_CHARACTERS = 1 << 25
"""Length of one text."""
MOST_ITEMS = 1_000_000
"""Length of one list, and size of a number that says how often or how long."""
_TAKE_LENGTHS = frozenset({"batch", "center", "indent", "round", "slice", "truncate", "wordwrap"})
"""Filters with arguments that say how long or how many; the numbers of other filters are data, of any size."""
_GIVEN_WIDTH = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")
"""A width that is an argument of a format, as in ``%*d`` and ``{:{}}``."""
_LOOKS = 64
_STEP = "a step"


class TemplateLimit(Exception):
    """A template that costs more than any conversation needs."""


class TemplateSlow(TemplateLimit):
    """A template that takes too long: how long a conversation takes is the machine's doing as well."""


def most_steps(messages: int) -> int:
    """Passes through loops and macros in one rendering of so many messages."""
    return max(MOST_STEPS, STEPS_A_PAIR * messages**2)


class Steps(Extension):
    """Counts the passes through loops and macros; :class:`LimitedEnvironment` puts the calls in."""

    def start(self, most: int = MOST_STEPS, *, left: int = MOST_STEPS_IN_ALL) -> None:
        """Begin a rendering.

        Args:
            most: Passes that it may take.
            left: Passes that all renderings of its conversation may still take.
        """
        self.taken, self._most, self._left = 0, most, left
        self._seconds = MOST_SECONDS * max(1.0, min(most, left) / MOST_STEPS)
        self._until = time.thread_time() + self._seconds

    def step(self) -> bool:
        """Count one pass.

        Raises:
            TemplateLimit: There were too many, or they took too long.
        """
        self.taken += 1
        if self.taken > self._most:
            told = f"{MOST_STEPS:,} steps" if self._most == MOST_STEPS else f"{STEPS_A_PAIR} steps a pair of messages"
            raise TemplateLimit(f"it takes more than {told} over one conversation")
        if self.taken > self._left:
            raise TemplateLimit(f"it takes more than {MOST_STEPS_IN_ALL:,} steps in all over one conversation")
        if self.taken % _LOOKS == 0 and time.thread_time() > self._until:
            raise TemplateSlow(f"it takes more than {self._seconds:.0f} s over one conversation")
        return True

    def join(self, *parts: Any) -> str:
        """What ``~`` does."""
        return bounded("".join(map(str, parts)))


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of chat templates, with bounds; it needs the extension :class:`Steps`."""

    intercepted_binops: ClassVar[frozenset[str]] = frozenset(["+", "*", "**", "%"])

    def limit(self) -> None:
        """Put bounds on what the filters take and give, and count steps."""
        steps = self.extensions[Steps.identifier]
        assert isinstance(steps, Steps)
        # A test that no template can name is called directly, where a call goes through the sandbox; one that takes the
        # context is never worked out beforehand.
        self.tests[_STEP] = pass_context(lambda context, value: steps.step())
        for name, function in list(self.filters.items()):
            self.filters[name] = _bounded_filter(name, function)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation whose result is bounded before it is made, as far as its operands tell."""
        if operator == "+":
            value = left + right
            return value if type(value) is str and len(value) < MOST_CHARACTERS else bounded(value)
        if operator == "*":
            for many, text in ((left, right), (right, left)):
                if isinstance(many, int) and isinstance(text, str | list | tuple) and many * len(text) > MOST_ITEMS:
                    raise TemplateLimit("it repeats a text or a list without end")
        elif operator == "**" and isinstance(right, int | float) and abs(right) > 1000:
            raise TemplateLimit("it raises a number to a power without end")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        return bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Any, callee: Any, *args: Any, **kwargs: Any) -> Any:
        """A call whose result is bounded, and whose numbers are where they may be lengths."""
        # Of a text's own format, the sandbox hands over a function that wraps it.
        method = getattr(callee, "__wrapped__", callee)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str) and getattr(method, "__name__", "") in ("format", "format_map"):
            _check_format(owner, args, kwargs)
        elif isinstance(owner, str | bytes | int | float) or callee is self.globals.get("lipsum"):
            _check_arguments(args, kwargs)
        return bounded(super().call(context, callee, *args, **kwargs))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Counted(self.extensions[Steps.identifier]).visit(tree)
        return tree


class _Counted(NodeTransformer):
    """Puts a step in front of every body that may run more than once, and a bound on ``~``."""

    def __init__(self, steps: Extension) -> None:
        self._steps = steps

    def _with_step(self, node: Any) -> Any:
        self.generic_visit(node)
        test = nodes.Test(nodes.Const(0), _STEP, [], [], None, None)
        step = nodes.ExprStmt(test).set_lineno(node.lineno)
        node.body.insert(0, step)
        return node

    visit_For = visit_Macro = visit_CallBlock = _with_step

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        call = self._steps.call_method("join", node.nodes)
        call.set_lineno(node.lineno)
        return call


def bounded(value: Any) -> Any:
    """A value as it is, unless it is longer than anything that a conversation has.

    Raises:
        TemplateLimit: It is longer.
    """
    if isinstance(value, str):
        if len(value) > MOST_CHARACTERS:
            raise TemplateLimit(f"it makes a text of {len(value):,} characters")
    elif isinstance(value, list | tuple | dict):
        if len(value) > MOST_ITEMS:
            raise TemplateLimit(f"it makes a list of {len(value):,} items")
    elif isinstance(value, int) and value.bit_length() > 4096:
        raise TemplateLimit("it makes a number without end")
    return value


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    # What marks a filter that takes the context comes along with the attributes.
    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        if name in _TAKE_LENGTHS:
            _check_arguments(args, kwargs)
        if name == "format":
            _check_format(str(args[0]), args[1:], kwargs)
        return bounded(function(*args, **kwargs))

    return limited


def _check_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and not -MOST_ITEMS <= value <= MOST_ITEMS:
            raise TemplateLimit("it asks for a length without end")


def _check_format(text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
    if any(len(run) > 6 for run in _digits(text)):
        raise TemplateLimit("it pads a text without end")
    if _GIVEN_WIDTH.search(text):
        inner = [value for one in args if isinstance(one, Mapping) for value in one.values()]
        _check_arguments((*args, *inner), kwargs or {})


def _digits(text: str) -> list[str]:
    return "".join(one if one.isdecimal() else " " for one in text).split()
