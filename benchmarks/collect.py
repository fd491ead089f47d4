"""What per-example gradients cost beside an ordinary training pass over the same examples.

Every method runs over the same length-sorted batches in one process, in turn, and each round gives one ratio to the
plain batched forward and backward pass of that round; the medians of the ratios are printed, with the peak of the
resident memory and, on a GPU, of the device memory.

    python benchmarks/collect.py --model SmolLM2-135M-Instruct --data-dir data/train --rows 48 --max-length 512
    python benchmarks/collect.py --model SmolLM2-135M-Instruct --data-dir data/train --rows 200 --fidelity
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from spice_select.config import DataConfig, GradientConfig, LoraConfig, ModelConfig
from spice_select.data.encode import encode_rows
from spice_select.data.sources import load_rows
from spice_select.gradients import GradientEngine, Proxy, load_proxy
from spice_select.gradients.batches import plan_batches
from spice_select.gradients.factors import Factors, Sketch
from spice_select.gradients.fold import FoldSketch
from spice_select.gradients.tensor_sketch import TensorSketch
from spice_select.gradients.two_sided import TwoSidedSketch

FILES = ("gsm8k_train.jsonl", "code_alpaca_2k.json", "alpaca_1k.json")
METHODS = ("plain", "forward", "fold", "two-sided", "tensor", "lora-loop", "bergson")


@dataclass(frozen=True)
class Examples:
    """Token ids and masks of trained labels."""

    ids: list[np.ndarray]
    masks: list[np.ndarray]

    def batches(self, budget: int) -> list[list[int]]:
        """Members of each batch."""
        return [batch.tolist() for batch in plan_batches(np.array([len(row) for row in self.ids]), budget)]

    def take(self, members: Sequence[int]) -> Examples:
        """Some of the examples."""
        return Examples([self.ids[i] for i in members], [self.masks[i] for i in members])


class PeakMemory:
    """Largest resident size of this process while the block runs, sampled every 5 ms."""

    def __enter__(self) -> PeakMemory:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.is_set():
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            self.peak = max(self.peak, resident)
            time.sleep(0.005)


def read_examples(folder: Path, proxy: Proxy, rows: int, max_length: int, seed: int) -> Examples:
    """A random sample of usable rows, as many from each file."""
    generator = np.random.default_rng(seed)
    ids, masks = [], []
    for number, file in enumerate(FILES):
        share = rows // len(FILES) + (number < rows % len(FILES))
        table = load_rows([str(folder / file)])
        chosen = generator.permutation(len(table))[: 2 * share]
        encoded = encode_rows(table.subset(np.sort(chosen)), proxy.tokenizer, DataConfig(max_length=max_length))
        found = [encoded.example(i) for i in range(len(encoded))]
        usable = [example for example in found if example.labels_mask.any()][:share]
        ids += [np.asarray(example.input_ids) for example in usable]
        masks += [np.asarray(example.labels_mask) for example in usable]
    return Examples(ids, masks)


def padded(examples: Examples, device: torch.device) -> dict[str, torch.Tensor]:
    """What a trainer hands to the model."""
    width = max(len(row) for row in examples.ids)
    ids = torch.zeros(len(examples.ids), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (tokens, trained) in enumerate(zip(examples.ids, examples.masks, strict=True)):
        length = len(tokens)
        ids[row, :length] = torch.from_numpy(tokens.astype(np.int64))
        labels[row, :length] = torch.where(torch.from_numpy(trained), ids[row, :length], -100)
        mask[row, :length] = 1
    return {"input_ids": ids.to(device), "labels": labels.to(device), "attention_mask": mask.to(device)}


def plain(proxy: Proxy, examples: Examples, budget: int) -> None:
    """An ordinary training pass: every weight has a gradient, the loss is the model's own."""
    proxy.model.requires_grad_(True)
    for members in examples.batches(budget):
        proxy.model(**padded(examples.take(members), proxy.device), use_cache=False).loss.backward()
        proxy.model.zero_grad(set_to_none=True)
    proxy.model.requires_grad_(False)


@torch.no_grad()
def forward(proxy: Proxy, examples: Examples, budget: int) -> None:
    for members in examples.batches(budget):
        proxy.model(**padded(examples.take(members), proxy.device), use_cache=False)


def sketched(engine: GradientEngine) -> Callable[[Proxy, Examples, int], None]:
    def run(proxy: Proxy, examples: Examples, budget: int) -> None:
        for members in examples.batches(budget):
            part = examples.take(members)
            engine.batch(part.ids, part.masks)

    return run


def lora_loop(proxy: Proxy, model: Any) -> Callable[[Proxy, Examples, int], None]:
    """One example at a time through adapters of rank 16, gradients gathered after each."""
    parameters = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]

    def run(_: Proxy, examples: Examples, budget: int) -> None:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for number in range(len(examples.ids)):
            model.zero_grad()
            model(**padded(examples.take([number]), proxy.device), use_cache=False).loss.backward()
            torch.cat([parameter.grad.flatten() for parameter in parameters])

    return run


