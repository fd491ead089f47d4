"""Records that runs leave, and the files of benchmarks."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.base import Format, Wrong
from tests.fuzz.mutators import BYTES, JSON, LINES, TEXT, zipped


class RunRecord(Format):
    """``selection.json``."""

    name = "selection.json"
    mutators = JSON
    weight = 5.0

    def make_seeds(self) -> list[bytes]:
        from tests.browser.made_run import made_run

        return [made_run(60, 12, hostile=hostile).record.to_json().encode() for hostile in (False, True)]

    def read(self, content: bytes) -> None:
        from spice_select.analysis.record import SelectionRecord

        path = self.folder / "selection.json"
        self.place(path, content)
        record = SelectionRecord.read(path)
        if SelectionRecord.from_json(record.to_json()).to_json() != record.to_json():
            raise Wrong("a record does not come back")


class TraceFile(Format):
    """``trace.parquet``."""

    name = "trace.parquet"
    mutators = BYTES
    weight = 2.0

    def make_seeds(self) -> list[bytes]:
        from spice_select.run_folder import RunFolder
        from tests.browser.made_run import made_run

        self.record = made_run(60, 12, hostile=False).record
        self.run = RunFolder(self.folder)
        found = []
        for kind in (pa.int64(), pa.string(), pa.float64()):
            numbers = np.arange(12)
            table = pa.table(
                {"index": pa.array(numbers).cast(kind)}
                | {name: pa.array(numbers / 7) for name in ("gain", "base", "epsilon", "conflict", "score")}
            )
            pq.write_table(table, self.run.trace)
            found.append(self.run.trace.read_bytes())
        holes = pa.table({name: pa.array([None, 1.5] * 6) for name in ("index", "gain", "base", "epsilon", "conflict")})
        pq.write_table(holes, self.run.trace)
        return [*found, self.run.trace.read_bytes()]

    def read(self, content: bytes) -> None:
        from spice_select.analysis_of import _read_trace
        from spice_select.report.saved import read_trace

        self.place(self.run.trace, content)
        self.both(read_trace, self.run)
        self.both(_read_trace, self.run, self.record)

    def both(self, reader: Any, *given: Any) -> None:
        """A reader's answer has numbers alone."""
        found = reader(*given)
        if found.indices.dtype.kind not in "iu":
            raise Wrong(f"row numbers of {found.indices.dtype}")


class PoolFile(Format):
    """``pool.parquet``."""

    name = "pool.parquet"
    mutators = BYTES

    def make_seeds(self) -> list[bytes]:
        from spice_select.run_folder import RunFolder
        from tests.browser.made_run import made_run

        self.record = made_run(60, 12, hostile=False).record
        self.run = RunFolder(self.folder)
        table = pa.table({"tokens": np.arange(60), "usable": np.ones(60, bool), "score": np.arange(60) / 7})
        found = []
        for one in (table, table.drop(["usable"]), table.set_column(0, "tokens", pa.array(["x"] * 60))):
            pq.write_table(one, self.folder / "pool.parquet")
            found.append((self.folder / "pool.parquet").read_bytes())
        return found

    def read(self, content: bytes) -> None:
        from spice_select.report.saved import read_pool_file

        self.place((self.folder / "pool.parquet"), content)
        remarks: list[str] = []
        found = read_pool_file(self.run, self.record, remarks)
        if (found is None) != (len(remarks) == 1):
            raise Wrong("neither read nor refused")


class PickedRows(Format):
    """``data/train-*.parquet`` of a run, as the page reads the texts of the picks."""

    name = "data/*.parquet"
    mutators = BYTES

    def make_seeds(self) -> list[bytes]:
        from spice_select.run_folder import RunFolder
        from tests.browser.made_run import made_run
        from tests.fuzz.rows import CHATS

        self.run = RunFolder(self.folder)
        self.run.data.mkdir()
        self.path = self.run.data / "train-00000-of-00001.parquet"
        self.trace = made_run(60, 4, hostile=False).trace
        turns = pa.array([CHATS[0]["messages"]] * 4)
        found = []
        for column in ({"messages": turns}, {"text": pa.array(["a"] * 4)}, {"messages": pa.array([1, 2, 3, None])}):
            pq.write_table(pa.table(column), self.path)
            found.append(self.path.read_bytes())
        return found

    def read(self, content: bytes) -> None:
        from spice_select.report.saved import texts_of_picks

        self.place(self.path, content)
        texts_of_picks(self.run, self.trace)(self.trace.indices.tolist())


class LedgerLines(Format):
    """``ledger.jsonl`` of a study."""

    name = "ledger.jsonl"
    mutators = LINES
    weight = 3.0

    def make_seeds(self) -> list[bytes]:
        from spice_select.study.ledger import Ledger
        from tests.studies import outcome

        path = self.folder / "seed.jsonl"
        self.whole = [outcome("spice", 0, 1.5), outcome("random", 0, 1.6), outcome("random", 1, None, error="diverged")]
        for one in self.whole:
            Ledger(path).add(one)
        return [path.read_bytes()]

    def read(self, content: bytes) -> None:
        from spice_select.study.ledger import Ledger

        path = self.folder / "ledger.jsonl"
        self.place(path, content)
        found = Ledger(path).read()
        Ledger(path).add(self.whole[0])
        again = Ledger(path).read()
        if [one for one in again if one in found] != found or self.whole[0] not in again:
            # A line of the same training with other numbers stays the first.
            keys = {one.key for one in found}
            if self.whole[0].key not in keys or len(again) != len(found):
                raise Wrong("an addition changed what was there")


