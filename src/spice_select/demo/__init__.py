"""The embedded demo: a small language model and a generated pool, so that a run needs neither network nor files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from spice_select.demo.data import DemoRow, demo_rows, write_demo_rows
from spice_select.errors import ModelError

__all__ = ["DemoRow", "demo_model_path", "demo_rows", "write_demo_rows"]


def demo_model_path() -> Path:
    """Folder of the embedded model, as ``AutoModelForCausalLM.from_pretrained`` takes it.

    Raises:
        ModelError: if the package was installed without its model files.
    """
    folder = Path(str(files(__name__) / "assets"))
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"The demo's model is missing from {folder}; install spice-select again from a complete wheel."
        )
    return folder
