"""A collect that is killed, again and again, ends in the bytes of one that is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spice_select.errors import StoreError
from spice_select.gradients.store import GradientStore
from tests.stores import contents
from tests.support import ROOT

ROWS = 240
SHARDS = 30


def start(folder: Path, seconds: float = 0.004) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.collect_worker", str(folder), str(ROWS), str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> int:
    """Shards that the process says it wrote."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return int(out.split()[-1])


def await_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(start(folder, 0)) == SHARDS
    return contents(folder)


def stop_and_go(folder: Path, kills: int, number: signal.Signals, longest: float) -> int:
    """Stop a collect at random moments until that has happened often enough, then let it end.

    Returns:
        Shards that the last process had to write.
    """
    moments, delivered = random.Random(), 0
    while delivered < kills:
        process = start(folder)
        await_ready(process)
        time.sleep(moments.uniform(0, longest))
        process.send_signal(number)
        process.communicate(timeout=60)
        if process.returncode == 0:
            # It was quicker: the shards after the first few are taken away for another try.
            for path in sorted((folder / "shards").glob("*.json"))[3:]:
                path.unlink()
            continue
        delivered += 1
        try:
            GradientStore.open(folder, verify=True, partial=True)
        except StoreError as error:
            # Killed before there was a manifest.
            assert "There is no gradient store" in str(error)
    return finish(start(folder, 0))


def test_three_kills_leave_no_trace(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    written = stop_and_go(tmp_path, 3, signal.SIGKILL, 0.4)
    assert 0 < written < SHARDS
    assert contents(tmp_path) == undisturbed


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    written = stop_and_go(tmp_path, 20, signal.SIGKILL, 0.08)
    assert written < SHARDS
    assert contents(tmp_path) == undisturbed


def test_ctrl_c_leaves_a_store_that_goes_on(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    stop_and_go(tmp_path, 1, signal.SIGINT, 0.4)
    assert contents(tmp_path) == undisturbed


def test_two_processes_at_once_share_the_work(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    processes = [start(tmp_path), start(tmp_path)]
    written = [finish(process) for process in processes]
    assert sum(written) == SHARDS, "no shard was computed twice"
    assert contents(tmp_path) == undisturbed


def test_dying_at_any_change_to_the_disk_leaves_no_trace(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash_points", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Manifest, and three files of each of two shards, each brought to the disk and renamed, in both beginnings.
    assert int(done.stdout) > 2 * 2 * 7
