"""The map: rows as points, drawn here as paths and handed to the script as numbers and short texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from spice_select.report.content import Messages, RunContent
from spice_select.report.text import plain, snippet

MOST_PICKS, MOST_REJECTED = 2000, 2000
"""Points of each kind; more would be a blot, and too much text for one page."""
SIDE, MARGIN = 600.0, 16.0
"""Side of the drawing and the empty rim within it, in its own units."""
NAME_CHARACTERS = 80

KINDS = ("left out", "left out, in conflict", "picked", "picked, in conflict")


@dataclass(frozen=True)
class Kind:
    """One kind of points.

    Attributes:
        place: Number of the kind in ``KINDS``; also the order in which they are drawn.
        name: Its name.
        count: Points of it.
        path: Their drawing.
    """

    place: int
    name: str
    count: int
    path: str


@dataclass(frozen=True)
class PointMap:
    """The map of a run.

    Attributes:
        kinds: The kinds of points, in order of drawing.
        caption: What the axes are, how much they show, and what was left out.
        data: Columns for the script.
        origin: Where the axes cross, in units of the drawing.
    """

    kinds: tuple[Kind, ...]
    caption: str
    data: Mapping[str, object]
    origin: tuple[float, float]


def map_rows(
    picks: Int[np.ndarray, " k"], usable: Bool[np.ndarray, " n"], wanted: Sequence[int] = ()
) -> Int[np.ndarray, " m"]:
    """Rows that the map shows: all, or evenly spaced ones, and those wanted by number whatever happens.

    Args:
        picks: Rows chosen, in order of choice.
        usable: Rows that could be chosen.
        wanted: Rows that other parts of the page show.
    """
    others = usable.copy()
    others[picks] = False
    sampled = [_spaced(picks, MOST_PICKS), _spaced(np.flatnonzero(others), MOST_REJECTED)]
    return np.unique(np.concatenate([*sampled, np.asarray(wanted, dtype=np.int64)]))


def _spaced(rows: Int[np.ndarray, " m"], most: int) -> Int[np.ndarray, " s"]:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def point_map(content: RunContent, texts: Mapping[int, Messages], anchors: Mapping[int, str]) -> PointMap | None:
    """The map of a run.

    Args:
        content: The run, with its projection.
        texts: Messages of rows; a row without them is a point without text.
        anchors: Where on the page a row stands in a table.
    """
    found = content.projection
    if found is None or found.coordinates.shape[1] < 2:
        return None
    placed = np.isfinite(found.coordinates).all(axis=1)
    indices, spots = found.indices[placed], found.coordinates[placed]
    if not len(indices):
        return None
    points, origin = _scaled(spots)
    conflicts = content.conflicts
    ranks = {index: place + 1 for place, index in enumerate(content.trace.indices.tolist())}
    trace = content.trace
    gains = {} if trace.gains is None else dict(zip(trace.indices.tolist(), trace.gains.tolist(), strict=True))
    if content.rejected is not None:
        rest = zip(content.rejected.indices.tolist(), content.rejected.gains.tolist(), strict=True)
        gains |= {index: gain for index, gain in rest if index not in ranks}
    numbers = indices.tolist()
    kinds = [2 * (index in ranks) + (index in conflicts) for index in numbers]
    order = sorted(range(len(numbers)), key=lambda place: (kinds[place], -ranks.get(numbers[place], 0), place))
    rows = [numbers[place] for place in order]
    kinds = [kinds[place] for place in order]
    corners = [(round(float(points[place, 0]), 1), round(float(points[place, 1]), 1)) for place in order]
    labels = [] if content.sources is None else [content.sources[index] for index in rows]
    names = list(dict.fromkeys(labels))
    codes = {name: place for place, name in enumerate(names)}
    data = {
        "x": [x for x, _ in corners],
        "y": [y for _, y in corners],
        "kind": kinds,
        "row": rows,
        "rank": [ranks.get(index, 0) for index in rows],
        "gain": [_short(gains.get(index)) for index in rows],
        "conflict": [round(conflicts.get(index, 0.0), 3) for index in rows],
        "tokens": [] if content.lengths is None else [int(content.lengths[index]) for index in rows],
        "norm": [] if content.norms is None else [_short(float(content.norms[index])) for index in rows],
        "sources": [plain(name)[:NAME_CHARACTERS] for name in names],
        "source": [codes[name] for name in labels],
        "text": [snippet(texts.get(index, ())) for index in rows],
        "anchor": [anchors.get(index, "") for index in rows],
    }
    drawn = tuple(
        Kind(place, name, kinds.count(place), _path(place, _of_kind(corners, kinds, place)))
        for place, name in enumerate(KINDS)
    )
    return PointMap(drawn, _caption(content, len(rows), kinds), data, origin)


def _scaled(spots: Float[np.ndarray, "m c"]) -> tuple[Float[np.ndarray, "m 2"], tuple[float, float]]:
    """Coordinates of the drawing: one scale for both axes, as distances mean something; and where 0 is."""
    low, high = spots[:, :2].min(axis=0), spots[:, :2].max(axis=0)
    span = float((high - low).max()) or 1.0
    scale = (SIDE - 2 * MARGIN) / span
    middle = (low + high) / 2
    flipped = np.array([1.0, -1.0])
    points = SIDE / 2 + (spots[:, :2] - middle) * scale * flipped
    origin = SIDE / 2 - middle * scale * flipped
    return points, (round(float(origin[0]), 1), round(float(origin[1]), 1))


def _of_kind(corners: Sequence[tuple[float, float]], kinds: Sequence[int], wanted: int) -> list[tuple[float, float]]:
    return [corner for corner, kind in zip(corners, kinds, strict=True) if kind == wanted]


def _path(kind: int, corners: Sequence[tuple[float, float]]) -> str:
    """One path for all points of a kind; the script draws the same shapes."""
    if kind == 0:
        return "".join(f"M{x:g},{y:g}h0" for x, y in corners)
    if kind == 2:
        return "".join(f"M{x:g},{y - 5.5:g}l5.5,5.5l-5.5,5.5l-5.5,-5.5z" for x, y in corners)
    return "".join(f"M{x:g},{y - 6:g}l5.5,10h-11z" for x, y in corners)


def _caption(content: RunContent, shown: int, kinds: Sequence[int]) -> str:
    found = content.projection
    assert found is not None
    first, second = found.shares[:2]
    said = (
        f"Two directions hold {first:.1%} (across) and {second:.1%} (upwards) of the variance of the gradients' "
        "directions; the rest is not to be seen, so points that touch here may be far apart."
    )
    picks = sum(kind >= 2 for kind in kinds)
    others = content.record.usable - content.record.k
    if picks < content.record.k or shown - picks < others:
        said += (
            f" Shown are {picks:,} of {content.record.k:,} picks and {shown - picks:,} of {others:,} rows left out,"
            " evenly spaced and those of the tables below."
        )
    if found.fitted < content.record.usable:
        said += f" The directions are those of {found.fitted:,} rows."
    return said


def _short(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.4g}")
