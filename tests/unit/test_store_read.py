"""Reading a store: rows by number, blocks in order, records, and stores that aren't whole."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from spice_select.data.status import Status
from spice_select.errors import StoreCorrupt, StoreError, StoreMismatch
from spice_select.gradients import store as store_module
from spice_select.gradients.manifest import Manifest
from spice_select.gradients.store import ABSENT, GradientStore, _widen, estimated_bytes
from tests.stores import FakeEngine, contents, examples, fill

N = 30


@pytest.fixture(scope="module")
def encoded():
    return examples(N, statuses={3: Status.NO_RESPONSE, 11: Status.EXCLUDED, 20: Status.TRUNCATED})


@pytest.fixture(scope="module")
def folder(encoded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    fill(folder, encoded)
    return folder


def expected(encoded) -> np.ndarray:
    engine = FakeEngine()
    rows = np.zeros((N, engine.dim), np.float32)
    for row in np.flatnonzero(encoded.usable):
        rows[row] = engine.row(encoded.example(row).input_ids)
    return rows


def test_rows_keep_the_number_they_came_with(folder: Path, encoded) -> None:
    store = GradientStore.open(folder, verify=True)
    assert store.shape == (N, 24) and len(store) == N and store.dim == 24 and store.complete
    assert np.array_equal(store.rows(range(N)), expected(encoded))
    wanted = np.array([29, 0, 7, 8, 0, 16, 15])
    assert np.array_equal(store.rows(wanted), expected(encoded)[wanted])
    assert store.rows([]).shape == (0, 24)


def test_records_lie_beside_the_rows(folder: Path, encoded) -> None:
    store = GradientStore.open(folder)
    assert np.array_equal(store.statuses, encoded.status)
    assert np.array_equal(store.usable, encoded.usable)
    assert np.array_equal(store.lengths, encoded.response_tokens)
    assert np.array_equal(store.digests, encoded.digests)
    exact = np.square(expected(encoded).astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(store.squared_norms, exact, rtol=1e-12)
    np.testing.assert_allclose(store.norms, np.sqrt(exact), rtol=1e-6)
    np.testing.assert_allclose(store.losses[encoded.usable], encoded.response_tokens[encoded.usable] / 7)
    assert np.isnan(store.losses[~encoded.usable]).all()
    assert store.manifest.examples == encoded.digest


def test_excluded_rows_are_zero_and_unusable(folder: Path) -> None:
    store = GradientStore.open(folder)
    assert not store.rows([3, 11]).any()
    assert store.usable.sum() == N - 2
    assert store.usable[20] and store.statuses[20] == Status.TRUNCATED


@pytest.mark.parametrize("size", [1, 3, 8, 20, 1000])
def test_blocks_are_all_rows_in_order(folder: Path, encoded, size: int) -> None:
    starts, blocks = zip(*GradientStore.open(folder).blocks(size), strict=True)
    assert list(starts) == list(range(0, N, size))
    assert np.array_equal(np.concatenate(blocks), expected(encoded))


def test_records_cannot_be_changed(folder: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        GradientStore.open(folder).usable[0] = False


def test_what_is_no_row_is_refused(folder: Path) -> None:
    store = GradientStore.open(folder)
    with pytest.raises(IndexError, match="Row 30 is not in"):
        store.rows([0, 30])
    with pytest.raises(IndexError, match="Row -1 is not in"):
        store.rows([-1])
    with pytest.raises(IndexError, match="whole numbers"):
        store.rows(np.ones(N, np.bool_))
    with pytest.raises(ValueError, match="at least 1"):
        next(store.blocks(0))


def test_few_maps_are_open_at_once(folder: Path, encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_MOST_MAPS", 2)
    store = GradientStore.open(folder)
    assert np.array_equal(store.rows(range(N)), expected(encoded))
    assert len(store._maps) == 2
    assert np.array_equal(store.rows([0, 29, 9]), expected(encoded)[[0, 29, 9]])


def test_a_store_travels_as_its_folder(tmp_path: Path, encoded) -> None:
    fill(tmp_path, encoded)
    sent = pickle.dumps(GradientStore.open(tmp_path))
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert np.array_equal(again.rows(range(N)), expected(encoded)) and again.folder == tmp_path
    shutil.rmtree(tmp_path)
    fill(tmp_path, examples(N, seed=9))
    with pytest.raises(StoreMismatch, match="was replaced while it was in use"):
        pickle.loads(sent)


def test_a_folder_without_a_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no gradient store in") as caught:
        GradientStore.open(tmp_path)
    assert caught.value.exit_code == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="There is no gradient store in"):
        GradientStore.open(tmp_path / "file")


def test_missing_shards_are_named_with_the_remedy(tmp_path: Path, encoded) -> None:
    fill(tmp_path, encoded)
    (tmp_path / "shards" / "000001.json").unlink()
    with pytest.raises(StoreError, match=r"1 of its 4 shards are missing \(000001\); run the same collect again"):
        GradientStore.open(tmp_path)
    store = GradientStore.open(tmp_path, partial=True)
    assert not store.complete and store.missing == (1,)
    assert "1 shards missing" in repr(store)
    assert not store.usable[8:16].any() and (store.statuses[8:16] == ABSENT).all()
    assert np.array_equal(store.rows([0, 16]), expected(encoded)[[0, 16]])
    with pytest.raises(StoreError, match="Shard 1 of the gradient store"):
        store.rows([0, 8])
    store.verify()


def test_another_schema_version_is_a_clear_sentence(tmp_path: Path, encoded) -> None:
    fill(tmp_path, encoded)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(StoreError, match="has schema version 2, and this program reads version 1") as caught:
        GradientStore.open(tmp_path)
    assert not isinstance(caught.value, StoreCorrupt)


@pytest.mark.parametrize("written", ["", "{", "[]", "{}", '{"schema_version": 1}', "\x00\xff"])
def test_a_broken_manifest_is_named(tmp_path: Path, encoded, written: str) -> None:
    fill(tmp_path, encoded)
    (tmp_path / "manifest.json").write_text(written)
    with pytest.raises(StoreCorrupt, match=r"manifest\.json is not what was written"):
        GradientStore.open(tmp_path)


def test_the_manifest_tells_what_the_store_holds(folder: Path, encoded) -> None:
    written = json.loads((folder / "manifest.json").read_text())
    assert written["schema_version"] == 1
    assert written["gradient"]["sketch"] == {"kind": "fold", "dim": 24, "seed": 0, "test_vector": [0.5, -1.25]}
    assert written["sources"]["weights"] == "a" * 64
    assert {"torch", "numpy", "python"} <= written["versions"].keys()
    checksum = written.pop("checksum")
    assert len(checksum) == 64
    manifest = Manifest.model_validate(written)
    assert manifest == GradientStore.open(folder).manifest
    with pytest.raises(ValueError, match="frozen"):
        manifest.rows = 3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_size_on_disk_is_known_beforehand(tmp_path: Path, dtype: str) -> None:
    fill(tmp_path, examples(200), FakeEngine(300), store_dtype=dtype, shard_rows=64)
    taken = sum(map(len, contents(tmp_path).values()))
    assert taken == pytest.approx(estimated_bytes(200, 300, dtype, 64), abs=4096)


def test_every_float16_number_is_widened_to_itself():
    """In pieces, the last of them a short one."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    narrow = np.concatenate([every, every[:100]])
    wide = np.empty(len(narrow), np.float32)
    _widen(narrow, wide)
    np.testing.assert_array_equal(wide, narrow.astype(np.float32))
