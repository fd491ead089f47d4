"""Results of made-up choices: real rows and tokens, gradients that are a function of the tokens, and no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spice_select.analysis.record import MethodRecord, PassRecord
from spice_select.config import RunConfig, load_config
from spice_select.demo import demo_model_path, demo_rows
from spice_select.gradients.store import GradientStore
from spice_select.methods import Choice, Inputs, ranked
from spice_select.pool import Pool, check_selection, read_pool
from spice_select.reporter import Clock, Silent
from spice_select.results import Measured, RunResult, deliver, deliver_choice
from spice_select.run_folder import RunFolder
from spice_select.selection import select
from spice_select.selection.budget import Budget
from tests.integration.rows import write_jsonl
from tests.stores import fill

PASSES = (PassRecord(what="losses", forwards=120, tokens=4000, seconds=1.5),)


@dataclass(frozen=True)
class Made:
    """A pool with its settings and budget."""

    config: RunConfig
    pool: Pool
    budget: Budget
    folder: RunFolder

    def choice(self, scores: np.ndarray, name: str = "IFD (ratio of losses)") -> Choice:
        """The rows with the highest scores."""
        n = len(self.pool.rows)
        inputs = Inputs(
            n, self.pool.encoded.usable, self.pool.encoded.response_tokens, self.pool.source_labels, self.budget
        )
        return ranked(inputs, scores, name, notes=("A note of the method.",))

    def store(self) -> Measured:
        """Gradients that are a function of the tokens."""
        if not self.folder.gradients.is_dir():
            fill(self.folder.gradients, self.pool.encoded)
        return Measured.of(GradientStore.open(self.folder.gradients), "fold")

    def deliver(self, method: MethodRecord, *, gradients: bool, scores: np.ndarray | None = None) -> RunResult:
        """Write what a run of the method leaves."""
        self.folder.claim(self.config, overwrite=True)
        values = self.scores() if scores is None else scores
        choice = self.choice(values, method.score)
        measured = self.store() if gradients else Measured.without_gradients(self.pool, {"weights": "w" * 64})
        return deliver_choice(self.config, self.pool, self.budget, measured, choice, method, self.folder, Clock())

    def deliver_spice(self) -> RunResult:
        """Write what a run of SPICE leaves, on the same gradients."""
        self.folder.claim(self.config, overwrite=True)
        measured = self.store()
        settings = self.config.selection
        assert measured.store is not None
        selection = select(
            measured.store,
            budget=settings.budget,
            alpha=settings.alpha,
            conflict_weight=settings.conflict_weight,
            normalize=settings.normalize,
        )
        method = MethodRecord(name="spice", source="arXiv 2601.23155", score="gain less penalty, in nats")
        return deliver(
            self.config,
            self.pool,
            self.budget,
            measured,
            selection,
            None,
            self.folder,
            Clock(),
            changed=0,
            method=method,
        )

    def scores(self) -> np.ndarray:
        """One number a row, of both signs; two rows have none."""
        scores = np.random.default_rng(5).standard_normal(len(self.pool.rows))
        scores[[7, 11]] = np.nan
        return scores


def made_pool(folder: Path, name: str = "run", *, rows: int = 60, **selection: object) -> Made:
    """A pool of generated rows in two sources.

    Args:
        folder: Where rows and runs lie.
        name: Name of the run's folder.
        rows: Rows.
        selection: Settings of the selection section.
    """
    found = [dict(row) for row in demo_rows(seed=3)[:rows]]
    sources = [folder / "first.jsonl", folder / "second.jsonl"]
    if not sources[0].is_file():
        write_jsonl(sources[0], found[: rows // 3])
        write_jsonl(sources[1], found[rows // 3 :])
    config = load_config(
        None,
        (),
        {
            "data": {"sources": [str(source) for source in sources]},
            "model": {"name": str(demo_model_path())},
            "selection": {"budget": 12, **selection},
            "output": {"folder": str(folder / name)},
        },
    )
    pool = read_pool(config, Silent(), Clock())
    return Made(config, pool, check_selection(config, pool), RunFolder(folder / name))


IFD = MethodRecord(
    name="ifd",
    settings={"variant": "cherry", "most": None},
    summary="how little the prompt helps",
    source="2308.12032",
    score="IFD (ratio of losses)",
    passes=PASSES,
)
RANDOM = MethodRecord(name="random", summary="nothing: rows drawn uniformly", score="random draw")
DPP = MethodRecord(
    name="dpp",
    settings={"kernel": "rbf"},
    summary="the volume that the chosen rows span",
    source="arXiv 2402.02318",
    score="log of the volume that the row adds",
    passes=(PassRecord(what="gradients", forwards=60, backwards=60, tokens=2000, backward_tokens=2000),),
)
