"""TRL's SFTTrainer takes a step on an output as it stands, and trains on the chat messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spice_select.data.schema import detect_schemas
from spice_select.data.sources import load_rows
from spice_select.export.card import CardFacts
from spice_select.export.dataset import write_dataset
from tests.support import shared_path
from tests.unit.test_export_dataset import Picks

pytestmark = pytest.mark.filterwarnings("default")  # TRL and its own dependencies warn as they please
trl = pytest.importorskip("trl", reason="needs the train extra")

TEMPLATE = (
    "{% if tools %}tools {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{% if 'tool_calls' in message %}{{ message.tool_calls | tojson }}{% endif %}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
)

GSM = [{"question": f"How much is {n} and {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(4)]
ALPACA = [{"instruction": "Name it.", "input": "" if n else "a red fruit", "output": f"Apple {n}"} for n in range(4)]
T0 = [{"prompt": f"Premise {n}. Does it follow?", "completion": "yes", "template": "nli"} for n in range(4)]
GLAIVE = [
    {
        "conversations": [
            {"from": "human", "value": f"What is the weather in town {n}?"},
            {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"town": str(n)}})},
            {"from": "observation", "value": '{"sky": "blue"}'},
            {"from": "gpt", "value": "Blue."},
        ],
        "tools": '[{"name": "weather", "parameters": {"town": "text"}}]' if n else "[]",
    }
    for n in range(4)
]
NATIVE = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Hello {n}"}]} for n in range(4)
]
TEXT = [{"text": f"Once upon a time {n}"} for n in range(4)]
TRAPS = [
    {"question": f"q{n}", "answer": "a", "labels": n, "input_ids": [n], "image": "x.png", "chat_template_kwargs": None,
     "completion_mask": [1], "chosen": "c", "rejected": "r", "text": "not this"}
    for n in range(4)
]  # fmt: skip
CONVERSATIONAL = [
    {"prompt": [{"role": "user", "content": f"Say {n}"}], "completion": [{"role": "assistant", "content": str(n)}]}
    for n in range(4)
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the marks of the template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>", additional_special_tokens=["<|im_start|>"]
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def _write(folder: Path, sources: list[list[dict[str, Any]]], chosen: list[int] | None = None) -> datasets.Dataset:
    paths = []
    for number, rows in enumerate(sources):
        paths.append(folder / f"source{number}.jsonl")
        paths[-1].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    rows = load_rows(paths)
    order = np.random.default_rng(0).permutation(len(rows)) if chosen is None else np.array(chosen)
    write_dataset(folder / "out", rows, detect_schemas(rows), Picks(order), CardFacts("out", "tiny"))
    return datasets.load_dataset(str(folder / "out"), split="train", cache_dir=str(folder / "cache"))


def _train(
    folder: Path, data: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, **options: Any
) -> datasets.Dataset:
    """One optimiser step; the rows as the trainer made them ready."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2,
        )
    )  # fmt: skip
    before = model.model.embed_tokens.weight.detach().clone()
    config = trl.SFTConfig(
        output_dir=str(folder / "trained"), max_steps=1, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        bf16=False, max_length=None, save_strategy="no", disable_tqdm=True, learning_rate=0.01, **options,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
    assert np.isfinite(trainer.train().training_loss)
    assert not before.equal(model.model.embed_tokens.weight)
    return trainer.train_dataset


MIXTURES = {
    "mixed": [GSM, ALPACA, T0, GLAIVE],
    "glaive": [GLAIVE],
    "prompt-completion": [T0],
    "conversational": [CONVERSATIONAL],
    "native": [NATIVE, GSM],
    "traps": [TRAPS, T0],
    "text-beside-chat": [TEXT, NATIVE],
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_step_on_the_messages(name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = _write(tmp_path, MIXTURES[name])
    made = _train(tmp_path, data, tokenizer, assistant_only_loss=name != "text-beside-chat")
    assert len(made) == len(data)
    for row, ready in zip(data, made, strict=True):
        tools = json.loads(row["tools"]) if row.get("tools") else None
        expected = tokenizer.apply_chat_template(row["messages"], tools=tools, tokenize=False)
        assert tokenizer.decode(ready["input_ids"]) == expected
        trained = [token for token, label in zip(ready["input_ids"], ready["labels"], strict=True) if label != -100]
        for turn in row["messages"]:
            assert (turn["content"] in tokenizer.decode(trained)) or turn["role"] != "assistant"
        if name != "text-beside-chat":
            assert "<|im_start|>" not in tokenizer.decode(trained)


def test_a_step_on_text_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made = _train(tmp_path, _write(tmp_path, [TEXT], [2, 0, 1, 3]), tokenizer)
    assert tokenizer.decode(made[0]["input_ids"]) == "Once upon a time 2<|im_end|>"


def test_a_step_on_real_rows_of_four_sources(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    names = ("gsm8k_train.jsonl", "alpaca_1k.json", "t0_23k.parquet", "glaive_toolcall_en_demo.json")
    rows = load_rows([shared_path("data", "train", name) for name in names])
    order = np.concatenate([np.flatnonzero(rows.source_ids == source)[:3] for source in range(4)])
    np.random.default_rng(0).shuffle(order)
    write_dataset(tmp_path / "out", rows, detect_schemas(rows), Picks(order), CardFacts("out", "tiny"))
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    made = _train(tmp_path, data.select(range(8)), tokenizer)
    assert tokenizer.decode(made[0]["input_ids"]).startswith(("<|im_start|>user", "tools"))
