"""SFTTrainer loads both TRL forms, and its first loss is our own encoder's over the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from spice_select.config import DataConfig
from spice_select.data.encode import encode_conversations
from spice_select.data.messages import to_conversation
from spice_select.data.schema import detect_schemas
from spice_select.demo import demo_model_path
from spice_select.export.chosen import read_trained
from spice_select.export.formats import Format
from spice_select.export.trainers import write_trl
from spice_select.gradients.loss import TokenBatch, TokenLoss
from tests.unit.test_export_dataset import pool, write

pytestmark = pytest.mark.filterwarnings("default")  # TRL and its own dependencies warn as they please
trl = pytest.importorskip("trl", reason="needs the train extra")

# The demo model's template with the marks that TRL reads, and tools beside: the strings are the same.
MARKED = (
    "{{ bos_token }}{% if tools %}<|system|>\n{{ tools | tojson }}{{ eos_token + '\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% if m['tool_calls'] is defined %}{{ m['tool_calls'] | tojson }}{% endif %}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Ends with the end mark, so that the whole completion is what the encoder trains.
CLOSED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PAIRS = [{"question": f"How much is {n} and {n}?", "answer": f"It is {2 * n}.<|end|>"} for n in range(3)]
TALKS = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                  {"role": "assistant", "content": "Hello"}, {"role": "user", "content": f"And {n}?"},
                  {"role": "assistant", "content": f"{n} it is."}]} for n in range(2)
]  # fmt: skip
CALLS = [
    {"conversations": [{"from": "human", "value": "Sky?"},
                       {"from": "function_call", "value": json.dumps({"name": "sky", "arguments": {f"t{n}": n}})},
                       {"from": "observation", "value": "blue"}, {"from": "gpt", "value": "Blue."}],
     "tools": json.dumps([{"name": "sky", "parameters": {f"t{n}": {"type": "integer"}}}])} for n in range(2)
]  # fmt: skip
TEXTS = [{"text": f"Once upon a time {n}"} for n in range(3)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_model_path())


def exported(folder: Path, tokenizer: Any, form: Format, *sources: list[dict[str, Any]]) -> tuple[Any, list[Any]]:
    """The file as ``datasets`` loads it, and the conversations that it is of."""
    rows = pool(folder, *sources)
    order = list(range(len(rows)))[::-1]
    write(folder / "run", rows, order, special_tokens=tokenizer.all_special_tokens)
    file = folder / "rows.jsonl"
    write_trl(read_trained(folder / "run" / "data"), file, form)
    loaded = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))
    schemas = detect_schemas(rows)
    return loaded, [to_conversation(rows[index], schemas[int(rows.source_ids[index])]) for index in order]


def first_loss(folder: Path, data: Any, tokenizer: Any, **options: Any) -> float:
    """TRL's loss over all rows in one batch, before any step."""
    model = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)
    config = trl.SFTConfig(
        output_dir=str(folder / "trained"), max_steps=1, per_device_train_batch_size=len(data), report_to=[],
        use_cpu=True, bf16=False, max_length=None, save_strategy="no", disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
    return trainer.train().training_loss


def own_loss(conversations: list[Any], tokenizer: Any, template: str, train_on: str) -> float:
    """The mean over all trained tokens by our encoder and our loss."""
    options = DataConfig.model_validate({"chat_template": template, "train_on": train_on})
    encoded = encode_conversations(conversations, tokenizer, options)
    assert encoded.usable.all()
    model = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()
    examples = [encoded.example(index) for index in range(len(conversations))]
    ids, masks = [one.input_ids for one in examples], [one.labels_mask for one in examples]
    losses = TokenLoss(model).losses(TokenBatch.build(ids, masks, torch.device("cpu")))
    counts = torch.tensor([int(mask.sum()) for mask in masks])
    return float((losses * counts).sum() / counts.sum())


@pytest.mark.parametrize(
    ("form", "template", "train_on", "options", "sources"),
    [
        (Format.TRL_MESSAGES, MARKED, "all-assistant", {"assistant_only_loss": True}, (PAIRS, TALKS, CALLS)),
        (Format.TRL_PROMPT_COMPLETION, MARKED, "last", {"assistant_only_loss": True}, (PAIRS, TALKS, CALLS)),
        (Format.TRL_PROMPT_COMPLETION, CLOSED, "last", {}, (PAIRS, TALKS)),
        (Format.TRL_MESSAGES, CLOSED, "all-assistant", {}, (TEXTS,)),
    ],
    ids=["messages", "prompt-completion", "prompt-completion-by-itself", "text"],
)
def test_the_first_loss_is_our_own(
    tmp_path: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    form: Format,
    template: str,
    train_on: str,
    options: dict[str, Any],
    sources: tuple[list[dict[str, Any]], ...],
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    data, conversations = exported(tmp_path, tokenizer, form, *sources)
    theirs = first_loss(tmp_path, data, tokenizer, **options)
    assert theirs == pytest.approx(own_loss(conversations, tokenizer, template, train_on), abs=1e-4)


def test_turns_of_every_shape_reach_the_trainer(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", MARKED)
    data, conversations = exported(tmp_path, tokenizer, Format.TRL_MESSAGES, PAIRS, TALKS, CALLS)
    assert [len(row["messages"]) for row in data] == [len(one.messages) for one in conversations]
    calls = [turn for row in data for turn in row["messages"] if "tool_calls" in turn]
    assert [call["tool_calls"][0]["function"]["arguments"] for call in calls] == [{"t1": 1}, {"t0": 0}]
    assert all(turn.get("tool_calls", True) for row in data for turn in row["messages"])
