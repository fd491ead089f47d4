"""A collect that is killed, again and again, ends in the bytes of one that is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from spice_select.errors import StoreError
from spice_select.gradients.store import GradientStore
from tests.stores import contents
from tests.support import ROOT, smollm2_path

ROWS = 96
SHARDS = 12


class Server:
    """Collects in processes of their own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.collect_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def _ask(self, line: str) -> list[int]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        return [int(word) for word in self.process.stdout.readline().split()]

    def start(self, folder: Path, seconds: float = 0.004) -> int:
        """Begin a collect and return its process."""
        return self._ask(f"collect {folder} {ROWS} {seconds}")[0]

    def wait(self, process: int) -> tuple[int, int]:
        """How a process ended, and the shards that it says it wrote."""
        status, written = self._ask(f"wait {process}")
        return status, written

    def close(self) -> None:
        self.process.communicate(timeout=400)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves that nobody stops, and how long it takes."""

    contents: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder, begun = tmp_path_factory.mktemp("undisturbed"), time.perf_counter()
    assert server.wait(server.start(folder)) == (0, SHARDS)
    return Undisturbed(contents(folder), time.perf_counter() - begun)


def stop_and_go(server: Server, folder: Path, stops: int, number: signal.Signals, longest: float) -> int:
    """Stop a collect at random moments until that has happened often enough, then let it end.

    Returns:
        The most whole shards that were there when a run was stopped.
    """
    moments, delivered, most = random.Random(), 0, 0
    for _ in range(100 * stops):
        if delivered == stops:
            break
        process = server.start(folder)
        time.sleep(moments.uniform(0, longest))
        os.kill(process, number)
        status, _ = server.wait(process)
        if status == 0:
            # It was quicker: the shards after the first few are taken away for another try, in less time.
            longest /= 2
            for path in sorted((folder / "shards").glob("*.json"))[3:]:
                path.unlink()
            continue
        assert status in ((130, -number) if number == signal.SIGINT else (-number,))
        delivered += 1
        try:
            found = GradientStore.open(folder, verify=True, partial=True)
            most = max(most, SHARDS - len(found.missing))
        except StoreError as error:
            # Killed before there was a manifest.
            assert "There is no gradient store" in str(error)
    assert delivered == stops
    assert server.wait(server.start(folder, 0))[0] == 0
    return most


@pytest.mark.parametrize(("kills", "share"), [(3, 0.5), (20, 0.25)])
def test_kills_leave_no_trace(
    server: Server, tmp_path: Path, undisturbed: Undisturbed, kills: int, share: float
) -> None:
    most = stop_and_go(server, tmp_path, kills, signal.SIGKILL, share * undisturbed.seconds)
    assert contents(tmp_path) == undisturbed.contents
    if kills == 20:
        assert most > 0, "some run was killed with work done"


def test_ctrl_c_leaves_a_store_that_goes_on(server: Server, tmp_path: Path, undisturbed: Undisturbed) -> None:
    stop_and_go(server, tmp_path, 2, signal.SIGINT, 0.5 * undisturbed.seconds)
    assert contents(tmp_path) == undisturbed.contents


def test_two_processes_at_once_share_the_work(server: Server, tmp_path: Path, undisturbed: Undisturbed) -> None:
    ended = [server.wait(process) for process in [server.start(tmp_path), server.start(tmp_path)]]
    assert [status for status, _ in ended] == [0, 0]
    assert sum(written for _, written in ended) == SHARDS, "no shard was computed twice"
    assert contents(tmp_path) == undisturbed.contents


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel({"<unk>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, 64)}}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder


def kill_a_real_collect(model: Path, folder: Path, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_runs", str(model), str(folder), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("same\n")


def test_kills_of_a_real_model_leave_no_trace(tmp_path: Path, tiny_llama: Path) -> None:
    kill_a_real_collect(tiny_llama, tmp_path, "--kills", "3", "--dim", "256")


@pytest.mark.slow
def test_twenty_kills_of_smollm2_leave_no_trace(tmp_path: Path) -> None:
    kill_a_real_collect(smollm2_path(), tmp_path, "--kills", "20", "--rows", "48")


def test_dying_at_any_change_to_the_disk_leaves_no_trace(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash_points", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=550,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Manifest, and three files of each of two shards, each brought to the disk and renamed; removals before that.
    assert int(done.stdout) > 2 * 7 + 7
