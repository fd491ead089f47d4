"""What workers and the process that sends them tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spice_select.data.encoded import Encoded
    from spice_select.gradients.manifest import Manifest
    from spice_select.gradients.shard_work import Done
    from spice_select.gradients.shards import Shard


@dataclass(frozen=True)
class Order:
    """A shard to compute.

    Attributes:
        folder: The store.
        manifest: Its manifest.
        batch_tokens: Most padded tokens of a batch.
        shard: Which.
        part: The examples of its rows.
        wait: Wait for it where another run has it in hand.
    """

    folder: Path
    manifest: Manifest
    batch_tokens: int
    shard: Shard
    part: Encoded
    wait: bool


@dataclass(frozen=True)
class Said:
    """News of a shard in hand.

    Attributes:
        examples: Examples measured since the last news.
        tokens: Their tokens.
        sentences: What a user should read.
        done: How it ended; None while it goes on, or where another run has it in hand.
        busy: Another run has it in hand.
    """

    examples: int = 0
    tokens: int = 0
    sentences: tuple[str, ...] = ()
    done: Done | None = None
    busy: bool = False


@dataclass(frozen=True)
class Failed:
    """An error of this package, which has a sentence for the user; all others travel by Ray's own means.

    Attributes:
        kinds: Names of its classes, the nearest first.
        sentence: What it says.
    """

    kinds: tuple[str, ...]
    sentence: str
