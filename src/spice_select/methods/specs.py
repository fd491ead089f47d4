"""Several methods named in one line, each with its own settings: ``spice,random,dpp:kernel=cosine``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from spice_select.errors import ConfigError
from spice_select.methods.base import Method, Need
from spice_select.methods.registry import make_method, method_class, method_names

ALL = "all"
"""Stands for every method that has what it needs."""
LONGEST_LABEL = 60
"""Characters of a label; those beyond give way to a digest."""

_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")
_UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]+")
_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Spec:
    """A method with its settings, under a name of its own.

    Attributes:
        label: The text of the spec, safe for the name of a file and unique among the specs given with it.
        name: Name of the method.
        settings: Settings that were given.
        method: The method with those settings.
    """

    label: str
    name: str
    settings: Mapping[str, Any]
    method: Method

    @property
    def identity(self) -> str:
        """What decides its choice beside the rows: the name and every setting, given or not."""
        return _identity(self.method)


def parse_specs(text: str | Sequence[str], *, target: bool = False) -> tuple[Spec, ...]:
    """Read methods with their settings.

    A spec is ``NAME`` or ``NAME:key=value[:key=value...]``; values are read as YAML. Specs are set apart by commas.
    Commas and colons within brackets or quotes belong to the value, and so does a colon that no ``key=`` follows.
    ``all`` stands for every known method that has what it needs.

    Args:
        text: The specs, or several such texts.
        target: Whether there are target examples; without, ``all`` leaves out the methods that need them.

    Returns:
        The specs in the order given.

    Raises:
        ConfigError: None at all, an unknown method or setting (the nearest is named), a value that does not fit, or
            the same method with the same settings twice.
    """
    texts = [text] if isinstance(text, str) else list(text)
    found = [part.strip() for one in texts for part in _split(one, ",") if part.strip()]
    if not found:
        raise ConfigError("No method was named; give some with --methods, such as --methods spice,random.")
    named = [name for part in found for name in (_all_names(target) if part == ALL else [part])]
    specs: list[Spec] = []
    seen: dict[str, str] = {}
    for part in named:
        name, settings = _read(part)
        method = make_method(name, settings)
        identity = _identity(method)
        if identity in seen:
            also = " ('all' names it too)" if ALL in found else ""
            same = part if seen[identity] == part else f"{part}' and '{seen[identity]}"
            raise ConfigError(f"The method '{same}' was named twice with the same settings{also}; name it once.")
        seen[identity] = part
        specs.append(Spec(_label(part, [spec.label for spec in specs]), name, settings, method))
    return tuple(specs)


def split_specs(text: str | Sequence[str]) -> list[tuple[str, *tuple[tuple[str, str, Any], ...]]]:
    """The parts of specs before any is looked up: names, and of each setting its key, its text and its value.

    Args:
        text: As :func:`parse_specs` takes it.

    Raises:
        ConfigError: A part that is no ``key=value``, or a key given twice.
    """
    texts = [text] if isinstance(text, str) else list(text)
    found = []
    for part in (part.strip() for one in texts for part in _split(one, ",") if part.strip()):
        name, settings = _read(part)
        pieces = {piece.partition("=")[0].strip(): piece for piece in _split(part, ":")[1:]}
        found.append((name, *((key, pieces[key], value) for key, value in settings.items())))
    return found


def needs_target(specs: Sequence[Spec]) -> list[str]:
    """Labels of the specs that need target examples."""
    return [spec.label for spec in specs if Need.TARGET in spec.method.required()]


def _all_names(target: bool) -> list[str]:
    return [name for name in method_names() if target or Need.TARGET not in method_class(name)().required()]


def _identity(method: Method) -> str:
    return json.dumps([method.name, method.model_dump(mode="json")], sort_keys=True)


def _read(part: str) -> tuple[str, dict[str, Any]]:
    name, *rest = _split(part, ":")
    settings: dict[str, Any] = {}
    for piece in rest:
        key, separator, value = piece.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                f"'{part}' is no method with settings; write NAME or NAME:key=value, such as dpp:kernel=cosine."
            )
        key = key.strip()
        if key in settings:
            raise ConfigError(f"'{part}' gives the setting '{key}' twice; give it once.")
        settings[key] = _value(value)
    return name.strip(), settings


def _value(text: str) -> Any:
    if not text.strip():
        return ""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _split(text: str, mark: str) -> list[str]:
    """Parts between marks that stand outside brackets and quotes; a colon counts only where a setting follows."""
    parts, begin, closers, quote = [], 0, [], ""
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            # An apostrophe within a word opens nothing.
            quote = character if place and text[place - 1] in "=,[{(: " else ""
        elif character in _PAIRS:
            closers.append(_PAIRS[character])
        elif closers and character == closers[-1]:
            closers.pop()
        elif (
            character == mark
            and not closers
            and (mark != ":" or not parts or _SETTING.match(text[place + 1 :].lstrip()))
        ):
            parts.append(text[begin:place])
            begin = place + 1
    return [*parts, text[begin:]]


def _label(part: str, taken: Sequence[str]) -> str:
    """The text as a file may be named, and as no other is, upper and lower case being one on some disks."""
    plain = _UNSAFE.sub("-", part.replace(" ", "")).strip("-.") or "method"
    if len(plain) > LONGEST_LABEL:
        plain = f"{plain[: LONGEST_LABEL - 9]}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"
    known = {label.lower() for label in taken}
    label, count = plain, 2
    while label.lower() in known:
        label, count = f"{plain}-{count}", count + 1
    return label
