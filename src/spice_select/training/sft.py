"""Supervised fine-tuning on token ids and masks that the selection made, through TRL's SFTTrainer and PEFT.

The trainer is handed what the selection encoded: the same template, the same truncation, the same trained tokens. TRL
prepares nothing of its own, so that its first loss is the one that the encoder's rows have.
"""

from __future__ import annotations

import importlib
import math
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spice_select.config import GradientConfig, TrainingConfig
from spice_select.data.encoded import Example
from spice_select.errors import ConfigError, DataError, ModelError, ResourceError
from spice_select.gradients.batches import out_of_memory
from spice_select.gradients.capture import choose_path
from spice_select.gradients.loss import TokenBatch, TokenLoss
from spice_select.gradients.proxy import Proxy
from spice_select.training.checkpoints import Sealing, disk_faults_told, last_whole

IGNORED = -100
"""Label of a token that is not trained."""


@dataclass(frozen=True)
class Trained:
    """A fine-tuned model.

    Attributes:
        model: The model, in eval mode; PEFT's wrapper where adapters were trained.
        steps: Optimiser steps.
        rows: Rows that were trained on.
        tokens: Tokens passed through the model.
        response_tokens: Trained tokens among them, once an epoch.
        seconds: Time of the training alone, with that of the processes that it was resumed from.
        first_loss: Loss of the first step, a mean over its trained tokens, in nats.
        last_loss: Loss of the last step.
        history: What the trainer logged.
    """

    model: Any
    steps: int
    rows: int
    tokens: int
    response_tokens: int
    seconds: float
    first_loss: float | None
    last_loss: float | None
    history: tuple[dict[str, Any], ...]


