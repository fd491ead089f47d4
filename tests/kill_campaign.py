"""Kills every verb over and over: ``python -m tests.kill_campaign FOLDER [--kills 300] [--verbs run,collect,...]``.

The libraries are loaded once; each run is a child of the process that holds them, in a process group of its own that
is killed by SIGKILL at a random moment between its very start and the end of an undisturbed run. The same command is
then given again, and killed again, until it ends by itself. After each kill, what the run before had committed must be
there byte for byte; at the end, the folder must be that of an undisturbed run. Prints a line a verb, and exits 1 if
anything was lost, changed, left over or different.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spice_select.demo import demo_model_path
from spice_select.staging import recover
from tests.forks import Child, begin, call, preload, rows_file, still, still_file

VERBS = ("run", "collect", "select", "pools", "study", "overwrite", "train")
NAME = "out"
"""Every run writes into a folder of this name, as names stand on cards and pages."""
_SELECTION = re.compile(r"^(selection\.json|trace\.parquet|pool\.parquet|README\.md|data/[^/]*)$")
_CHECKPOINT = re.compile(r"(.*(?:after|checkpoint)-)(\d+)/")
_TRAINER = re.compile(r"^(checkpoints|trainer)/")
"""Checkpoints of a training, which go when it has ended and is recorded."""
_LOCKS = re.compile(r"(^|/)\.?[\w.-]*\.lock$|(^|/)claims(/|$)|(^|/)locks(/|$)")


def committed(folder: Path) -> dict[str, bytes]:
    """What a kill must not take: every file that a marker, a record or a whole line vouches for.

    Returns:
        Bytes by path. Of files of lines, all whole lines.
    """
    found: dict[str, bytes] = {}
    # What the next command does first, whatever it is.
    recover(folder)

    def keep(*paths: Path) -> None:
        for path in paths:
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.read_bytes()

    for marker in folder.rglob("shards/*.json"):
        keep(marker, marker.with_suffix(".npy"), marker.with_suffix(".meta.npy"))
    keep(*folder.rglob("manifest.json"), *folder.rglob("methods/**/seed-*.json"))
    for record in folder.rglob("checkpoint.json"):
        keep(*(path for path in record.parent.rglob("*") if path.is_file()))
    for record in folder.rglob("sealed.json"):
        keep(*(path for path in record.parent.rglob("*") if path.is_file()))
    for record in folder.rglob("selection.json"):
        place = record.parent
        found[record.relative_to(folder).as_posix()] = still_file(record).encode()
        keep(place / "trace.parquet", place / "pool.parquet", *place.glob("data/*"), place / "README.md")
    for lines in (*folder.rglob("log.jsonl"), *folder.rglob("ledger.jsonl")):
        content = lines.read_bytes()
        found[lines.relative_to(folder).as_posix()] = content[: content.rfind(b"\n") + 1]
    if (folder / "training.json").is_file():
        # The model and its record.
        keep(*(path for path in folder.iterdir() if path.is_file() and path.name not in (".lock", "README.md")))
    return found


def lost(before: dict[str, bytes], after: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """Committed files that are gone or changed; files of lines may have grown, and old checkpoints have gone.

    Args:
        before: What was committed.
        after: What is committed now.
        wanted: What the command itself leaves: an earlier selection may give its place to that one, to all of it.
    """
    names = []
    selection = {name for name in {*before, *wanted} if _SELECTION.search(name)}
    ended = "training.json" in after or before.get("ledger.jsonl") != after.get("ledger.jsonl")
    replaced = all(after.get(name) == wanted.get(name) for name in selection)
    for name, content in before.items():
        now = after.get(name)
        if now == content or (name.endswith(".jsonl") and now is not None and now.startswith(content)):
            continue
        if now is None and (later_checkpoints(name, after) or (ended and _TRAINER.match(name))):
            continue
        if name in selection and replaced:
            continue
        names.append(name)
    return names


def later_checkpoints(name: str, after: dict[str, bytes]) -> bool:
    """Whether two later checkpoints are there, which are the reason that this one went."""
    match = _CHECKPOINT.match(name)
    if match is None:
        return False
    numbers = {int(other[2]) for path in after if (other := _CHECKPOINT.match(path)) and other[1] == match[1]}
    return sum(number > int(match[2]) for number in numbers) >= 2


def final(folder: Path) -> dict[str, object]:
    """A finished folder without what differs from run to run: times, and the folder that it lies in.

    Locks stay behind, empty; they are no content.
    """
    base = str(folder.absolute().parent)
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or _LOCKS.search(name):
            continue
        content = path.read_bytes()
        if path.suffix == ".parquet" or path.suffix in (".npy", ".safetensors") or b"\0" in content[:1000]:
            found[name] = content
            continue
        text = content.decode().replace(base, "BASE")
        if name in ("report.html", "study.md", "study.csv", "contest.csv"):
            # They tell of times; their record is compared.
            found[name] = len(text) > 0
        elif re.search(r"features/gradients-\w+\.json$", name):
            # It counts the work of all runs, that of killed ones included.
            found[name] = True
        elif path.suffix == ".json":
            found[name] = json.dumps(still(json.loads(text)), sort_keys=True)
        elif name.endswith("ledger.jsonl"):
            found[name] = [json.dumps(still(json.loads(line)), sort_keys=True) for line in text.splitlines()]
        elif name == "README.md" and "spice-select train" in text:
            found[name] = re.sub(r"[\d.,]+ s\b", "", text)
        else:
            found[name] = text
    return found


def differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of files that are not the same in both."""
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


