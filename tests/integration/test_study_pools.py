"""An arm that chooses in pools: its run is kept, and made anew where its settings or rows have changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spice_select.config import RunConfig, resolve
from spice_select.data.sources import load_rows
from spice_select.demo import demo_model_path, demo_rows
from spice_select.reporter import Silent
from spice_select.study import pooled
from tests.integration.rows import write_jsonl


def test_the_label_of_an_arm_says_nothing_of_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", demo_rows(seed=3)[:16])
    excluded, known = tmp_path / "excluded.json", tmp_path / "arm" / ".known"
    runs = []

    def counted(config: RunConfig, reporter: Silent) -> None:
        runs.append(config)
        real(config, reporter)

    real = pooled.run_selection
    monkeypatch.setattr(pooled, "run_selection", counted)

    def picked(out: list[int], **selection: float | str) -> tuple[int, ...]:
        excluded.write_text(json.dumps(out))
        config = resolve(
            {
                "data": {"sources": [str(rows)]},
                "model": {"name": str(demo_model_path())},
                "schedule": {"kind": "pools", "pool_size": 8, "interval": 1},
                "selection": {"budget": 4, "exclude": str(excluded), **selection},
                "output": {"folder": str(tmp_path / "arm" / "4")},
            }
        )
        found, tokens, seconds = pooled.picked_in_pools(config, known, load_rows([rows]).fingerprint, Silent())
        assert len(found) == 4 and tokens > 0 and seconds > 0
        return found

    first = picked([0, 1])
    assert picked([0, 1]) == first and len(runs) == 1
    # Other rows are held out, under the same name of the file.
    other = picked([0, first[0]])
    assert len(runs) == 2 and first[0] not in other
    # A folder of an earlier version, which has not told its candidates, is judged by what was picked.
    known.unlink()
    assert picked([0, first[0]]) == other and len(runs) == 2
    assert not {other[1], other[2]} & set(picked([other[1], other[2]])) and len(runs) == 3
    # Other settings under the same label.
    picked([other[1], other[2]], normalize="unit", conflict_weight=0.0)
    assert len(runs) == 4 and runs[-1].selection.normalize == "unit"
