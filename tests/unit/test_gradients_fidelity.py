"""How far sketched inner products are from exact ones, on a trained model and real rows."""

from __future__ import annotations

import numpy as np
import pytest

from spice_select.config import DataConfig, GradientConfig, ModelConfig
from spice_select.data.encode import encode_rows
from spice_select.data.sources import load_rows
from spice_select.gradients import GradientEngine, load_proxy
from spice_select.gradients.check import autograd_error
from tests.support import shared_path, smollm2_path


def _errors(products: np.ndarray, gram: np.ndarray) -> tuple[float, float]:
    """RMS of the cosine's error, and relative spread of the squared norm."""
    cosines = [table / np.sqrt(np.outer(np.diag(table), np.diag(table))) for table in (products, gram)]
    upper = np.triu_indices(len(gram), 1)
    return float(np.sqrt(np.mean((cosines[0] - cosines[1])[upper] ** 2))), float(
        (np.diag(products) / np.diag(gram)).std()
    )


def _encoded(model: ModelConfig, tokenizer: object, count: int, max_length: int) -> tuple[list, list]:
    rows = load_rows([str(shared_path("data", "train", "gsm8k_train.jsonl"))], limit=count)
    encoded = encode_rows(rows, tokenizer, DataConfig(max_length=max_length))
    examples = [encoded.example(number) for number in range(count)]
    return [example.input_ids for example in examples], [example.labels_mask for example in examples]


def test_fold_keeps_norms_and_cosines() -> None:
    model = ModelConfig(name=str(shared_path("models", "stories260k")), device="cpu")
    proxy = load_proxy(model, GradientConfig())
    ids, masks = _encoded(model, proxy.tokenizer, 48, 200)
    gram = GradientEngine(proxy, GradientConfig(batch_tokens=2000)).gram(ids, masks)
    for dim, factor in ((1024, 1.3), (4096, 1.3)):
        engine = GradientEngine(proxy, GradientConfig(dim=dim))
        rows = engine.batch(ids, masks).rows.astype(np.float64)
        cosine, spread = _errors(rows @ rows.T, gram)
        assert cosine < factor * dim**-0.5
        assert spread < factor * (2 / dim) ** 0.5


@pytest.mark.slow
def test_smollm2_against_autograd() -> None:
    model = ModelConfig(name=str(smollm2_path()), device="cpu")
    proxy = load_proxy(model, GradientConfig())
    assert proxy.coverage > 0.99
    ids, masks = _encoded(model, proxy.tokenizer, 3, 200)
    assert autograd_error(GradientEngine(proxy, GradientConfig()), ids, masks) < 1e-4