@dataclass
class Verb:
    """One thing to kill.

    Attributes:
        name: What it is called here.
        command: Arguments for an output folder; the second argument counts the attempts in one folder.
        prepare: Lays out what is there before the first attempt.
        loads: Whether the result is a data set.
        kept: Whether what an earlier attempt has committed stays; a command that starts again throws it away.
    """

    name: str
    command: Callable[[Path, int], Sequence[str | Path]]
    prepare: Callable[[Path], None] = lambda folder: None
    loads: bool = True
    kept: bool = True


@dataclass
class Tally:
    """What came of the kills of a verb."""

    kills: int = 0
    resumed: int = 0
    runs: int = 0
    late: int = 0
    checked: int = 0
    faults: list[str] = field(default_factory=list)


def campaign(verb: Verb, base: Path, kills: int, moments: random.Random, longest_chain: int) -> Tally:
    """Kill one verb until ``kills`` kills have met a run at work, each chain of them ending in a run left alone."""
    tally = Tally()
    logs = base / "logs"
    logs.mkdir(parents=True)
    reference = base / "reference" / NAME
    reference.parent.mkdir()
    verb.prepare(reference)
    begun = time.perf_counter()
    said = call(verb.command(reference, 0), logs)
    whole = time.perf_counter() - begun
    assert said.code == 0, said.err
    wanted, promised = final(reference), committed(reference)
    while tally.kills < kills and not tally.faults:
        folder = base / f"killed-{tally.runs}" / NAME
        folder.parent.mkdir()
        verb.prepare(folder)
        tally.runs += 1
        chain = min(moments.randint(1, longest_chain), kills - tally.kills)
        before: dict[str, bytes] = committed(folder) if verb.kept else {}
        said = None
        for attempt in range(chain):
            # Moments of a whole run, its very end included; a resumed run may be through by then.
            when = moments.uniform(0.0, 1.02 * whole)
            child = begin(verb.command(folder, attempt), logs)
            if _wait(child, when):
                said = child.said()
                tally.late += 1
                break
            met = child.kill()
            tally.kills += met
            tally.resumed += met and attempt > 0
            if verb.kept:
                after = committed(folder)
                tally.checked += len(after)
                tally.faults += [f"{verb.name}: kill {tally.kills} took {one}" for one in lost(before, after, promised)]
                before = after
        if said is None:
            begun = time.perf_counter()
            said = call(verb.command(folder, chain), logs)
            whole = max(0.2, min(whole, 1.5 * (time.perf_counter() - begun)))
        if said.code != 0:
            tally.faults.append(f"{verb.name}: the rerun ended with {said.code}: {said.err[-2000:]}")
            break
        if verb.kept:
            tally.faults += [f"{verb.name}: the rerun took {one}" for one in lost(before, committed(folder), promised)]
        tally.faults += [f"{verb.name}: {one} differs from the reference" for one in differing(wanted, final(folder))]
        tally.faults += [f"{verb.name}: {one} is left over" for one in left_over(folder)]
        if verb.loads and not loads(folder, base / "cache"):
            tally.faults.append(f"{verb.name}: the data set does not load")
        if not tally.faults:
            shutil.rmtree(folder.parent)
    return tally


def _wait(child: Child, seconds: float) -> bool:
    """Whether a run ends by itself within so many seconds."""
    until = time.monotonic() + seconds
    while not child.over():
        left = until - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, 0.05))
    return True


