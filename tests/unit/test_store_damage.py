"""No damage goes unseen: any bit of any file of any shard, a truncated file, a file of another store."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from spice_select.errors import StoreCorrupt
from spice_select.gradients.shards import ShardFiles
from spice_select.gradients.store import GradientStore
from tests.stores import FakeEngine, contents, examples, fill

FILES = [f"shards/00000{shard}{end}" for shard in range(3) for end in (".npy", ".meta.npy", ".json")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fill(folder, examples(20), FakeEngine(4))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def test_the_store_has_these_files(whole: Path) -> None:
    assert sorted(contents(whole)) == sorted(["manifest.json", *FILES])


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_named(folder: Path, name: str) -> None:
    path = folder / name
    good = path.read_bytes()
    random = np.random.default_rng(0)
    positions = range(len(good)) if name.endswith(".json") else random.choice(len(good), 40, replace=False)
    for position in positions:
        bad = bytearray(good)
        bad[position] ^= 1 << int(random.integers(8))
        path.write_bytes(bad)
        with pytest.raises(StoreCorrupt, match="is not what was written") as caught:
            GradientStore.open(folder, verify=True)
        assert name.split(".")[0] in str(caught.value)
        assert caught.value.exit_code == 3
    path.write_bytes(good)
    GradientStore.open(folder, verify=True)


def test_a_flipped_bit_in_the_manifest_is_found(folder: Path) -> None:
    path = folder / "manifest.json"
    good = path.read_bytes()
    random = np.random.default_rng(1)
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << int(random.integers(8))
        path.write_bytes(bad)
        with pytest.raises(Exception, match=r"is not what was written|schema version") as caught:
            GradientStore.open(folder)
        assert getattr(caught.value, "exit_code", None) == 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["cut", "empty", "longer", "gone"])
def test_a_file_of_another_size_is_found_without_hashing(folder: Path, name: str, change: str) -> None:
    path = folder / name
    good = path.read_bytes()
    if change == "gone":
        path.unlink()
        if name.endswith(".json"):
            assert GradientStore.open(folder, partial=True).missing == (int(path.stem),)
            return
    else:
        path.write_bytes({"cut": good[:-1], "empty": b"", "longer": good + b" "}[change])
    with pytest.raises(StoreCorrupt, match=path.name):
        GradientStore.open(folder)


def test_damage_after_opening_is_found_by_verify(folder: Path) -> None:
    store = GradientStore.open(folder)
    store.verify()
    path = folder / "shards" / "000002.npy"
    bad = bytearray(path.read_bytes())
    bad[-1] ^= 1
    path.write_bytes(bad)
    with pytest.raises(StoreCorrupt, match=r"000002\.npy is not what was written \(its SHA-256 differs\)"):
        store.verify()


def test_a_shard_of_another_place_or_store_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    fill(other, examples(20, seed=1), FakeEngine(4))
    shards = folder / "shards"
    for end in (".npy", ".meta.npy", ".json"):
        shutil.copy(other / "shards" / f"000000{end}", shards / f"000000{end}")
    with pytest.raises(StoreCorrupt, match="belongs to another store"):
        GradientStore.open(folder)
    for end in (".npy", ".meta.npy", ".json"):
        shutil.copy(shards / f"000001{end}", shards / f"000000{end}")
    with pytest.raises(StoreCorrupt, match="belongs to another store"):
        GradientStore.open(folder)


def test_nothing_is_ever_unpickled(whole: Path, folder: Path) -> None:
    files = ShardFiles(folder, GradientStore.open(whole).manifest)
    for path in (files.rows_path(files.plan[0]), files.meta_path(files.plan[0])):
        np.save(path, np.array([{"a": 1}] * 8, dtype=object), allow_pickle=True)
    with pytest.raises(StoreCorrupt, match="it is no array"):
        files.map_rows(files.plan[0])
    with pytest.raises(StoreCorrupt, match="it is no array"):
        files.read_meta(files.plan[0])
