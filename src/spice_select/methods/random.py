"""Rows drawn at random."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from spice_select.methods.base import Choice, Method, Varies, ranked
from spice_select.methods.inputs import Inputs


class Random(Method):
    """Draws rows uniformly, without replacement.

    Every row gets a number from 0 to 1 by its row number and the seed, and the highest are taken. So the picks of a
    smaller budget are the first of a larger one's, and rows that are left out or come after change no other row's draw.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "nothing: rows drawn uniformly without replacement"
    cost: ClassVar[str] = "nothing"
    varies: ClassVar[Varies] = "draw"

    def choose(self, inputs: Inputs) -> Choice:
        """The rows with the highest draws that budget and quotas allow."""
        return ranked(inputs, np.random.default_rng(inputs.seed).random(inputs.n), "random draw")
