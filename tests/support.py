"""Where tests find what does not come with the package, and why they skip without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_path(*parts: str) -> Path:
    """A file or folder of the shared real data and models, or a skip that says what is missing."""
    base = Path(os.environ.get("SPICE_SHARED", ROOT.parent / "shared"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the shared data (set SPICE_SHARED)")
    return path


def smollm2_path() -> Path:
    """The folder of SmolLM2-135M-Instruct, or a skip."""
    folder = os.environ.get("SPICE_SMOLLM2")
    if not folder or not Path(folder, "config.json").exists():
        pytest.skip("needs SmolLM2-135M-Instruct (set SPICE_SMOLLM2 to its folder)")
    return Path(folder)
