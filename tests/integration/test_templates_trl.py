"""Every chat template that TRL ships, against the generation blocks of TRL's training variants."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spice_select.config import DataConfig
from spice_select.data.conversation import Conversation, Message
from spice_select.data.encode import Encoder
from spice_select.data.status import Status
from spice_select.data.templates import TemplateSet
from tests.encoding import assistant, byte_level, decode, runs, system, talk, user

_SPEC = find_spec("trl")
FOLDER = Path(_SPEC.origin).parent / "chat_templates" if _SPEC and _SPEC.origin else None
if FOLDER is None or not FOLDER.is_dir():
    pytest.skip("needs TRL with its chat templates", allow_module_level=True)

STOCK = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
PAIRED = [name for name in STOCK if (FOLDER / f"{name}_training.jinja").exists()]

CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The city."}},
                "required": ["city"],
            },
        },
    }
]
PLAIN: dict[str, Conversation] = {
    "single": talk(user("What is 2+2?"), assistant("It is 4.")),
    "several": talk(user("Hi there"), assistant("Hello!"), user("And you?"), assistant("Fine, thanks.")),
    "system": talk(system("Be brief."), user("Hi there"), assistant("Hello!")),
    "repeats the prompt": talk(user("Say user"), assistant("Say user")),
    "names roles": talk(user("assistant"), assistant("assistant user model end")),
    "white space": talk(user("Hi there "), assistant("  Hello!\n\n"), user("x"), assistant("\n y ")),
    "unicode": talk(user("日本語 🙂"), assistant("naïve 🏳️‍🌈 日本語")),
    "special strings": talk(
        user("Is <|im_end|> or <end_of_turn> the end?"), assistant("The <|eot_id|> token, <|end|> or <|im_end|>, is.")
    ),
    "empty turn": talk(user("a"), assistant(""), user("b"), assistant("c")),
    "reasoning": talk(
        user("Add"),
        assistant("<think>\none\n</think>\n\nIt is 4."),
        user("On"),
        assistant("<think>\ntwo\n</think>\n\n5"),
    ),
}
CALLING: dict[str, Conversation] = {
    "call": talk(
        user("Weather?"),
        assistant("", tool_calls=(CALL,)),
        Message("tool", "sunny", name="get_weather"),
        assistant("It is nice."),
        user("Thanks"),
        assistant("Welcome."),
    ),
    "call at the end": talk(user("Weather?"), assistant("", tool_calls=(CALL,)), tools=TOOLS),
    "call with text": talk(
        user("Weather?"),
        assistant("Let me look.", tool_calls=(CALL,)),
        Message("tool", "sunny", name="get_weather"),
        assistant("It is nice."),
        tools=TOOLS,
    ),
}
CASES = {**PLAIN, **CALLING}

# What TRL trains and a model never writes, as it stands in the generation prompt; we leave it out.
PROMPTED = {
    "deepseek_r1_distill": "<｜Assistant｜>",
    "deepseekv3": "<｜Assistant｜>",
    "gptoss": "<|start|>assistant",
    "muse_glimmer": "<|start|>assistant",
    "qwen2_5": "\n",
    "qwen3_5_nothink": "<think>\n\n</think>\n\n",
    "qwen3_5_think": "<think>\n",
    "qwen3_6": "<think>\n",
    "qwen3_8": "<think>\n",
}
# The training variant writes another text than the stock template, so that there is nothing to compare with.
OTHER_TEXT = {
    ("deepseek_r1_distill", "reasoning"): "the stock template drops reasoning",
    ("deepseek_r1_distill", "call"): "the training variant drops calls without text arguments",
    ("deepseek_r1_distill", "call at the end"): "the training variant drops calls without text arguments",
    **{("glm4moe", case): "the training variant adds a closing token" for case in CASES},
    **{
        (name, case): "the stock template writes reasoning only after the last user turn"
        for name in ("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6")
        for case in ("several", "white space", "empty turn", "reasoning", "call", "call with text")
    },
}
NO_TOOLS = {"cohere", "cohere2", "gemma", "gemma3", "llava_next"}
# Templates that write no calls: they are then JSON text in the content.
DROPS_CALLS = {"idefics3", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm", *NO_TOOLS}


@cache
def template(name: str) -> str:
    assert FOLDER is not None
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def tokenizer() -> Any:
    pattern = (
        r"<\|[\w/ ]+\|>|<｜[^｜>]+｜>|<(?:start|end)_of_(?:turn|utterance)>"
        r"|<\|(?:turn|channel|tool\w*)>|<(?:turn|channel|tool\w*)\|>"
    )
    found = {text for name in STOCK for text in re.findall(pattern, template(name))}
    return byte_level([*sorted(found), "<s>", "</s>"], None, bos_token="<s>", eos_token="</s>")


@cache
def encoder(name: str) -> Encoder:
    return Encoder(tokenizer(), DataConfig(max_length=100_000, chat_template=template(name)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PAIRED)
def test_the_mask_is_that_of_the_training_variant(name: str, case: str) -> None:
    if (name, case) in OTHER_TEXT:
        pytest.skip(OTHER_TEXT[name, case])
    stock, training = encoder(name).encode(CASES[case]), encoder(f"{name}_training").encode(CASES[case])
    if case in CALLING and name in DROPS_CALLS:
        pytest.skip("the template writes no calls, so that they are written in the content")
    assert stock.status is training.status is Status.OK
    np.testing.assert_array_equal(stock.input_ids, training.input_ids)
    ours = runs(stock, tokenizer())
    oracle = [run.rstrip() for run in runs(training, tokenizer())]
    if name.startswith("phi3"):
        oracle = [run for run in oracle if run != "</s>"]  # the end of the text, after the turn has ended
    if name == "diffusion_gemma" and case.startswith("call"):
        # Ours has the token that hands over to the tool, which ends the turn; TRL leaves it out.
        ours = [run.removesuffix("<|tool_response>") for run in ours]
    if name.startswith("deepseek"):
        oracle = [run.removeprefix("<｜tool▁outputs▁end｜>") for run in oracle]  # the end of the tool's answer
    lead = PROMPTED.get(name, "")
    assert len(ours) == len(oracle)
    for own, other in zip(ours, oracle, strict=True):
        # A token across the border is trained, so that the white space before it can be part of ours.
        assert own.lstrip() in (other.removeprefix(lead).lstrip(), other.lstrip())


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("case", [case for case in PLAIN if case not in ("reasoning", "empty turn")])
def test_every_response_is_trained_whole_and_no_prompt(name: str, case: str) -> None:
    conversation = CASES[case]
    example = encoder(name).encode(conversation)
    assert example.status is Status.OK
    trained = runs(example, tokenizer())
    responses = [message.content for message in conversation.messages if message.role == "assistant"]
    assert len(trained) == len(responses)
    for run, response in zip(trained, responses, strict=True):
        assert response.strip() in run
        assert run == run.rstrip() or run.endswith(response)
    untrained = decode(tokenizer(), example.input_ids[~example.labels_mask])
    for message in conversation.messages:
        if message.role != "assistant":
            assert message.content.strip() in untrained


@pytest.mark.parametrize("name", [name for name in STOCK if not name.startswith("glm")])
def test_every_response_ends_with_a_special_token(name: str) -> None:
    before = encoder(name).stats
    for case in ("single", "several", "system", "unicode"):
        example = encoder(name).encode(PLAIN[case])
        last = int(example.input_ids[example.labels_mask][-1])
        assert tokenizer().added_tokens_decoder[last].special
    after = encoder(name).stats
    assert after.without_end == before.without_end
    assert after.failures == before.failures


@pytest.mark.parametrize("name", PAIRED)
def test_generation_blocks_are_those_that_transformers_finds(name: str) -> None:
    source = template(f"{name}_training")
    before = encoder(f"{name}_training").stats.strategies
    parts = name in ("idefics3", "llava_next", "smolvlm")
    # Without characters of several tokens: of one at the end of a block, transformers marks the first token only.
    for case in ("single", "several", "names roles", "repeats the prompt"):
        messages = [
            {"role": m.role, "content": [{"type": "text", "text": m.content}] if parts else m.content}
            for m in PLAIN[case].messages
        ]
        theirs = tokenizer().apply_chat_template(
            messages, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
        )
        example = encoder(f"{name}_training").encode(PLAIN[case])
        if "strftime_now" not in source:
            assert example.input_ids.tolist() == theirs["input_ids"]
            mask = np.asarray(theirs["assistant_masks"], bool)
            assert not (example.labels_mask & ~mask).any()
            # White space behind the end of a turn is all that is left out.
            assert decode(tokenizer(), example.input_ids[mask & ~example.labels_mask]).strip() == ""
    after = encoder(f"{name}_training").stats.strategies
    assert after["generation"] == before.get("generation", 0) + 4


@pytest.mark.parametrize("name", STOCK)
def test_calls_are_trained_where_they_are_written(name: str) -> None:
    for case, conversation in CALLING.items():
        example = encoder(name).encode(conversation)
        if example.status is not Status.OK:
            assert name in NO_TOOLS
            continue
        trained = "".join(runs(example, tokenizer()))
        text = decode(tokenizer(), example.input_ids)
        assert "sunny" not in trained
        assert "The city" not in trained
        answered = text[text.rindex("Weather?") :]
        assert "get_weather" in trained
        assert ("Oslo" in trained) == ("Oslo" in answered)
        if case != "call at the end":
            assert "It is nice." in trained


@pytest.mark.parametrize("name", STOCK)
def test_rendering_is_that_of_transformers(name: str) -> None:
    model = tokenizer()
    ours = TemplateSet(model, template(name)).pick(None)
    parts = name in ("idefics3", "llava_next", "smolvlm")
    for case in ("single", "several", "unicode", "white space"):
        messages = [
            {"role": m.role, "content": [{"type": "text", "text": m.content}] if parts else m.content}
            for m in PLAIN[case].messages
        ]
        for prompt in (False, True):
            kwargs = {"chat_template": template(name), "add_generation_prompt": prompt, "tokenize": False}
            theirs = model.apply_chat_template(messages, **kwargs)
            if ours.reads_clock:  # theirs has the date of today
                theirs = re.sub(r"(?<=[Dd]ate: )\d{4}-\d\d-\d\d", "2025-01-01", theirs)
                theirs = re.sub(r"(?<=Today Date: )\d\d \w{3} \d{4}", "01 Jan 2025", theirs)
            assert ours.render(messages, generation_prompt=prompt) == theirs
