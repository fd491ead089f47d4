"""What a command measures of the rows with the proxy: gradients, and whatever else methods need."""

from __future__ import annotations

from typing import Any

from spice_select.config import RunConfig
from spice_select.features.bench import Bench, Counted, Passes
from spice_select.files import remove_tree
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.collect import collect, collect_by, start_again
from spice_select.gradients.crew import Described, Workers
from spice_select.gradients.locks import discard
from spice_select.gradients.proxy import Proxy, load_proxy
from spice_select.gradients.store import GradientStore
from spice_select.pool import Pool, excluded_rows
from spice_select.reporter import Clock, Reporter, heard
from spice_select.run_folder import RunFolder
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.session import load_base, warm_engine, warmed
from spice_select.schedule.session import start_again as discard_schedule
from spice_select.schedule.warmup import WarmUp, wanted

GRADIENTS = "gradients"
"""Name of the gradients' line among the passes."""


def gradient_engine(config: RunConfig, ranks: Ranks, reporter: Reporter, clock: Clock) -> GradientEngine:
    """The proxy as it comes with what measures its gradients.

    Raises:
        ConfigError, ModelError: A setting or proxy that cannot be used.
    """
    reporter.stage("Proxy")
    with clock.stage("model"), ranks.together():
        device = ranks.device(config.model.device)
        with heard(reporter):
            proxy = load_proxy(config.model.model_copy(update={"device": device}), config.gradients)
            engine = GradientEngine(proxy, config.gradients)
        reporter.note(proxy.summary())
    return engine


