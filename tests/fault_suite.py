"""The small form of the campaigns, in one process: ``python -m tests.fault_suite FOLDER``.

Prints what each prints, and exits with the worst of their codes; 77 where all is well but nothing can be mounted here.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests import damage, full_disk, kill_campaign


def main() -> int:
    """Kills, damaged files, and a full disk."""
    base = Path(sys.argv[1])
    mounts = full_disk.enter("tests.fault_suite")
    small = ("--rows", "12")
    codes = [
        kill_campaign.main(
            [str(base / "kills"), "--kills", "8", "--chain", "3", "--verbs", "run:2,collect:2,select:2,train:2", *small]
        ),
        damage.main([str(base / "damage"), "--every", "11", "--kinds", "run", *small]),
        damage.main([str(base / "study"), "--every", "71", "--kinds", "study", *small]),
    ]
    if any(codes):
        return 1
    return full_disk.main([str(base / "disk"), "--verbs", "run", *small]) if mounts else 77


if __name__ == "__main__":
    sys.exit(main())
