"""Ray itself: whether it is there, how it is started, and what may run on it."""

from __future__ import annotations

import inspect
import logging
import os
import re
import secrets
import select
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from spice_select.errors import ConfigError, OutputError, ResourceError
from spice_select.files import Lock
from spice_select.room import check_workers, cores

# A worker holds a model, so that a machine with many cores gets few workers of several threads each.
_MOST_ON_A_MACHINE = 4
# What travels is a shard's token ids, a few megabytes for each worker.
_LEAST_STORE, _MOST_STORE, _STORE_PER_WORKER = 128 << 20, 512 << 20, 64 << 20
# A socket's path has 107 bytes, of which Ray's own part takes about 70.
_LONGEST_FOLDER = 30
_TRIES = 3
_ANSWER_S = 10.0
_END_S = 5.0
_PREFIX, _LOCK = "spice-ray-", ".lock"
_PASSED_ON = (
    "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM",
    # Folders: shared ones, as those of models and rows that lie in folders are.
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE",
)  # fmt: skip
"""Workers of a cluster that is there are told; of one that is started here they inherit all. No token is handed on."""


def require_ray() -> ModuleType:
    """Ray.

    Raises:
        ConfigError: It is not installed.
    """
    # Before the first import, which reads them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--engine ray needs Ray, which is not installed; install it with pip install 'spice-select[ray]', or leave "
            "--engine out."
        ) from None
    return ray


@dataclass(frozen=True)
class Shape:
    """Workers that a cluster is to have.

    Attributes:
        workers: How many.
        threads: Threads of each.
        cpus: CPUs that Ray sets aside for each.
        gpus: GPUs of each: 1 or 0.
    """

    workers: int
    threads: int
    cpus: int
    gpus: int

    def describe(self) -> str:
        """One sentence."""
        many = f"{self.workers} worker{'' if self.workers == 1 else 's'}"
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{many} by Ray, {threads} each{' and one GPU each' if self.gpus else ''}."


