"""Figures of an analysis. Each function returns a new matplotlib figure and changes nothing global.

They are made without pyplot, so that no window opens, no backend is chosen and no figure has to be closed; save one
with ``figure.savefig("gains.png")``, or return it from a notebook cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spice_select.analysis.curves import Curve

SIZE = (6.0, 3.8)
BINS = 40
_BLUE, _ORANGE, _GREEN, _GREY = "#2c6fbb", "#c8641c", "#3d8b57", "#8a8f98"
# Colours that stay apart without red and green, and line styles that stay apart without colours.
_STYLES = {
    "picks": ("these picks", _BLUE, "-"),
    "fisher": ("no penalty", _ORANGE, "--"),
    "top norm": ("largest norms", _GREEN, "-."),
    "random": ("random", _GREY, ":"),
}

Numbers = Sequence[float] | Float[np.ndarray, " k"]


def gain_curve(gains: Numbers, *, title: str = "Gain of each pick") -> Figure:
    """Marginal gain by order of choice, with the half of the first gain.

    Args:
        gains: Gain of each pick, in nats, in order of choice.
        title: Title of the figure.
    """
    figure, axes = _axes(title, "pick", "gain (nats)")
    values = np.asarray(gains, dtype=np.float64)
    axes.plot(np.arange(1, len(values) + 1), values, color=_BLUE, linewidth=1.5, label="gain")
    if len(values):
        axes.axhline(values[0] / 2, color=_GREY, linewidth=1.0, linestyle=":", label="half of the first")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    return figure


def epsilon_curve(bases: Numbers, epsilons: Numbers, *, title: str = "Base and epsilon of each pick") -> Figure:
    """What each pick is worth alone and what the picks before it take away.

    Args:
        bases: Base of each pick, in nats, in order of choice.
        epsilons: Epsilon of each pick, never positive.
        title: Title of the figure.
    """
    figure, axes = _axes(title, "pick", "nats")
    alone, lost = np.asarray(bases, dtype=np.float64), np.asarray(epsilons, dtype=np.float64)
    ranks = np.arange(1, len(alone) + 1)
    axes.plot(ranks, alone, color=_GREY, linewidth=1.0, linestyle=":", label="base: alone")
    axes.plot(ranks, alone + lost, color=_BLUE, linewidth=1.5, label="gain: base + epsilon")
    axes.plot(ranks, lost, color=_ORANGE, linewidth=1.2, linestyle="--", label="epsilon")
    axes.axhline(0.0, color="black", linewidth=0.6)
    if len(alone):
        axes.legend(frameon=False)
    return figure


def conflict_curve(conflicts: Numbers, *, title: str = "Conflict of each pick") -> Figure:
    """Conflict of each pick with its reference when it was picked, and the share of picks so far that oppose it.

    Args:
        conflicts: Conflict of each pick, in order of choice.
        title: Title of the figure.
    """
    figure, axes = _axes(title, "pick", "conflict; share of picks")
    values = np.asarray(conflicts, dtype=np.float64)
    ranks = np.arange(1, len(values) + 1)
    axes.vlines(ranks, 0.0, values, color=_ORANGE, linewidth=1.0, label="conflict")
    axes.plot(ranks, np.cumsum(values > 0) / ranks, color=_BLUE, linewidth=1.5, label="share that opposes, so far")
    axes.set_ylim(bottom=0)
    if len(values):
        axes.legend(frameon=False)
    return figure


def norm_histogram(
    norms: Numbers, picks: Sequence[int] | Int[np.ndarray, " k"] | None = None, *, title: str = "Gradient norms"
) -> Figure:
    """Norms of the pool and of the picks on common logarithmic bins, each as shares of its own rows.

    Args:
        norms: Gradient norm of every row; those that are zero or not finite are left out and counted in the label.
        picks: Row numbers of the picks.
        title: Title of the figure.
    """
    figure, axes = _axes(title, "gradient norm", "share of rows (%)")
    values = np.asarray(norms, dtype=np.float64)
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        return figure
    low, high = values[known].min(), values[known].max()
    edges = np.geomspace(low / 1.02, high * 1.02, BINS + 1)
    sets = [("pool", known, _GREY, True)]
    if picks is not None:
        chosen = np.zeros(len(values), dtype=bool)
        chosen[np.asarray(picks, dtype=np.int64)] = True
        sets.append(("picks", known & chosen, _BLUE, False))
    for name, members, colour, fill in sets:
        heights = np.histogram(values[members], edges)[0] / max(int(members.sum()), 1) * 100
        axes.stairs(heights, edges, fill=fill, color=colour, alpha=0.6 if fill else 1.0, linewidth=1.6, label=name)
    axes.set_xscale("log")
    if not known.all():
        axes.set_xlabel(f"gradient norm ({int((~known).sum()):,} rows without one left out)")
    axes.legend(frameon=False)
    return figure


def information_curves(curves: Sequence[Curve], *, title: str = "Information at equal numbers of rows") -> Figure:
    """Information of these picks, of greedy without penalty, of the largest norms and of random rows.

    Args:
        curves: As ``TheoryReport.trajectory.curves`` holds them.
        title: Title of the figure.
    """
    figure, axes = _axes(title, "rows", "information (nats)")
    for curve in curves:
        label, colour, line = _STYLES[curve.name]
        axes.plot(
            (0, *curve.picks), (0.0, *curve.information), color=colour, linestyle=line, linewidth=1.6, label=label
        )
        if curve.runs > 1:
            axes.fill_between((0, *curve.picks), (0.0, *curve.low), (0.0, *curve.high), color=colour, alpha=0.2)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    if curves:
        axes.legend(frameon=False)
    return figure


def _axes(title: str, horizontal: str, vertical: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes
