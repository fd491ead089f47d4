"""What a selection costs: how often each kind of work is done, times what it takes here.

The counts of the lazy loop depend on the gradients. Those here were fitted on pools of unequal clusters with
heavy-tailed norms (``benchmarks/scaling.py --fit``); rows that are alike, or a large conflict weight, need more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from spice_select.analysis.activity import SAMPLE, STEPS
from spice_select.analysis.neighbours import MOST_WORK
from spice_select.analysis.prefixes import CHEAP_WORK
from spice_select.cost.machine import Speeds
from spice_select.selection import bounds, stochastic
from spice_select.selection.blocked import ACTIVE_BYTES
from spice_select.selection.bounds import TIGHTEN_EVERY
from spice_select.selection.engines import LAZY_FROM
from spice_select.selection.fisher import LARGEST_INVERSE
from spice_select.selection.rows import CACHE_BYTES
from spice_select.selection.stochastic import ACTIVE, sample_size
from spice_select.selection.symmetric import BLOCK, POWER_STEPS


@dataclass(frozen=True)
class Work:
    """A selection to be priced.

    Attributes:
        rows: N.
        dim: D.
        picks: k.
        loop: ``lazy``, ``dense``, ``kernel``, ``brute`` or ``stochastic``.
        penalised: The conflict has a weight, so that the selection without it is made as well.
        fisher: Form of the information.
        itemsize: Bytes of a stored number.
        epsilon: Of the stochastic loop.
        partitions: Parts that are selected from by themselves, before their picks are.
        at_once: Partitions that are under way at the same time.
        alike: All rows have one norm, so that bounds tell hardly any of them apart.
    """

    rows: int
    dim: int
    picks: int
    loop: str = "lazy"
    penalised: bool = True
    fisher: str = "exact"
    itemsize: int = 4
    epsilon: float = 0.01
    partitions: int = 1
    at_once: float = 1.0
    alike: bool = False

    def rounds(self) -> tuple[Work, Work]:
        """One partition, and the picks of all."""
        loop = "lazy" if self.loop in ("stochastic", "kernel") else self.loop
        part = -(-self.rows // self.partitions)
        picks = min(self.picks, part)
        united = min(self.rows, self.partitions * picks)
        one = replace(self, rows=part, picks=picks, partitions=1)
        return one, replace(self, rows=united, loop=loop, partitions=1)


@dataclass(frozen=True)
class Count:
    """A number of times: powers of N and k / N, little before k nears D, and less again far beyond it.

    Attributes:
        scale: Its size.
        rows: Power of N.
        share: Power of k / N.
        onset: Power of k / D with which it sets in.
        knee: The k / D by which half has set in.
        decay: Power with which it falls for k well above 5 D, where bounds tell most rows apart.
    """

    scale: float
    rows: float
    share: float
    onset: float
    knee: float
    decay: float

    def of(self, work: Work) -> float:
        """The count."""
        n, d, k = float(work.rows), float(work.dim), float(max(1, work.picks))
        # As a logarithm, for such a power of a small number is none.
        late = self.onset * math.log(self.knee * d / k)
        set_in = 1.0 / (1.0 + math.exp(min(late, 700.0)))
        return self.scale * n**self.rows * (k / n) ** self.share * set_in * (1.0 + k / d / 5.0) ** -self.decay


# Fitted; see benchmarks/scaling.py.
LOOKED_AT = Count(scale=6.23, rows=1.087, share=0.965, onset=26.1, knee=0.97, decay=0.50)
BY_MATRIX = Count(scale=3.10, rows=1.097, share=0.918, onset=107.8, knee=0.98, decay=0.25)
RENEWED = 1.23
"""Rows that enter the active set when it is chosen anew, as a share of its usual size."""
PRODUCTS_A_PICK = 1.41
ACTIVE_GROWTH = 1.3
AGE = 0.2
"""Update vectors by which a row is brought up to date, as a share of D."""
CERTIFIED = 0.06
"""Time of the certificate as a share of the lazy loop's."""
PLAIN = 0.85
"""Time of the selection without penalty, over that with it."""
SCREENED = 1.1
"""Rows that the stochastic loop screens, over those that the lazy one would look at."""
STOCHASTIC_PICKS, STOCHASTIC_PASSES = 2.0, 0.3
"""A pick of the stochastic loop in bare picks of the lazy one, and in passes over the matrix."""
# Time over that of one large product or of a bare pick: small blocks, and what goes with each.
FORMS, TIMES, INNER, PICK = 1.5, 1.6, 1.2, 1.3
PASS = 1.6
"""Time of a pass over rows in blocks, over that of one product with a vector."""
PROOF = 2.0
"""Time of a proof's Cholesky factorisation over that of as large a product."""
REBUILD_PICKS = 10.0
"""Fixed time of choosing the active set anew, in picks."""


