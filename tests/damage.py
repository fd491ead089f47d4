"""Damages every file of finished folders: ``python -m tests.damage FOLDER [--every 1]``.

Each file is cut to nothing, cut in half, and has one bit flipped at its beginning, middle and end; then the commands
that read it are given. Each must come to the picks of the undamaged folder, or refuse in one sentence with exit code 3
or 4: no traceback, and no other picks. Prints a line a kind of file, and exits 1 if anything is amiss.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spice_select.demo import demo_model_path
from tests.forks import Said, call, preload, rows_file

Words = Sequence[str | Path]


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The same content, damaged in several ways."""
    yield "cut to nothing", b""
    yield "cut in half", content[: len(content) // 2]
    for name, place in (("beginning", 1), ("middle", len(content) // 2), ("end", len(content) - 2)):
        if 0 <= place < len(content):
            flipped = bytearray(content)
            flipped[place] ^= 4
            yield f"a bit at its {name} flipped", bytes(flipped)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What a finished run's data set holds."""
    import pyarrow.parquet as pq

    return [row for path in sorted((folder / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def readers(name: str, kind: str) -> list[str]:
    """The commands that read a file: those of a finished run, and the same command again, which makes anew."""
    if not name.startswith(("gradients", "features", "schedule")):
        return ["export", "report", "again"]
    return ["select", "again"] if name.startswith("gradients") and kind == "run" else ["export", "again"]


def verdict(said: Said, same: bool) -> str | None:
    """What is wrong; None where the answer is right or refused in one sentence."""
    if "Traceback" in said.err or said.code in (1, 70) or said.code < 0:
        return f"exit {said.code}: {said.err[-1200:]}"
    if said.code == 0:
        return None if same else "another answer, and no word of it"
    if said.code not in (2, 3, 4) or not said.sentence:
        return f"exit {said.code} and no one sentence: {said.err[-600:]}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take each n-th damage alone")
    parser.add_argument("--kinds", default="run,pools,loss")
    parser.add_argument("--rows", type=int, default=16)
    asked = parser.parse_args(arguments)
    preload()
    base = asked.folder.absolute()
    logs = base / "logs"
    logs.mkdir(parents=True)
    rows, model = rows_file(base / "rows.jsonl", asked.rows), demo_model_path()
    store = ("--set", "gradients.dim=32", "--set", "gradients.shard_rows=8")
    pools = ("--schedule", "pools", "--set", "schedule.pool_size=8")

    def run(out: Path) -> Words:
        return ["run", rows, "-m", model, "--budget", "50%", "-o", out, *store]

    def walk(out: Path) -> Words:
        return ["run", rows, "-m", model, "--budget", "50%", "-o", out, *pools]

    def length(out: Path) -> Words:
        return ["run", rows, "-m", model, "--budget", "50%", "--method", "loss", "-o", out]

    kinds = {"run": run, "pools": walk, "loss": length}
    counts: Counter[str] = Counter()
    faults: list[str] = []
    number = 0
    for kind in asked.kinds.split(","):
        again = kinds[kind]
        whole = base / kind / "out"
        said = call(again(whole), logs)
        assert said.code == 0, said.err
        known = rows_of(whole)
        numbers = [row["spice_index"] for row in known]
        exported = base / f"{kind}.jsonl"
        assert call(["export", whole, "--output", exported], logs).code == 0
        wanted = exported.read_bytes()
        files = sorted(path for path in whole.rglob("*") if path.is_file() and path.suffix not in (".lock", ".html"))
        for path in files:
            name = path.relative_to(whole).as_posix()
            for what, content in damages(path.read_bytes()):
                number += 1
                if number % asked.every:
                    continue
                folder = base / "damaged" / "out"
                # Readers of a finished run first, then the same command again, which makes anew what it needs.
                for reader in readers(name, kind):
                    shutil.rmtree(folder.parent, ignore_errors=True)
                    shutil.copytree(whole, folder)
                    (folder / name).write_bytes(content)
                    out = base / "damaged.jsonl"
                    out.unlink(missing_ok=True)
                    if reader == "again":
                        said = call(again(folder), logs)
                        right = said.code != 0 or rows_of(folder) == known
                    elif reader == "select":
                        elsewhere = base / "damaged" / "selected"
                        said = call(["select", folder, "--budget", "50%", "--output", elsewhere], logs)
                        right = said.code != 0 or [row["spice_index"] for row in rows_of(elsewhere)] == numbers
                    elif reader == "export":
                        said = call(["export", folder, "--output", out], logs)
                        right = said.code != 0 or out.read_bytes() == wanted
                    else:
                        said = call(["report", folder, "--markdown", "-", "--output", base / "page.html"], logs)
                        right = said.code != 0 or name not in ("selection.json", "trace.parquet")
                    counts[f"{reader}: {'refused' if said.code else 'right'}"] += 1
                    wrong = verdict(said, right)
                    if wrong is not None:
                        faults.append(f"{kind}, {name}, {what}, {reader}: {wrong}")
                        print(faults[-1], flush=True)
        print(f"{kind}: {len(files)} files, {dict(counts)}", flush=True)
    print(f"{sum(counts.values())} damaged folders read, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
