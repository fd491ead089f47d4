"""The online mode: pools of rows in turn, a few picks from each, and a proxy that learns from them.

SPICE (ICLR 2026, arXiv 2601.23155, section 4): per pool the selected set, its Fisher information and its mean start
empty; every T pools the proxy is trained on the picks since its last training.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from spice_select.analysis.activity import activity_of_gram
from spice_select.analysis.record import TrainingRecord
from spice_select.config import RunConfig
from spice_select.data.encoded import Encoded
from spice_select.errors import ModelError, OutputError
from spice_select.gradients.capture import GradientEngine
from spice_select.reporter import Reporter
from spice_select.schedule.certified import certify_gram
from spice_select.schedule.gram import PoolGram, pool_gram
from spice_select.schedule.log import PoolEntry, SelectionLog
from spice_select.schedule.progress import Progress
from spice_select.schedule.quotas import WalkQuotas
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.recall import Recall
from spice_select.schedule.resume import Checkpoints, write_gram
from spice_select.schedule.tracking import Tracking
from spice_select.schedule.trainer import Diverged, ProxyTrainer
from spice_select.schedule.walk import Walk
from spice_select.selection import select_gram
from spice_select.selection.budget import Budget

# Sentences that name rows by their place in a pool, or count one pool's outliers: said for all pools together instead.
_OF_ONE_POOL = re.compile("outlier|unusable")


# Rows that are all without a finite gradient only where the proxy has diverged.
_TELLING = 8


@dataclass(frozen=True)
class Offer:
    """What the walk works on.

    Attributes:
        encoded: Token ids of all rows.
        rows: Which rows may be picked.
        budget: Rows or tokens in all.
        labels: Label of each row where quotas are asked for.
    """

    encoded: Encoded
    rows: Bool[np.ndarray, " rows"]
    budget: Budget
    labels: Sequence[str] | None = None


class PoolSchedule:
    """Walks the rows once; what it does at any moment is a function of its log and of the last checkpoint.

    Args:
        config: The settings of the run.
        offer: The rows.
        walk: Their order.
        engine: Gradients of the weights that are trained.
        trainer: Trains the same weights.
        checkpoints: Where the trained weights are kept.
        log: Pools that are done.
        ranks: The processes that share the work.
        reporter: Hears the progress.
        recall: What earlier pools have told, where that counts.
        tracking: Is told of every pool.
        grams: Folder for the inner products of every pool; None: they are not kept.
    """

    def __init__(
        self,
        config: RunConfig,
        offer: Offer,
        walk: Walk,
        engine: GradientEngine,
        trainer: ProxyTrainer,
        checkpoints: Checkpoints,
        log: SelectionLog,
        ranks: Ranks,
        reporter: Reporter,
        recall: Recall | None,
        tracking: Tracking,
        grams: Path | None = None,
    ) -> None:
        self.walk = walk
        self.trainings: list[TrainingRecord] = []
        self.progress = Progress(walk, reporter, tracking)
        self._config = config
        self._offer = offer
        self._engine = engine
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._log = log
        self._ranks = ranks
        self._reporter = reporter
        self._recall = recall
        self._grams = grams
        self._quotas: WalkQuotas | None = None
        if offer.labels is not None and config.selection.quotas is not None:
            self._quotas = WalkQuotas(offer.labels, config.selection.quotas, offer.rows, walk, offer.budget.rows)

    @property
    def entries(self) -> Sequence[PoolEntry]:
        """Pools that are done."""
        return self._log.entries

    def run(self) -> None:
        """Do the pools that are not done yet.

        Raises:
            ModelError: The proxy diverged; the pools before are kept.
        """
        self._take_up()
        for number in range(len(self.entries), len(self.walk)):
            entry = self._pool(number)
            with self._ranks.together():
                self._log.append(entry)
            self.progress.tell(self.entries)
            if self._trains_after(number + 1):
                with self._ranks.together():
                    self._train(number + 1)

    def steps_at(self, pools: int) -> int:
        """Optimiser steps that the proxy had been trained for when a pool was offered."""
        return sum(training.steps for training in self.trainings if training.after <= pools)

    def _take_up(self) -> None:
        """Bring the proxy to where it was after the pools in the log: from the last checkpoint, and the log."""
        done = len(self.entries)
        with self._ranks.together():
            start, self.trainings = self._checkpoints.restore(self._trainer, at_most=done)
        if len(set(self._ranks.all_gather(start))) > 1:
            raise OutputError(
                "The processes of this run see different outputs; put the output on a folder that all share."
            )
        if done:
            self._reporter.note(f"Taken up after pool {done} of {len(self.walk)}.")
        for pools in range(start + 1, done + 1):
            if self._trains_after(pools):
                with self._ranks.together():
                    self._train(pools)

    def _trains_after(self, pools: int) -> bool:
        # What the last pools would teach no selection could use.
        return pools % self._config.schedule.interval == 0 and pools < len(self.walk)

    def _pool(self, number: int) -> PoolEntry:
        rows = self.walk.pool(number)
        due = self._due(number)
        if due == 0 or self._cannot_fit(rows, due):
            # Without anything to pick nothing needs to be measured.
            return PoolEntry(pool=number, rows=tuple(rows.tolist()), due=due)
        ids, masks = self._examples(rows)
        began = time.perf_counter()
        measured = self._measure(ids, masks, self.progress.within(number, sum(map(len, ids))))
        self.progress.timed("gradients", began)
        self.progress.tokens += measured.tokens
        began = time.perf_counter()
        with self._ranks.together():
            if self._ranks.main and self._grams is not None:
                write_gram(self._grams / f"{number:06d}.npy", measured.gram)
            entry = self._choose(number, rows, due, measured)
        self.progress.timed("selection", began)
        # The processes agree; were one to round a tie otherwise, they would part for good.
        return PoolEntry.model_validate(self._ranks.broadcast(entry.model_dump(mode="json")))

    def _due(self, number: int) -> int | None:
        budget, stops = self._offer.budget, self._config.selection.stop_ratio is not None
        if self._config.selection.budget is None:
            return None
        total = budget.rows if budget.tokens is None else budget.tokens
        if stops:
            return self.walk.fair(total, number)
        picked = [index for entry in self.entries for index in entry.picks]
        lengths = self._offer.encoded.response_tokens
        spent = len(picked) if budget.tokens is None else int(lengths[picked].sum())
        return self.walk.due(total, number, spent)

    def _cannot_fit(self, rows: Int[np.ndarray, " p"], due: int | None) -> bool:
        if due is None or self._offer.budget.tokens is None:
            return False
        return due < int(self._offer.encoded.response_tokens[rows].min())

    def _examples(self, rows: Sequence[int] | Int[np.ndarray, " p"]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        examples = [self._offer.encoded.example(int(row)) for row in rows]
        return [example.input_ids for example in examples], [example.labels_mask for example in examples]

    def _measure(self, ids: list[np.ndarray], masks: list[np.ndarray], progress: Callable[[float], None]) -> PoolGram:
        if self._recall is not None:
            return self._recall.measure(self._engine, ids, masks, self._ranks, progress)
        memory = self._config.schedule.gram_bytes
        return pool_gram(self._engine, ids, masks, ranks=self._ranks, memory=memory, progress=progress)

    def _choose(self, number: int, rows: Int[np.ndarray, " p"], due: int | None, measured: PoolGram) -> PoolEntry:
        diagonal = np.diagonal(measured.gram)
        usable = int(np.isfinite(diagonal).sum())
        common = {
            "pool": number,
            "rows": tuple(rows.tolist()),
            "due": due,
            "losses": _finite(measured.losses),
            "squared_norms": _finite(diagonal),
            "tokens": measured.tokens,
            "gram": measured.how,
        }
        if usable == 0:
            if len(rows) >= _TELLING:
                raise self._diverged(number, float(measured.losses[0]))
            # Of so few rows each may be broken by itself.
            return PoolEntry(**common, stop_reason="exhausted")
        settings = self._config.selection
        by_tokens = self._offer.budget.tokens is not None
        budget = None if due is None else f"{due} tokens" if by_tokens else min(due, usable)
        earlier = None if self._recall is None else self._recall.earlier()
        labels = None if self._offer.labels is None else [self._offer.labels[int(row)] for row in rows]
        quotas = None
        if self._quotas is not None:
            # With a stop ratio no pool makes up for another.
            before = None if settings.stop_ratio is not None else [row for e in self.entries for row in e.picks]
            most = usable if due is None else min(due, usable)
            quotas = self._quotas.of_pool(number, rows[np.isfinite(diagonal)], most, before)
        selection = select_gram(
            measured.gram,
            budget,
            alpha=settings.alpha,
            conflict_weight=settings.conflict_weight,
            penalty=settings.penalty,
            reference=settings.reference,
            hinge=settings.hinge,
            normalize=settings.normalize,
            stop_ratio=settings.stop_ratio,
            robust_stop=settings.robust_stop,
            lengths=self._offer.encoded.response_tokens[rows],
            per_token=settings.per_token,
            groups=labels,
            quotas=quotas,
            earlier=earlier,
        )
        if self._recall is not None:
            self._recall.add(selection)
        return PoolEntry(
            **common,
            picks=tuple(rows[selection.indices].tolist()),
            gains=tuple(selection.gains.tolist()),
            bases=tuple(selection.bases.tolist()),
            epsilons=tuple(selection.epsilons.tolist()),
            conflicts=tuple(selection.conflicts.tolist()),
            scores=tuple(selection.scores.tolist()),
            alpha=selection.alpha,
            stop_reason=selection.stop_reason,
            changed=selection.changed_by_penalty if settings.conflict_weight else None,
            first_gain_outlier=selection.first_gain_outlier,
            certificate=certify_gram(measured.gram, selection, earlier),
            activity=activity_of_gram(measured.gram, selection, factors=selection.factors),
            warnings=tuple(line for line in selection.warnings if not _OF_ONE_POOL.search(line)),
        )

    def _train(self, pools: int) -> None:
        """Train on the picks of the last T pools and keep the outcome."""
        first = pools - self._config.schedule.interval
        picks = [row for entry in self.entries[first:pools] for row in entry.picks]
        if not picks:
            return
        began = time.perf_counter()
        ids, masks = self._examples(picks)
        taken = sum(training.steps for training in self.trainings)
        try:
            result = self._trainer.train(ids, masks, taken, f"after {pools}")
        except Diverged as error:
            raise self._diverged(pools - 1, error.loss) from None
        # A GPU need not repeat itself; on a CPU the processes agree without this.
        self._trainer.share(self._ranks)
        self.trainings.append(
            TrainingRecord(
                after=pools,
                examples=len(picks),
                steps=result.steps,
                loss=float(np.mean(result.losses)),
                learning_rate=result.learning_rate,
            )
        )
        self._checkpoints.save(pools, self._trainer, self.trainings)
        self.progress.timed("training", began)
        self.progress.trained(self.trainings[-1])

    def _diverged(self, number: int, loss: float) -> ModelError:
        return ModelError(
            f"The proxy diverged at pool {number + 1} of {len(self.walk)} (loss {loss:g}); the picks of the "
            f"{len(self.entries)} pools so far are kept in the selection log; start again with a "
            f"schedule.learning_rate below {self._config.schedule.learning_rate:g}."
        )


def _finite(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(value) if np.isfinite(value) else None for value in values)
