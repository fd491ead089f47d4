"""Dies at the n-th change to the disk, for every n: ``python -m tests.crash_points FOLDER``.

Each n begins in a fresh folder, or in one that is being started again over another store; a child process ends
without any cleaning up just before the change. A second child then goes on. Prints how many points were tried; exits 1
at the first whose store differs from an undisturbed one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from spice_select.gradients.collect import collect
from spice_select.gradients.store import GradientStore
from tests.stores import IDENTITY, FakeEngine, contents, examples, settings

CHANGES = ("replace", "fsync", "unlink")
DIED = 9


def run(folder: Path, *, die_at: int | None = None, overwrite: bool = False) -> int:
    """Collect in a child process and return how it ended."""
    child = os.fork()
    if child == 0:
        try:
            if die_at is not None:
                _arm(die_at)
            collect(examples(12), FakeEngine(64), folder, settings(), identity=IDENTITY, overwrite=overwrite)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _arm(die_at: int) -> None:
    left = [die_at]

    def deadly(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            if left[0] == 0:
                os._exit(DIED)
            left[0] -= 1
            return real(*args, **options)

        return call

    for name in CHANGES:
        setattr(os, name, deadly(getattr(os, name)))


def main(base: Path) -> int:
    """Try every point of both beginnings."""
    assert run(base / "undisturbed") == 0
    expected, tried = contents(base / "undisturbed"), 0
    for over_another in (False, True):
        point, ended = 0, DIED
        while ended == DIED:
            folder = base / f"{over_another}-{point}"
            if over_another:
                collect(examples(9, seed=1), FakeEngine(64), folder, settings(), identity=IDENTITY)
            ended = run(folder, die_at=point, overwrite=over_another)
            manifest = contents(folder).get("manifest.json")
            # While the old manifest is there, going on means to start again once more.
            old = over_another and manifest not in (None, expected["manifest.json"])
            if run(folder, overwrite=old) != 0 or contents(folder) != expected:
                print(f"differs after dying at {point} ({over_another=})")
                return 1
            GradientStore.open(folder, verify=True)
            point, tried = point + 1, tried + 1
            if over_another and manifest == expected["manifest.json"]:
                # From here on it is as in a fresh folder.
                ended = 0
        if ended != 0:
            print(f"ended with {ended} at {point}")
            return 1
    print(tried)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