class Measuring:
    """The proxy of a run and what it measures, each thing once.

    Args:
        config: The settings of the run.
        pool: Its rows.
        folder: Where measurements are kept.
        ranks: The processes of the run; all call alike.
        reporter: Hears the progress.
        clock: Seconds by stage.
        overwrite: Throw away what an earlier run has left in the folder.
        workers: Other processes that measure the gradients; without them this one does.

    Attributes:
        bench: Measures what is no gradient, with the same proxy.
    """

    def __init__(
        self,
        config: RunConfig,
        pool: Pool,
        folder: RunFolder,
        ranks: Ranks,
        reporter: Reporter,
        clock: Clock,
        *,
        overwrite: bool = False,
        workers: Workers | None = None,
    ) -> None:
        self._config = config
        self._pool = pool
        self._folder = folder
        self._ranks = ranks
        self._reporter = reporter
        self._clock = clock
        self._overwrite = overwrite
        self._workers = workers
        self._claimed = False
        self._proxy: Proxy | None = None
        self._engine: GradientEngine | None = None
        self._warm: WarmUp | None = None
        self._store: GradientStore | None = None
        self.bench = Bench(
            config,
            pool,
            folder.features,
            reporter,
            clock,
            self.proxy,
            lambda: load_base(config, ranks, reporter, clock),
        )

    def claim(self) -> None:
        """Make the folder this run's: with ``overwrite`` everything that an earlier one has left goes."""
        if self._claimed:
            return
        self._claimed = True
        with self._ranks.together():
            if self._ranks.main:
                if self._overwrite:
                    discard_schedule(self._folder.schedule)
                    if self._folder.features.is_dir():
                        remove_tree(self._folder.features)
                self._folder.claim(self._config, overwrite=self._overwrite)

    def proxy(self) -> Proxy:
        """The proxy, after its warm-up where there is one.

        Raises:
            ConfigError, ModelError: A setting or proxy that cannot be used, or a proxy that diverged.
        """
        if self._proxy is None:
            self._proxy = self._warmed() if wanted(self._config.schedule) else self._loaded()
        return self._proxy

    def gradients(self) -> tuple[GradientStore, WarmUp | None]:
        """The gradient of every row, and the warm-up that the proxy had before.

        Raises:
            DataError, ModelError, StoreMismatch, OutputError, ResourceError: As collecting raises them.
        """
        if self._store is None:
            self._store = self._collected() if self._workers is None else self._distributed(self._workers)
        return self._store, self._warm

    def leave_gradients(self) -> None:
        """For a run that needs none: with ``overwrite`` an earlier run's gradients go."""
        self.claim()
        with self._ranks.together():
            if self._ranks.main and self._overwrite:
                discard(self._folder.gradients)

    def _loaded(self) -> Proxy:
        # Before anything is thrown away: a proxy that cannot be measured is found here.
        self._engine = gradient_engine(self._config, self._ranks, self._reporter, self._clock)
        self.claim()
        return self._engine.proxy

    def _warmed(self) -> Proxy:
        config, ranks = self._config, self._ranks
        base = load_base(config, ranks, self._reporter, self._clock)
        self.claim()
        usable = self._pool.encoded.usable & ~excluded_rows(config, self._pool)
        with self._clock.stage("warm-up"):
            proxy, self._warm = warmed(
                config, base, self._pool.encoded, usable, self._folder.schedule, ranks, self._reporter
            )
        with ranks.together(), heard(self._reporter):
            assert self._warm is not None
            self._engine = warm_engine(config, proxy, self._warm)
        return proxy

    def _collected(self) -> GradientStore:
        config, pool, ranks = self._config, self._pool, self._ranks
        proxy = self.proxy()
        assert self._engine is not None
        identity = self._identity(proxy.weights_hash, proxy.tokenizer_hash, proxy.coverage)
        self._reporter.stage("Gradients")
        self._begin(self._engine, identity)
        counted = Counted(self._engine, forwards=1.0, backwards=1.0)
        with self._clock.stage("gradients"), ranks.together(), heard(self._reporter):
            result = collect(
                pool.encoded,
                counted,
                self._folder.gradients,
                config.gradients,
                identity=identity,
                progress=self._reporter.advance,
                note=self._reporter.warn,
            )
        for line in result.describe():
            self._reporter.note(line)
        self.bench.count(GRADIENTS, result.store.manifest.fingerprint, counted.passes(GRADIENTS))
        return result.store

    def _distributed(self, workers: Workers) -> GradientStore:
        """The same by workers, without the proxy in this process unless it has to be trained."""
        config, pool = self._config, self._pool
        warm = None
        if wanted(config.schedule):
            self.proxy()
            assert self._warm is not None
            warm = self._warm.folder
            # Its memory is the workers' from here on; whoever asks for it again takes the warm-up up.
            self._proxy = self._engine = None
        self._reporter.stage("Workers")
        with self._clock.stage("model"):
            opened = workers.open(config, warm, self._reporter)
        for line in opened.warnings:
            self._reporter.warn(line)
        self._reporter.note(opened.summary)
        self.claim()
        identity = self._identity(opened.weights, opened.tokenizer, opened.coverage)
        self._reporter.stage("Gradients")
        self._begin(opened, identity)
        with self._clock.stage("gradients"):
            result = collect_by(
                workers,
                pool.encoded,
                opened,
                self._folder.gradients,
                config.gradients,
                identity=identity,
                progress=lambda done, total, tokens, seconds: self._reporter.advance(
                    done, total, tokens, seconds, workers.state()
                ),
                note=self._reporter.warn,
            )
        for line in result.describe():
            self._reporter.note(line)
        passes = Passes(
            what=GRADIENTS,
            forwards=result.examples,
            backwards=result.examples,
            tokens=result.tokens,
            backward_tokens=result.tokens,
            seconds=result.worked,
        )
        self.bench.count(GRADIENTS, result.store.manifest.fingerprint, passes)
        return result.store

    def _identity(self, weights: str, tokenizer: str, coverage: float) -> dict[str, Any]:
        identity: dict[str, Any] = {
            "weights": weights,
            "tokenizer": tokenizer,
            "coverage": round(coverage, 6),
            "encoding": dict(self._pool.encoded.identity),
        }
        if self._warm is not None:
            identity["warm_up"] = self._warm.digest
        return identity

    def _begin(self, described: Described, identity: dict[str, Any]) -> None:
        """With ``overwrite``, throw away the gradients that are there."""
        if not self._overwrite:
            return
        with self._ranks.together():
            if self._ranks.main:
                gradients = self._config.gradients
                start_again(self._pool.encoded, described, self._folder.gradients, gradients, identity=identity)
