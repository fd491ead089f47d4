"""Who computes the shards of a store: the process that asks for it, or workers that it has elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spice_select.config import RunConfig
from spice_select.data.encoded import Encoded
from spice_select.gradients.batches import Engine
from spice_select.gradients.manifest import Manifest
from spice_select.gradients.shard_work import Done, ShardWorker, Step
from spice_select.gradients.shards import Shard
from spice_select.reporter import Reporter


@dataclass(frozen=True)
class Job:
    """Shards of a store that are to be computed.

    Attributes:
        folder: The store.
        manifest: Its manifest.
        batch_tokens: Most padded tokens of a batch.
        shards: What is missing.
        part: The examples of a shard's rows.
    """

    folder: Path
    manifest: Manifest
    batch_tokens: int
    shards: tuple[Shard, ...]
    part: Callable[[Shard], Encoded]


class Heard(Protocol):
    """Hears what becomes of the shards; ``seconds`` are those of the whole work so far."""

    def advance(self, examples: int, tokens: int, seconds: float) -> None:
        """So many more examples were measured; fewer where what a worker had measured is lost."""
        ...

    def finished(self, shard: Shard, done: Done, seconds: float) -> None:
        """A shard is whole."""
        ...

    def say(self, sentence: str) -> None:
        """A sentence that a user should read."""
        ...


class Crew(Protocol):
    """Computes shards."""

    def compute(self, job: Job, heard: Heard) -> None:
        """Return when all shards of the job are whole, whoever computed them."""
        ...


class Described(Protocol):
    """What decides a row's numbers beside weights and examples; an engine is one."""

    @property
    def dim(self) -> int:
        """Length of a row."""
        ...

    def spec(self) -> Mapping[str, Any]:
        """The rest, in what JSON can hold."""
        ...


@dataclass(frozen=True)
class Opened:
    """What workers say of the proxy that they have opened.

    Attributes:
        dim: Length of a row.
        content: The engine's account of itself.
        weights: SHA-256 of the weights.
        tokenizer: SHA-256 of the tokenizer.
        coverage: Share of the non-embedding weights covered.
        summary: The proxy in one line.
        warnings: What the user should be warned of.
    """

    dim: int
    content: dict[str, Any]
    weights: str
    tokenizer: str
    coverage: float
    summary: str
    warnings: tuple[str, ...] = ()

    def spec(self) -> Mapping[str, Any]:
        """The engine's account of itself."""
        return self.content


class Workers(Crew, Protocol):
    """A crew of other processes, each of which opens the proxy by itself."""

    def begin(self, config: RunConfig) -> None:
        """Start them, without waiting until they can work.

        Raises:
            ConfigError: A setting that does not go with them.
            ResourceError: They cannot be started.
        """
        ...

    def open(self, config: RunConfig, warm: Path | None, reporter: Reporter) -> Opened:
        """Have the proxy opened.

        Args:
            config: The settings of the run.
            warm: Checkpoint of the warm-up that the proxy has had, where it has had one.
            reporter: Hears what is done.

        Raises:
            SpiceError: As opening it in this process raises them.
            ResourceError: No worker stays alive.
        """
        ...

    def mapper(self, config: RunConfig) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]:
        """What applies a function to the partitions of a selection, elsewhere.

        Raises:
            ConfigError: A setting that does not go with them.
            ResourceError: They cannot be started.
        """
        ...

    def close(self) -> None:
        """End them."""
        ...

    def state(self) -> str:
        """The workers in a few words, for a line of progress."""
        ...


class Alone:
    """This process, which takes one shard after another.

    Args:
        engine: What measures.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seconds = 0.0

    def compute(self, job: Job, heard: Heard) -> None:
        """First what is free, then what others have had in hand meanwhile."""
        worker = ShardWorker(self._engine, job.folder, job.manifest, job.batch_tokens, heard.say)
        taken = [shard for shard in job.shards if not self._follow(shard, worker.work(shard, job.part(shard)), heard)]
        if taken:
            heard.say(f"Waiting for another run that is at {len(taken)} shards of this store.")
        for shard in taken:
            whole = self._follow(shard, worker.work(shard, job.part(shard), wait=True), heard)
            assert whole

    def _follow(self, shard: Shard, work: Iterator[Step | Done], heard: Heard) -> bool:
        """Whether the shard is whole, and not another's."""
        for step in work:
            if isinstance(step, Done):
                self._seconds += step.seconds
                heard.finished(shard, step, self._seconds)
                return True
            heard.advance(step.examples, step.tokens, self._seconds + step.seconds)
        return False
