"""What a schedule of pools costs beside plain LoRA training on the same examples.

Plain training is one epoch with PEFT and AdamW, batches of four, loss and logits as transformers computes them. A pool
is measured (exact Gram matrix of the adapters' gradients), selected from, and a tenth of it trained on. Both run over
the same rows in one process, in turn; each round gives one ratio, by the clock and by processor time.

    python benchmarks/schedule.py ROWS.jsonl ... --model SmolLM2-135M-Instruct --rows 48 --rounds 3
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import torch

from spice_select import select_gram
from spice_select.config import DataConfig, GradientConfig, ModelConfig, ScheduleConfig
from spice_select.data.encode import encode_rows
from spice_select.data.sources import load_rows
from spice_select.gradients import GradientEngine, load_proxy
from spice_select.gradients.proxy import load_tokenizer
from spice_select.schedule.adapters import attach_adapters, trained_scope
from spice_select.schedule.gram import pool_gram
from spice_select.schedule.ranks import Ranks
from spice_select.schedule.trainer import ProxyTrainer


def spent(work: Callable[[], object]) -> np.ndarray:
    """Seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - clock, time.process_time() - processor])


def plain_epoch(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: list, masks: list, batch: int) -> None:
    """One epoch as a trainer does it."""
    for first in range(0, len(ids), batch):
        rows = range(first, min(first + batch, len(ids)))
        longest = max(len(ids[row]) for row in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        attention, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
        for place, row in enumerate(rows):
            row_ids = torch.from_numpy(ids[row]).long()
            tokens[place, : len(row_ids)], attention[place, : len(row_ids)] = row_ids, 1
            labels[place, : len(row_ids)] = torch.where(torch.from_numpy(masks[row]), row_ids, -100)
        model(input_ids=tokens, attention_mask=attention, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=GradientConfig().batch_tokens)
    parser.add_argument("--chat-template")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    model = ModelConfig(name=asked.model, device="cpu")
    template = None if asked.chat_template is None else Path(asked.chat_template).read_text()
    data = DataConfig(sources=tuple(asked.data), max_length=asked.max_length, chat_template=template)
    encoded = encode_rows(load_rows(data.sources), load_tokenizer(model), data)
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(encoded.usable))[: asked.rows]
    examples = [encoded.example(int(row)) for row in drawn]
    ids, masks = [e.input_ids for e in examples], [e.labels_mask for e in examples]
    schedule, gradients = ScheduleConfig(), GradientConfig(batch_tokens=asked.batch_tokens)
    proxy = attach_adapters(load_proxy(model, gradients), schedule, 0)
    engine = GradientEngine(proxy, trained_scope(gradients, schedule))
    trainer = ProxyTrainer(proxy, schedule, 0, 1000, asked.batch_tokens)
    lora = schedule.lora
    settings = peft.LoraConfig(
        r=lora.r,
        lora_alpha=int(lora.alpha),
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    ordinary = peft.get_peft_model(load_proxy(model, gradients).model, settings)
    ordinary.train()
    optimizer = torch.optim.AdamW([p for p in ordinary.parameters() if p.requires_grad], lr=schedule.learning_rate)
    picks = max(1, round(0.1 * len(ids)))

    def pool() -> None:
        measured = pool_gram(engine, ids, masks, ranks=Ranks(), memory=schedule.gram_bytes)
        chosen = select_gram(measured.gram, picks).indices
        trainer.train([ids[i] for i in chosen], [masks[i] for i in chosen], trainer.step, str(trainer.step))

    def tenth() -> None:
        rows = range(picks)
        trainer.train([ids[i] for i in rows], [masks[i] for i in rows], trainer.step, str(trainer.step))

    plain_epoch(ordinary, optimizer, ids[:4], masks[:4], 4)
    pool_gram(engine, ids[:4], masks[:4], ranks=Ranks(), memory=schedule.gram_bytes)
    ratios, shares = [], []
    for _ in range(asked.rounds):
        epoch = spent(lambda: plain_epoch(ordinary, optimizer, ids, masks, schedule.batch_size))
        pools = spent(pool)
        ratios.append(pools / epoch)
        shares.append(spent(tenth) / epoch)
        print(
            f"plain epoch {epoch[0]:.1f} s, pool {pools[0]:.1f} s: {ratios[-1][0]:.2f}, {ratios[-1][1]:.2f} (processor)"
        )
    clock, processor = (statistics.median(ratio[kind] for ratio in ratios) for kind in (0, 1))
    training = statistics.median(share[1] for share in shares)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{len(ids)} rows, {sum(map(len, ids)):,} tokens, {torch.get_num_threads()} threads, {memory:.1f} GB at most")
    print(f"schedule at {clock:.2f} of a plain epoch by the clock, at {processor:.2f} of its processor time")
    print(f"of this a tenth's training {training:.2f}")


if __name__ == "__main__":
    main()
