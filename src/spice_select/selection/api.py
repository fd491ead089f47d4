"""The public face of selection: put the parts together and run the greedy.

References:
    SPICE, ICLR 2026, arXiv 2601.23155.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from spice_select.errors import ConfigError, DataError
from spice_select.selection.budget import Budget, resolve_budget
from spice_select.selection.conflict import Conflict, Score, against_pool
from spice_select.selection.engines import Recipe, make_engine, resolve_loop, threads_of
from spice_select.selection.fisher import FisherName, make_information
from spice_select.selection.greedy import Trace, run_greedy, slack
from spice_select.selection.inputs import open_pool, rows_in_hand, unusable_sentence
from spice_select.selection.kernel import GramPool
from spice_select.selection.options import (
    LoopName,
    NormalizeName,
    Options,
    PenaltyName,
    ReferenceName,
    alpha_of,
    row_numbers,
    scale_of,
    scale_warning,
    token_lengths,
)
from spice_select.selection.outlook import outlook_of
from spice_select.selection.partition import (
    Partitioned,
    PartitionMap,
    PartPicks,
    best_part,
    one_after_another,
    united,
)
from spice_select.selection.quotas import Groups, Limits, Quotas, resolve_groups
from spice_select.selection.result import Selection
from spice_select.selection.rows import Pool, Rows, as_rows
from spice_select.selection.stopping import StopRule, first_gain_is_outlier


def select(
    gradients: Float[np.ndarray, "n d"] | Float[torch.Tensor, "n d"] | Rows | Sequence[Sequence[float]],
    *,
    budget: int | float | str | None = None,
    alpha: float | Literal["auto"] = 1.0,
    conflict_weight: float = 0.1,
    penalty: PenaltyName = "absolute",
    reference: ReferenceName = "selected",
    hinge: float | str = 0.0,
    normalize: NormalizeName = "none",
    stop_ratio: float | None = None,
    fisher: FisherName = "exact",
    loop: LoopName = "auto",
    lengths: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    per_token: bool = False,
    groups: Sequence[Any] | np.ndarray | None = None,
    quotas: Quotas | Literal["proportional"] | None = None,
    initial: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    exclude: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    robust_stop: bool = False,
    sampling_epsilon: float = 0.01,
    partitions: int = 1,
    partition_map: PartitionMap | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Selection:
    """Choose rows greedily by information gain less conflict, exactly.

    Each step adds the row x with the highest score D_x(S) - lambda * conflict(x|S), where D_x(S) is the gain of
    F(S) = log det(I + a sum_{i in S} g_i g_i^T) and conflict(x|S) = max(0, hinge - cos(g_x, mean of S)), 0 while S is
    empty or a norm is 0. Scores within 1e-9 * max(1, |best|) tie, and the lowest row number wins. All loops but
    ``"stochastic"`` give the same picks.

    Args:
        gradients: One row per example, shape [n, d]: array, memory map, tensor, or a gradient store. Rows that hold
            NaN or Inf are left out and named in a warning.
        budget: Rows (int or ``"12"``), a share of the rows given (float, ``"0.1"`` or ``"10%"``), or response tokens
            (``"50000 tokens"``, taking the best row that still fits). May be absent with ``stop_ratio``.
        alpha: Fisher scale a, or ``"auto"``: 1 over the median squared norm of the non-zero rows.
        conflict_weight: lambda >= 0; at most 1 with the relative penalty.
        penalty: ``"absolute"``: gain - lambda * conflict; ``"relative"``: gain * (1 - lambda * conflict).
        reference: Conflict is with the mean of the rows ``"selected"`` so far, or with that of the whole ``"pool"``,
            which is known from the first step.
        hinge: Cosine below which a row is in conflict; with the pool as reference also a quantile such as ``"25%"``.
        normalize: ``"none"``, ``"unit"`` norm, ``"sqrt_tokens"`` (times the root of the response length), or
            ``"clip"`` (norms at most their median).
        stop_ratio: omega: stop before the first later pick whose gain is at most omega times the first gain.
        fisher: ``"exact"``, or a diagonal surrogate: ``"diag-logdet"``, ``"paper-diag"``, ``"released"``.
        loop: ``"brute"``, ``"dense"``, ``"kernel"``, ``"lazy"``, or ``"auto"``; ``"stochastic"``: each pick the best of
            a random sample, for pools where the exact loops take too long (arXiv 1409.7938).
        lengths: Response tokens of each row; a store's own where absent.
        per_token: Compare scores divided by response tokens.
        groups: Label of each row, for ``quotas``.
        quotas: ``"proportional"``, or per label ``{"min": ..., "max": ...}`` in rows (int) or as shares of the budget
            (float).
        initial: Rows already in hand: their numbers, or gradient rows of shape [m, d]. They count for information and
            mean first, and are neither chosen nor part of the budget.
        exclude: Rows to leave out: their numbers, or a mask of n booleans.
        robust_stop: Compare with the median of the first five gains instead of the first; those are never stopped at.
        sampling_epsilon: Of the stochastic loop: samples are of (n / k) ln(1 / epsilon) rows, and the expected value is
            at least 1 - 1/e - epsilon of the best possible (no penalty, a budget in rows).
        partitions: More than 1: deal the rows to so many partitions at random, let each choose as many as the budget
            says, and choose from the picks of all; at least (1 - 1/e) / 2 of the best possible in expectation (no
            penalty, a budget in rows; arXiv 1502.02606).
        partition_map: Applies a function to every partition, elsewhere; one after another here where absent.
        seed: Of samples and partitions.
        device: Torch device of the dense and the lazy loop; float64 on ``"cuda"`` gives the picks of ``"cpu"``.

    Returns:
        The picks in order of choice, with their trace.

    Raises:
        ConfigError: A setting that cannot be used.
        BudgetError: A budget of nothing, or of more rows than can be chosen.
        DataError: No usable row.
    """
    options = Options(
        budget, alpha, conflict_weight, penalty, reference, hinge, normalize, stop_ratio, fisher, loop, lengths,
        per_token, groups, quotas, initial, exclude, robust_stop, sampling_epsilon, partitions, seed, device,
    )  # fmt: skip
    return _select(gradients, options, from_gram=False, partition_map=partition_map)


def select_gram(
    gram: Float[np.ndarray, "n n"] | Float[torch.Tensor, "n n"],
    budget: int | float | str | None = None,
    *,
    alpha: float | Literal["auto"] = 1.0,
    conflict_weight: float = 0.1,
    penalty: PenaltyName = "absolute",
    reference: ReferenceName = "selected",
    hinge: float | str = 0.0,
    normalize: NormalizeName = "none",
    stop_ratio: float | None = None,
    lengths: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    per_token: bool = False,
    groups: Sequence[Any] | np.ndarray | None = None,
    quotas: Quotas | Literal["proportional"] | None = None,
    initial: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    exclude: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    robust_stop: bool = False,
    earlier: tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "m m"]] | None = None,
) -> Selection:
    """As :func:`select`, from the inner products of the gradients alone: exact for a pool without any sketch.

    Args:
        gram: Inner products g_i . g_j, shape [n, n]; rows whose own product is NaN or Inf are left out.
        budget: As in :func:`select`, and so are the other arguments; ``initial`` takes row numbers only.
        alpha: See :func:`select`.
        conflict_weight: See :func:`select`.
        penalty: See :func:`select`.
        reference: See :func:`select`.
        hinge: See :func:`select`.
        normalize: See :func:`select`.
        stop_ratio: See :func:`select`.
        lengths: See :func:`select`.
        per_token: See :func:`select`.
        groups: See :func:`select`.
        quotas: See :func:`select`.
        initial: See :func:`select`.
        exclude: See :func:`select`.
        robust_stop: See :func:`select`.
        earlier: Inner products of each row with rows of before, shape [n, m], and of those with each other, [m, m],
            scaled as they were then. What they have told is no news: they count for the information, and play no part
            in mean, conflict, budget or choice.

    Raises:
        ConfigError: A setting that cannot be used, or no square matrix.
        BudgetError: A budget of nothing, or of more rows than can be chosen.
        DataError: No usable row.
    """
    options = Options(
        budget, alpha, conflict_weight, penalty, reference, hinge, normalize, stop_ratio, "exact", "kernel", lengths,
        per_token, groups, quotas, initial, exclude, robust_stop, earlier=earlier,
    )  # fmt: skip
    return _select(gram, options, from_gram=True)


def _select(source: Any, options: Options, *, from_gram: bool, partition_map: PartitionMap | None = None) -> Selection:
    options.check()
    warnings = _unused(options)
    pool = GramPool.of(source, options.earlier) if from_gram else open_pool(source)
    n = pool.n
    usable = pool.usable
    lengths = options.lengths if options.lengths is not None else getattr(source, "lengths", None)
    tokens = token_lengths(lengths, n)
    if not usable.any():
        raise DataError(f"None of the {n} gradient rows is usable; each is marked unusable or holds NaN or Inf.")
    if not usable.all():
        warnings.append(unusable_sentence(usable, pool.finite))

    kept = np.ones(n, dtype=bool)
    kept[row_numbers("exclude", options.exclude, n)] = False
    members = usable & kept
    if not members.any():
        raise ConfigError(f"exclude leaves none of the {usable.sum()} usable rows; exclude fewer.")
    scale, clip_at = scale_of(options.normalize, np.sqrt(pool.squared_norms), members, tokens)
    if scale is not None:
        pool.rescale(scale)
    alpha, warning = alpha_of(options.alpha, pool.squared_norms[members])
    warnings.extend(said for said in (warning, scale_warning(alpha, pool.squared_norms[members])) if said)
    if not np.isfinite(alpha * float(np.max(pool.squared_norms))):
        raise ConfigError(
            f"alpha {alpha:g} times the largest |g|^2 is beyond all numbers; give a smaller one, or 'auto'."
        )
    in_hand = rows_in_hand(options, pool, usable, clip_at)
    eligible = members.copy()
    eligible[in_hand[in_hand < n]] = False

    budget = _budget(options, n, int(eligible.sum()), tokens)
    limits = Limits(eligible, budget, tokens, _groups(options, budget, eligible, kept))
    conflict = _conflict(options, pool, members)
    score = Score(float(options.conflict_weight), options.penalty == "relative", _per_row(options, tokens, len(pool)))
    recipe = Recipe(options.loop, options.fisher, alpha, options.sampling_epsilon, options.seed, device=options.device)
    loop = resolve_loop(recipe.loop, recipe.fisher, n, pool.dim, recipe.device)
    firsts: list[PartPicks] = []
    if options.partitions > 1:
        assert isinstance(pool, Pool)
        task = Partitioned(pool, as_rows(source), limits.eligible, tokens, in_hand, conflict, score, budget, recipe)
        firsts = task.first_round(options.partitions, partition_map or one_after_another)
        limits = Limits(united(firsts, n), budget, tokens)
        if loop == "stochastic":
            # The samples made the first round cheap; the second chooses from few rows, and exactly.
            loop = resolve_loop("auto", recipe.fisher, int(limits.eligible.sum()), pool.dim)
            loop = "lazy" if loop == "kernel" else loop
    with threads_of(loop):
        engine = make_engine(loop, recipe, pool, conflict, score, limits, budget)
        for index in in_hand:
            engine.add(int(index))
        trace = run_greedy(engine, limits, StopRule(options.stop_ratio, options.robust_stop))
        ending = engine.ending()
    if ending is not None:
        ending = replace(ending, work=ending.work + sum(part.work for part in firsts))
    if firsts and options.stop_ratio is None:
        best, second = best_part(firsts, budget), float(np.sum(trace.scores))
        if best is not None and best.worth > second + slack(second):
            trace, ending = best.trace, None

    outlier = first_gain_is_outlier(trace.gains, trace.rejected_gain)
    if outlier and options.stop_ratio is not None and not options.robust_stop:
        warnings.append(
            f"The first gain, {trace.gains[0]:.4g}, is an outlier and stop_ratio compares with it; "
            "consider robust_stop."
        )
    without = None
    if options.conflict_weight:
        plain = replace(options, conflict_weight=0.0, reference="selected", hinge=0.0)
        without = partial(_select, source, plain, from_gram=from_gram, partition_map=partition_map)
    gains = np.array(trace.gains)
    # Rows in hand that were given as gradients are not there to be read again.
    told = options.fisher == "exact" and isinstance(pool, Pool) and len(pool) == n
    bases = _bases(trace, options.fisher, alpha, pool)
    steered = options.quotas is not None or options.per_token or budget.tokens is not None
    return Selection(
        indices=np.array(trace.indices, dtype=np.int64),
        gains=gains,
        bases=bases,
        epsilons=gains - bases,
        conflicts=np.array(trace.conflicts),
        scores=np.array(trace.scores),
        stop_reason=trace.stop_reason,
        n=n,
        k=budget.rows,
        alpha=alpha,
        conflict_weight=float(options.conflict_weight),
        penalty=options.penalty,
        reference=options.reference,
        hinge=conflict.hinge,
        normalize=options.normalize,
        fisher=options.fisher,
        loop="stochastic" if options.loop == "stochastic" else loop,
        unusable=int((~usable).sum()),
        first_gain_outlier=outlier,
        warnings=tuple(warnings),
        constrained=steered or options.approximate or len(pool) > n,
        sampling_epsilon=options.sampling_epsilon if options.loop == "stochastic" else None,
        partitions=options.partitions,
        factors=pool.factors,
        outlook=outlook_of(ending, alpha, pool.squared_norms, in_hand, trace.indices, gains) if told else None,
        without_penalty=without,
    )


def _unused(options: Options) -> list[str]:
    warnings = []
    if options.robust_stop and options.stop_ratio is None:
        warnings.append("robust_stop has no effect without stop_ratio.")
    if options.groups is not None and options.quotas is None:
        warnings.append("groups has no effect without quotas.")
    if options.sampling_epsilon != Options.sampling_epsilon and options.loop != "stochastic":
        warnings.append("sampling_epsilon has no effect without loop 'stochastic'.")
    return warnings


def _budget(options: Options, n: int, usable: int, tokens: np.ndarray | None) -> Budget:
    if tokens is None and (options.per_token or options.wants_tokens()):
        what = "per_token" if options.per_token else f"budget '{options.budget}'"
        raise ConfigError(f"{what} needs lengths, the response tokens of each row; pass lengths.")
    return resolve_budget(options.budget, n, usable, stops=options.stop_ratio is not None)


def _groups(options: Options, budget: Budget, eligible: np.ndarray, kept: np.ndarray) -> Groups | None:
    if options.quotas is None:
        return None
    if options.groups is None:
        raise ConfigError("quotas needs groups, the label of each row; pass groups.")
    if budget.tokens is not None:
        raise ConfigError(f"quotas count rows and cannot go with budget '{options.budget}'; give the budget in rows.")
    return resolve_groups(options.groups, options.quotas, eligible, kept, budget.rows)


def _conflict(options: Options, pool: Pool | GramPool, members: np.ndarray) -> Conflict:
    hinge, quantile = options.hinge_value()
    if options.reference == "selected":
        return Conflict(pool.dim, hinge)
    dots, norm = pool.mean_dots(members)
    fixed, hinge = against_pool(dots, norm, np.sqrt(pool.squared_norms), members, hinge, quantile=quantile)
    return Conflict(pool.dim, hinge, fixed)


def _per_row(options: Options, tokens: np.ndarray | None, rows: int) -> np.ndarray | None:
    if not options.per_token:
        return None
    assert tokens is not None
    per_row = np.ones(rows)
    per_row[: len(tokens)] = 1.0 / np.maximum(tokens, 1)
    return per_row


def _bases(trace: Trace, fisher: FisherName, alpha: float, pool: Pool | GramPool) -> Float[np.ndarray, " t"]:
    picks = np.array(trace.indices, dtype=np.int64)
    if fisher == "exact":
        return np.log1p(alpha * pool.squared_norms[picks])
    assert isinstance(pool, Pool)
    alone = make_information(fisher, alpha, pool.dim)
    return np.array([alone.base(pool.row(index)) for index in trace.indices])
