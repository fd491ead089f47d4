"""The generated pool of the demo: labelled originals with planted duplicates, near-duplicates and wrong answers.

All text comes from the templates of this package, filled from a local generator; nothing is taken from a data set.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Literal, TypedDict

from spice_select.demo.example import Example, Prompt
from spice_select.demo.language import code, facts, letters, style
from spice_select.demo.reasoning import arithmetic, dates, lists, strings, units
from spice_select.errors import ConfigError, OutputError

Origin = Literal["original", "duplicate", "near_duplicate", "wrong_answer"]

# Share of each domain among the originals, in hundredths. They differ on purpose: a pool is seldom even.
DOMAINS: dict[str, tuple[Callable[[Random], Example], int]] = {
    "arithmetic": (arithmetic, 18),
    "code": (code, 15),
    "facts": (facts, 13),
    "strings": (strings, 12),
    "lists": (lists, 11),
    "style": (style, 9),
    "units": (units, 8),
    "calendar": (dates, 7),
    "letters": (letters, 7),
}
PLANTED_SHARES: dict[Origin, float] = {"duplicate": 0.10, "near_duplicate": 0.10, "wrong_answer": 0.08}
_TRIES = 200


class DemoRow(TypedDict):
    """One row of the demo's pool.

    Attributes:
        instruction: what is asked.
        input: the material it is asked about; often empty.
        output: the response, right unless ``origin`` says otherwise.
        domain: one of the nine domains.
        origin: ``original``, or how the row was planted.
        origin_of: index of the row that it was planted from; -1 for originals.
    """

    instruction: str
    input: str
    output: str
    domain: str
    origin: Origin
    origin_of: int


def generate_example(rng: Random, domain: str | None = None) -> Example:
    """One question with a right and a wrong response.

    Args:
        rng: the generator to draw from.
        domain: name of a domain; drawn by share when absent.
    """
    if domain is None:
        domain = rng.choices(list(DOMAINS), [share for _, share in DOMAINS.values()])[0]
    return DOMAINS[domain][0](rng)


def demo_rows(seed: int = 0, rows: int = 800) -> list[DemoRow]:
    """Generate the demo's pool.

    Originals are distinct questions. One row in ten is an exact copy of an original; one in ten asks an original's
    question in other words and has its answer; eight in a hundred give an original's prompt with a wrong answer. No
    original is planted from twice. The same arguments give the same rows in every process.

    Args:
        seed: seed of the local generator.
        rows: number of rows, planted ones included.

    Returns:
        The rows in a shuffled order.

    Raises:
        ConfigError: if fewer than 1 row is asked for, or more than the templates hold distinct questions for.
    """
    if rows < 1:
        raise ConfigError(f"rows is {rows}; ask for at least 1 row of the demo.")
    rng = Random(f"demo pool {seed}")
    planted: dict[Origin, int] = {origin: round(rows * share) for origin, share in PLANTED_SHARES.items()}
    examples = _distinct(rng, rows - sum(planted.values()), rows)
    asked = [rng.randrange(len(example.prompts)) for example in examples]
    pool = [
        _row(example, example.prompts[i], example.output, "original", -1)
        for example, i in zip(examples, asked, strict=True)
    ]
    sources = iter(rng.sample(range(len(examples)), sum(planted.values())))
    for origin, count in planted.items():
        for _ in range(count):
            at = next(sources)
            example, prompt, output = examples[at], examples[at].prompts[asked[at]], examples[at].output
            if origin == "near_duplicate":
                prompt = _reword(rng, example, asked[at])
            elif origin == "wrong_answer":
                output = example.wrong_output
            pool.append(_row(example, prompt, output, origin, at))
    order = list(range(rows))
    rng.shuffle(order)
    moved_to = {before: after for after, before in enumerate(order)}
    shuffled = [pool[before] for before in order]
    for row in shuffled:
        row["origin_of"] = moved_to.get(row["origin_of"], -1)
    return shuffled


def write_demo_rows(path: str | Path, seed: int = 0, rows: int = 800) -> Path:
    """Write the demo's pool as JSON lines, whole or not at all.

    Args:
        path: file to write; an existing one is replaced.
        seed: as for `demo_rows`.
        rows: as for `demo_rows`.

    Returns:
        The path written.

    Raises:
        ConfigError: as for `demo_rows`.
        OutputError: if the file cannot be written.
    """
    target = Path(path)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in demo_rows(seed, rows))
    beside = target.with_name(target.name + ".part")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OutputError(
            f"The demo rows could not be written to {target} ({error}); choose a folder you can write to."
        ) from error
    return target


def _distinct(rng: Random, count: int, rows: int) -> list[Example]:
    """Examples whose canonical prompts all differ, the domains in their shares."""
    total = sum(share for _, share in DOMAINS.values())
    wanted = {name: count * share // total for name, (_, share) in DOMAINS.items()}
    for name in rng.sample(list(DOMAINS), count - sum(wanted.values())):
        wanted[name] += 1
    seen: set[Prompt] = set()
    examples: list[Example] = []
    for name, number in wanted.items():
        for _ in range(number):
            for _ in range(_TRIES):
                example = generate_example(rng, name)
                if example.prompts[0] not in seen:
                    break
            else:
                raise ConfigError(
                    f"rows is {rows}, more than the templates of {name} can fill with distinct questions; ask for less."
                )
            seen.add(example.prompts[0])
            examples.append(example)
    return examples


def _reword(rng: Random, example: Example, asked: int) -> Prompt:
    """The same question in another phrasing, or with a small edit."""
    if rng.random() < 0.6:
        return rng.choice([prompt for i, prompt in enumerate(example.prompts) if i != asked])
    prompt = example.prompts[asked]
    edit = rng.choice(
        ("Please help me with this. {}", "{} Thank you!", "Quick question: {}", "{} Be brief.", "Task: {}")
    )
    return Prompt(edit.format(prompt.instruction), prompt.input)


def _row(example: Example, prompt: Prompt, output: str, origin: Origin, origin_of: int) -> DemoRow:
    return DemoRow(
        instruction=prompt.instruction,
        input=prompt.input,
        output=output,
        domain=example.domain,
        origin=origin,
        origin_of=origin_of,
    )
