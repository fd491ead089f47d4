"""A process that holds the proxy and computes the shards that it is sent.

Ray names this module to start one, so that nothing heavy is imported here before the number of threads is set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from spice_select.errors import ResourceError, SpiceError, told

if TYPE_CHECKING:
    from spice_select.config import RunConfig
    from spice_select.data.encoded import Encoded
    from spice_select.distributed.messages import Failed, Order, Said
    from spice_select.gradients.capture import GradientEngine
    from spice_select.gradients.crew import Opened
    from spice_select.gradients.shard_work import ShardWorker

_NEWS_INTERVAL_S = 0.5


class Worker:
    """Holds the proxy, opened once.

    Args:
        environment: Variables that the libraries below read.
        threads: Threads of the arithmetic.
    """

    def __init__(self, environment: Mapping[str, str], threads: int) -> None:
        os.environ.update(environment)
        # Read when torch is loaded.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        # Seconds of imports, while the process that sends the work still reads its rows.
        import_module("spice_select.schedule.session")
        transformers = import_module("transformers")
        for name in ("AutoModelForCausalLM", "AutoTokenizer"):
            # Loaded when they are asked for.
            getattr(transformers, name)

        torch.set_num_threads(threads)
        self._engine: GradientEngine | None = None
        self._shards: tuple[str, ShardWorker] | None = None
        self._sentences: list[str] = []

    def process(self) -> int:
        """Number of this process on its machine."""
        return os.getpid()

    def open(self, config: RunConfig, warm: Path | None) -> Opened | Failed:
        """Load the proxy as a process that works alone would."""
        from spice_select.gradients.capture import GradientEngine
        from spice_select.gradients.crew import Opened
        from spice_select.gradients.proxy import load_proxy
        from spice_select.reporter import Listening, Silent, heard
        from spice_select.schedule.session import warm_engine, warmed_elsewhere

        listening = Listening(Silent())
        try:
            with heard(listening):
                if warm is None:
                    proxy = load_proxy(config.model, config.gradients)
                    self._engine = GradientEngine(proxy, config.gradients)
                else:
                    base = load_proxy(config.model, config.gradients.model_copy(update={"lora": None}))
                    proxy, warmed = warmed_elsewhere(config, base, warm)
                    self._engine = warm_engine(config, proxy, warmed)
            return Opened(
                dim=self._engine.dim,
                content=dict(self._engine.spec()),
                weights=proxy.weights_hash,
                tokenizer=proxy.tokenizer_hash,
                coverage=proxy.coverage,
                summary=proxy.summary(),
                warnings=tuple(listening.warnings),
            )
        except Exception as error:
            return failed(error)

    def measure(self, order: Order) -> Iterator[Said | Failed]:
        """Compute a shard, with news twice a second; the last says how it ended."""
        from spice_select.distributed.messages import Said
        from spice_select.gradients.locks import at_work
        from spice_select.gradients.shard_work import Step
        from spice_select.reporter import Listening, Silent, heard

        listening = Listening(Silent())
        try:
            with heard(listening), at_work(order.folder, order.manifest):
                examples = tokens = 0
                last, done = time.monotonic(), None
                for step in self._worker(order).work(order.shard, _copied(order.part), wait=order.wait):
                    if not isinstance(step, Step):
                        done = step
                        continue
                    examples, tokens = examples + step.examples, tokens + step.tokens
                    if time.monotonic() - last >= _NEWS_INTERVAL_S:
                        yield Said(examples, tokens, self._news())
                        examples = tokens = 0
                        last = time.monotonic()
            sentences = (*self._news(), *listening.warnings)
            yield Said(examples, tokens, sentences, done, busy=done is None)
        except Exception as error:
            yield failed(error)

    def _worker(self, order: Order) -> ShardWorker:
        from spice_select.gradients.shard_work import ShardWorker

        # One for all shards of a store, as it knows what size of batch has failed.
        key = f"{order.folder} {order.manifest.fingerprint}"
        if self._shards is None or self._shards[0] != key:
            assert self._engine is not None
            made = ShardWorker(self._engine, order.folder, order.manifest, order.batch_tokens, self._sentences.append)
            self._shards = (key, made)
        return self._shards[1]

    def _news(self) -> tuple[str, ...]:
        found = tuple(self._sentences)
        self._sentences.clear()
        return found


def _copied(part: Encoded) -> Encoded:
    """The same in this process's own memory: what comes through Ray's is read-only, and is freed once it is copied."""
    import numpy as np

    arrays = {name: np.array(value) for name, value in vars(part).items() if isinstance(value, np.ndarray)}
    return replace(part, **arrays)


def failed(error: Exception, remedy: str = "lower gradients.batch_tokens or data.max_length") -> Failed:
    """What the user is told.

    Args:
        error: What was raised.
        remedy: What to do where memory ran out.

    Raises:
        Exception: The error itself, where it is no user's to mend.
    """
    from spice_select.distributed.messages import Failed

    if isinstance(error, MemoryError):
        error = ResourceError(f"Memory ran out; {remedy}.")
    if not isinstance(error, SpiceError):
        raise error
    kinds, sentence = told(error)
    return Failed(tuple(kinds), sentence)
