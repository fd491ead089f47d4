"""Folders of Ray's own files: those of runs that were killed go when the next one starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spice_select.distributed import cluster
from spice_select.distributed.cluster import Cluster
from spice_select.errors import ConfigError

_MAKE = (
    "import sys; from spice_select.distributed.cluster import _short_folder as f; x = f(); print(x[0], flush=True); "
)


def test_folders_of_dead_runs_go_and_those_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    # A short path, as pytest's own is beyond what a socket takes.
    base = Path(cluster.tempfile.mkdtemp(prefix="sr-", dir="/tmp"))
    try:
        environment = {**os.environ, "TMPDIR": str(base)}
        made = []
        for _ in range(2):
            child = subprocess.Popen([sys.executable, "-c", _MAKE + "sys.stdin.read()"], env=environment,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
            assert child.stdout is not None
            made.append((child, Path(child.stdout.readline().strip())))
        (base / "spice-ray-old").mkdir()
        (base / "spice-ray-link").symlink_to(base)
        monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: str(base))
        os.kill(made[0][0].pid, signal.SIGKILL)
        made[0][0].communicate()
        folder, held = cluster._short_folder()
        assert not made[0][1].exists() and made[1][1].is_dir() and Path(folder).is_dir()
        assert (base / "spice-ray-old").is_dir() and (base / "spice-ray-link").is_symlink()
        held.close()
        made[1][0].communicate("")
        cluster._clear(base)
        assert sorted(path.name for path in base.iterdir()) == ["spice-ray-link", "spice-ray-old"]
    finally:
        cluster.shutil.rmtree(base)


def test_more_workers_than_a_machine_holds_are_refused_before_ray_starts() -> None:
    with pytest.raises(ConfigError, match="--workers cannot be 1000000 on this machine"):
        Cluster(1_000_000, None)


def test_workers_elsewhere_are_told_where_models_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HF_HOME": "/shared/hf", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "secret"}.items():
        monkeypatch.setenv(name, value)
    told = Cluster(None, "auto").environment()
    assert (told["HF_HOME"], told["HF_HUB_OFFLINE"]) == ("/shared/hf", "1") and "HF_TOKEN" not in told
