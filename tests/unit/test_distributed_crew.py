"""What a crew does when workers are lost, busy or wrong, with a Ray of this file's own that loses what it is told."""

from __future__ import annotations

import os
import pickle
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from spice_select import pipeline
from spice_select.config import RunConfig
from spice_select.demo import demo_model_path, demo_rows
from spice_select.distributed import cluster as cluster_module
from spice_select.distributed import crew as crew_module
from spice_select.distributed.cluster import Cluster, Shape, require_ray
from spice_select.distributed.crew import RayCrew
from spice_select.distributed.messages import Failed
from spice_select.distributed.parts import each_part
from spice_select.distributed.worker import Worker
from spice_select.errors import ConfigError, ModelError, ResourceError, SpiceError, StoreMismatch, told
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.collect import CollectResult, collect_by
from spice_select.gradients.crew import Opened
from spice_select.gradients.locks import lease
from spice_select.gradients.manifest import read_manifest
from spice_select.gradients.proxy import load_proxy
from spice_select.gradients.shards import Shard
from spice_select.reporter import Silent
from tests.integration.rows import write_jsonl
from tests.stores import IDENTITY, FakeEngine, contents, examples, fill, settings

ROWS = 60
SHARDS = 8


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class OutOfMemoryError(RayError):
    pass


class ActorUnavailableError(RayError):
    pass


@dataclass(eq=False)
class Ref:
    value: Any = None
    error: Exception | None = None


class Stream:
    """News of a call, one at a time; a lost worker's news is that it is lost."""

    def __init__(self, actor: Actor, news: Iterator[Any], losses: Callable[[int], Exception | None]) -> None:
        self._actor, self._news, self._losses = actor, news, losses

    def __next__(self) -> Ref:
        error = self._losses(self._actor.number)
        if error is not None:
            self._news.close()  # type: ignore[attr-defined]
            return Ref(error=error)
        return Ref(next(self._news))


class Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor, self._name, self._stream = actor, name, False

    def options(self, **options: Any) -> Method:
        self._stream = options.get("num_returns") == "streaming"
        return self

    def remote(self, *args: Any) -> Any:
        found = getattr(self._actor.worker, self._name)(*args)
        return Stream(self._actor, found, self._actor.ray.losses) if self._stream else Ref(found)


class Actor:
    def __init__(self, ray: FakeRay, number: int, worker: Any) -> None:
        self.ray, self.number, self.worker = ray, number, worker

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


@dataclass
class FakeRay:
    """Answers in this process; the order in which workers answer is drawn.

    Attributes:
        losses: Whether the worker of a number is lost when its next news is fetched, and why.
        started: Workers started.
        killed: Workers killed.
    """

    losses: Callable[[int], Exception | None] = lambda number: None
    moments: random.Random = field(default_factory=lambda: random.Random(0))
    started: int = 0
    killed: list[int] = field(default_factory=list)

    exceptions: ClassVar[Any] = SimpleNamespace(
        RayError=RayError,
        RayTaskError=RayTaskError,
        OutOfMemoryError=OutOfMemoryError,
        ActorUnavailableError=ActorUnavailableError,
    )

    def remote(self, what: Any) -> Any:
        if not isinstance(what, type):
            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *args: Ref(what(*args))))

        def start(*args: Any) -> Actor:
            self.started += 1
            return Actor(self, self.started, what(*args))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def wait(self, refs: list[Any], *, num_returns: int, timeout: float = 0) -> tuple[list[Any], list[Any]]:
        first = self.moments.choice(refs)
        return [first], [ref for ref in refs if ref is not first]

    def get(self, ref: Any) -> Any:
        if isinstance(ref, list):
            return [self.get(one) for one in ref]
        if ref.error is not None:
            raise ref.error
        return ref.value

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor.number)


class FakeWorker(Worker):
    """Measures with the fake engine of the store's tests, and has none of a process's own environment to set."""

    engine: Any = None

    def __init__(self, environment: Any, threads: int) -> None:
        self._engine: Any = None
        self._shards = None
        self._sentences = []

    def open(self, config: RunConfig, warm: Path | None) -> Opened | Failed:
        self._engine = type(self).engine or FakeEngine()
        return Opened(self._engine.dim, dict(self._engine.spec()), "a" * 64, "b" * 64, 1.0, "a proxy")


