"""Files of rows, and what their columns mean."""

from __future__ import annotations

import gzip
import io
import json
import math
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spice_select.data.encode import encode_rows
from spice_select.data.rows import RowSet
from spice_select.data.schema import detect_schemas, normalised_messages, to_conversation, unusable_reason
from spice_select.data.sources import load_rows
from tests.fuzz.base import Format, Wrong
from tests.fuzz.mutators import BYTES, JSON, LINES, STRINGS, TEXT, zipped

ROWS: list[dict[str, Any]] = [
    {"instruction": "Add 2 and 3.", "input": "", "output": "5", "id": 7, "score": 0.5, "tags": ["a", "b"]},
    {
        "instruction": "Héllo?",
        "input": "x",
        "output": "Grüße 🙂",
        "id": None,
        "score": 1,
        "tags": [],
        "extra": {"k": 1},
    },
    {"instruction": "Q", "input": "y\nz", "output": 'said "no"', "id": 2**60, "score": -1e-9, "tags": None},
]
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                  {"role": "assistant", "content": "Hello"}], "tools": '[{"name": "f", "parameters": {}}]'},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
                  {"role": "assistant", "content": None, "tool_calls": [
                      {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, {"b": 2}]}'}}]},
                  {"role": "tool", "name": "f", "content": "sunny"},
                  {"role": "assistant", "content": "Sunny.", "weight": 0}, {"role": "assistant", "content": "Yes."}]},
]  # fmt: skip
SHARED: list[dict[str, Any]] = [
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
                       {"from": "function_call", "value": '{"name": "f", "arguments": {"x": "y"}}'},
                       {"from": "observation", "value": "[1]"}, {"from": "gpt", "value": "Done"}], "system": "S"},
    {"conversations": '[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]', "system": None},
]  # fmt: skip
HISTORY: list[dict[str, Any]] = [
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"prompt": "plain", "completion": "text", "history": [["q", "a"], ["q2", "a2"]], "system": "s"},
    {"text": "whole text"},
]


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


SEED_ROWS = (ROWS, CHATS, SHARED, HISTORY)


class _File(Format):
    """A file of rows that is loaded, of which every value is read and the schema looked for."""

    suffix = ".jsonl"

    def read(self, content: bytes) -> None:
        path = self.folder / f"rows{self.suffix}"
        self.place(path, content)
        rows = load_rows([path])
        self.check(content, rows)
        use_rows(rows)

    def check(self, content: bytes, rows: RowSet) -> None:
        """Compare with what another reader finds in the same bytes."""


def use_rows(rows: RowSet) -> None:
    """What a run does with rows before a model sees them."""
    schemas = detect_schemas(rows)
    for index, row in enumerate(rows):
        schema = schemas[rows.source_ids[index]]
        conversation = to_conversation(row, schema)
        if (conversation is None) != (unusable_reason(row, schema) is not None):
            raise Wrong("a row is usable and has a reason not to be")
        if conversation is not None:
            json.dumps(normalised_messages(conversation))
    taken = rows.take(range(len(rows)))
    if len(taken) != len(rows) or rows.fingerprint != rows.fingerprint:
        raise Wrong("rows were lost")
    pq.write_table(taken, io.BytesIO())


def _plain(value: Any) -> Any:
    """Values as any reader of JSON may hold them: halves of characters replaced, no number that is none."""
    if isinstance(value, str):
        return "".join("\ufffd" if 0xD800 <= ord(one) <= 0xDFFF else one for one in value)
    # Numbers beyond the largest double are read as infinite, which a column of JSON cannot hold either.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    return value


def _same(found: Any, expected: Any) -> bool:
    if found == expected:
        return True
    if isinstance(found, str):
        # A column that no type holds is kept as JSON text.
        try:
            return _same(_plain(json.loads(found)), expected)
        except ValueError:
            return False
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_same(found[name], expected[name]) for name in found)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    return False


