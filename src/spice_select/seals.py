"""Records that vouch for themselves and for the files beside them: JSON with a checksum, and SHA-256 of each file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spice_select.errors import StoreCorrupt, StoreError
from spice_select.files import sha256_file

CHECKSUM = "checksum"
FILES = "files"
"""Field of a record that holds the SHA-256 of each file that belongs to it, by its path from the record's folder."""


def sealed(content: Mapping[str, Any]) -> str:
    """Indented JSON that ends with a checksum of all before it."""
    return json.dumps({**content, CHECKSUM: _checksum(content)}, indent=2, ensure_ascii=False) + "\n"


def opened(text: str | bytes, origin: str, *, version: int, what: str, remedy: str) -> dict[str, Any]:
    """The content of a sealed record without its checksum; one that was written before there were any passes.

    Args:
        text: The JSON.
        origin: Where it comes from, for messages.
        version: The schema version that can be read.
        what: What it should be, as in ``record of a run``.
        remedy: What to do, as in ``select again to write a new one``.

    Raises:
        StoreError: It is none, or of another schema version.
        StoreCorrupt: It is not what was written.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(text)
    except (ValueError, RecursionError):
        raise StoreError(f"{origin} is no {what}; {remedy}.") from None
    found = content.pop(CHECKSUM, None)
    if found is not None and found != _checksum(content):
        raise StoreCorrupt(f"{origin} is not what was written (its checksum differs); restore it, or {remedy}.")
    there = content.get("schema_version", version)
    if isinstance(there, int) and not isinstance(there, bool) and there != version:
        raise StoreError(
            f"{origin} has schema version {there}, and this program reads version {version}; use the version of "
            f"spice-select that wrote it, or {remedy}."
        )
    return content


def kept(path: Path) -> dict[str, Any] | None:
    """The content of a sealed result that is kept to save work; None where there is none, or none that can be trusted.

    Args:
        path: The file.
    """
    try:
        return opened(path.read_bytes(), str(path), version=1, what="kept result", remedy="take it away")
    except (OSError, StoreError):
        return None


def require_files(record: Path, content: Mapping[str, Any], *, remedy: str) -> None:
    """See whether the files of a record are those that were written with it.

    Args:
        record: Path of the record.
        content: Its content; without a list of files, as records have that are older than such lists, any will do.
        remedy: What to do.

    Raises:
        StoreCorrupt: One is missing or has changed.
    """
    files = content.get(FILES)
    for name, digest in files.items() if isinstance(files, dict) else ():
        path = record.parent / str(name)
        if not path.resolve().is_relative_to(record.parent.resolve()):
            raise StoreCorrupt(f"{record} names a file outside its folder; {remedy}.")
        try:
            reason = None if sha256_file(path) == digest else "its SHA-256 differs"
        except FileNotFoundError:
            raise StoreCorrupt(f"{path} is missing; restore it, or {remedy}.") from None
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
        if reason is not None:
            raise StoreCorrupt(f"{path} is not what was written ({reason}); restore it, or {remedy}.")


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
