"""The folder that a run leaves: its layout, and whether it may be written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spice_select.config import RunConfig, load_config, to_yaml
from spice_select.errors import ConfigError, OutputError, StoreError, StoreMismatch
from spice_select.files import Lock, make_folder, remove_file, remove_temporaries, remove_tree, write_text
from spice_select.seals import opened, require_files
from spice_select.staging import LOCK, forget, recover

# Settings that say how a result is reached and not what it is: a run may be taken up again with others. What a
# comparison trains comes after all choices, and each training knows its own settings.
_NO_IDENTITY = {
    ("output", "folder"),
    ("training",),
    ("model", "device"),
    ("selection", "device"),
    ("schedule", "gram_bytes"),
    ("schedule", "tracker"),
    ("schedule", "keep_gram"),
}

# Settings that no gradient depends on: they may change as long as nothing was chosen.
_NO_GRADIENTS = {("selection",), ("method",), ("embeddings",), ("data", "target"), ("preset",)}


RECORD_VERSION = 1
"""Schema version of ``selection.json``."""
_AGAIN = "select again to write it anew"


class RunFolder:
    """Paths of a run's folder.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def gradients(self) -> Path:
        """The gradient store."""
        return self.path / "gradients"

    @property
    def features(self) -> Path:
        """What methods other than gradients have had measured: losses, embeddings and the like."""
        return self.path / "features"

    @property
    def schedule(self) -> Path:
        """The trained proxy, and the log of a schedule of pools."""
        return self.path / "schedule"

    @property
    def record(self) -> Path:
        """What was selected and how, written last."""
        return self.path / "selection.json"

    @property
    def trace(self) -> Path:
        """One line a step."""
        return self.path / "trace.parquet"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def card(self) -> Path:
        """The data set card."""
        return self.path / "README.md"

    @property
    def demo_rows(self) -> Path:
        """The generated rows, in the folder of a demo."""
        return self.path / "demo.jsonl"

    @property
    def data(self) -> Path:
        """The chosen rows."""
        return self.path / "data"

    def read_config(self) -> RunConfig:
        """The configuration of the run that is here.

        Raises:
            StoreError: The folder is not one that a run or a collect has left.
        """
        if not self.path.is_dir():
            raise StoreError(f"There is no folder {self.path}; name the output of a run or of a collect.")
        recover(self.path)
        if not self.config.is_file():
            raise StoreError(f"{self.path} holds no config.yaml; name the output of a run or of a collect.")
        return load_config(self.config)

    def require_finished(self) -> None:
        """Refuse a folder without a finished selection, or with one that is not what was written.

        Raises:
            StoreError: There is none, or its record is of another version.
            StoreCorrupt: A file of it is damaged or missing.
        """
        recover(self.path)
        if not self.record.is_file():
            raise StoreError(f"{self.path} holds no finished selection; finish the run, or name another folder.")
        try:
            written = self.record.read_bytes()
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise StoreError(f"{self.record} cannot be read ({reason}); name the folder of a run.") from None
        content = opened(written, str(self.record), version=RECORD_VERSION, what="record of a run", remedy=_AGAIN)
        require_files(self.record, content, remedy=_AGAIN)

    def check(self, config: RunConfig, *, overwrite: bool, selection: bool) -> None:
        """See whether the folder may be written under a configuration; nothing is written yet.

        Args:
            config: The configuration of this command.
            overwrite: Replace what an earlier command with other settings has left.
            selection: This command writes a selection, and not gradients alone.

        Raises:
            OutputError: The folder holds something else, cannot be written, or shares files with a source.
            StoreMismatch: The folder belongs to other settings; each difference is named.
        """
        for source in config.data.sources:
            self._refuse_overlap(source)
        existing = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not existing.is_dir():
            raise OutputError(f"The output {self.path} cannot be made because {existing} is a file; name a folder.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"The output {self.path} cannot be written (no permission on {existing}); name another.")
        if existing != self.path or not any(self.path.iterdir()):
            return
        recover(self.path)
        if not self.config.is_file():
            if not self._only_ours():
                raise OutputError(f"The output {self.path} holds files that no run has left; name a new folder.")
        elif not overwrite:
            self._refuse_other_settings(config, selection=selection)

    def claim(self, config: RunConfig, *, overwrite: bool) -> None:
        """Make the folder ready for what :meth:`check` has allowed: old results go away, the configuration comes.

        Gradients are left to the store, which knows whether another run is at work on them.

        Args:
            config: The configuration of this command.
            overwrite: Start again.

        Raises:
            OutputError: The folder cannot be written.
        """
        make_folder(self.path)
        if overwrite:
            self.remove_results()
        content = to_yaml(config)
        lock = Lock.try_acquire(self.path / LOCK)
        try:
            if lock is not None:
                # Of runs that were killed at this very place; who holds the lock may still be at his.
                remove_temporaries(self.path, self.config.name)
            # A finished selection keeps the configuration that it was made with until the next is whole.
            if not self.record.is_file() and not (
                self.config.is_file() and self.config.read_bytes() == content.encode()
            ):
                write_text(self.config, content)
        finally:
            if lock is not None:
                lock.close()

    def remove_results(self) -> None:
        """Take a selection away, the record first: without it no other file counts as finished."""
        forget(self.path)
        for path in (self.record, self.trace, self.report, self.card, self.path / "pool.parquet"):
            remove_file(path)
        if self.data.is_dir():
            remove_tree(self.data)

    def _refuse_overlap(self, name: str) -> None:
        """Refuse an output whose files would become rows of a source, or take the place of one."""
        if not os.path.exists(name):
            return
        source, output = Path(name).resolve(), self.path.resolve()
        if source == output or source in output.parents:
            where = "is" if source == output else "lies in"
            raise OutputError(
                f"The output {self.path} {where} the source {name}, whose rows would change; name a folder elsewhere."
            )
        written = [path.resolve() for path in (self.data, self.gradients, self.features, self.trace, self.record)]
        if any(path == source or path in source.parents for path in written):
            raise OutputError(
                f"The source {name} is part of the output {self.path}, which replaces it; name another output."
            )

    def _only_ours(self) -> bool:
        """Whether all that is here may be of a run that was killed before it had written its configuration."""
        ours = {"gradients", "features", self.demo_rows.name, LOCK}
        return all(
            entry.name in ours or (entry.name.startswith(".") and entry.name.endswith(".tmp"))
            for entry in self.path.iterdir()
        )

    def _refuse_other_settings(self, config: RunConfig, *, selection: bool) -> None:
        try:
            earlier = load_config(self.config)
        except ConfigError as error:
            raise OutputError(
                f"The output {self.path} holds a config.yaml that cannot be read ({error}); "
                "name another folder, or start again with --overwrite."
            ) from None
        pools = earlier.schedule.kind == "pools"
        anew = f"select anew from its gradients with 'spice-select select {self.path} --output OTHER', "
        if pools or not (self.gradients / "manifest.json").exists():
            anew = ""
        # Picks that are made pool by pool are part of what an unfinished run has left.
        chosen = self.record.exists() or (pools and (self.schedule / "log.jsonl").exists())
        ignored = {("preset",)} if selection and chosen else _NO_GRADIENTS
        found = differences(earlier, config, ignored=ignored)
        if found:
            listed = "; ".join(f"{field} was {old!r} and is now {new!r}" for field, old, new in found[:6])
            raise StoreMismatch(
                f"The output {self.path} belongs to other settings ({listed}); name another folder, "
                f"{anew}or start again with --overwrite."
            )


def differences(
    earlier: RunConfig, later: RunConfig, *, ignored: Iterable[tuple[str, ...]] = ()
) -> list[tuple[str, Any, Any]]:
    """Settings in which two configurations differ, as (field, earlier, later), those without identity left out."""
    skip = {*_NO_IDENTITY, *ignored}
    stochastic = {earlier.selection.loop == "stochastic", later.selection.loop == "stochastic"}
    if stochastic == {False}:
        skip |= {("selection", "sampling_epsilon")}
    if len(stochastic) == 1:
        # All other loops give the same picks.
        skip |= {("selection", "loop")}

    def walk(old: Mapping[str, Any], new: Mapping[str, Any], path: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
        found: list[tuple[str, Any, Any]] = []
        for key in dict.fromkeys([*old, *new]):
            here = (*path, key)
            if here in skip:
                continue
            a, b = old.get(key), new.get(key)
            if isinstance(a, Mapping) and isinstance(b, Mapping):
                found += walk(a, b, here)
            elif a != b:
                found.append((".".join(here), a, b))
        return found

    return walk(earlier.model_dump(mode="json"), later.model_dump(mode="json"), ())