@pytest.fixture
def hired(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RayCrew, FakeRay]]:
    def hire(
        losses: Callable[[int], Exception | None] = lambda number: None,
        workers: int = 2,
        seed: int = 0,
        kind: type[Worker] = FakeWorker,
    ) -> tuple[RayCrew, FakeRay]:
        ray = FakeRay(losses, random.Random(seed))
        cluster = SimpleNamespace(
            crowded=None,
            ray=ray,
            remote=False,
            start=lambda device, setting: Shape(workers, 1, 1, 0),
            environment=dict,
            hold=lambda process: None,
            end=lambda actors, handles: [ray.kill(actor) for actor in actors],
            stop=lambda: None,
        )
        monkeypatch.setattr(crew_module, "Cluster", lambda *_: cluster)
        monkeypatch.setattr(crew_module, "Worker", kind)
        return RayCrew(workers), ray

    return hire


def work(crew: RayCrew, folder: Path, said: list[str] | None = None, progress: Any = None) -> CollectResult:
    config = RunConfig.model_validate({"model": {"name": "none"}})
    opened = crew.open(config, None, Silent())
    with crew:
        return collect_by(
            crew,
            examples(ROWS),
            opened,
            folder,
            settings(),
            identity=IDENTITY,
            note=None if said is None else said.append,
            progress=progress,
        )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    fill(folder, examples(ROWS))
    return contents(folder)


@pytest.mark.parametrize("workers", [1, 2, 5, 11])
def test_a_crew_leaves_the_bytes_of_one_process(hired, tmp_path: Path, undisturbed, workers: int) -> None:
    crew, ray = hired(workers=workers, seed=workers)
    told_of: list[tuple[int, ...]] = []
    result = work(crew, tmp_path, progress=lambda *numbers: told_of.append(numbers))
    assert contents(tmp_path) == undisturbed
    assert (result.shards, result.written_shards, result.reused_shards, result.peer_shards) == (SHARDS, SHARDS, 0, 0)
    assert result.examples == ROWS and result.tokens == examples(ROWS).lengths.sum()
    assert told_of[-1][:2] == (ROWS, ROWS)
    assert ray.started == workers and sorted(ray.killed) == list(range(1, workers + 1))


