"""What a gradient store holds, and whether it is what a run asks for.

The manifest is written once, before the first shard, and never changed. What decides the numbers is its identity and
must be equal for a store to be used again: the sketch with its test vector, the loss, the dtype, the weights, the
tokenizer, the chat template, the examples in order, and the shape of the shards. What happened to be in use is only
recorded: library versions (a version that changed the sketch's random numbers shows in its test vector, one that
changed the tokens shows in the examples' digest) and the token budget of a batch (rows agree to about 1e-5 between
batch sizes, and a run that met the end of memory must be able to go on with a smaller one).
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from spice_select.errors import StoreCorrupt, StoreError, StoreMismatch
from spice_select.files import read_regular, write_bytes

SCHEMA_VERSION = 1
MOST_SHARDS = 1 << 21
"""Shards that a store may have; a manifest that speaks of more is none that anything here has written."""
MANIFEST_NAME = "manifest.json"
_RECORDED = ("spice-select", "torch", "transformers", "tokenizers", "peft", "numpy")
_NAMED = 4


class Manifest(BaseModel):
    """The content of ``manifest.json``.

    Attributes:
        schema_version: Version of the layout of the store's files.
        rows: Examples, one row each.
        dim: Length of a row.
        shard_rows: Rows of each shard but the last.
        store_dtype: Dtype of the stored numbers; float16 rows are divided by their norm.
        examples: SHA-256 over the examples in order, in hexadecimal.
        gradient: The gradient engine's account of itself: sketch, layers, loss, dtype, test vector.
        sources: Hashes of weights, tokenizer and template, and whatever else decides the numbers.
        batch_tokens: Padded tokens of a batch; recorded only.
        versions: Versions of the libraries that wrote the manifest; recorded only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    rows: int = Field(ge=1)
    dim: int = Field(ge=1)
    shard_rows: int = Field(ge=1)
    store_dtype: Literal["float32", "float16"]
    examples: str
    gradient: dict[str, JsonValue]
    sources: dict[str, JsonValue]
    batch_tokens: int
    versions: dict[str, str]

    @model_validator(mode="after")
    def _few_shards(self) -> Manifest:
        if self.rows > MOST_SHARDS * self.shard_rows:
            raise ValueError(f"{self.rows} rows are too many for shards of {self.shard_rows}")
        return self

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the numbers; every shard carries it."""
        return hashlib.sha256(_canonical(self._identity())).hexdigest()

    def _identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"batch_tokens", "versions"})

    def encoded(self) -> bytes:
        """The bytes of the file: readable JSON that ends with a checksum of all before it."""
        content = self.model_dump(mode="json")
        content["checksum"] = hashlib.sha256(_canonical(content)).hexdigest()
        return (json.dumps(content, indent=2, sort_keys=False, ensure_ascii=False) + "\n").encode("utf-8")

    def differences(self, requested: Manifest) -> list[tuple[str, Any, Any]]:
        """Each field that decides the numbers and differs: its name, this manifest's value, the requested value."""
        ours, theirs = dict(_leaves(self._identity())), dict(_leaves(requested._identity()))
        return [
            (name, ours.get(name), theirs.get(name))
            for name in dict.fromkeys([*ours, *theirs])
            if ours.get(name) != theirs.get(name)
        ]

    def require(self, requested: Manifest, folder: Path) -> None:
        """Refuse a store that was made for something else.

        Raises:
            StoreMismatch: Some field differs; each is named with both values.
        """
        found = self.differences(requested)
        if found:
            listed = "; ".join(f"{name} is {_shown(old)} there and {_shown(new)} here" for name, old, new in found)
            raise StoreMismatch(
                f"The gradient store {folder} belongs to other settings ({listed}); "
                "name another folder, or start again with --overwrite."
            )


def build_manifest(
    *,
    rows: int,
    dim: int,
    shard_rows: int,
    store_dtype: Literal["float32", "float16"],
    examples: str,
    gradient: Mapping[str, Any],
    sources: Mapping[str, Any],
    batch_tokens: int,
) -> Manifest:
    """The manifest of a store that is to be made; see :class:`Manifest`.

    ``gradient`` and ``sources`` must be made of what JSON can hold; tuples become lists.
    """
    return Manifest(
        rows=rows,
        dim=dim,
        shard_rows=shard_rows,
        store_dtype=store_dtype,
        examples=examples,
        gradient=json.loads(json.dumps(dict(gradient), allow_nan=False)),
        sources=json.loads(json.dumps(dict(sources), allow_nan=False)),
        batch_tokens=batch_tokens,
        versions=_versions(),
    )


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a store, or None where there is none.

    Raises:
        StoreError: It cannot be read, or is of a version unknown here.
        StoreCorrupt: Its bytes are not those that were written.
    """
    path = folder / MANIFEST_NAME
    try:
        written = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); name a folder that can be.") from None
    broken = StoreCorrupt(f"{path} is not what was written; collect again with --overwrite, or restore the file.")
    try:
        content = json.loads(written)
    except (ValueError, RecursionError):
        raise broken from None
    if not isinstance(content, dict):
        raise broken
    found = content.get("schema_version")
    content.pop("checksum", None)
    if isinstance(found, int) and found != SCHEMA_VERSION and not isinstance(found, bool):
        raise StoreError(
            f"The gradient store {folder} has schema version {found}, and this program reads version {SCHEMA_VERSION}; "
            "use the version of spice-select that wrote it, or collect again with --overwrite."
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError:
        raise broken from None
    # Comparing the bytes, and not only the checksum, finds a flip in the checksum and in white space as well.
    try:
        same = manifest.encoded() == written
    except UnicodeEncodeError:
        # Half a character, as only an escape in JSON can hold it.
        same = False
    if not same:
        raise broken
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest whole or not at all.

    Raises:
        OutputError: It cannot be written.
        ResourceError: The disk is full.
    """
    write_bytes(folder / MANIFEST_NAME, manifest.encoded())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _leaves(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, name)
        else:
            yield name, value


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, list):
        few = ", ".join(_shown(item) for item in value[:_NAMED])
        return f"[{few}]" if len(value) <= _NAMED else f"[{few}, ... {len(value)} in all]"
    text = str(value)
    if len(text) >= 32 and all(c in "0123456789abcdef" for c in text):
        return text[:12]
    return text if len(text) <= 60 else text[:57] + "..."
