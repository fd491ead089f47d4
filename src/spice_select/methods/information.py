"""What the methods that maximise Fisher information share."""

from __future__ import annotations

from abc import ABC
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from spice_select.methods.base import Choice, Method, Need, Varies
from spice_select.methods.inputs import Inputs
from spice_select.selection import Selection, select


class InformationMethod(Method, ABC):
    """Greedy maximisation of Fisher information; a setting that is None is that of the selection section."""

    source: ClassVar[str] = "arXiv 2601.23155"
    cost: ClassVar[str] = "picks x rows x dimension at most; the lazy loop takes a tenth of it"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})

    alpha: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None
    """Fisher scale a."""
    normalize: Literal["none", "unit", "sqrt_tokens", "clip"] | None = None
    """Normalisation of the gradient rows."""
    fisher: Literal["exact", "diag-logdet", "paper-diag", "released"] | None = None
    """Form of the information."""
    loop: Literal["auto", "brute", "dense", "kernel", "lazy", "stochastic"] | None = None
    """Loop; all give the same picks but ``stochastic``, where each is the best of a random sample."""
    sampling_epsilon: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Expected shortfall of the stochastic loop."""
    partitions: Annotated[int, Field(ge=1)] | None = None
    """More than 1: rows are dealt to so many partitions, whose picks make up the pool of a second round."""
    per_token: bool | None = None
    """Compare scores divided by response tokens."""

    def varying(self) -> Varies:
        """Samples and partitions are drawn by the seed; nothing else is."""
        return "draw" if self.loop == "stochastic" or (self.partitions or 1) > 1 else "no"

    def in_selection(self) -> dict[str, Any]:
        """Settings of the selection section that this method decides."""
        return {name: value for name, value in self.model_dump().items() if value is not None}

    def choose(self, inputs: Inputs) -> Choice:
        """Choose rows greedily by information gain, less what the settings subtract."""
        settings = {**inputs.selection, **self.in_selection()}
        selection = _select(inputs, settings)
        return Choice(
            selection.indices,
            selection.scores,
            "information gain less penalty, in nats" if selection.conflict_weight else "information gain, in nats",
            selection.stop_reason,
            warnings=selection.warnings,
            selection=selection,
        )


def _select(inputs: Inputs, settings: dict[str, Any]) -> Selection:
    usable = np.asarray(getattr(inputs.gradients, "usable", np.ones(inputs.n)), dtype=bool)
    left_out = usable & ~inputs.candidates
    left_out[np.asarray(inputs.in_hand, dtype=np.int64)] = False
    budget = inputs.budget
    assert inputs.gradients is not None
    return select(
        inputs.gradients,
        budget=budget.rows if budget.tokens is None else f"{budget.tokens} tokens",
        alpha=settings.get("alpha", 1.0),
        conflict_weight=settings.get("conflict_weight", 0.1),
        penalty=settings.get("penalty", "absolute"),
        reference=settings.get("reference", "selected"),
        hinge=settings.get("hinge", 0.0),
        normalize=settings.get("normalize", "none"),
        stop_ratio=settings.get("stop_ratio"),
        robust_stop=settings.get("robust_stop", False),
        fisher=settings.get("fisher", "exact"),
        loop=settings.get("loop", "auto"),
        sampling_epsilon=settings.get("sampling_epsilon", 0.01),
        partitions=settings.get("partitions", 1),
        partition_map=inputs.partition_map,
        seed=inputs.seed,
        device=settings.get("device", "cpu"),
        lengths=inputs.response_tokens,
        per_token=settings.get("per_token", False),
        groups=None if inputs.quotas is None else inputs.labels,
        quotas=inputs.quotas,
        initial=list(inputs.in_hand) or None,
        exclude=left_out,
    )
