"""Drawings of a comparison of methods: information against random's spread, overlap, and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from spice_select.analysis.contest import Contest, MethodLine, OverlapMatrix
from spice_select.analysis.contest_lines import as_many
from spice_select.report.plots import FIRST, INK, MUTED, SECOND, _plain_label, _svg

LINE = 0.24
"""Height of a method's line, in inches."""
NUMBERED = 14
"""Most methods whose indices are written into the cells of the heat map."""
WIDTH = 5.6


def information_plot(contest: Contest) -> Markup | None:
    """A dot for every seed of every method, and the band of random's mean and standard deviation."""
    points = {
        line.label: [
            one.numbers.information
            for one in contest.contestants
            if one.label == line.label and one.numbers is not None and one.numbers.information is not None
        ]
        for line in as_many(contest.methods, contest.random)
    }
    shown = [label for label, values in points.items() if values]
    if not shown:
        return None
    figure, axes = _across(len(shown), "information, nats")
    band = None if contest.random is None else _of(contest.methods, contest.random).spread("information")
    if band is not None and band.mean is not None:
        width = band.deviation or 0.0
        axes.axvspan(band.mean - width, band.mean + width, color=SECOND, alpha=0.35, linewidth=0)
        axes.axvline(band.mean, color=SECOND, linewidth=1.2, linestyle="--")
    for place, label in enumerate(shown):
        axes.plot(points[label], [place] * len(points[label]), "o", color=FIRST, markersize=4.5, alpha=0.85)
    _named(axes, shown)
    return _svg(figure, "Information of every method's picks, and the spread of random choice as a band", "information")


def overlap_plot(overlap: OverlapMatrix) -> Markup | None:
    """Heat map of Jaccard indices; the stronger the colour, the more rows two methods share."""
    count = len(overlap.labels)
    if count < 2:
        return None
    side = 1.5 + 0.36 * count
    figure = Figure(figsize=(side + 0.5, side), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(facecolor="none")
    for row, line in enumerate(overlap.jaccard):
        for column, value in enumerate(line):
            # Squares of one colour and of several strengths follow the page's theme, as an image could not.
            axes.fill(
                [column, column + 1, column + 1, column],
                [row, row, row + 1, row + 1],
                color=FIRST,
                alpha=0.04 + 0.66 * math.sqrt(max(0.0, min(1.0, value))),
                linewidth=0,
            )
            if count <= NUMBERED:
                text = "1" if value >= 1 else f"{value:.2f}".lstrip("0") if value >= 0.005 else "0"
                axes.text(column + 0.5, row + 0.5, text, color=INK, fontsize=7.5, ha="center", va="center")
    names = [_plain_label(label) for label in overlap.labels]
    axes.set_xticks([place + 0.5 for place in range(count)], names, rotation=90, fontsize=8.5, color=INK)
    axes.set_yticks([place + 0.5 for place in range(count)], names, fontsize=8.5, color=INK)
    axes.tick_params(length=0)
    axes.set_xlim(0, count)
    axes.set_ylim(count, 0)
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_color(MUTED)
    return _svg(figure, "Jaccard index of every two methods' picks", "overlap")


def work_plot(contest: Contest) -> Markup | None:
    """Bars of what each method's measurements take alone, and what all took together, measured once."""
    lines = [line for line in contest.methods if line.seeds]
    if not lines or contest.sharing.total <= 0:
        return None
    names = [*(line.label for line in lines), "all, measured once"]
    values = [*(line.work / 1000 for line in lines), contest.sharing.total / 1000]
    figure, axes = _across(len(names), "thousand tokens through the model, backward twice")
    colours = [FIRST] * len(lines) + [SECOND]
    axes.barh(range(len(names)), values, height=0.62, color=colours)
    _named(axes, names)
    axes.set_xlim(left=0)
    return _svg(figure, "Tokens through the model that each method needs alone, and all together", "work")


def seconds_plot(contest: Contest) -> Markup | None:
    """Bars of the seconds that a choice takes once everything is measured."""
    lines = [line for line in contest.methods if line.seconds is not None]
    if not lines:
        return None
    figure, axes = _across(len(lines), "seconds to choose")
    values = [max(line.seconds or 0.0, 1e-4) for line in lines]
    axes.barh(range(len(lines)), values, height=0.62, color=FIRST)
    if max(values) > 50 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    _named(axes, [line.label for line in lines])
    return _svg(figure, "Seconds that each method takes to choose, all measurements being at hand", "seconds")


def _of(lines: Sequence[MethodLine], label: str) -> MethodLine:
    return next(line for line in lines if line.label == label)


def _across(count: int, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 0.8 + LINE * count), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(facecolor="none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(which="both", color=MUTED, labelcolor=INK, labelsize=8.5)
    axes.grid(True, axis="x", color=MUTED, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, color=INK, fontsize=9)
    return figure, axes


def _named(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_plain_label(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
