"""Rows by the length of their response."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from spice_select.methods.base import Choice, Method, ranked
from spice_select.methods.inputs import Inputs


class Length(Method):
    """Takes the rows with the longest responses, or the shortest."""

    name: ClassVar[str] = "length"
    summary: ClassVar[str] = "the response tokens of the picks"
    source: ClassVar[str] = "arXiv 2402.04833"
    cost: ClassVar[str] = "nothing"

    order: Literal["longest", "shortest"] = "longest"
    """Which responses come first."""

    def choose(self, inputs: Inputs) -> Choice:
        """Rows by response tokens, as encoded and cut for the proxy."""
        tokens = np.asarray(inputs.response_tokens, dtype=np.float64)
        if self.order == "longest":
            return ranked(inputs, tokens, "response tokens")
        return ranked(inputs, -tokens, "response tokens, negative")
