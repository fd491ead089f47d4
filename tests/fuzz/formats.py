"""Every format that is read."""

from __future__ import annotations

from tests.fuzz import command, records, rows, settings, stores
from tests.fuzz.base import Format

FORMATS: tuple[type[Format], ...] = (
    *rows.FORMATS, *settings.FORMATS, *stores.FORMATS, *records.FORMATS, *command.FORMATS
)  # fmt: skip
