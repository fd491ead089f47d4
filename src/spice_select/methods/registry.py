"""The methods by name: this package's own, and those of other packages by their entry points."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from spice_select.errors import ConfigError
from spice_select.methods.base import Method

GROUP = "spice_select.methods"
"""Entry point group of other packages' methods."""

_BUILT_IN = {
    "full": "Full",
    "random": "Random",
    "length": "Length",
    "loss": "Loss",
    "ifd": "Ifd",
    "fisher": "Fisher",
    "fisher_sft": "FisherSft",
    "less": "Less",
    "selectit": "SelectIt",
    "dpp": "Dpp",
    "tsds": "Tsds",
    "lead": "Lead",
    "kcenter": "KCenter",
    "semdedup": "SemDedup",
    "spice": "Spice",
    "spice_plus": "SpicePlus",
}


def method_names() -> list[str]:
    """Names of all methods: this package's own in a fixed order, then those of other packages by name."""
    return [*_BUILT_IN, *sorted(name for name in _foreign() if name not in _BUILT_IN)]


def method_class(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        ConfigError: There is none, or the entry point that names it cannot be used.
    """
    if name in _BUILT_IN:
        found = getattr(import_module(f"spice_select.methods.{name}"), _BUILT_IN[name])
        assert issubclass(found, Method) and found.name == name
        return found
    entry = _foreign().get(name)
    if entry is None:
        known = method_names()
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}."
        raise ConfigError(f"There is no method '{name}'; {hint}")
    return _loaded(entry)


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """A method with its settings.

    Args:
        name: Its name.
        settings: Settings that differ from its defaults.

    Raises:
        ConfigError: An unknown name or setting (the nearest is suggested), or a value that does not fit.
    """
    kind = method_class(name)
    try:
        return kind.model_validate(dict(settings or {}))
    except ValidationError as error:
        raise ConfigError(_sentence(kind, error)) from None


def _foreign() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _loaded(entry: EntryPoint) -> type[Method]:
    try:
        found = entry.load()
    except Exception as error:  # whatever the other package raises
        raise ConfigError(
            f"The method '{entry.name}' of {entry.value} cannot be loaded ({type(error).__name__}: {error}); mend or "
            "remove the package that brings it."
        ) from None
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(
            f"The entry point '{entry.name}' of {entry.value} is no subclass of spice_select.methods.Method; mend the "
            "package that brings it."
        )
    if found.name != entry.name:
        raise ConfigError(
            f"The entry point '{entry.name}' of {entry.value} is a method named '{found.name}'; give both one name."
        )
    return found


def _sentence(kind: type[Method], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        known = list(kind.model_fields)
        if not known:
            return f"Method '{kind.name}' has no settings, and 'method.{field}' was given; leave it out."
        near = difflib.get_close_matches(field, known, n=1, cutoff=0.0)
        return f"Method '{kind.name}' has no setting 'method.{field}'; did you mean 'method.{near[0]}'?"
    value = repr(first.get("input"))
    shown = value if len(value) <= 60 else value[:57] + "..."
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    where = f"Setting 'method.{field}'" if field else "The settings"
    return f"{where} of method '{kind.name}' cannot be {shown}: {message[:1].lower()}{message[1:]}."