class StudyRecord(Format):
    """``study.json``, and the page made of it."""

    name = "study.json"
    mutators = JSON
    weight = 2.0

    def make_seeds(self) -> list[bytes]:
        from tests.studies import drawn, outcome, plan, study

        generator = np.random.default_rng(0)
        found = drawn({"spice": -0.05, "random": 0.0}, [0, 1, 2], generator=generator)
        made = study(
            plan(["spice", "random"], [0, 1, 2]), [outcome(arm, seed, one) for (arm, seed), one in found.items()]
        )
        return [made.model_dump_json().encode()]

    def read(self, content: bytes) -> None:
        from spice_select.analysis.study_record import Study
        from spice_select.report.study_csv import render_csv

        path = self.folder / "study.json"
        self.place(path, content)
        render_csv(Study.read(path))


class ContestRecord(Format):
    """``compare.json``."""

    name = "compare.json"
    mutators = JSON
    weight = 2.0

    def make_seeds(self) -> list[bytes]:
        from tests.contests import chosen, made_contest

        return [made_contest([chosen("spice", 0), chosen("random", 0)]).model_dump_json().encode()]

    def read(self, content: bytes) -> None:
        from spice_select.analysis.contest import Contest

        path = self.folder / "compare.json"
        self.place(path, content)
        Contest.read(path)


class Kept(Format):
    """What other commands keep and look for again: it is whole, or made anew, and never an error."""

    name = "kept results"
    mutators = JSON
    weight = 2.0

    def make_seeds(self) -> list[bytes]:
        # What is slow to import is here before the first input.
        from spice_select.evaluation import record
        from spice_select.training import place

        assert record and place
        return [
            b'{"schema_version": 1, "identity": "i", "result": {"name": "gsm8k", "metrics": {}}}',
            b'{"identity": "i", "numbers": null, "error": "diverged"}',
            b'{"forwards": 1, "backwards": 2, "tokens": 3, "backward_tokens": 4}',
            b'{"version": 1, "identity": "i", "pools": 0}\n',
            b'{"seed": 0, "training.lr": 1e-4}',
        ]

    def read(self, content: bytes) -> None:
        from spice_select.choices import Choices
        from spice_select.evaluation.harness import TaskResult
        from spice_select.evaluation.record import FILE, TASKS, read_evaluation, read_finished
        from spice_select.features import bench
        from spice_select.training.live_log import read_live
        from spice_select.training.place import TrainFolder
        from spice_select.training.record import TrainRecord
        from spice_select.trials import _read as read_trial

        tasks, methods = self.folder / TASKS, self.folder / "methods" / "spice"
        for folder in (tasks, methods, self.folder / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
        for path in (self.folder / FILE, tasks / "gsm8k.json", methods / "seed-0.json", self.folder / "live.jsonl",
                     self.folder / "checkpoints" / "plan.json", self.folder / "training.json"):  # fmt: skip
            self.place(path, content)
        read_evaluation(self.folder)
        read_finished(self.folder, "gsm8k", "i", TaskResult)
        Choices(self.folder / "methods").read("spice", 0, "i")
        read_trial(tasks / "gsm8k.json", "i")
        bench._read(tasks / "gsm8k.json")
        TrainFolder(self.folder)._planned()
        for reader in (lambda: read_live(self.folder, "i"), lambda: TrainRecord.read(self.folder / "training.json")):
            self.refused(reader)

    def refused(self, reader: Any) -> None:
        """A reader that answers or says one sentence."""
        from spice_select.errors import SpiceError
        from tests.fuzz.base import require_sentence

        try:
            reader()
        except SpiceError as error:
            require_sentence(str(error))


class _Benchmark(Format):
    """The file of one benchmark."""

    task = ""
    file = ""
    shots = 0
    mutators = LINES

    def make_seeds(self) -> list[bytes]:
        from tests.benchmarks_folder import write_benchmarks

        whole = write_benchmarks(self.folder / "whole")
        self.data = self.folder / "data"
        shutil.copytree(whole, self.data)
        self.path = self.data / self.file
        return [self.path.read_bytes()]

    def read(self, content: bytes) -> None:
        from spice_select.evaluation.local_data import read_parts

        self.place(self.path, content)
        for part in read_parts(self.task, self.data, self.shots):
            json.dumps(part.rows, allow_nan=True)


def _benchmark(task_: str, file_: str, mutators_: Any, shots_: int = 0) -> type[Format]:
    class One(_Benchmark):
        name = f"benchmark {file_.rpartition('/')[2]}"
        task, file, shots, mutators = task_, file_, shots_, mutators_
        weight = 1.0

    return One


FORMATS: tuple[type[Format], ...] = (
    RunRecord, TraceFile, PoolFile, PickedRows, LedgerLines, StudyRecord, ContestRecord, Kept,
    _benchmark("gsm8k", "gsm8k_test.jsonl", LINES, 2),
    _benchmark("mmlu", "mmlu/test/knots_test.csv", TEXT, 2),
    _benchmark("bbh", "bbh/bbh/sorting_words.json", JSON, 2),
    _benchmark("bbh", "bbh/cot-prompts/sorting_words.txt", TEXT, 2),
    _benchmark("humaneval", "HumanEval.jsonl.gz", zipped(LINES)),
    _benchmark("mbpp", "mbpp.jsonl", LINES),
    _benchmark("arc_challenge", "arc_challenge_test.json", JSON, 2),
    _benchmark("truthfulqa", "truthfulqa_mc.json", JSON),
    _benchmark("ifeval", "ifeval.jsonl", LINES),
)  # fmt: skip