def build(names: Sequence[str], proxy: Proxy, options: argparse.Namespace) -> dict[str, Callable[..., None]]:
    """The methods asked for, ready to run."""
    found: dict[str, Callable[..., None]] = {}
    for name in names:
        if name == "plain":
            found[name] = plain
        elif name == "forward":
            found[name] = forward
        elif name in ("fold", "two-sided", "tensor"):
            config = GradientConfig(sketch=name, dim=options.dim, rank=options.rank)
            found[name] = sketched(GradientEngine(proxy, config))
        elif name == "lora-loop":
            import copy

            import peft

            settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = lora_loop(proxy, peft.get_peft_model(copy.deepcopy(proxy.model), settings).eval())
        elif name == "bergson":
            try:
                importlib.import_module("bergson")
            except ImportError as error:
                print(f"bergson left out: {error}", file=sys.stderr)
                continue
            found[name] = bergson_run(options.rank)
    return found


def bergson_run(rank: int) -> Callable[[Proxy, Examples, int], None]:
    """The peer's own collection into its own memory map, over the same batches."""
    import bergson
    from datasets import Dataset

    def run(proxy: Proxy, examples: Examples, budget: int) -> None:
        rows = {
            "input_ids": [row.tolist() for row in examples.ids],
            "labels": [
                np.where(mask, row, -100).tolist() for row, mask in zip(examples.ids, examples.masks, strict=True)
            ],
            "length": [len(row) for row in examples.ids],
        }
        # As its own set-up leaves a model: only the input embeddings ask for gradients.
        proxy.model.get_input_embeddings().requires_grad_(True)
        # Its log lines and progress bars would bury the table.
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            bergson.collect_gradients(
                model=proxy.model,
                data=Dataset.from_dict(rows),
                processor=bergson.GradientProcessor(projection_dim=rank),
                cfg=bergson.IndexConfig(
                    run_path=folder, projection_dim=rank, loss_reduction="mean", token_batch_size=budget
                ),
                batches=examples.batches(budget),
            )
        proxy.model.requires_grad_(False)

    return run


