"""One, two and three real processes: the same bits, and the same errors, on all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spice_select.errors import ConfigError
from spice_select.schedule.ranks import Ranks
from tests import schedule_ranks
from tests.support import ROOT

WORLDS = [2, 3]
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@dataclass
class Found:
    """What each process wrote."""

    arrays: list[dict[str, np.ndarray]]
    told: list[dict[str, Any]]


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return schedule_ranks.measured(Ranks())
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.schedule_ranks", str(made), *map(str, WORLDS)],
        cwd=ROOT,
        env={**os.environ, **ALONE},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.fixture(scope="module", params=WORLDS)
def found(request: pytest.FixtureRequest, folder: Path) -> Found:
    places = [folder / str(request.param) / str(rank) for rank in range(request.param)]
    return Found(
        [dict(np.load(place.with_suffix(".npz"))) for place in places],
        [json.loads(place.with_suffix(".json").read_text()) for place in places],
    )


def test_gradients_are_the_same_bits_on_every_number_of_processes(found: Found, alone: dict[str, np.ndarray]) -> None:
    assert len(alone) == len(schedule_ranks.POOLS) * 10
    for arrays in found.arrays:
        assert arrays.keys() == alone.keys()
        for name, expected in alone.items():
            np.testing.assert_array_equal(arrays[name], expected, err_msg=name)


def test_training_is_the_same_everywhere(found: Found) -> None:
    told = [process["training"] for process in found.told]
    expected = schedule_ranks.training(Ranks())
    for process in told:
        assert process["equal"] is True
        assert process["digest"] == expected["digest"]
        assert process["losses"] == list(expected["losses"])
        assert process["astray"] is False
        assert process["mended"] == expected["digest"]


def test_a_fault_of_one_is_the_error_of_all(found: Found) -> None:
    told = [process["failing"] for process in found.told]
    others, last = told[:-1], told[-1]
    assert all(process == others[0] for process in others)
    bug = [["SpiceError", f"Process {len(told) - 1} failed (ValueError: a bug); see its own message."]]
    assert others[0][:1] + others[0][2:] == last[:1] + last[2:]
    assert others[0][1:2] == bug and last[1] == ["ValueError", "a bug"]
    assert [kind for kind, _ in last] == [
        "DataError",
        "ValueError",
        "DataError",
        "ResourceError",
        "ResourceError",
        "DataError",
        "sum",
    ]
    assert "Row 7" in last[0][1] and "Row 8" in last[2][1] and "batch_tokens" in last[3][1]
    assert last[5][1] == "Again: Row 7 is broken; mend it."
    assert last[6] == schedule_ranks.gram_sum(Ranks())


def test_what_travels_arrives(found: Found) -> None:
    world = len(found.told)
    for rank, process in enumerate(found.told):
        told = process["talking"]
        assert told["main"] is (rank == 0)
        assert told["told"] == {"rank": 0, "text": ""}
        assert told["all"] == ["x" * number for number in range(world)]
        assert told["nan"] == str([float("nan")] * world)
        assert told["numbers"] == [0.0, world, 2.0 * world]
        expected = [[[float(number)] * 2] * number for number in range(world)]
        assert told["gathered"] == (expected if rank == world - 1 else None)


def test_torchrun_starts_processes_and_one_that_dies_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import os, pathlib, signal\n"
        # torchrun ends the others as soon as one has died, which may be before it has said anything.
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "from spice_select.errors import ResourceError\n"
        "from spice_select.schedule.ranks import Ranks\n"
        "ranks = Ranks.from_environment()\n"
        "folder = pathlib.Path(__file__).parent\n"
        "(folder / f'{ranks.rank}.world').write_text(str(ranks.all_gather(ranks.local)))\n"
        "ranks.barrier()\n"
        "if ranks.rank == 1:\n"
        "    os._exit(7)\n"
        "try:\n"
        "    ranks.barrier()\n"
        "except ResourceError as error:\n"
        "    (folder / 'said').write_text(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", tmp_path / "job.py"],
        env={**os.environ, **ALONE},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0 and "exitcode  : 7" in done.stderr
    assert [(tmp_path / f"{rank}.world").read_text() for rank in range(2)] == ["[0, 1]", "[0, 1]"]
    assert "Another process of this run has ended" in (tmp_path / "said").read_text()


def test_one_process_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks = Ranks.from_environment()
    assert (ranks.rank, ranks.world, ranks.main) == (0, 1, True)
    ranks.barrier()
    assert ranks.broadcast({"a": 1}) == {"a": 1} and ranks.all_gather(2) == [2]
    assert ranks.device("auto") == "auto"
    with pytest.raises(KeyError), ranks.together():
        raise KeyError("own")
    ranks.close()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Ranks.from_environment().world == 1


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2"}, "RANK is missing"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK cannot be 2"),
    ],
)
def test_an_environment_that_makes_no_sense(
    environment: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=named):
        Ranks.from_environment()
