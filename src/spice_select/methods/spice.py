"""SPICE: information gain less conflict."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from spice_select.methods.information import InformationMethod


class Spice(InformationMethod):
    """Greedy maximisation of log det(I + a F_S), with a penalty on gradients that oppose the picks so far."""

    name: ClassVar[str] = "spice"
    summary: ClassVar[str] = "log-determinant of the Fisher information, less a penalty on opposing gradients"

    conflict_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight lambda of the conflict."""
    penalty: Literal["absolute", "relative"] | None = None
    reference: Literal["selected", "pool"] | None = None
    """What a gradient conflicts with: the mean of the picks so far, or of the pool."""
    hinge: float | str | None = None
    """Cosine below which there is conflict, or a quantile of the pool."""
