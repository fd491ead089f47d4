"""Held-out rows of a study: out of the pool or of files, with their copies, whatever the gradients' loss is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spice_select.config import RunConfig, resolve
from spice_select.demo import demo_model_path, demo_rows
from spice_select.pool import excluded_rows, read_pool
from spice_select.reporter import Clock, Silent
from spice_select.study.heldout import HELDOUT, held_out
from tests.integration.rows import write_jsonl


def settings(pool: Path, loss: str, **training: Any) -> RunConfig:
    return resolve(
        {
            "data": {"sources": [str(pool)]},
            "model": {"name": str(demo_model_path())},
            "gradients": {"loss": loss},
            "training": training,
        }
    )


@pytest.mark.parametrize("loss", ["response", "all"])
@pytest.mark.parametrize("files", [False, True])
def test_copies_of_held_out_rows_stay_out_whatever_is_measured(tmp_path: Path, loss: str, files: bool) -> None:
    rows = [dict(one) for one in {row["output"] + row["input"]: row for row in demo_rows(seed=3)[:60]}.values()][:12]
    pool_file = write_jsonl(tmp_path / "rows.jsonl", rows + rows)
    held_file = write_jsonl(tmp_path / "held.jsonl", rows[2:5])
    config = settings(pool_file, loss, **({"heldout": [str(held_file)]} if files else {}))
    pool = read_pool(config, Silent(), Clock())
    resolved, held = held_out(config, pool, None if files else 3, tmp_path / "out", Silent(), Clock())
    chosen = [2, 3, 4] if files else json.loads((tmp_path / "out" / HELDOUT).read_text())
    there = np.flatnonzero(excluded_rows(resolved, pool)).tolist()
    assert there == sorted({row % 12 + place for row in chosen for place in (0, 12)})
    # What is measured is the responses, whatever the gradients are of.
    examples = [held.rows.encoded.example(index) for index in range(len(held.rows))]
    assert len(examples) == 3 and all(0 < one.labels_mask.sum() < len(one.input_ids) for one in examples)
