"""Progress for the trackers that accelerate knows: TensorBoard, Weights & Biases, MLflow and others."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spice_select.errors import ConfigError


class Tracking:
    """Hands numbers to a tracker, or to nobody.

    Args:
        tracker: A started tracker of accelerate; None: nobody listens.
    """

    def __init__(self, tracker: Any = None) -> None:
        self._tracker = tracker

    @classmethod
    def start(cls, name: str | None, folder: Path, settings: Mapping[str, Any]) -> Tracking:
        """Start the tracker of a name.

        Args:
            name: Its name in accelerate; None: none.
            folder: Where trackers that write files put them.
            settings: Settings of the run, shown beside its curves.

        Raises:
            ConfigError: No such tracker, its package is missing, or it cannot be started.
        """
        if name is None:
            return cls()
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        check_tracker(name)
        # Trackers write to a log of accelerate's, which asks for its state, and making that may change the threads.
        threads = torch.get_num_threads()
        try:
            PartialState(cpu=True)
            kind: Any = LOGGER_TYPE_TO_CLASS[name]
            places = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
            tracker = kind("spice-select", **places)
            # Only one process has a tracker, so that it need not ask which it is.
            tracker.main_process_only = False
            tracker.start()
            tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})
        except Exception as error:  # each tracker raises classes of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ConfigError(
                f"The tracker '{name}' of schedule.tracker cannot be started ({reason}); mend it or leave it out."
            ) from None
        finally:
            torch.set_num_threads(threads)
        return cls(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand over numbers; ``step`` counts pools."""
        if self._tracker is not None:
            self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        """Tell the tracker that the run has ended."""
        if self._tracker is not None:
            self._tracker.finish()


def check_tracker(name: str) -> None:
    """Refuse a tracker that is unknown or not installed.

    Raises:
        ConfigError: So it is.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        near = difflib.get_close_matches(name, LOGGER_TYPE_TO_CLASS, n=1, cutoff=0.0)
        raise ConfigError(
            f"Setting 'schedule.tracker' cannot be '{name}'; did you mean '{near[0]}'? "
            f"Known are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}."
        )
    available = [str(getattr(known, "value", known)) for known in get_available_trackers()]
    if name not in available:
        raise ConfigError(
            f"Setting 'schedule.tracker' is '{name}', whose package is not installed; install it or name another."
        )


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
