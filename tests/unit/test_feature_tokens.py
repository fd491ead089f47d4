"""Token features are what the head reads, are kept on disk, and survive whatever happens to a run."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spice_select.errors import DataError, OutputError, ResourceError, StoreCorrupt
from spice_select.features import token_chunks, tokens
from spice_select.features.bench import Bench
from spice_select.features.gather import gather
from spice_select.features.readout import Readout, head_width
from spice_select.features.token_chunks import Chunk, TokenFeatures, plan_chunks
from spice_select.features.tokens import collect_tokens, sign_matrix
from spice_select.methods import make_method
from spice_select.selection.budget import Budget
from tests.benches import Told, family_proxy, make_bench

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Question {i}? " + "More. " * (i % 3), "response": "It is " + "so " * (1 + i * 5 % 7) + "."}
    for i in range(7)
]
SMALL: dict[str, Any] = {"gradients": {"batch_tokens": 120}}


def _all(found: TokenFeatures) -> list[np.ndarray]:
    return [np.array(found.of(index)) for index in range(len(found.counts))]


def _head_inputs(bench: Bench, index: int) -> np.ndarray:
    """What the head is given by a plain forward pass of one row."""
    model, seen = bench.proxy.model, []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(bench.pool.encoded.example(index).input_ids).long()[None])
    hook.remove()
    return seen[0].float().numpy()


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".npy", ".json")}


# Gemma caps after the head, Granite scales there; OPT narrows before it.
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2", "granite", "opt"])
def test_they_are_what_the_head_reads(tmp_path: Path, family: str) -> None:
    bench = make_bench(tmp_path, ROWS, proxy=family, **SMALL)
    whole = [_head_inputs(bench, index) for index in range(len(ROWS))]
    for positions in ("response", "all"):
        found = collect_tokens(bench, positions=positions, dim=None)
        for index in range(len(ROWS)):
            example = bench.pool.encoded.example(index)
            mask = example.labels_mask if positions == "response" else np.ones(len(example.input_ids), dtype=bool)
            expected = whole[index][np.flatnonzero(mask[1:])]
            assert found.counts[index] == len(expected) > 0
            np.testing.assert_allclose(found.of(index), expected, rtol=2e-4, atol=2e-5)
        assert found.dim == head_width(bench.proxy) == found.of(0).shape[1]


def test_a_model_whose_decoder_cannot_be_held_still(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, ROWS, **SMALL)
    readout = Readout(bench.proxy)
    examples = [bench.pool.encoded.example(index) for index in (0, 3)]
    batch = readout.build([e.input_ids for e in examples], [e.labels_mask for e in examples])
    ids = torch.tensor([3, 40])
    states, probabilities = readout.states(batch), readout.probabilities(batch, ids)
    readout.path = "full"
    torch.testing.assert_close(readout.states(batch), states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(readout.probabilities(batch, ids), probabilities, rtol=1e-4, atol=1e-7)


def test_a_projection_keeps_inner_products_on_average() -> None:
    generator = np.random.default_rng(0)
    states = generator.normal(size=(20, 64))
    grams = [(states @ sign_matrix(64, 16, seed)) @ (states @ sign_matrix(64, 16, seed)).T for seed in range(200)]
    # The error of a mean of 200 projections to 16 is near |x| |y| / sqrt(200 * 16).
    assert np.abs(np.mean(grams, axis=0) - states @ states.T).max() < 64 * 6 / np.sqrt(200 * 16)
    assert set(np.unique(sign_matrix(8, 4, 0))) == {np.float32(0.5), np.float32(-0.5)}


def test_a_projection_is_of_the_exact_states_and_has_a_seed(tmp_path: Path) -> None:
    proxy = family_proxy("llama")
    bench = make_bench(tmp_path, ROWS, proxy=proxy, **SMALL)
    exact = collect_tokens(bench, positions="response", dim=None)
    found = collect_tokens(bench, positions="response", dim=8)
    assert found.dim == 8
    for index in range(len(ROWS)):
        expected = exact.of(index) @ sign_matrix(exact.dim, 8, 0)
        np.testing.assert_allclose(found.of(index), expected, rtol=1e-4, atol=1e-3)
    other = make_bench(tmp_path, ROWS, proxy=proxy, **SMALL, seed=5)
    assert not np.allclose(collect_tokens(other, positions="response", dim=8).of(0), found.of(0))
    # Neither the seed nor a length that is no shorter makes another measurement of exact states.
    before = other.passes.copy()
    assert collect_tokens(other, positions="response", dim=10_000).dim == exact.dim
    assert [passes.forwards for name, passes in other.passes.items() if name not in before] == [len(ROWS)]
    assert len(list((tmp_path / "measured").glob("tokens-*.json"))) == 3


def test_batches_and_chunks_do_not_change_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _all(collect_tokens(make_bench(tmp_path / "a", ROWS), positions="all", dim=None))
    monkeypatch.setattr(token_chunks, "CHUNK_ROWS", 2)
    bench = make_bench(tmp_path / "b", ROWS, gradients={"batch_tokens": 1})
    found = collect_tokens(bench, positions="all", dim=None)
    assert len(list((tmp_path / "b" / "measured").glob("tokens-*/*.npy"))) == 4
    for ours, theirs in zip(_all(found), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
    # In any order, with chunks mapped and let go of.
    monkeypatch.setattr(token_chunks, "_MOST_MAPS", 1)
    fresh = collect_tokens(bench, positions="all", dim=None)
    for index in (6, 0, 3, 1, 6):
        assert np.array_equal(fresh.of(index), found.of(index)) and not fresh.of(index).flags.writeable
    with pytest.raises(IndexError, match="Row 7 is none of the 7 rows"):
        fresh.of(7)


def test_chunks_end_by_rows_and_by_size() -> None:
    assert plan_chunks(np.array([], dtype=np.int64), 4) == ()
    assert plan_chunks(np.full(300, 1), 4) == (Chunk(0, 0, 256), Chunk(1, 256, 300))
    tokens_of_a_chunk = token_chunks.CHUNK_BYTES // (4 * 1024)
    counts = np.array([tokens_of_a_chunk * 2, 1, tokens_of_a_chunk - 1, 1, 0])
    assert [(chunk.start, chunk.stop) for chunk in plan_chunks(counts, 1024)] == [(0, 1), (1, 3), (3, 5)]


def test_passes_are_counted_once(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, ROWS, reporter=Told())
    collect_tokens(bench, positions="response", dim=None)
    (passes,) = bench.passes.values()
    assert (passes.what, passes.forwards, passes.backwards) == ("tokens", len(ROWS), 0)
    assert passes.tokens == bench.pool.encoded.lengths.sum()
    told = Told()
    again = make_bench(tmp_path, ROWS, reporter=told)
    collect_tokens(again, positions="response", dim=None)
    assert again.passes == bench.passes
    assert told.notes == ["Computed 0 of 1 chunks of token features, and reused 1."]


def test_rows_that_are_not_usable_have_no_states(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, [*ROWS, {"prompt": "Nothing?", "response": ""}])
    found = collect_tokens(bench, positions="response", dim=None)
    assert found.counts[-1] == 0 and found.of(len(ROWS)).shape == (0, found.dim)
    empty = make_bench(tmp_path / "empty", [{"prompt": "Nothing?", "response": ""}] * 2)
    with pytest.raises(DataError, match="No example has a response"):
        collect_tokens(empty, positions="response", dim=None)


def test_rows_with_states_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    told = Told()
    proxy = family_proxy("llama")
    bench = make_bench(tmp_path, ROWS, proxy=proxy, reporter=told)
    # A token that only row 3 has.
    others = set(np.concatenate([bench.pool.encoded.example(i).input_ids for i in range(7) if i != 3]).tolist())
    token = next(t for t in bench.pool.encoded.example(3).input_ids.tolist() if t not in others)
    with torch.no_grad():
        proxy.model.get_input_embeddings().weight[token] = float("nan")
    found = collect_tokens(bench, positions="response", dim=None)
    again = collect_tokens(bench, positions="response", dim=None)
    for features in (found, again):
        assert features.counts[3] == 0 and (np.delete(features.counts, 3) > 0).all()
        assert all(np.isfinite(row).all() for row in _all(features))
    assert told.warnings == ["Left out 1 rows with a NaN or infinite hidden state: 3."] * 2


def test_memory_that_runs_out_halves_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _all(collect_tokens(make_bench(tmp_path / "a", ROWS), positions="response", dim=None))
    sizes: list[int] = []
    real = Readout.states

    def scarce(self: Readout, batch: Any) -> Any:
        sizes.append(len(batch.lengths))
        if len(batch.lengths) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, batch)

    monkeypatch.setattr(Readout, "states", scarce)
    found = _all(collect_tokens(make_bench(tmp_path / "b", ROWS), positions="response", dim=None))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
    assert sizes == [7, 4, 2, 2, 3, 2, 1]
    monkeypatch.setattr(Readout, "states", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(ResourceError, match="doesn't fit into memory by itself"):
        collect_tokens(make_bench(tmp_path / "c", ROWS), positions="response", dim=None)


def test_a_disk_that_is_too_small_is_found_before_any_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "free_bytes", lambda _: 1000)
    bench = make_bench(tmp_path, ROWS)
    with pytest.raises(ResourceError, match=r"and 0\.00 GB are free; make room, or set method\.dim below 32"):
        collect_tokens(bench, positions="response", dim=None)
    assert [passes.forwards for passes in bench.passes.values()] in ([], [0])


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "marker", "other"])
def test_a_damaged_chunk_is_computed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    monkeypatch.setattr(token_chunks, "CHUNK_ROWS", 3)
    told = Told()
    bench = make_bench(tmp_path, ROWS, reporter=told)
    found = collect_tokens(bench, positions="response", dim=None)
    (folder,) = (tmp_path / "measured").glob("tokens-*/")
    whole = _bytes(folder)
    path, marker = folder / "000001.npy", folder / "000001.json"
    if harm == "flip":
        path.write_bytes(whole[path.name][:-1] + bytes([whole[path.name][-1] ^ 1]))
    elif harm == "cut":
        path.write_bytes(whole[path.name][:-8])
        with pytest.raises(StoreCorrupt, match=r"000001\.npy is not what was written"):
            TokenFeatures(found._files).of(4)
    elif harm == "gone":
        path.unlink()
    elif harm == "marker":
        marker.write_bytes(b"{}")
    else:
        marker.write_bytes(whole["000000.json"])
    collect_tokens(bench, positions="response", dim=None)
    assert told.warnings == ["Chunk 1 of the token features is damaged and computed anew."]
    assert told.notes[-1] == "Computed 1 of 3 chunks of token features, and reused 2."
    assert _bytes(folder) == whole


def test_a_run_killed_at_any_change_to_the_disk_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_chunks, "CHUNK_ROWS", 4)
    calm = make_bench(tmp_path / "calm", ROWS)
    collect_tokens(calm, positions="response", dim=None)
    (folder,) = (tmp_path / "calm" / "measured").glob("tokens-*/")
    expected = _bytes(folder)
    points = 0
    ended = 9
    while ended == 9:
        place = tmp_path / str(points)
        place.mkdir()
        ended = _dying(replace(calm, folder=place, passes={}), points)
        assert ended in (0, 9)
        collect_tokens(replace(calm, folder=place, passes={}), positions="response", dim=None)
        assert _bytes(place / folder.name) == expected
        assert not list((place / folder.name).glob(".*.tmp"))
        points += 1
    # Two chunks of two files, each of which is synced, renamed and synced with its folder.
    assert points > 2 * 2 * 3


def _dying(bench: Bench, left: int) -> int:
    """Collect in a child that is killed just before its ``left``-th change to the disk; 9 where it was."""
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return 9 if status == -signal.SIGKILL else status
    try:
        torch.set_num_threads(1)
        remaining = [left]

        def deadly(real: Any) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                if not remaining[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                remaining[0] -= 1
                return real(*args, **options)

            return call

        for name in ("replace", "fsync", "unlink"):
            setattr(os, name, deadly(getattr(os, name)))
        collect_tokens(bench, positions="response", dim=None)
        os._exit(0)
    finally:
        os._exit(1)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, ROWS)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        collect_tokens(replace(bench, folder=tmp_path / "file"), positions="response", dim=None)


def test_the_method_is_given_them(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, ROWS)
    method = make_method("fisher_sft", {"positions": "all", "dim": 6})
    inputs = gather(method, bench, Budget(3), None, seed=0)
    assert inputs.tokens is not None and inputs.tokens.dim == 6
    assert inputs.tokens.counts.tolist() == (bench.pool.encoded.lengths - 1).tolist()
    choice = method.choose(inputs)
    assert len(choice) == 3 and (np.diff(choice.scores) < 0).all()
