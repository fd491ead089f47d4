"""Damaged forms of whole inputs: by bytes, by text, and by the structure of JSON, CSV and NumPy headers.

Every mutation is a pure function of a random generator and the seeds, so that a campaign can be repeated and one input
of it made again by its number.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Mutator = Callable[[random.Random, Sequence[bytes]], bytes]

DEEP = 10_000
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x0D, 0x22, 0x5C, 0x7B, 0x5B)
_LENGTHS = (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)

STRINGS = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff tail",
    "\ufeff",
    "\u202eright to left\u202c",
    "\u2028",
    "\x1b[2J\x1b]0;title\x07",
    "x" * 300,
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "~",
    "C:\\nul",
    "<script>alert(1)</script>",
    "{{ 7*7 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "=cmd|' /C calc'!A0",
    "!!python/object/apply:os.system ['true']",
    "`id`",
    "| a | b |",
    "---\na: b",
    "__proto__",
    "NaN",
    "null",
    "true",
    "1e999",
    "-1",
    "10%",
    "-5%",
    "1e400%",
    "99999999999999999999 tokens",
    "𝟙𝟚",
    "١٢",
    "٣%",
    "1_000",
    "[" * 3000,
    '{"a":' * 3000,
    "<|im_end|>",
    "\ue000\uf8ff",
    "assistant",
    "role",
)
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 255, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400,
    0.5, -0.0, 1e-320, 1e308, -1e308, 5e-324,
)  # fmt: skip


def flip_bits(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def set_bytes(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 2, 4))):
        if content:
            content[rng.randrange(len(content))] = rng.choice(_INTERESTING)
    return bytes(content)


def truncate(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    content = rng.choice(seeds)
    return content[: rng.randrange(len(content) + 1)]


def cut_out(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    content = rng.choice(seeds)
    begin = rng.randrange(len(content) + 1)
    return content[:begin] + content[min(len(content), begin + rng.choice((1, 2, 8, 64))) :]


def repeat_part(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    content = rng.choice(seeds)
    begin = rng.randrange(len(content) + 1)
    part = content[begin : begin + rng.choice((1, 4, 32, 256))]
    return content[:begin] + part * rng.choice((2, 3, 50)) + content[begin:]


def splice(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    first, second = rng.choice(seeds), rng.choice(seeds)
    return first[: rng.randrange(len(first) + 1)] + second[rng.randrange(len(second) + 1) :]


def set_length(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A number of four or eight bytes, as lengths and offsets are written, becomes a telling one."""
    content = bytearray(rng.choice(seeds))
    size = rng.choice((4, 8))
    if len(content) >= size:
        at = rng.randrange(len(content) - size + 1)
        value = rng.choice(_LENGTHS) % (1 << (8 * size))
        content[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
    return bytes(content)


def nothing(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    return rng.choice((b"", b"\n", b"\x00" * 64, b" ", b"PK\x03\x04" + b"\x00" * 64, b"\x80\x04.", rng.randbytes(64)))


def unchanged(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    return rng.choice(seeds)


BYTES: tuple[Mutator, ...] = (flip_bits, set_bytes, truncate, cut_out, repeat_part, splice, set_length, nothing)


def insert_text(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    content = rng.choice(seeds)
    at = rng.randrange(len(content) + 1)
    piece = rng.choice(STRINGS).encode("utf-8", "surrogatepass")
    return content[:at] + piece + content[at:]


def insert_bytes(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    content = rng.choice(seeds)
    at = rng.randrange(len(content) + 1)
    return (
        content[:at] + rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\r", b"\xe2\x80\xa8")) + content[at:]
    )


def recode(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """The same text in another encoding, or with a byte order mark."""
    content = rng.choice(seeds)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return content
    return text.encode(rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7")), "replace")


def line_ends(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    return rng.choice(seeds).replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b"", b"\x0b", b"\xe2\x80\xa8")))


def replace_word(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    words = rng.choice(seeds).split(b" ")
    words[rng.randrange(len(words))] = rng.choice(STRINGS).encode("utf-8", "surrogatepass")
    return b" ".join(words)


def replace_number(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    content = rng.choice(seeds)
    places = [at for at, byte in enumerate(content) if 0x30 <= byte <= 0x39]
    if not places:
        return content
    at = rng.choice(places)
    return content[:at] + str(rng.choice(NUMBERS)).encode() + content[at + 1 :]


def deep_text(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    content = rng.choice(seeds)
    at = rng.randrange(len(content) + 1)
    opening, closing = rng.choice(
        ((b"[", b"]"), (b'{"a":', b"}"), (b"- ", b""), (b"{{", b"}}"), (b"(", b")"), (b"&a [", b"]"))
    )
    depth = rng.choice((50, 101, 1_000, DEEP))
    return content[:at] + opening * depth + rng.choice((b"1", b"")) + closing * depth + content[at:]


def swap_lines(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    lines = rng.choice(seeds).split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    action = rng.randrange(3)
    if action == 0:
        lines[a], lines[b] = lines[b], lines[a]
    elif action == 1:
        lines.insert(a, lines[b])
    else:
        del lines[a]
    return b"\n".join(lines)


TEXT: tuple[Mutator, ...] = (
    flip_bits, set_bytes, truncate, cut_out, repeat_part, splice, nothing,
    insert_text, insert_text, insert_bytes, recode, line_ends, replace_word, replace_number, deep_text, swap_lines,
)  # fmt: skip


def _value(rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(STRINGS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice((None, True, False))
    if kind == 3:
        return rng.choice((float("nan"), float("inf"), float("-inf")))
    if kind == 4:
        return rng.choice(([], {}, [[]], [{}], {"": {}}, [None], [1, "a", None, {}]))
    if kind == 5:
        found: Any = rng.choice((1, "leaf", None))
        for _ in range(rng.choice((3, 99, 100, 101, 150))):
            found = [found] if rng.random() < 0.5 else {"a": found}
        return found
    if kind == 6:
        return {rng.choice(STRINGS): rng.choice(NUMBERS) for _ in range(3)}
    return [rng.choice(STRINGS) for _ in range(rng.choice((1, 2, 40)))]


def mutate_value(rng: random.Random, value: Any) -> Any:
    """A JSON value with one thing in it changed: its type, a key, an item."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        action = rng.randrange(10)
        changed = dict(value)
        if action <= 5:
            changed[key] = mutate_value(rng, value[key])
        elif action == 6:
            del changed[key]
        elif action == 7:
            changed[rng.choice(STRINGS)] = changed.pop(key)
        elif action == 8:
            changed[rng.choice(STRINGS)] = _value(rng)
        else:
            changed[key] = value[rng.choice(list(value))]
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        changed = list(value)
        action = rng.randrange(8)
        if action <= 4:
            changed[at] = mutate_value(rng, value[at])
        elif action == 5:
            del changed[at]
        elif action == 6:
            changed.insert(at, rng.choice((_value(rng), value[at])))
        else:
            changed = changed * rng.choice((2, 5))
        return changed
    if isinstance(value, bool | int | float) and rng.random() < 0.5:
        return rng.choice(NUMBERS)
    return _value(rng)


def dumped(rng: random.Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, None, 2)))
    return text.encode("utf-8", "surrogatepass")


def json_value(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    try:
        value = json.loads(rng.choice(seeds))
    except (ValueError, RecursionError):
        return rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = mutate_value(rng, value)
    return dumped(rng, value)


def json_line(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    lines = rng.choice(seeds).split(b"\n")
    at = rng.randrange(len(lines))
    try:
        value = json.loads(lines[at])
    except (ValueError, RecursionError):
        return b"\n".join(lines)
    for _ in range(rng.choice((1, 1, 2))):
        value = mutate_value(rng, value)
    lines[at] = json.dumps(value, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def duplicate_key(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    content = rng.choice(seeds)
    places = [at for at in range(len(content) - 1) if content[at : at + 2] == b'{"']
    if not places:
        return content
    at = rng.choice(places) + 1
    end = content.find(b'"', at + 1) + 1
    return content[:at] + content[at:end] + b": 1, " + content[at:]


JSON: tuple[Mutator, ...] = (json_value,) * 10 + (duplicate_key, *TEXT)
LINES: tuple[Mutator, ...] = (json_line,) * 10 + (duplicate_key, *TEXT)


def npy_header(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """An array file whose header tells another story than its numbers."""
    content = rng.choice(seeds)
    array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    shape = rng.choice(
        ("()", "(0,)", "(-1,)", f"({2**62},)", f"({2**31}, {2**31})", f"({10**15}, 8)", "(3.5,)", "'abc'",
         str(array.shape[::-1]), str((array.size,)), "(" * 200 + ")" * 200, "-" * 5000 + "1", f"({10**30},)")
    )  # fmt: skip
    dtype = rng.choice(
        (repr(np.lib.format.dtype_to_descr(array.dtype)), "'|O'", "'<f8'", "'<U1000000000'", "'|V99999999999'", "[]",
         "[('row', '<i8')]", "[('row', '|O')]", "'garbage'", "None", "'>f4'", "[('a', '<f4', (2000000000,))]")
    )  # fmt: skip
    order = rng.choice(("False", "True", "None", "'x'"))
    if rng.random() < 0.5:
        shape = rng.choice((shape, str(array.shape)))
        dtype = rng.choice((dtype, repr(np.lib.format.dtype_to_descr(array.dtype))))
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if rng.random() < 0.1:
        text = rng.choice(("{", "[1, 2", "{'descr': '''", "__import__('os')", "{'descr': '<f4'}", "a b c", "{1: 2}"))
    body = (text + "\n").encode()
    version = rng.choice((1, 1, 1, 2, 3, 9))
    length = struct.pack("<H", len(body) % 65536) if version == 1 else struct.pack("<I", len(body))
    return b"\x93NUMPY" + bytes((version, 0)) + length + body + array.tobytes()


NPY: tuple[Mutator, ...] = (npy_header,) * 8 + BYTES


def zipped(mutators: Sequence[Mutator]) -> tuple[Mutator, ...]:
    """Mutations of a text within its gzip file, and of the gzip file itself."""

    def inside(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
        plain = [gzip.decompress(seed) for seed in seeds]
        return gzip.compress(rng.choice(mutators)(rng, plain), 1, mtime=0)

    def several(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
        return rng.choice(seeds) * 2

    return (inside,) * 6 + (several, *BYTES)
