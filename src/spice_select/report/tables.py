"""The rows that a page lists: first picks, most in conflict, largest left out, near-duplicates left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from spice_select.report.content import Messages, RunContent
from spice_select.report.text import Turn, plain, preview, shown_turns

FIRST_PICKS = 200
"""Picks that the first table shows."""
OTHERS = 50
"""Rows of every other table."""
NAME_CHARACTERS = 200


@dataclass(frozen=True)
class Cell:
    """One value of a line.

    Attributes:
        label: What it is, as the head of the column and on a phone beside the value.
        value: The value as text.
        number: Whether it stands on the right.
    """

    label: str
    value: str
    number: bool = True


@dataclass(frozen=True)
class Line:
    """One row of the pool in a table.

    Attributes:
        index: Its number.
        cells: Its values.
        preview: The beginning of its text in one line.
        turns: Its messages; empty where its text is not at hand.
        other: Another row that it is shown beside, its pick, and that one's messages.
        partner: Number of that row.
    """

    index: int
    cells: tuple[Cell, ...]
    preview: str = ""
    turns: tuple[Turn, ...] = ()
    other: tuple[Turn, ...] = ()
    partner: int | None = None


@dataclass(frozen=True)
class Table:
    """One table of examples.

    Attributes:
        key: Prefix of its lines' identifiers.
        title: Its head.
        about: What it shows, in a sentence.
        lines: Its lines.
    """

    key: str
    title: str
    about: str
    lines: tuple[Line, ...]

    @property
    def heads(self) -> tuple[Cell, ...]:
        """Cells of the head."""
        return self.lines[0].cells if self.lines else ()

    @property
    def rows(self) -> list[int]:
        """Rows whose texts it shows."""
        return [row for line in self.lines for row in (line.index, line.partner) if row is not None]

    def with_texts(self, texts: Mapping[int, Messages]) -> Table:
        """The same with the texts of its rows."""
        lines = []
        for line in self.lines:
            turns = shown_turns(texts.get(line.index, ()))
            pick = () if line.partner is None else shown_turns(texts.get(line.partner, ()), 800, 1200)
            lines.append(replace(line, turns=turns, preview=preview(turns), other=pick))
        return replace(self, lines=tuple(lines))


def example_tables(content: RunContent) -> tuple[Table, ...]:
    """The tables of a run, without texts."""
    tables = [_first(content), _conflicting(content), _left_out(content), _duplicates(content)]
    return tuple(table for table in tables if table.lines)


def _first(content: RunContent) -> Table:
    trace = content.trace
    count = min(len(trace.indices), FIRST_PICKS)
    lines = tuple(
        Line(
            index,
            (
                Cell("Rank", f"{place + 1:,}"),
                *source_cells(content, index),
                *measured_cells(content, place),
                *_sizes(content, index),
            ),
        )
        for place, index in enumerate(trace.indices[:FIRST_PICKS].tolist())
    )
    title = f"The first {count:,} picks" if count > 1 else "The one pick"
    said = [] if content.record.maximised else [f"score is {content.score_name}"]
    if trace.gains is not None:
        said.append("gain is what each added, in nats")
    return Table("picks", title, "; ".join(["In order of choice", *said]).replace("score is score; ", "") + ".", lines)


def _conflicting(content: RunContent) -> Table:
    conflicts = content.conflicts
    ranks = {index: place + 1 for place, index in enumerate(content.trace.indices.tolist())}
    worst = sorted(conflicts, key=lambda index: (-conflicts[index], index))[:OTHERS]
    lines = tuple(
        Line(
            index,
            (
                Cell("Conflict", f"{conflicts[index]:.3f}"),
                *source_cells(content, index),
                Cell("Pick", f"{ranks[index]:,}" if index in ranks else "left out"),
                *_sizes(content, index),
            ),
        )
        for index in worst
    )
    aim = content.record.objective
    whose = "the pool's mean" if aim is not None and aim.reference == "pool" else "the mean of the picks"
    about = f"Rows that pull most against {whose}; for a pick, as it was when it was picked."
    return Table("conflicting", "Most in conflict", about, lines)


def _left_out(content: RunContent) -> Table:
    rejected = content.rejected
    if rejected is not None and len(rejected.indices):
        shown = rejected.indices[:OTHERS].tolist()
        gains = dict(zip(rejected.indices.tolist(), rejected.gains.tolist(), strict=True))
        about = "What each would still add after the last pick, in nats, largest first."
        if rejected.leading < len(shown):
            about += f" Only the {len(rejected.indices):,} of largest norm were measured, to keep this short."
    elif content.pool_scores is not None:
        return _best_left_out(content, content.pool_scores)
    else:
        shown, gains = _by_norm(content), {}
        about = "By gradient norm, largest first."
    lines = tuple(
        Line(
            index,
            (
                *([Cell("Gain left", four_digits(gains[index]))] if gains else []),
                *source_cells(content, index),
                *([] if rejected is None else [Cell("Conflict", f"{rejected.conflicts[index]:.3f}")]),
                *_sizes(content, index),
            ),
        )
        for index in shown
    )
    return Table("rejected", "The largest left out", about, lines)


def _best_left_out(content: RunContent, scores: Float[np.ndarray, " n"]) -> Table:
    """Rows by their scores, where nothing is known of what they would still add."""
    left = np.isfinite(scores)
    if content.usable is not None:
        left &= content.usable
    left[content.trace.indices] = False
    rows = np.flatnonzero(left)
    shown = rows[np.argsort(-scores[rows], kind="stable")][:OTHERS].tolist()
    lines = tuple(
        Line(
            index,
            (
                Cell("Score", four_digits(float(scores[index]))),
                *source_cells(content, index),
                *_sizes(content, index),
            ),
        )
        for index in shown
    )
    return Table("rejected", "The highest scores left out", "By score, highest first.", lines)


def _by_norm(content: RunContent) -> list[int]:
    if content.norms is None:
        return []
    norms = np.where(np.isfinite(content.norms), content.norms, 0.0)
    if content.usable is not None:
        norms = np.where(content.usable, norms, 0.0)
    norms[content.trace.indices] = 0.0
    order = np.argsort(-norms, kind="stable")[:OTHERS]
    return order[norms[order] > 0].tolist()


def _duplicates(content: RunContent) -> Table:
    near = content.neighbours
    if near is None:
        return Table("duplicates", "", "", ())
    ranks = {index: place + 1 for place, index in enumerate(content.trace.indices.tolist())}
    lines = tuple(
        Line(
            index,
            (
                # Rounded down: two gradients that differ are not said to be one.
                Cell("Cosine", f"{np.floor(cosine * 1e4 + 1e-6) / 1e4:.4f}"),
                *source_cells(content, index),
                Cell("Like pick", f"{ranks[pick]:,}"),
                *_sizes(content, index),
            ),
            partner=pick,
        )
        for index, pick, cosine in list(
            zip(near.indices.tolist(), near.picks.tolist(), near.cosines.tolist(), strict=True)
        )[:OTHERS]
    )
    about = (
        f"Rows whose gradient has a cosine of at least {near.threshold:g} with that of a pick: {len(near):,} in all"
        f"{f', the nearest {OTHERS} shown' if len(near) > OTHERS else ''}."
    )
    if near.compared < near.of:
        about += f" Only the first {near.compared:,} picks were compared, to keep this short."
    return Table("duplicates", "Near-duplicates left out", about, lines)


def source_cells(content: RunContent, index: int) -> tuple[Cell, ...]:
    """A row's number and the name of its source."""
    source = "" if content.sources is None else plain(content.sources[index])[:NAME_CHARACTERS]
    return Cell("Row", str(index)), Cell("Source", source, number=False)


def _sizes(content: RunContent, index: int) -> tuple[Cell, ...]:
    tokens = "" if content.lengths is None else f"{int(content.lengths[index]):,}"
    norm = "" if content.norms is None else f"{float(content.norms[index]):.3g}"
    unmeasured = content.record.objective is None and content.norms is None
    return Cell("Tokens", tokens), *(() if unmeasured else (Cell("Norm", norm),))


def measured_cells(content: RunContent, place: int) -> tuple[Cell, ...]:
    """The score of a pick of another method than SPICE, and its gain and conflict where they are known."""
    trace = content.trace
    cells = []
    if trace.scores is not None and not content.record.maximised:
        cells.append(Cell("Score", four_digits(float(trace.scores[place]))))
    if trace.gains is not None:
        cells.append(Cell("Gain", four_digits(float(trace.gains[place]))))
    if trace.conflicts is not None:
        cells.append(Cell("Conflict", f"{trace.conflicts[place]:.3f}"))
    return tuple(cells)


def four_digits(value: float) -> str:
    """Four significant digits; -0 and rounding noise are 0."""
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"
