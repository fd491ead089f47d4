"""Files that a trainer loads as they stand: rows in its form, with the entry that names them where it wants one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spice_select.errors import ConfigError, OutputError
from spice_select.export.chosen import Chosen
from spice_select.export.formats import (
    Converted,
    Format,
    axolotl,
    llama_factory,
    marks_turns,
    trl_messages,
    trl_prompt_completion,
)
from spice_select.files import atomic_file, make_folder, write_text

DATASET_INFO = "dataset_info.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Exported:
    """What an export has written.

    Attributes:
        rows: Rows written.
        files: The files, the rows first.
        name: Name of the data set, for trainers that go by one; else empty.
        notes: Sentences that say what is good to know.
        warning: One sentence that counts what the form could not hold, or empty.
    """

    rows: int
    files: tuple[Path, ...]
    name: str = ""
    notes: tuple[str, ...] = ()
    warning: str = ""


def dataset_name(asked: str | None, folder: Path) -> str:
    """The name that files and entries bear: what was asked for, or what the run's folder is called.

    Args:
        asked: ``--name``; refused where it is no plain name, as it becomes one of a file.
        folder: The run's folder, whose name is made plain.

    Raises:
        ConfigError: The name has characters that a file or an entry must not have.
    """
    if asked is None:
        return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name).strip(".-_")[:96] or "selection"
    if not _NAME.fullmatch(asked):
        raise ConfigError(
            f"--name {asked!r} cannot name a data set; use up to 96 letters, digits, '.', '_' and '-', a letter or "
            "digit first."
        )
    return asked


def write_trl(chosen: Chosen, output: Path, form: Format, *, overwrite: bool = False) -> Exported:
    """Write one jsonl file for TRL's SFTTrainer.

    Args:
        chosen: The rows.
        output: File to write.
        form: One of the two TRL forms.
        overwrite: Replace a file that is there.

    Raises:
        ConfigError: The output is called something else than .jsonl.
        OutputError: The file exists, or cannot be written.
    """
    if output.suffix.lower() != ".jsonl":
        raise ConfigError(f"--output {output} must end in .jsonl for --format {form.value}; name such a file.")
    converted = trl_messages(chosen) if form is Format.TRL_MESSAGES else trl_prompt_completion(chosen)
    _require_rows(converted, form)
    refuse_existing([output], overwrite)
    make_folder(output.parent)
    _write_rows(output, converted.rows)
    return Exported(len(converted.rows), (output,), "", converted.notes, converted.warning)


def write_llama_factory(
    chosen: Chosen, folder: Path, name: str, *, last_only: bool = False, overwrite: bool = False
) -> Exported:
    """Write a data file and its entry in ``dataset_info.json``, whose other entries stay as they are.

    Args:
        chosen: The rows.
        folder: LLaMA-Factory's ``dataset_dir``.
        name: Name of the data set there.
        last_only: The selection was by the loss of the last turn alone.
        overwrite: Replace a data file or an entry of this name.

    Raises:
        OutputError: The file or the entry exists, ``dataset_info.json`` cannot be read, or a file cannot be written.
    """
    _refuse_file(folder)
    converted = llama_factory(chosen)
    _require_rows(converted, Format.LLAMA_FACTORY)
    data, info = folder / f"{name}.jsonl", folder / DATASET_INFO
    entries = _read_entries(info)
    entry = llama_factory_entry(data.name, text=bool(chosen.texts))
    refuse_existing([data], overwrite)
    if name in entries and entries[name] != entry and not overwrite:
        raise OutputError(
            f"{info} has another entry {name!r}; choose another --name, or replace the entry with --overwrite."
        )
    make_folder(folder)
    _write_rows(data, converted.rows)
    # The entry comes last: a name that LLaMA-Factory knows has its rows.
    content = json.dumps({**entries, name: entry}, indent=2, ensure_ascii=False) + "\n"
    write_text(Path(os.path.realpath(info)), content)
    notes = list(converted.notes)
    if chosen.texts:
        notes.append("The rows are text without turns: train with stage: pt.")
    elif last_only:
        notes.append("The rows were chosen by their last response: train with mask_history: true.")
    return Exported(len(converted.rows), (data, info), name, tuple(notes), converted.warning)


def llama_factory_entry(file_name: str, *, text: bool = False) -> dict[str, Any]:
    """The entry of ``dataset_info.json`` for a file of ours, every tag that its rows use spelt out."""
    if text:
        return {"file_name": file_name, "columns": {"prompt": "text"}}
    return {
        "file_name": file_name,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system", "tools": "tools"},
        "tags": {
            "role_tag": "from",
            "content_tag": "value",
            "user_tag": "human",
            "assistant_tag": "gpt",
            "observation_tag": "observation",
            "function_tag": "function_call",
            "system_tag": "system",
        },
    }


def write_axolotl(
    chosen: Chosen, folder: Path, name: str, *, last_only: bool = False, overwrite: bool = False
) -> tuple[Exported, str]:
    """Write a data file, and beside it the ``datasets:`` stanza that names it.

    Args:
        chosen: The rows.
        folder: Folder to write.
        name: Name of both files.
        last_only: Train the last turn of each row alone, as the selection did.
        overwrite: Replace files that are there.

    Returns:
        What was written, and the stanza.

    Raises:
        OutputError: A file exists, or cannot be written.
    """
    _refuse_file(folder)
    converted = axolotl(chosen, last_only=last_only)
    _require_rows(converted, Format.AXOLOTL)
    data, config = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    refuse_existing([data, config], overwrite)
    make_folder(folder)
    entry = axolotl_entry(data.absolute(), chosen, last_only=last_only)
    stanza = yaml.safe_dump({"datasets": [entry]}, sort_keys=False, allow_unicode=True, width=1000)
    _write_rows(data, converted.rows)
    write_text(config, stanza)
    return Exported(len(converted.rows), (data, config), name, converted.notes, converted.warning), stanza


def axolotl_entry(path: Path, chosen: Chosen, *, last_only: bool = False) -> dict[str, Any]:
    """One entry of axolotl's ``datasets:`` for a file of ours."""
    entry: dict[str, Any] = {"path": str(path), "ds_type": "json"}
    if chosen.texts:
        return {**entry, "type": "completion", "field": "text"}
    marked = marks_turns(chosen, last_only=last_only)
    present = {key for chat in chosen.chats for turn in chat.messages for key in turn}
    mapped = [key for key in ("role", "content", "name", "tool_calls", "tool_call_id") if key in present]
    entry |= {
        "type": "chat_template",
        "field_messages": "messages",
        "message_property_mappings": {key: key for key in mapped},
        "roles_to_train": [] if marked else ["assistant"],
        "train_on_eos": "turn",
    }
    if any(chat.tools for chat in chosen.chats):
        entry["field_tools"] = "tools"
    if marked:
        entry["message_field_training"] = "train"
    return entry


def refuse_existing(files: Iterable[Path], overwrite: bool) -> None:
    """Refuse to write over files that are there, unless asked to.

    Raises:
        OutputError: One exists, or is no file.
    """
    for file in files:
        if file.is_dir():
            raise OutputError(f"The output {file} is a folder; name a file.")
        if not overwrite and os.path.lexists(file):
            raise OutputError(f"The output {file} exists; name another, or replace it with --overwrite.")


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"The output {folder} is a file; this format writes a folder: name one.")


def _require_rows(converted: Converted, form: Format) -> None:
    if not converted.rows:
        raise OutputError(f"No row can be written as {form.value}: {converted.warning} Choose another --format.")


def _read_entries(info: Path) -> dict[str, Any]:
    if not info.exists():
        return {}
    try:
        entries = json.loads(info.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{info} cannot be read ({error}); mend it, or name another folder.") from None
    if not isinstance(entries, dict):
        raise OutputError(f"{info} holds no JSON object; mend it, or name another folder.")
    return entries


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