def left_over(folder: Path) -> list[str]:
    """Temporary files and folders that a finished run must not leave."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name.endswith(".tmp") or path.name.startswith(".results") or path.parent.name == "trainer"
    ]


def loads(folder: Path, cache: Path) -> bool:
    """Whether the picks load as a data set, in the order and number of the record."""
    import datasets

    record = json.loads((folder / "selection.json").read_bytes())
    found = datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))
    assert isinstance(found, datasets.Dataset)
    return len(found) == record["k"] > 0


def verbs(base: Path, rows: int, names: Sequence[str] = VERBS) -> dict[str, Verb]:
    """All verbs on one small pool.

    Args:
        base: Folder for what they begin with.
        rows: Rows of the pool.
        names: Those that will be used; for the others nothing is made.
    """
    base.mkdir(parents=True)
    file = rows_file(base / "rows.jsonl", rows)
    model = demo_model_path()
    store = ("--set", "gradients.dim=64", "--set", "gradients.shard_rows=8")
    collected = base / "collected" / NAME
    logs = base / "logs"
    logs.mkdir()

    def prepared(*arguments: str | Path) -> None:
        said = call(arguments, logs)
        assert said.code == 0, said.err

    def run(folder: Path, budget: str = "20%", *more: str) -> list[str | Path]:
        return ["run", file, "-m", model, "--budget", budget, "-o", folder, *store, *more]

    def selected(folder: Path) -> None:
        # An earlier selection with another budget, whose place the killed one takes.
        shutil.copytree(collected, folder)

    def other(folder: Path) -> None:
        shutil.copytree(base / "other" / NAME, folder)

    if "select" in names:
        prepared(*run(collected, "40%"))
    if "overwrite" in names:
        prepared(*run(base / "other" / NAME, "30%", "--set", "seed=1", "--set", "gradients.seed=5"))
    if "train" in names:
        prepared(*run(base / "tuned" / NAME, "30%"))
    pooled = ("--schedule", "pools", "--set", "schedule.pool_size=8", "--set", "schedule.interval=1")
    # Ends in the middle of its second epoch, at a rate by which a step too many or too few would show.
    tune = ("training.max_steps=7", "training.batch_size=2", "training.save_steps=2", "training.scheduler=constant")
    trained = [word for setting in (*tune, "training.dropout=0.1", "training.lr=1e-3") for word in ("--set", setting)]
    held = rows_file(base / "held.jsonl", 4, seed=8) if "train" in names else None
    study = ("--set", "training.epochs=1", "--set", "training.lr=1e-3", "--set", "training.save_steps=2")
    plan = ("--methods", "random,spice", "--budgets", "50%", "--equal", "rows", "--seeds", "1")
    return {
        "run": Verb("run", lambda folder, _: run(folder)),
        "collect": Verb("collect", lambda folder, _: ["collect", file, "-m", model, "-o", folder, *store], loads=False),
        "select": Verb("select", lambda folder, _: ["select", folder, "--budget", "20%", "--overwrite"], selected),
        "pools": Verb("pools", lambda folder, _: ["run", file, "-m", model, "--budget", "40%", "-o", folder, *pooled]),
        "study": Verb(
            "study",
            lambda folder, _: [
                *("study", file, "-m", model, *plan, "--full-seeds", "0", "--holdout", "4", "--output", folder),
                *study,
            ],
            loads=False,
        ),
        # Starts again over other settings; once it has begun, the same command goes on with or without the option.
        "overwrite": Verb("overwrite", lambda folder, _: [*run(folder), "--overwrite"], other, kept=False),
        "train": Verb(
            "train",
            lambda folder, _: [
                *("train", base / "tuned" / NAME, "--output", folder, "--heldout", held or "", *trained),
            ],
            loads=False,
        ),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=300, help="over all verbs")
    parser.add_argument("--verbs", default="run,collect,select,pools,study", help="NAME or NAME:KILLS, by commas")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--chain", type=int, default=8, help="most kills of one folder before it may end")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    words = [word.partition(":") for word in asked.verbs.split(",")]
    names, shares = [name for name, _, _ in words], {name: int(count) for name, _, count in words if count}
    preload()
    base = asked.folder.absolute()
    known, moments = verbs(base / "shared", asked.rows, names), random.Random(asked.seed)
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(VERBS)}")
    total, faults, begun = 0, [], time.perf_counter()
    open_shares = sum(name not in shares for name in names)
    left = asked.kills - sum(shares.values())
    for name in names:
        share = shares[name] if name in shares else left // max(1, open_shares)
        started = time.perf_counter()
        tally = campaign(known[name], base / name, share, moments, asked.chain)
        total += tally.kills
        faults += tally.faults
        print(
            f"{name}: {tally.kills} kills in {tally.runs} folders ({tally.resumed} of runs that were resumed), "
            f"{tally.checked} committed files compared, {len(tally.faults)} faults, "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
    for fault in faults:
        print(fault)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{total} kills, {len(faults)} faults, {time.perf_counter() - begun:.0f} s, "
        f"{spent.ru_utime + spent.ru_stime:.0f} s of processor time"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