@pytest.mark.parametrize("seed", range(12))
def test_lost_workers_change_nothing(
    hired, tmp_path: Path, undisturbed, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chance would have it that some shard meets three losses.
    monkeypatch.setattr(crew_module, "_MOST_LOSSES_OF_A_SHARD", 100)
    monkeypatch.setattr(crew_module, "_MOST_LOSSES", 100)
    moments = random.Random(seed)
    crew, ray = hired(lambda number: RayError("gone") if moments.random() < 0.2 else None, seed=seed)
    said: list[str] = []
    told_of: list[tuple[int, ...]] = []
    result = work(crew, tmp_path, said, lambda *numbers: told_of.append(numbers))
    assert contents(tmp_path) == undisturbed
    assert result.written_shards + result.peer_shards == SHARDS
    assert told_of[-1][:2] == (ROWS, ROWS), "what a lost worker had measured counts once"
    lost = [line for line in said if line.startswith("A worker was lost at shard")]
    assert len(lost) == len(said) == ray.started - 2
    assert all(line.endswith("(its process ended); another takes its place.") for line in lost)


def test_a_shard_that_ends_every_worker_is_named(hired, tmp_path: Path) -> None:
    crew, ray = hired()
    fatal = {"shard": 3}

    def losses(number: int) -> Exception | None:
        members = [member for member in crew._members if member.actor.number == number]
        at = members[0].shard if members else None
        return RayError("gone") if at is not None and at.number == fatal["shard"] else None

    ray.losses = losses
    with pytest.raises(ResourceError, match=r"Shard 3 \(rows 24 to 31\) has ended 3 workers one after another"):
        work(crew, tmp_path)
    # Another process gets through: nothing of the rest is lost.
    fatal["shard"] = -1
    assert fill(tmp_path, examples(ROWS)).reused_shards >= 1


def test_workers_that_are_all_lost_end_the_run_with_a_sentence(hired, tmp_path: Path) -> None:
    crew, ray = hired(lambda number: OutOfMemoryError("x"), workers=1)
    crew_limit = crew_module._MOST_LOSSES
    with pytest.raises(ResourceError) as caught:
        work(crew, tmp_path)
    assert str(caught.value) == (
        "3 workers were lost one after another, the last at shard 0 (its machine ran out of memory); give fewer by "
        "--workers if memory is short, and run the same command again to go on."
    )
    assert ray.started == crew_limit == 3
    assert len(set(ray.killed)) == ray.started


def test_a_worker_that_cannot_open_the_proxy_says_why(hired, tmp_path: Path) -> None:
    class Wrong(FakeWorker):
        def open(self, config: RunConfig, warm: Path | None) -> Opened | Failed:
            kinds, sentence = told(ModelError("The model x has no weights."))
            return Failed(tuple(kinds), sentence)

    crew, _ = hired(kind=Wrong)
    with pytest.raises(ModelError, match=r"^The model x has no weights\.$"):
        work(crew, tmp_path)


def test_the_proxy_is_opened_once_while_the_rows_are_read(hired, tmp_path: Path, undisturbed) -> None:
    class Counting(FakeWorker):
        asked: ClassVar[list[tuple[str, Path | None]]] = []

        def open(self, config: RunConfig, warm: Path | None) -> Opened | Failed:
            self.asked.append((config.model.name, warm))
            return super().open(config, warm)

    crew, ray = hired(kind=Counting)
    crew.begin(RunConfig.model_validate({"model": {"name": "none"}}))
    assert Counting.asked == [("none", None)] * 2
    # What a command resolves later, such as its method, is nothing to the proxy.
    crew.begin(RunConfig.model_validate({"model": {"name": "none"}, "selection": {"budget": "3"}}))
    work(crew, tmp_path)
    assert Counting.asked == [("none", None)] * 2 and ray.started == 2
    assert contents(tmp_path) == undisturbed

    Counting.asked.clear()
    crew, ray = hired(kind=Counting)
    crew.begin(RunConfig.model_validate({"model": {"name": "other"}}))
    work(crew, tmp_path / "again")
    assert Counting.asked == [("other", None)] * 2 + [("none", None)] * 2 and ray.started == 2

    Counting.asked.clear()
    crew, ray = hired(kind=Counting)
    config = RunConfig.model_validate({"model": {"name": "none"}, "schedule": {"warmup_steps": 1}})
    crew.begin(config)
    assert ray.started == 2 and not Counting.asked, "the trained proxy is not there yet"
    crew.open(config, tmp_path, Silent())
    assert Counting.asked == [("none", tmp_path)] * 2


def test_a_second_run_of_a_crew_opens_its_own_proxy(hired, tmp_path: Path) -> None:
    crew, ray = hired()
    config = RunConfig.model_validate({"model": {"name": "none"}})
    # Nothing is missing in the first, so that its workers are there still.
    assert crew.open(config, None, Silent()) == crew.open(config, None, Silent())
    assert ray.started == 2
    work(crew, tmp_path / "one")
    work(crew, tmp_path / "two")
    assert ray.started == 4 and contents(tmp_path / "one") == contents(tmp_path / "two")


def test_workers_end_where_a_method_has_no_use_for_them(hired, tmp_path: Path) -> None:
    crew, ray = hired()
    rows = write_jsonl(tmp_path / "rows.jsonl", demo_rows(seed=2)[:12])
    settings = {
        "data": {"sources": (str(rows),)},
        "model": {"name": str(demo_model_path())},
        "output": {"folder": str(tmp_path / "out")},
        "method": {"name": "random"},
        "selection": {"budget": "3"},
    }
    config = RunConfig.model_validate(settings)
    crew.begin(config)
    pipeline.run(config, Silent(), workers=crew)
    assert ray.started == 2 and sorted(ray.killed) == [1, 2]


def test_a_crew_is_started_without_loading_what_measures() -> None:
    code = "import sys, spice_select.distributed.crew as c; print([n for n in ('torch', 'ray') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_processes_are_ended_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "pidfd_open"):
        pytest.skip("needs Linux")
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        did: list[str] = []
        ray = SimpleNamespace(
            is_initialized=lambda: False,
            init=lambda **_: None,
            # Whoever is ended before Ray knows of it counts as lost.
            shutdown=lambda: did.append(f"shut down while {'alive' if sleeping.poll() is None else 'dead'}"),
            cluster_resources=dict,
            get=int,
            kill=did.append,
        )
        monkeypatch.setattr(cluster_module, "require_ray", lambda: ray)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = Cluster(1, None)
        assert cluster.hold(sleeping.pid) is None, "of a cluster that it has not started"
        cluster.start("cpu", "model.device")
        handle = cluster.hold(sleeping.pid)
        assert handle is not None
        cluster.end(["actor"], [handle])
        cluster.stop()
        assert did == ["actor", "shut down while alive"]
        assert sleeping.wait(timeout=0.5) == -9
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)
    finally:
        sleeping.kill()
        sleeping.wait()


