"""Which trainers a live selection can be attached to."""

from __future__ import annotations

from typing import Any

from spice_select.errors import ConfigError

_NEEDS = "a live selection needs"


def check_trainer(trainer: Any) -> None:
    """Refuse a trainer whose batches, or whose loss, are not what a live selection would measure.

    Raises:
        ConfigError: A setting of the trainer that cannot be used, and its remedy.
    """
    args = trainer.args
    rows = trainer.train_dataset
    if rows is None:
        raise ConfigError(f"The trainer has no train_dataset; {_NEEDS} rows to choose from.")
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise ConfigError(
            f"The train_dataset is streamed ({type(rows).__name__}); {_NEEDS} one whose length is known: load it whole."
        )
    if getattr(args, "packing", False):
        raise ConfigError(f"packing cannot be True: {_NEEDS} one example a row; set packing to False.")
    if args.world_size > 1 or args.n_gpu > 1:
        count = max(args.world_size, args.n_gpu)
        raise ConfigError(
            f"The training runs on {count} devices and a live selection on one; start one process with one visible "
            "device, or select beforehand with --schedule pools, which shares the work."
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ConfigError(f"The weights are split by DeepSpeed or FSDP; {_NEEDS} them whole: train without.")
    for name, wanted, why in (
        ("dataloader_num_workers", 0, "workers would ask for picks before the steps that they depend on"),
        ("auto_find_batch_size", False, "it starts the training over"),
        ("ignore_data_skip", False, "a resumed training would choose again where it has chosen"),
        ("torch_compile", False, "a compiled model has no layers to watch"),
        ("train_sampling_strategy", "random", "the order is that of the picks"),
        ("group_by_length", False, "the order is that of the picks"),
        ("loss_type", "nll", "gradients are those of the negative log-likelihood"),
        ("label_smoothing_factor", 0, "gradients are those of the negative log-likelihood"),
    ):
        value = getattr(args, name, wanted)
        if value != wanted:
            raise ConfigError(f"{name} cannot be {value!r} with a live selection, as {why}; set it to {wanted!r}.")
    if getattr(trainer, "compute_loss_func", None) is not None:
        raise ConfigError(
            "compute_loss_func cannot go with a live selection, as gradients are those of the negative "
            "log-likelihood; leave it out."
        )
