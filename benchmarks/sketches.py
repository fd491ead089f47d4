"""What a layer's sketch costs and how exact it is, by the layer's width and the tokens of an example.

Synthetic layers; no model. Costs are processor time, each sketch in turn, the median of the rounds, with exact norms;
``products`` is the layer's share of a forward and backward pass without weight gradients. Errors are those of cosines
between gradients of a few tokens with heavy-tailed channels, over several seeds.

    python benchmarks/sketches.py
    python benchmarks/sketches.py --errors
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from spice_select.gradients.factors import Factors, Sketch
from spice_select.gradients.fold import FoldSketch
from spice_select.gradients.layers import Layer
from spice_select.gradients.tensor_sketch import TensorSketch
from spice_select.gradients.two_sided import TwoSidedSketch

CPU = torch.device("cpu")
EXAMPLES = 12
ERROR_LAYERS = (((576, 576), 8), ((2048, 2048), 8), ((2048, 8192), 4), ((8192, 2048), 4), ((4096, 4096), 2))


def sketches(layers: list[Layer], dim: int, rank: int, seed: int, *, norms: bool) -> dict[str, Sketch]:
    """One of each kind; a fold has exact norms anyway, and no layer is too narrow for the transforms."""
    return {
        "fold": FoldSketch(layers, dim, seed, CPU),
        "two-sided": TwoSidedSketch(layers, rank, dim, seed, CPU, norms=norms),
        "tensor": TensorSketch(layers, dim, seed, CPU, norms=norms, folded_below=0),
    }


def costs(width: int, tokens: int, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of processor time for one example and one square layer."""
    generator = torch.Generator().manual_seed(0)
    a, d = (torch.randn(tokens, width, generator=generator) for _ in range(2))
    weight = torch.randn(width, width, generator=generator)
    factors = Factors(0, [0], [a], [d], (a[None], d[None]))

    def run(sketch: Sketch) -> Callable[[], object]:
        def once() -> None:
            sketch.begin(1)
            sketch.add(factors)
            sketch.finish()

        return once

    layers = [Layer("layer", width, width)]
    runs = {name: run(x) for name, x in sketches(layers, options.dim, options.rank, 0, norms=True).items()}
    runs["products"] = lambda: (a @ weight, d @ weight)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds + 1):
        for name, once in runs.items():
            begin = time.process_time()
            once()
            if number:  # the first is a warm-up
                found[name].append(1e3 * (time.process_time() - begin))
    return {name: statistics.median(times) for name, times in found.items()}


def errors(shape: tuple[int, int], count: int, options: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Root mean square and mean of the cosines' errors, and the spread of the squared norms' ratios."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    layers = [Layer(f"layer.{number}", *shape) for number in range(count)]
    channels = torch.exp(1.5 * normal(shape[1])), torch.exp(normal(shape[0]))
    shared = [(normal(4, shape[1]), normal(4, shape[0])) for _ in layers]
    factors = [
        [
            tuple(
                torch.cat([0.6 * part, normal(*part.shape)]) * scale
                for part, scale in zip(parts, channels, strict=True)
            )
            for parts in shared
        ]
        for _ in range(EXAMPLES)
    ]
    gram = np.zeros((EXAMPLES, EXAMPLES))
    for layer in range(count):
        a, d = (torch.stack([example[layer][side] for example in factors]).double() for side in (0, 1))
        products = torch.einsum("xtc,yuc->xytu", a, a) * torch.einsum("xtr,yur->xytu", d, d)
        gram += products.sum((2, 3)).numpy()
    upper = np.triu_indices(EXAMPLES, 1)
    scale = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    wrong: dict[str, list[np.ndarray]] = {}
    ratios: dict[str, list[np.ndarray]] = {}
    for seed in range(options.seeds):
        for name, sketch in sketches(layers, options.dim, options.rank, seed, norms=False).items():
            sketch.begin(EXAMPLES)
            for layer in range(count):
                inputs, outputs = ([example[layer][side] for example in factors] for side in (0, 1))
                sketch.add(Factors(layer, range(EXAMPLES), inputs, outputs))
            rows = sketch.finish().double().numpy()
            found = rows @ rows.T
            wrong.setdefault(name, []).append(((found - gram) / scale)[upper])
            ratios.setdefault(name, []).append(np.diag(found) / np.diag(gram))
    return {
        name: (float(np.sqrt(np.mean(np.square(x)))), float(np.mean(x)), float(np.std(ratios[name])))
        for name, x in wrong.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[576, 1536, 2048, 4096, 8192])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--errors", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.errors:
        for shape, count in ERROR_LAYERS:
            print(f"{count} x {shape}", flush=True)
            for name, (size, bias, spread) in errors(shape, count, options).items():
                print(f"    {name:10s} error {size:.4f}  mean {bias:+.4f}  spread of the norm {spread:.4f}", flush=True)
        return
    for width in options.widths:
        for tokens in options.tokens:
            found = costs(width, tokens, options)
            saved = (found["fold"] + found["products"]) / (found["tensor"] + found["products"])
            times = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
            print(
                f"width {width} tokens {tokens}: {times} ms; tensor / fold {found['tensor'] / found['fold']:.2f}, "
                f"with the products {1 / saved:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
