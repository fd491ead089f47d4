"""Checkpoints that a training resumes from: sealed when they are whole, and read back only as they were sealed.

The trainer writes the states of optimiser, schedule and random numbers with ``torch.save`` and reads them with
``weights_only=True``, which takes tensors and plain numbers and runs no code. The one file beside them that needs a
full pickle, ``training_args.bin``, is never read by anything and goes away at once.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from transformers import TrainerCallback

from spice_select.files import explained, free_bytes, remove_file, remove_tree, sha256_file, write_text

SEAL = "sealed.json"
KEPT = 2
"""Checkpoints that stay: the last one, and one for where that is damaged."""
_PICKLE = "training_args.bin"
_WRITING = ("Error while serializing", "I/O error", "PytorchStreamWriter", "file write failed", "iostream error")
"""Parts of what safetensors and torch say when a file cannot be written; torch does not say why."""
_HARDLY_ANY = 64 << 20
_NAME = re.compile(r"checkpoint-(\d+)")


@contextmanager
def disk_faults_told(folder: Path) -> Iterator[None]:
    """Turn what libraries raise where they cannot write into a sentence; they write with code of their own.

    Args:
        folder: Where they write to.

    Raises:
        ResourceError: The disk is full.
        OutputError: It cannot be written for another reason.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        told = str(error)
        if not any(part in told for part in _WRITING):
            raise
        full = "os error 28" in told or "os error 122" in told or free_bytes(folder) < _HARDLY_ANY
        with explained(folder):
            raise OSError(errno.ENOSPC if full else errno.EIO, "it could not be written") from error


class Seal(BaseModel):
    """What a whole checkpoint holds.

    Attributes:
        schema_version: Version of this layout.
        files: SHA-256 of every file, by its path within the checkpoint.
        seconds: Time that the training had taken, over all processes that worked on it one after the other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    files: dict[str, str]
    seconds: float


def seal(checkpoint: Path, seconds: float) -> None:
    """Mark a checkpoint as whole.

    Args:
        checkpoint: Its folder, to which nothing more will be written.
        seconds: Time that the training has taken.

    Raises:
        OutputError: The mark cannot be written.
    """
    remove_file(checkpoint / _PICKLE)
    write_text(checkpoint / SEAL, Seal(files=_digests(checkpoint), seconds=seconds).model_dump_json() + "\n")


def last_whole(folder: Path) -> tuple[Path, Seal] | None:
    """The latest checkpoint that holds what was sealed, every byte of it; None where there is none.

    Args:
        folder: Where the trainer writes its checkpoints.
    """
    for _, path in sorted(_numbered(folder).items(), reverse=True):
        try:
            sealed = Seal.model_validate_json((path / SEAL).read_bytes())
            if _digests(path) == sealed.files:
                return path, sealed
        except (OSError, ValidationError):
            continue
    return None


class Sealing(TrainerCallback):
    """Seals every checkpoint that the trainer writes, and then takes away those before the last two.

    The trainer itself would take them away before the new one is sealed, so that a kill could leave one alone.

    Args:
        before: Seconds that the training took before this process took it up.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._before = before
        self._begun = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal what was written, once every process has written its part."""
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
        if args.process_index == 0:
            took = self._before + time.perf_counter() - self._begun
            folder = Path(args.output_dir)
            seal(folder / f"checkpoint-{state.global_step}", took)
            older = sorted(number for number in _numbered(folder) if number < state.global_step)
            for number in older[: 1 - KEPT]:
                remove_tree(folder / f"checkpoint-{number}")


def _numbered(folder: Path) -> dict[int, Path]:
    return {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))}


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
