"""Drawings of a study: differences from random with their intervals, and cost against the measure of the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spice_select.analysis.study_summary import ArmLine, Family, Summary
from spice_select.analysis.study_words import measure_title, table_title, unit
from spice_select.report.plots import FIRST, INK, MUTED, NARROW, SECOND, _plain_label, _svg

LINE = 0.3
"""Height of an arm's line, in inches."""
WIDTH = 5.6
_GAP = 0.062
"""Least distance of two names beside the points, as a share of the height."""


def forest_plot(family: Family, summary: Summary, key: str) -> Markup | None:
    """A dot and two intervals for every arm: over the seeds thick, over seeds and rows thin; random stands at 0."""
    shown = [(line, one) for line in family.arms if (one := line.from_random(summary.measure)) is not None]
    if not shown:
        return None
    side = "right" if summary.higher else "left"
    figure, axes = _frame(0.85 + LINE * len(shown), f"difference from random{_in(summary)} ({side} is better)")
    axes.axvline(0.0, color=SECOND, linewidth=1.4, linestyle="--")
    for place, (line, one) in enumerate(shown):
        for interval, width in ((one.both or (None if one.seeds else one.rows), 1.2), (one.seeds, 3.4)):
            if interval is not None:
                axes.plot([interval.low, interval.high], [place, place], color=FIRST, linewidth=width, alpha=0.85)
        told = line.standing in ("better", "worse")
        axes.plot([one.mean], [place], "o" if told else "D", color=FIRST, markersize=6.5, zorder=5)
        if not told:
            # A hollow mark: what is not told from random differs in form too, for eyes that don't tell colours apart.
            axes.plot([one.mean], [place], "D", color=MUTED, markersize=3.2, zorder=6)
    axes.set_yticks(range(len(shown)), [_plain_label(line.arm) for line, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    words = f"Difference of every arm from random with its intervals, {table_title(family)}"
    return _svg(figure, words, key)


def cost_plot(family: Family, summary: Summary, key: str) -> Markup | None:
    """Every arm's mean and standard error over what selection and training take."""
    lines = [*family.arms, *([] if family.full is None else [family.full])]
    points = [(line, x, one) for line in lines if (x := _cost(line)) and (one := line.measure(summary.measure))]
    if not points:
        return None
    relative = all(line.cost is not None and line.cost.flops_of_full is not None for line, _, _ in points)
    scale = 100.0 if relative else 1.0
    across = "operations, selection included" + (", % of training on all" if relative else "")
    figure, axes = _frame(3.4, across, grid="both")
    axes.set_ylabel(measure_title(summary.measure) + ("" if not _in(summary) else ", nats"), color=INK, fontsize=9)
    values = [x if not relative or line.cost is None else line.cost.flops_of_full or x for line, x, _ in points]
    for (line, _, one), x in zip(points, values, strict=True):
        whole = line is family.full
        axes.errorbar(
            [x * scale],
            [one.mean],
            yerr=[one.error or 0.0],
            color=SECOND if whole or line.arm == summary.random else FIRST,
            fmt="s" if whole else "^" if line.arm == summary.random else "o",
            markersize=6,
            linewidth=1.4,
        )
    if max(values) > NARROW / 4 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    _names(axes, [(line.arm, x * scale, one.mean) for (line, _, one), x in zip(points, values, strict=True)])
    return _svg(figure, f"Cost of every arm against {measure_title(summary.measure)}, {table_title(family)}", key)


def _names(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names in a column beside the points, each with a line to its own, none over another."""
    low, high = axes.get_ylim()
    ordered = sorted(points, key=lambda point: point[2])
    heights: list[float] = []
    for _, _, y in ordered:
        wanted = (y - low) / (high - low)
        heights.append(max(wanted, heights[-1] + _GAP) if heights else wanted)
    # What was pushed over the upper rim moves down together with what is below it.
    ceiling = 0.98
    for place in range(len(heights) - 1, -1, -1):
        heights[place] = min(heights[place], ceiling)
        ceiling = heights[place] - _GAP
    for (name, x, y), height in zip(ordered, heights, strict=True):
        axes.annotate(
            _plain_label(name),
            xy=(x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=INK,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4},
        )


def _cost(line: ArmLine) -> float | None:
    return None if line.cost is None or line.cost.flops <= 0 else line.cost.flops


def _in(summary: Summary) -> str:
    return f",{unit(summary.measure)}" if unit(summary.measure) else ""


def _frame(height: float, label: str, *, grid: str = "x") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(facecolor="none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(which="both", color=MUTED, labelcolor=INK, labelsize=8.5)
    axes.grid(True, axis="both" if grid == "both" else "x", color=MUTED, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, color=INK, fontsize=9)
    return figure, axes
