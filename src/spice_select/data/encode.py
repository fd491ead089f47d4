"""Conversations to token ids and the mask of their responses."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from spice_select.config import DataConfig
from spice_select.data.adapt import Cleaner, Form, Prepared, forms, messages, shaped
from spice_select.data.conversation import Conversation
from spice_select.data.encoded import Encoded, EncodingStats, Example, Failure, collect_examples
from spice_select.data.masks import Located, ResponseFinder
from spice_select.data.messages import to_conversation
from spice_select.data.rows import RowSet
from spice_select.data.schema import detect_schemas
from spice_select.data.status import Status
from spice_select.data.templates import ChatTemplate, TemplateFailure, TemplateOverrun, TemplateSet, leading_token
from spice_select.data.tokens import Rendered, StringSet, TextTokenizer
from spice_select.errors import ConfigError, ModelError

Loss = Literal["response", "all"]

_BATCH = 512
_REASONS = 20
_OVERRUNS = 20
"""Rows over which a template may run beyond its bounds before it has taken any."""
PROMPT_SHARE = 4
"""A prompt gives way to its response down to one part in this many of the maximum length."""


class Encoder:
    """Encodes conversations for one tokenizer.

    Args:
        tokenizer: A transformers tokenizer; it needs neither chat template nor pad nor end token.
        options: Template, maximum length, and which turns are trained.
        loss: ``response`` trains the responses; ``all`` trains every token but the first of each row that has one.

    Raises:
        ConfigError: ``options.chat_template`` can't be read or is no template.
    """

    def __init__(self, tokenizer: Any, options: DataConfig, loss: Loss = "response") -> None:
        self._options = options
        self._loss = loss
        self._templates = TemplateSet(tokenizer, options.chat_template)
        special, controls = _control_strings(tokenizer, self._templates)
        self._cleaner = Cleaner(special, controls)
        self._tokens = TextTokenizer(tokenizer, controls)
        self._finders = {id(t): ResponseFinder(t, special.pattern) for t in self._templates}
        self._parts = {id(t): _takes_parts(t) for t in self._templates}
        self._begin, self._end = leading_token(tokenizer), tokenizer.eos_token or ""
        self._bos = tokenizer.bos_token_id
        self._counts: Counter[str] = Counter()
        self._ways: Counter[str] = Counter()
        self._failures: dict[str, tuple[int, int]] = {}
        self._overrun: ConfigError | ModelError | None = None
        self._overruns = 0
        self._controls_digest = hashlib.sha256("\0".join(controls.strings).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the ids and masks, beside the rows and the tokenizer's own vocabulary."""
        return {
            "encoding": 1,
            "template": self._templates.digest,
            "template_origin": self._templates.origin,
            "clock": self._clock,
            "control_tokens": self._controls_digest,
            "train_on": self._options.train_on,
            "max_length": self._options.max_length,
            "loss": self._loss,
        }

    @property
    def stats(self) -> EncodingStats:
        """What was met so far."""
        failures = tuple(Failure(reason, count, row) for reason, (count, row) in self._failures.items())
        return EncodingStats(
            strategies=dict(sorted(self._ways.items())),
            template=self._templates.origin,
            clock=self._clock,
            failures=failures,
            fallback_tokens=self._tokens.in_pieces,
            **self._counts,
        )

    @property
    def _clock(self) -> str | None:
        return self._templates.clock.date().isoformat() if self._templates.reads_clock else None

    def encode(self, conversation: Conversation | None) -> Example:
        """Encode one conversation; None is a row without a response."""
        return self.encode_batch([conversation])[0]

    def encode_batch(self, conversations: Sequence[Conversation | None]) -> list[Example]:
        """Encode conversations together, which is faster and changes nothing."""
        rendered: list[Rendered | None] = []
        for conversation in conversations:
            rendered.append(self._render(conversation) if conversation is not None else None)
            if conversation is None:
                self._counts["no_response"] += 1
            self._counts["rows"] += 1
        pairs = iter(self._tokens.encode([item for item in rendered if item is not None]))
        return [self._finish(*next(pairs)) if item is not None else _empty() for item in rendered]

    def _render(self, conversation: Conversation) -> Rendered | None:
        """The text of a conversation and its responses, or None, counted, where it has none."""
        prepared = self._cleaner.clean(conversation)
        trained = self._trained(prepared)
        if not trained:
            self._counts["no_response"] += 1
            return None
        if conversation.kind == "text":
            body = "".join(turn.content for turn in prepared.turns)
            text = self._begin + body + self._end
            located, form = Located(text, ((0, len(text)),), "text", bool(self._end)), Form()
        else:
            template = self._templates.pick(prepared.tools)
            try:
                with template.conversation():
                    located, form = self._locate(prepared, trained, template)
            except TemplateFailure as failure:
                self._fail(f"the chat template does not take it ({failure})")
                return None
            except TemplateOverrun as overrun:
                self._fail(f"the chat template does not take it ({overrun})")
                self._overrun = self._overrun or template.refusal(str(overrun))
                self._overruns += 1
                self.require_template(_OVERRUNS)
                return None
        if not located.spans:
            self._fail("the chat template leaves the response out")
            return None
        self._ways[located.strategy] += 1
        self._counts["stripped"] += prepared.stripped
        self._counts["special_text"] += bool(prepared.literals)
        self._counts["system_folded"] += form.folded
        self._counts["merged"] += form.merged
        self._counts["calls_written"] += form.calls_as_text
        self._counts["tools_left_out"] += bool(prepared.tools) and not _names_tools(prepared.tools, located.text)
        self._counts["last_turn_only"] += located.strategy == "last-turn" and len(trained) > 1
        self._counts["without_end"] += not located.ended
        self._counts["altered"] += any(
            turn.content.strip() not in located.text for turn in prepared.turns if turn.trained
        )
        return Rendered(located.text, located.spans, prepared.literals)

    def _trained(self, prepared: Prepared) -> list[int]:
        assistants = [number for number, turn in enumerate(prepared.turns) if turn.role == "assistant"]
        if self._options.train_on == "last":
            assistants = assistants[-1:]
        return [number for number in assistants if prepared.turns[number].trained]

    def require_template(self, overruns: int = 1) -> None:
        """Refuse a template that has run over its bounds so many times, and has taken no conversation.

        Args:
            overruns: How many times are enough.

        Raises:
            ConfigError: It is that of the settings.
            ModelError: It is that of the tokenizer.
        """
        if self._overrun is not None and self._overruns >= overruns and not self._ways:
            raise self._overrun

    def _locate(self, prepared: Prepared, trained: Sequence[int], template: ChatTemplate) -> tuple[Located, Form]:
        """Try the forms in order until the template takes one and loses neither system turn nor response."""
        first: TemplateFailure | None = None
        best: tuple[tuple[int, bool], Located, Form] | None = None
        system = [turn.content.strip() for turn in prepared.turns if turn.role == "system"]
        for form in forms(prepared):
            turns = shaped(prepared, form)
            wanted = [number for number, turn in enumerate(turns) if turn.role == "assistant" and turn.trained]
            if self._options.train_on == "last":
                wanted = wanted[-1:]
            if not wanted:
                continue
            try:
                given = messages(turns, form, self._parts[id(template)])
                located = self._finders[id(template)].find(given, prepared.tools, wanted, prepared.private)
            except TemplateFailure as failure:
                first = first or failure
                continue
            rank = (located.lost, not all(text in located.text for text in system))
            if best is None or rank < best[0]:
                best = (rank, located, form)
            if rank == (0, False):
                break
        if best is None:
            raise first or TemplateFailure("no turn is left to train")
        self._counts["left_out"] += best[0][0] > 0 and best[1].strategy != "last-turn"
        return best[1], best[2]

    def _fail(self, reason: str) -> None:
        reason = " ".join(reason.split())
        reason = reason if len(reason) <= 200 else reason[:197] + "..."
        if reason not in self._failures and len(self._failures) >= _REASONS:
            reason = "further reasons"
        count, row = self._failures.get(reason, (0, self._counts["rows"]))
        self._failures[reason] = (count + 1, row)

    def _finish(self, ids: Int[np.ndarray, " t"], mask: Bool[np.ndarray, " t"]) -> Example:
        mask[:1] = False  # nothing comes before the first token that could predict it
        if not mask.any():
            self._fail("no token of the response remains to be predicted")
            return _empty()
        kept_ids, kept_mask, cut = fit(ids, mask, self._options.max_length, self._bos)
        if self._loss == "all":
            kept_mask = np.ones(len(kept_ids), np.bool_)
            kept_mask[0] = False
        self._counts["truncated"] += cut
        self._counts["responses_cut"] += int(kept_mask.sum()) < int(mask.sum()) and self._loss == "response"
        self._counts["usable"] += 1
        self._counts["tokens"] += len(kept_ids)
        self._counts["response_tokens"] += int(kept_mask.sum())
        return Example(kept_ids, kept_mask, Status.TRUNCATED if cut else Status.OK)


