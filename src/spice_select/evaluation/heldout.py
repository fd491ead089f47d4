"""The held-out loss as a suite: what a model loses on the responses of rows that no training has seen.

Rows are encoded as the selection encodes its own, by the same template and mask, and measured as a comparison's
trainings are. It is the one suite that tells small models apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict

from spice_select.config import RunConfig
from spice_select.data.encoded import collect_examples
from spice_select.data.status import Status
from spice_select.errors import ConfigError, ModelError
from spice_select.evaluation.harness import MetricValue
from spice_select.features.heldout import read_heldout_rows
from spice_select.features.heldout_losses import domain_means, row_losses, rows_digest
from spice_select.features.losses import LossEngine
from spice_select.features.target import TargetRows
from spice_select.gradients.proxy import Proxy
from spice_select.reporter import Reporter

NAME = "heldout"
"""What a user calls the suite."""


class DomainLoss(BaseModel):
    """The loss in one domain.

    Attributes:
        rows: Its rows.
        tokens: Tokens of their responses.
        loss: Mean over its rows of the mean over each response's tokens, in nats.
        stderr: Its standard error; None of a single row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    tokens: int
    loss: float
    stderr: float | None


class HeldOutResult(BaseModel):
    """The loss on held-out rows.

    Attributes:
        files: Their files.
        rows: Rows measured.
        truncated: Rows, among these, that were cut to the maximum length.
        left_out: Rows without a response.
        macro: Mean over the domains of the loss in each; its error is of the rows, the domains being given.
        micro: Mean over all rows.
        token_loss: Mean over all response tokens.
        perplexity: The exponential of that.
        domains: The loss in each domain, in the order of their first appearance.
        digest: SHA-256 over token ids, masks and domains.
        seconds: Time of the measurement.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: tuple[str, ...]
    rows: int
    truncated: int
    left_out: int
    macro: MetricValue
    micro: MetricValue
    token_loss: float
    perplexity: float
    domains: dict[str, DomainLoss]
    digest: str
    seconds: float


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """Held-out rows as a model reads them.

    Attributes:
        rows: The rows; their subtasks are the domains.
        left_out: Rows of the files without a response.
    """

    rows: TargetRows
    left_out: int

    @property
    def digest(self) -> str:
        """SHA-256 over token ids, masks and domains."""
        return rows_digest(self.rows)


def require_files(config: RunConfig) -> None:
    """Refuse the suite without rows.

    Raises:
        ConfigError: No held-out file is named.
    """
    if not config.training.heldout:
        raise ConfigError("The suite heldout measures the loss on rows; name a file of them with --heldout FILE.")


def read_rows(config: RunConfig, proxy: Proxy, reporter: Reporter, limit: int | None = None) -> HeldOutRows:
    """Read and encode the files of ``training.heldout`` by a model's tokenizer.

    Args:
        config: Names the files, and how rows are read.
        proxy: The model.
        reporter: Hears what was found.
        limit: Use only the first this many rows of each domain.

    Raises:
        ConfigError: No file is named.
        DataError: A file that is missing, cannot be read or has no prompt and response, or no row with a response.
    """
    require_files(config)
    rows = read_heldout_rows(config, proxy.tokenizer, reporter)
    left_out = rows.encoded.stats.rows - rows.encoded.stats.usable
    return HeldOutRows(rows if limit is None else _first(rows, limit), left_out)


def heldout_losses(proxy: Proxy, held: HeldOutRows, batch_tokens: int, reporter: Reporter) -> Float64[np.ndarray, " n"]:
    """Mean negative log-likelihood of every row's response, in nats.

    Args:
        proxy: The model.
        held: The rows.
        batch_tokens: Padded tokens of one forward pass.
        reporter: Hears the progress.

    Raises:
        ModelError: A loss is not finite.
        ResourceError: A batch does not fit into memory.
    """
    began = time.perf_counter()
    done = [0, 0]

    def told(rows: int, tokens: int) -> None:
        done[0], done[1] = done[0] + rows, done[1] + tokens
        reporter.advance(done[0], len(held.rows), done[1], time.perf_counter() - began)

    losses = row_losses(LossEngine(proxy), held.rows, batch_tokens, told)
    if not np.isfinite(losses).all():
        raise ModelError(
            f"The held-out loss of {proxy.name} is not finite; set model.dtype to float32, or name another model."
        )
    return losses


def summed(held: HeldOutRows, losses: Float64[np.ndarray, " n"], files: Sequence[str], seconds: float) -> HeldOutResult:
    """What the losses of the rows come to.

    Args:
        held: The rows.
        losses: Theirs, in nats.
        files: Names of the files.
        seconds: Time that the measurement took.
    """
    rows = held.rows
    examples = [rows.encoded.example(index) for index in range(len(rows))]
    tokens = np.array([one.labels_mask.sum() for one in examples], dtype=np.float64)
    means = domain_means(rows.subtasks, losses)
    names = np.array(rows.subtasks, dtype=object)
    domains = {}
    for name, mean in means.by_domain.items():
        here = names == name
        domains[name] = DomainLoss(
            rows=int(here.sum()), tokens=int(tokens[here].sum()), loss=mean, stderr=_standard_error(losses[here])
        )
    errors = [domain.stderr for domain in domains.values()]
    known = [error for error in errors if error is not None]
    macro_error = math.sqrt(math.fsum(e * e for e in known)) / len(errors) if len(known) == len(errors) else None
    token_loss = math.fsum((losses * tokens).tolist()) / math.fsum(tokens.tolist())
    return HeldOutResult(
        files=tuple(files),
        rows=len(rows),
        truncated=sum(one.status == Status.TRUNCATED for one in examples),
        left_out=held.left_out,
        macro=MetricValue(value=means.macro, stderr=macro_error),
        micro=MetricValue(value=means.micro, stderr=_standard_error(losses)),
        token_loss=token_loss,
        perplexity=math.exp(min(token_loss, 700.0)),
        domains=domains,
        digest=held.digest,
        seconds=seconds,
    )


def _standard_error(losses: Float64[np.ndarray, " n"]) -> float | None:
    return float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else None


def _first(rows: TargetRows, limit: int) -> TargetRows:
    """The first rows of each domain."""
    seen: dict[str, int] = {}
    kept = []
    for index, name in enumerate(rows.subtasks):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= limit:
            kept.append(index)
    encoded = rows.encoded
    return TargetRows(
        rows.rows.subset(kept),
        rows.schemas,
        collect_examples([encoded.example(index) for index in kept], encoded.stats, encoded.identity),
        tuple(rows.subtasks[index] for index in kept),
    )
