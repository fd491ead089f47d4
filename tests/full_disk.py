"""Fills the disk under every verb, and makes it read-only: ``python -m tests.full_disk FOLDER [--verbs run,...]``.

The disk is a small tmpfs in a mount namespace of its own. A verb is given hardly any room, then a little more, until
it ends by itself. Each time before that it must exit with 4 and one sentence that names a path and the remedy, and
everything that was committed must be there byte for byte; at the end the folder must be that of a run with room. On a
read-only disk every verb must refuse in one sentence. Prints a line a verb, and exits 1 if anything is amiss.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.forks import Said, call, preload
from tests.kill_campaign import NAME, Verb, committed, differing, final, left_over, lost, verbs

INSIDE = "SPICE_TEST_NAMESPACE"
SIZE = 24 << 20
ROOM = (0, 30, 120, 400)
"""Kilobytes that a verb is left, one after the other."""


def enter(module: str = "tests.full_disk") -> bool:
    """Begin the module again in a mount namespace of its own, to mount in; False where that is not allowed."""
    if os.environ.get(INSIDE):
        return True
    for form in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        if shutil.which("unshare") and subprocess.run([*form, "true"], capture_output=True).returncode == 0:
            command = [*form, sys.executable, "-m", module, *sys.argv[1:]]
            os.execvpe("unshare", command, {**os.environ, INSIDE: "1"})
    return False


def mount(place: Path, *options: str) -> None:
    done = subprocess.run(["mount", "-o", ",".join(options), "-t", "tmpfs", "none", place], capture_output=True)
    if done.returncode:
        print(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
        sys.exit(77)


def faults_of(said: Said, disk: Path, *words: str) -> list[str]:
    """What is wrong with a refusal."""
    found = [] if said.code == 4 else [f"exit {said.code}: {said.err[-1500:]}"]
    if "Traceback" in said.err or not said.sentence:
        found.append(f"no one sentence: {said.err[-1500:]}")
    elif str(disk) not in said.sentence or not any(word in said.sentence for word in words):
        found.append(f"the sentence names no path or no remedy: {said.sentence}")
    return found


def full(verb: Verb, disk: Path, wanted: Path, logs: Path) -> list[str]:
    """Starve one verb until there is room."""
    folder, ballast = disk / verb.name / NAME, disk / "ballast"
    folder.parent.mkdir()
    verb.prepare(folder)
    before, promised, refused = committed(folder), committed(wanted), 0
    faults: list[str] = []
    for room in (*ROOM, None):
        ballast.unlink(missing_ok=True)
        if room is not None:
            free = shutil.disk_usage(disk).free - room * 1024
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free))
        said = call(verb.command(folder, 0), logs)
        if said.code == 0 and "--overwrite" not in verb.command(folder, 0):
            break
        if room is None:
            if said.code != 0:
                faults.append(f"{verb.name}: with room, exit {said.code}: {said.err[-1500:]}")
            break
        if said.code != 0:
            refused += 1
            faults += [f"{verb.name}, {room} KB: {one}" for one in faults_of(said, disk, "make room", "free")]
            after = committed(folder)
            faults += [f"{verb.name}, {room} KB: {one} is lost" for one in lost(before, after, promised)]
            before = after
    ballast.unlink(missing_ok=True)
    faults += [f"{verb.name}: {one} differs" for one in differing(moved(final(wanted)), moved(final(folder)))]
    faults += [f"{verb.name}: {one} is left over" for one in left_over(folder)]
    if not refused:
        faults.append(f"{verb.name}: the disk was never full")
    print(f"{verb.name}: refused {refused} times, {len(faults)} faults", flush=True)
    shutil.rmtree(folder.parent)
    return faults


def moved(found: dict[str, object]) -> dict[str, object]:
    """The same without the folder's own path."""
    return {name: value for name, value in found.items() if name != "config.yaml" and not name.endswith("/config.yaml")}


def exported(disk: Path, shared: Path, logs: Path) -> list[str]:
    """The files of export and report: whole or as they were."""
    run, faults = shared / "tuned" / NAME, []
    file, ballast = disk / "rows.jsonl", disk / "ballast"
    assert call(["export", run, "--output", file], logs).code == 0
    before = file.read_bytes()
    with ballast.open("wb") as other:
        os.posix_fallocate(other.fileno(), 0, shutil.disk_usage(disk).free)
    for words in (["export", run, "--output", file, "--overwrite"], ["report", run, "--output", disk / "page.html"]):
        said = call(words, logs)
        faults += [f"{words[0]}: {one}" for one in faults_of(said, disk, "make room")]
    if file.read_bytes() != before or {path.name for path in disk.iterdir()} != {"rows.jsonl", "ballast"}:
        faults.append("export: the file has changed, or something is left over")
    ballast.unlink()
    file.unlink()
    print(f"export, report: refused, {len(faults)} faults", flush=True)
    return faults


def read_only(known: Sequence[Verb], disk: Path, shared: Path, logs: Path) -> list[str]:
    """Every verb on a disk that cannot be written, with a finished run on it and without."""
    finished = disk / "finished"
    shutil.copytree(shared / "tuned" / NAME, finished)
    mount(disk, "remount", "ro")
    faults: list[str] = []
    calls = {verb.name: verb.command(disk / "new", 0) for verb in known if verb.name not in ("select", "overwrite")}
    calls["select"] = ["select", finished, "--budget", "20%", "--overwrite"]
    calls["report"] = ["report", finished]
    calls["export"] = ["export", finished, "--output", disk / "rows.jsonl"]
    words = [str(word) for word in calls["run"]] if "run" in calls else []
    if words:
        calls["compare"] = ["compare", *words[1:], "--methods", "random,length"]
    for name, arguments in calls.items():
        faults += [
            f"{name}, read-only: {one}" for one in faults_of(call(arguments, logs), disk, "name a", "name another")
        ]
    for arguments in (
        ["export", finished, "--output", logs / "rows.jsonl"],
        ["report", finished, "--output", logs / "page.html"],
        ["analyze", finished],
    ):
        said = call(arguments, logs)
        if said.code != 0:
            faults.append(f"{arguments[0]} cannot read a read-only run: {said.err[-1500:]}")
    mount(disk, "remount", "rw")
    print(f"read-only: {len(calls)} verbs, {len(faults)} faults", flush=True)
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--verbs", default="run,collect,select,pools,study,train")
    parser.add_argument("--rows", type=int, default=24)
    asked = parser.parse_args(arguments)
    if not enter():
        print("no mount namespace can be made here")
        return 77
    base = asked.folder.absolute()
    disk, logs = base / "disk", base / "logs"
    for place in (disk, logs):
        place.mkdir(parents=True)
    mount(disk, f"size={SIZE}")
    preload()
    every = verbs(base / "shared", asked.rows, [*asked.verbs.split(","), "train"])
    known = [every[name] for name in asked.verbs.split(",")]
    faults: list[str] = []
    for verb in known:
        wanted = base / "wanted" / verb.name / NAME
        wanted.parent.mkdir(parents=True)
        verb.prepare(wanted)
        said = call(verb.command(wanted, 0), logs)
        assert said.code == 0, said.err
        faults += full(verb, disk, wanted, logs)
    faults += exported(disk, base / "shared", logs)
    faults += read_only(known, disk, base / "shared", logs)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
