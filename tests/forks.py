"""Runs of the command line as children of one process that has loaded the libraries already.

Importing torch and its friends takes longer than a run on the demo's model. A forked child begins at once, so that
hundreds of runs can be killed, starved or given damaged files within minutes. ``OMP_NUM_THREADS=1`` must be set before
torch is imported: threads of the parent would not be there in its children.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from spice_select.demo import demo_model_path, demo_rows
from tests.integration.rows import write_jsonl


class Said(NamedTuple):
    """How a run ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence of a run that was refused; empty where there is not exactly one."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return lines[0].removeprefix("error: ") if len(lines) == 1 else ""


@dataclass
class Child:
    """A run in a process, and a process group, of its own.

    Attributes:
        process: Its process id, which is that of its group.
        out: What it prints on stdout.
        err: What it prints on stderr.
        code: How it ended, once that is known.
    """

    process: int
    out: Path
    err: Path
    code: int | None = None

    def kill(self) -> bool:
        """Kill the whole group at once.

        Returns:
            Whether the run was still at work.
        """
        if self.over():
            return False
        os.killpg(self.process, signal.SIGKILL)
        return self.ended() == -signal.SIGKILL

    def over(self) -> bool:
        """Whether it has ended, without waiting."""
        if self.code is None:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def ended(self) -> int:
        """Wait, and return the exit code, or the negative number of the signal that ended it."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        return self.code

    def said(self) -> Said:
        """Wait, and return how it ended and what it said."""
        code = self.ended()
        found = Said(code, self.out.read_text(), self.err.read_text())
        self.out.unlink()
        self.err.unlink()
        return found


@cache
def preload() -> None:
    """Load what every child would have to load, and go through it once, as much is imported on first use."""
    assert os.environ.get("OMP_NUM_THREADS") == "1", "set OMP_NUM_THREADS=1, so that the libraries start no threads"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import datasets
    import peft  # noqa: F401
    import torch

    import spice_select.study.running  # noqa: F401
    from spice_select.cli.app import app  # noqa: F401
    from spice_select.training.sft import trainer_class

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    trainer_class()
    with tempfile.TemporaryDirectory() as scratch, _muted():
        # Fonts, parsers and kernels that are got ready by the first who needs them.
        rows = rows_file(Path(scratch) / "rows.jsonl", 12)
        for words in _WARM_UP:
            code = _main([word.format(rows=rows, model=demo_model_path(), scratch=scratch) for word in words.split()])
            assert code == 0, words


_WARM_UP = (
    "run {rows} -m {model} --budget 40% -o {scratch}/run --set gradients.dim=64",
    "train {scratch}/run --output {scratch}/tuned --set training.max_steps=1",
)


@contextmanager
def _muted() -> Iterator[None]:
    """Nothing that the process prints is seen."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        os.dup2(null, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in enumerate(kept, 1):
            os.dup2(old, number)
            os.close(old)
        os.close(null)


def begin(arguments: Sequence[str | Path], logs: Path, *, before: Callable[[], None] | None = None) -> Child:
    """Begin ``spice-select ARGUMENTS`` in a child.

    Args:
        arguments: As on the command line.
        logs: Folder for what it says.
        before: Called in the child before anything else.
    """
    name = f"{time.monotonic_ns()}"
    out, err = logs / f"{name}.out", logs / f"{name}.err"
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            for descriptor, path in ((1, out), (2, err)):
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, descriptor)
                os.close(file)
            if before is not None:
                before()
            code = _main([str(one) for one in arguments])
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    with suppress(OSError):
        # It may have done so itself, or be gone.
        os.setpgid(process, process)
    return Child(process, out, err)


def call(arguments: Sequence[str | Path], logs: Path, *, before: Callable[[], None] | None = None) -> Said:
    """Run ``spice-select ARGUMENTS`` in a child to its end."""
    return begin(arguments, logs, before=before).said()


def _main(arguments: Sequence[str]) -> int:
    sys.argv = ["spice-select", *arguments]
    from spice_select.cli import main

    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def rows_file(path: Path, count: int, seed: int = 3) -> Path:
    """Generated rows in a file."""
    return write_jsonl(path, demo_rows(seed=seed)[:count])


VOLATILE = {
    *("timings", "seconds", "written", "selection_seconds", "training_seconds", "seconds_of_full", "versions"),
    *("process_seconds", "memory_bytes", "checksum"),
}
"""Fields of JSON records that differ from run to run."""


def still(value: object, volatile: frozenset[str] | set[str] = frozenset(VOLATILE)) -> object:
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {name: still(inner, volatile) for name, inner in value.items() if name not in volatile}
    return [still(inner, volatile) for inner in value] if isinstance(value, list) else value


def still_file(path: Path) -> str:
    """A JSON file without what differs from run to run."""
    return json.dumps(still(json.loads(path.read_bytes())), sort_keys=True)
