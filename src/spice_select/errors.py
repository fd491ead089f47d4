"""Every error a user can meet, in one tree.

::

    SpiceError                    base; carries the exit code of the command line
    ├── ConfigError (ValueError)  2  a setting, flag or argument that cannot be used
    │   └── BudgetError           2  a budget of nothing, or of more than there is
    ├── DataError                 3  rows that cannot be read or used
    ├── ModelError                3  a model or tokenizer that cannot be read or used
    ├── StoreError                3  a gradient store that cannot be read
    │   └── StoreCorrupt          3  a shard whose bytes are not those that were written
    ├── OutputError               4  an output that cannot be written
    │   ├── StoreMismatch         4  an output that belongs to other settings
    │   └── OutputBusy            4  an output that another run is writing
    └── ResourceError             4  memory or disk that ran out

Each message is one sentence: the field, its value, and what to do. Values come from files of strangers, so a message
holds no character that a terminal acts on.
"""

import re

_LONGEST = 1500
"""Characters of a message; a value that is longer than that says nothing more."""
# Controls, escapes, halves of characters, marks that turn the direction of text, and ends of lines of all kinds.
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str, *, keep: str = "") -> str:
    """Text without a character that a terminal acts on: each is written as an escape, as JSON writes it.

    Args:
        text: Anything, such as a value of a file.
        keep: Characters that stay, such as a line feed.
    """
    return _ACTING.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(one: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(one, f"\\u{ord(one):04x}")


class SpiceError(Exception):
    """Base of every error that is the user's to mend.

    Attributes:
        exit_code: status that the command line exits with.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        text = printable(str(message))
        half = _LONGEST // 2
        super().__init__(text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}")


class ConfigError(SpiceError, ValueError):
    """A setting, flag or argument that cannot be used."""

    exit_code = 2


class BudgetError(ConfigError):
    """A budget of nothing, or of more rows than can be chosen."""


class DataError(SpiceError):
    """Rows that cannot be read or used."""

    exit_code = 3


class ModelError(SpiceError):
    """A model or tokenizer that cannot be read or used."""

    exit_code = 3


class RowsChanged(DataError):
    """Rows that are others than when the same command first read them."""


class StoreError(SpiceError):
    """A gradient store that cannot be read."""

    exit_code = 3


class StoreCorrupt(StoreError):
    """A shard whose bytes are not those that were written."""


class OutputError(SpiceError):
    """An output that cannot be written."""

    exit_code = 4


class StoreMismatch(OutputError):
    """An output folder that belongs to other settings; the difference is named."""


class OutputBusy(OutputError):
    """An output folder that another process is writing."""


class ResourceError(SpiceError):
    """Memory, disk or another resource that ran out."""

    exit_code = 4


def told(error: Exception) -> tuple[list[str], str]:
    """What another process needs to raise the same: names of the error's classes, the nearest first; its sentence."""
    return [kind.__name__ for kind in type(error).__mro__], str(error)


def retold(kinds: list[str], sentence: str) -> SpiceError | None:
    """The error of this package that another process has :func:`told` of; None where it is no such."""
    for kind in kinds:
        known = globals().get(kind)
        if isinstance(known, type) and issubclass(known, SpiceError):
            return known(sentence)
    return None
