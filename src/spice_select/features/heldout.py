"""Held-out rows: what trainings on the picks of a comparison are measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spice_select.analysis.contest_training import shared_sentence
from spice_select.config import ModelConfig, RunConfig
from spice_select.data.encoded import Encoded
from spice_select.errors import ConfigError
from spice_select.features.heldout_losses import rows_digest
from spice_select.features.target import TargetRows, Words, encode_as, read_examples, shared_examples
from spice_select.gradients.proxy import load_tokenizer
from spice_select.pool import Pool
from spice_select.reporter import Clock, Reporter

_WORDS = Words("held-out file", "held-out", "Held-out", "measure the loss of", None)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows that no method could choose, as the trained model reads them.

    Attributes:
        rows: The rows; their subtasks are the domains.
        tokenizer: The trained model's.
        in_pool: Rows of them that the pool holds as well.
    """

    rows: TargetRows
    tokenizer: Any
    in_pool: int

    @property
    def domains(self) -> dict[str, int]:
        """Rows by domain, in the order of their first appearance."""
        found: dict[str, int] = {}
        for name in self.rows.subtasks:
            found[name] = found.get(name, 0) + 1
        return found

    @property
    def digest(self) -> str:
        """SHA-256 over token ids, masks and domains."""
        return rows_digest(self.rows)


def trained_model(config: RunConfig) -> ModelConfig:
    """The model that is trained: that of the training section, else the proxy as it came."""
    name = config.training.model
    if name in ("", config.model.name):
        return config.model
    return config.model.model_copy(update={"name": name, "revision": None, "adapter": None})


def require_heldout(config: RunConfig) -> None:
    """Refuse a training that could not be measured.

    Raises:
        ConfigError: No held-out rows were named.
    """
    if not config.training.heldout:
        raise ConfigError("--train needs rows to measure the loss on; name a file of them with --heldout FILE.")


def read_heldout_rows(config: RunConfig, tokenizer: Any, reporter: Reporter) -> TargetRows:
    """Read and encode the files of ``training.heldout`` where there is no pool.

    Their masks are those of the responses, whatever loss the gradients are of.

    Raises:
        DataError: A file that is missing, cannot be read or has no prompt and response, or no row with a response.
    """
    return read_examples(config.training.heldout, of_responses(config), tokenizer, reporter, _WORDS)


def of_responses(config: RunConfig) -> RunConfig:
    """The settings under which a row's trained tokens are those of its responses."""
    return config.model_copy(update={"gradients": config.gradients.model_copy(update={"loss": "response"})})


def as_in_pool(rows: TargetRows, config: RunConfig, tokenizer: Any, pool_tokenizer: Any) -> Encoded:
    """Held-out rows as a pool holds rows: whether two are the same is a matter of one tokenizer and one mask.

    Args:
        rows: The held-out rows, of :func:`read_heldout_rows`.
        config: The settings that the pool was read by.
        tokenizer: What encoded the held-out rows.
        pool_tokenizer: What encoded the pool.
    """
    if tokenizer is pool_tokenizer and config.gradients.loss == "response":
        return rows.encoded
    return encode_as(rows.rows, rows.schemas, pool_tokenizer, config)


def read_heldout(config: RunConfig, pool: Pool, reporter: Reporter, clock: Clock) -> HeldOut:
    """Read and encode the files of ``training.heldout``; rows that the pool holds as well are kept, with a warning.

    Raises:
        DataError: A file that is missing, cannot be read or has no prompt and response, or no row with a response.
        ModelError: The trained model's tokenizer cannot be read.
    """
    reporter.stage("Held-out rows")
    with clock.stage("held-out rows"):
        model = trained_model(config)
        tokenizer = pool.tokenizer if model == config.model else load_tokenizer(model)
        rows = read_heldout_rows(config, tokenizer, reporter)
        in_pool = shared_examples(as_in_pool(rows, config, tokenizer, pool.tokenizer), pool.encoded)
    if in_pool:
        reporter.warn(shared_sentence(in_pool, len(rows)))
    return HeldOut(rows, tokenizer, in_pool)
