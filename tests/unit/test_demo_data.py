"""The demo's pool is what its labels say, and its model has learned the language of the pool."""

from __future__ import annotations

import calendar
import datetime
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from spice_select.demo import DemoRow, demo_model_path, demo_rows, write_demo_rows
from spice_select.demo.data import DOMAINS, generate_example
from spice_select.demo.example import Example
from spice_select.demo.language import PROPERTIES, TOWNS
from spice_select.errors import ConfigError, ModelError, OutputError

COLUMNS = ("instruction", "input", "output", "domain", "origin", "origin_of")


@pytest.fixture(scope="module")
def rows() -> list[DemoRow]:
    return demo_rows()


def some(domain: str, count: int = 400) -> list[Example]:
    rng = Random(f"tests {domain}")
    return [generate_example(rng, domain) for _ in range(count)]


def prompt_of(row: DemoRow) -> tuple[str, str]:
    return row["instruction"], row["input"]


def test_pool_has_the_promised_counts(rows: list[DemoRow]) -> None:
    origins = Counter(row["origin"] for row in rows)
    assert origins == {"original": 576, "duplicate": 80, "near_duplicate": 80, "wrong_answer": 64}
    domains = Counter(row["domain"] for row in rows)
    assert set(domains) == set(DOMAINS)
    assert len(domains) >= 6
    assert min(domains.values()) >= 40
    assert all(tuple(row) == COLUMNS for row in rows)
    with_input = sum(row["input"] != "" for row in rows)
    assert 100 < with_input < 500


def test_responses_vary_in_length(rows: list[DemoRow]) -> None:
    words = [len(row["output"].split()) for row in rows]
    assert min(words) == 3
    assert 60 <= max(words) <= 80
    assert sum(n <= 5 for n in words) > 80
    assert sum(n >= 30 for n in words) > 50


def test_originals_are_distinct_questions(rows: list[DemoRow]) -> None:
    prompts = [prompt_of(row) for row in rows if row["origin"] == "original"]
    assert len(set(prompts)) == len(prompts)


def test_planted_rows_are_what_they_say(rows: list[DemoRow]) -> None:
    sources = [row["origin_of"] for row in rows if row["origin"] != "original"]
    assert len(set(sources)) == len(sources)
    for row in rows:
        if row["origin"] == "original":
            assert row["origin_of"] == -1
            continue
        source = rows[row["origin_of"]]
        assert source["origin"] == "original"
        assert source["domain"] == row["domain"]
        if row["origin"] == "near_duplicate":
            assert prompt_of(row) != prompt_of(source)
            assert row["output"] == source["output"]
        else:
            assert prompt_of(row) == prompt_of(source)
            assert (row["output"] == source["output"]) == (row["origin"] == "duplicate")


def test_rows_are_the_same_in_another_process_and_change_with_the_seed(rows: list[DemoRow]) -> None:
    assert demo_rows() == rows
    assert demo_rows(seed=1) != rows
    script = "import json; from spice_select.demo import demo_rows; print(json.dumps(demo_rows()))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == rows


@pytest.mark.parametrize("count", [1, 2, 7, 50, 1500])
def test_any_size_gives_exactly_that_many(count: int) -> None:
    pool = demo_rows(seed=3, rows=count)
    assert len(pool) == count
    assert all(-1 <= row["origin_of"] < count for row in pool)


@pytest.mark.parametrize("count", [0, -5, 50_000])
def test_sizes_that_cannot_be_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"rows is {count}"):
        demo_rows(rows=count)


def test_written_file_reads_back(tmp_path: Path, rows: list[DemoRow]) -> None:
    path = write_demo_rows(tmp_path / "pool.jsonl")
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"):
        write_demo_rows(tmp_path / "nowhere" / "pool.jsonl")


# The answers below are computed again from the text of the question, by other code than the templates use.


@pytest.mark.parametrize("domain", DOMAINS)
def test_phrasings_differ_and_wrong_is_not_right(domain: str) -> None:
    for example in some(domain):
        assert len(example.prompts) >= 2
        assert len(set(example.prompts)) == len(example.prompts)
        assert example.output != example.wrong_output


def test_equations_hold_in_right_answers_and_fail_in_wrong_ones() -> None:
    pattern = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}

    def equations(text: str) -> list[bool]:
        return [operations[sign](int(a), int(b)) == int(c) for a, sign, b, c in pattern.findall(text)]

    checked = 0
    for example in some("arithmetic") + some("units"):
        if right := equations(example.output):
            checked += 1
            assert all(right), example
            assert not all(equations(example.wrong_output)), example
    assert checked > 300


