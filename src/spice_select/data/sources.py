"""Files, folders, several of them, or Hub ids to one set of rows."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from spice_select.data.columns import concat_tables
from spice_select.data.hub import HubId, parse_hub_id, read_hub
from spice_select.data.readers import KNOWN_FORMATS, file_format, read_stamped
from spice_select.data.rows import RowSet, Source, fingerprint_rows
from spice_select.data.stamps import Stamp
from spice_select.errors import ConfigError, DataError

__all__ = ["RowSet", "Source", "load_rows"]

# JSON files beside rows that hold no rows: what datasets, models and runs leave.
_NO_ROWS = {
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "selection.json", "manifest.json",
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
}  # fmt: skip
_SPLITS = {"train": "train", "training": "train", "test": "test", "validation": "validation", "valid": "validation",
           "val": "validation", "dev": "validation", "eval": "validation"}  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """A table before it gets a unique name."""

    name: str
    origin: str
    format: str
    table: pa.Table
    revision: str | None = None
    mapped: tuple[Stamp, ...] = ()


def load_rows(sources: Sequence[str | Path], *, split: str = "train", limit: int | None = None) -> RowSet:
    """Read all sources, in the order given.

    A source that exists on disk is a file or a folder, whatever it looks like. Otherwise ``owner/name``, with
    ``:config`` and ``@revision`` where wanted, is a Hub id; a text that starts with ``.``, ``/`` or ``~``, that holds
    more than one slash, or ends like a data file is a path that is missing.

    Args:
        sources: Files (json, jsonl, csv, parquet, arrow; text also as .gz), folders of them, and Hub ids.
        split: Split of a Hub data set, of ``save_to_disk`` folders, and of folders whose files are named by split.
        limit: Only the first this many rows of all sources together; sources beyond it are not read.

    Raises:
        ConfigError: No source.
        DataError: A source is missing or cannot be read.
    """
    if not sources:
        raise ConfigError("data.sources is empty; give a file, a folder or a Hub id (owner/name).")
    if limit is not None and limit < 1:
        raise ConfigError(f"data.limit is {limit}; give at least 1, or leave it out for all rows.")
    parts: list[_Part] = []
    notes: list[str] = []
    for given in sources:
        left = None if limit is None else limit - sum(len(part.table) for part in parts)
        if left == 0:
            notes.append(f"data.limit {limit} was reached before {given}, which is not read.")
            continue
        parts += _read_source(str(given), split, left, notes)
    tables = [part.table for part in parts]
    named = [
        Source(name, part.origin, part.revision, part.format, len(part.table), _fingerprint(part),
               tuple(part.table.column_names))
        for name, part in zip(_unique_names(part.name for part in parts), parts, strict=True)
    ]  # fmt: skip
    rows = RowSet.of(named, tables)
    notes += [
        f"Column {name!r} has values of different types in different sources; the output keeps them as JSON."
        for name in rows.conflicting_columns()
    ]
    mapped = tuple(one for part in parts for one in part.mapped)
    return RowSet(rows.sources, rows.tables, rows.source_ids, rows.places, tuple(notes), mapped)


def _fingerprint(part: _Part) -> str:
    """Digest of a table's rows; as this reads every value, none that cannot be read is met later."""
    try:
        return fingerprint_rows(part.table)
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        LookupError,
        RecursionError,
        SystemError,
        pa.ArrowException,
    ) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{part.origin} holds values that cannot be read ({reason}); write or fetch it again."
        ) from None


