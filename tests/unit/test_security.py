"""What strangers write reaches no terminal, no folder outside, no memory without end, and no code."""

from __future__ import annotations

import gzip
import json
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spice_select.cli.console import ConsoleReporter, say
from spice_select.config import DataConfig, load_config
from spice_select.data import encode, json_files, template_limits, templates
from spice_select.data.conversation import Conversation
from spice_select.data.encode import encode_conversations
from spice_select.data.row_numbers import read_row_numbers
from spice_select.data.schema import detect_schema, to_conversation
from spice_select.data.sources import load_rows
from spice_select.data.templates import ChatTemplate
from spice_select.errors import ConfigError, DataError, ModelError, SpiceError
from spice_select.gradients.shards import map_array
from spice_select.paths import absolute
from spice_select.study.arms import parse_arms
from tests.encoding import CHATML, assistant, byte_level, talk, user

ACTING = "a\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp\u2028\ud800\x00b"


# --- terminals---


@pytest.mark.parametrize("text", [ACTING, "\r\n\tx", "\u200f\ufeff"])
def test_an_error_is_one_line_that_no_terminal_acts_on(text: str) -> None:
    said = str(DataError(f"The file {text} is bad; mend it."))
    assert said.isprintable() and len(said.splitlines()) == 1
    assert len(str(SpiceError("x" * 100_000))) < 2000


def test_what_is_printed_acts_on_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter() as reporter:
        reporter.stage(ACTING)
        reporter.note(ACTING)
        reporter.warn(ACTING)
    say(ACTING)
    say(json.dumps({"name": ACTING}, ensure_ascii=False))
    found = capsys.readouterr()
    for line in (*found.out.splitlines(), *found.err.splitlines()):
        assert line.isprintable(), line
    # JSON stays JSON of the same values.
    assert json.loads(found.out.splitlines()[-1]) == {"name": ACTING}


def test_names_of_columns_and_files_reach_the_terminal_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\u202e.jsonl"
    path.write_text(json.dumps({"\x1b[2J\x07": "x"}) + "\n")
    rows = load_rows([path])
    with pytest.raises(DataError) as caught:
        detect_schema(rows, 0)
    assert str(caught.value).isprintable()


# --- folders---


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "a/b.arrow", "a\x00", "", 5, None])
def test_a_saved_data_set_names_files_of_its_own_alone(tmp_path: Path, name: object) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    (tmp_path / "secret.arrow").write_bytes(b"secret")
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="is damaged"):
        load_rows([saved])


@pytest.mark.parametrize("label", ["..", "../x", "/etc/x", "a\x00b", "-x", "x" * 300, ".hidden", "a b"])
def test_an_arms_label_is_one_part_of_a_path(label: str) -> None:
    with pytest.raises(ConfigError):
        parse_arms(f"spice:label='{label}'", load_config())


@pytest.mark.parametrize("name", ["a" * 300, "b/" * 3000, "a\x00b", "~no-such-user/x", "\x00"])
def test_a_name_that_no_path_has_is_a_sentence(name: str) -> None:
    assert absolute(name) == name
    for read in (
        lambda: load_rows([name]),
        lambda: read_row_numbers(name, 5, field="selection.exclude"),
        lambda: encode_conversations([], byte_level(), DataConfig(chat_template=name)),
    ):
        with pytest.raises(SpiceError):
            read()


@pytest.mark.timeout(60)
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    for name in (str(pipe), "/dev/zero"):
        with pytest.raises(SpiceError):
            load_rows([name])
        with pytest.raises(SpiceError, match="pipe or a device"):
            read_row_numbers(name, 5, field="selection.exclude")
        with pytest.raises(SpiceError, match="pipe or a device"):
            load_config(Path(name))


# --- memory and time---


def test_a_gzip_file_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "FREELY_UNPACKED", 1 << 16)
    for name, content in (("rows.jsonl", b" " * (1 << 24)), ("rows.csv", b"a,b\n" + b"1,2\n" * (1 << 22))):
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match="unpacks to more than"):
            load_rows([path])