def test_an_interrupt_waits_until_ray_is_there_and_then_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []

    def init(**_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        did.append("started")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: did.append("ended"))
    monkeypatch.setattr(cluster_module, "require_ray", lambda: ray)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # A shell that starts tests in the background has interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cluster = Cluster(2, None)
        with pytest.raises(KeyboardInterrupt):
            cluster.start("cpu", "model.device")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        cluster.stop()
    finally:
        signal.signal(signal.SIGINT, before)
    assert did == ["started", "ended"]


def test_a_cluster_of_its_own_has_no_more_processes_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def params(num_cpus: int = 0, no_monitor: bool = False, include_log_monitor: bool = True) -> None:
        asked.update(num_cpus=num_cpus, no_monitor=no_monitor, include_log_monitor=include_log_monitor)

    parameter, services = SimpleNamespace(RayParams=params), SimpleNamespace(start_api_server=lambda: "a server")

    def init(**options: Any) -> None:
        parameter.RayParams(num_cpus=options["num_cpus"])
        asked["server"] = services.start_api_server("some", port=1)
        if len(asked) < 5:
            raise RuntimeError("cannot be")

    ray = SimpleNamespace(
        is_initialized=lambda: False,
        shutdown=lambda: None,
        init=init,
        cluster_resources=dict,
        _private=SimpleNamespace(parameter=parameter, services=services),
    )
    monkeypatch.setattr(cluster_module, "require_ray", lambda: ray)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(2, None)
    with pytest.raises(ResourceError, match="cannot be started on this machine"):
        cluster.start("cpu", "model.device")
    assert asked == {"num_cpus": 2, "no_monitor": True, "include_log_monitor": False, "server": (None, None)}
    assert parameter.RayParams is params and services.start_api_server() == "a server", "as they were, whatever happens"
    # A version of Ray that has neither is started as it is.
    ray._private = SimpleNamespace()
    ray.init = lambda **_: asked.clear()
    Cluster(2, None).start("cpu", "model.device")
    assert not asked


def test_a_worker_opens_the_proxy_as_a_process_alone_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    threads = torch.get_num_threads()
    try:
        worker = Worker({"HF_HUB_OFFLINE": "1"}, 1)
        assert torch.get_num_threads() == 1
        config = RunConfig.model_validate({"model": {"name": str(demo_model_path())}, "gradients": {"dim": 128}})
        found = worker.open(config, None)
        proxy = load_proxy(config.model, config.gradients)
        assert isinstance(found, Opened)
        assert (found.weights, found.tokenizer, found.coverage) == (
            proxy.weights_hash,
            proxy.tokenizer_hash,
            proxy.coverage,
        )
        assert found.spec() == GradientEngine(proxy, config.gradients).spec()
        assert pickle.loads(pickle.dumps(found)) == found
        (tmp_path / "config.json").write_text("{")
        config = RunConfig.model_validate({"model": {"name": str(tmp_path)}})
        with pytest.raises(ModelError) as alone:
            load_proxy(config.model, config.gradients)
        failed = worker.open(config, None)
        assert isinstance(failed, Failed)
        assert (failed.kinds[0], failed.sentence) == ("ModelError", str(alone.value))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("precondition", ["none", "adam"])