def test_unit_conversions_are_right() -> None:
    seconds = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 604800}
    millimetres = {"centimetres": 10, "metres": 1000, "kilometres": 1000000}
    imperial = {"inches": 1, "feet": 12, "yards": 36}
    others = [{"grams": 1, "kilograms": 1000}, {"millilitres": 1, "litres": 1000}]
    counted = [{"pieces": 1, "dozens": 12}, {"years": 1, "centuries": 100}]
    scales = [seconds, millimetres, imperial, *others, *counted]
    for example in some("units"):
        found = re.fullmatch(r"Convert (\d+) (\w+) to (\w+)\.", example.prompts[0].instruction)
        assert found
        amount, source, target = found.groups()
        scale = next(scale for scale in scales if source in scale and target in scale)
        value = int(amount) * scale[source] // scale[target]
        assert str(value) in re.findall(r"\d+", example.output)
        assert last_number(example.output) == value or example.output.startswith("To turn"), example
        assert last_number(example.wrong_output) != value, example


def last_number(text: str) -> int:
    return int(re.findall(r"\d+", text)[-1])


def test_list_answers_are_right() -> None:
    for example in some("lists"):
        asked, given = example.prompts[0].instruction, example.prompts[0].input.split(", ")
        if "alphabetically" in asked:
            want: list[str] = sorted(given)
        elif "repeated" in asked:
            want = list(dict.fromkeys(given))
        else:
            numbers = [int(item) for item in given]
            want = {
                "Sort the numbers in ascending order.": [str(n) for n in sorted(numbers)],
                "Sort the numbers in descending order.": [str(n) for n in sorted(numbers, key=lambda n: -n)],
                "Find the largest number.": [str(max(numbers))],
                "Find the smallest number.": [str(min(numbers))],
                "Add up all the numbers.": [str(sum(numbers))],
                "Count the numbers.": [str(len(numbers))],
            }[asked]
        assert re.search(rf"(: |is |gives ){', '.join(want)}\.?$", example.output), example
        assert not re.search(rf"(: |is |gives ){', '.join(want)}\.?$", example.wrong_output), example


def test_string_answers_are_right() -> None:
    for example in some("strings"):
        asked, word = example.prompts[0].instruction, example.prompts[0].input
        want = {
            "Reverse the word.": "".join(reversed(word)),
            "Write the word in capital letters.": word.upper(),
            "Give the first three letters.": word[0] + word[1] + word[2],
            "Give the last two letters.": word[len(word) - 2] + word[len(word) - 1],
            "Write the word twice without a space.": f"{word}{word}",
            "Remove the first letter of the word.": "".join(list(word)[1:]),
            "Spell the word with dashes.": "-".join(list(word)),
            "Count the letters in the word.": str(len(list(word))),
            "Count the vowels in the word.": str(len(re.findall("[aeiou]", word))),
        }[asked]
        assert re.search(rf'is "?{want}"?\.$', example.output), example
        assert not re.search(rf'is "?{want}"?\.$', example.wrong_output), example


def test_calendar_answers_are_right() -> None:
    names = list(calendar.day_name)
    for example in some("calendar"):
        asked = example.prompts[0].instruction
        if found := re.fullmatch(r"Which weekday is (\d+) days (after|before) (\w+)\?", asked):
            n, way, day = found.groups()
            start = datetime.date(2024, 1, 1) + datetime.timedelta(days=names.index(day))
            want = (start + datetime.timedelta(days=int(n) * (1 if way == "after" else -1))).strftime("%A")
        elif found := re.fullmatch(r"Is (\d+) a leap year\?", asked):
            want = "is a leap" if calendar.monthrange(int(found[1]), 2)[1] == 29 else "is not a leap"
        elif found := re.fullmatch(r"How many days does (\w+ \d+) have\?", asked):
            first = datetime.datetime.strptime(f"1 {found[1]}", "%d %B %Y")
            want = str(((first + datetime.timedelta(days=32)).replace(day=1) - first).days)
        else:
            found = re.fullmatch(r"What date is (\d+) days after (\d+ \w+ \d+)\?", asked)
            assert found
            end = datetime.datetime.strptime(found[2], "%d %B %Y") + datetime.timedelta(days=int(found[1]))
            want = f"{end.day} {end:%B}"
        assert re.search(rf"\b{want}( year| days)?\.$", example.output), example
        assert not re.search(rf"\b{want}( year| days)?\.$", example.wrong_output), example


def test_facts_agree_with_the_table() -> None:
    table = {str(row[0]): row for row in TOWNS}
    for example in some("facts"):
        asked = example.prompts[0].instruction
        if found := re.fullmatch(r"Which town is (older|smaller), (.+) or (.+)\?", asked):
            column = 1 if found[1] == "older" else 6
            want = min(found[2], found[3], key=lambda name: int(table[name][column]))
            ending = rf"(one is {want}|Hence {want} is {found[1]})\.$"
            assert re.search(ending, example.output), example
            assert not re.search(ending, example.wrong_output), example
            continue
        kind, town = next((i, t) for i, p in enumerate(PROPERTIES) for t in table if p[0].format(t=t) == asked)
        told = PROPERTIES[kind][2].format(t=town, v=table[town][kind + 1]) + "."
        assert told in example.output, example
        assert told not in example.wrong_output, example


