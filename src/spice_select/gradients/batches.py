"""Which examples share a batch, and what happens when a batch does not fit into memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int

from spice_select.data.encoded import Example
from spice_select.errors import ResourceError


class Batch(Protocol):
    """Gradients of a few examples, as arrays or tensors."""

    @property
    def rows(self) -> Any:
        """Sketched gradients, ``[b, dim]``."""
        ...

    @property
    def losses(self) -> Any:
        """Losses in nats, ``[b]``."""
        ...

    @property
    def squared_norms(self) -> Any:
        """Exact squared norms of the unsketched gradients, ``[b]``."""
        ...


class Engine(Protocol):
    """What measures gradients; :class:`~spice_select.gradients.capture.GradientEngine` is one."""

    @property
    def dim(self) -> int:
        """Length of a row."""
        ...

    def spec(self) -> Mapping[str, Any]:
        """All that decides a row's numbers beside weights and examples, in what JSON can hold."""
        ...

    def batch(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> Batch:
        """Measure a few examples together: token ids ``[t]`` and masks of trained labels ``[t]``."""
        ...


@dataclass(frozen=True)
class Measured:
    """Gradients of a few examples, on the host.

    Attributes:
        rows: Sketched gradients.
        losses: Losses in nats.
        squared_norms: Exact squared norms of the unsketched gradients.
        norms: Norms of ``rows``.
        finite: Examples none of whose numbers is NaN or infinite.
    """

    rows: Float32[np.ndarray, "b d"]
    losses: Float[np.ndarray, " b"]
    squared_norms: Float[np.ndarray, " b"]
    norms: Float32[np.ndarray, " b"]
    finite: Bool[np.ndarray, " b"]


def plan_batches(lengths: Int[np.ndarray, " n"], batch_tokens: int) -> list[Int[np.ndarray, " b"]]:
    """Group examples of like length, so that at most ``batch_tokens`` tokens, padding included, go together.

    A pure function of the lengths: what was done before never changes who shares a batch. The longest come first, so
    that memory runs out at the start if it does at all.

    Args:
        lengths: Tokens of each example.
        batch_tokens: Most padded tokens of a batch; an example longer than that goes alone.

    Returns:
        Positions in ``lengths``, a batch each.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[Int[np.ndarray, " b"]] = []
    begin = 0
    while begin < len(order):
        longest = max(1, int(lengths[order[begin]]))
        end = begin + max(1, batch_tokens // longest)
        batches.append(order[begin:end])
        begin = end
    return batches


class Measurer:
    """Measures batches, in halves where memory runs out.

    Args:
        engine: What measures.
        say: Hears sentences that a user should read.

    Attributes:
        halvings: Times that memory ran out.
    """

    def __init__(self, engine: Engine, say: Callable[[str], None]) -> None:
        self.halvings = 0
        self._engine = engine
        self._say = say
        self._most_tokens: int | None = None

    def measure(self, numbers: Sequence[int], examples: Sequence[Example]) -> Measured:
        """Measure examples together, or in as large parts as fit.

        Args:
            numbers: Row number of each example, for messages.
            examples: At least one.

        Raises:
            ResourceError: An example doesn't fit by itself; it is named.
        """
        padded = _padded(examples)
        # Once a size has failed, batches as large are not tried again.
        known = len(examples) > 1 and self._most_tokens is not None and padded > self._most_tokens
        found = None if known else self._attempt(examples)
        if found is not None:
            return found
        if len(examples) == 1:
            raise ResourceError(
                f"Row {numbers[0]} with {padded} tokens doesn't fit into memory by itself; set a smaller "
                "data.max_length, model.dtype to bfloat16, or use a device with more memory."
            )
        half = (len(examples) + 1) // 2
        first = self.measure(numbers[:half], examples[:half])
        second = self.measure(numbers[half:], examples[half:])
        return Measured(*(np.concatenate([vars(first)[name], vars(second)[name]]) for name in vars(first)))

    def _attempt(self, examples: Sequence[Example]) -> Measured | None:
        try:
            batch = self._engine.batch([e.input_ids for e in examples], [e.labels_mask for e in examples])
            return _measured(batch, (len(examples), self._engine.dim))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Out of the handler, so that the traceback no longer keeps the tensors alive.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(examples) > 1:
            padded = _padded(examples)
            self._most_tokens = padded - 1
            self.halvings += 1
            if self.halvings == 1:
                self._say(f"Memory ran out with {padded} padded tokens in a batch; going on with half as many.")
        return None


def _padded(examples: Sequence[Example]) -> int:
    return len(examples) * max(len(example.input_ids) for example in examples)


def _measured(batch: Batch, shape: tuple[int, int]) -> Measured:
    rows = _array(batch.rows, np.float32)
    assert rows.shape == shape
    losses, squared_norms = _array(batch.losses, np.float64), _array(batch.squared_norms, np.float64)
    # In float64, as the square of a large finite number is infinite in float32.
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    with np.errstate(over="ignore"):
        norms = norms.astype(np.float32)
    finite = np.isfinite(losses) & np.isfinite(squared_norms) & np.isfinite(norms)
    return Measured(rows, losses, squared_norms, norms, finite)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of the host or a device has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator and other devices raise a plain RuntimeError.
    text = str(error).lower()
    return any(part in text for part in ("out of memory", "can't allocate memory", "not enough memory"))


def _array(values: Any, dtype: type[np.floating[Any]]) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype)
