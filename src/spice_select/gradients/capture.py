"""Gradients of single examples from one batched forward and backward pass."""

from __future__ import annotations

import warnings
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
from spice_select.gradients.precondition import Moments, Preconditioned, moments_digest, require_moments
from spice_select.gradients.proxy import Proxy
from spice_select.gradients.sketch import build_sketch, summary

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
        precondition: Adam's first and second moment of each layer's weights, by layer name; every gradient that the
            engine hands out is then the step that Adam would take (LESS, arXiv 2402.04333).

    Raises:
        ModelError: The model's loss is not reproduced, a position's logits depend on later tokens, or a layer has no
            moments.
    """

    def __init__(self, proxy: Proxy, config: GradientConfig, *, precondition: Moments | None = None) -> None:
        self.proxy = proxy
        self.config = config
        self._moments = None if precondition is None else require_moments(proxy.layers, precondition, proxy.device)
        self._moments_digest = None if self._moments is None else moments_digest(self._moments)
        self._scratch: dict[str, Tensor] = {}
        self._sketch: Sketch = self.new_sketch()
        # Gradients of a mean loss are small enough to vanish in float16.
        self._scale = 1024.0 if proxy.dtype == torch.float16 else 1.0
        self._loss = TokenLoss(proxy.model, self._scale)
        choose_path(self._loss, proxy)
        self._warn_of_unreached()

    @property
    def dim(self) -> int:
        """Length of a row."""
        return self._sketch.dim

    @property
    def loss_path(self) -> str:
        """How logits are reached: ``gathered``, ``masked`` or ``full``; the numbers are the same."""
        return self._loss.path

    @property
    def scale(self) -> float:
        """Factor on all gradients that a sketch is handed by :meth:`fill`."""
        return self._scale

    def new_sketch(self) -> Sketch:
        """A sketch like the engine's own, for gradients from elsewhere."""
        return build_sketch(self.config, self.proxy.layers, self.proxy.device)

    def spec(self) -> dict[str, Any]:
        """What decides a row's numbers beside weights and examples, in what JSON can hold."""
        lora = self.config.lora
        spec = {
            "sketch": summary(self.config, self._sketch),
            "layers": self.config.layers,
            "layer_count": len(self.proxy.layers),
            "layer_digest": self.proxy.layer_digest,
            "lora": None if lora is None else lora.model_dump(exclude={"adapter"}),
            "loss": self.config.loss,
            "dtype": str(self.proxy.dtype).removeprefix("torch."),
        }
        if self._moments is not None:
            spec["precondition"] = {"kind": "adam", "version": 1, "moments": self._moments_digest}
        return spec

    def batch(
        self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray], sketch: Sketch | None = None
    ) -> GradientBatch:
        """Measure examples in one forward and backward pass.

        Args:
            ids: Token ids of each example, ``[t]``.
            masks: True where the token is a trained label, ``[t]``.
            sketch: Another sketch than the engine's own.
        """
        sketch = sketch or self._sketch
        losses = self._pass(ids, masks, sketch)
        rows = sketch.finish() / self._scale
        norms = sketch.squared_norms() / self._scale**2
        return GradientBatch(rows.numpy(), losses.numpy(), norms.numpy())

    def fill(
        self,
        sketch: Sketch,
        ids: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        wanted: frozenset[int] | None = None,
    ) -> Float64[np.ndarray, " b"]:
        """Hand the gradients of some layers to a sketch in one forward and backward pass, times :attr:`scale`.

        Args:
            sketch: Takes the gradients, one layer after the other.
            ids: Token ids of each example, ``[t]``.
            masks: True where the token is a trained label, ``[t]``.
            wanted: Positions of the layers; none: all.

        Returns:
            Losses in nats.
        """
        return self._pass(ids, masks, sketch, wanted).numpy()

    def losses(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Float64[np.ndarray, " b"]:
        """Losses alone, from a forward pass without gradients."""
        return self._loss.losses(TokenBatch.build(ids, masks, self.proxy.device)).numpy()

    def gram(
        self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray], memory: int = 1 << 32
    ) -> Float64[np.ndarray, "n n"]:
        """Exact inner products of the unsketched gradients.

        Layers are taken in groups whose gradients fit into ``memory`` for all examples at once, with one pass over
        the examples for each group: cheap for adapters and small pools, many passes for the full weights of a large
        pool.

        Args:
            ids: Token ids of each example, ``[t]``.
            masks: True where the token is a trained label, ``[t]``.
            memory: Bytes for gradients, on the device where it has float64, else on the host.
        """
        count = len(ids)
        place = self.proxy.device if self.proxy.device.type != "mps" else torch.device("cpu")
        total = torch.zeros(count, count, dtype=torch.float64, device=place)
        batches = list(self._batches(ids))
        for group in self._groups(count, memory):
            tables = GradientTables(self.proxy.layers, group, self.proxy.device)
            kept = {layer: torch.zeros(count, self.proxy.layers[layer].size, device=place) for layer in group}
            for members in batches:
                self._pass([ids[i] for i in members], [masks[i] for i in members], tables, frozenset(group))
                for layer, table in tables.tables.items():
                    kept[layer][members] = table.to(place)
            for table in kept.values():
                for part in table.split(_GRAM_COLUMNS, dim=1):
                    wide = part.double()
                    total += wide @ wide.t()
        return (total / self._scale**2).cpu().numpy()

    def materialise(
        self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray], layers: Sequence[int] | None = None
    ) -> Mapping[str, Float[Tensor, "b rows columns"]]:
        """Whole gradients by layer name, of all layers or of some given by position: for tests and small models."""
        known = self.proxy.layers
        chosen = range(len(known)) if layers is None else layers
        tables = GradientTables(known, chosen, self.proxy.device)
        self._pass(ids, masks, tables, frozenset(chosen))
        return {
            known[index].name: table.view(len(ids), known[index].rows, known[index].columns) / self._scale
            for index, table in tables.tables.items()
        }

    def _warn_of_unreached(self) -> None:
        """Some models read a layer's weight without calling the layer; hooks see nothing of that."""
        ids = np.arange(8) % int(self.proxy.model.config.get_text_config().vocab_size)
        reached: set[int] = set()
        batch = TokenBatch.build([ids], [ids > 1], self.proxy.device)
        recorder = Recorder(self.proxy.scope, batch.lengths, batch.ids.shape[1], lambda x: reached.add(x.layer))
        with recorder.watch():
            self._loss.backward(batch)
        # Experts may have had no token among so few.
        missed = [
            self.proxy.layers[site.layer].name
            for _, site in self.proxy.scope.modules
            if site.layer not in reached and "expert" not in self.proxy.layers[site.layer].name
        ]
        if missed:
            more = f" (and {len(missed) - 1} more)" if len(missed) > 1 else ""
            warnings.warn(
                f"Layer {missed[0]}{more} of {self.proxy.name} is not called as a layer, so that its gradient counts "
                "as zero; leave it out with gradients.layers.",
                stacklevel=3,
            )

    def _pass(
        self,
        ids: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        sketch: Sketch,
        wanted: frozenset[int] | None = None,
    ) -> Float[Tensor, " b"]:
        batch = TokenBatch.build(ids, masks, self.proxy.device)
        whole = None
        if self._moments is not None:
            sketch = whole = Preconditioned(sketch, self._moments, self._scale, wanted, self._scratch)
        sketch.begin(len(ids))
        recorder = Recorder(self.proxy.scope, batch.lengths, batch.ids.shape[1], sketch.add, wanted)
        with recorder.watch():
            losses = self._loss.backward(batch)
        if whole is not None:
            whole.complete()
        return losses

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

    def _groups(self, count: int, memory: int) -> Iterator[list[int]]:
        group: list[int] = []
        size = 0
        for index, layer in enumerate(self.proxy.layers):
            needed = 4 * count * layer.size
            if group and size + needed > memory:
                yield group
                group, size = [], 0
            group.append(index)
            size += needed
        if group:
            yield group


@torch.no_grad()
def choose_path(loss: TokenLoss, proxy: Proxy) -> None:
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