def measure(proxy: Proxy, examples: Examples, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, ratios and memory of each method; the rounds take the methods in turn."""
    methods = build(options.methods, proxy, options)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    memory: dict[str, int] = {}
    device_memory: dict[str, int] = {}
    cuda = proxy.device.type == "cuda"
    clock = time.process_time if options.cpu_time else time.perf_counter
    for method in methods.values():  # warm-up
        first = examples.batches(options.batch_tokens)[-1]
        method(proxy, examples.take(first), options.batch_tokens)
    for _ in range(options.repeats):
        for name, method in methods.items():
            gc.collect()
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            with PeakMemory() as watch:
                begin = clock()
                method(proxy, examples, options.batch_tokens)
                if cuda:
                    torch.cuda.synchronize()
                seconds[name].append(clock() - begin)
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
            memory[name] = max(memory.get(name, 0), watch.peak)
            if cuda:
                device_memory[name] = max(device_memory.get(name, 0), torch.cuda.max_memory_allocated())
    tokens = sum(len(row) for row in examples.ids)
    report: dict[str, Any] = {
        "rows": len(examples.ids),
        "tokens": tokens,
        "labels": int(sum(mask[1:].sum() for mask in examples.masks)),
        "batch_tokens": options.batch_tokens,
        "batches": len(examples.batches(options.batch_tokens)),
        "threads": torch.get_num_threads(),
        "clock": "process CPU time" if options.cpu_time else "wall",
        "device": str(proxy.device),
        "dtype": str(proxy.dtype).removeprefix("torch."),
        "methods": {},
    }
    for name, times in seconds.items():
        ratios = [time / base for time, base in zip(times, seconds.get("plain", times), strict=True)]
        report["methods"][name] = {
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "seconds": round(statistics.median(times), 2),
            "tokens_per_second": round(tokens / statistics.median(times)),
            "peak_rss_mb": memory[name] >> 20,
        }
        if cuda:
            report["methods"][name]["peak_device_mb"] = device_memory[name] >> 20
    return report


class Several(Sketch):
    """Fills several sketches from one pass over the examples."""

    def __init__(self, parts: dict[str, Sketch]) -> None:
        first = next(iter(parts.values()))
        super().__init__(first.layers, first.device)
        self.parts = parts

    @property
    @override
    def dim(self) -> int:
        return sum(part.dim for part in self.parts.values())

    @override
    def begin(self, examples: int) -> None:
        for part in self.parts.values():
            part.begin(examples)

    @override
    def add(self, factors: Factors) -> None:
        for part in self.parts.values():
            part.add(factors)

    @override
    def add_whole(self, layer: int, examples: Sequence[int], gradients: torch.Tensor) -> None:
        for part in self.parts.values():
            part.add_whole(layer, examples, gradients.clone())

    @override
    def finish(self) -> torch.Tensor:
        return torch.cat([part.finish() for part in self.parts.values()], dim=1)

    @override
    def squared_norms(self) -> torch.Tensor:
        return next(iter(self.parts.values())).squared_norms()


def fidelity(proxy: Proxy, examples: Examples, options: argparse.Namespace) -> dict[str, Any]:
    """Errors of sketched inner products.

    Squared norms are compared with the exact ones. Cosines are compared with the exact Gram matrix (``--reference
    exact``, many passes over the examples for a large model), or with a fold of so many numbers and of another seed
    that its own error, about one over their root, hardly counts.
    """
    device, layers = proxy.device, proxy.layers
    config = GradientConfig(dim=options.dim, batch_tokens=options.batch_tokens)
    engine = GradientEngine(proxy, config)
    parts: dict[str, Sketch] = {"fold": FoldSketch(layers, options.dim, 0, device)}
    if "two-sided" in options.methods:
        parts["two-sided"] = TwoSidedSketch(layers, options.rank, options.dim, 0, device, norms=False)
    if "tensor" in options.methods:
        # Every layer by its transforms, the narrow ones too, as a model with wide layers alone would have them.
        parts["tensor"] = TensorSketch(layers, options.dim, 0, device, norms=False, folded_below=0)
    if options.reference != "exact":
        parts["reference"] = FoldSketch(layers, int(options.reference), 1, device)
    sketch = Several(parts)
    batches = examples.batches(options.batch_tokens)
    found = [engine.batch(part.ids, part.masks, sketch) for part in map(examples.take, batches)]
    columns = np.cumsum([part.dim for part in parts.values()])[:-1]
    table = np.concatenate([batch.rows for batch in found])
    rows = dict(zip(parts, np.split(table, columns, axis=1), strict=True))
    norms = np.concatenate([batch.squared_norms for batch in found])
    report: dict[str, Any] = {"rows": len(norms), "dim": options.dim, "reference": options.reference}
    if options.reference == "exact":
        ordered = examples.take([member for members in batches for member in members])
        gram = engine.gram(ordered.ids, ordered.masks, memory=options.gram_gb << 30)
        report["largest_error_of_exact_norm"] = float(np.abs(norms / np.diag(gram) - 1).max())
    else:
        wide = rows.pop("reference").astype(np.float64)
        gram = wide @ wide.T
        report["reference_squared_norm_spread"] = float((np.diag(gram) / norms).std())
    upper = np.triu_indices(len(norms), 1)
    scale = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    report["mean_cosine"] = float((gram / scale)[upper].mean())
    for name, values in rows.items():
        products = values.astype(np.float64) @ values.astype(np.float64).T
        own = np.sqrt(np.outer(np.diag(products), np.diag(products)))
        error = (products / own - gram / scale)[upper]
        ratio = np.diag(products) / norms
        report[name] = {
            "cosine_error_rms": round(float(np.sqrt(np.mean(error**2))), 5),
            "squared_norm_ratio_mean": round(float(ratio.mean()), 5),
            "squared_norm_spread": round(float(ratio.std()), 5),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--data-dir", type=Path, required=True, help=f"folder with {', '.join(FILES)}")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=GradientConfig().batch_tokens)
    parser.add_argument("--dim", type=int, default=GradientConfig().dim)
    parser.add_argument("--rank", type=int, default=GradientConfig().rank)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lora", type=int, default=None, help="take adapters of this rank instead of the full weights")
    parser.add_argument("--fidelity", action="store_true", help="measure the errors of the sketches instead")
    parser.add_argument("--reference", default="262144", help="for --fidelity: numbers of the reference, or exact")
    parser.add_argument("--gram-gb", type=int, default=8, help="memory for the exact Gram matrix")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time, for a machine with other work")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    lora = None if options.lora is None else LoraConfig(r=options.lora)
    proxy = load_proxy(
        ModelConfig(name=options.model, dtype=options.dtype, device=options.device), GradientConfig(lora=lora)
    )
    examples = read_examples(options.data_dir, proxy, options.rows, options.max_length, options.seed)
    report = (fidelity if options.fidelity else measure)(proxy, examples, options)
    if options.json:
        print(json.dumps(report))
        return
    for key, value in report.items():
        if key != "methods":
            print(f"{key}: {value}")
    for name, values in report.get("methods", {}).items():
        print(f"{name:10s} " + "  ".join(f"{key} {value}" for key, value in values.items()))


if __name__ == "__main__":
    main()
