"""Starts collects in processes of their own, to be killed: ``python -m tests.collect_server``.

Importing torch takes longer than the collects themselves, so that one process imports it and forks the rest. It says
``ready`` and reads lines: ``collect FOLDER ROWS SECONDS_PER_ROW`` answers with a process id, ``wait ID`` with how that
process ended and how many shards it had written by its own count.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from spice_select.gradients.collect import collect
from tests.stores import IDENTITY, FakeEngine, examples, settings


def begin(folder: Path, rows: int, seconds: float) -> tuple[int, int]:
    """A child that collects, and the pipe that it tells its count through."""
    listen, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = collect(examples(rows), FakeEngine(512, sleep=seconds), folder, settings(), identity=IDENTITY)
            os.write(tell, str(result.written_shards).encode())
            os._exit(0)
        except KeyboardInterrupt:
            os._exit(130)
        finally:
            os._exit(1)
    os.close(tell)
    return child, listen


def main() -> None:
    # A shell that starts the tests in the background has them ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pipes: dict[int, int] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        verb, *words = line.split()
        if verb == "collect":
            child, listen = begin(Path(words[0]), int(words[1]), float(words[2]))
            pipes[child] = listen
            print(child, flush=True)
        else:
            child = int(words[0])
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            count = os.read(pipes[child], 20).decode() or "0"
            os.close(pipes.pop(child))
            print(ended, count, flush=True)


if __name__ == "__main__":
    main()
