"""Runs a program that a model wrote, in a process from which everything but computing has been taken.

The essential layers are limits on time, memory and output (rlimits, and this process's own clock), no network and no
other processes (seccomp), and no files but a folder of its own (Landlock). Namespaces and an unprivileged user are put
around them where the machine has them. Where an essential layer cannot be had, nothing is run.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import secrets
import selectors
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from spice_select.errors import ResourceError
from spice_select.evaluation import sandbox_kernel

_CHILD = Path(__file__).with_name("sandbox_child.py")
_START_S = 60.0
_END_S = 10.0
_LOOK_S = 0.05
_MOST_FILES = 4096
_numbers = itertools.count()


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        wall_s: Seconds, from the moment in which the program begins.
        cpu_s: Whole seconds of processor time.
        memory_bytes: Address space.
        file_bytes: Size of one file.
        disk_bytes: Size of all its files together.
        open_files: Descriptors.
        threads: Threads, where the machine can count them; else none can be started.
        output_bytes: What is kept of its output, half from the beginning and half from the end.
    """

    wall_s: float = 10.0
    cpu_s: int = 8
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20
    open_files: int = 64
    threads: int = 32
    output_bytes: int = 16384


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        passed: It came to the end of its text.
        exit_status: Exit status; None where a signal ended it.
        signal: Number of that signal.
        stopped: Why it was ended from outside: time, disk.
        cpu_s: Seconds of processor time.
        wall_s: Seconds since it began.
        output: What it printed, cut to the limit; both streams in the order of their writing.
        layers: What held it.
        pid: Process group of what held it; none of it is left.
    """

    passed: bool
    exit_status: int | None
    signal: int | None
    stopped: str | None
    cpu_s: float
    wall_s: float
    output: str
    layers: tuple[str, ...]
    pid: int = field(compare=False)


def run_program(program: str, limits: Limits | None = None) -> Ended:
    """Run Python source to its end in the sandbox.

    Raises:
        ResourceError: The essential layers cannot be had on this machine, or no process can be started.
    """
    _require_machine()
    folder = tempfile.mkdtemp(prefix="spice-select-")
    try:
        with _Session(program, limits or Limits(), folder) as session:
            return session.run()
    except OSError as error:
        raise ResourceError(
            f"The program could not be put into a sandbox ({error.strerror}); make room and run the same command again."
        ) from error
    finally:
        _remove(folder)


@functools.cache
def layers() -> tuple[str, ...]:
    """What holds a program on this machine, found by running one.

    Raises:
        ResourceError: The essential layers cannot be had.
    """
    return run_program("").layers


def _require_machine() -> None:
    if not sandbox_kernel.supported():
        raise ResourceError(
            f"Generated code is only run inside a sandbox that needs Linux on x86-64 or arm64, which {sys.platform} "
            "is not; leave out --execute-code, or evaluate on Linux."
        )


class _Session:
    """One program, from its start until nothing of it is left."""

    def __init__(self, program: str, limits: Limits, folder: str) -> None:
        self._limits = limits
        self._folder = folder
        self._program = program
        self._token = secrets.token_hex(16).encode()
        self._open: list[int] = []
        self._pipes: dict[str, bytearray] = {"output": bytearray(), "status": bytearray(), "passed": bytearray()}
        self._cut = False
        self._tail = bytearray()

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def run(self) -> Ended:
        ends = {name: self._pipe() for name in self._pipes}
        token_read, token_write = self._pipe()
        os.write(token_write, self._token)
        self._close(token_write)
        task = {
            "program": self._program,
            "folder": self._folder,
            "parent": os.getpid(),
            "user": os.geteuid(),
            "number": os.getpid() % (1 << 20) * 256 + next(_numbers) % 256,
            "limits": asdict(self._limits),
            "readable": _readable(),
            "token": token_read,
            "passed": ends["passed"][1],
            "status": ends["status"][1],
        }
        with tempfile.TemporaryFile() as given:
            given.write(json.dumps(task).encode())
            given.seek(0)
            process = self._start(given, ends["output"][1], (token_read, ends["passed"][1], ends["status"][1]))
        for descriptor in (token_read, *(end for _, end in ends.values())):
            self._close(descriptor)
        try:
            stopped, seconds = self._follow(process.pid, {read: name for name, (read, _) in ends.items()})
        finally:
            _kill(process.pid)
            process.wait()
        return self._ended(process.pid, stopped, seconds)

    def _pipe(self) -> tuple[int, int]:
        pair = os.pipe()
        self._open += pair
        return pair

    def _close(self, descriptor: int) -> None:
        self._open.remove(descriptor)
        os.close(descriptor)

    def _start(self, given: IO[bytes], output: int, inherited: tuple[int, ...]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            # No variables of the environment are taken but the few below, no user's packages, nothing from here.
            [sys.executable, "-P", "-s", "-B", str(_CHILD)],
            stdin=given,
            stdout=output,
            stderr=output,
            pass_fds=inherited,
            cwd=self._folder,
            env=_environment(self._folder),
            start_new_session=True,
        )

    def _follow(self, group: int, names: dict[int, str]) -> tuple[str | None, float]:
        """Read until every process has let go of its ends, and end them where a limit is passed."""
        stopped: str | None = None
        began: float | None = None
        deadline, look = time.monotonic() + _START_S, 0.0
        with selectors.DefaultSelector() as waiting:
            for descriptor in names:
                os.set_blocking(descriptor, False)
                waiting.register(descriptor, selectors.EVENT_READ)
            while waiting.get_map():
                for key, _ in waiting.select(_LOOK_S):
                    if not self._read(key.fd, names[key.fd]):
                        waiting.unregister(key.fd)
                now = time.monotonic()
                if began is None and b"\n" in self._pipes["status"]:
                    began, deadline = now, now + self._limits.wall_s
                if now > deadline:
                    if stopped is not None:
                        raise ResourceError("A program in the sandbox could not be ended; restart this machine.")
                    stopped, deadline = "time", now + _END_S
                    _kill(group)
                elif stopped is None and began is not None and now > look:
                    look = now + _LOOK_S
                    if _size(self._folder) > self._limits.disk_bytes:
                        stopped, deadline = "disk", now + _END_S
                        _kill(group)
        return stopped, time.monotonic() - (began or time.monotonic())

    def _read(self, descriptor: int, name: str) -> bool:
        """Take what is there; False at the end."""
        try:
            content = os.read(descriptor, 65536)
        except BlockingIOError:
            return True
        if name == "output":
            half = self._limits.output_bytes // 2
            room = half - len(self._pipes[name])
            self._pipes[name] += content[: max(room, 0)]
            rest = content[max(room, 0) :]
            self._tail += rest
            if len(self._tail) > half:
                self._cut = True
                del self._tail[:-half]
        elif len(self._pipes[name]) < 65536:
            self._pipes[name] += content
        return bool(content)

    def _ended(self, pid: int, stopped: str | None, seconds: float) -> Ended:
        facts: dict[str, Any] = {}
        for line in bytes(self._pipes["status"]).splitlines():
            facts |= json.loads(line)
        output = bytes(self._pipes["output"]) + (b"\n[...]\n" if self._cut else b"") + bytes(self._tail)
        text = output.decode("utf-8", "replace")
        if "refused" in facts or "layers" not in facts:
            reason = facts.get("refused") or (text.strip().splitlines() or ["it did not start"])[-1]
            raise ResourceError(
                f"Generated code is not run, as it cannot be contained on this machine: {reason}; leave out "
                "--execute-code, or evaluate on a machine with Linux 5.13 or newer."
            )
        return Ended(
            passed=secrets.compare_digest(bytes(self._pipes["passed"]), self._token) and stopped is None,
            exit_status=facts.get("exit"),
            signal=facts.get("signal"),
            stopped=stopped,
            cpu_s=float(facts.get("cpu", 0.0)),
            wall_s=seconds,
            output=text,
            layers=tuple(facts["layers"]),
            pid=pid,
        )


def _environment(folder: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    # The order of sets is the same each time, so that a program that depends on it ends the same way.
    return {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", **threads, **kept}


@functools.cache
def _readable() -> list[str]:
    """Folders of the interpreter and its libraries."""
    paths = sysconfig.get_paths()
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    found |= {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found |= {path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path.startswith("/")}
    return sorted(path for path in found if path != "/" and Path(path).is_dir())


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _size(folder: str) -> int:
    """Bytes of all files under a folder; more than any limit where there are too many to count."""
    total, entries, places = 0, 0, [folder]
    while places:
        try:
            with os.scandir(places.pop()) as found:
                for entry in found:
                    entries += 1
                    if entries > _MOST_FILES:
                        return 1 << 62
                    facts = entry.stat(follow_symlinks=False)
                    total += facts.st_blocks * 512
                    if stat.S_ISDIR(facts.st_mode):
                        places.append(entry.path)
        except FileNotFoundError:
            continue
        except OSError:
            # Names too long to follow, or a folder closed to its owner.
            return 1 << 62
    return total


def _remove(folder: str) -> None:
    """Remove a folder however deep: what is in its folders is moved to the top before it is removed."""
    number = itertools.count()
    top = Path(folder)
    while entries := list(os.scandir(top)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    # A folder can only be moved by one who may write into it.
                    os.chmod(inner.path, 0o700)
                os.rename(inner.path, top / f".{next(number)}-{secrets.token_hex(4)}")
            os.rmdir(entry.path)
    top.rmdir()
