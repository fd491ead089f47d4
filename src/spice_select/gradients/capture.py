"""Gradients of single examples from one batched forward and backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from spice_select.config import GradientConfig
from spice_select.errors import ModelError
from spice_select.gradients.factors import Sketch
from spice_select.gradients.hooks import Recorder
from spice_select.gradients.loss import LossPath, TokenBatch, TokenLoss
from spice_select.gradients.oracles import GradientTables
from spice_select.gradients.proxy import Proxy
from spice_select.gradients.sketch import build_sketch, summary

_GRAM_BYTES = 1 << 32
_GRAM_COLUMNS = 1 << 16


@dataclass(frozen=True, eq=False)
class GradientBatch:
    """Gradients of a few examples.

    Attributes:
        rows: Sketched gradients.
        losses: Mean negative log-likelihood of the trained labels, in nats; 0 where there is none.
        squared_norms: Exact squared norms of the unsketched gradients.
    """

    rows: Float32[np.ndarray, "b d"]
    losses: Float64[np.ndarray, " b"]
    squared_norms: Float64[np.ndarray, " b"]


class GradientEngine:
    """Measures loss gradients of single examples (SPICE, arXiv 2601.23155, section 3).

    An example's loss is the mean over its trained labels; the losses of a batch are added, not averaged, so that a
    gradient doesn't depend on the batch that it was measured in.

    Args:
        proxy: Model and scope.
        config: Sketch; the scope is the proxy's.

    Raises:
        ModelError: The model's loss is not reproduced, or a position's logits depend on later tokens.
    """

    def __init__(self, proxy: Proxy, config: GradientConfig) -> None:
        self.proxy = proxy
        self.config = config
        self._sketch: Sketch = self.new_sketch()
        # Gradients of a mean loss are small enough to vanish in float16.
        self._scale = 1024.0 if proxy.dtype == torch.float16 else 1.0
        self._loss = TokenLoss(proxy.model, self._scale)
        _choose_path(self._loss, proxy)

    @property
    def dim(self) -> int:
        """Length of a row."""
        return self._sketch.dim

    @property
    def loss_path(self) -> str:
        """How logits are reached: ``gathered``, ``masked`` or ``full``; the numbers are the same."""
        return self._loss.path

    def new_sketch(self) -> Sketch:
        """A sketch like the engine's own, for gradients from elsewhere."""
        return build_sketch(self.config, self.proxy.layers, self.proxy.device)

    def spec(self) -> dict[str, Any]:
        """What decides a row's numbers beside weights and examples, in what JSON can hold."""
        lora = self.config.lora
        return {
            "sketch": summary(self.config, self._sketch),
            "layers": self.config.layers,
            "layer_count": len(self.proxy.layers),
            "layer_digest": self.proxy.layer_digest,
            "lora": None if lora is None else lora.model_dump(exclude={"adapter"}),
            "loss": self.config.loss,
            "dtype": str(self.proxy.dtype).removeprefix("torch."),
        }

    def batch(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> GradientBatch:
        """Measure examples in one forward and backward pass.

        Args:
            ids: Token ids of each example, ``[t]``.
            masks: True where the token is a trained label, ``[t]``.
        """
        losses = self._pass(ids, masks, self._sketch)
        rows = self._sketch.finish() / self._scale
        norms = self._sketch.squared_norms() / self._scale**2
        return GradientBatch(rows.numpy(), losses.numpy(), norms.numpy())

    def sketch(self, gradients: Mapping[str, Float[Tensor, "rows columns"]]) -> Float[Tensor, " d"]:
        """The row that one example's whole gradients, given by layer name, come to."""
        return self._sketch.apply(gradients)

    def losses(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Float64[np.ndarray, " b"]:
        """Losses alone, from a forward pass without gradients."""
        return self._loss.losses(TokenBatch.build(ids, masks, self.proxy.device)).numpy()

    def gram(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Float64[np.ndarray, "n n"]:
        """Exact inner products of the unsketched gradients.

        Layers are taken in groups whose gradients fit into some 4 GB for all examples at once, with one pass over the
        examples for each group.
        """
        count = len(ids)
        total = torch.zeros(count, count, dtype=torch.float64)
        batches = list(self._batches(ids))
        for group in self._groups(count):
            tables = GradientTables(self.proxy.layers, group, self.proxy.device)
            kept: dict[int, Tensor] = {layer: torch.zeros(count, self.proxy.layers[layer].size) for layer in group}
            for members in batches:
                self._pass([ids[i] for i in members], [masks[i] for i in members], tables, frozenset(group))
                for layer, table in tables.tables.items():
                    kept[layer][members] = table.cpu()
            for table in kept.values():
                for part in table.split(_GRAM_COLUMNS, dim=1):
                    wide = part.double()
                    total += wide @ wide.t()
        return (total / self._scale**2).numpy()

    def materialise(
        self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]
    ) -> Mapping[str, Float[Tensor, "b rows columns"]]:
        """Whole gradients by layer name, for small models and for tests."""
        layers = self.proxy.layers
        tables = GradientTables(layers, range(len(layers)), self.proxy.device)
        self._pass(ids, masks, tables)
        return {
            layers[index].name: table.view(len(ids), layers[index].rows, layers[index].columns) / self._scale
            for index, table in tables.tables.items()
        }

    def _pass(
        self,
        ids: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        sketch: Sketch,
        wanted: frozenset[int] | None = None,
    ) -> Float[Tensor, " b"]:
        batch = TokenBatch.build(ids, masks, self.proxy.device)
        sketch.begin(len(ids))
        recorder = Recorder(self.proxy.scope, batch.lengths, batch.ids.shape[1], sketch.add, wanted)
        with recorder.watch():
            return self._loss.backward(batch)

    def _batches(self, ids: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Examples of like length under the token budget."""
        members: list[int] = []
        for index in sorted(range(len(ids)), key=lambda i: -len(ids[i])):
            if members and (len(members) + 1) * len(ids[members[0]]) > self.config.batch_tokens:
                yield members
                members = []
            members.append(index)
        if members:
            yield members

    def _groups(self, count: int) -> Iterator[list[int]]:
        group: list[int] = []
        size = 0
        for index, layer in enumerate(self.proxy.layers):
            needed = 4 * count * layer.size
            if group and size + needed > _GRAM_BYTES:
                yield group
                group, size = [], 0
            group.append(index)
            size += needed
        if group:
            yield group


@torch.no_grad()
def _choose_path(loss: TokenLoss, proxy: Proxy) -> None:
    """Take the cheapest way to the logits that gives the model's own loss, and refuse a model that sees ahead."""
    vocabulary = int(proxy.model.config.get_text_config().vocab_size)
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, vocabulary, size=size) for size in (9, 6)]
    masks = [np.arange(len(row)) >= 3 for row in ids]
    batch = TokenBatch.build(ids, masks, proxy.device)
    expected = torch.tensor([_own_loss(proxy, row, mask) for row, mask in zip(ids, masks, strict=True)])
    # Half precision rounds differently with each shape of a product.
    tolerance = 1e-5 if proxy.dtype == torch.float32 else 3e-2
    for path, decoder in _ways(loss):
        loss.path, loss.decoder = path, decoder
        try:
            found = loss.losses(batch)
        except (AttributeError, TypeError, ValueError, KeyError, IndexError):
            # A decoder that cannot be called, or held still, in this way.
            continue
        if torch.allclose(found.float(), expected, rtol=tolerance, atol=tolerance):
            break
    else:
        if bool(torch.isfinite(expected).all()):
            raise ModelError(
                f"The loss of {proxy.name} is {expected.tolist()} by its own account and {found.tolist()} by that of "
                "its logits; choose a proxy with the usual next-token loss."
            )
        return
    if _sees_ahead(proxy, ids[0], tolerance):
        raise ModelError(
            f"{proxy.name} is no causal language model: what it predicts at a position depends on later tokens; name "
            "a causal one."
        )


def _ways(loss: TokenLoss) -> Iterator[tuple[LossPath, Any]]:
    paths: tuple[LossPath, ...] = ("gathered", "masked")
    for path in paths:
        for decoder in loss.decoders():
            yield path, decoder
    yield "full", loss.decoder


def _own_loss(proxy: Proxy, ids: np.ndarray, mask: np.ndarray) -> float:
    tokens = torch.from_numpy(ids).to(proxy.device)[None]
    labels = torch.where(torch.from_numpy(mask).to(proxy.device)[None], tokens, -100)
    return float(proxy.model(input_ids=tokens, labels=labels, use_cache=False).loss)


def _sees_ahead(proxy: Proxy, ids: np.ndarray, tolerance: float) -> bool:
    changed = ids.copy()
    changed[-1] = (changed[-1] + 1) % int(proxy.model.config.get_text_config().vocab_size)
    tokens = torch.from_numpy(np.stack([ids, changed])).to(proxy.device)
    logits = proxy.model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    return not torch.allclose(logits[0], logits[1], rtol=tolerance, atol=10 * tolerance)
