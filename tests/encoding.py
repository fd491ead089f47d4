"""Small tokenizers and conversations for the tests of the encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from spice_select.data.conversation import Conversation, Message
from spice_select.data.encoded import Example

CORPUS = [
    "The user asks the assistant a question and the assistant answers it.",
    "system user assistant tool model\n\nHello there! It is 4. What is 2+2? Fine, thanks.\n",
    "Weather in Oslo is sunny; get_weather city days arguments parameters function name.",
    'def add(a, b):\n    return a + b\n\n{"key": "value", "list": [1, 2, 3]}\n' * 2,
    "<|im_start|> <|im_end|> end of turn s eos bos /s",
]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_SPECIAL = ("<|im_start|>", "<|im_end|>")


def byte_level(special: Iterable[str] = CHATML_SPECIAL, template: str | None = CHATML, **names: str) -> Any:
    """A byte-level BPE tokenizer, as GPT-2's and Llama 3's."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(CORPUS, trainer)
    return _finished(model, special, template, names)


def sentence_piece(special: Iterable[str] = CHATML_SPECIAL, template: str | None = CHATML, **names: str) -> Any:
    """A BPE tokenizer with a word-start sign and byte fallback, as Llama 2's."""
    model = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(model, special, template, {"unk_token": "<unk>", **names})


def _finished(model: Tokenizer, special: Iterable[str], template: str | None, names: dict[str, str]) -> Any:
    model.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=model, chat_template=template, **names)


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str, **more: Any) -> Message:
    return Message("assistant", content, **more)


def system(content: str) -> Message:
    return Message("system", content)


def talk(*messages: Message, **more: Any) -> Conversation:
    return Conversation(tuple(messages), **more)


def runs(example: Example, tokenizer: Any) -> list[str]:
    """The trained stretches of an example, as text."""
    found: list[str] = []
    start = None
    flags = [*example.labels_mask.tolist(), False]
    for place, flag in enumerate(flags):
        if flag and start is None:
            start = place
        elif not flag and start is not None:
            found.append(decode(tokenizer, example.input_ids[start:place]))
            start = None
    return found


def decode(tokenizer: Any, ids: Iterable[int]) -> str:
    return tokenizer.decode([int(token) for token in ids], clean_up_tokenization_spaces=False)