class Cluster:
    """A cluster of Ray: one that is started on this machine for the run alone, or one that is there.

    A cluster that this process has been connected to before is taken as it is, and left as it is.

    Args:
        workers: Workers wanted; none: as many as the machines or their GPUs are good for.
        address: Of a cluster that is there.

    Raises:
        ConfigError: Ray is not installed, or an argument cannot be used.
    """

    def __init__(self, workers: int | None, address: str | None) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"--workers cannot be {workers}; give at least 1.")
        if address is not None and address.startswith("ray://"):
            raise ConfigError(
                f"--address cannot be '{address}', as work goes to workers directly; run the command on a machine of "
                "the cluster, with --address auto or HOST:PORT."
            )
        self.crowded: str | None = None
        """What to warn of: more workers than this machine has processors."""
        if address is None:
            self.crowded = check_workers(workers)
            _guard()
        elif address != "auto" and not re.fullmatch(r"[^\s:]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", address):
            raise ConfigError(f"--address cannot be '{address}'; give auto, or HOST:PORT as 'ray start' prints it.")
        self.ray: Any = require_ray()
        self._workers = workers
        self._address = address
        self._own = False
        self._ended: list[int] = []
        self._folder: str | None = None
        self._held: Lock | None = None

    def start(self, device: str, setting: str) -> Shape:
        """Start the cluster, or connect to it.

        Args:
            device: Where the workers compute: ``auto``, ``cpu``, ``cuda`` or another.
            setting: What names it.

        Raises:
            ConfigError: More workers than GPUs, or a device by number.
            ResourceError: The cluster cannot be started or reached.
        """
        if device.startswith("cuda:"):
            raise ConfigError(
                f"Setting '{setting}' cannot be '{device}' with --engine ray, which gives each worker a GPU; set it to "
                "cuda."
            )
        if not self.ray.is_initialized():
            self._connect()
        return self._shape(device, setting)

    def hold(self, process: Any) -> int | None:
        """A handle of a worker's process, by which it can be ended; none where that is Ray's alone to do.

        Args:
            process: Ray's reference to its number.
        """
        if not self._own or self._address is not None or not hasattr(os, "pidfd_open"):
            return None
        with suppress(OSError):
            return os.pidfd_open(self.ray.get(process))

    def end(self, actors: Iterable[Any], handles: Iterable[int]) -> None:
        """End workers; those whose processes Ray has not ended by then end with the cluster.

        Args:
            actors: Ray's handles.
            handles: Of their processes, where there are any.
        """
        self._ended.extend(handles)
        # Ended by a signal now they would count as lost, of which Ray writes to the standard output.
        for actor in actors:
            self.ray.kill(actor)

    def stop(self) -> None:
        """End what :meth:`start` has started; a second call does nothing."""
        if self._own:
            self._own = False
            self.ray.shutdown()
        # Left to Ray they first free all that they have loaded, and outlive the command.
        for handle in self._ended:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        until = time.monotonic() + _END_S
        for handle in self._ended:
            ending = select.poll()
            ending.register(handle, select.POLLIN)
            ending.poll(max(0.0, 1000 * (until - time.monotonic())))
            os.close(handle)
        self._ended.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._held is not None:
            self._held.close()
            self._held = None

    @property
    def remote(self) -> bool:
        """Whether it may have other machines than this one."""
        return self._address is not None

    def environment(self) -> dict[str, str]:
        """Variables that workers on other machines have to be told."""
        return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}

    def free_cpus(self) -> tuple[float, float]:
        """CPUs that no one has, and all there are."""
        return self.ray.available_resources().get("CPU", 0.0), self.ray.cluster_resources().get("CPU", 0.0)

    def _connect(self) -> None:
        # Lines of workers and of Ray itself go to its log files; what matters is told by the errors it raises.
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        for left in reversed(range(_TRIES)):
            self._own = True
            try:
                if self._address is not None:
                    _require_answer(self._address)
                    self.ray.init(address=self._address, **quiet)
                else:
                    with _uninterrupted(), _lean(self.ray):
                        self.ray.init(**self._local(), **quiet)
                return
            except Exception as error:  # Ray raises a dozen unrelated classes here
                # What it had started is half there, and keeps the next attempt from starting.
                with suppress(Exception):
                    self.ray.shutdown()
                self._own = False
                self.stop()
                line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
                # A busy machine takes longer to start it than the half minute that Ray waits.
                if left and self._address is None and "timed out" in line:
                    continue
                if self._address is not None:
                    raise ResourceError(
                        f"The Ray cluster at {self._address} cannot be joined ({line}); start it with 'ray start', or "
                        "name its address."
                    ) from None
                raise ResourceError(
                    f"Ray cannot be started on this machine ({line}); use --engine local, or name a cluster by "
                    "--address."
                ) from None

    def _local(self) -> dict[str, Any]:
        count = self._workers or _local_workers()
        self._folder, self._held = _short_folder()
        return {
            # Without it Ray joins the cluster that RAY_ADDRESS names, as it does within a job.
            "address": "local",
            "num_cpus": count,
            "include_dashboard": False,
            "object_store_memory": min(_MOST_STORE, max(_LEAST_STORE, _STORE_PER_WORKER * count)),
            "_temp_dir": self._folder,
            "_node_ip_address": "127.0.0.1",
        }

    def _shape(self, device: str, setting: str) -> Shape:
        there = self.ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if device in ("auto", "cuda") else 0
        if gpus and self._workers is not None and self._workers > gpus:
            raise ConfigError(
                f"--workers cannot be {self._workers}, as each takes a GPU and there {'is' if gpus == 1 else 'are'} "
                f"{gpus}; give fewer, or set {setting} to cpu."
            )
        asked = os.environ.get("OMP_NUM_THREADS", "")
        set_threads = int(asked) if asked.isdecimal() and int(asked) > 0 else None
        if self._address is None:
            workers = self._workers or gpus or _local_workers()
            # One CPU in Ray's book for each; how many cores that is, only this knows. GPUs are counted by themselves.
            cpus, gpu = (0, 1) if gpus else (1, 0)
            return Shape(workers, set_threads or max(1, cores() // workers), cpus, gpu)
        machines = [int(node["Resources"].get("CPU", 0)) for node in self.ray.nodes() if node["Alive"]]
        machines = [count for count in machines if count > 0] or [1]
        workers = self._workers or gpus or sum(min(count, _MOST_ON_A_MACHINE) for count in machines)
        threads = set_threads or max(1, min(min(machines), sum(machines) // workers))
        return Shape(workers, threads, 1 if gpus else threads, 1 if gpus else 0)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put an interrupt off until the end of the block: a Ray that is half started can neither be used nor ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _lean(ray: Any) -> Iterator[None]:
    """Have ``ray.init`` start what workers need and no more.

    The monitor of the autoscaler, the one of the log files, and the dashboard's server, which is started without the
    dashboard too, have no part in a run, and take as long to start and to end as all else of Ray. There are switches
    for them below ``ray.init``, which has no arguments for them; where a version has other ones, all is started.
    """
    try:
        parameter, services = ray._private.parameter, ray._private.services
        params, server = parameter.RayParams, services.start_api_server
    except AttributeError:
        yield
        return
    known = inspect.signature(params).parameters
    wanted = {"no_monitor": True, "include_log_monitor": False}
    parameter.RayParams = partial(params, **{name: value for name, value in wanted.items() if name in known})
    # What it answers where the server cannot be started, which a cluster does without.
    services.start_api_server = lambda *_, **__: (None, None)
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = params, server


def _guard() -> None:
    """Have a cluster that is started here obey those alone who know this run's token.

    Its ports can be reached by whoever reaches the machine, and what comes through them is run.
    """
    if "ray" not in sys.modules:
        # Ray reads it when it is imported; imported before, it has made up its mind.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Ray has workers wait for everything else; these are to have what a process that works alone has.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Without one, Ray would leave a token in the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _require_answer(address: str) -> None:
    """Ask whether anyone listens, which Ray does for minutes.

    Raises:
        OSError: Nobody does.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S):
            pass


def _local_workers() -> int:
    return min(cores(), _MOST_ON_A_MACHINE)


def _short_folder() -> tuple[str, Lock]:
    """A folder of this run's own for Ray's sockets and logs, and the lock that says that the run lives."""
    base = tempfile.gettempdir()
    base = base if len(base) <= _LONGEST_FOLDER else "/tmp"
    _clear(Path(base))
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=base)
    return folder, Lock.acquire(Path(folder) / _LOCK)


def _clear(base: Path) -> None:
    """Take away the folders of runs that were killed: nobody holds their lock. Those of others stay."""
    for folder in base.glob(f"{_PREFIX}*"):
        with suppress(OSError, OutputError):
            found = folder.lstat()
            # One that is just being made has no lock yet.
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or not (folder / _LOCK).is_file():
                continue
            with Lock.try_acquire(folder / _LOCK) or nullcontext() as held:
                if held is not None:
                    shutil.rmtree(folder, ignore_errors=True)
