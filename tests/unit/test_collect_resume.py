"""Going on where a run stopped, and refusing a store that is not what is asked for."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from spice_select.data.status import Status
from spice_select.errors import OutputBusy, OutputError, ResourceError, StoreCorrupt, StoreError, StoreMismatch
from spice_select.files import Lock
from spice_select.gradients.collect import collect
from spice_select.gradients.store import GradientStore
from tests.stores import IDENTITY, FakeEngine, contents, examples, fill, settings, with_status


def test_a_whole_store_is_reused_without_measuring(tmp_path: Path) -> None:
    fill(tmp_path, examples(20))
    before, engine = contents(tmp_path), FakeEngine()
    result = fill(tmp_path, examples(20), engine)
    assert (result.reused_shards, result.written_shards, result.tokens) == (3, 0, 0)
    assert engine.batches == []
    assert contents(tmp_path) == before


def test_missing_shards_alone_are_computed(tmp_path: Path) -> None:
    fill(tmp_path, examples(20))
    before = contents(tmp_path)
    (tmp_path / "shards" / "000001.json").unlink()
    (tmp_path / "shards" / ".000001.npy.99-abcd.tmp").write_bytes(b"half")
    told: list[tuple[int, int]] = []
    result = collect(
        examples(20),
        FakeEngine(),
        tmp_path,
        settings(),
        identity=IDENTITY,
        progress=lambda done, total, tokens, seconds: told.append((done, total)),
    )
    assert (result.reused_shards, result.written_shards) == (2, 1)
    assert told[0] == (12, 20) and told[-1] == (20, 20)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["000001.npy", "000001.meta.npy", "000001.json"])
@pytest.mark.parametrize("change", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_computed_anew_and_said(tmp_path: Path, name: str, change: str) -> None:
    fill(tmp_path, examples(20))
    before, path = contents(tmp_path), tmp_path / "shards" / name
    good = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(good[:-1] if change == "cut" else good[:-9] + bytes([good[-9] ^ 4]) + good[-8:])
    said: list[str] = []
    result = collect(examples(20), FakeEngine(), tmp_path, settings(), identity=IDENTITY, note=said.append)
    assert (result.reused_shards, result.written_shards) == (2, 1)
    if (name, change) != ("000001.json", "gone"):
        assert len(said) == 1 and "Shard 1 is damaged and will be computed anew" in said[0] and "000001." in said[0]
        assert "run collect again" not in said[0]
        assert len(result.damaged) == 1 and "Computed 1 damaged shards anew" in result.describe()[1]
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"identity": {**IDENTITY, "weights": "f" * 64}},
            "sources.weights is aaaaaaaaaaaa there and ffffffffffff here",
        ),
        ({"identity": {**IDENTITY, "tokenizer": "f" * 64}}, "sources.tokenizer is bbbbbbbbbbbb there"),
        (
            {"identity": {**IDENTITY, "template": {"hash": "c" * 64, "clock": "2024"}}},
            r"sources.template.clock is absent there and 2024 here",
        ),
        ({"encoded": examples(20, seed=1)}, "examples is [0-9a-f]{12} there and [0-9a-f]{12} here"),
        ({"encoded": with_status(examples(20), 3, Status.EXCLUDED)}, "examples is"),
        ({"encoded": examples(19)}, "rows is 20 there and 19 here"),
        ({"engine": FakeEngine(32)}, "dim is 24 there and 32 here; gradient.sketch.dim is 24 there and 32 here"),
        ({"engine": FakeEngine(changes={"loss": "all"})}, "gradient.loss is response there and all here"),
        (
            {"engine": FakeEngine(changes={"layers": ["a"]})},
            r"gradient.layers is \[a.q_proj, a.k_proj\] there and \[a\]",
        ),
        ({"engine": FakeEngine(changes={"lora": {"r": 16}})}, "gradient.lora.r is absent there and 16 here"),
        ({"config": settings(shard_rows=4)}, "shard_rows is 8 there and 4 here"),
        ({"config": settings(store_dtype="float16")}, "store_dtype is float32 there and float16 here"),
    ],
)
def test_a_store_of_something_else_is_refused_with_the_difference_named(
    tmp_path: Path, change: dict, named: str
) -> None:
    fill(tmp_path, examples(20))
    before = contents(tmp_path)
    asked = {
        "encoded": examples(20),
        "engine": FakeEngine(),
        "folder": tmp_path,
        "config": settings(),
        "identity": IDENTITY,
        **change,
    }
    with pytest.raises(StoreMismatch, match=named) as caught:
        collect(**asked)
    assert "name another folder, or start again with --overwrite" in str(caught.value)
    assert caught.value.exit_code == 4
    assert contents(tmp_path) == before
    collect(**asked, overwrite=True)
    fresh = {**asked, "folder": tmp_path.with_name(tmp_path.name + "-fresh")}
    collect(**fresh)
    assert contents(tmp_path) == contents(fresh["folder"])
    shutil.rmtree(fresh["folder"])


def test_versions_and_batch_size_are_recorded_and_do_not_bind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, examples(20))
    before = contents(tmp_path)
    monkeypatch.setattr("spice_select.gradients.manifest.version", lambda name: "999")
    result = fill(tmp_path, examples(20), batch_tokens=50)
    assert result.reused_shards == 3
    assert contents(tmp_path) == before


def test_overwrite_clears_old_shards_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, examples(40))
    (tmp_path / "shards" / "notes.txt").write_text("mine")
    (tmp_path / "shards" / ".000004.npy.1-ab.tmp").write_text("")
    collect(examples(20), FakeEngine(), tmp_path, settings(), identity=IDENTITY, overwrite=True)
    assert (tmp_path / "shards" / "notes.txt").read_text() == "mine"
    (tmp_path / "shards" / "notes.txt").unlink()
    fill(tmp_path.with_name("fresh"), examples(20))
    assert contents(tmp_path) == contents(tmp_path.with_name("fresh"))


def test_overwrite_spares_the_old_store_when_the_request_is_bad(tmp_path: Path) -> None:
    fill(tmp_path, examples(20))
    before = contents(tmp_path)
    unusable = examples(1, statuses={0: Status.NO_RESPONSE})
    with pytest.raises(Exception, match="No example"):
        collect(unusable, FakeEngine(), tmp_path, settings(), identity=IDENTITY, overwrite=True)
    assert contents(tmp_path) == before


def test_overwrite_replaces_a_broken_manifest(tmp_path: Path) -> None:
    fill(tmp_path, examples(20))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreCorrupt, match="collect again with --overwrite"):
        fill(tmp_path, examples(20))
    collect(examples(20), FakeEngine(), tmp_path, settings(), identity=IDENTITY, overwrite=True)
    assert GradientStore.open(tmp_path, verify=True).complete


def test_overwrite_waits_for_nobody(tmp_path: Path) -> None:
    fill(tmp_path, examples(20))
    before = contents(tmp_path)
    with (
        Lock.acquire(tmp_path / "locks" / "store.lock", shared=True),
        pytest.raises(OutputBusy, match="Another run is writing the gradient store"),
    ):
        collect(examples(20), FakeEngine(), tmp_path, settings(), identity=IDENTITY, overwrite=True)
    assert contents(tmp_path) == before


def test_shards_left_without_a_manifest_are_not_trusted(tmp_path: Path) -> None:
    fill(tmp_path, examples(40, seed=1))
    (tmp_path / "manifest.json").unlink()
    result = fill(tmp_path, examples(20))
    assert result.written_shards == 3
    assert GradientStore.open(tmp_path, verify=True).complete
    assert not (tmp_path / "shards" / "000004.npy").exists()


def test_a_leased_shard_is_left_to_its_worker_and_waited_for(tmp_path: Path) -> None:
    encoded = examples(20)
    fill(tmp_path / "alone", encoded)
    inside, go_on = threading.Event(), threading.Event()

    class Slow(FakeEngine):
        def batch(self, ids, masks):
            inside.set()
            assert go_on.wait(30)
            return super().batch(ids, masks)

    results = {}
    slow = threading.Thread(
        target=lambda: results.update(slow=collect(encoded, Slow(), tmp_path / "two", settings(), identity=IDENTITY))
    )
    slow.start()
    assert inside.wait(30)

    def note(sentence: str) -> None:
        said.append(sentence)
        go_on.set()

    said: list[str] = []
    quick = collect(encoded, FakeEngine(), tmp_path / "two", settings(), identity=IDENTITY, note=note)
    slow.join(30)
    assert said == ["Waiting for another run that is at 1 shards of this store."]
    assert (quick.written_shards, quick.peer_shards) == (2, 1)
    assert (results["slow"].written_shards, results["slow"].peer_shards) == (1, 2)
    assert contents(tmp_path / "two") == contents(tmp_path / "alone")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_leaves_whole_shards_and_a_resumable_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    encoded = examples(20)
    fill(tmp_path / "fresh", encoded)
    real, calls = os.fsync, []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 9:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        kind = ResourceError if code == errno.ENOSPC else OutputError
        with pytest.raises(kind, match="cannot be written"):
            fill(tmp_path / "store", encoded)
    assert not [name for name in contents(tmp_path / "store") if name.endswith(".tmp")]
    with pytest.raises(StoreError, match="is not whole"):
        GradientStore.open(tmp_path / "store")
    assert GradientStore.open(tmp_path / "store", verify=True, partial=True).usable.any()
    result = fill(tmp_path / "store", encoded)
    assert result.reused_shards >= 1
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh")


def test_what_the_disk_cannot_hold_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(ResourceError, match=r"needs 0\.00 GB more, and 0\.00 GB are free; make room"):
        fill(tmp_path / "store", examples(20))
    assert not (tmp_path / "store").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/store cannot be made \(not a directory\)") as caught:
        fill(tmp_path / "file" / "store", examples(20))
    assert caught.value.exit_code == 4


def test_ctrl_c_leaves_whole_shards(tmp_path: Path) -> None:
    class Interrupted(FakeEngine):
        def batch(self, ids, masks):
            if len(self.batches) == 5:
                raise KeyboardInterrupt
            return super().batch(ids, masks)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "store", examples(20), Interrupted())
    assert fill(tmp_path / "store", examples(20)).reused_shards == 1
    fill(tmp_path / "fresh", examples(20))
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh")


def test_the_random_state_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    before = np.random.get_state()[1].tobytes()
    fill(tmp_path, examples(20))
    assert np.random.get_state()[1].tobytes() == before
