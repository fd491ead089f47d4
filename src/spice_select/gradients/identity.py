"""Hashes that say which weights, tokenizer and layers gradients came from, whatever folder those lay in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spice_select.gradients.layers import Layer

_READ = 1 << 22


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what decides how text becomes token ids, whatever folder it came from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        core = json.loads(backend.to_str())
        # Calls that pad or truncate leave these behind.
        core.pop("truncation", None)
        core.pop("padding", None)
    else:
        core = sorted(tokenizer.get_vocab().items())
    special = {key: str(value) for key, value in sorted(tokenizer.special_tokens_map.items())}
    template = getattr(tokenizer, "chat_template", None)
    text = json.dumps([core, special, template], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def files_hash(files: Sequence[Path]) -> str:
    """SHA-256 of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(_READ):
                digest.update(block)
    return digest.hexdigest()


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def layers_hash(layers: Sequence[Layer]) -> str:
    """SHA-256 of names and shapes of the layers."""
    lines = [f"{layer.name} {layer.rows}x{layer.columns}" for layer in layers]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