def _unique_names(names: Iterable[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        number, candidate = 2, name
        while candidate in found:
            number, candidate = number + 1, f"{name}-{number}"
        found.append(candidate)
    return found


def _read_source(given: str, split: str, limit: int | None, notes: list[str]) -> list[_Part]:
    try:
        path = Path(given).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"The source {given[:200]!r} cannot be looked for ({reason.lower()}); mend its name.") from None
    if is_folder:
        return _read_folder(path, given, split, limit, notes)
    if is_there:
        table, mapped = read_stamped(path, limit)
        return [_Part(_stem(path), given, file_format(path) or "", table, mapped=mapped)]
    hub_id = None if _looks_like_path(given) else parse_hub_id(given)
    if hub_id is None:
        raise _missing(path, given)
    return [_read_hub(hub_id, given, split, limit)]


def _read_hub(hub_id: HubId, given: str, split: str, limit: int | None) -> _Part:
    table, commit = read_hub(hub_id, split, limit)
    if len(table) == 0:
        raise DataError(f"Split {split!r} of the Hub data set {hub_id.name!r} has no rows; give another data.split.")
    return _Part(hub_id.name, given, "hub", table, commit or hub_id.revision)


def _looks_like_path(given: str) -> bool:
    bare = given.split("@", 1)[0]
    return (
        bare.startswith((".", "/", "~"))
        or bare.count("/") != 1
        or (os.sep != "/" and os.sep in bare)
        or file_format(Path(bare)) is not None
    )


def _missing(path: Path, given: str) -> DataError:
    parent = path.parent
    if not parent.is_dir():
        nearest = next(folder for folder in parent.parents if folder.is_dir())
        names = [str(nearest / name) for name in _near(parent.relative_to(nearest).parts[0], nearest)]
        detail = f"there is no folder {parent}"
    else:
        names = [str(parent / name) for name in _near(path.name, parent)]
        detail = "neither a file nor a folder of that name is there"
    hint = f"did you mean {' or '.join(names)}?" if names else "give a file, a folder or a Hub id (owner/name)."
    return DataError(f"The source {given!r} cannot be found ({detail}); {hint}")


def _near(name: str, folder: Path) -> list[str]:
    try:
        entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []
    lowered = {entry.lower(): entry for entry in reversed(entries)}
    return [lowered[found] for found in difflib.get_close_matches(name.lower(), list(lowered), n=2, cutoff=0.6)]


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name[: name.rindex(".")] if "." in name[1:] else name


def _read_folder(path: Path, given: str, split: str, limit: int | None, notes: list[str]) -> list[_Part]:
    name = path.resolve().name or given
    files = _folder_files(path, split, notes)
    tables: list[pa.Table] = []
    used: list[Path] = []
    stamps: list[tuple[Stamp, ...]] = []
    for file in files:
        left = None if limit is None else limit - sum(map(len, tables))
        if left == 0:
            break
        table, mapped = read_stamped(file, left)
        tables.append(table)
        stamps.append(mapped)
        used.append(file)
    if len({frozenset(table.column_names) for table in tables}) == 1:
        formats = "+".join(sorted({file_format(file) or "" for file in used}))
        table = tables[0]
        if len(tables) > 1:
            table = concat_tables(tables)[0].replace_schema_metadata(tables[0].schema.metadata)
        return [_Part(name, given, formats, table, mapped=tuple(one for mapped in stamps for one in mapped))]
    # Files of different columns are different sources: each gets a schema of its own.
    return [
        _Part(f"{name}/{_stem(file)}", str(file), file_format(file) or "", table, mapped=mapped)
        for file, table, mapped in zip(used, tables, stamps, strict=True)
    ]


def _folder_files(path: Path, split: str, notes: list[str]) -> list[Path]:
    if (path / "dataset_dict.json").is_file():
        splits = _listed(path / "dataset_dict.json", "splits", lambda item: item)
        if split not in splits:
            raise DataError(f"{path} has no split {split!r}; give data.split as one of {', '.join(splits)}.")
        path = path / split
    if (path / "state.json").is_file():
        return [path / name for name in _listed(path / "state.json", "_data_files", lambda item: item["filename"])]
    chosen = sorted((path / "data").glob("train-*.parquet"))
    if chosen and (path / "trace.parquet").is_file():
        return chosen  # the output of a run: its rows, and neither its trace nor its gradients
    files = sorted(
        (file for file in path.rglob("*") if _may_hold_rows(file.relative_to(path)) and file.is_file()),
        key=lambda file: file.relative_to(path).parts,
    )
    if not files:
        raise DataError(f"The folder {path} holds no file of rows; give a folder with {KNOWN_FORMATS} files.")
    labels = [_split_of(file.relative_to(path)) for file in files]
    wanted = _SPLITS.get(split, split)
    if wanted in labels and any(label not in (None, wanted) for label in labels):
        kept = [file for file, label in zip(files, labels, strict=True) if label in (None, wanted)]
        notes.append(f"{path}: {len(files) - len(kept)} files of other splits than {split!r} are passed over.")
        return kept
    return files


def _listed(path: Path, key: str, name: Callable[[Any], Any]) -> list[str]:
    """Names of files or folders that stand in a file beside them; none of them may lead out of the folder."""
    try:
        names = [name(item) for item in json.loads(path.read_text(encoding="utf-8"))[key]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        names = [""]
    if not all(isinstance(one, str) and one not in ("", ".", "..") and not set(one) & set("/\\\0") for one in names):
        raise DataError(f"{path} is damaged, so the data set beside it cannot be read; save it again.")
    return names


def _may_hold_rows(relative: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return not hidden and relative.name not in _NO_ROWS and file_format(relative) is not None


def _split_of(relative: Path) -> str | None:
    """The split that a file's name or folder says, as in ``test/rows.csv`` or ``validation-00000-of-00001.parquet``."""
    for part in (relative.name.split(".")[0], *reversed(relative.parts[:-1])):
        for word in re.split(r"[-_ .]", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return None