def require_trainer() -> None:
    """Refuse to go on where TRL or PEFT is missing.

    Raises:
        ConfigError: One of them is not installed.
    """
    for name in ("trl", "peft", "accelerate", "datasets"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise ConfigError(
                f"Training needs the package {name}, which is not here; install it with: pip install "
                "'spice-select[train]'."
            ) from None


def trainable(examples: Sequence[Example]) -> list[Example]:
    """The examples that have a trained token with another before it; a model learns nothing from the rest."""
    return [example for example in examples if example.labels_mask[1:].any()]


def as_dataset(examples: Sequence[Example]) -> Any:
    """Examples as the trainer takes them: columns ``input_ids`` and ``labels``, untrained labels being -100."""
    from datasets import Dataset

    ids = [example.input_ids.astype(np.int64) for example in examples]
    labels = [np.where(one.labels_mask, own, IGNORED) for one, own in zip(examples, ids, strict=True)]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def fine_tune(
    base: Proxy,
    examples: Sequence[Example],
    settings: TrainingConfig,
    seed: int,
    folder: Path,
    *,
    resume: bool = False,
    checkpoints: bool = False,
    callbacks: Sequence[Any] = (),
) -> Trained:
    """Fine-tune a model in place.

    Args:
        base: The model as it came, and its tokenizer. With adapters, its own weights stay as they are, and
            :func:`restore` takes the adapters off again.
        examples: What is trained on, as encoded for the model's tokenizer.
        settings: Mode, epochs, rates.
        seed: Of the adapters' initial numbers, the order of rows, and dropout.
        folder: Where the trainer writes its checkpoints.
        resume: Go on from the last whole checkpoint in the folder.
        checkpoints: Write a checkpoint every ``save_steps`` steps and at the end.
        callbacks: Further callbacks of the trainer.

    Returns:
        The trained model and what the training came to.

    Raises:
        ConfigError: A package is missing, or the settings do not fit each other.
        DataError: No example has a trained token.
        ModelError: The training diverged.
        ResourceError: Memory or the disk ran out.
        OutputError: A checkpoint cannot be written.
    """
    require_trainer()
    from trl.trainer.sft_config import SFTConfig

    rows = trainable(examples)
    if not rows:
        raise DataError("None of the chosen rows has a response that the model could learn from; choose other rows.")
    device = base.device
    earlier = last_whole(folder) if resume else None
    before = 0.0 if earlier is None else earlier[1].seconds
    with _own_numbers(seed), _quiet():
        model = _with_adapters(base, settings) if settings.mode == "lora" else _unfrozen(base)
        arguments = SFTConfig(
            output_dir=str(folder),
            seed=seed,
            data_seed=seed,
            use_cpu=device.type == "cpu",
            **_batches(settings),
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps or -1,
            learning_rate=settings.lr,
            lr_scheduler_type=settings.scheduler if settings.scheduler != "constant" else "constant_with_warmup",
            warmup_steps=math.ceil(settings.warmup_ratio * planned_steps(len(rows), settings)),
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            bf16=computes_in_bf16(base, settings),
            gradient_checkpointing=settings.gradient_checkpointing,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="steps" if checkpoints else "no",
            save_steps=settings.save_steps,
            dataloader_pin_memory=device.type == "cuda",
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            packing=False,
        )
        fast = world_size() == 1 and not arguments.bf16
        trainer: Any = trainer_class()(
            token_loss=_token_loss(base, model) if fast else None,
            model=model,
            args=arguments,
            train_dataset=as_dataset(rows),
            processing_class=base.tokenizer,
            callbacks=[*callbacks, *([Sealing(before)] if checkpoints else []), _at_its_end()],
        )
        _silence(trainer)
        begun = time.perf_counter()
        try:
            with disk_faults_told(folder), suppress(_AtItsEnd):
                trainer.train(resume_from_checkpoint=None if earlier is None else str(earlier[0]))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise ResourceError(
                "Memory ran out while it trained; set training.micro_batch to a smaller number of examples, or "
                "training.gradient_checkpointing to true."
            ) from None
        seconds = before + time.perf_counter() - begun
    history = tuple(entry for entry in trainer.state.log_history if "loss" in entry)
    bad = next((entry for entry in history if not math.isfinite(entry["loss"])), None)
    if bad is not None or not _finite(model):
        at = f" at step {bad['step']}" if bad is not None else ""
        raise ModelError(f"The training diverged{at}; set training.lr below {settings.lr:g}.")
    model.eval()
    steps = int(trainer.state.global_step)
    # The last batch of an epoch may be short.
    whole, rest = divmod(steps, math.ceil(len(rows) / settings.batch_size))
    passes = whole + rest * settings.batch_size / len(rows)
    return Trained(
        model=model,
        steps=steps,
        rows=len(rows),
        tokens=round(passes * sum(len(one.input_ids) for one in rows)),
        response_tokens=sum(int(one.labels_mask[1:].sum()) for one in rows),
        seconds=seconds,
        first_loss=float(history[0]["loss"]) if history else None,
        last_loss=float(history[-1]["loss"]) if history else None,
        history=history,
    )


class _AtItsEnd(Exception):
    """Every step of the training is in the checkpoint that it was to go on from."""


def _at_its_end() -> Any:
    """Ends a training that was killed after its last step: the trainer would take one more."""
    from transformers import TrainerCallback

    class AtItsEnd(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step >= state.max_steps:
                raise _AtItsEnd

    return AtItsEnd()


@cache
def trainer_class() -> Any:
    """TRL's trainer, with a loss that computes logits where there is a label, and nowhere else."""
    from trl.trainer.sft_trainer import SFTTrainer

    class LabelTrainer(SFTTrainer):
        """SFTTrainer whose loss is the same number at less work.

        TRL takes log-probabilities, entropies and accuracies of every token, those of prompts too, whose loss is 0; on
        a small model with a large vocabulary that is a third of a step.

        Args:
            token_loss: Computes the loss of the model that is trained; None: TRL's own.
        """

        def __init__(self, *args: Any, token_loss: TokenLoss | None = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._token_loss = token_loss

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """Mean loss of the labels of the whole optimiser step that fall into this batch."""
            if self._token_loss is None or return_outputs or not model.training:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            batch = TokenBatch.of_labels(inputs["input_ids"], inputs["labels"], inputs["attention_mask"])
            count = len(batch.labels) if num_items_in_batch is None else num_items_in_batch
            return self._token_loss.total(batch) / torch.as_tensor(count).clamp(min=1)

    return LabelTrainer


def _token_loss(base: Proxy, model: Any) -> TokenLoss | None:
    """The loss of this model from its hidden states, where that was seen to be the model's own."""
    loss = TokenLoss(model)
    training, trained = model.training, [one.requires_grad for one in model.parameters()]
    try:
        # A proxy is frozen and in eval mode.
        choose_path(loss, base.rescoped(GradientConfig(), model))
    finally:
        model.train(training)
        for one, flag in zip(model.parameters(), trained, strict=True):
            one.requires_grad_(flag)
    return None if loss.path == "full" else loss


def restore(trained: Trained) -> None:
    """Take trained adapters off again, so that the base model is as it came.

    Args:
        trained: Of ``mode: lora``; a model whose own weights were trained has no way back but to load it again.
    """
    model = trained.model
    if hasattr(model, "unload"):
        base = model.unload()
        # PEFT leaves its settings on the model, and would take the next adapters for second ones.
        if hasattr(base, "peft_config"):
            del base.peft_config
        base.requires_grad_(False)
        base.eval()


def planned_steps(rows: int, settings: TrainingConfig) -> int:
    """Optimiser steps of a training on this many rows."""
    return settings.max_steps or settings.epochs * math.ceil(rows / settings.batch_size)


def world_size() -> int:
    """Processes that torchrun or accelerate started for this training."""
    import os

    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        return 1


def _batches(settings: TrainingConfig) -> dict[str, Any]:
    world = world_size()
    share, rest = divmod(settings.batch_size, world)
    if rest or not share:
        raise ConfigError(
            f"Setting 'training.batch_size' cannot be {settings.batch_size} with {world} processes; give a multiple "
            f"of {world}."
        )
    micro = settings.micro_batch or share
    if share % micro:
        raise ConfigError(
            f"Setting 'training.micro_batch' cannot be {micro}: it does not divide the {share} examples that a device "
            "takes at each step; give a divisor."
        )
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro}


def _with_adapters(base: Proxy, settings: TrainingConfig) -> Any:
    import peft

    if hasattr(base.model, "peft_config"):
        raise ConfigError("The model has adapters on already; merge them into its weights before it is trained.")
    config = peft.LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # PEFT divides by r, and any number will do
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",  # type: ignore[arg-type]  # an enumeration of strings
    )
    return peft.get_peft_model(base.model, config)


def _unfrozen(base: Proxy) -> Any:
    if base.dtype != torch.float32:
        shown = str(base.dtype).removeprefix("torch.")
        raise ConfigError(
            f"Setting 'training.mode' cannot be 'full' with weights in {shown}, which round small steps away; set "
            "model.dtype to float32, or training.mode to lora."
        )
    base.model.requires_grad_(True)
    return base.model


def computes_in_bf16(base: Proxy, settings: TrainingConfig) -> bool:
    """Whether a training computes in bfloat16 over float32 weights."""
    wanted = settings.autocast and base.dtype == torch.float32
    return wanted and base.device.type == "cuda" and torch.cuda.is_bf16_supported()


def _finite(model: Any) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in model.parameters() if one.requires_grad)


def _silence(trainer: Any) -> None:
    """Losses go to the trainer's history; its printing of them would tear our own lines."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of the libraries below are for developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _own_numbers(seed: int) -> Iterator[None]:
    """Random numbers of the training's own: those of the process go on after it as if it had not been."""
    state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
