"""The trained weights and the optimiser's state, kept so that a run goes on to the same bits.

A checkpoint is a folder that is written beside its place and renamed into it whole:

::

    adapter/adapter_config.json           PEFT's own layout, where adapters are trained:
    adapter/adapter_model.safetensors     PeftModel.from_pretrained and gradients.lora.adapter read it
    weights.safetensors                   instead of these, where the linear layers themselves are trained
    optimizer.safetensors                 AdamW's moments
    checkpoint.json                       step, digest of the weights, SHA-256 of each file
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from spice_select.errors import StoreCorrupt, StoreMismatch
from spice_select.files import explained, make_folder, remove_tree, sync_folder, write_bytes
from spice_select.schedule.trainer import ProxyTrainer

_RECORD = "checkpoint.json"
_WEIGHTS = "weights.safetensors"
_ADAPTER = "adapter/adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter/adapter_config.json"
_OPTIMIZER = "optimizer.safetensors"
# PEFT's names start with those of its own wrappers.
_PEFT = "base_model.model."


class Checkpoint(BaseModel):
    """The content of ``checkpoint.json``.

    Attributes:
        schema_version: Version of the layout.
        step: Optimiser steps taken.
        digest: SHA-256 of the trained weights.
        identity: What the trainer was set to.
        files: SHA-256 of each file.
        meta: What the caller keeps with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    step: int = Field(ge=0)
    digest: str
    identity: dict[str, JsonValue]
    files: dict[str, str]
    meta: dict[str, JsonValue]

    def encoded(self) -> bytes:
        """The bytes of the file: readable JSON that ends with a checksum of all before it."""
        content = self.model_dump(mode="json")
        content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        # Half a character, which a damaged file can hold, is never what was written; it must not end in an error here.
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def save_checkpoint(folder: str | Path, trainer: ProxyTrainer, meta: Mapping[str, Any]) -> str:
    """Keep a trainer's weights and optimiser in a folder, whole or not at all; what was there is replaced.

    Args:
        folder: Where the checkpoint goes; its parent must exist.
        trainer: Between two trainings.
        meta: What JSON can hold, to be returned on loading.

    Returns:
        The digest of the weights.

    Raises:
        OutputError: It cannot be written.
        ResourceError: The disk is full.
    """
    folder = Path(folder)
    files = _contents(trainer)
    record = Checkpoint(
        step=trainer.step,
        digest=trainer.digest,
        identity=trainer.identity(),
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        meta=json.loads(json.dumps(dict(meta))),
    )
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):
        # Of a run that was killed here; no other writes into this folder.
        remove_tree(stale)
    with explained(folder):
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        os.chmod(beside, 0o755)
    try:
        for name, content in files.items():
            make_folder((beside / name).parent)
            write_bytes(beside / name, content)
        write_bytes(beside / _RECORD, record.encoded())
        # The last moment: between these two lines a crash leaves no checkpoint here, and those before it stay.
        remove_tree(folder)
        with explained(folder):
            os.replace(beside, folder)
    except BaseException:
        remove_tree(beside)
        raise
    sync_folder(folder.parent)
    return record.digest


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """What a checkpoint says of itself, without its weights.

    Raises:
        StoreCorrupt: It is missing, or not what was written.
    """
    path = Path(folder) / _RECORD
    try:
        written = path.read_bytes()
        content = json.loads(written)
        content.pop("checksum")
        record = Checkpoint.model_validate(content)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError, ValidationError):
        raise _broken(folder) from None
    if record.encoded() != written:
        raise _broken(folder)
    return record


def load_checkpoint(folder: str | Path, trainer: ProxyTrainer) -> dict[str, Any]:
    """Bring a trainer to where it was when a checkpoint was made.

    Returns:
        The ``meta`` that it was saved with.

    Raises:
        StoreCorrupt: The checkpoint is missing or damaged; the trainer is as it was.
        StoreMismatch: It was made by a trainer of another model, scope, seed or setting; the trainer is as it was.
    """
    folder = Path(folder)
    record = read_checkpoint(folder)
    wanted = json.loads(json.dumps(trainer.identity()))
    if record.identity != wanted:
        differing = sorted(
            name for name in {*record.identity, *wanted} if record.identity.get(name) != wanted.get(name)
        )
        raise StoreMismatch(
            f"The checkpoint {folder} belongs to other settings ({', '.join(differing)} differ); name another folder, "
            "or start again with --overwrite."
        )
    tensors = {name: _read(folder, name, digest) for name, digest in record.files.items() if name != _ADAPTER_CONFIG}
    weights = tensors.get(_WEIGHTS)
    if weights is None:
        found = tensors.get(_ADAPTER, {})
        weights = {name.removeprefix(_PEFT).removesuffix(".weight"): value for name, value in found.items()}
    shapes = {name: value.shape for name, value in trainer.parameters.items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise _broken(folder)
    trainer.restore(weights, tensors.get(_OPTIMIZER, {}), record.step)
    return dict(record.meta)


def _contents(trainer: ProxyTrainer) -> dict[str, bytes]:
    weights = {name: weight.detach().cpu().contiguous() for name, weight in trainer.parameters.items()}
    moments = {name: value.detach().cpu().contiguous() for name, value in trainer.moments().items()}
    files = {_OPTIMIZER: save(moments)}
    configs = getattr(trainer.proxy.model, "peft_config", None)
    if configs is None:
        return {_WEIGHTS: save(weights), **files}
    config = configs["default"].to_dict()
    config.update(inference_mode=True, target_modules=sorted(config["target_modules"]))
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted) + "\n"
    adapter = save({f"{_PEFT}{name}.weight": weight for name, weight in weights.items()}, {"format": "pt"})
    return {_ADAPTER_CONFIG: text.encode(), _ADAPTER: adapter, **files}


def _read(folder: Path, name: str, digest: str) -> dict[str, Tensor]:
    try:
        content = (folder / name).read_bytes()
    except OSError:
        raise _broken(folder) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise _broken(folder)
    try:
        return load(content)
    except SafetensorError:
        raise _broken(folder) from None


def _broken(folder: str | Path) -> StoreCorrupt:
    return StoreCorrupt(
        f"The checkpoint {folder} is not what was written; remove it, and the run goes on from the one before."
    )
