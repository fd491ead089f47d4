"""Damages every file of finished folders: ``python -m tests.damage FOLDER [--every 1] [--kinds study,train]``.

Each file is cut to nothing, cut in half, has one bit flipped at its beginning, middle and end, and is replaced by the
file of the same name of another run of its kind; then the commands that read it are given. Each must come to the answer
of the undamaged folder, or refuse in one sentence with exit code 3 or 4: no traceback, no other answer. What is refused
leaves every other file as it was, and the same command with ``--overwrite`` must come to the answer. Prints a line a
kind of folder, and exits 1 if anything is amiss.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spice_select.demo import demo_model_path
from tests.forks import Said, call, preload, rows_file, still

Words = Sequence[str | Path]
NAME = "out"
"""Every folder has this name, as names stand on cards."""


def damages(content: bytes, other: bytes | None = None) -> Iterator[tuple[str, bytes]]:
    """The same content, damaged in several ways.

    Args:
        content: What was written.
        other: What another run has written under this name.
    """
    if content:
        yield "cut to nothing", b""
        yield "cut in half", content[: len(content) // 2]
    for name, place in (("beginning", 1), ("middle", len(content) // 2), ("end", len(content) - 2)):
        if 0 <= place < len(content):
            flipped = bytearray(content)
            flipped[place] ^= 4
            yield f"a bit at its {name} flipped", bytes(flipped)
    if other is not None and other != content:
        yield "replaced", other
    for place in digits(content):
        changed = bytearray(content)
        changed[place] = ord("1") + (changed[place] - ord("0")) % 9
        yield f"another digit at {place}", bytes(changed)


def digits(content: bytes, count: int = 2) -> list[int]:
    """Places of some digits within a text: another one leaves JSON that is whole, and tells something else."""
    if b"\0" in content:
        return []
    found = [place for place, byte in enumerate(content) if ord("0") <= byte <= ord("9")]
    return [found[len(found) * part // (count + 1)] for part in range(1, count + 1)] if found else []


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What a finished run's data set holds."""
    import pyarrow.parquet as pq

    return [row for path in sorted((folder / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def losses_of(folder: Path) -> Any:
    """What a study has found, without times and costs: work that was done again costs more."""
    found = json.loads((folder / "study.json").read_bytes())
    for one in found["outcomes"]:
        del one["cost"]
    return still([found["plan"], found["outcomes"], found["untrained"]])


def missing(folder: Path) -> int:
    """Trainings that a study says it lacks."""
    return json.loads((folder / "study.json").read_bytes())["missing"]


def model_of(folder: Path) -> Any:
    """What a training has left, without times; files that are the user's to edit aside."""
    record = still(json.loads((folder / "training.json").read_bytes()))
    assert isinstance(record, dict)
    files = {name: (folder / name).read_bytes() for name in record.get("files", {})}
    return {name: value for name, value in record.items() if name not in ("command", "warnings")}, files


@dataclass(frozen=True)
class Reading:
    """A command that reads a folder.

    Attributes:
        words: The command, for a folder.
        right: Whether it came to the right answer, given what it said.
        writes: Whether it writes into the folder.
    """

    words: Callable[[Path], Words]
    right: Callable[[Path, Said], bool]
    writes: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of folder.

    Attributes:
        readings: The commands that read it, by name.
        reads: Names of those that read a file.
        answer: What the folder tells when all is well.
        made: Makes one in a folder; the second argument is 1 for another run of its kind.
        again: The command that makes the folder, or goes on with it.
    """

    readings: dict[str, Reading]
    reads: Callable[[str], Sequence[str]]
    answer: Callable[[Path], Any]
    made: Callable[[Path, int], None]
    again: Callable[[Path, int], Words]


class Sweep:
    """All damages of all kinds, in one folder for scratch.

    Args:
        base: The folder.
        rows: Rows of the pool.
    """

    def __init__(self, base: Path, rows: int) -> None:
        self.base, self.logs = base, base / "logs"
        self.logs.mkdir(parents=True)
        self.rows, self.model = rows_file(base / "rows.jsonl", rows), demo_model_path()
        self.held = rows_file(base / "held.jsonl", 4, seed=8)
        self.elsewhere = base / "elsewhere"

    def done(self, words: Words, before: Callable[[], None] | None = None, code: int = 0) -> Said:
        """Give a command that must end so."""
        said = call(words, self.logs, before=before)
        assert said.code == code, (words, said)
        return said

    def kinds(self, names: Sequence[str]) -> Iterator[tuple[str, Kind]]:
        """The kinds of these names."""
        makers = {
            "run": lambda: self.selection("run", "--set", "gradients.dim=32", "--set", "gradients.shard_rows=8"),
            "pools": lambda: self.selection("pools", "--schedule", "pools", "--set", "schedule.pool_size=8"),
            "loss": lambda: self.selection("loss", "--method", "loss"),
            "study": lambda: self.study(cut_off=False),
            "study-cut-off": lambda: self.study(cut_off=True),
            "train": lambda: self.training(cut_off=False),
            "train-cut-off": lambda: self.training(cut_off=True),
        }
        for name in names:
            yield name, makers[name]()

    def selection(self, name: str, *settings: str) -> Kind:
        """A finished run: its readers first, then the same command again, which makes anew what it needs."""

        def again(out: Path, seed: int) -> Words:
            given = ("--set", f"gradients.seed={seed}", "--set", f"seed={seed}")
            return ["run", self.rows, "-m", self.model, "--budget", "50%", "-o", out, *settings, *given]

        whole, exported, out = self.base / name / NAME, self.base / f"{name}.jsonl", self.elsewhere / "x.jsonl"
        self.done(again(whole, 0))
        self.done(["export", whole, "--output", exported])
        known, wanted = rows_of(whole), exported.read_bytes()
        numbers = [row["spice_index"] for row in known]
        page = self.elsewhere / "page.html"
        selected = self.elsewhere / "selected"

        def reads(file: str) -> list[str]:
            if not file.startswith(("gradients", "features", "schedule")):
                return ["export", "report", "again"]
            return ["select", "again"] if file.startswith("gradients") and name == "run" else ["export", "again"]

        return Kind(
            {
                "export": Reading(lambda f: ["export", f, "--output", out], lambda f, _: out.read_bytes() == wanted),
                "select": Reading(
                    lambda f: ["select", f, "--budget", "50%", "--output", selected],
                    lambda f, _: [row["spice_index"] for row in rows_of(selected)] == numbers,
                ),
                "report": Reading(
                    lambda f: ["report", f, "--markdown", "-", "--output", page],
                    # Others than these two are the user's, or bear on no page.
                    lambda f, _: all((f / n).read_bytes() == (whole / n).read_bytes() for n in _VOUCHING),
                ),
                "again": Reading(lambda f: again(f, 0), lambda f, _: rows_of(f) == known, writes=True),
            },
            reads,
            rows_of,
            lambda folder, seed: None if folder == whole else void(self.done(again(folder, seed))),
            again,
        )

    def study(self, *, cut_off: bool) -> Kind:
        """A study that has ended, or that died when its last training had and was not recorded yet."""

        def again(out: Path, seed: int) -> Words:
            pools = "spice:label=pools:schedule.kind=pools:schedule.pool_size=4"
            plan = ("--methods", f"random,spice,{pools}", "--budgets", "50%", "--equal", "rows", "--seeds", "1")
            more = ("--full-seeds", "0", "--holdout", "2", "--seed", str(seed))
            return ["study", self.rows, "-m", self.model, *plan, *more, "--output", out, *_TRAINING]

        def made(out: Path, seed: int) -> None:
            if out == reference:
                return
            self.done(again(out, seed), dies_at_line(4) if cut_off else None, 9 if cut_off else 0)

        reference = self.base / ("study-reference" if cut_off else "study") / NAME
        self.done(again(reference, 0))
        known = losses_of(reference)
        table = Reading(
            lambda f: [*again(f, 0), "--no-train"],
            # It tells of what the ledger knows, and how many are missing.
            lambda f, _: all(one in known[1] for one in losses_of(f)[1]) and missing(f) == 3 - len(losses_of(f)[1]),
            writes=True,
        )
        return Kind(
            {"table": table, "again": Reading(lambda f: again(f, 0), lambda f, _: losses_of(f) == known, writes=True)},
            lambda file: ["again"] if "trainer/" in file else ["table", "again"],
            losses_of,
            made,
            again,
        )

    def training(self, *, cut_off: bool) -> Kind:
        """A training that has ended, or that died between two checkpoints."""
        run = self.base / "trained" / NAME
        if not run.exists():
            self.done(["run", self.rows, "-m", self.model, "--budget", "50%", "-o", run, "--set", "gradients.dim=32"])

        def again(out: Path, seed: int) -> Words:
            return ["train", run, "--output", out, "--heldout", self.held, "--seed", str(seed), *_TRAINING]

        def made(out: Path, seed: int) -> None:
            if out == reference:
                return
            self.done(again(out, seed), dies_before_the_model if cut_off else None, 9 if cut_off else 0)

        reference = self.base / ("train-reference" if cut_off else "train") / NAME
        self.done(again(reference, 0))
        known = model_of(reference)

        def evaluate(folder: Path) -> Words:
            held = ("--suite", "heldout", "--heldout", self.held, "--run", run)
            return ["evaluate", folder, *held, "--json"]

        def loss(said: Said) -> Any:
            return json.loads(said.out)["heldout"]["domains"]

        measured = loss(self.done(evaluate(reference)))
        return Kind(
            {
                "evaluate": Reading(evaluate, lambda f, said: loss(said) == measured),
                "again": Reading(lambda f: again(f, 0), lambda f, _: model_of(f) == known, writes=True),
            },
            lambda file: ["again"] if cut_off else ["evaluate", "again"],
            model_of,
            made,
            again,
        )

    def sweep(self, name: str, kind: Kind, every: int, skipped: int) -> tuple[Counter[str], list[str], int]:
        """Damage every file of a kind of folder.

        Args:
            name: Name of the kind.
            kind: The kind.
            every: Take each n-th damage alone.
            skipped: Damages counted before.

        Returns:
            What came of them, what is amiss, and damages counted in all.
        """
        counts: Counter[str] = Counter()
        faults: list[str] = []
        whole, other = self.base / name / NAME, self.base / f"{name}-other" / NAME
        kind.made(whole, 0)
        kind.made(other, 1)
        files = sorted(path for path in whole.rglob("*") if path.is_file() and path.suffix not in (".lock", ".html"))
        folder = self.base / "damaged" / NAME
        for path in files:
            file = path.relative_to(whole).as_posix()
            another = (other / file).read_bytes() if (other / file).is_file() else None
            for what, content in damages(path.read_bytes(), another):
                skipped += 1
                if skipped % every:
                    continue
                for reader in kind.reads(file):
                    reading = kind.readings[reader]
                    for place in (folder.parent, self.elsewhere):
                        shutil.rmtree(place, ignore_errors=True)
                    shutil.copytree(whole, folder)
                    self.elsewhere.mkdir()
                    (folder / file).write_bytes(content)
                    said = call(reading.words(folder), self.logs)
                    right = said.code != 0 or reading.right(folder, said)
                    counts[f"{reader}: {'refused' if said.code else 'right'}"] += 1
                    wrong = [verdict(said, right)]
                    if said.code and wrong == [None]:
                        wrong += [f"{said.sentence} And {one}" for one in self.after_refusal(whole, folder, file)]
                        if reading.writes:
                            wrong.append(self.cured(kind, folder))
                    for one in filter(None, wrong):
                        faults.append(f"{name}, {file}, {what}, {reader}: {one}")
                        print(faults[-1], flush=True)
        print(f"{name}: {len(files)} files, {dict(counts)}", flush=True)
        return counts, faults, skipped

    def after_refusal(self, whole: Path, folder: Path, damaged: str) -> list[str]:
        """Files that a refused command has taken or changed."""
        found = []
        for path in whole.rglob("*"):
            name = path.relative_to(whole).as_posix()
            if not path.is_file() or name == damaged or name.startswith(_MADE_ANEW) or name.endswith(_MADE_ANEW):
                continue
            there = folder / name
            if not there.is_file() or there.read_bytes() != path.read_bytes():
                found.append(f"{name} is gone or another.")
        return found

    def cured(self, kind: Kind, folder: Path) -> str | None:
        """What is wrong with starting again in a folder that was refused; None where it comes to the answer."""
        said = call([*kind.again(folder, 0), "--overwrite"], self.logs)
        if said.code:
            return f"with --overwrite it ended with {said.code}: {said.err[-600:]}"
        return None if kind.readings["again"].right(folder, said) else "another answer with --overwrite"


_TRAINING = (
    *("--set", "training.lr=1e-3", "--set", "training.batch_size=2", "--set", "training.max_steps=4"),
    *("--set", "training.save_steps=2"),
)
_VOUCHING = ("selection.json", "trace.parquet")
_MADE_ANEW = ("study.", "excluded-rows", "heldout-rows", ".lock", "config.yaml", "plan.json", "report.html")
"""What a command writes before it reads the rest, from what it was given."""


def void(_: object) -> None:
    """Nothing, of something."""


def dies_at_line(number: int) -> Callable[[], None]:
    """Makes a study's process die when it would write so manieth a line of its ledger."""

    def before() -> None:
        from spice_select.study.ledger import Ledger

        real, left = Ledger.add, [number]

        def add(self: Ledger, outcome: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            real(self, outcome)

        Ledger.add = add

    return before


def dies_before_the_model() -> None:
    """Makes a training's process die when its last checkpoint is there and its model is not."""
    from spice_select.training.place import TrainFolder

    TrainFolder.publish = lambda self, save: os._exit(9)


def verdict(said: Said, same: bool) -> str | None:
    """What is wrong; None where the answer is right or refused in one sentence."""
    if "Traceback" in said.err or said.code in (1, 70) or said.code < 0:
        return f"exit {said.code}: {said.err[-1200:]}"
    if said.code == 0:
        return None if same else "another answer, and no word of it"
    if said.code == 3 and " no choice: " in said.err:
        # An arm of a study that cannot choose is told of, and the others go on.
        return None
    if said.code not in (2, 3, 4) or not said.sentence:
        return f"exit {said.code} and no one sentence: {said.err[-600:]}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take each n-th damage alone")
    parser.add_argument("--kinds", default="run,pools,loss,study,study-cut-off,train,train-cut-off")
    parser.add_argument("--rows", type=int, default=16)
    asked = parser.parse_args(arguments)
    preload()
    sweep = Sweep(asked.folder.absolute(), asked.rows)
    total, faults, number = 0, [], 0
    for name, kind in sweep.kinds(asked.kinds.split(",")):
        counts, found, number = sweep.sweep(name, kind, asked.every, number)
        total += sum(counts.values())
        faults += found
    print(f"{total} damaged folders read, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
