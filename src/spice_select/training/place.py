"""The folder of a training: whether it may be written, what it goes on from, and how the model comes into it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spice_select.errors import OutputError, StoreError, StoreMismatch
from spice_select.files import explained, make_folder, remove_file, remove_tree, sha256_file, sync_folder, write_text
from spice_select.training.checkpoints import disk_faults_told, last_whole
from spice_select.training.record import HELDOUT_ROWS, RECORD, TrainRecord, changed

CARD = "README.md"
_CHECKPOINTS = "checkpoints"
_PLAN = "plan.json"
_LOCK = ".lock"
_MODEL_FILES = (
    "adapter_model.safetensors", "adapter_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "additional_chat_templates",
)  # fmt: skip


class TrainFolder:
    """Paths of a training's folder.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        """What an unfinished training goes on from."""
        return self.path / _CHECKPOINTS

    @property
    def lock(self) -> Path:
        """Held while a training writes here."""
        return self.path / _LOCK

    @property
    def record(self) -> Path:
        """What was trained, written last."""
        return self.path / RECORD

    def check(self, sources: Sequence[str], model: str) -> None:
        """See whether a training may be written here; nothing is written yet.

        Args:
            sources: Where the rows come from.
            model: Folder or Hub id of the model that is trained.

        Raises:
            OutputError: The folder holds something else, cannot be written, or lies within what is read.
        """
        resolved = self.path.resolve()
        for name in sources:
            source = Path(name).expanduser()
            if source.is_dir() and (resolved == source.resolve() or source.resolve() in resolved.parents):
                raise OutputError(f"The output {self.path} lies in the source {name}; name a folder elsewhere.")
        if Path(model).is_dir() and Path(model).resolve() == resolved:
            raise OutputError(f"The output {self.path} is the model that is to be trained; name another folder.")
        existing = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not existing.is_dir():
            raise OutputError(f"The output {self.path} cannot be made because {existing} is a file; name a folder.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"The output {self.path} cannot be written (no permission on {existing}); name another.")
        if existing != self.path or self.record.is_file() or (self.checkpoints / _PLAN).is_file():
            return
        others = [entry for entry in self.path.iterdir() if entry.name not in (_LOCK, _CHECKPOINTS)]
        if self.checkpoints.exists():
            # Half a plan is of a training that was killed as it began.
            others += [entry for entry in self.checkpoints.iterdir() if not _half_written(entry.name)]
        if others:
            raise OutputError(f"The output {self.path} holds files that no training has left; name a new folder.")

    def finished(self, identity: Mapping[str, Any], *, overwrite: bool) -> TrainRecord | None:
        """The training that is here already; None where it is not, or is to be replaced.

        Args:
            identity: What this training depends on.
            overwrite: Start again.

        Raises:
            StoreMismatch: The folder belongs to another training; each difference is named.
            StoreCorrupt: The model's files are not those that were written.
        """
        if overwrite:
            return None
        try:
            found = TrainRecord.read(self.record) if self.record.is_file() else None
        except StoreError as error:
            raise StoreMismatch(str(error)) from None
        if found is not None:
            self._refuse_another(found.depends_on, identity)
            found.verify(self.record)
            if found.keeps_checkpoints is False:
                # Killed between its record and the end.
                self.remove_checkpoints()
            return found
        if last_whole(self.checkpoints) is not None:
            self._refuse_another(self._planned(), _of_weights(identity))
        return None

    def claim(self, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder ready: with ``overwrite`` an earlier model and its checkpoints go, the record first.

        Args:
            identity: What this training depends on.
            overwrite: Start again.

        Raises:
            OutputError: The folder cannot be written.
        """
        if (overwrite or self._planned() != _of_weights(identity)) and self.checkpoints.is_dir():
            for path in self.checkpoints.iterdir():
                if path.name != _PLAN:
                    remove_tree(path) if path.is_dir() else remove_file(path)
        make_folder(self.checkpoints)
        # The plan is there before the model goes: whatever a kill leaves is known as a training's.
        write_text(self.checkpoints / _PLAN, json.dumps(_of_weights(identity), indent=2) + "\n")
        if overwrite:
            self._remove_model()
        for stale in self.path.glob(".*.tmp"):
            remove_tree(stale) if stale.is_dir() else remove_file(stale)

    def publish(self, save: Callable[[Path], None]) -> dict[str, str]:
        """Let a model be written beside its place, and bring it there when it is whole.

        Args:
            save: Writes the files into the folder that it is given.

        Returns:
            SHA-256 of each file, by its path.

        Raises:
            OutputError: They cannot be written.
            ResourceError: The disk is full.
        """
        beside = self.path / f".model-{os.getpid()}-{os.urandom(4).hex()}.tmp"
        make_folder(beside)
        try:
            with explained(self.path):
                with disk_faults_told(self.path):
                    save(beside)
                names = tuple(sorted(entry.name for entry in beside.iterdir()))
                mode = _new_file_mode(beside)
                digests = {}
                for path in sorted(path for path in beside.rglob("*") if path.is_file()):
                    path.chmod(mode)  # safetensors makes files that nobody else may read
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                    digests[path.relative_to(beside).as_posix()] = sha256_file(path)
                self._remove_model()
                for name in names:
                    os.replace(beside / name, self.path / name)
        finally:
            remove_tree(beside)
        sync_folder(self.path)
        return digests

    def remove_checkpoints(self) -> None:
        """Take away what only an unfinished training needs."""
        remove_tree(self.checkpoints)

    def _planned(self) -> dict[str, Any]:
        """What the checkpoints that are here depend on."""
        try:
            return dict(json.loads((self.checkpoints / _PLAN).read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            return {}

    def _remove_model(self) -> None:
        remove_file(self.record)
        for pattern in (*_MODEL_FILES, CARD):
            for path in self.path.glob(pattern):
                remove_tree(path) if path.is_dir() else remove_file(path)

    def _refuse_another(self, earlier: Mapping[str, Any], later: Mapping[str, Any]) -> None:
        found = changed(earlier, later)
        if found:
            raise StoreMismatch(
                f"The output {self.path} belongs to another training ({'; '.join(found[:6])}); name another folder, or "
                "start again with --overwrite."
            )


def _new_file_mode(folder: Path) -> int:
    """What a file gets here that is made without further ado."""
    probe = folder / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def _of_weights(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What the steps depend on: held-out rows are measured before and after, and bear on none."""
    return {name: value for name, value in identity.items() if name not in ("training.heldout", HELDOUT_ROWS)}


def _half_written(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")
