"""``export`` from the command line: forms, all rows with their scores, and the Hub by a stand-in that records."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import HfApi as _HfApi

from spice_select.analysis.record import SelectionRecord
from spice_select.demo import demo_model_path
from spice_select.export.hub import METRICS, with_metrics
from tests.integration.command import Command
from tests.integration.rows import write_jsonl

ROWS: list[dict[str, Any]] = [
    {"question": f"How much is {n} and {n}?", "answer": f"It is {2 * n}{', and so on' * (n % 4)}.<|end|>", "id": n}
    for n in range(12)
]
ROWS[5] = {"question": "Nothing?", "answer": "", "id": 5}  # cannot be trained
TALK = {"id": 7, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                     {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def spice(command: Command, folder: Path) -> Path:
    """A finished run of SPICE over rows of two shapes; made once."""
    out = folder / "spice run"
    if not out.exists():
        sources = [write_jsonl(folder / "rows.jsonl", ROWS), write_jsonl(folder / "talks.jsonl", [TALK] * 2)]
        model = demo_model_path()
        done = command("run", *sources, "-m", model, "-b", "6", "-o", out, "--set", "gradients.dim=64", "-q")
        assert done.code == 0, done.err
    return out


@pytest.fixture
def longest(command: Command, folder: Path, spice: Path) -> Path:
    """A finished run of a method that scores every row."""
    out = folder / "longest"
    if not out.exists():
        source, model = folder / "rows.jsonl", demo_model_path()
        done = command("run", source, "-m", model, "-b", "4", "-o", out, "--method", "length", "-q")
        assert done.code == 0, done.err
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_form_from_the_command_line(command: Command, spice: Path, tmp_path: Path) -> None:
    said = command.json("export", spice, "-o", tmp_path / "m.jsonl", "--format", "trl-messages")
    assert said["rows"] == 6 and said["warnings"] == [] and len(lines(tmp_path / "m.jsonl")) == 6
    said = command.json("export", spice, "-o", tmp_path / "p.jsonl", "--format", "trl-prompt-completion")
    talks = sum(len(row["messages"]) == 4 for row in lines(tmp_path / "m.jsonl"))
    assert [str(note).split(" row")[0] for note in said["notes"]] == ([str(talks)] if talks else [])  # type: ignore[union-attr]
    said = command.json("export", spice, "-o", tmp_path / "lf", "--format", "llama-factory")
    assert list(json.loads((tmp_path / "lf" / "dataset_info.json").read_text())) == ["spice-run"] == [said["name"]]
    outcome = command("export", spice, "-o", tmp_path / "ax", "--format", "axolotl", "--name", "mine")
    stanza = (tmp_path / "ax" / "mine.yaml").read_text()
    assert stanza.strip() in outcome.out
    assert Path(yaml.safe_load(stanza)["datasets"][0]["path"]) == tmp_path / "ax" / "mine.jsonl"
    command.json("export", spice, "-o", tmp_path / "rows.jsonl", "--format", "jsonl")
    command.json("export", spice, "-o", tmp_path / "again.jsonl")
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    for name in ("m.jsonl", "p.jsonl", "rows.jsonl"):
        assert "exists" in command.refused(4, "export", spice, "-o", tmp_path / name)
    assert "exists" in command.refused(4, "export", spice, "-o", tmp_path / "lf", "--format", "llama-factory")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--output"),
        (["-o", "x.txt"], "no format"),
        (["-o", "x.csv", "--format", "jsonl"], "must end in .jsonl"),
        (["-o", "x.csv", "--keep-all"], "jsonl or parquet"),
        (["-o", "x.jsonl", "--keep-all", "--format", "trl-messages"], "jsonl or parquet"),
        (["-o", "x.jsonl", "--keep-all", "--messages-only"], "cannot go together"),
        (["-o", "x.jsonl", "--messages-only", "--format", "trl-messages"], "--messages-only"),
        (["-o", "x.jsonl", "--name", "n"], "--name"),
        (["-o", "x", "--format", "llama-factory", "--name", "../../n"], "cannot name a data set"),
        (["-o", "x.jsonl", "--private"], "--private"),
        (["--push-to-hub", "a/b", "--keep-all"], "--keep-all"),
        (["--push-to-hub", "no-owner"], "owner/name"),
        (["--push-to-hub", "../../etc"], "owner/name"),
    ],
)
def test_flags_that_do_not_fit(
    command: Command, spice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in command.refused(2, "export", spice, *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_all_rows_of_a_spice_run(command: Command, spice: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"all.{ending}"
    said = command.json("export", spice, "-o", out, "--keep-all")
    rows = lines(out) if ending == "jsonl" else pq.read_table(out).to_pylist()
    assert said["rows"] == len(rows) == 14
    for row, original in zip(rows, [*ROWS, TALK, TALK], strict=True):
        for name, value in original.items():
            if name != "messages":
                assert row[name] == value
    assert [row["spice_index"] for row in rows] == list(range(14))
    assert [row["spice_source"] for row in rows] == ["rows"] * 12 + ["talks"] * 2
    trace = {step["index"]: step for step in pq.read_table(spice / "trace.parquet").to_pylist()}
    for row in rows:
        step = trace.get(row["spice_index"])
        assert row["selected"] is (step is not None)
        for name in ("rank", "gain", "base", "epsilon", "conflict", "score"):
            assert row[f"spice_{name}"] == (step[name] if step else None)
    assert rows[5]["messages"] is None and rows[5]["selected"] is False
    assert [turn["content"] for turn in rows[0]["messages"]] == ["How much is 0 and 0?", "It is 0."]
    assert len(rows[12]["messages"]) == 4
    assert "exists" in command.refused(4, "export", spice, "-o", out, "--keep-all")


def test_all_rows_have_the_scores_that_a_method_gave(command: Command, longest: Path, tmp_path: Path) -> None:
    command.json("export", longest, "-o", tmp_path / "all.parquet", "--keep-all")
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    scores = pq.read_table(longest / "pool.parquet").column("score").to_pylist()
    assert [row["spice_score"] for row in rows] == scores
    assert all(score is not None for score in scores)
    chosen = [row["spice_score"] for row in rows if row["selected"]]
    assert sum(row["selected"] for row in rows) == 4
    assert min(chosen) >= max(row["spice_score"] for row in rows if not row["selected"])


def test_rows_that_have_changed_are_not_exported(command: Command, longest: Path, folder: Path, tmp_path: Path) -> None:
    source = folder / "rows.jsonl"
    before = source.read_bytes()
    try:
        source.write_bytes(before.replace(b"How much is 3", b"How many is 3"))
        said = command.refused(4, "export", longest, "-o", tmp_path / "all.jsonl", "--keep-all")
        assert "have changed since the run" in said and not (tmp_path / "all.jsonl").exists()
        assert command("export", longest, "-o", tmp_path / "chosen.jsonl").code == 0
        source.write_bytes(before + before.splitlines(keepends=True)[0])
        assert "have changed" in command.refused(4, "export", longest, "-o", tmp_path / "all.jsonl", "--keep-all")
    finally:
        source.write_bytes(before)


def test_a_column_called_selected_steps_aside(command: Command, folder: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "s.jsonl", [{**row, "selected": "yes"} for row in ROWS[:4]])
    run = tmp_path / "run"
    assert command("run", source, "-m", demo_model_path(), "-b", "2", "-o", run, "--method", "length", "-q").code == 0
    said = command.json("export", run, "-o", tmp_path / "all.jsonl", "--keep-all")
    assert any("selected_original" in str(note) for note in said["notes"])  # type: ignore[union-attr]
    rows = lines(tmp_path / "all.jsonl")
    assert {row["selected_original"] for row in rows} == {"yes"}
    assert sum(row["selected"] for row in rows) == 2


@dataclass
class Hub:
    """Stands in for HfApi: keeps what it is asked for, and what lies in the folder at that moment."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = True
    fails: Exception | None = None

    def create_repo(self, repo_id: str, **options: Any) -> str:
        if self.fails:
            raise self.fails
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"https://huggingface.co/datasets/{repo_id}"

    def dataset_info(self, repo_id: str) -> Any:
        return self

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload_folder", options))
        root = Path(options["folder_path"])
        self.files = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_made_up")
    return stand_in


