"""Files of row numbers: rows already in hand, or rows to leave out."""

from __future__ import annotations

import json

from spice_select.errors import ConfigError, DataError
from spice_select.files import read_regular


def read_row_numbers(name: str, rows: int, *, field: str) -> list[int]:
    """Row numbers from a JSON list, or from a text file with one number a line.

    Args:
        name: The file.
        rows: How many rows there are; numbers run from 0.
        field: The setting that names the file, for messages.

    Raises:
        DataError: The file cannot be read or holds something else.
        ConfigError: A number that no row has, or that stands twice.
    """
    try:
        text = read_regular(name).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise DataError(f"{field} names {name}, which cannot be read ({reason}); name a file of row numbers.") from None
    try:
        numbers = json.loads(text) if text.lstrip().startswith("[") else [int(line) for line in text.split()]
    except (ValueError, RecursionError):
        numbers = None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise DataError(f"{field} names {name}, which must hold a JSON list of row numbers, or one number a line.")
    wrong = next((number for number in numbers if not 0 <= number < rows), None)
    if wrong is not None:
        raise ConfigError(f"{field} names row {wrong} in {name}, and rows run from 0 to {rows - 1}; mend the file.")
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"{field} names a row twice in {name}; mend the file.")
    return numbers
