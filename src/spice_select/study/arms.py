"""Arms of a study: methods with their settings, and settings of the configuration that are one arm's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spice_select.analysis.study_record import Arm
from spice_select.config import RunConfig, merge, resolve
from spice_select.errors import ConfigError
from spice_select.methods.base import Varies
from spice_select.methods.information import InformationMethod
from spice_select.methods.specs import LONGEST_LABEL, Spec, parse_specs, split_specs
from spice_select.preconditions import varies

LABEL = "label"
"""Setting of an arm that names it."""
FULL = "full"
"""Method that takes every row: trained once for each seed, whatever the budgets are."""

# What decides the rows, and so must be the same for every arm; and what follows from the plan.
_SHARED = frozenset({"data", "training", "output", "preset", "seed", "model"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class StudyArm:
    """One way of choosing rows.

    Attributes:
        label: Its name, safe for that of a file.
        spec: The method.
        overrides: Settings of the configuration that are its own, by dotted key.
        config: The configuration with them.
    """

    label: str
    spec: Spec
    overrides: Mapping[str, Any]
    config: RunConfig

    @property
    def in_pools(self) -> bool:
        """Whether it chooses pool by pool, training its proxy."""
        return self.config.schedule.kind == "pools"

    @property
    def varies(self) -> Varies:
        """What of its choice depends on the seed."""
        return varies(self.spec.method, self.config)

    def record(self) -> Arm:
        """The arm as the study keeps it."""
        return Arm(
            label=self.label,
            method=self.spec.name,
            settings=self.spec.method.model_dump(mode="json"),
            overrides=dict(self.overrides),
            varies=self.varies,
            summary=self.spec.method.summary,
        )


def parse_arms(text: str | Sequence[str], config: RunConfig) -> tuple[StudyArm, ...]:
    """Read arms.

    An arm is a method as ``compare`` takes it, ``NAME[:key=value...]``. A key with a point in it is a setting of the
    configuration, for this arm alone (``spice:schedule.warmup_steps=50``), and ``label=...`` names the arm.

    Args:
        text: Arms with commas between, or several such texts.
        config: The settings that all arms share.

    Raises:
        ConfigError: An unknown method or setting, a setting that must be the same for all arms, or two arms of one
            name.
    """
    arms: list[StudyArm] = []
    for part in split_specs(text):
        name, *pieces = part
        plain, overrides, label = [name], {}, ""
        for key, piece, value in pieces:
            if key == LABEL:
                label = str(value)
            elif "." in key:
                overrides[key] = _allowed(key, value)
            else:
                plain.append(piece)
        spec = parse_specs(":".join(plain), target=bool(config.data.target))
        if len(spec) > 1 and (label or overrides):
            raise ConfigError(f"'{name}' stands for several methods; name one to give it a label or settings.")
        for one in spec:
            arms.append(_arm(one, label, overrides, config, [arm.label for arm in arms]))
    if not arms:
        raise ConfigError("No method was named; give some with --methods, such as --methods spice,random.")
    return tuple(arms)


def _allowed(key: str, value: Any) -> Any:
    section = key.partition(".")[0]
    if section in _SHARED:
        raise ConfigError(
            f"'{key}' cannot be one arm's own, as all arms share rows, models and training; set it for all with --set."
        )
    if section == "method":
        raise ConfigError(f"'{key}' is a setting of the method; write {key.partition('.')[2]}={value} with it.")
    return value


def _arm(spec: Spec, label: str, overrides: Mapping[str, Any], config: RunConfig, taken: Sequence[str]) -> StudyArm:
    if label and not _NAME.fullmatch(label):
        raise ConfigError(f"An arm's label cannot be '{label}'; use letters, digits and . _ + - alone.")
    own = label or "-".join([spec.label, *(f"{key.rpartition('.')[2]}={overrides[key]}" for key in overrides)])
    own = re.sub(r"[^A-Za-z0-9._=+-]+", "-", own)
    if len(own) > LONGEST_LABEL:
        raise ConfigError(f"The arm '{own[:LONGEST_LABEL]}...' needs a name; give it one of its own with :label=NAME.")
    if own.lower() in (one.lower() for one in taken):
        raise ConfigError(f"Two arms are named '{own}'; give one of them another name with :label=NAME.")
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        piece: Any = value
        for name in reversed(key.split(".")):
            piece = {name: piece}
        nested = merge(nested, piece)
    resolved = resolve(merge(config.model_dump(), nested))
    if resolved.schedule.kind == "pools" and not isinstance(spec.method, InformationMethod):
        raise ConfigError(f"'{own}' cannot choose in pools: schedule.kind pools goes with spice or fisher alone.")
    return StudyArm(own, spec, overrides, resolved)
