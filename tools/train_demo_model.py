"""Train the small language model that ``spice-select demo`` ships.

    python tools/train_demo_model.py --output src/spice_select/demo/assets

A byte-level BPE tokenizer and a Llama-architecture model of about 0.9 million parameters are trained on questions
generated from the demo's own templates, in streams that the demo's pool does not draw from, and saved as safetensors in
float32. That takes about five minutes on two idle cores. The shipped files came from the defaults. Two runs of 20 steps
gave the same bytes in every file, on one machine with one thread count and the same versions of torch, tokenizers and
transformers; on another processor the sums inside a matrix product may be taken in another order, and the weights then
differ in their last digits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spice_select.demo.data import demo_rows, generate_example
from spice_select.demo.example import Example

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
# Without a generation block on purpose: most templates in the wild have none.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('The roles of this template are system, user and assistant.') }}
{%- endif %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}
"""
VOCABULARY = 1280
LONGEST = 192


def main() -> None:
    """Train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model files to")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps (default: 1500)")
    parser.add_argument("--batch", type=int, default=16, help="examples in a step (default: 16)")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate (default: 0.003)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and text (default: 0)")
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of torch; part of what is reproduced (default: 2)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)

    tokenizer = train_tokenizer(arguments.seed)
    model = new_model(tokenizer, arguments.seed)
    fresh = list(examples(f"held out {arguments.seed}", 400))
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{parameters} parameters, {len(tokenizer)} tokens")
    print(f"loss at initialisation {response_loss(model, tokenizer, fresh):.3f}")
    started = time.monotonic()
    train(model, tokenizer, arguments.steps, arguments.batch, arguments.rate, arguments.seed)
    print(f"trained in {time.monotonic() - started:.0f} s")
    print(f"loss on fresh questions {response_loss(model, tokenizer, fresh):.3f} nats a response token")
    pool = demo_rows()
    for origin in ("original", "wrong_answer"):
        rows = [(row["instruction"], row["input"], row["output"]) for row in pool if row["origin"] == origin]
        print(f"loss on the demo's rows of origin {origin} {text_loss(model, tokenizer, rows):.3f}")
    for example in list(examples(f"sample {arguments.seed}", 6)):
        print(f"Q {question(example.prompts[0].instruction, example.prompts[0].input)!r}")
        print(f"A {answer(model, tokenizer, question(example.prompts[0].instruction, example.prompts[0].input))!r}")
    save(model, tokenizer, arguments.output)


def examples(stream: str, count: int) -> Iterator[Example]:
    """Questions from a stream of their own, which the demo's pool does not draw from."""
    rng = Random(f"demo model {stream}")
    for _ in range(count):
        yield generate_example(rng)


def question(instruction: str, given: str) -> str:
    """The user turn of a row."""
    return f"{instruction}\n{given}" if given else instruction


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose digits are tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in (PAD, BEGIN, END, *ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        text
        for example in examples(f"tokenizer {seed}", 6000)
        for text in (example.output, *(question(p.instruction, p.input) for p in example.prompts))
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="right",
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The model at initialisation; its weights come from a local generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        dtype="float32",
    )
    with torch.random.fork_rng():
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                # Layers that write into the residual stream start smaller: its variance then does not grow with depth.
                depth = (
                    math.sqrt(2 * config.num_hidden_layers)
                    if name.endswith(("o_proj.weight", "down_proj.weight"))
                    else 1.0
                )
                weight.normal_(0.0, 0.04 / depth, generator=generator)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=160,
        do_sample=False,
    )
    return model


def encode(
    tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, str, str]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and labels of one padded batch; only response and end token are labelled."""
    pad = tokenizer.convert_tokens_to_ids(PAD)
    ids, labels = [], []
    for instruction, given, output in rows:
        turn = [{"role": "user", "content": question(instruction, given)}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tail = tokenizer(output + END, add_special_tokens=False)["input_ids"]
        assert len(head) + len(tail) <= LONGEST, (len(head), len(tail), instruction)
        ids.append(head + tail)
        labels.append([-100] * len(head) + tail)
    width = max(map(len, ids))
    return (
        torch.tensor([row + [pad] * (width - len(row)) for row in ids]),
        torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    )


def summed_loss(
    model: LlamaForCausalLM, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, int]:
    """Cross-entropy summed over the labelled tokens, and their number."""
    ids, attention, labels = batch
    hidden = model.model(input_ids=ids, attention_mask=attention).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != -100
    return functional.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted], reduction="sum"), int(
        wanted.sum()
    )


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, batch: int, rate: float, seed: int
) -> None:
    """AdamW with warm-up and a cosine; each question in a random phrasing, batches of like length."""
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    gains = [weight for weight in model.parameters() if weight.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), foreach=False)
    rng = Random(f"phrasing {seed}")
    stream = examples(f"training {seed}", steps * batch)
    queue: list[list[tuple[str, str, str]]] = []
    model.train()
    for step in range(steps):
        if not queue:
            drawn = [example for _, example in zip(range(8 * batch), stream, strict=False)]
            rows = []
            for example in drawn:
                prompt = rng.choice(example.prompts)
                rows.append((prompt.instruction, prompt.input, example.output))
            rows.sort(key=lambda row: sum(map(len, row)))
            queue = [rows[i : i + batch] for i in range(0, len(rows), batch)]
            rng.shuffle(queue)
        warm, done = min(1.0, (step + 1) / 60), step / steps
        for group in optimiser.param_groups:
            group["lr"] = rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        loss, tokens = summed_loss(model, encode(tokenizer, queue.pop()))
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(f"step {step} loss {loss.item() / tokens:.3f}", flush=True)
    model.eval()


def text_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, str, str]]) -> float:
    """Mean loss in nats over all response tokens of the rows."""
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for i in range(0, len(rows), 50):
            loss, tokens = summed_loss(model, encode(tokenizer, rows[i : i + 50]))
            total, count = total + loss.item(), count + tokens
    return total / count


def response_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, fresh: list[Example]) -> float:
    """`text_loss` of questions in their canonical phrasing."""
    return text_loss(model, tokenizer, [(e.prompts[0].instruction, e.prompts[0].input, e.output) for e in fresh])


def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: str) -> str:
    """The model's most likely response."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    return tokenizer.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model files and print their sizes and hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    fields = json.loads(settings.read_text(encoding="utf-8"))
    # The names that releases of transformers before and after 5 know.
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    settings.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)  # safetensors are written for the owner alone, and a wheel keeps the mode
        content = path.read_bytes()
        print(f"{path.name} {len(content)} bytes sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