def test_a_warm_up_reaches_the_workers_by_its_checkpoint(
    hired, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precondition: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = write_jsonl(tmp_path / "rows.jsonl", demo_rows(seed=2)[:12])
    found = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("alone", "crew"):
            settings = {
                "data": {"sources": (str(rows),)},
                "model": {"name": str(demo_model_path())},
                "output": {"folder": str(tmp_path / name)},
                "schedule": {"warmup_steps": 2, "batch_size": 4},
                "gradients": {"dim": 64, "shard_rows": 4, "precondition": precondition},
            }
            workers = None if name == "alone" else hired(kind=Worker)[0]
            pipeline.collect(RunConfig.model_validate(settings), Silent(), workers=workers)
            found[name] = contents(tmp_path / name / "gradients")
    finally:
        torch.set_num_threads(threads)
    assert found["crew"] == found["alone"]


def test_an_error_at_a_shard_is_that_of_a_process_alone(hired, tmp_path: Path) -> None:
    class Small(FakeWorker):
        engine = FakeEngine(most_tokens=20)

    with pytest.raises(ResourceError) as alone:
        fill(tmp_path / "alone", examples(ROWS), FakeEngine(most_tokens=20))
    crew, _ = hired(kind=Small, workers=1)
    with pytest.raises(ResourceError) as away:
        work(crew, tmp_path / "away")
    assert str(away.value) == str(alone.value)
    assert type(away.value) is type(alone.value)


def test_an_error_of_the_program_is_not_swallowed(hired, tmp_path: Path) -> None:
    class Broken(FakeEngine):
        def batch(self, ids: Any, masks: Any) -> Any:
            raise ZeroDivisionError("a defect")

    class Defect(FakeWorker):
        engine = Broken()

    crew, _ = hired(kind=Defect)
    with pytest.raises(ZeroDivisionError):
        work(crew, tmp_path)


def test_workers_that_differ_are_refused(hired, tmp_path: Path) -> None:
    class Differing(FakeWorker):
        count = 0

        def open(self, config: RunConfig, warm: Path | None) -> Opened | Failed:
            found = super().open(config, warm)
            assert isinstance(found, Opened)
            Differing.count += 1
            return replace(found, weights=str(Differing.count))

    crew, _ = hired(kind=Differing)
    with pytest.raises(ModelError, match=r"Workers have opened different proxies \(weights differ\)"):
        work(crew, tmp_path)


def test_shards_that_another_run_has_in_hand_come_last(hired, tmp_path: Path, undisturbed) -> None:
    fill(tmp_path, examples(ROWS))
    for number in (0, 5):
        (tmp_path / "shards" / f"{number:06d}.json").unlink()
    lock = lease(tmp_path, Shard(0, 0, 8))
    assert lock is not None
    crew, _ = hired()
    said: list[str] = []

    class Letting(list):
        def append(self, line: str) -> None:
            super().append(line)
            said.append(line)
            # The other run ends without having finished the shard.
            lock.close()

    result = work(crew, tmp_path, Letting())
    assert said == ["Waiting for another run that is at 1 shards of this store."]
    assert (result.written_shards, result.reused_shards) == (2, 6)
    assert contents(tmp_path) == undisturbed


def test_a_store_that_was_started_again_is_not_written_into(hired, tmp_path: Path) -> None:
    class Late(FakeWorker):
        def measure(self, order: Any) -> Any:
            # A later run has thrown the store away, and begun another of the same name.
            manifest = read_manifest(order.folder)
            assert manifest is not None
            other = manifest.model_copy(update={"examples": "f" * 64})
            (order.folder / "manifest.json").write_bytes(other.encoded())
            return super().measure(order)

    crew, _ = hired(kind=Late)
    with pytest.raises(StoreMismatch, match="belongs to other settings"):
        work(crew, tmp_path)
    assert not list((tmp_path / "shards").iterdir())


def test_a_machine_that_does_not_see_the_folder_is_named(hired, tmp_path: Path) -> None:
    class Elsewhere(FakeWorker):
        def measure(self, order: Any) -> Any:
            return super().measure(replace(order, folder=tmp_path / "not" / "here"))

    crew, _ = hired(kind=Elsewhere)
    with pytest.raises(SpiceError, match=r"sees no gradient store in .*here; name an output folder on a file system"):
        work(crew, tmp_path / "store")


def test_partitions_come_back_and_errors_keep_their_class() -> None:
    shape, cluster = Shape(2, 1, 1, 0), SimpleNamespace(ray=FakeRay())
    found = list(each_part(cluster, shape, lambda part: part * 10, [1, 2, 3, 4, 5]))  # type: ignore[arg-type]
    assert sorted(found) == [10, 20, 30, 40, 50]

    def fail(part: int) -> int:
        raise StoreMismatch("The store is another.")

    with pytest.raises(StoreMismatch, match=r"^The store is another\.$"):
        list(each_part(cluster, shape, fail, [1]))  # type: ignore[arg-type]


@pytest.mark.parametrize("losses", [3, 4])
def test_a_partition_whose_worker_is_lost_goes_to_another_thrice(losses: int) -> None:
    """Ray's own retries are off: it would go on without end where its monitor of memory ends a worker."""

    class Losing(FakeRay):
        asked: ClassVar[list[dict[str, Any]]] = []
        sent = 0

        def remote(self, what: Any) -> Any:
            def options(**given: Any) -> Any:
                self.asked.append(given)
                return SimpleNamespace(remote=send)

            def send(*args: Any) -> Ref:
                self.sent += 1
                return Ref(error=OutOfMemoryError("x")) if self.sent <= losses else Ref(what(*args))

            return SimpleNamespace(options=options)

    ray = Losing()
    shape, cluster = Shape(1, 1, 1, 0), SimpleNamespace(ray=ray)
    if losses == 3:
        assert list(each_part(cluster, shape, lambda part: part * 10, [1, 2])) == [10, 20]  # type: ignore[arg-type]
    else:
        with pytest.raises(ResourceError, match=r"has ended 4 workers one after another \(OutOfMemoryError"):
            list(each_part(cluster, shape, lambda part: part * 10, [1, 2]))  # type: ignore[arg-type]
    assert ray.asked[0]["max_retries"] == 0


def test_a_cluster_of_its_own_is_started_whatever_cluster_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[dict[str, Any]] = []
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        shutdown=lambda: None,
        init=lambda **options: given.append(options),
        cluster_resources=dict,
    )
    monkeypatch.setattr(cluster_module, "require_ray", lambda: ray)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    started = Cluster(2, None)
    started.start("cpu", "model.device")
    started.stop()
    assert given[0]["address"] == "local" and given[0]["num_cpus"] == 2


