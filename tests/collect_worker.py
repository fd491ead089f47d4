"""A process that collects, to be killed: ``python -m tests.collect_worker FOLDER ROWS SECONDS_PER_ROW``.

It prints ``ready`` when it begins and the number of shards that it wrote when it ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from spice_select.gradients.collect import collect
from tests.stores import IDENTITY, FakeEngine, examples, settings

if __name__ == "__main__":
    folder, rows, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    encoded, engine = examples(rows), FakeEngine(512, sleep=seconds)
    print("ready", flush=True)
    result = collect(encoded, engine, folder, settings(), identity=IDENTITY)
    print(result.written_shards, flush=True)
