"""What a live selection did, pool by pool, and the file that a resumed training goes on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spice_select.errors import OutputError, StoreCorrupt, StoreMismatch
from spice_select.files import explained, make_folder, write_text
from spice_select.schedule.log import PoolEntry

FILE = "live.jsonl"


class LivePool(PoolEntry):
    """What came of one pool, as :class:`spice_select.schedule.log.PoolEntry` has it; rows are those of the trainer.

    Attributes:
        epoch: The epoch, from 0; ``pool`` counts within it.
        step: Optimiser steps that had been taken when the pool was measured.
        seconds: Time that measuring and choosing took.
    """

    epoch: int
    step: int
    seconds: float


def identity_of(content: dict[str, Any]) -> str:
    """SHA-256 of all that decides the picks beside the weights."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_live(folder: str | Path, identity: str, pools: Sequence[LivePool]) -> Path:
    """Write ``live.jsonl``: a first line that says what run it belongs to, then one line a pool.

    Raises:
        OutputError: It cannot be written.
        ResourceError: The disk is full.
    """
    path = make_folder(folder) / FILE
    lines = [json.dumps(pool.model_dump(mode="json"), allow_nan=False) for pool in pools]
    head = {"version": 1, "identity": identity, "pools": len(pools), "sha256": _digest(lines)}
    write_text(path, "".join(f"{line}\n" for line in [json.dumps(head), *lines]))
    return path


def read_live(folder: str | Path, identity: str | None = None) -> list[LivePool]:
    """Read what :func:`write_live` wrote.

    Args:
        folder: Where the file is.
        identity: The run that it must belong to; none: any.

    Raises:
        OutputError: There is no such file.
        StoreMismatch: It belongs to another run.
        StoreCorrupt: It is not what was written.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise OutputError(
            f"{path} is not there, so that the picks before this checkpoint are unknown; resume from a checkpoint that "
            "a training with the same live selection wrote to its end."
        )
    with explained(path, "read"):
        content = path.read_bytes()
    try:
        lines = content.decode("utf-8").splitlines()
        head = json.loads(lines[0])
        pools = [LivePool.model_validate(json.loads(line)) for line in lines[1:]]
        # Files of earlier versions have no digest.
        if head["pools"] != len(pools) or head.get("sha256", _digest(lines[1:])) != _digest(lines[1:]):
            raise ValueError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, ValidationError):
        raise StoreCorrupt(f"{path} is not what was written; resume from another checkpoint.") from None
    if identity is not None and head.get("identity") != identity:
        raise StoreMismatch(
            f"{path} was written with other rows, another seed or other settings of the live selection; resume with "
            "those, or train from the start."
        )
    return pools


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
