"""The selection methods as a person or a program reads them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from spice_select.errors import ConfigError
from spice_select.methods import Method, Need, method_class, method_names

_COST = {
    Need.GRADIENTS: "one forward and backward pass a row",
    Need.LOSSES: "one forward pass a row",
    Need.DIRECT_LOSSES: "a forward pass of its response",
    Need.EMBEDDINGS: "one forward pass a row",
    Need.TOKEN_FEATURES: "one forward pass a row, and its hidden states on disk",
    Need.RATINGS: "a forward pass a row for every rating prompt",
    Need.CHECKPOINTS: "a training on a share of the rows, and a forward and backward pass a row for every epoch of it",
    Need.TRAINING: "a training on the picks",
    Need.TARGET: "a pass of every target example",
}
_VARIES = {"no": "no", "draw": "its draw", "training": "a training"}


class Setting(BaseModel):
    """One setting of a method.

    Attributes:
        name: As ``--set method.NAME=VALUE`` takes it.
        default: Its value where it is not given; None is that of the selection section, or nothing.
        values: What it may be, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    default: JsonValue
    values: str


class MethodEntry(BaseModel):
    """A method as it is listed.

    Attributes:
        name: Its name.
        summary: What it maximises.
        needs: What it must be given, by default.
        passes: What that costs of the model, in words.
        cost: What it costs beside that.
        varies: What of it depends on the seed.
        source: Paper.
        package: Package that brings it, where it is not this one.
        settings: Its settings.
        fault: Why it cannot be loaded, where it cannot.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str = ""
    needs: tuple[str, ...] = ()
    passes: str = ""
    cost: str = ""
    varies: str = "no"
    source: str = ""
    package: str | None = None
    settings: tuple[Setting, ...] = ()
    fault: str | None = None

    def describe(self, *, settings: bool) -> list[str]:
        """The entry in a few lines.

        Args:
            settings: Name the settings as well.
        """
        if self.fault is not None:
            return [f"{self.name}", f"  cannot be used: {self.fault}"]
        lines = [
            self.name if self.package is None else f"{self.name} (of {self.package})",
            f"  maximises  {self.summary}",
            f"  needs      {', '.join(self.needs) or 'nothing of the model'}"
            + (f": {self.passes}" if self.passes else ""),
        ]
        if self.cost:
            lines.append(f"  cost       {self.cost}")
        if self.varies != "no":
            lines.append(f"  seed       decides {_VARIES[self.varies]}")
        if self.source:
            lines.append(f"  source     {self.source}")
        if settings:
            lines += [f"  method.{one.name} = {_shown(one.default)}  ({one.values})" for one in self.settings]
        return lines


def list_methods() -> list[MethodEntry]:
    """Every method, one that cannot be loaded with its fault."""
    found = []
    for name in method_names():
        try:
            found.append(describe_method(name))
        except ConfigError as error:
            found.append(MethodEntry(name=name, fault=str(error)))
    return found


def describe_method(name: str) -> MethodEntry:
    """One method.

    Raises:
        ConfigError: There is none of that name, or it cannot be loaded.
    """
    kind = method_class(name)
    needs = kind().required()
    package = kind.__module__.partition(".")[0]
    return MethodEntry(
        name=name,
        summary=kind.summary,
        needs=tuple(need.value for need in Need if need in needs),
        passes="; ".join(_COST[need] for need in Need if need in needs),
        cost=kind.cost,
        varies=kind.varies,
        source=kind.source,
        package=None if package == __name__.partition(".")[0] else package,
        settings=tuple(_settings(kind)),
    )


def _settings(kind: type[Method]) -> list[Setting]:
    properties: dict[str, Any] = kind.model_json_schema().get("properties", {})
    defaults = kind().model_dump(mode="json")
    return [Setting(name=name, default=defaults[name], values=_values(properties[name])) for name in kind.model_fields]


def _values(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_values(part) for part in schema["anyOf"] if part.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
    given = str(schema.get("type", "any value"))
    text = kind.get(given, given)
    for key, word in (
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    ):
        if key in schema:
            text += f", {word} {schema[key]:g}"
    return text


def _shown(value: Any) -> str:
    return (
        "as in the selection section, or none"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
