"""Runs inputs through a format in child processes that may hang, die or run out of memory without ending the campaign.

A child works through its numbers and keeps its place in shared memory. The parent ends a child that stays too long at
one number, and goes on behind the number at which a child has ended.
"""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import re
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from tests.fuzz.base import READ, Format

LONGEST_S = 10.0
"""Seconds that one input may take."""
MOST_BYTES = 2 << 30
"""Memory that a child may allocate beyond what it starts with."""
FOUND = Path(__file__).parent / "found"
_PLACE = struct.Struct("<qqqqd")  # number at work, read, refused, faults, when it began
_FAULTS = "faults.txt"


@dataclass(frozen=True)
class Fault:
    """An input with an outcome that no input may have."""

    format: str
    number: int
    kind: str
    detail: str


@dataclass
class Count:
    """Outcomes of one format."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)


def campaign(
    make: Callable[[Path], Format], seed: int, numbers: range, scratch: Path, *, longest: float = LONGEST_S
) -> Count:
    """Run a format's inputs of these numbers.

    Args:
        make: Builds the format in a folder.
        seed: Of the campaign.
        numbers: Which inputs.
        scratch: A folder to work in; it is removed.
        longest: Seconds that an input may take.
    """
    count, begin = Count(), time.perf_counter()
    place = mmap.mmap(-1, _PLACE.size)
    name = make(scratch / "names").name
    at = numbers.start
    while at < numbers.stop:
        place[:] = _PLACE.pack(-1, 0, 0, 0, time.monotonic())
        folder = scratch / f"from-{at}"
        folder.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            _work(make, seed, range(at, numbers.stop), folder, place)
        ended = _watch(child, place, longest)
        number, read, refused, _, _ = _PLACE.unpack(place[:])
        count.read, count.refused = count.read + read, count.refused + refused
        for line in (folder / _FAULTS).read_text().splitlines() if (folder / _FAULTS).is_file() else ():
            which, kind, detail = line.split("\t", 2)
            count.faults.append(Fault(name, int(which), kind, detail))
        shutil.rmtree(folder, ignore_errors=True)
        if ended is None:
            break
        count.faults.append(Fault(name, max(number, at), ended, ""))
        at = max(number, at) + 1
    count.inputs = len(numbers)
    count.seconds = time.perf_counter() - begin
    shutil.rmtree(scratch, ignore_errors=True)
    return count


def fault_of(format: Format, content: bytes) -> tuple[str, str] | None:
    """Kind and place of an input's fault in this process; None where there is none."""
    try:
        format.outcome(content)
    except Exception as error:
        return _described(error)
    return None


def minimised(make: Callable[[Path], Format], content: bytes, scratch: Path, *, seconds: float = 20.0) -> bytes:
    """A smaller input with a fault of the same kind and place, as far as leaving parts out finds one."""
    with_limits(scratch)
    format = make(scratch)
    wanted, until = fault_of(format, content), time.monotonic() + seconds
    if wanted is None:
        return content
    size = max(1, len(content) // 2)
    while size and time.monotonic() < until:
        at, shrunk = 0, False
        while at < len(content) and time.monotonic() < until:
            shorter = content[:at] + content[at + size :]
            found = fault_of(format, shorter)
            if found is not None and found[0] == wanted[0] and found[1].split(" ")[0] == wanted[1].split(" ")[0]:
                content, shrunk = shorter, True
            else:
                at += size
        size = size if shrunk and size == 1 else size // 2
    return content


def found_folder(name: str) -> Path:
    """Where the found inputs of a format are."""
    return FOUND / re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-")


def save_found(name: str, content: bytes) -> Path:
    """Keep an input among those that every later run replays."""
    path = found_folder(name) / f"{hashlib.sha256(content).hexdigest()[:12]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def with_limits(folder: Path) -> None:
    """Limit this process's memory, and make warnings errors but for those of other packages."""
    folder.mkdir(parents=True, exist_ok=True)
    # Arrow sets a range of addresses aside at its first allocation, which takes no memory.
    pa.allocate_buffer(1 << 26)
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MOST_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")


def _work(make: Callable[[Path], Format], seed: int, numbers: range, folder: Path, place: mmap.mmap) -> None:
    code = 1
    try:
        code = _inputs(make, seed, numbers, folder, place)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _inputs(make: Callable[[Path], Format], seed: int, numbers: range, folder: Path, place: mmap.mmap) -> int:
    format = make(folder / "format")
    with_limits(folder)
    read = refused = faults = 0
    with (folder / _FAULTS).open("w") as log:
        for number in numbers:
            content = format.input(seed, number)
            place[:] = _PLACE.pack(number, read, refused, faults, time.monotonic())
            try:
                if format.outcome(content) == READ:
                    read += 1
                else:
                    refused += 1
            except Exception as error:
                faults += 1
                kind, detail = _described(error)
                log.write(f"{number}\t{kind}\t{detail}\n")
                log.flush()
            if number % 2000 == 0:
                gc.collect()
        place[:] = _PLACE.pack(numbers.stop, read, refused, faults, time.monotonic())
    return 0


def _described(error: BaseException) -> tuple[str, str]:
    """The error's class, and the innermost line of ours with what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/spice_select/" in frame.filename] or frames
    at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    said = " ".join(str(error)[:160].encode("ascii", "backslashreplace").decode().split())
    return type(error).__name__, f"{at} {said}"


def _watch(child: int, place: mmap.mmap, longest: float) -> str | None:
    """Wait for a child; why it ended before its time, or None."""
    stuck, since, pause = None, time.monotonic(), 0.002
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return None if code == 0 else f"died ({signal.Signals(-code).name if code < 0 else f'exit {code}'})"
        number = _PLACE.unpack(place[:])[0]
        now = time.monotonic()
        if number != stuck:
            stuck, since = number, now
        elif now - since > (longest if number >= 0 else 60.0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"hung ({longest:.0f} s)"
        time.sleep(pause)
        pause = min(0.1, pause * 1.2)


def spread(total: int, formats: Sequence[type[Format]]) -> dict[str, int]:
    """Inputs for each format, by their weights."""
    whole = sum(one.weight for one in formats)
    return {one.name: max(1, round(total * one.weight / whole)) for one in formats}