def test_a_parquet_file_of_more_rows_than_there_can_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": pa.nulls(50_000_000)}), path)
    assert path.stat().st_size < 500_000
    with pytest.raises(DataError, match="50,000,000 rows"):
        load_rows([path])


@pytest.mark.parametrize("form", ["[" * 10_000, "[" * 10_000 + "]" * 10_000, '{"a":' * 5_000 + "1" + "}" * 5_000])
def test_deep_json_is_refused_as_rows_and_text_within_them(tmp_path: Path, form: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": {form}}}\n')
    with pytest.raises(DataError):
        load_rows([path])
    path.write_text(json.dumps({"messages": form, "text": "a"}) + "\n" + json.dumps({"text": form}) + "\n")
    rows = load_rows([path])
    schema = detect_schema(rows, 0)
    assert [to_conversation(row, schema) is not None for row in rows] == [True, True]


@pytest.mark.parametrize("shape", ["(10000000000000,)", "(-1,)", "(1000000000000000000000000000000,)"])
@pytest.mark.parametrize("descr", ["'<f4'", "'|V0'", "'|O'", "[]", "'<U1000000000'"])
def test_an_array_of_a_giant_declared_size_takes_no_memory(tmp_path: Path, shape: str, descr: str) -> None:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path = tmp_path / "rows.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    with pytest.raises(ValueError):
        map_array(path, np.dtype("<f4"), (4,))


TALK = [talk(user("Hi"), assistant("Hello"))]
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "{{ '{0.__class__.__init__}'.format(messages) }}",
    "{{ messages.append('x') }}",
)


@pytest.mark.parametrize("text", ESCAPES)
def test_a_template_does_not_leave_its_sandbox(text: str) -> None:
    found = encode_conversations(TALK, byte_level(), DataConfig(chat_template=text))
    assert not found.usable.any()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set r = range(99999) %}{% for a in r %}{{ r | sum }}{% endfor %}",
        "{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
        "{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 10 ** 1000000000 }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ '%*d' % (10000000000, 1) }}",
        "{{ '%0*d' | format(10000000000, 1) }}",
        "{{ '{:{}}'.format(1, 10000000000) }}",
        "{{ ['a'] | map('indent', 10000000000) | list }}",
        "{{ lipsum(10000000000) }}",
        "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(400) }}",
    ],
)
def test_a_template_without_end_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        found = encode_conversations(TALK, byte_level(), DataConfig(chat_template=text))
        # A recursion that Python itself ends makes the row unusable, and no more.
        assert "macro" in text and not found.usable.any()
        raise ConfigError("data.chat_template")
    assert "data.chat_template" in str(caught.value)


def turns(count: int) -> Conversation:
    return talk(*(assistant(f"answer {at}") if at % 2 else user(f"question {at}") for at in range(count)))


CUBIC = (
    "{% for m in messages %}{% for _ in messages %}{% for _ in messages %}{% endfor %}{% endfor %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


def test_a_row_over_which_a_template_takes_too_many_steps_is_set_aside() -> None:
    rows = [turns(2), turns(60), turns(4), turns(58)]
    found = encode_conversations(rows, byte_level(), DataConfig(chat_template=CUBIC))
    assert found.usable.tolist() == [True, False, True, False]
    (failure,) = found.stats.failures
    assert (
        failure.reason == "the chat template does not take it (it takes more than 50,000 steps over one conversation)"
    )
    assert (failure.count, failure.first_row) == (2, 1)
    # What the others come to is as if the row had never been there.
    alone = encode_conversations([rows[0], rows[2]], byte_level(), DataConfig(chat_template=CUBIC))
    assert [found.example(row).digest for row in (0, 2)] == [alone.example(row).digest for row in (0, 1)]


def test_a_template_that_takes_too_many_steps_over_every_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"data\.chat_template' cannot be used: it takes more than 50,000 steps"):
        encode_conversations([turns(60)] * 2, byte_level(), DataConfig(chat_template=CUBIC))
    with pytest.raises(ModelError, match=r"tokenizer's chat template cannot be used: it takes more than 50,000 steps"):
        encode_conversations([turns(60)] * 2, byte_level(template=CUBIC), DataConfig())
    # A long pool is not gone through to its end for it.
    monkeypatch.setattr(encode, "_OVERRUNS", 3)
    seen = []
    with pytest.raises(ConfigError):
        encode_conversations((seen.append(at) or turns(60) for at in range(2000)), byte_level(),
                             DataConfig(chat_template=CUBIC))  # fmt: skip
    assert len(seen) <= 512


