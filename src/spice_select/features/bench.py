"""Where what methods need is measured: once, kept on disk, and counted in passes of the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from spice_select.analysis.record import PassRecord
from spice_select.config import RunConfig
from spice_select.data.encoded import Encoded
from spice_select.features.target import TargetRows, read_target
from spice_select.files import write_text
from spice_select.gradients.batches import Batch, Engine
from spice_select.gradients.collect import collect
from spice_select.gradients.manifest import build_manifest
from spice_select.gradients.proxy import Proxy
from spice_select.gradients.store import GradientStore
from spice_select.pool import Pool
from spice_select.reporter import Clock, Listening, Reporter, heard
from spice_select.seals import kept, sealed


class Passes(PassRecord):
    """What a measurement took, all runs that worked on it together, and a sum of such."""

    def plus(self, other: Passes) -> Passes:
        """The sum of both, under the name of the first."""
        numbers = self.model_dump(exclude={"what"})
        return Passes(what=self.what, **{name: value + getattr(other, name) for name, value in numbers.items()})


class Counted:
    """An engine whose batches are counted.

    Args:
        engine: What measures.
        forwards: Forward passes of each example, in units of its tokens.
        backwards: Backward passes.
    """

    def __init__(self, engine: Engine, forwards: float = 1.0, backwards: float = 0.0) -> None:
        self._engine = engine
        self._factors = (forwards, backwards)
        self.examples = 0
        self.tokens = 0
        self.seconds = 0.0

    @property
    def dim(self) -> int:
        """Length of a row."""
        return self._engine.dim

    def spec(self) -> Mapping[str, Any]:
        """The engine's own."""
        return self._engine.spec()

    def batch(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> Batch:
        """Measure and count."""
        begun = time.perf_counter()
        found = self._engine.batch(ids, masks)
        self.seconds += time.perf_counter() - begun
        self.examples += len(ids)
        self.tokens += sum(len(row) for row in ids)
        return found

    def passes(self, what: str) -> Passes:
        """What was counted."""
        forwards, backwards = self._factors
        return Passes(
            what=what,
            forwards=round(forwards * self.examples),
            backwards=round(backwards * self.examples),
            tokens=round(forwards * self.tokens),
            backward_tokens=round(backwards * self.tokens),
            seconds=self.seconds,
        )


@dataclass
class Bench:
    """The pool, the proxy, and the folder in which measurements are kept.

    Attributes:
        config: The settings of the run.
        pool: Its rows.
        folder: Where measurements are kept.
        reporter: Hears the progress.
        clock: Seconds by stage.
        load: Loads the proxy as the run uses it (warmed up, where it is), called at most once.
        load_base: Loads the proxy as it came, for a method that trains it in place.
        passes: What was measured so far, by name of the measurement.
        warnings: What the reporter was warned of by measurements.
    """

    config: RunConfig
    pool: Pool
    folder: Path
    reporter: Reporter
    clock: Clock
    load: Callable[[], Proxy]
    load_base: Callable[[], Proxy]
    passes: dict[str, Passes] = field(default_factory=dict)
    _stores: dict[Path, GradientStore] = field(default_factory=dict, repr=False)

    warnings: list[str] = field(init=False)

    def __post_init__(self) -> None:
        listening = Listening(self.reporter)
        self.reporter, self.warnings = listening, listening.warnings

    @cached_property
    def proxy(self) -> Proxy:
        """The proxy, frozen and in eval mode; loaded on first use."""
        return self.load()

    @cached_property
    def target(self) -> TargetRows:
        """The target examples, read on first use.

        Raises:
            DataError: They cannot be read.
        """
        return read_target(self.config, self.pool, self.reporter, self.clock)

    @property
    def used_proxy(self) -> bool:
        """Whether anything has asked for the proxy so far."""
        return "proxy" in self.__dict__

    def identity(self, proxy: Proxy | None = None) -> dict[str, Any]:
        """What decides a measurement beside its engine and its examples."""
        of = proxy or self.proxy
        return {"weights": of.weights_hash, "tokenizer": of.tokenizer_hash, "dtype": str(of.dtype)}

    def collect(
        self,
        name: str,
        encoded: Encoded,
        engine: Engine,
        *,
        identity: Mapping[str, Any] | None = None,
        forwards: float = 1.0,
        backwards: float = 0.0,
        stage: str | None = None,
    ) -> GradientStore:
        """Measure one row of numbers for every usable example, or take what is there of the same.

        A run that is cut off goes on where it stopped. What the rows mean is the engine's affair: a store holds
        whatever it measures.

        Args:
            name: Name of the measurement; part of its folder's name.
            encoded: The examples.
            engine: What measures; its ``spec`` must name all that decides the numbers beside weights and examples.
            identity: What else decides them.
            forwards: Forward passes of an example, in units of its tokens, for the count.
            backwards: Backward passes of it.
            stage: What the user is told; the name where absent.
        """
        given = dict(identity or {})
        # For another proxy's measurement, the run's own need not be loaded.
        sources = given if "weights" in given else {**self.identity(), **given}
        gradients = self.config.gradients.model_copy(update={"store_dtype": "float32"})
        manifest = build_manifest(
            rows=len(encoded),
            dim=engine.dim,
            shard_rows=gradients.shard_rows,
            store_dtype="float32",
            examples=encoded.digest,
            gradient=engine.spec(),
            sources=sources,
            batch_tokens=gradients.batch_tokens,
        )
        counted = Counted(engine, forwards, backwards)
        place = self.place(name, manifest.fingerprint)
        if place in self._stores:
            self.count(name, manifest.fingerprint, counted.passes(name))
            return self._stores[place]
        self.reporter.stage(stage or name.capitalize())
        try:
            with self.clock.stage(name), heard(self.reporter):
                result = collect(
                    encoded,
                    counted,
                    place,
                    gradients,
                    identity=sources,
                    progress=self.reporter.advance,
                    note=self.reporter.warn,
                )
        finally:
            self.count(name, manifest.fingerprint, counted.passes(name))
        for line in result.describe():
            self.reporter.note(line)
        self._stores[place] = result.store
        return result.store

    def place(self, name: str, digest: str) -> Path:
        """Folder of a measurement whose identity has this digest."""
        return self.folder / f"{name}-{digest[:12]}"

    def count(self, name: str, digest: str, passes: Passes) -> None:
        """Add to what a measurement has taken, over all runs that worked on it."""
        path = self.folder / f"{name}-{digest[:12]}.json"
        earlier = _read(path)
        total = passes if earlier is None else earlier.plus(passes)
        if total != earlier and self.folder.is_dir():
            write_text(path, sealed(total.model_dump()))
        self.passes[f"{name}-{digest[:12]}"] = total


def _read(path: Path) -> Passes | None:
    try:
        return Passes.model_validate(kept(path))
    except ValidationError:
        return None