def require_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Two accounts of the same rows agree, absent and null being one at the top."""
    if len(found) != len(expected):
        raise Wrong(f"{len(found)} rows were read, and there are {len(expected)}")
    for ours, theirs in zip(map(_plain, found), map(_plain, expected), strict=True):
        names = ours.keys() | theirs.keys()
        # Objects without keys are rows of one column that is empty.
        if not all(_same(ours.get(name), theirs.get(name)) for name in names):
            raise Wrong(f"{ours!r} was read, and there is {theirs!r}"[:300])


def _each_line(content: bytes) -> list[dict[str, Any]]:
    text = content.decode("utf-8-sig")
    if text.lstrip(" \t\r\n").startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


class JsonLines(_File):
    """Rows as lines of JSON."""

    name = "jsonl"
    mutators = LINES
    weight = 8.0

    def make_seeds(self) -> list[bytes]:
        return [*map(_lines, SEED_ROWS), json.dumps(ROWS).encode()]

    def check(self, content: bytes, rows: RowSet) -> None:
        require_rows(list(rows), _each_line(content))


class Json(_File):
    """Rows as one JSON text."""

    name = "json"
    suffix = ".json"
    mutators = JSON
    weight = 6.0

    def make_seeds(self) -> list[bytes]:
        wrapped = json.dumps({"version": "1", "data": ROWS, "other": [1, 2]}).encode()
        return [json.dumps(rows, indent=1).encode() for rows in SEED_ROWS] + [wrapped, _lines(ROWS)]

    def check(self, content: bytes, rows: RowSet) -> None:
        try:
            found = json.loads(content.decode("utf-8-sig"))
        except ValueError:
            found = _each_line(content)
        if isinstance(found, dict):
            lists = [item for item in found.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
            found = lists[0] if len(lists) == 1 else [found]
        require_rows(list(rows), found)


class Csv(_File):
    """Rows as comma separated values."""

    name = "csv"
    suffix = ".csv"
    mutators = TEXT
    weight = 6.0

    def make_seeds(self) -> list[bytes]:
        return [
            b'instruction,input,output\nAdd,"1, 2",3\n"said ""no""","two\nlines",x\n',
            b"prompt\tcompletion\r\na\tb\r\nc\td\r\n",
            b"question;answer\n1;2\n3;4\n",
            b'messages\n"[{""role"": ""user"", ""content"": ""a""}, {""role"": ""assistant"", ""content"": ""b""}]"\n',
        ]


class GzipLines(_File):
    """Lines of JSON in a gzip file."""

    name = "jsonl.gz"
    suffix = ".jsonl.gz"
    mutators = zipped(LINES)
    weight = 2.0

    def make_seeds(self) -> list[bytes]:
        return [gzip.compress(_lines(rows), mtime=0) for rows in SEED_ROWS]

    def check(self, content: bytes, rows: RowSet) -> None:
        require_rows(list(rows), _each_line(gzip.decompress(content)))


class GzipCsv(_File):
    """Comma separated values in a gzip file."""

    name = "csv.gz"
    suffix = ".csv.gz"
    mutators = zipped(TEXT)

    def make_seeds(self) -> list[bytes]:
        return [gzip.compress(b'instruction,output\nAdd,"1, 2"\nb,c\n', mtime=0)]


def _tables() -> list[pa.Table]:
    import datetime
    import decimal

    plain = pa.Table.from_pylist(ROWS[:1])
    chats = pa.Table.from_pylist([{"messages": CHATS[0]["messages"]}] * 5)
    odd = pa.table(
        {
            "text": pa.array(["a", "b"]),
            "when": pa.array([datetime.datetime(2020, 1, 1), None], pa.timestamp("ns", tz="Europe/Paris")),
            "long": pa.array([datetime.timedelta(days=1), None], pa.duration("us")),
            "day": pa.array([datetime.date(2020, 1, 1), None], pa.date32()),
            "number": pa.array([decimal.Decimal("1.5"), None], pa.decimal128(10, 2)),
            "bytes": pa.array([b"\x00\xff", None], pa.binary()),
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
            "half": pa.array([None, 3.5], pa.float16()),
        }
    )
    features = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}}}}
    held = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(['{"a": 1}', "[1, 2]"]))
    noted = pa.table({"text": pa.array(["a", "b"]), "json": held}).replace_schema_metadata(
        {b"huggingface": json.dumps(features).encode()}
    )
    return [plain, chats, odd, noted]


class Parquet(_File):
    """Rows as parquet."""

    name = "parquet"
    suffix = ".parquet"
    mutators = BYTES
    weight = 5.0

    def make_seeds(self) -> list[bytes]:
        found = []
        for number, table in enumerate(_tables()):
            sink = io.BytesIO()
            pq.write_table(table, sink, compression=("snappy", "none", "zstd", "none")[number])
            found.append(sink.getvalue())
        return found


class Arrow(_File):
    """Rows as Arrow, in the file form and the stream form."""

    name = "arrow"
    suffix = ".arrow"
    mutators = BYTES
    weight = 9.0

    def make_seeds(self) -> list[bytes]:
        found = []
        for table in _tables():
            for new in (pa.ipc.new_file, pa.ipc.new_stream):
                sink = io.BytesIO()
                with new(sink, table.schema) as writer:
                    writer.write_table(table, max_chunksize=2)
                found.append(sink.getvalue())
        return found


