"""The proxy model: loading, freezing, choosing layers, and what identifies it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spice_select.config import GradientConfig, ModelConfig
from spice_select.errors import ConfigError, ModelError
from spice_select.gradients.identity import files_hash, layers_hash, state_hash, tokenizer_hash
from spice_select.gradients.layers import Layer, Scope, causal_model, find_scope

LOW_COVERAGE = 0.9
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.tiktoken"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Proxy:
    """A frozen causal language model in eval mode, and the layers whose gradients are taken.

    Attributes:
        model: The model; PEFT's wrapper where trained adapters are on.
        tokenizer: Its tokenizer.
        scope: Watched layers and what they cover.
        name: What the user called it.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, config: GradientConfig, *, name: str, weights: tuple[Path, ...] = ()
    ) -> None:
        model.requires_grad_(False)
        model.eval()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.name = name
        self.scope: Scope = find_scope(model, config)
        self._weights = weights
        if self.coverage < LOW_COVERAGE:
            warnings.warn(
                f"The gradients cover {self.coverage:.1%} of the non-embedding weights of {name}; what the rest would "
                "learn goes unseen.",
                stacklevel=3,
            )

    @classmethod
    def from_model(cls, model: nn.Module, tokenizer: Any, config: GradientConfig) -> Proxy:
        """Take a model that is in memory already; its weights are frozen and it is put into eval mode.

        Raises:
            ModelError: It is no causal language model of transformers, or has no layer in scope.
        """
        causal = causal_model(model)
        if not hasattr(causal, "get_output_embeddings") or causal.get_output_embeddings() is None:
            raise ModelError(
                f"{type(model).__name__} has no output head over a vocabulary; give a causal language model of "
                "transformers."
            )
        name = getattr(causal, "name_or_path", "") or type(causal).__name__
        return cls(model, tokenizer, config, name=name)

    def rescoped(self, config: GradientConfig, model: nn.Module | None = None) -> Proxy:
        """The same proxy with another scope, and with adapters on where ``model`` is PEFT's wrapper of its model.

        The hash of weights that come from files stays that of the files.

        Raises:
            ConfigError: ``gradients.layers`` is no regular expression.
            ModelError: No layer is in scope.
        """
        with warnings.catch_warnings():
            # Whoever loaded the proxy has been told of its coverage.
            warnings.filterwarnings("ignore", message="The gradients cover")
            return Proxy(
                self.model if model is None else model, self.tokenizer, config, name=self.name, weights=self._weights
            )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Weight matrices of the gradient, in the order of the model."""
        return self.scope.layers

    @property
    def coverage(self) -> float:
        """Share of the non-embedding weights covered; with adapters, by the layers that carry them."""
        return self.scope.coverage

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the weight files' contents, or of the weights themselves where they come from no file."""
        return files_hash(self._weights) if self._weights else state_hash(self.model.state_dict())

    @cached_property
    def tokenizer_hash(self) -> str:
        """SHA-256 of vocabulary, merges, special tokens and chat template; settings of padding don't count."""
        return tokenizer_hash(self.tokenizer)

    @cached_property
    def layer_digest(self) -> str:
        """SHA-256 over names and shapes of the layers."""
        return layers_hash(self.layers)

    def summary(self) -> str:
        """One line for a log."""
        count = sum(layer.size for layer in self.layers)
        return (
            f"{self.name}: {len(self.layers)} linear layers, {count:,} gradient values, "
            f"{self.coverage:.1%} of the non-embedding weights covered, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}"
        )


def load_tokenizer(model: ModelConfig) -> Any:
    """Load a tokenizer alone.

    Raises:
        ModelError: The folder or Hub id has none that can be read.
    """
    folder = _resolve(model, weights=False)
    return _load_tokenizer(folder, model)


def load_proxy(model: ModelConfig, gradients: GradientConfig) -> Proxy:
    """Load a proxy from a folder or the Hub; weights are read from safetensors only, never from pickles.

    Raises:
        ConfigError: The device or the dtype cannot be used here.
        ModelError: Anything about the model that cannot be read or used, in one sentence.
    """
    device = resolve_device(model.device)
    folder = _resolve(model, weights=True)
    tokenizer = _load_tokenizer(folder, model)
    network = _load_network(folder, model)
    if gradients.lora is not None and gradients.lora.factors == "both" and gradients.lora.adapter is None:
        warnings.warn(
            "The gradients of the LoRA factors A are exactly zero, as B is zero without a trained adapter; set "
            "gradients.lora.adapter, or gradients.lora.factors=B.",
            stacklevel=2,
        )
    files = tuple(sorted(folder.glob("*.safetensors")))
    if model.adapter is not None:
        network, adapter_files = _load_adapter(network, model.adapter)
        network = network.merge_and_unload()
        files += adapter_files
    if gradients.lora is not None and gradients.lora.adapter is not None:
        network, adapter_files = _load_adapter(network, gradients.lora.adapter)
        files += adapter_files
    try:
        network.to(device)
    except RuntimeError as error:
        raise ModelError(
            f"The model {model.name} doesn't fit on {device} ({first_line(error)}); use another model.device or "
            "model.dtype bfloat16."
        ) from None
    return Proxy(network, tokenizer, gradients, name=model.name, weights=files)


