"""A few damaged inputs of every format, and every input that once failed; the long form is ``python -m tests.fuzz``."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.fuzz.base import READ, REFUSED, Format
from tests.fuzz.campaign import FOUND, found_folder
from tests.fuzz.formats import FORMATS

SEED = "small"
SLOW = {"checkpoint.json": 2, "checkpoint weights": 2, "chat-template": 6, "row-shapes": 6, "source-names": 8}
"""Inputs of formats whose one input takes long; of all others there are eight beyond the seeds."""


@pytest.mark.parametrize("make", FORMATS, ids=lambda one: one.name)
def test_damage_is_answered_or_refused(make: type[Format], tmp_path: Path) -> None:
    format = make(tmp_path / "format")
    outcomes = set()
    with warnings.catch_warnings():
        # Parsers of headers and of YAML warn of nonsense on the way to refusing it.
        warnings.simplefilter("ignore")
        for number in range(SLOW.get(make.name, min(len(format.seeds), 8) + 8)):
            outcomes.add(format.outcome(format.input(SEED, number)))
        for path in sorted(found_folder(make.name).glob("*.bin")):
            outcomes.add(format.outcome(path.read_bytes()))
    assert outcomes <= {READ, REFUSED}


def test_every_found_input_belongs_to_a_format() -> None:
    known = {found_folder(one.name).name for one in FORMATS}
    assert {path.name for path in FOUND.iterdir()} <= known
    assert len(known) == len(FORMATS)