def test_a_template_that_looks_back_over_all_messages_takes_long_conversations() -> None:
    back = (
        "{% for m in messages %}{% set n = namespace(last=false) %}{% for o in messages %}"
        "{% if o.role == 'user' %}{% set n.last = loop.index0 %}{% endif %}{% endfor %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = encode_conversations([turns(240)], byte_level(), DataConfig(chat_template=back, max_length=100_000))
    assert found.usable.all() and int(found.response_tokens[0]) > 120


def test_all_renderings_of_a_conversation_have_a_bound_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MOST_STEPS_IN_ALL", 2000)
    found = encode_conversations([turns(2), turns(100)], byte_level(), DataConfig(max_length=100_000))
    assert found.usable.tolist() == [True, False]
    assert "steps in all over one conversation" in found.stats.failures[0].reason


def test_a_template_that_is_slow_ends_the_run_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a row takes is the machine's doing as well: rows must not come and go with it."""
    monkeypatch.setattr(template_limits, "MOST_SECONDS", -1.0)
    with pytest.raises(ConfigError, match="s over one conversation; give another"):
        encode_conversations([turns(2), turns(200)], byte_level(), DataConfig(chat_template=CHATML))


def test_a_long_conversation_has_as_much_more_time_as_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long row must not end a run that would take it on steps alone."""
    now = [0.0]
    monkeypatch.setattr(template_limits.time, "thread_time", lambda: now[0])
    environment = template_limits.LimitedEnvironment(extensions=[template_limits.Steps])
    steps = environment.extensions[template_limits.Steps.identifier]
    assert isinstance(steps, template_limits.Steps)
    for messages, seconds, slow in ((2, 1.9, False), (2, 2.1, True), (700, 60.0, False), (700, 90.0, True)):
        steps.start(template_limits.most_steps(messages))
        now[0] += seconds
        with pytest.raises(template_limits.TemplateSlow) if slow else nullcontext():
            for _ in range(100):
                steps.step()


@pytest.mark.parametrize(
    "shown",
    [
        "{{ n | tojson }}",
        "{{ n | string }}",
        "{{ missing | default(n) }}",
        "{{ '**%s**' | format(n) }}",
        "{{ '%s' % n }}",
        "{{ '{}'.format(n) }}",
        "{% macro show(value) %}{{ value }}{% endmacro %}{{ show(n) }}",
        "{% set kept = namespace(value=n) %}{{ kept.value }}",
        "{{ dict(value=n).get(n, n) }}",
    ],
)
def test_a_large_number_in_a_row_is_data(shown: str) -> None:
    """A time in the arguments of a tool is no length, whatever a template does with it."""
    template = ChatTemplate("{% set n = messages[0].time %}" + shown, {}, "setting")
    assert "1700000000" in template.render([{"role": "user", "time": 1_700_000_000}])


def test_damaged_arrow_is_refused_before_its_lengths_are_trusted(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": pa.array(["abc", "def"])})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    offsets = np.array([0, 3, 6], "<i4").tobytes()
    assert content.count(offsets) == 1
    for wrong in ([0, 2**31 - 1, 6], [0, -5, 6], [6, 3, 0], [0, 3, 2**30]):
        path = tmp_path / "rows.arrow"
        path.write_bytes(content.replace(offsets, np.array(wrong, "<i4").tobytes()))
        with pytest.raises(DataError):
            load_rows([path])
    path.write_bytes(content.replace(b"abcdef", b"ab\xff\xfeef"))
    with pytest.raises(DataError):
        load_rows([path])