def test_rows_and_card_go_to_the_hub_and_nothing_else(command: Command, spice: Path, hub: Hub) -> None:
    before = {file: file.stat().st_mtime_ns for file in spice.rglob("*") if file.is_file()}
    said = command.json("export", spice, "--push-to-hub", "ann/picked", "--private")
    (created, first), (uploaded, second) = hub.calls
    assert (created, uploaded) == ("create_repo", "upload_folder")
    assert first == {"repo_id": "ann/picked", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert second["repo_id"] == "ann/picked" and second["repo_type"] == "dataset"
    assert second["allow_patterns"] == ["data/*.parquet", "README.md"]
    shards = sorted((spice / "data").iterdir())
    assert set(hub.files) == {"README.md", *(f"data/{shard.name}" for shard in shards)}
    assert all(hub.files[f"data/{shard.name}"] == shard.read_bytes() for shard in shards)
    assert said["hub"] == {
        "repository": "ann/picked",
        "address": "https://huggingface.co/datasets/ann/picked",
        "files": [*(f"data/{shard.name}" for shard in shards), "README.md"],
    }
    assert {file: file.stat().st_mtime_ns for file in spice.rglob("*") if file.is_file()} == before
    assert not Path(second["folder_path"]).exists()
    assert "hf_made_up" not in json.dumps(said)


def test_the_library_takes_what_it_is_handed(
    command: Command, spice: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real library's own listing of the folder, whose files are links: everything but the connection."""
    seen: list[tuple[str, int]] = []

    def upload(**options: Any) -> None:
        api = _HfApi()
        monkeypatch.setattr(api, "_validate_yaml", lambda *_, **__: None)
        found = api._prepare_upload_folder_additions(
            options["folder_path"], path_in_repo="", allow_patterns=options["allow_patterns"], repo_type="dataset"
        )
        seen.extend((one.path_in_repo, one.upload_info.size) for one in found)

    monkeypatch.setattr(hub, "upload_folder", upload)
    assert command("export", spice, "--push-to-hub", "ann/picked").code == 0
    sizes = {f"data/{shard.name}": shard.stat().st_size for shard in (spice / "data").iterdir()}
    listed = dict(seen)
    assert listed.pop("README.md") > (spice / "README.md").stat().st_size
    assert listed == sizes


def test_the_metrics_of_the_card_are_those_of_the_record(
    command: Command, spice: Path, longest: Path, hub: Hub
) -> None:
    assert command("export", spice, "--push-to-hub", "ann/picked").code == 0
    assert hub.calls[0][1]["private"] is None
    card = hub.files["README.md"].decode()
    own, _, metrics = card.partition(METRICS)
    assert own.strip() == (spice / "README.md").read_text("utf-8").strip()
    record = SelectionRecord.read(spice / "selection.json")
    assert record.information is not None and record.certificate is not None
    assert f"| {record.information:.6g} nats |" in metrics
    assert f"| {100 * record.certificate.value:.1f}% |" in metrics
    assert with_metrics(card, record) == card
    assert command("export", longest, "--push-to-hub", "ann/longest").code == 0
    _, _, metrics = hub.files["README.md"].decode().partition(METRICS)
    assert "rows chosen" in metrics
    assert not any(word in metrics for word in ("nats", "proven", "norm", "None", "penalty"))


def test_what_the_hub_refuses_is_one_sentence(
    command: Command, spice: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private = False
    said = command.refused(4, "export", spice, "--push-to-hub", "ann/picked", "--private")
    assert "public" in said and hub.files == {}
    hub.fails = OSError("403 Forbidden: no rights\nRequest ID: 1")
    said = command.refused(4, "export", spice, "--push-to-hub", "ann/picked")
    assert "403 Forbidden: no rights" in said and "Request" not in said
    hub.fails = RuntimeError("")  # any error of any HTTP client
    assert "did not succeed (RuntimeError)" in command.refused(4, "export", spice, "--push-to-hub", "ann/picked")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    hub.calls.clear()
    assert "token" in command.refused(4, "export", spice, "--push-to-hub", "ann/picked")
    assert hub.calls == []
    torn = tmp_path / "torn"
    shutil.copytree(spice, torn)
    os.unlink(torn / "README.md")
    assert "lacks its rows" in command.refused(3, "export", torn, "--push-to-hub", "ann/picked")
