"""The study behind docs/evidence.md: which recipe of SPICE beats random rows, by how much, on real rows.

    python benchmarks/evidence.py SOURCES MODEL OUTPUT [--stage screen|finals|all] [--seeds 3] [options of `study`]

SOURCES is a folder with ``gsm8k_train.jsonl`` (question, answer), ``code_alpaca_2k.json`` and ``alpaca_1k.json``
(instruction, input, output). 1,000 rows of at most 112 tokens make the pool, 25 further rows of each the held-out rows,
drawn by a fixed seed, so that every machine studies the same rows. Finished trainings are taken from and added to
``benchmarks/evidence/ledger.jsonl``: with more seeds only what is missing is trained.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

SOURCES = {"gsm8k": "gsm8k_train.jsonl", "code_alpaca": "code_alpaca_2k.json", "alpaca": "alpaca_1k.json"}
ROWS = {"gsm8k": 334, "code_alpaca": 333, "alpaca": 333}
HELDOUT = 25
LONGEST = 112
"""Tokens of a row, 12 of which stand for its template."""
LEDGER = Path(__file__).parent / "evidence" / "ledger.jsonl"

CHATML = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""

UNIT = "normalize=unit"
FULLY = "penalty=relative:conflict_weight=1"
POOL = "reference=pool"
WARM = "schedule.warmup_steps=50"
QUOTAS = "selection.groups=source:selection.quotas=proportional"
LORA = "gradients.lora={}"
EVERYTHING = "gradients.loss=all"

# Every arm of the first round, by label; one seed each.
SCREEN = {
    "random": "random",
    "random-quotas": f"random:{QUOTAS}",
    "length": "length",
    "ifd": "ifd",
    "dpp": "dpp",
    "paper": "spice:normalize=none:alpha=1",
    "sqrt": "spice",
    "unit": f"spice:{UNIT}",
    "clip": "spice:normalize=clip",
    "unit-rel.5": f"spice:{UNIT}:penalty=relative:conflict_weight=.5",
    "sqrt-rel1-pool-h50": f"spice:{FULLY}:{POOL}:hinge='50%'",
    "unit-rel1-pool-h50": f"spice:{UNIT}:{FULLY}:{POOL}:hinge='50%'",
    "unit-rel1-pool-h75": f"spice:{UNIT}:{FULLY}:{POOL}:hinge='75%'",
    "sqrt-quotas": f"spice:{QUOTAS}",
    "unit-quotas": f"spice:{UNIT}:{QUOTAS}",
    "warm-paper": f"spice:normalize=none:alpha=1:{WARM}",
    "warm-unit": f"spice:{UNIT}:{WARM}",
    "warm-unit-rel1": f"spice:{UNIT}:{FULLY}:{WARM}",
    "warm-sqrt-rel1": f"spice:{FULLY}:{WARM}",
    "warm-unit-rel1-pool-h50": f"spice:{UNIT}:{FULLY}:{POOL}:hinge='50%':{WARM}",
    "warm-unit-rel1-quotas": f"spice:{UNIT}:{FULLY}:{WARM}:{QUOTAS}",
    "lora-paper": f"spice:normalize=none:alpha=1:{LORA}",
    "lora-unit": f"spice:{UNIT}:{LORA}",
    "lora-unit-rel1-pool-h50": f"spice:{UNIT}:{FULLY}:{POOL}:hinge='50%':{LORA}",
    "unit-rel1-pool-h75-quotas": f"spice:{UNIT}:{FULLY}:{POOL}:hinge='75%':{QUOTAS}",
    "sqrt-rel1-pool-h75": f"spice:{FULLY}:{POOL}:hinge='75%'",
    # Random rows in the mixture of the picks of `sqrt`.
    "random-58-30-12": "random:selection.groups=source:selection.quotas={gsm8k: {min: 58, max: 58}, "
    "code_alpaca: {min: 30, max: 30}, alpaca: {min: 12, max: 12}}",
    "all-paper": f"spice:normalize=none:alpha=1:{EVERYTHING}",
    "all-unit": f"spice:{UNIT}:{EVERYTHING}",
    "pools-paper": "spice:normalize=none:alpha=1:schedule.kind=pools",
    "fisher": "fisher",
    "fisher-raw": "fisher:normalize=none:alpha=1",
    "fisher-unit": f"fisher:{UNIT}",
}
FULL = "full"
FINALS = ("random", "sqrt", "sqrt-rel1-pool-h75", "length", FULL)
"""Arms of the second round: several seeds, budgets of 5% and 10%, equal in rows and in response tokens."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--stage", choices=["screen", "finals", "all"], default="finals")
    parser.add_argument("--seeds", type=int, default=3)
    asked, further = parser.parse_known_args()
    files = write_pool(asked.sources, asked.model, asked.output / "rows")
    labels = list(SCREEN) if asked.stage != "finals" else list(FINALS)
    arms = ",".join(FULL if label == FULL else f"{SCREEN[label]}:label={label}" for label in labels)
    seeds = 1 if asked.stage == "screen" else asked.seeds
    budgets = "10%" if asked.stage == "screen" else "5%,10%,100%"
    call = [
        *(sys.executable, "-m", "spice_select", "study", *(str(files[name]) for name in SOURCES)),
        *("--model", asked.model, "--methods", arms, "--budgets", budgets, "--seeds", str(seeds), "--full-seeds", "1"),
        *("--equal", "rows" if asked.stage == "screen" else "rows,tokens", "--ledger", str(LEDGER)),
        *(part for name in SOURCES for part in ("--heldout", str(files[f"heldout_{name}"]))),
        *("--set", f"data.chat_template={files['template']}", "--set", "gradients.shard_rows=64"),
        *("--set", "gradients.batch_tokens=512", "--set", "training.epochs=1", "--set", "training.lr=2e-4"),
        *("--set", "training.dropout=0", "--output", str(asked.output / "study"), *further),
    ]
    return subprocess.run(call, check=False).returncode


def write_pool(sources: Path, model: str, folder: Path) -> dict[str, Path]:
    """The pool, the held-out rows and the template, as files; the same on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    generator = random.Random(20260)
    files = {"template": folder / "chatml.jinja"}
    files["template"].write_text(CHATML)
    for name, file in SOURCES.items():
        kept, seen = [], set()
        for row in read(sources / file):
            prompt, response, key = parts(row)
            size = len(tokenizer(prompt).input_ids) + len(tokenizer(response).input_ids) + 12
            if response and size <= LONGEST and key not in seen:
                kept.append(row)
                seen.add(key)
        generator.shuffle(kept)
        files[name] = write(folder / f"{name}.jsonl", kept[: ROWS[name]])
        unseen = [{**row, "subtask": name} for row in kept[ROWS[name] : ROWS[name] + HELDOUT]]
        files[f"heldout_{name}"] = write(folder / f"heldout_{name}.jsonl", unseen)
    return files


def parts(row: dict[str, Any]) -> tuple[str, str, str]:
    if "question" in row:
        return row["question"], row["answer"], row["question"]
    context = row.get("input", "")
    return row["instruction"] + ("\n" + context if context else ""), row["output"], row["instruction"] + context


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