def encode_rows(rows: RowSet, tokenizer: Any, options: DataConfig, *, loss: Loss = "response") -> Encoded:
    """Encode all rows; each keeps its number, and one without a response is empty.

    Args:
        rows: The rows, whose schema is found by source.
        tokenizer: A transformers tokenizer.
        options: Column mapping, template, maximum length, and which turns are trained.
        loss: Which tokens are trained.

    Raises:
        ConfigError: A column mapping or chat template that doesn't fit.
        DataError: A source without a known schema.
    """
    schemas = detect_schemas(rows, options.columns)
    conversations = (
        to_conversation(row, schemas[int(source)])
        for row, source in zip(rows.iter_rows(), rows.source_ids, strict=True)
    )
    return encode_conversations(conversations, tokenizer, options, loss=loss)


def encode_conversations(
    conversations: Iterable[Conversation | None], tokenizer: Any, options: DataConfig, *, loss: Loss = "response"
) -> Encoded:
    """Encode conversations in order; None is a row without a response."""
    encoder = Encoder(tokenizer, options, loss)
    examples: list[Example] = []
    for batch in _batches(conversations, _BATCH):
        examples += encoder.encode_batch(batch)
    encoder.require_template()
    return collect_examples(examples, encoder.stats, encoder.identity)


def fit(
    ids: Int[np.ndarray, " t"], mask: Bool[np.ndarray, " t"], length: int, bos: int | None
) -> tuple[Int[np.ndarray, " s"], Bool[np.ndarray, " s"], bool]:
    """Cut an example to a length and keep its response in view.

    What follows the last trained token goes first: it bears on no loss. Then the prompt gives way, its oldest tokens
    first but not a beginning-of-sequence token, down to a quarter of the length. Then the end of the response goes.

    Args:
        ids: Token ids.
        mask: Trained tokens; at least one, and not the first token.
        length: Tokens to keep at most, two or more.
        bos: Id of the beginning-of-sequence token.

    Returns:
        Ids, mask, and whether anything that bears on the loss was cut.
    """
    if len(ids) <= length:
        return ids, mask, False
    trained = np.flatnonzero(mask)
    first, last = int(trained[0]), int(trained[-1]) + 1
    if last <= length:
        return ids[:last].copy(), mask[:last].copy(), False
    prompt = min(first, max(length - (last - first), length // PROMPT_SHARE, 1))
    head = 1 if bos is not None and ids[0] == bos and prompt > 1 else 0
    body_end = min(last, first + length - prompt)
    keep = np.concatenate([np.arange(head), np.arange(first - (prompt - head), body_end)])
    return ids[keep], mask[keep], True


def _empty() -> Example:
    return Example(np.empty(0, np.int32), np.empty(0, np.bool_), Status.NO_RESPONSE)


def _batches(items: Iterable[Conversation | None], size: int) -> Iterator[list[Conversation | None]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _control_strings(tokenizer: Any, templates: TemplateSet) -> tuple[StringSet, StringSet]:
    """Strings of the special tokens, and of these together with the added tokens that the templates write."""
    added = list(getattr(tokenizer, "added_tokens_decoder", {}).values())
    special = {str(token.content) for token in added if token.special} | set(tokenizer.all_special_tokens)
    written = {str(token.content) for token in added if any(str(token.content) in t.literals for t in templates)}
    special = {text for text in special if text.strip()}
    return StringSet(special), StringSet(special | {text for text in written if text.strip()})


def _names_tools(tools: Any, text: str) -> bool:
    """Whether a rendering names any of the tools."""
    functions = [tool.get("function", tool) for tool in tools if isinstance(tool, dict)]
    names = [str(function["name"]) for function in functions if isinstance(function, dict) and function.get("name")]
    return not names or any(name in text for name in names)


def _takes_parts(template: ChatTemplate) -> bool:
    """Whether a template takes contents only as lists of parts."""
    for parts in (False, True):
        content: Any = [{"type": "text", "text": "probe"}] if parts else "probe"
        try:
            if "probe" in template.render([{"role": "user", "content": content}]):
                return parts
        except TemplateFailure:
            continue
    return False
