"""Plots as inline SVG: the same bytes for the same numbers, and colours that follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 4.0, 2.6
MOST_POINTS = 400
"""Points that a curve keeps; more are averaged, which no screen can tell apart."""
BINS = 36
NARROW, WIDE = 20.0, 1000.0
"""Ratios of largest to smallest: a linear axis below the one, powers of ten alone beyond the other."""

# Colours that no plot would use, each to be replaced by a variable of the page's style sheet.
INK, MUTED, FIRST, SECOND = "#010203", "#040506", "#070809", "#0a0b0c"
OTHERS = tuple(f"#0c0d{16 + place:02x}" for place in range(6))
_SERIES = (FIRST, SECOND, *OTHERS)
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--line)", FIRST: "var(--picks)", SECOND: "var(--pool)"} | {
    colour: f"var(--series-{place})" for place, colour in enumerate(OTHERS, 3)
}
# Lines differ in their dashes too, for eyes and printers that don't tell the colours apart.
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 1)), (0, (4, 1, 4, 3)))
MOST_SERIES = len(_SERIES)


def curves(
    series: Sequence[tuple[str, Float[np.ndarray, " k"]]],
    *,
    label: str,
    description: str,
    key: str,
    log: bool = False,
    across: str = "pick",
    most: int = MOST_POINTS,
) -> Markup:
    """Values by rank, averaged where there are many.

    Args:
        series: Name and values, at most MOST_SERIES.
        label: Label of the vertical axis.
        description: What the plot shows, for those who can't see it.
        key: Prefix of its identifiers, of its own within the page.
        log: Whether the vertical axis is logarithmic; values that are not positive are left out.
        across: Label of the horizontal axis.
        most: Points of a line; more values are averaged.
    """
    assert len(series) <= MOST_SERIES
    figure, axes = _empty(label, across)
    for place, (name, values) in enumerate(series):
        ranks, heights = _thinned(np.asarray(values, dtype=np.float64), most)
        if log:
            ranks, heights = ranks[heights > 0], heights[heights > 0]
        if not len(ranks):
            continue
        axes.plot(
            ranks,
            heights,
            color=_SERIES[place],
            linestyle=_DASHES[place],
            linewidth=1.6,
            marker="o" if len(ranks) < 30 else "",
            markersize=3,
            label=_plain_label(name),
        )
    shown = [value for line in axes.lines for value in np.asarray(line.get_ydata())]
    if log and shown and max(shown) > NARROW * min(shown):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if len(series) > 1:
        _legend(axes)
    return _svg(figure, description, key)


def histogram(
    picks: Num[np.ndarray, " k"],
    pool: Num[np.ndarray, " n"],
    *,
    label: str,
    description: str,
    key: str,
    log: bool = True,
) -> Markup:
    """Picks and pool on common bins, each as shares of its own rows.

    Args:
        picks: Values of the picks.
        pool: Values of all rows that could be chosen.
        label: Label of the horizontal axis.
        description: What the plot shows, for those who can't see it.
        key: Prefix of its identifiers, of its own within the page.
        log: Logarithmic bins, for values above 0; others are left out. Linear ones take any number.
    """
    figure, axes = _empty("share of rows", label)
    wide = [np.asarray(values, dtype=np.float64) for values in (pool, picks)]
    pool_values, pick_values = (values[np.isfinite(values) & ((values > 0) | (not log))] for values in wide)
    if len(pool_values):
        low, high = float(pool_values.min()), float(pool_values.max())
        if len(pick_values):
            low, high = min(low, float(pick_values.min())), max(high, float(pick_values.max()))
        edges = np.geomspace(low / 1.02, high * 1.02, BINS + 1) if log else _linear_edges(low, high)
        for name, values, colour, fill in (
            ("pool", pool_values, SECOND, True),
            ("picks", pick_values, FIRST, False),
        ):
            if not len(values):
                continue
            heights = np.histogram(values, edges)[0] / len(values) * 100
            axes.stairs(heights, edges, fill=fill, color=colour, alpha=0.55 if fill else 1.0, linewidth=1.8, label=name)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < WIDE * low else (1.0,)))
            axes.xaxis.set_major_formatter(lambda value, _: _short(value))
            axes.xaxis.set_minor_formatter("")
        _legend(axes)
    axes.yaxis.set_major_formatter("{x:g}%")
    axes.set_ylim(bottom=0)
    return _svg(figure, description, key)


def _linear_edges(low: float, high: float) -> Float[np.ndarray, " b"]:
    """Bins of one width; values that are all alike stand in the middle one."""
    rim = 0.01 * (high - low) or max(abs(low) * 1e-3, 1e-9)
    return np.linspace(low - rim, high + rim, BINS + 1)


def _thinned(values: Float[np.ndarray, " k"], most: int) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Ranks from 1 and values, or the means of at most ``most`` neighbouring groups."""
    ranks = np.arange(1.0, len(values) + 1)
    if len(values) <= most:
        return ranks, values
    edges = np.linspace(0, len(values), most + 1).astype(np.int64)
    sizes = np.diff(edges)
    return np.add.reduceat(ranks, edges[:-1]) / sizes, np.add.reduceat(values, edges[:-1]) / sizes


def _plain_label(name: str) -> str:
    """A name as a legend takes it: short, of letters that the drawing's font has, and never a formula."""
    short = name if len(name) <= 28 else f"{name[:13]}..{name[-13:]}"
    kept = "".join(character if 0x20 <= ord(character) < 0x250 else "?" for character in short)
    # Matplotlib passes over names that begin with an underscore, and reads what stands between dollar signs.
    return kept.lstrip("_").replace("$", "\\$") or "run"


def _short(value: float) -> str:
    """1k for 1,000, and small numbers as they are."""
    return f"{value / 1000:g}k" if 1000 <= value < 1e6 else f"{value:g}"


def _empty(vertical: str, horizontal: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(facecolor="none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(which="both", color=MUTED, labelcolor=INK, labelsize=8.5)
    axes.grid(True, axis="y", color=MUTED, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylabel(vertical, color=INK, fontsize=9)
    axes.set_xlabel(horizontal, color=INK, fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure, axes


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8.5, loc="best")


def _svg(figure: Figure, description: str, key: str) -> Markup:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    drawing = _renamed(_with_attributes(drawing), key)
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, variable)
    drawing = re.sub(r"\n\s*", "\n", drawing)
    box = re.search(r'viewBox="([^"]+)"', drawing)
    assert box is not None
    inside = drawing[drawing.index(">") + 1 :]
    opening = (
        f'<svg class="plot" viewBox="{box[1]}" role="img" aria-label="{escape(description)}"'
        ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    # All of it is drawn here from numbers and fixed words; nothing of a row enters.
    return Markup(opening + inside.strip())


def _with_attributes(drawing: str) -> str:
    """Styles as attributes: the page's policy allows no style but that of its own sheet."""

    def attributes(found: re.Match[str]) -> str:
        pairs = [declaration.partition(":") for declaration in found[1].split(";") if declaration.strip()]
        return "".join(f' {name.strip()}="{value.strip()}"' for name, _, value in pairs)

    return re.sub(r'\s+style="([^"]*)"', attributes, drawing)


def _renamed(drawing: str, key: str) -> str:
    """Identifiers by order of appearance: those given are random, and several drawings share a page."""
    names: dict[str, str] = {}
    for name in re.findall(r'\bid="([^"]+)"', drawing):
        names.setdefault(name, f"{key}-{len(names)}")
    return re.sub(r'(\bid="|href="#|url\(#)([^")]+)', lambda found: found[1] + names.get(found[2], found[2]), drawing)
