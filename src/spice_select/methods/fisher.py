"""Fisher information alone: SPICE without its penalty."""

from __future__ import annotations

from typing import Any, ClassVar

from spice_select.methods.information import InformationMethod


class Fisher(InformationMethod):
    """Greedy maximisation of log det(I + a F_S)."""

    name: ClassVar[str] = "fisher"
    summary: ClassVar[str] = "log-determinant of the Fisher information (SPICE with conflict weight 0)"

    def in_selection(self) -> dict[str, Any]:
        """Settings of the selection section that this method decides: there is no penalty."""
        return {**super().in_selection(), "conflict_weight": 0.0}
