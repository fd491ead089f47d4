"""Kills, full disks, locks, changed rows, other versions and damaged files, as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spice_select.demo import demo_model_path, demo_rows
from spice_select.errors import OutputError, ResourceError
from spice_select.files import Lock
from tests import studies
from tests.integration.command import Command
from tests.integration.rows import write_jsonl
from tests.support import ROOT

STORE = ("--set", "gradients.dim=64", "--set", "gradients.shard_rows=8")


def test_kills_damage_and_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault_suite", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert "8 kills, 0 faults" in done.stdout, done.stdout + done.stderr
    if done.returncode == 77:
        pytest.skip("kills and damaged files are well; a full disk needs a mount namespace")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture
def finished(command: Command, made: Path) -> Path:
    """A finished run; made once, to be copied."""
    rows, out = made / "rows.jsonl", made / "run"
    if not out.exists():
        write_jsonl(rows, demo_rows(seed=3)[:24])
        done = command("run", rows, "-m", demo_model_path(), "-b", "8", "-o", out, "-q", *STORE)
        assert done.code == 0, done.err
    return out


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.mark.parametrize("lock", [".lock", "schedule/.lock"])
def test_a_second_run_on_one_output_is_told_so(
    command: Command, finished: Path, tmp_path: Path, model: Path, lock: str
) -> None:
    out = copied(finished, tmp_path / "out")
    (out / lock).parent.mkdir(exist_ok=True)
    before = (out / "selection.json").read_bytes()
    with Lock.exclusive(out / lock, "this folder"):
        if lock == ".lock":
            said = command.refused(4, "select", out, "--budget", "4", "--overwrite")
        else:
            pools = ("-b", "8", "--schedule", "pools", "--set", "schedule.pool_size=8", "--overwrite")
            said = command.refused(4, "run", finished.parent / "rows.jsonl", "-m", model, "-o", out, *pools, *STORE)
        assert said.startswith("Another run is writing") and "wait until it ends, or name another folder" in said
    assert (out / "selection.json").read_bytes() == before


def test_a_second_training_on_one_output_is_told_so(command: Command, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    out.mkdir()
    with Lock.exclusive(out / ".lock", "this folder"):
        said = command.refused(4, "train", finished, "--output", out, "--max-steps", "1")
        assert said == f"Another run is writing {out}; wait until it ends, or name another folder."


Change = Callable[[list[str]], list[str]]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines, lines[0]],
        lambda lines: lines[:-1],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [lines[0].replace("a", "b"), *lines[1:]],
    ],
    ids=["added", "removed", "reordered", "changed"],
)
def test_rows_that_changed_between_two_attempts_are_refused(
    command: Command, finished: Path, tmp_path: Path, model: Path, change: Change
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    lines = (finished.parent / "rows.jsonl").read_text().splitlines(keepends=True)
    rows.write_text("".join(lines))
    given = ("collect", rows, "-m", model, "-o", out, *STORE)
    assert command(*given, "-q").code == 0
    # As if it had been killed with one shard missing.
    (out / "gradients/shards/000001.json").unlink()
    kept = {path.name: path.read_bytes() for path in (out / "gradients/shards").iterdir()}
    rows.write_text("".join(change(lines)))
    said = command.refused(4, *given)
    assert "belongs to other settings (" in said and ("examples" in said or "rows" in said)
    assert {path.name: path.read_bytes() for path in (out / "gradients/shards").iterdir()} == kept
    rows.write_text("".join(lines))
    again = command(*given)
    assert again.code == 0 and "Computed 1 of 3 shards, and reused 2." in again.err


def test_a_training_notices_that_its_held_out_rows_or_files_changed(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    held, out = write_jsonl(tmp_path / "held.jsonl", demo_rows(seed=8)[:4]), tmp_path / "tuned"
    given = ("train", finished, "--output", out, "--max-steps", "1", "--heldout", held)
    assert command(*given, "-q").code == 0
    assert "already" in command(*given).out
    write_jsonl(held, demo_rows(seed=9)[:4])
    assert "the held-out rows was" in command.refused(4, *given)
    write_jsonl(held, demo_rows(seed=8)[:4])
    weights = out / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "adapter_model.safetensors is not what was written" in command.refused(3, *given)
    judged = ("evaluate", out, "--suite", "heldout", "--heldout", held, "--run", finished)
    assert "adapter_model.safetensors is not what was written" in command.refused(3, *judged)
    assert command(*given, "--overwrite", "-q").code == 0
    assert command(*judged, "-q").code == 0


def test_a_training_killed_as_it_starts_again_can_be_given_again(
    command: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, given = tmp_path / "tuned", ("train", finished, "--max-steps", "1")
    assert command(*given, "--output", out, "-q").code == 0

    class Died(BaseException):
        """Stands for a kill."""

    for at in range(30):
        folder, left = copied(out, tmp_path / f"killed-{at}"), [at]
        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "rmdir"):
                real = getattr(os, name)

                def deadly(*args: object, real=real, left=left, **options: object) -> object:
                    left[0] -= 1
                    if left[0] < 0:
                        raise Died
                    return real(*args, **options)

                patch.setattr(os, name, deadly)
            try:
                from spice_select.training.place import TrainFolder

                TrainFolder(folder).claim({"seed": 1}, overwrite=True)
                died = False
            except Died:
                died = True
        # Neither a user's folder nor a finished training: it may be started again.
        from spice_select.training.place import TrainFolder

        TrainFolder(folder).check([], "")
        if not died:
            break
    assert at > 4
    assert command(*given, "--output", tmp_path / "killed-2", "--overwrite", "-q").code == 0


@pytest.mark.parametrize("version", [0, 2])
def test_files_of_another_version_are_named(command: Command, finished: Path, tmp_path: Path, version: int) -> None:
    def changed(path: Path, name: str = "schema_version") -> None:
        content = json.loads(path.read_text())
        content[name] = version
        content.pop("checksum", None)
        path.write_text(json.dumps(content))

    store = copied(finished, tmp_path / "store")
    changed(store / "gradients/manifest.json")
    said = command.refused(3, "select", store, "--budget", "4", "--overwrite")
    assert f"has schema version {version}, and this program reads version 1; use the version of" in said
    record = copied(finished, tmp_path / "record")
    changed(record / "selection.json")
    for words in (["report", record], ["export", record, "--output", tmp_path / "x.jsonl"]):
        said = command.refused(3, *words)
        assert f"selection.json has schema version {version}" in said and "or select again" in said
    # A new selection needs nothing of the old record.
    assert command("select", record, "--budget", "4", "--overwrite", "-q").code == 0


def test_a_log_and_a_ledger_of_another_version_are_named(tmp_path: Path) -> None:
    from spice_select.errors import StoreError
    from spice_select.schedule import log
    from spice_select.study.ledger import Ledger

    path = tmp_path / "log.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "VERSION", 2)
        log.SelectionLog(path, "0" * 64)
    with pytest.raises(StoreError, match="has version 2, and this program reads version 1; use the version"):
        log.SelectionLog(path, "0" * 64)
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text('{"schema_version": 2, "key": "x"}\n')
    with pytest.raises(StoreError, match=r"Line 1 of the ledger .* is no outcome of this version; take it out"):
        Ledger(ledger).read()


def test_a_changed_line_of_a_ledger_is_named_and_half_a_line_passed_over(tmp_path: Path) -> None:
    from spice_select.errors import StoreCorrupt
    from spice_select.study.ledger import Ledger

    path = tmp_path / "ledger.jsonl"
    ledger, made = Ledger(path), [studies.outcome("random", seed, 1.5) for seed in (0, 1)]
    for one in made:
        ledger.add(one)
    assert ledger.read() == made
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert ledger.read() == made[:1]
    ledger.add(made[1])
    assert ledger.read() == made
    path.write_bytes(whole.replace(b"1.5", b"1.4", 1))
    with pytest.raises(StoreCorrupt, match=r"Line 1 of the ledger .* is not what was written; take it out"):
        ledger.read()
    # Lines of before there were checksums.
    path.write_text("".join(one.model_dump_json() + "\n" for one in made))
    assert ledger.read() == made


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", ResourceError),
        ("[enforce fail] PytorchStreamWriter failed writing file data/0: file write failed", OutputError),
        ("something else", RuntimeError),
    ],
)
def test_what_libraries_say_of_a_disk_becomes_a_sentence(tmp_path: Path, raised: str, code: type[Exception]) -> None:
    from spice_select.training.checkpoints import disk_faults_told

    with pytest.raises(code) as caught, disk_faults_told(tmp_path):
        raise RuntimeError(raised)
    if code is ResourceError:
        assert str(caught.value) == (
            f"{tmp_path} cannot be written because the disk is full; make room and run the same command again."
        )
