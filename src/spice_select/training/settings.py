"""The settings of a training: those of the finished run, with another model in place of its proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spice_select.config import RunConfig, load_config
from spice_select.errors import ConfigError
from spice_select.paths import absolute, with_whole_paths
from spice_select.run_folder import RunFolder

_OPEN = ("seed", "data.sources", "data.chat_template", "data.max_length", "gradients.batch_tokens")


def training_config(
    run: RunFolder,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
) -> tuple[RunConfig, str]:
    """The settings of a run with the model that is trained in place of its proxy.

    Args:
        run: The run.
        model: Folder or Hub id; none: ``training.model`` of the run's settings, else its proxy.
        settings: Settings of the training section, by name.
        overrides: ``section.key=value`` settings.
        seed: The seed; none: the run's.

    Returns:
        The settings, and the name of the proxy.

    Raises:
        StoreError: The folder is no run's.
        ConfigError: A setting that cannot be used, or that would change what was selected.
    """
    earlier = run.read_config()
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key in ("model.name", "training.model"):
            raise ConfigError(f"--set {key} names the model that is trained; give it with --model.")
        if not key.startswith(("training.", "model.")) and key not in _OPEN:
            raise ConfigError(
                f"--set {key} belongs to the selection, which is finished; set training.* or model.*, or run anew."
            )
    name = absolute(model) if model else earlier.training.model or earlier.model.name
    if not name:
        raise ConfigError("The run names no model; give the one to train with --model.")
    target = earlier.model
    if name != target.name:
        target = target.model_copy(update={"name": name, "revision": None, "adapter": None})
    values: dict[str, Any] = {
        "model": target.model_dump(),
        "training": {**{key: value for key, value in (settings or {}).items() if value is not None}, "model": name},
    }
    if seed is not None:
        values["seed"] = seed
    config = with_whole_paths(load_config(run.config, overrides, values))
    if config.model.adapter is not None and config.training.mode == "lora":
        raise ConfigError(
            f"Setting 'model.adapter' cannot be '{config.model.adapter}' where adapters are trained, which would then "
            "sit on weights that are saved nowhere; merge it into the model first, or train with --full."
        )
    return config, earlier.model.name
