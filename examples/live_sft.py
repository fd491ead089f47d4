"""Train a model on a few rows of every pool, chosen by its own gradients while it is trained.

    python examples/live_sft.py                                   generated rows, the small model of the demo, on a CPU
    python examples/live_sft.py --model MODEL --rows FILE.jsonl   your own: `prompt` and `completion`, as TRL takes them

Add `--output FOLDER` (`live-run`), `--pool-size N` and `--share S` for another choice, `--demo-rows N` for a smaller
demo.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from spice_select.demo import demo_model_path, write_demo_rows
from spice_select.training import LiveSelection


def demo_rows(count: int) -> Any:
    """Generated instructions and responses in TRL's form."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_demo_rows(Path(folder) / "rows.jsonl", rows=count)
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    turns = [
        {
            "prompt": [{"role": "user", "content": f"{row['instruction']}\n{row['input']}".strip()}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }
        for row in rows
    ]
    return datasets.Dataset.from_list(turns)


def main() -> None:
    parser = argparse.ArgumentParser(description="Select while a model is trained.")
    parser.add_argument("--model", default=str(demo_model_path()))
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--output", type=Path, default=Path("live-run"))
    parser.add_argument("--pool-size", type=int, default=120)
    parser.add_argument("--share", default="10%")
    parser.add_argument("--demo-rows", type=int, default=360)
    given = parser.parse_args()
    rows = demo_rows(given.demo_rows)
    if given.rows is not None:
        rows = datasets.load_dataset("json", data_files=str(given.rows), split="train")
    trainer = SFTTrainer(
        given.model,
        args=SFTConfig(
            output_dir=str(given.output), num_train_epochs=1, per_device_train_batch_size=4, learning_rate=1e-3,
            logging_steps=1, report_to="none", bf16=False,
        ),
        train_dataset=rows,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip

    live = LiveSelection(pool_size=given.pool_size, share=given.share)
    live.attach(trainer)
    trainer.train()

    file = live.save(given.output)
    summary = live.summary()
    print(f"Trained on {summary['spice/kept']:.0f} of {summary['spice/offered']:.0f} rows; which, is in {file}.")


if __name__ == "__main__":
    main()
