"""What a user should know before training on the picks, each in one or two plain sentences with its remedy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from spice_select.analysis.comparison import FACTOR, Comparison, Share

FEW_CHANGED = 0.02
"""Share of the picks changed by the penalty up to which it counts as idle."""
_WEIGHT = (
    "use --set selection.penalty=relative with a larger selection.conflict_weight, or --set selection.reference=pool"
)
_REMEDIES = {
    "fixed": "warm the proxy up (--schedule fixed --set schedule.warmup_steps=50), let it learn from pool to pool"
    f" (--schedule pools), {_WEIGHT}",
    "warmed": "warm the proxy up for longer (--set schedule.warmup_steps=200), let it learn from pool to pool"
    f" (--schedule pools), {_WEIGHT}",
    "pools": _WEIGHT,
}
NAMED = 5
"""Most sources that one warning names."""


def of_length(median: Comparison, mean: Comparison, normalize: str | None) -> list[str]:
    """Responses much shorter or longer than the pool's.

    Args:
        median: Response tokens, median.
        mean: Response tokens, mean.
        normalize: Normalisation of the gradients whose information was maximised; None where something else was.
    """
    apart = next((c for c in (median, mean) if c.apart), None)
    if apart is None or apart.ratio is None:
        return []
    name = "median" if apart is median else "mean"
    fact = (
        f"The picks' responses are {_times(apart.ratio, 'longer', 'shorter')} than the pool's"
        f" ({name} {apart.picks:,.0f} against {apart.pool:,.0f} tokens)"
    )
    if apart.ratio > 1:
        return [f"{fact}: training on them costs more tokens than as many random rows; a token budget limits that."]
    if normalize is None:
        return [
            f"{fact}: a model that is trained on short rows sees fewer tokens, and tends to answer briefly. Compare"
            " with as many random rows before you rely on this subset; quotas by source (--set selection.groups=source"
            " --set selection.quotas=proportional) or a token budget counter it."
        ]
    remedy = (
        "--set selection.normalize=unit or quotas by source lessen it further."
        if normalize == "sqrt_tokens"
        else "--set selection.normalize=sqrt_tokens or quotas by source"
        " (--set selection.groups=source --set selection.quotas=proportional) counter it."
    )
    return [
        f"{fact}: a loss averaged over tokens gives short responses the largest gradients, and the information"
        " objective favours large gradients. In one measured case a selection of short rows did worse than a random"
        f" one, so compare with random picks before you rely on this subset; {remedy}"
    ]


def of_norm(median: Comparison, normalize: str | None) -> list[str]:
    """Gradients much larger or smaller than the pool's; ``normalize`` as for :func:`of_length`."""
    if not median.apart or median.ratio is None:
        return []
    fact = (
        f"The picks' gradient norms are {_times(median.ratio, 'larger', 'smaller')} than the pool's"
        f" (median {median.picks:.3g} against {median.pool:.3g})"
    )
    if median.ratio < 1:
        return [f"{fact}: rows that the proxy already predicts well were chosen; look at the first picks."]
    if normalize is None:
        return [f"{fact}: large gradients often belong to short, odd or wrong rows; look at the first picks."]
    remedy = "sqrt_tokens" if normalize == "none" else "unit"
    return [
        f"{fact}: a large norm alone earns gain, and often belongs to short, odd or wrong rows; look at the first"
        f" picks, and try --set selection.normalize={remedy}."
    ]


def of_shares(shares: Sequence[Share], what: str, *, by_source: bool) -> list[str]:
    """Sources, or other groups, whose share changed much."""
    apart = [share for share in shares if share.apart]
    if not apart:
        return []
    named = ", ".join(f"{s.name} from {s.pool_share:.1%} to {s.picks_share:.1%}" for s in apart[:NAMED])
    more = f", and {len(apart) - NAMED} more" if len(apart) > NAMED else ""
    column = "--set selection.groups=source" if by_source else "selection.groups set to that column"
    return [
        f"The balance between {what}s changed beyond a factor of {FACTOR:.0f}: {named}{more}. A model trained on these"
        f" picks sees them in these new proportions; {column} and --set selection.quotas=proportional keep the pool's."
    ]


def of_first_gain(first: float, following: float, *, robust: bool) -> list[str]:
    """A first gain far above the next few."""
    fact = (
        f"The first gain ({first:.3g} nats) is far above the next few (median {following:.3g}), so one example with a"
    )
    if robust:
        return [f"{fact} huge gradient leads; look at the first pick."]
    return [
        f"{fact} huge gradient leads, and a stop ratio measured against it would trip early; look at the first pick,"
        " and with a stop ratio use --set selection.robust_stop=true."
    ]


def of_first_gains(outlying: int, pools: int, *, robust: bool) -> list[str]:
    """Pools whose first gain is far above their next few, where they are half or more of the pools."""
    if 2 * outlying < pools or robust:
        return []
    return [
        f"In {outlying} of {pools} pools the first gain is far above the next few, so one example with a huge gradient"
        " leads, and a stop ratio measured against it would trip early; with a stop ratio use"
        " --set selection.robust_stop=true."
    ]


def of_idle_penalty(
    changed: int | None, conflicts: Float[np.ndarray, " k"], gains: Float[np.ndarray, " k"], proxy: str
) -> str | None:
    """Why the penalty changed few picks or none, and what to try, in one sentence; None where it changed enough.

    Args:
        changed: Picks that are not in the answer without penalty; None where there was no penalty.
        conflicts: Conflict of every pick.
        gains: Gain of every pick.
        proxy: ``fixed``, ``warmed`` or ``pools``.
    """
    count = len(conflicts)
    if changed is None or count == 0 or changed > FEW_CHANGED * count:
        return None
    if not (conflicts > 0).any():
        usual = ", which is usual for a fixed pretrained proxy, whose gradients mostly point one way"
        cause = f"as no pick opposes the reference{usual if proxy == 'fixed' else ''}"
    else:
        cause = (
            f"as the conflicts of the picks (at most {conflicts.max():.2g}) times the weight are small beside their"
            f" gains (median {np.median(gains):.2g} nats)"
        )
    number = f"{changed:,} of {count:,} picks" if changed else "no pick"
    return f"The conflict penalty changed {number}, {cause}; to give it a say, {_REMEDIES[proxy]}."


def _times(ratio: float, more: str, less: str) -> str:
    return f"{ratio:.1f} times {more}" if ratio >= 1 else f"{1 / max(ratio, 1e-9):.1f} times {less}"
