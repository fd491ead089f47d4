"""Data sets of the Hugging Face Hub, at a known commit and without code of theirs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from spice_select.errors import DataError

_NAME = r"[A-Za-z0-9](?:[\w.-]*[\w])?"
_HUB_ID = re.compile(rf"(?P<id>{_NAME}/{_NAME})(?::(?P<config>[\w.+-]+))?(?:@(?P<revision>[\w./+-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """``owner/name``, ``owner/name:config``, ``owner/name@revision`` or both, taken apart."""

    id: str
    config: str | None
    revision: str | None

    @property
    def name(self) -> str:
        """The id with its config, without the revision."""
        return self.id if self.config is None else f"{self.id}:{self.config}"


def parse_hub_id(text: str) -> HubId | None:
    """The parts of a Hub id, or None for a text that is none."""
    match = _HUB_ID.fullmatch(text)
    return HubId(match["id"], match["config"], match["revision"]) if match else None


def read_hub(hub_id: HubId, split: str, limit: int | None) -> tuple[pa.Table, str | None]:
    """Rows of a split, and the commit that they came from where it can be known.

    Raises:
        DataError: There is no such data set, config, revision or split, or it cannot be reached.
    """
    import datasets  # a second to import, and only Hub ids need it
    from datasets.exceptions import DatasetNotFoundError

    commit = _resolve(hub_id)
    try:
        found = datasets.load_dataset(hub_id.id, hub_id.config, split=split, revision=commit or hub_id.revision)
    except DatasetNotFoundError as error:
        raise DataError(
            f"The Hub data set {hub_id.name!r} cannot be found ({_first(error)}); check the id, "
            "or log in with 'hf auth login' where it is private or gated."
        ) from None
    except (ValueError, RuntimeError) as error:
        raise DataError(
            f"The Hub data set {hub_id.name!r} has no split {split!r} that can be read ({_first(error)}); "
            "give data.split, or OWNER/NAME:CONFIG."
        ) from None
    except (ConnectionError, OSError) as error:
        raise DataError(
            f"The Hub data set {hub_id.name!r} cannot be fetched ({_first(error)}); "
            "check the network, or give a local file."
        ) from None
    table = found.with_format("arrow")[: min(limit or len(found), len(found))]
    assert isinstance(table, pa.Table)
    return table, commit or _cached_commit(found.cache_files)


def _resolve(hub_id: HubId) -> str | None:
    """Commit of the revision, so that what is loaded is what is recorded; None when the Hub cannot be asked."""
    if hub_id.revision and _COMMIT.fullmatch(hub_id.revision):
        return hub_id.revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().dataset_info(hub_id.id, revision=hub_id.revision, timeout=20).sha
    except (HfHubHTTPError, ConnectionError, OSError, RuntimeError):
        return None


def _cached_commit(cache_files: list[dict[str, str]]) -> str | None:
    """The cache of ``datasets`` names a folder by the commit of its files."""
    for file in cache_files:
        for part in Path(file["filename"]).parts:
            if _COMMIT.fullmatch(part):
                return part
    return None


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")[:160] if str(error).strip() else type(error).__name__
