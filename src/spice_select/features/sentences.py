"""Embeddings of plain text by a sentence-transformers model, measured by the machinery that measures token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from spice_select.config import EmbeddingConfig, ModelConfig
from spice_select.data.conversation import Conversation
from spice_select.data.encoded import Encoded, Example, collect_examples
from spice_select.data.status import Status
from spice_select.errors import ConfigError, ModelError
from spice_select.features.states import Embedded
from spice_select.gradients.identity import files_hash
from spice_select.gradients.proxy import first_line, quiet, resolve_device

Span = Literal["all", "prompt", "response"]

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OWN = "sentence_transformers."


def plain_text(conversation: Conversation, span: Span) -> str:
    """The turns of a conversation, set apart by blank lines, without roles or template.

    Args:
        conversation: What a row says.
        span: All turns, those of the assistant (``response``), or all others.
    """
    parts = []
    for message in conversation.messages:
        if span != "all" and (message.role == "assistant") != (span == "response"):
            continue
        calls = [
            json.dumps(dict(call), ensure_ascii=False, sort_keys=True, default=str) for call in message.tool_calls or ()
        ]
        parts += [part for part in (message.content.strip(), *calls) if part]
    return "\n\n".join(parts)


def encode_texts(texts: Sequence[str], like: Encoded) -> Encoded:
    """Texts in the form of token ids, four bytes of UTF-8 to a number, so that they are measured as examples are.

    Args:
        texts: One text for every example.
        like: The examples; those that cannot be used stay so.
    """
    examples = [
        Example(*_packed(text if ok else ""), Status(int(status)))
        for text, ok, status in zip(texts, like.usable.tolist(), like.status, strict=True)
    ]
    return collect_examples(examples, like.stats, {})


def _packed(text: str) -> tuple[np.ndarray, np.ndarray]:
    raw = text.encode("utf-8", "replace")
    # A zero byte ends a text that no multiple of four bytes does; within a text it means nothing.
    raw = raw.replace(b"\0", b" ")
    ids = np.frombuffer(raw + b"\0" * (-len(raw) % 4), dtype="<i4").astype(np.int32)
    return ids, np.zeros(len(ids), dtype=bool)


def _unpacked(ids: np.ndarray) -> str:
    return np.asarray(ids, dtype="<i4").tobytes().rstrip(b"\0").decode("utf-8")


class SentenceEngine:
    """Embeds texts by a sentence-transformers model, as it comes: its own prompt, length and pooling.

    Args:
        settings: The model, its revision, and the span of the text.
        model: Device, and whether code that comes with a model is run.

    Raises:
        ConfigError: A setting that belongs to the proxy's hidden states, or a library that is missing.
        ModelError: A model that cannot be read, or whose weights are pickles.
    """

    def __init__(self, settings: EmbeddingConfig, model: ModelConfig) -> None:
        assert settings.model is not None
        for name in ("layer", "pooling"):
            value = getattr(settings, name)
            if value != EmbeddingConfig.model_fields[name].default:
                raise ConfigError(
                    f"Setting 'embeddings.{name}' cannot be {value!r} beside embeddings.model, which has "
                    "its own; leave it out."
                )
        library = _library()
        self._span = settings.span
        self._name = settings.model
        folder = _folder(settings, model)
        _require_safe(folder, settings.model, trust=model.trust_remote_code)
        try:
            with quiet():
                self._model: Any = library(
                    str(folder),
                    device=str(resolve_device(model.device)),
                    trust_remote_code=model.trust_remote_code,
                    local_files_only=True,
                    model_kwargs={"use_safetensors": True},
                )
        except Exception as error:  # broken files raise whatever their parser raises
            raise ModelError(
                f"The sentence-transformers model {settings.model} cannot be loaded ({first_line(error)}); name "
                "another with embeddings.model, or leave it out for the proxy's hidden states."
            ) from None
        self._model.eval()
        self.identity = {"weights": files_hash(_deciding(folder)), "tokenizer": None, "dtype": str(self._model.dtype)}
        """What decides an embedding beside the text: the model's files."""
        self.dim = len(self._encode(["a"])[0])
        """Length of an embedding."""

    def spec(self) -> dict[str, Any]:
        """What decides an embedding beside weights and texts."""
        return {"measures": "sentence embeddings", "span": self._span}

    def batch(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> Embedded:
        """Embed texts together.

        Args:
            ids: Texts, four bytes to a number.
            masks: Of no meaning here.
        """
        return Embedded.of(self._encode([_unpacked(row) for row in ids]))

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> np.ndarray:
        with quiet():
            found = self._model.encode(
                texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=False
            )
        return np.asarray(found, dtype=np.float32)


def _library() -> Any:
    try:
        with quiet():
            from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            "Setting 'embeddings.model' needs the library sentence-transformers; install it with "
            'pip install "spice-select[embeddings]", or leave the setting out for the proxy\'s hidden states.'
        ) from None
    return SentenceTransformer


def _folder(settings: EmbeddingConfig, model: ModelConfig) -> Path:
    name = settings.model or ""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if settings.revision is not None:
            raise ConfigError(
                f"Setting 'embeddings.revision' cannot be '{settings.revision}', as {name} is a folder without "
                "revisions; leave it out."
            )
        return folder
    parts = name.split("/")
    if folder.exists() or len(parts) > 2 or not all(parts) or name.startswith((".", "~")):
        raise ModelError(f"The model folder {name} does not exist; name a folder or a Hub id such as owner/name.")
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            found = snapshot_download(
                name,
                revision=settings.revision,
                allow_patterns=[*_FILES, *(["*.py"] if model.trust_remote_code else [])],
                ignore_patterns=["onnx/*", "openvino/*"],
            )
    except Exception as error:  # the Hub client raises a dozen unrelated classes
        raise ModelError(
            f"The model {name} cannot be fetched ({first_line(error)}); name a folder, or a Hub id within reach."
        ) from None
    return Path(found)


def _require_safe(folder: Path, name: str, *, trust: bool) -> None:
    """Refuse pickles that would be loaded, and modules that are code of the model's own."""
    for place in {folder, *(path for path in folder.rglob("*") if path.is_dir())}:
        pickles = [file.name for pattern in _PICKLES for file in place.glob(pattern)]
        if pickles and not list(place.glob("*.safetensors")):
            raise ModelError(
                f"The model {name} has weights in {pickles[0]} and none in safetensors beside it, and pickles are "
                "never loaded; save it with save_pretrained of sentence-transformers 5."
            )
    modules = folder / "modules.json"
    if not modules.is_file():
        raise ModelError(
            f"{name} is no sentence-transformers model, as it has no modules.json; name one that is, or leave "
            "embeddings.model out for the proxy's hidden states."
        )
    try:
        kinds = [str(module["type"]) for module in json.loads(modules.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{modules} cannot be read; fetch the model {name} again.") from None
    foreign = [kind for kind in kinds if not kind.startswith(_OWN)]
    if foreign and not trust:
        raise ModelError(
            f"The model {name} runs code of its own ({foreign[0]}); name another, or set model.trust_remote_code if "
            "you trust it."
        )


def _deciding(folder: Path) -> list[Path]:
    """Files of a model that decide its numbers, in a fixed order."""
    kinds = {".json", ".safetensors", ".txt", ".model", ".py"}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in kinds)
