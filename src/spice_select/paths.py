"""Local paths of a configuration made whole, so that a written one replays from any working folder."""

from __future__ import annotations

import os

from spice_select.config import RunConfig

_LONGEST = 4096
"""A template may stand in the configuration itself; text longer than this is no path."""


def absolute(name: str) -> str:
    """A name of something on this disk as a whole path; any other, such as a Hub id, as it is."""
    try:
        local = os.path.expanduser(name)
        return os.path.abspath(local) if len(local) <= _LONGEST and os.path.exists(local) else name
    except ValueError:  # a NUL, which no path has; whoever opens it says so
        return name


def with_whole_paths(config: RunConfig) -> RunConfig:
    """The configuration with every local path in it made absolute, but for the output's."""
    data, model, gradients, selection = config.data, config.model, config.gradients, config.selection
    training = config.training
    lora = gradients.lora
    if lora is not None:
        lora = lora.model_copy(update={"adapter": _maybe(lora.adapter)})
    return config.model_copy(
        update={
            "data": data.model_copy(
                update={
                    "sources": tuple(map(absolute, data.sources)),
                    "chat_template": _maybe(data.chat_template),
                    "contamination": tuple(map(absolute, data.contamination)),
                    "target": tuple(map(absolute, data.target)),
                }
            ),
            "model": model.model_copy(
                update={"name": absolute(model.name) if model.name else "", "adapter": _maybe(model.adapter)}
            ),
            "embeddings": config.embeddings.model_copy(update={"model": _maybe(config.embeddings.model)}),
            "training": training.model_copy(
                update={
                    "model": absolute(training.model) if training.model else "",
                    "heldout": tuple(map(absolute, training.heldout)),
                }
            ),
            "gradients": gradients.model_copy(update={"lora": lora}),
            "selection": selection.model_copy(
                update={"initial": _maybe(selection.initial), "exclude": _maybe(selection.exclude)}
            ),
        }
    )


def _maybe(name: str | None) -> str | None:
    return absolute(name) if name else name
