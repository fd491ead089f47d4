"""A finished selection to a trained model: rows, model, training, held-out losses, files. One folder holds it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from spice_select.config import GradientConfig, RunConfig
from spice_select.errors import ModelError
from spice_select.features.heldout import as_in_pool, read_heldout_rows
from spice_select.features.heldout_losses import domain_means, row_losses, rows_digest
from spice_select.features.losses import LossEngine
from spice_select.features.target import TargetRows, shared_examples
from spice_select.files import Lock, make_folder, write_text
from spice_select.gradients.proxy import Proxy, load_proxy, load_tokenizer
from spice_select.reporter import Listening, Reporter, Silent, heard
from spice_select.results_record import versions
from spice_select.run_folder import RunFolder
from spice_select.schedule.ranks import Ranks, joined
from spice_select.training.card import render_model_card
from spice_select.training.checkpoints import last_whole
from spice_select.training.place import CARD, TrainFolder
from spice_select.training.progress import Progress
from spice_select.training.record import (
    HELDOUT_ROWS,
    HeldOutRecord,
    LossRecord,
    StepRecord,
    TargetRecord,
    TrainRecord,
)
from spice_select.training.settings import training_config
from spice_select.training.sft import Trained, fine_tune, planned_steps, require_trainer
from spice_select.training.subset import Subset, read_subset, used_template


@dataclass(frozen=True)
class TrainResult:
    """A trained model on disk.

    Attributes:
        folder: Where it lies.
        record: What it is.
        repeated: It was there already, and nothing was trained.
    """

    folder: Path
    record: TrainRecord
    repeated: bool = False

    def describe(self) -> list[str]:
        """The result in a few lines."""
        told = ["This very training is there already; nothing was trained."] if self.repeated else []
        return [*told, *self.record.describe(self.folder)]


def train(
    source: str | Path,
    output: str | Path,
    reporter: Reporter,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    all_rows: bool = False,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
    command: str = "",
) -> TrainResult | None:
    """Fine-tune a model on the rows that a run has chosen.

    A training that was cut off goes on from its last checkpoint when it is asked for again. Started by torchrun or
    accelerate, its processes share each step; the first writes.

    Args:
        source: Folder of the run.
        output: Folder for the model.
        reporter: Hears the progress.
        model: Folder or Hub id of the model; none: ``training.model`` of the run's settings, else its proxy.
        settings: Settings of the training section, by name.
        overrides: ``section.key=value`` settings of training and model.
        seed: Of adapters, order of rows and dropout; none: the run's.
        all_rows: Train on all usable rows of the pool, and not on the picks.
        overwrite: Start again in a folder that holds another training.
        keep_checkpoints: Leave the last checkpoints beside the model.
        command: Command that repeats this, for the card.

    Returns:
        The result; None in all processes but the first.

    Raises:
        ConfigError: A setting that cannot be used, or a package that is missing.
        DataError, StoreError, ModelError: Something that cannot be read, or a training that diverged.
        OutputError, ResourceError: Something that cannot be written, or memory that ran out.
    """
    run, folder = RunFolder(source), TrainFolder(output)
    with joined() as ranks:
        listening = Listening(reporter if ranks.main else Silent())
        with ranks.together():
            require_trainer()
            config, proxy = training_config(run, model=model, settings=settings or {}, overrides=overrides, seed=seed)
            if ranks.main:
                folder.check(config.data.sources, config.model.name)
                make_folder(folder.path)
        lock: Lock | None = None
        try:
            with ranks.together():
                lock = Lock.exclusive(folder.lock, str(folder.path)) if ranks.main else None
            job = _Job(run, folder, config, proxy, ranks, listening, all_rows, overwrite, keep_checkpoints, command)
            return job.work()
        finally:
            if lock is not None:
                lock.close()


@dataclass
class _Job:
    """One training, from the rows to the files."""

    run: RunFolder
    folder: TrainFolder
    config: RunConfig
    proxy: str
    ranks: Ranks
    reporter: Listening
    all_rows: bool
    overwrite: bool
    keep_checkpoints: bool
    command: str

    def work(self) -> TrainResult | None:
        """All of it, in order."""
        ranks, training, reporter = self.ranks, self.config.training, self.reporter
        done: TrainRecord | None = None
        with ranks.together():
            tokenizer = load_tokenizer(self.config.model)
            subset = read_subset(self.run, self.config, tokenizer, self.proxy, reporter, whole_pool=self.all_rows)
            heldout = read_heldout_rows(self.config, tokenizer, reporter) if training.heldout else None
            base = self._load()
            identity = self._identity(subset, base, heldout)
            if ranks.main:
                done = self.folder.finished(identity, overwrite=self.overwrite)
        if ranks.broadcast(done is not None):
            return None if done is None else TrainResult(self.folder.path, done, repeated=True)
        with ranks.together():
            before = None
            if ranks.main:
                before = self._measure(base, heldout)
                self.folder.claim(identity, overwrite=self.overwrite)
        trained = self._train(subset, base)
        with ranks.together():
            if not ranks.main:
                return None
            measured = base.rescoped(GradientConfig(), trained.model)
            after = self._measure(measured, heldout, "after the training")
            reporter.stage("Results")
            losses = None
            if heldout is not None:
                assert before is not None and after is not None
                losses = HeldOutRecord(
                    files=training.heldout,
                    digest=rows_digest(heldout),
                    domains={name: heldout.subtasks.count(name) for name in dict.fromkeys(heldout.subtasks)},
                    trained_on=shared_examples(
                        as_in_pool(heldout, self.config, base.tokenizer, base.tokenizer), subset.encoded
                    ),
                    before=before,
                    after=after,
                )
            files = self.folder.publish(lambda place: self._save(trained, place))
            record = self._record(subset, base, trained, identity, losses, files)
            write_text(self.folder.path / CARD, render_model_card(record, self.folder.path.resolve().name))
            record.write(self.folder.record)
            if not self.keep_checkpoints:
                self.folder.remove_checkpoints()
            return TrainResult(self.folder.path, record)

    def _load(self) -> Proxy:
        self.reporter.stage("Model")
        model = self.config.model
        with heard(self.reporter):
            base = load_proxy(model.model_copy(update={"device": self.ranks.device(model.device)}), GradientConfig())
        which = ", the proxy of the run" if model.name == self.proxy else ""
        self.reporter.note(f"{model.name}{which}: {str(base.dtype).removeprefix('torch.')} on {base.device}.")
        return base

    def _identity(self, subset: Subset, base: Proxy, heldout: TargetRows | None) -> dict[str, Any]:
        """All that the weights depend on; the version of this package, and how often it saves, are no part of it."""
        settings = self.config.training.model_dump(mode="json", exclude={"model", "save_steps"})
        return {
            "the rows": subset.record.digest,
            "the model's weights": base.weights_hash,
            "the tokenizer": base.tokenizer_hash,
            "model.dtype": str(base.dtype).removeprefix("torch."),
            "seed": self.config.seed,
            **({} if heldout is None else {HELDOUT_ROWS: rows_digest(heldout)}),
            **{f"training.{name}": value for name, value in settings.items()},
        }

    def _train(self, subset: Subset, base: Proxy) -> Trained:
        settings, reporter = self.config.training, self.reporter
        reporter.stage("Training")
        rows, steps = len(subset.examples), planned_steps(len(subset.examples), settings)
        tokens = sum(len(one.input_ids) for one in subset.examples)
        kind = "adapters" if settings.mode == "lora" else "all weights"
        reporter.note(f"{kind.capitalize()}: {rows:,} rows, {tokens:,} tokens an epoch, {steps:,} steps.")
        earlier = last_whole(self.folder.checkpoints)
        if earlier is not None:
            reporter.note(f"Going on from {earlier[0].name}.")
        progress = Progress(reporter, rows=steps * settings.batch_size, tokens_a_row=tokens / rows)
        with heard(reporter):
            return fine_tune(
                base,
                subset.examples,
                settings,
                self.config.seed,
                self.folder.checkpoints,
                resume=True,
                checkpoints=True,
                callbacks=[progress],
            )

    def _measure(self, base: Proxy, heldout: TargetRows | None, when: str = "before any training") -> LossRecord | None:
        if heldout is None:
            return None
        self.reporter.stage(f"Held-out losses {when}")
        with heard(self.reporter):
            losses = row_losses(LossEngine(base), heldout, self.config.gradients.batch_tokens)
        if not np.isfinite(losses).all():
            raise ModelError(
                f"The held-out loss of {base.name} is not finite {when}; set model.dtype to float32, or training.lr "
                f"below {self.config.training.lr:g}."
            )
        means = domain_means(heldout.subtasks, losses)
        self.reporter.note(f"Mean of domains {means.macro:.4f}, mean of rows {means.micro:.4f}.")
        return LossRecord(macro=means.macro, micro=means.micro, by_domain=means.by_domain)

    def _save(self, trained: Trained, place: Path) -> None:
        """Weights and tokenizer, the latter with the chat template that the rows were rendered by."""
        target, model = self.config.model, trained.model
        if self.config.training.mode == "lora":
            settings = model.peft_config["default"]
            # Of a Hub id, transformers knows the folder in its cache alone.
            settings.base_model_name_or_path, settings.revision = target.name, target.revision
            # A set, whose order would be another in every process.
            if isinstance(settings.target_modules, set):
                settings.target_modules = sorted(settings.target_modules)
            model.save_pretrained(str(place), save_embedding_layers=False)
        else:
            model.save_pretrained(str(place))
        tokenizer = load_tokenizer(target)
        tokenizer.chat_template = used_template(tokenizer, self.config.data.chat_template)
        tokenizer.save_pretrained(str(place))
        (place / CARD).unlink(missing_ok=True)  # PEFT writes one that knows nothing of the rows

    def _record(
        self,
        subset: Subset,
        base: Proxy,
        trained: Trained,
        identity: Mapping[str, Any],
        heldout: HeldOutRecord | None,
        files: dict[str, str],
    ) -> TrainRecord:
        target = self.config.model
        if heldout is not None and heldout.trained_on:
            self.reporter.warn(
                f"{heldout.trained_on:,} of the {sum(heldout.domains.values()):,} held-out rows were trained on as "
                "well; take nothing from their loss."
            )
        return TrainRecord(
            identity=dict(identity),
            mode=self.config.training.mode,
            subset=subset.record,
            model=TargetRecord(
                name=target.name,
                revision=target.revision,
                dtype=str(base.dtype).removeprefix("torch."),
                device=str(base.device),
                weights=base.weights_hash,
                tokenizer=base.tokenizer_hash,
                local=Path(target.name).is_dir(),
            ),
            settings=self.config.training.model_dump(mode="json", exclude={"model", "heldout"}),
            seed=self.config.seed,
            processes=self.ranks.world,
            steps=trained.steps,
            tokens=trained.tokens,
            seconds=trained.seconds,
            first_loss=trained.first_loss,
            last_loss=trained.last_loss,
            history=tuple(
                StepRecord(
                    step=entry["step"],
                    loss=entry["loss"],
                    lr=entry.get("learning_rate"),
                    grad_norm=_number(entry.get("grad_norm")),
                )
                for entry in trained.history
            ),
            heldout=heldout,
            versions={**versions(), **_installed("trl", "accelerate")},
            files=files,
            keeps_checkpoints=self.keep_checkpoints,
            command=self.command,
            warnings=tuple(self.reporter.warnings),
        )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _installed(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