@pytest.mark.parametrize(
    ("cpus", "gpus", "device", "workers", "threads", "expected"),
    [
        ([8, 64], 0, "auto", None, None, Shape(8, 8, 8, 0)),
        ([8, 64], 0, "cpu", 16, None, Shape(16, 4, 4, 0)),
        ([8, 64], 0, "cpu", 3, 2, Shape(3, 2, 2, 0)),
        ([16, 16], 4, "auto", None, None, Shape(4, 8, 1, 1)),
        ([16, 16], 4, "cpu", None, None, Shape(8, 4, 4, 0)),
        ([16, 16], 4, "cuda", 2, None, Shape(2, 16, 1, 1)),
    ],
)
def test_workers_follow_the_machines_of_a_cluster(
    monkeypatch: pytest.MonkeyPatch, cpus: list[int], gpus: int, device: str, workers, threads, expected: Shape
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in cpus]
    nodes.append({"Alive": False, "Resources": {"CPU": 100.0}})
    ray = SimpleNamespace(
        is_initialized=lambda: True, cluster_resources=lambda: {"GPU": float(gpus)}, nodes=lambda: nodes
    )
    monkeypatch.setattr(cluster_module, "require_ray", lambda: ray)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    assert Cluster(workers, "auto").start(device, "model.device") == expected


def test_more_workers_than_gpus_and_devices_by_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"GPU": 2.0})
    monkeypatch.setattr(cluster_module, "require_ray", lambda: ray)
    with pytest.raises(ConfigError, match="--workers cannot be 3, as each takes a GPU and there are 2"):
        Cluster(3, "auto").start("auto", "model.device")
    with pytest.raises(ConfigError, match=r"'model.device' cannot be 'cuda:1' with --engine ray"):
        Cluster(1, "auto").start("cuda:1", "model.device")


def test_an_address_where_nobody_listens_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ray = SimpleNamespace(is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setattr(cluster_module, "require_ray", lambda: ray)
    with pytest.raises(ResourceError, match=rf"The Ray cluster at 127\.0\.0\.1:{port} cannot be joined \(.*refused\)"):
        Cluster(1, f"127.0.0.1:{port}").start("cpu", "model.device")


def test_without_ray_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'spice-select\[ray\]'") as caught:
        require_ray()
    assert caught.value.exit_code == 2
