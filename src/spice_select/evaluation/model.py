"""The model that is evaluated: a folder, a Hub id, or trained adapters on a base."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from spice_select.config import GradientConfig, ModelConfig
from spice_select.errors import ConfigError, ModelError
from spice_select.evaluation.record import EvaluatedModel, identity_of
from spice_select.gradients.identity import files_hash
from spice_select.gradients.proxy import Proxy, first_line, load_proxy, load_tokenizer, quiet

_ADAPTER = "adapter_config.json"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory.

    Attributes:
        proxy: The model, its adapters merged, and its tokenizer.
        facts: What tells it from others.
    """

    proxy: Proxy
    facts: EvaluatedModel


def resolve_model(name: str, base: str | None, settings: ModelConfig) -> ModelConfig:
    """Where the weights are.

    Args:
        name: Folder or Hub id of a model; or folder of PEFT adapters, or their Hub id where a base is given.
        base: The model that adapters are put on; none: what they name.
        settings: Dtype, device and the like.

    Raises:
        ConfigError: A base for a model that has no adapters.
        ModelError: Adapters that name no base, or one that isn't there.
    """
    folder = Path(name).expanduser()
    adapters = (folder / _ADAPTER).is_file()
    if not adapters and base is not None and not folder.is_dir():
        folder, adapters = _fetched(name), True
    if not adapters:
        if base is not None:
            raise ConfigError(f"--base {base} is for adapters, and {name} holds no {_ADAPTER}; leave --base out.")
        return settings.model_copy(update={"name": name, "adapter": None})
    named = base or _base_of(folder)
    return settings.model_copy(update={"name": named, "adapter": str(folder)})


def load_model(name: str, model: ModelConfig) -> Loaded:
    """Load a model, its adapters merged into the weights.

    Args:
        name: What the user called it.
        model: Where it is.

    Raises:
        ConfigError: The device or the dtype cannot be used here.
        ModelError: Anything about the model that cannot be read or used, in one sentence.
    """
    with warnings.catch_warnings():
        # No gradients are taken here.
        warnings.filterwarnings("ignore", message="The gradients cover")
        proxy = load_proxy(model, GradientConfig())
    if model.adapter is not None and (Path(model.adapter) / "tokenizer_config.json").is_file():
        # The template that the adapters were trained under comes with them.
        proxy.tokenizer = load_tokenizer(ModelConfig(name=model.adapter, trust_remote_code=model.trust_remote_code))
    facts = EvaluatedModel(
        name=_shown(name),
        base=None if model.adapter is None else _shown(model.name),
        weights=proxy.weights_hash,
        tokenizer=proxy.tokenizer_hash,
        settings=_settings_hash(proxy, model),
        dtype=str(proxy.dtype).removeprefix("torch."),
        device=proxy.device.type,
    )
    return Loaded(proxy, facts)


def _settings_hash(proxy: Proxy, model: ModelConfig) -> str:
    config = proxy.model.config.to_dict()
    # Where the files lay, and who wrote them.
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    adapter = None if model.adapter is None else files_hash([Path(model.adapter) / _ADAPTER])
    return identity_of({"model": json.loads(json.dumps(config, default=str)), "adapter": adapter})


def _base_of(folder: Path) -> str:
    try:
        named = json.loads((folder / _ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"The {_ADAPTER} of {folder} cannot be read ({first_line(error)}); save it again.") from None
    if not isinstance(named, str) or not named:
        raise ModelError(f"The adapters {folder} do not name the model they belong on; name it with --base MODEL.")
    if Path(named).is_absolute() and not Path(named).is_dir():
        raise ModelError(
            f"The adapters {folder} belong on {named}, which is not on this machine; name that model with --base MODEL."
        )
    return named


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except Exception as error:  # the Hub client raises a dozen unrelated classes
        raise ModelError(
            f"The adapters {name} cannot be fetched ({first_line(error)}); name a folder, or a Hub id within reach."
        ) from None
    if not (folder / _ADAPTER).is_file():
        raise ConfigError(f"--base is for adapters, and {name} holds no {_ADAPTER}; leave --base out.")
    return folder


def _shown(name: str) -> str:
    """A model's name; of a folder the last part, which says less of the machine."""
    return Path(name).expanduser().absolute().name if Path(name).expanduser().exists() else name