class SavedState(Format):
    """``state.json`` of a folder that ``datasets`` saved."""

    name = "state.json"
    mutators = JSON

    def make_seeds(self) -> list[bytes]:
        self.saved = self.folder / "saved"
        self.saved.mkdir()
        (self.folder / "secret.jsonl").write_text('{"text": "not of this data set"}\n')
        with (
            pa.OSFile(str(self.saved / "data-0.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, _tables()[1].schema) as out,
        ):
            out.write_table(_tables()[1])
        return [
            json.dumps({"_data_files": [{"filename": name}], "_split": "train", "_format_type": None}).encode()
            for name in ("data-0.arrow", "../secret.jsonl", str(self.folder / "secret.jsonl"), "data-0.arrow\x00")
        ]

    def read(self, content: bytes) -> None:
        self.place((self.saved / "state.json"), content)
        rows = load_rows([self.saved])
        if any("not of this data set" in str(row) for row in rows):
            raise Wrong("a file outside the folder was read")


class SavedSplits(Format):
    """``dataset_dict.json`` of a folder that ``datasets`` saved."""

    name = "dataset_dict.json"
    mutators = JSON

    def make_seeds(self) -> list[bytes]:
        self.saved = self.folder / "saved"
        (self.saved / "train").mkdir(parents=True)
        (self.saved / "train" / "rows.jsonl").write_text('{"text": "a"}\n')
        return [json.dumps({"splits": splits}).encode() for splits in (["train", "test"], ["train"], ["test"])]

    def read(self, content: bytes) -> None:
        self.place((self.saved / "dataset_dict.json"), content)
        use_rows(load_rows([self.saved]))


class Shapes(Format):
    """Rows of any shape through template and tokenizer, to token ids and masks."""

    name = "row-shapes"
    mutators = LINES
    weight = 1.5

    def make_seeds(self) -> list[bytes]:
        from spice_select.config import DataConfig
        from tests.encoding import byte_level

        self.tokenizer, self.config = byte_level(), DataConfig(max_length=64)
        nested = [{"messages": json.dumps(CHATS[1]["messages"]), "tools": "[" * 10_000}]
        texts = [{"prompt": value, "completion": value} for value in STRINGS]
        return [*map(_lines, SEED_ROWS[:3]), _lines(nested), *(_lines([row]) for row in texts if _encodes(row))]

    def read(self, content: bytes) -> None:
        path = self.folder / "rows.jsonl"
        self.place(path, content)
        rows = load_rows([path])
        encoded = encode_rows(rows, self.tokenizer, self.config)
        if len(encoded.status) != len(rows):
            raise Wrong("rows were lost")
        use_rows(rows)


def _encodes(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


class Template(Format):
    """Chat templates that a user gives, or that come with a tokenizer."""

    name = "chat-template"
    mutators = TEXT
    weight = 1.0

    def make_seeds(self) -> list[bytes]:
        from tests.encoding import CHATML, assistant, byte_level, system, talk, user

        self.tokenizer = byte_level()
        self.talks = [
            talk(user("Hi"), assistant("Hello")),
            talk(system("S"), user("a"), assistant("b"), user("c"), assistant("d")),
        ]
        return [text.encode() for text in (
            CHATML,
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
            "{%- set ns = namespace(x=0) -%}{% for m in messages %}{% set ns.x = ns.x + 1 %}"
            "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content | trim }}"
            "{% endfor %}"
            "{{ strftime_now('%Y') }}{{ tools | tojson(indent=2) if tools }}{{ dict(a=1) }}",
            "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}",
            "{{ messages.__init__.__globals__ }}", "{{ cycler.__init__.__globals__.os.system('true') }}",
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
            "{{ 'x' * 10000000000 }}", "{{ 10 ** 1000000000 }}", "{{ '%99999999999d' % 1 }}",
            "{{ range(100000) | list | string | length }}",
            "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}{{ messages }}",
            "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
            "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{{ 'a' | center(10000000000) }}",
            "{{ '{0.__class__}'.format(messages) }}", "{{ '{:>10000000000}'.format(1) }}",
        )]  # fmt: skip

    def read(self, content: bytes) -> None:
        from spice_select.config import DataConfig
        from spice_select.data.encode import encode_conversations

        path = self.folder / "template.jinja"
        self.place(path, content)
        encode_conversations(self.talks, self.tokenizer, DataConfig(chat_template=str(path), max_length=64))


class RowNumbers(Format):
    """Files of row numbers, as ``selection.initial`` and ``selection.exclude`` name them."""

    name = "row-numbers"
    mutators = (*JSON, *TEXT)
    weight = 6.0

    def make_seeds(self) -> list[bytes]:
        return [b"[0, 3, 7]", b"0\n3\n7\n", b"[]", b"9", b"[true, 1]", b"[1.0]", b"0 0", b"10", b"-1"]

    def read(self, content: bytes) -> None:
        from spice_select.data.row_numbers import read_row_numbers

        path = self.folder / "numbers.json"
        self.place(path, content)
        found = read_row_numbers(str(path), 10, field="selection.exclude")
        if len(set(found)) != len(found) or not all(0 <= number < 10 for number in found):
            raise Wrong(f"row numbers {found!r}")


FORMATS = (
    JsonLines, Json, Csv, GzipLines, GzipCsv, Parquet, Arrow, SavedState, SavedSplits, Shapes, Template, RowNumbers,
)  # fmt: skip
