"""Whatever JSON rows hold, reading gives it back, and so does the written data set."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spice_select.data.columns import concat_tables, infer_type, table_rows, to_array
from spice_select.data.rows import RowSet, Source
from spice_select.data.sources import load_rows
from spice_select.export.card import code_span, escape_markdown
from spice_select.export.columns import messages_array

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8
)
names = st.sampled_from(["a", "b", "é", "answer"])
rows_of_json = st.lists(st.dictionaries(names, values, max_size=4), min_size=1, max_size=8)


def _padded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


@given(rows_of_json.filter(any))
@settings(max_examples=150)
def test_json_and_lines_of_json_give_the_rows_back(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines, array = Path(folder, "rows.jsonl"), Path(folder, "rows.json")
        lines.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        array.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
        one, two = load_rows([lines]), load_rows([array])
        assert list(one) == _padded(rows)
        assert list(two) == _padded(rows)
        assert one.fingerprint == two.fingerprint


@given(st.lists(st.lists(values, min_size=1, max_size=5), min_size=1, max_size=4))
def test_tables_of_any_types_can_stand_one_below_the_other(columns: list[list[Any]]) -> None:
    import pyarrow as pa

    tables = [pa.table({"x": to_array(column)}) for column in columns]
    together, _ = concat_tables(tables)
    assert [row["x"] for row in table_rows(together)] == [value for column in columns for value in column]


@given(st.lists(values, min_size=1, max_size=6))
def test_a_plain_type_holds_all_values(column: list[Any]) -> None:
    import pyarrow as pa

    kind = infer_type(column)
    if kind is not None:
        assert pa.array(column, kind).to_pylist() == column


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 3))
def test_take_and_subset_agree(indices: list[int], parts: int) -> None:
    import pyarrow as pa

    edges = np.linspace(0, 31, parts + 1).astype(int)
    tables = [pa.table({"n": np.arange(a, b), f"only{a}": np.arange(a, b)}) for a, b in itertools.pairwise(edges)]
    sources = [Source(str(n), "", None, "jsonl", len(table), "", ()) for n, table in enumerate(tables)]
    rows = RowSet.of(sources, tables)
    assert rows.take(indices).column("n").to_pylist() == indices if indices else len(rows.take(indices)) == 0
    assert [row["n"] for row in rows.subset(indices)] == indices
    assert [rows[index]["n"] for index in indices] == indices


turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": text},
        optional={"name": text, "tool_calls": st.lists(st.dictionaries(text, scalars, max_size=2), max_size=2)},
    ),
    max_size=4,
)


@given(st.lists(turns, min_size=1, max_size=4))
@settings(max_examples=60)
def test_messages_of_any_shape_come_back_with_their_keys(conversations: list[list[dict[str, Any]]]) -> None:
    import pyarrow as pa

    table = pa.table({"messages": messages_array(conversations)})
    assert [row["messages"] for row in table_rows(table)] == conversations
    features = datasets.Features.from_arrow_schema(table.schema)
    assert set(features) == {"messages"}


@given(st.text(max_size=30))
def test_escaped_text_is_one_line_without_markup(value: str) -> None:
    escaped = escape_markdown(value)
    assert "\n" not in escaped
    assert not set("<>*_[]`|#") & set(re.sub(r"\\.", "", escaped))
    span = code_span(value)
    fence = re.match("`+", span)
    assert fence is not None
    assert span.endswith(fence[0])
    inner = span[len(fence[0]) : -len(fence[0])]
    assert all(len(run) != len(fence[0]) for run in re.findall("`+", inner))
