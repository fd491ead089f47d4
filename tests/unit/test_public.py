from __future__ import annotations

import subprocess
import sys

import spice_select


def test_the_public_names() -> None:
    assert sorted(spice_select.__all__) == ["GradientStore", "Selection", "errors", "select", "select_gram"]
    for name in spice_select.__all__:
        assert getattr(spice_select, name) is not None
    assert dir(spice_select) == sorted(spice_select.__all__)


def test_import_and_help_do_not_wait_for_torch() -> None:
    code = "import sys, spice_select, spice_select.cli.app; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=400)