def resolved_loop(loop: str, fisher: str, rows: int, dim: int) -> str:
    """The loop that ``auto`` stands for."""
    if loop != "auto":
        return loop
    if rows * dim >= LAZY_FROM:
        return "lazy"
    return "kernel" if fisher == "exact" and rows <= dim else "dense"


def active_rows(work: Work) -> float:
    """Rows of the active set, on the average."""
    usual = max(64, min(1024, work.rows // 32))
    if work.alike:
        return min(work.rows, max(64, ACTIVE_BYTES // (8 * work.dim)))
    return min(usual * ACTIVE_GROWTH, work.rows, max(64, ACTIVE_BYTES // (8 * work.dim)))


def loop_seconds(work: Work, speeds: Speeds) -> float:
    """Time of the greedy loop, the reading of the rows' norms with it."""
    if not work.picks or not work.rows:
        return 0.0
    n, d, k = float(work.rows), float(work.dim), float(work.picks)
    if work.partitions > 1:
        part, union = work.rounds()
        turns = math.ceil(work.partitions / max(1.0, work.at_once))
        return speeds.read * n * d + turns * loop_seconds(part, speeds) + loop_seconds(union, speeds)
    first = speeds.read * n * d + 4 * speeds.elementwise * n
    if work.loop == "lazy" and work.fisher == "exact":
        return first + _lazy(work, speeds)
    if work.loop == "stochastic":
        return first + _stochastic(work, speeds)
    if work.loop == "kernel":
        column = PASS * speeds.stream if 8 * n * d <= CACHE_BYTES else speeds.read + speeds.matvec
        return first + k * (
            n * d * column + n * k / 2 * PASS * speeds.stream + 3 * n * speeds.elementwise + speeds.pick
        )
    if work.loop == "brute":
        # Each gain by a determinant of its own.
        return first + n * speeds.product * sum(min(t, d) ** 2 * (d + t) for t in _some(work.picks)) * k / 16
    if work.loop == "lazy":
        # Bounds of a diagonal form: every row once at the start, and a few tens a pick.
        return first + (n + 64 * k) * d * (speeds.elementwise + speeds.gather) + k * (n * speeds.sort + speeds.pick)
    near = 8 * n * d <= CACHE_BYTES
    gain = (PASS * speeds.stream if near else speeds.matvec) if work.fisher == "exact" else speeds.elementwise
    number = gain + (PASS * speeds.stream if near else speeds.read + speeds.matvec)
    return first + k * (n * d * number + d * d * speeds.stream + 3 * n * speeds.elementwise + speeds.pick)


def _looked_at(work: Work) -> float:
    """Rows that are read again, those of the first active set among them."""
    if work.alike:
        return float(work.rows)
    return min(work.rows, 2.0 * max(64, min(1024, work.rows // 32))) + LOOKED_AT.of(work)


def _lazy(work: Work, speeds: Speeds) -> float:
    n, d, k = float(work.rows), float(work.dim), float(work.picks)
    looked = _looked_at(work)
    rebuilds = 6.0 if work.alike else 1.0 + LOOKED_AT.of(work) / (RENEWED * max(64, min(1024, work.rows // 32)))
    active = active_rows(work)
    made = PRODUCTS_A_PICK * k
    # Up to D/2 members the update vectors stand for the matrix; beyond D = 8192 always.
    before = 1.0 if work.dim > LARGEST_INVERSE else min(1.0, d / (2 * k))
    vectors = min(k, d / 2) if work.dim <= LARGEST_INVERSE else k
    form = (1 - before) * (d / 2 + BLOCK / 2) + before * vectors / 2
    times = (1 - before) * d + before * vectors
    added = (1 - before) * (d / 2 + BLOCK / 2) + (before * d / 2 if k >= d / 2 else 0.0)
    matrix = 0.0 if work.alike else min(BY_MATRIX.of(work), looked)
    looked_over = FORMS * (matrix * form + (looked - matrix) * min(AGE * d, k))
    products = d * (looked_over + TIMES * (made * times + k * added) + INNER * made * active)
    steps = min(32.0, k / rebuilds) / 2
    return (
        products * speeds.product
        + _proofs(work, speeds, bounds.TIGHTEN_AT_FIRST)
        + looked * d * speeds.gather
        + rebuilds * (n * speeds.sort + REBUILD_PICKS * speeds.pick + active * d * speeds.read)
        + k * (PICK * speeds.pick + speeds.active * active + steps * (active + d) * speeds.matvec)
    )


def _proofs(work: Work, speeds: Speeds, at_first: float) -> float:
    """Time to prove the largest eigenvalue of the inverse, now and then from D picks on."""
    n, d, k = float(work.rows), float(work.dim), float(work.picks)
    if k <= d or work.dim > LARGEST_INVERSE:
        return 0.0
    times = math.log(min(2.0, k / d)) / math.log(at_first) + 1
    times += math.log(max(1.0, k / (2 * d))) / math.log(TIGHTEN_EVERY)
    one = d**3 / 3 * PROOF * speeds.product + POWER_STEPS * d * d * speeds.stream + 3 * n * speeds.sort
    return times * one


def _stochastic(work: Work, speeds: Speeds) -> float:
    d, k = float(work.dim), float(work.picks)
    sample = sample_size(work.rows, work.picks, work.epsilon)
    shown = k * sample
    screened = min(shown, shown if work.alike else SCREENED * _looked_at(work))
    before = 1.0 if work.dim > LARGEST_INVERSE else min(1.0, d / (2 * k))
    vectors = min(k, d / 2) if work.dim <= LARGEST_INVERSE else k
    form = (1 - before) * (d / 2 + BLOCK / 2) + before * vectors / 2
    times = (1 - before) * d + before * vectors
    # Screened in float32, which takes half as long; then exactly, of which one a pick with its image.
    forms = FORMS * form * (screened / 2 + (ACTIVE - 1) * k)
    products = d * (forms + k * (TIMES * times + (1 - before) * (d / 2 + BLOCK / 2)))
    passes = STOCHASTIC_PASSES * d * min(k, d) * speeds.matvec
    one = STOCHASTIC_PICKS * speeds.pick + 4 * sample * speeds.sort + passes
    proofs = _proofs(work, speeds, stochastic.TIGHTEN_AT_FIRST)
    return products * speeds.product + (screened + ACTIVE * k) * d * speeds.gather + k * one + proofs


def _some(picks: int) -> list[float]:
    return [float(t) for t in np.linspace(0, picks, 16)]


def certificate_seconds(work: Work, speeds: Speeds) -> float:
    """Time of the certificate: a share of the loop's products, or whatever a small pool takes."""
    if work.fisher != "exact" or not work.picks:
        return 0.0
    n, d, k = float(work.rows), float(work.dim), float(work.picks)
    orders = n * (10 * speeds.elementwise + 2 * speeds.sort)
    if n * d * min(k, d) <= CHEAP_WORK:
        return orders + 3 * n * d * min(k, d) * speeds.product
    return orders + CERTIFIED * _lazy(work, speeds) + CHEAP_WORK / 4 * speeds.product


def activity_seconds(work: Work, speeds: Speeds) -> float:
    """Time of the count of rows in conflict along the way: a pass over the rows, and pairs of a sample."""
    if not work.picks:
        return 0.0
    n, d, k = float(work.rows), float(work.dim), float(work.picks)
    sample = min(n, SAMPLE)
    # Its products are float32, which take half as long.
    products = n * d * min(STEPS, k) + sample * sample * d
    return products * speeds.product / 2 + n * d * speeds.read + k * d * speeds.gather


def page_seconds(work: Work, speeds: Speeds) -> float:
    """Time of what the page looks at: neighbours of the picks, rejected rows, and a map."""
    if not work.picks:
        return 0.0
    n, d, k = float(work.rows), float(work.dim), float(work.picks)
    return min(n * d * k, MOST_WORK) * speeds.product / 2 + 8 * n * d * speeds.read


def select_reads(work: Work) -> float:
    """Bytes of the store that a selection reads: passes over all of it, and the rows that it looks at again.

    The norms, and the conflicts along the way, take a pass each; a selection without penalty doubles the loop's part.
    """
    if not work.picks:
        return 0.0
    n, k = float(work.rows), float(work.picks)
    again = _looked_at(work) if work.loop == "lazy" else n * k
    runs = 2.0 if work.penalised else 1.0
    return work.itemsize * work.dim * (runs * (n + again) + n)
