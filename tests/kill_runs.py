"""Kills a collect with a real model over and over: ``python -m tests.kill_runs MODEL FOLDER [--kills 20] [--rows 64]``.

The model is loaded once; each run is a child of the process that holds it, killed by SIGKILL at a random moment. Ends
by comparing the store with that of an undisturbed run; prints one line, and exits 1 if a byte differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from spice_select.config import GradientConfig, ModelConfig
from spice_select.data.encoded import Encoded
from spice_select.gradients.capture import GradientEngine
from spice_select.gradients.collect import collect
from spice_select.gradients.proxy import Proxy, load_proxy
from spice_select.gradients.store import GradientStore
from tests.stores import contents, examples


def child(encoded: Encoded, engine: GradientEngine, proxy: Proxy, folder: Path, config: GradientConfig) -> int:
    """Begin a collect in a process of its own."""
    process = os.fork()
    if process == 0:
        try:
            identity = {"weights": proxy.weights_hash, "tokenizer": proxy.tokenizer_hash}
            collect(encoded, engine, folder, config, identity=identity)
            os._exit(0)
        finally:
            os._exit(1)
    return process


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--shard-rows", type=int, default=4)
    parser.add_argument("--dim", type=int, default=4096)
    asked = parser.parse_args()
    # Threads of the parent would not be there in its children.
    torch.set_num_threads(1)
    config = GradientConfig(shard_rows=asked.shard_rows, dim=asked.dim, batch_tokens=128)
    proxy = load_proxy(ModelConfig(name=asked.model, device="cpu"), config)
    assert len(proxy.weights_hash) == len(proxy.tokenizer_hash) == 64
    engine = GradientEngine(proxy, config)
    encoded = examples(asked.rows, vocabulary=proxy.model.config.vocab_size)

    def start(name: str) -> int:
        return child(encoded, engine, proxy, asked.folder / name, config)

    begun = time.perf_counter()
    assert ended(start("undisturbed")) == 0
    whole = time.perf_counter() - begun
    moments, kills, early, longest = random.Random(), 0, 0, min(whole, 3 * whole / asked.kills)
    while kills < asked.kills:
        process = start("killed")
        time.sleep(moments.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        if ended(process) == -signal.SIGKILL:
            kills += 1
            continue
        # It was quicker: all but the first shards are taken away for another try, in less time.
        early, longest = early + 1, longest / 2
        for path in sorted((asked.folder / "killed" / "shards").glob("*.json"))[2:]:
            path.unlink()
    if ended(start("killed")) != 0:
        print("the last run failed")
        return 1
    GradientStore.open(asked.folder / "killed", verify=True)
    same = contents(asked.folder / "killed") == contents(asked.folder / "undisturbed")
    print(f"{kills} kills, {early} runs that ended first, undisturbed {whole:.1f} s: {'same' if same else 'differs'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