def test_python_answers_do_what_is_asked() -> None:
    wants = {
        r"adds (\d+) to a number": lambda x, n: x + n,
        r"multiplies a number by (\d+)": lambda x, n: sum([x] * n),
        r"tells whether a number is divisible by (\d+)": lambda x, n: math.gcd(x, n) == n,
        r"keeps the items of a list that are greater than (\d+)": lambda x, n: list(filter(lambda i: i > n, x)),
        r"returns the first (\d+) items of a list": lambda x, n: [i for at, i in enumerate(x) if at < n],
        r"leaves out the first (\d+) items of a list": lambda x, n: [i for at, i in enumerate(x) if at >= n],
        r"multiplies every item of a list by (\d+)": lambda x, n: [sum([i] * n) for i in x],
        r"counts how often (\d+) occurs in a list": lambda x, n: sum(i == n for i in x),
        r"returns the smaller of a number and (\d+)": lambda x, n: sorted([x, n])[0],
    }
    for example in some("code"):
        asked = example.prompts[0].instruction
        if found := re.fullmatch(r"What does print\((.+)\) show in Python\?", asked):
            value = eval(found[1])
            assert last_number(example.output) == value
            assert int(re.findall(r"-?\d+", example.wrong_output)[-1]) != value
            continue
        found = re.search(r"function (\w+)\(x\) that (.+)\.", asked)
        assert found
        name, what = found.groups()
        want, n = next((f, int(m[1])) for p, f in wants.items() if (m := re.fullmatch(p, what)))
        samples = [list(range(60)), [n, n, 3]] if "list" in what else [3 * n, n + 1, 1, 1000]
        outcomes = []
        for text in (example.output, example.wrong_output):
            space: dict = {}
            exec(text, space)
            outcomes.append([space[name](x) == want(x, n) for x in samples])
        assert all(outcomes[0]), example
        assert not all(outcomes[1]), example


def test_letters_name_the_day_asked_for() -> None:
    for example in some("letters"):
        asked = set(re.findall(r"\b\w+day\b", example.prompts[0].instruction)) - {"birthday"}
        assert len(asked) == 1
        (day,) = asked
        assert f"on {day}" in example.output
        assert day not in example.wrong_output.replace("since Sunday", "")


def test_rewritten_sentences_keep_their_object() -> None:
    for example in some("style"):
        source = example.prompts[0].input.lower()
        thing = next(t for t in re.findall(r"the \w+", source) if t != "the morning")
        assert thing in example.output.lower()
        assert thing not in example.wrong_output.lower()


def test_model_loads_offline_and_has_learned(rows: list[DemoRow]) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo_model_path()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "llama"
    assert model.dtype == torch.float32
    assert sum(weight.numel() for weight in model.parameters()) <= 1_200_000
    assert not re.search(r"{%-?\s*generation", tokenizer.chat_template)
    assert {"<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"} <= set(tokenizer.all_special_tokens)
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id

    def loss(instruction: str, given: str, output: str) -> float:
        turn = {"role": "user", "content": f"{instruction}\n{given}".strip()}
        head = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(head, add_special_tokens=False)["input_ids"]
        full = tokenizer(head + output + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        assert full[: len(prompt)] == prompt
        assert len(full) <= 160
        labels = torch.tensor([[-100] * len(prompt) + full[len(prompt) :]])
        with torch.no_grad():
            return model(input_ids=torch.tensor([full]), labels=labels).loss.item()

    originals = [row for row in rows if row["origin"] == "original"][:60]
    mean = sum(loss(row["instruction"], row["input"], row["output"]) for row in originals) / len(originals)
    assert mean < 0.1 * math.log(model.config.vocab_size)
    # It has learned the facts, not only how they are worded: the wrong one costs more.
    facts = some("facts", 30)
    asked = [(example.prompts[0].instruction, example.prompts[0].input) for example in facts]
    known = [loss(*q, e.output) < loss(*q, e.wrong_output) for q, e in zip(asked, facts, strict=True)]
    assert sum(known) >= 24


def test_assets_are_small() -> None:
    assert sum(path.stat().st_size for path in demo_model_path().iterdir()) <= 4 * 1024**2


def test_a_package_without_its_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spice_select.demo.files", lambda _: tmp_path)
    with pytest.raises(ModelError, match="demo's model is missing"):
        demo_model_path()
