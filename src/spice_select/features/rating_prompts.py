"""What the proxy is asked about a row: rating prompts, the layout around them, and the tokens that answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spice_select.data.conversation import Conversation, Message
from spice_select.errors import ConfigError

_PROMPTS = (
    "Rate from 1 to {levels} how well the response below carries out the instruction: 1 means not at all, {levels} "
    "means fully. Reply with one number.",
    "You check training examples for a language model. Give this pair of instruction and response a mark between 1 "
    "(useless) and {levels} (excellent), as one digit.",
    "Judge whether the response is correct, complete and to the point. The scale runs from 1, the worst, to {levels}, "
    "the best. Write the number only.",
    "How satisfied would the person who wrote the instruction be with the response? Choose a whole number, where 1 is "
    "not satisfied and {levels} is very satisfied.",
    "Read the instruction, then the response. Say in one digit from 1 (poor) to {levels} (outstanding) how good an "
    "answer it is.",
    "Somebody wants to learn from good examples only. On a scale with 1 at the bottom and {levels} at the top, how "
    "much is there to learn from this one? Answer with a number.",
    "Assess the quality of the response to the instruction. Take accuracy and clarity into account, and state a score "
    "from 1 (lowest) to {levels} (highest).",
    "Does the response do what the instruction demands, without mistakes and without leaving things out? Score it: 1 "
    "for no, {levels} for yes, the numbers between for anything between.",
    "Compare the response with the best one that you can think of. If it falls far short, give 1; if it is as good, "
    "give {levels}; otherwise a number between.",
)
MOST_PROMPTS = len(_PROMPTS)

TAIL = "\nThe answer is:\n"
"""Ends every question. No space before the line break: several tokenizers would split it off before a digit."""

LEAST_ROOM = 16
"""Tokens that a row must be left beside the question."""


@dataclass(frozen=True)
class RatingTokens:
    """How a tokenizer writes ratings after :data:`TAIL`.

    Attributes:
        gap: What stands between: nothing or a space.
        ids: Token of every rating, from 1 on.
    """

    gap: str
    ids: tuple[int, ...]


def rating_prompt(number: int, levels: int) -> str:
    """Rating prompt ``number``, from 0 on, for ratings from 1 to ``levels``."""
    return _PROMPTS[number].format(levels=levels)


def question(prompt: str, instruction: str, response: str) -> str:
    """The text that the proxy goes on from."""
    return f"{prompt}\nInstruction:{instruction}\nResponse:{response}{TAIL}"


def split_turns(conversation: Conversation) -> tuple[str, str]:
    """Instruction and response: what comes before the last assistant turn, and that turn.

    A single turn before it is the instruction as it is; several have their roles before them. A row that is one text is
    all response.
    """
    *before, last = conversation.messages
    if len(before) == 1 and before[0].role == "user":
        return before[0].content, _said(last)
    return "\n".join(f"{turn.role.capitalize()}: {_said(turn)}" for turn in before), _said(last)


def _said(turn: Message) -> str:
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.tool_calls or ()]
    return "\n".join(part for part in (turn.content, *calls) if part)


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, with nothing added; strings of special tokens in them are ordinary text."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def rating_tokens(tokenizer: Any, levels: int, name: str) -> RatingTokens:
    """The tokens of ratings 1 to ``levels`` where a question ends.

    Args:
        tokenizer: The proxy's.
        levels: The highest rating.
        name: The proxy's name, for the message.

    Raises:
        ConfigError: The tokenizer writes a rating in more than one token, or two ratings in the same.
    """
    end = question("Rate.", "a", "b")
    ratings = [str(rating) for rating in range(1, levels + 1)]
    faults = []
    for gap in ("", " "):
        before, *after = plain_ids(tokenizer, [end, *(end + gap + rating for rating in ratings)])
        fault = _fault(tokenizer, before, after)
        if fault is None:
            return RatingTokens(gap, tuple(ids[-1] for ids in after))
        faults.append(fault)
    raise ConfigError(
        f"The tokenizer of {name} cannot be read ratings from, as {faults[0]}; name another model.name, or a method "
        "other than 'selectit'."
    )


def _fault(tokenizer: Any, before: list[int], after: list[list[int]]) -> str | None:
    """Why ratings are not one token each behind the same tokens, in a few words."""
    seen: dict[int, int] = {}
    for rating, ids in enumerate(after, start=1):
        shared = 0
        while shared < min(len(before), len(ids)) and before[shared] == ids[shared]:
            shared += 1
        added = ids[shared:]
        listed = ", ".join(map(str, added))
        if shared < len(before):
            return f"rating '{rating}' changes the tokens before it (to ids {listed})"
        if len(added) != 1:
            return f"it writes rating '{rating}' in {len(added)} tokens (ids {listed})"
        if added[0] == tokenizer.unk_token_id:
            return f"it knows no rating '{rating}' (id {added[0]})"
        if added[0] in seen:
            return f"it writes ratings '{seen[added[0]]}' and '{rating}' alike (id {added[0]})"
        seen[added[0]] = rating
    return None
