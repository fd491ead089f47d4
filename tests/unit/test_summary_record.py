"""The record of a run: what is written reads back equal, and what is no record is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from spice_select.analysis.certificate import Certificate
from spice_select.analysis.record import BudgetRecord, ObjectiveRecord, SelectionRecord, SourceRecord
from spice_select.analysis.summary import summarise
from spice_select.errors import StoreCorrupt, StoreError


class Picked:
    indices = np.array([2, 0])
    gains = np.array([1.5, 0.5])
    conflicts = np.array([0.0, 0.25])


def record() -> SelectionRecord:
    return SelectionRecord(
        n=4,
        usable=3,
        k=2,
        objective=ObjectiveRecord(
            fisher="exact",
            alpha=0.125,
            alpha_asked="auto",
            conflict_weight=0.1,
            penalty="absolute",
            reference="selected",
            hinge=0.0,
            normalize="sqrt_tokens",
        ),
        budget=BudgetRecord(asked="50%", rows=2),
        information=2.0,
        certificate=Certificate(
            value=0.9, information=2.0, upper_bound=2.2, budget=2, prefix=0, prefixes=(0, 1, 2), penalised=True
        ),
        stop_reason="budget",
        summary=summarise(
            Picked(),
            lengths=[3, 4, 5, 6],
            squared_norms=[1.0, 2.0, np.nan, 4.0],
            sources=["a", "a", "b\u2028", "b\u2028"],
        ),
        loop="dense",
        timings={"selection": 0.25},
        versions={"torch": "2.13.0"},
        sources=(SourceRecord(name="a", origin="a.jsonl", format="jsonl", rows=2, fingerprint="0" * 64),),
        notes=("one",),
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "selection.json"
    record().write(path)
    assert SelectionRecord.read(path) == record()
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema_version"] == 1
    assert content["certificate"]["value"] == 0.9
    assert content["budget"]["asked"] == "50%"


@pytest.mark.parametrize("asked", [12, 0.1, "10%", "50000 tokens", None])
def test_the_budget_comes_back_as_it_was_asked(asked: int | float | str | None) -> None:
    before = record().model_copy(update={"budget": BudgetRecord(asked=asked, rows=2)})
    after = SelectionRecord.from_json(before.to_json())
    assert after.budget.asked == asked
    assert type(after.budget.asked) is type(asked)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema_version": 1}', "\x00"])
def test_no_record(tmp_path: Path, content: str) -> None:
    path = tmp_path / "selection.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(StoreError, match="no record of a run"):
        SelectionRecord.read(path)


@pytest.mark.parametrize("version", [0, 2, 9])
def test_a_record_of_another_version_names_it(version: int) -> None:
    content = json.dumps({"schema_version": version, "picks": []})
    with pytest.raises(StoreError, match=f"has schema version {version}, and this program reads version 1"):
        SelectionRecord.from_json(content)


def test_a_record_without_a_checksum_is_read_and_one_that_was_changed_is_not() -> None:
    content = json.loads(record().to_json())
    del content["checksum"]
    assert SelectionRecord.from_json(json.dumps(content)) == record()
    with pytest.raises(StoreCorrupt, match="checksum differs"):
        SelectionRecord.from_json(record().to_json().replace('"seed": 0', '"seed": 1'))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        SelectionRecord.read(tmp_path / "selection.json")


def test_unknown_fields_are_refused() -> None:
    content = json.loads(record().to_json())
    content["colour"] = "red"
    del content["checksum"]
    with pytest.raises(StoreError, match="at colour"):
        SelectionRecord.from_json(json.dumps(content))


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        record().k = 3
