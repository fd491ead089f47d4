"""Work shared out by Ray leaves what one process leaves, whoever dies meanwhile."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from spice_select import pipeline
from spice_select.config import RunConfig, load_config
from spice_select.demo import demo_rows
from spice_select.distributed.cluster import Cluster
from spice_select.distributed.crew import RayCrew
from spice_select.reporter import Silent
from tests.integration.command import Command
from tests.integration.rows import write_jsonl
from tests.stores import contents

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or not Path("/proc/self/stat").exists(), reason="needs Ray, and Linux"
)

SMALL = ("--set", "gradients.dim=128", "--set", "gradients.shard_rows=8")
ROWS = 160
SHARDS = 20


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bytes are the same with the same number of threads, and a worker here has one."""
    threads, set_to = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)
    if set_to is None:
        del os.environ["OMP_NUM_THREADS"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for the file: a command takes the one that its process is connected to."""
    started = Cluster(2, None)
    started.start("cpu", "model.device")
    yield
    started.stop()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", demo_rows(seed=5)[:ROWS])


@pytest.fixture(scope="module")
def local(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves."""
    folder = tmp_path_factory.mktemp("local") / "run"
    pipeline.collect(config(data, model, folder), Silent())
    return folder


def config(data: Path, model: Path, folder: Path) -> RunConfig:
    return load_config(
        None,
        [text for text in SMALL if text != "--set"],
        {"data": {"sources": (str(data),)}, "model": {"name": str(model)}, "output": {"folder": str(folder)}},
    )


def picks(folder: Path) -> list[int]:
    return pq.read_table(folder / "trace.parquet").column("index").to_pylist()


class Killing(Silent):
    """Kills a worker in the middle of a shard."""

    def __init__(self, crew: RayCrew) -> None:
        self._crew = crew
        self.killed: list[int] = []
        self.said: list[str] = []

    def warn(self, line: str) -> None:
        self.said.append(line)

    def advance(self, done: int, total: int, tokens: int, seconds: float, detail: str = "") -> None:
        if not self.killed and 0 < done < total:
            # The one that has just been heard has no shard in hand; the other is in the middle of one.
            alive = [member.process for member in self._crew._members if member.shard is not None]
            process = self._crew._ray.get(alive[-1])
            os.kill(process, signal.SIGKILL)
            self.killed.append(process)


def test_a_killed_worker_changes_nothing(cluster: None, data: Path, model: Path, local: Path, tmp_path: Path) -> None:
    with RayCrew(2) as crew:
        reporter = Killing(crew)
        result = pipeline.collect(config(data, model, tmp_path / "out"), reporter, workers=crew)
    assert result is not None and len(reporter.killed) == 1
    assert contents(tmp_path / "out" / "gradients") == contents(local / "gradients")
    lost = [line for line in reporter.said if line.startswith("A worker was lost at shard ")]
    assert len(lost) == 1 and lost[0].endswith("(its process ended); another takes its place.")


def test_a_killed_command_leaves_no_worker_and_is_taken_up(
    request: pytest.FixtureRequest, command: Command, data: Path, model: Path, local: Path, tmp_path: Path
) -> None:
    """Killed with a cluster of its own, as a command has without --address; its picks are those of one process."""
    out, shards = tmp_path / "out", tmp_path / "out" / "gradients" / "shards"
    args = ["run", str(data), "-m", str(model), "-o", str(out), "-b", "10%", "--partitions", "3", *SMALL]
    args += ["--engine", "ray", "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-m", "spice_select", *args, "--quiet"], stderr=subprocess.PIPE)
    try:
        while not (found := list(shards.glob("[0-9]*[0-9].json"))):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        workers = workers_of(process.pid)
    finally:
        process.kill()
        process.communicate()
    assert 0 < len(found) < SHARDS
    assert workers
    until = time.monotonic() + 60
    while alive := {pid for pid, started in workers.items() if start_of(pid) == started}:
        assert time.monotonic() < until, f"{alive} live on"
        time.sleep(0.1)

    request.getfixturevalue("cluster")
    outcome = command(*args)
    assert outcome.code == 0, outcome.err
    assert "2 workers by Ray, 1 thread each." in outcome.err
    assert "and reused 0." not in outcome.err
    assert contents(out / "gradients") == contents(local / "gradients")
    assert command("select", local, "-b", "10%", "-o", tmp_path / "parts", "--partitions", 3).code == 0
    assert picks(out) == picks(tmp_path / "parts")

    # One greedy has nothing to share out, and is that of one process.
    assert command("select", local, "-b", "10%", "-o", tmp_path / "one").code == 0
    outcome = command("select", local, "-b", "10%", "-o", tmp_path / "away", "--engine", "ray")
    assert outcome.code == 0, outcome.err
    assert "--partitions shares it out" in outcome.err
    assert picks(tmp_path / "away") == picks(tmp_path / "one")


def workers_of(root: int) -> dict[int, str]:
    """The workers among the processes that a process has started, and when each was started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, last = {root}, set()
    while found != last:
        last = set(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    names = {pid: name_of(pid) for pid in found}
    return {pid: start_of(pid) for pid, name in names.items() if name.startswith("ray::Worker")}


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def start_of(pid: int) -> str:
    """When a process was started, by which it is told from a later one of its number; nothing where it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] == "Z" else words[19]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--engine", "spark"), "--engine cannot be 'spark'; use local or ray."),
        (("--workers", "2"), "--workers 2 goes with --engine ray; add that, or leave --workers out."),
        (("--address", "auto"), "--address auto goes with --engine ray; add that, or leave --address out."),
        (("--engine", "ray", "--workers", "0"), "--workers cannot be 0; give at least 1."),
        (
            ("--engine", "ray", "--address", "head"),
            "--address cannot be 'head'; give auto, or HOST:PORT as 'ray start' prints it.",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    command: Command, data: Path, model: Path, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    assert command.refused(2, "collect", data, "-m", model, "-o", tmp_path / "out", *options) == sentence
    assert not (tmp_path / "out").exists()


def test_what_ray_has_no_part_in_is_refused(
    command: Command, data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (data, "-m", model, "-o", tmp_path / "out", "--engine", "ray")
    assert "run the command on a machine of the cluster" in command.refused(
        2, "collect", *args, "--address", "ray://head:10001"
    )
    assert "which --engine ray has no part in" in command.refused(2, "run", *args, "-b", "5", "--schedule", "pools")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun or accelerate" in command.refused(2, "collect", *args)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'spice-select[ray]'" in command.refused(2, "collect", *args)