def resolve_device(name: str) -> torch.device:
    """The device that ``model.device`` names; ``auto`` is an accelerator where there is one.

    Raises:
        ConfigError: It isn't a device, or isn't there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"Setting 'model.device' cannot be '{name}': use auto, cpu, cuda, cuda:1 or mps.") from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }.get(device.type, False)
    if not there:
        raise ConfigError(f"Setting 'model.device' cannot be '{name}': there is no such device here; use auto or cpu.")
    return device


def _resolve(model: ModelConfig, *, weights: bool) -> Path:
    """Folder with the model's files; those of a Hub id are fetched, or taken from the cache."""
    if not model.name:
        raise ConfigError("Setting 'model.name' is missing; name a folder or a Hub id of a causal language model.")
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() and weights:
            raise ModelError(f"The folder {folder} holds no model, as it has no config.json; name a model folder.")
        if model.revision is not None:
            raise ConfigError(
                f"Setting 'model.revision' cannot be '{model.revision}', as {model.name} is a folder without "
                "revisions; leave it out."
            )
        return folder
    parts = model.name.split("/")
    if folder.exists() or len(parts) > 2 or not all(parts) or model.name.startswith((".", "~")):
        raise ModelError(f"The model folder {model.name} does not exist; name a folder or a Hub id such as owner/name.")
    from huggingface_hub import snapshot_download

    patterns = [p for p in _HUB_FILES if weights or p != "*.safetensors"]
    patterns += ["*.py"] if model.trust_remote_code else []
    try:
        with quiet():
            return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=patterns))
    except Exception as error:  # the Hub client raises a dozen unrelated classes
        raise ModelError(
            f"The model {model.name} cannot be fetched ({first_line(error)}); name a folder, or a Hub id within reach."
        ) from None


def _load_tokenizer(folder: Path, model: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # broken files raise whatever their parser raises
        raise ModelError(
            f"The model {model.name} has no tokenizer that can be read ({first_line(error)}); put its tokenizer.json "
            "beside its config.json."
        ) from None


def _load_network(folder: Path, model: ModelConfig) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    trust = model.trust_remote_code
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    except Exception as error:  # broken files raise whatever their parser raises
        raise ModelError(
            f"The config.json of {model.name} cannot be read ({first_line(error)}); name a folder or Hub id of a "
            "causal language model."
        ) from None
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    built = list(getattr(config, "architectures", None) or [])
    remote = trust and bool(getattr(config, "auto_map", None))
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not remote and (not known or (built and not causal.intersection(built))):
        raise ModelError(
            f"The model {model.name} is no causal language model ({', '.join(built) or config.model_type}); name one "
            "that predicts the next token, such as a Llama or Qwen."
        )
    if not list(folder.glob("*.safetensors")):
        pickles = [file.name for pattern in _PICKLES for file in folder.glob(pattern)]
        found = f"only {pickles[0]}, and pickles are never loaded" if pickles else "none"
        raise ModelError(
            f"The model {model.name} has no weights in safetensors ({found}); save it with save_pretrained of "
            "transformers 5."
        )
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype="auto" if model.dtype == "auto" else getattr(torch, model.dtype),
                trust_remote_code=trust,
                use_safetensors=True,
                attn_implementation=model.attention,
                output_loading_info=True,
            )
    except Exception as error:  # broken files raise whatever their parser raises
        if model.attention is not None and ("attn_implementation" in str(error) or isinstance(error, ImportError)):
            raise ConfigError(
                f"Setting 'model.attention' cannot be '{model.attention}' ({first_line(error)}); leave it out."
            ) from None
        raise ModelError(
            f"The weights of {model.name} cannot be loaded ({first_line(error)}); fetch the model again."
        ) from None
    network, info = loaded
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ModelError(
            f"The weights of {model.name} are incomplete: {len(missing)} are missing, such as {missing[0]}; fetch the "
            "model again."
        )
    return network


def _load_adapter(network: nn.Module, adapter: str) -> tuple[Any, tuple[Path, ...]]:
    from peft import PeftModel

    folder = Path(adapter).expanduser()
    if not (folder / "adapter_config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"The adapter folder {adapter} has no adapter_config.json with safetensors beside it; name a folder that "
            "PEFT's save_pretrained wrote."
        )
    try:
        with quiet():
            wrapped = PeftModel.from_pretrained(network, str(folder))  # type: ignore[arg-type]
    except Exception as error:  # a mismatch raises whatever PEFT raises
        raise ModelError(
            f"The adapter {adapter} cannot be put on the model ({first_line(error)}); name one that was trained on it."
        ) from None
    return wrapped, tuple(sorted(folder.glob("*.safetensors")))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and advice of the libraries off the terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if hub_bars and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if hub_bars and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
            enable_progress_bars()


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line of at most 200 characters."""
    text = str(error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    return line.rstrip(".") if len(line) <= 200 else line[:197] + "..."
