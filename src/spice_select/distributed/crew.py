"""A pool of workers that Ray keeps, and what happens when one of them is lost.

A command starts its crew before it loads anything else, so that nothing heavy is imported here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from spice_select.config import RunConfig
from spice_select.distributed.cluster import Cluster, Shape
from spice_select.distributed.messages import Failed, Order, Said
from spice_select.distributed.parts import each_part
from spice_select.distributed.worker import Worker
from spice_select.errors import ModelError, ResourceError, retold
from spice_select.reporter import Reporter

if TYPE_CHECKING:
    from spice_select.gradients.crew import Heard, Job, Opened
    from spice_select.gradients.shards import Shard

# A shard that has ended so many workers would end the next as well.
_MOST_LOSSES_OF_A_SHARD = 3
# Workers lost in a row, with no shard finished in between, for each worker there is to be.
_MOST_LOSSES = 3
_TURN_S = 1.0
_PATIENCE_S = 60.0


@dataclass
class _Member:
    """One worker, as this process sees it.

    Attributes:
        number: Counts all workers there have been.
        actor: Ray's handle.
        process: Its number on its machine, asked for.
        waiting: What it was asked for: to open the proxy, or the stream of a shard's news.
        handle: Of that process, where it is this process's to end.
        opened: It has the proxy.
        shard: The shard in hand.
        advanced: Examples of that shard that were measured so far.
    """

    number: int
    actor: Any
    process: Any
    waiting: Any = None
    handle: int | None = None
    opened: bool = False
    shard: Shard | None = None
    advanced: int = 0


@dataclass
class _Work:
    """The shards of a job on their way."""

    job: Job
    heard: Heard
    todo: deque[Shard]
    held: deque[Shard] = field(default_factory=deque)
    losses: dict[int, int] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    told_of_held: bool = False

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


class RayCrew:
    """Measures with workers of Ray; each holds the proxy, and all write shards of the same store.

    A worker is sent one shard at a time, with the token ids of its rows alone. Were each to read and encode all rows by
    itself, every one of them would hold them all, take as long as this process did, and see files that may have changed
    meanwhile; sent whole through Ray's object store, they would fill it.

    Args:
        workers: How many; none: as many as there are GPUs, or cores up to four on a machine.
        address: Of a cluster that is there; without it one is started on this machine for the time being.

    Raises:
        ConfigError: Ray is not installed, or an argument cannot be used.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self._cluster = Cluster(workers, address)
        self._ray = self._cluster.ray
        self._shape: Shape | None = None
        self._asked: tuple[RunConfig, Path | None] | None = None
        self._ahead: RunConfig | None = None
        self._members: list[_Member] = []
        self._opened: Opened | None = None
        self._started = 0
        self._lost = 0
        self._in_a_row = 0

    def __enter__(self) -> RayCrew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and the cluster where it was started here."""
        try:
            # A cluster that is gone has no workers left to end, and the error that told of it is the one to be seen.
            with suppress(self._ray.exceptions.RayError):
                self._dismiss()
        finally:
            self._shape = self._ahead = None
            self._cluster.stop()

    def begin(self, config: RunConfig) -> None:
        """Start the cluster and the workers, which open the proxy as it comes while this process reads the rows.

        Raises:
            ConfigError: More workers than GPUs.
            ResourceError: The cluster cannot be started or reached.
        """
        if self._shape is None:
            self._shape = self._cluster.start(config.model.device, "model.device")
        warm_up = config.schedule.warmup_steps or config.schedule.warmup_share
        if self._ahead is None and not warm_up:
            self._ahead = config
            self._ask(config, None)
        while len(self._members) < self._shape.workers:
            self._hire()

    def open(self, config: RunConfig, warm: Path | None, reporter: Reporter) -> Opened:
        """Have the proxy opened; returns when the first worker has it."""
        self.begin(config)
        assert self._shape is not None
        reporter.note(self._shape.describe())
        if self._cluster.crowded is not None:
            reporter.warn(self._cluster.crowded)
        ahead, self._ahead = self._ahead, None
        if ahead is None or warm is not None or (ahead.model, ahead.gradients) != (config.model, config.gradients):
            self._ask(config, warm)
        self._opened = None
        began, warned = time.monotonic(), False
        while self._opened is None:
            for member in self._ready():
                self._hear_opened(member, reporter.warn)
            if not warned and time.monotonic() - began > _PATIENCE_S and not any(m.opened for m in self._members):
                warned = True
                free, there = self._cluster.free_cpus()
                reporter.warn(
                    f"No worker has opened the proxy after {_PATIENCE_S:.0f} s; {free:g} of the {there:g} CPUs of the "
                    f"cluster are free, and each worker takes {self._shape.cpus}."
                )
        return self._opened

    def compute(self, job: Job, heard: Heard) -> None:
        """Send out the shards, and go on until all of them are whole."""
        work = _Work(job, heard, deque(job.shards))
        while True:
            for member in self._members:
                if member.opened and member.waiting is None:
                    self._send_shard(member, work)
            if not work.todo and not work.held and all(member.shard is None for member in self._members):
                break
            for member in self._ready():
                if member.shard is None:
                    self._hear_opened(member, heard.say)
                else:
                    self._hear_shard(member, work)
        # Their memory and their CPUs are free for what comes next.
        self._dismiss()
        if self._cluster.remote:
            _see(job)

    def mapper(self, config: RunConfig) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]:
        """What applies a function to the partitions of a selection, each at a worker of its own.

        Raises:
            ConfigError, ResourceError: As :meth:`begin` raises them.
        """
        # Where nothing was missing they are there still, and hold the CPUs.
        self._dismiss()
        shape = self._cluster.start(config.selection.device, "selection.device")
        return partial(each_part, self._cluster, shape)

    def state(self) -> str:
        """Workers at work, and those lost."""
        alive = sum(member.opened for member in self._members)
        lost = f", {self._lost} lost" if self._lost else ""
        return f"{alive} worker{'' if alive == 1 else 's'}{lost}"

    def processes(self) -> list[int]:
        """Process numbers of the workers that are there, each on its own machine."""
        return self._ray.get([member.process for member in self._members])

    def _hire(self) -> None:
        assert self._shape is not None
        self._started += 1
        kind = self._ray.remote(Worker)
        actor = kind.options(
            num_cpus=self._shape.cpus,
            num_gpus=self._shape.gpus,
            # A worker that was lost has lost its proxy too: this process starts another, and counts.
            max_restarts=0,
            max_task_retries=0,
        ).remote(self._cluster.environment(), self._shape.threads)
        member = _Member(self._started, actor, actor.process.remote())
        self._members.append(member)
        if self._asked is not None:
            self._send_open(member)

    def _ask(self, config: RunConfig, warm: Path | None) -> None:
        """Have all workers open a proxy, those that are there and those to come."""
        self._asked = config, warm
        for member in self._members:
            self._send_open(member)

    def _send_open(self, member: _Member) -> None:
        assert self._asked is not None
        member.opened = False
        member.waiting = member.actor.open.remote(*self._asked)

    def _send_shard(self, member: _Member, work: _Work) -> None:
        if work.todo:
            shard, wait = work.todo.popleft(), False
        elif work.held:
            if not work.told_of_held:
                work.told_of_held = True
                work.heard.say(f"Waiting for another run that is at {len(work.held)} shards of this store.")
            shard, wait = work.held.popleft(), True
        else:
            return
        job = work.job
        order = Order(job.folder.absolute(), job.manifest, job.batch_tokens, shard, job.part(shard), wait)
        member.shard, member.advanced = shard, 0
        member.waiting = member.actor.measure.options(num_returns="streaming").remote(order)

    def _ready(self) -> list[_Member]:
        """Workers that have something to say; none, if there is no news for a while."""
        waiting = [member for member in self._members if member.waiting is not None]
        assert waiting
        found, _ = self._ray.wait([member.waiting for member in waiting], num_returns=1, timeout=_TURN_S)
        return [member for member in waiting if member.waiting in found]

    def _hear_opened(self, member: _Member, say: Any) -> None:
        try:
            found: Opened | Failed = self._ray.get(member.waiting)
        except self._ray.exceptions.RayError as error:
            # A class that cannot be loaded over there is told as an error of the call.
            if isinstance(error, self._ray.exceptions.RayTaskError) and "failed to import" not in str(error):
                raise
            self._replace(member, error, "while it opened the proxy", say)
            return
        member.waiting = None
        if isinstance(found, Failed):
            raise _error(found)
        first = self._opened = self._opened or found
        _require_alike(first, found)
        member.opened = True
        if member.handle is None:
            member.handle = self._cluster.hold(member.process)

    def _hear_shard(self, member: _Member, work: _Work) -> None:
        shard = member.shard
        assert shard is not None
        try:
            said = self._ray.get(next(member.waiting))
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            self._give_back(member, work)
            self._replace(member, error, f"at shard {shard.number}", work.heard.say)
            self._count(shard, work)
            return
        if isinstance(said, Failed):
            raise _error(said)
        assert isinstance(said, Said)
        for sentence in said.sentences:
            work.heard.say(sentence)
        if said.examples:
            member.advanced += said.examples
            work.heard.advance(said.examples, said.tokens, work.seconds)
        if said.done is None and not said.busy:
            return
        member.shard = member.waiting = None
        if said.busy:
            work.held.append(shard)
            return
        assert said.done is not None
        self._in_a_row = 0
        work.heard.finished(shard, said.done, work.seconds)

    def _give_back(self, member: _Member, work: _Work) -> None:
        """Put the shard of a lost worker in front of the others, as not begun."""
        assert member.shard is not None
        work.todo.appendleft(member.shard)
        if member.advanced:
            work.heard.advance(-member.advanced, 0, work.seconds)

    def _replace(self, member: _Member, error: Exception, when: str, say: Any) -> None:
        """Start a worker in the place of a lost one.

        Raises:
            ResourceError: Too many were lost one after another.
        """
        assert self._shape is not None
        self._members.remove(member)
        # It may be unreachable, and alive; what it holds is freed with it.
        self._end([member])
        self._lost += 1
        self._in_a_row += 1
        reason = _reason(self._ray, error)
        if self._in_a_row >= _MOST_LOSSES * self._shape.workers:
            raise ResourceError(
                f"{self._in_a_row} workers were lost one after another, the last {when} ({reason}); give fewer by "
                "--workers if memory is short, and run the same command again to go on."
            )
        say(f"A worker was lost {when} ({reason}); another takes its place.")
        self._hire()

    def _count(self, shard: Shard, work: _Work) -> None:
        """Count the loss of a worker against its shard.

        Raises:
            ResourceError: The shard has ended too many.
        """
        work.losses[shard.number] = work.losses.get(shard.number, 0) + 1
        if work.losses[shard.number] >= _MOST_LOSSES_OF_A_SHARD:
            raise ResourceError(
                f"Shard {shard.number} (rows {shard.start} to {shard.stop - 1}) has ended {_MOST_LOSSES_OF_A_SHARD} "
                "workers one after another; lower gradients.batch_tokens or --workers if memory is short, and run the "
                "same command again to go on."
            )

    def _dismiss(self) -> None:
        members, self._members = self._members, []
        self._end(members)

    def _end(self, members: Sequence[_Member]) -> None:
        self._cluster.end(
            [member.actor for member in members],
            [member.handle for member in members if member.handle is not None],
        )


def _error(failed: Failed) -> Exception:
    found = retold(list(failed.kinds), failed.sentence)
    assert found is not None
    return found


def _require_alike(first: Opened, other: Opened) -> None:
    """Refuse workers that would measure other numbers than the first.

    Raises:
        ModelError: The proxies differ; what in is named.
    """
    names = ("dim", "content", "weights", "tokenizer", "coverage")
    differing = [name for name in names if getattr(first, name) != getattr(other, name)]
    if differing:
        shown = ", ".join("engine" if name == "content" else name for name in differing)
        raise ModelError(
            f"Workers have opened different proxies ({shown} differ); give all machines the same model and the same "
            "versions."
        )


def _reason(ray: Any, error: Exception) -> str:
    """Why a worker is gone, in a few words; Ray says it in its text alone."""
    lines = str(error).strip().splitlines()
    text = " ".join(lines)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in text:
        return "its machine ran out of memory"
    if "node has died" in text:
        return "its machine is gone"
    if "error raised in its creation task" in text or "failed to import" in text:
        return f"it cannot be started: {lines[-1].strip().rstrip('.')[:200]}"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "it cannot be reached"
    return "its process ended"


def _see(job: Job) -> None:
    """Wait until this machine sees what others wrote: a network file system tells of new files a little late."""
    from spice_select.gradients.shards import ShardFiles

    files, until = ShardFiles(job.folder, job.manifest), time.monotonic() + _PATIENCE_S
    while files.missing() and time.monotonic() < until:
        # Listing the folder makes the file system ask its server.
        list(files.folder.iterdir())
        time.sleep(_TURN_S)
