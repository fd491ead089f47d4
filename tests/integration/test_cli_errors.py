"""Whatever is wrong: one sentence with what and why, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from tests.integration.command import Command
from tests.integration.rows import write_jsonl

FAST = ("--set", "gradients.dim=64")


def test_missing_file(command: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sentence = command.refused(3, "run", tmp_path / "no.jsonl", "-m", model, "-b", "2", "-o", out)
    assert "no.jsonl" in sentence
    assert not out.exists()


def test_missing_model(command: Command, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sentence = command.refused(3, "run", rows_file, "-m", tmp_path / "no-model", "-b", "2", "-o", out)
    assert "no-model" in sentence
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.jsonl", b"", "empty"),
        ("garbage.jsonl", bytes(range(256)) * 8, "garbage.jsonl"),
        ("garbage.parquet", bytes(range(256)) * 8, "garbage.parquet"),
        ("garbage.arrow", bytes(range(256)) * 8, "garbage.arrow"),
        ("garbage.json", bytes(range(255, -1, -1)) * 8, "garbage.json"),
        ("broken.jsonl", b'{"prompt": "a", "response": "b"}\n{"prompt": "a", \n', "line 2"),
        ("wrong.jsonl", b'{"first": "a", "second": "b"}\n', "first"),
        ("silent.jsonl", b'{"prompt": "a", "response": ""}\n{"prompt": "b", "response": "  "}\n', "response"),
    ],
)
def test_unusable_rows(command: Command, model: Path, tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    file, out = tmp_path / name, tmp_path / "out"
    file.write_bytes(content)
    sentence = command.refused(3, "run", file, "-m", model, "-b", "1", "-o", out)
    assert expected in sentence
    assert not out.exists()


def test_all_responses_truncated(command: Command, model: Path, tmp_path: Path) -> None:
    long = {"prompt": "say it", "response": "many words and then some more " * 30}
    file, out = write_jsonl(tmp_path / "long.jsonl", [long] * 3), tmp_path / "out"
    sentence = command.refused(3, "run", file, "-m", model, "-b", "1", "-o", out, "--set", "data.max_length=32")
    assert "data.max_length" in sentence
    assert not out.exists()


@pytest.mark.parametrize("budget", ["0", "0%", "41", "101%", "-3", "many", "1.5", "0 tokens"])
def test_budget_out_of_range(command: Command, model: Path, rows_file: Path, tmp_path: Path, budget: str) -> None:
    out = tmp_path / "out"
    sentence = command.refused(2, "run", rows_file, "-m", model, f"--budget={budget}", "-o", out)
    assert "budget" in sentence.lower()
    assert not out.exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("selection.alpah=1", "selection.alpha"),
        ("selecton.alpha=1", "selection"),
        ("selection.alpha=big", "selection.alpha"),
        ("selection.alpha", "section.key=value"),
        ("gradients.layers='['", "gradients.layers"),
        ("selection.groups=colour", "colour"),
        ("model.revision=main", "model.revision"),
        ("model.attention=foo", "model.attention"),
        ("data.columns={prompt: nothing}", "nothing"),
        ("selection.exclude=/no/such/file", "selection.exclude"),
    ],
)
def test_settings_that_do_not_fit(
    command: Command, model: Path, rows_file: Path, tmp_path: Path, override: str, expected: str
) -> None:
    out = tmp_path / "out"
    code = 3 if "exclude" in override else 2
    sentence = command.refused(code, "run", rows_file, "-m", model, "-b", "2", "-o", out, "--set", override)
    assert expected in sentence
    assert not out.exists()


def test_unknown_key_in_a_file(command: Command, rows_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("selection:\n  budgett: 3\n")
    assert "selection.budget" in command.refused(2, "run", rows_file, "--config", file, "-o", tmp_path / "out")


def test_broken_config_file(command: Command, rows_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("selection: [unclosed\n")
    assert "settings.yaml" in command.refused(2, "run", rows_file, "--config", file, "-o", tmp_path / "out")


def test_what_is_not_named(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    assert "data" in command.refused(2, "run", "-m", model, "-b", "2", "-o", tmp_path / "o").lower()
    assert "--model" in command.refused(2, "run", rows_file, "-b", "2", "-o", tmp_path / "o")
    assert "--output" in command.refused(2, "run", rows_file, "-m", model, "-b", "2")
    assert "--budget" in command.refused(2, "run", rows_file, "-m", model, "-o", tmp_path / "o")


def test_unknown_flag_and_verb(command: Command) -> None:
    assert command("run", "--no-such-flag").code == 2
    assert command("no-such-verb").code == 2


def test_output_is_a_file_or_below_one(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        assert "file" in command.refused(4, "run", rows_file, "-m", model, "-b", "2", "-o", out)
    assert file.read_text() == "mine"


def test_output_holds_somebody_elses_files(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    for flags in ((), ("--overwrite",)):
        command.refused(4, "run", rows_file, "-m", model, "-b", "2", "-o", tmp_path, *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]


def test_output_of_other_settings(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("run", rows_file, "-m", model, "-b", "4", "-o", out, *FAST).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    sentence = command.refused(4, "run", rows_file, "-m", model, "-b", "5", "-o", out, *FAST)
    assert "selection.budget" in sentence
    sentence = command.refused(4, "run", rows_file, "-m", model, "-b", "4", "-o", out, "--set", "gradients.dim=65")
    assert "gradients.dim" in sentence
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_model_that_is_no_causal_model(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    sentence = command.refused(3, "run", rows_file, "-m", folder, "-b", "2", "-o", tmp_path / "out")
    assert "bert" in sentence
    assert not (tmp_path / "out").exists()


def test_tokenizer_without_pad_or_template(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    bare.save_pretrained(folder)
    result = command.json("run", rows_file, "-m", folder, "-b", "3", "-o", tmp_path / "out", *FAST)
    assert result["k"] == 3


def test_non_finite_gradients_are_named_and_left_out(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "poisoned"
    broken = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    # One token's embedding is poisoned: the rows that hold it have no finite gradient, the others are as they were.
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    held = [set(tokenizer(row["instruction"] + " " + row["output"]).input_ids) for row in rows]
    counts = Counter(token for tokens in held for token in tokens)
    token = next(token for token, count in counts.items() if count == 3)
    with torch.no_grad():
        broken.get_input_embeddings().weight[token] = float("nan")
    if broken.get_output_embeddings().weight is broken.get_input_embeddings().weight:
        head = torch.nn.Linear(*reversed(broken.get_output_embeddings().weight.shape), bias=False)
        with torch.no_grad():
            head.weight.copy_(broken.get_input_embeddings().weight.nan_to_num())
        broken.set_output_embeddings(head)
        broken.config.tie_word_embeddings = False
    broken.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    outcome = command("run", rows_file, "-m", folder, "-b", "3", "-o", tmp_path / "out", *FAST)
    assert outcome.code == 0, outcome.err
    assert "NaN" in outcome.err
    record = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert 40 - 3 <= record["usable"] < record["n"] == 40


def test_disk_full_loses_nothing(model: Path, rows_file: Path, tmp_path: Path) -> None:
    # A limit on the size of files stands for a full disk: writing fails in the middle of a shard.
    out = tmp_path / "out"
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from spice_select.cli import main\n"
        "main()\n"
    )
    args = ["collect", str(rows_file), "-m", str(model), "-o", str(out), "--set", "gradients.dim=4096"]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=500)
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.glob("gradients/shards/*.json")), "no shard may count as whole"
    again = subprocess.run([sys.executable, "-m", "spice_select", *args], capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr


def test_interrupt_exits_130_and_resumes(model: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = [sys.executable, "-m", "spice_select", "run", str(rows_file), "-m", str(model), "-b", "3", "-o", str(out)]
    args += ["--set", "gradients.shard_rows=1", "--set", "gradients.dim=16384"]
    # A shell that starts the tests in the background has them, and what they start, ignore the signal.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    deadline = time.monotonic() + 400
    while not list(out.glob("gradients/shards/*.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [
        "error: Interrupted; the same command takes up the work where it stopped."
    ]
    assert not (out / "selection.json").exists()
    again = subprocess.run(args, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert "reused 0" not in again.stderr
    assert (out / "selection.json").exists()


def test_select_without_gradients(command: Command, tmp_path: Path) -> None:
    assert "no-run" in command.refused(3, "select", tmp_path / "no-run", "-b", "2")
    assert "config.yaml" in command.refused(3, "select", tmp_path, "-b", "2")


def test_select_finds_a_flipped_byte(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("collect", rows_file, "-m", model, "-o", out, *FAST).code == 0
    (shard,) = out.glob("gradients/shards/*0.npy")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    sentence = command.refused(3, "select", out, "-b", "3")
    assert shard.name in sentence
    assert not (out / "selection.json").exists()


def test_select_refuses_rows_that_have_changed(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.jsonl", tmp_path / "out"
    mine.write_bytes(rows_file.read_bytes())
    assert command("collect", mine, "-m", model, "-o", out, *FAST).code == 0
    lines = mine.read_text().splitlines(keepends=True)
    mine.write_text("".join([lines[1], lines[0], *lines[2:]]))
    assert "mine.jsonl" in command.refused(4, "select", out, "-b", "3")


def test_select_refuses_settings_of_the_gradients(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command("collect", rows_file, "-m", model, "-o", out, *FAST).code == 0
    assert "gradients" in command.refused(2, "select", out, "-b", "3", "--set", "gradients.dim=32")


def test_resume_and_overwrite_contradict(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    args = ("run", rows_file, "-m", model, "-b", "2", "-o", tmp_path / "out", "--resume", "--overwrite")
    assert "--overwrite" in command.refused(2, *args)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_unwritable_output(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    command.refused(4, "run", rows_file, "-m", model, "-b", "2", "-o", tmp_path / "out")


def test_output_in_a_source_or_source_in_the_output(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "rows", tmp_path / "out"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(rows_file.read_bytes())
    sentence = command.refused(4, "run", folder, "-m", model, "-b", "2", "-o", folder / "out", *FAST)
    assert "lies in the source" in sentence
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]
    assert command("run", folder, "-m", model, "-b", "6", "-o", out, *FAST).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for source in (out, out / "data", next(out.glob("data/*.parquet"))):
        command.refused(4, "run", source, "-m", model, "-b", "2", "-o", out, "--overwrite", *FAST)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


IMPOSSIBLE = [
    ("selection.hinge=often", 2),
    ("selection.stop_ratio=5", 2),
    ("selection.quotas={elsewhere: {min: 1}}", 2),
    ("selection.quotas={rows: {max: 1}}", 2),
    ("selection.budget=1 token", 2),
    ("selection.quotas=most", 2),
    ("selection.budget=true", 2),
]


@pytest.mark.parametrize(("override", "code"), IMPOSSIBLE)
def test_a_selection_that_cannot_be_is_refused_before_gradients(
    command: Command, model: Path, rows_file: Path, tmp_path: Path, override: str, code: int
) -> None:
    out = tmp_path / "out"
    groups = ("--set", "selection.groups=source", "--set", "selection.budget=3")
    command.refused(code, "run", rows_file, "-m", model, "-o", out, *FAST, *groups, "--set", override)
    assert not out.exists()


def test_a_refused_selection_leaves_the_folder_as_it_was(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command("run", rows_file, "-m", model, "-b", "3", "-o", out, *FAST).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for override, _ in IMPOSSIBLE:
        command.refused(2, "select", out, "--overwrite", "--set", "selection.groups=source", "--set", override)
    (tmp_path / "in-hand.txt").write_text("0\n")
    in_hand = f"selection.initial={tmp_path / 'in-hand.txt'}"
    assert "39" in command.refused(2, "select", out, "-b", "40", "--overwrite", "--set", in_hand)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert command("select", out, "-b", "4", "--overwrite").code == 0


def test_interrupt_while_libraries_load(
    command: Command, rows_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spice_select.cli.app.app", interrupted)
    assert "Interrupted" in command.refused(130, "run", rows_file, "-o", tmp_path / "out")


def test_names_that_no_system_takes(command: Command, model: Path, rows_file: Path, tmp_path: Path) -> None:
    long, out = "n" * 5000, tmp_path / "out"
    for code, data, proxy, folder in ((3, long, model, out), (2, rows_file, long, out), (2, rows_file, model, long)):
        assert "too long" in command.refused(code, "run", data, "-m", proxy, "-b", "2", "-o", folder)
    assert "empty name" in command.refused(2, "run", rows_file, "", "-m", model, "-b", "2", "-o", out)
    assert not out.exists()


def test_an_output_that_reads_as_a_pattern_is_warned_of(
    command: Command, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    outcome = command("run", rows_file, "-m", model, "-b", "2", "-o", tmp_path / "out[1]", "--limit", "4", *FAST)
    assert outcome.code == 0
    assert "load_dataset" in next(line for line in outcome.err.splitlines() if "warning" in line)
