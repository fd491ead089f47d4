"""Collects what methods have declared, each measurement once, and hands it to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from spice_select.features.bench import Bench
from spice_select.features.rating_prompts import rating_tokens
from spice_select.gradients.store import GradientStore
from spice_select.methods import Inputs, Method, Need, Target
from spice_select.pool import excluded_rows, group_labels, rows_in_hand
from spice_select.selection.budget import Budget
from spice_select.selection.quotas import Groups, resolve_groups

LEVELS = 5


def gather(method: Method, bench: Bench, budget: Budget, store: GradientStore | None, *, seed: int) -> Inputs:
    """What a method is given: what it has declared and no more.

    Args:
        method: The method with its settings.
        bench: Measures.
        budget: The budget, resolved.
        store: The gradients, for a method that needs them.
        seed: Seed of the method's random choices.

    Raises:
        ConfigError: A target that is missing.
        DataError: A target that cannot be read.
    """
    config, pool = bench.config, bench.pool
    needs = method.required()
    candidates = pool.encoded.usable & ~excluded_rows(config, pool)
    in_hand = rows_in_hand(config, pool) or []
    candidates[in_hand] = False
    found: dict[str, Any] = {}
    target = bench.target if Need.TARGET in needs else None
    if Need.GRADIENTS in needs:
        assert store is not None
        candidates &= store.usable
        found["gradients"] = store
    if needs & {Need.LOSSES, Need.DIRECT_LOSSES}:
        from spice_select.features.losses import collect_losses

        found["losses"], found["direct_losses"] = collect_losses(bench, direct=Need.DIRECT_LOSSES in needs, store=store)
    if Need.EMBEDDINGS in needs:
        from spice_select.features.embeddings import embed_pool, embed_target

        found["embeddings"] = embed_pool(bench)
        if target is not None:
            found["target"] = Target(target.subtasks, embed_target(bench, target))
    if Need.TOKEN_FEATURES in needs:
        from spice_select.features.tokens import collect_tokens

        found["tokens"] = collect_tokens(
            bench, positions=getattr(method, "positions", "response"), dim=getattr(method, "dim", None)
        )
    if Need.RATINGS in needs:
        from spice_select.features.ratings import collect_ratings

        found["ratings"] = collect_ratings(
            bench, prompts=getattr(method, "prompts", 5), levels=getattr(method, "levels", LEVELS)
        )
    if Need.CHECKPOINTS in needs:
        from spice_select.features.checkpoints import collect_checkpoints

        assert target is not None
        found["checkpoints"] = collect_checkpoints(bench, method, target, seed=seed)
    if Need.TRAINING in needs and Need.CHECKPOINTS not in needs:
        from spice_select.features.learner import make_learner

        found["learner"] = lambda: make_learner(bench, method, seed=seed)
    if target is not None and "target" not in found:
        found["target"] = Target(target.subtasks)
    inputs = Inputs(
        n=len(pool.rows),
        candidates=candidates,
        response_tokens=pool.encoded.response_tokens,
        sources=pool.source_labels,
        budget=budget,
        seed=seed,
        groups=_quotas(bench, candidates, budget),
        labels=group_labels(config, pool),
        quotas=config.selection.quotas,
        in_hand=in_hand,
        equal=pool.encoded.first_of_equal,
        selection=config.selection.model_dump(),
        **found,
    )
    if inputs.embeddings is not None:
        inputs = replace(inputs, embeddings=inputs.settled(inputs.embeddings))
    return inputs


def foresee(methods: Sequence[Method], bench: Bench) -> None:
    """Find what would fail later before anything is measured: targets, and ratings that are no tokens.

    Raises:
        ConfigError: A tokenizer that cannot write the ratings.
        DataError: A target that cannot be read.
    """
    for method in methods:
        needs = method.required()
        if Need.TARGET in needs:
            assert len(bench.target)
        if Need.RATINGS in needs:
            name = bench.config.model.name or "the proxy"
            rating_tokens(bench.pool.tokenizer, getattr(method, "levels", LEVELS), name)


def _quotas(bench: Bench, candidates: Bool[np.ndarray, " n"], budget: Budget) -> Callable[[], Groups] | None:
    quotas = bench.config.selection.quotas
    if quotas is None:
        return None
    labels = group_labels(bench.config, bench.pool)
    kept = ~excluded_rows(bench.config, bench.pool)
    assert labels is not None
    return lambda: resolve_groups(labels, quotas, candidates, kept, budget.rows)
