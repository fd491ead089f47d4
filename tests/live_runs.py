"""SFTTrainer runs on tiny models, with a live selection in them, and what each pool's picks ought to be."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback

from spice_select.demo import demo_model_path
from spice_select.training import LivePool, LiveSelection
from tests.proxies import VOCABULARY, own_loss, tiny_model


def rows(count: int = 30, seed: int = 0) -> Dataset:
    """Rows of different lengths; the last parts are trained."""
    generator = np.random.default_rng(seed)
    ids = [generator.integers(3, VOCABULARY, size=size).tolist() for size in generator.integers(6, 16, count)]
    starts = [int(generator.integers(1, len(row) - 2)) for row in ids]
    labels = [[-100] * start + row[start:] for row, start in zip(ids, starts, strict=True)]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def adapted(model: Any, dropout: float = 0.0) -> Any:
    import peft

    config = peft.LoraConfig(
        r=2, lora_alpha=4, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(7)
        return peft.get_peft_model(model, config)


def model_of(kind: str, family: str = "llama", dropout: float = 0.0) -> Any:
    model = tiny_model(family)
    return adapted(model, dropout) if kind == "lora" else model


class Snapshots(TrainerCallback):
    """The weights after every number of optimiser steps, and the end that a test may ask for."""

    def __init__(self, stop_before: int | None = None) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self._stop_before = stop_before

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._take(state, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._take(state, model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._stop_before:
            raise KeyboardInterrupt

    def _take(self, state: Any, model: Any) -> None:
        self.weights[state.global_step] = {name: value.detach().clone() for name, value in model.state_dict().items()}


def new_trainer(folder: Path, model: Any, data: Any = None, *, callbacks: Sequence[Any] = (), **settings: Any) -> Any:
    """An SFTTrainer on rows that are tokenised already; its settings as given."""
    import trl

    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    values: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True,
        "save_strategy": "no", "max_length": None, "num_train_epochs": 1, "per_device_train_batch_size": 2,
        "learning_rate": 0.02, "lr_scheduler_type": "constant", "logging_steps": 1, "gradient_checkpointing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True}, **settings,
    }  # fmt: skip
    with warnings.catch_warnings():
        # Names of settings come and go between the versions of the trainer.
        warnings.simplefilter("ignore", FutureWarning)
        trainer = trl.SFTTrainer(
            model,
            args=trl.SFTConfig(**values),
            train_dataset=rows() if data is None else data,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def fed(trainer: Any) -> list[list[list[int]]]:
    """Filled with the token ids of every batch that the trainer trains on."""
    seen: list[list[list[int]]] = []
    step = trainer.training_step

    def watched(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        seen.append([ids[mask.bool()].tolist() for ids, mask in pairs])
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = watched
    return seen


def autograd_gram(model: Any, data: Any, numbers: Sequence[int]) -> np.ndarray:
    """Inner products of the rows' gradients from an ordinary backward pass each, with respect to linear weights."""
    model.eval()
    names = dict(model.named_modules())
    head = model.get_output_embeddings() if not hasattr(model, "peft_config") else None
    weights = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and isinstance(names[name.rpartition(".")[0]], torch.nn.Linear)
        and names[name.rpartition(".")[0]] is not head
    ]
    found = []
    for number in numbers:
        row = data[int(number)]
        mask = np.array(row["labels"]) != -100
        loss = own_loss(model, np.array(row["input_ids"]), mask)
        parts = torch.autograd.grad(loss, weights)
        found.append(torch.cat([part.flatten() for part in parts]).double())
    gradients = torch.stack(found).numpy()
    return gradients @ gradients.T


def greedy(gram: np.ndarray, count: int, weight: float) -> list[int]:
    """Places of the picks by the definition: log-determinants and cosines anew for every candidate."""

    def information(places: list[int]) -> float:
        return float(np.linalg.slogdet(np.eye(len(places)) + gram[np.ix_(places, places)])[1]) if places else 0.0

    def conflict(place: int, places: list[int]) -> float:
        norm = np.sqrt(gram[place, place] * gram[np.ix_(places, places)].sum()) if places else 0.0
        return max(0.0, -gram[place, places].sum() / norm) if norm > 0 else 0.0

    picks: list[int] = []
    while len(picks) < count:
        rest = [place for place in range(len(gram)) if place not in picks]
        scores = {x: information([*picks, x]) - information(picks) - weight * conflict(x, picks) for x in rest}
        picks.append(max(rest, key=lambda x: scores[x]))
    return picks


def expected_picks(fresh: Any, weights: dict[int, Any], data: Any, pool: LivePool, weight: float) -> list[int]:
    """Picks of a pool from a copy of the model as it was when the pool was measured."""
    fresh.load_state_dict(weights[pool.step])
    places = greedy(autograd_gram(fresh, data, pool.rows), pool.due or 0, weight)
    return [pool.rows[place] for place in places]


def attached(trainer: Any, **settings: Any) -> LiveSelection:
    live = LiveSelection(**{"pool_size": 10, "keep": 4, **settings})
    live.attach(trainer)
    return live
