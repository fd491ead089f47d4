"""Names of benchmarks, readers of their files, and scores of single answers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from spice_select.errors import ConfigError, DataError
from spice_select.evaluation import scorers
from spice_select.evaluation.instructions import follows, sentences
from spice_select.evaluation.languages import language_of
from spice_select.evaluation.local_data import read_parts
from spice_select.evaluation.suites import PAPER, tasks_of
from tests.benchmarks_folder import write_benchmarks


def test_names_of_benchmarks() -> None:
    assert tasks_of("paper") == PAPER
    assert [task.name for task in tasks_of(" mmlu, gsm8k,mmlu")] == ["mmlu", "gsm8k"]
    assert len({task.name for task in PAPER}) == 8
    assert [task.name for task in PAPER if task.executes_code] == ["humaneval", "mbpp"]
    with pytest.raises(ConfigError, match=r"no benchmark 'gsm8'; did you mean gsm8k\?"):
        tasks_of("gsm8")
    with pytest.raises(ConfigError, match=r"no benchmark 'zzz'; known are paper, gsm8k"):
        tasks_of("zzz")
    with pytest.raises(ConfigError, match=r"--suite is empty"):
        tasks_of(" , ")


def test_programs_never_go_through_a_stock_task() -> None:
    assert all(not task.hub_tasks for task in PAPER if task.executes_code)
    assert all(task.hub_tasks for task in PAPER if not task.executes_code)


def test_readers(tmp_path: Path) -> None:
    folder = write_benchmarks(tmp_path)
    (mbpp,) = read_parts("mbpp", folder, 3)
    assert [row["task_id"] for row in mbpp.shots] == [2, 3, 4]
    assert [row["task_id"] for row in mbpp.rows] == [11, 12, 510]
    assert mbpp.rows[0]["code"] == "def give_11():\n  return 11"
    (arc,) = read_parts("arc_challenge", folder, 25)
    assert (len(arc.shots), len(arc.rows)) == (25, 5)
    assert arc.shots[1] == {"question": "Which is number 1?", "choices": ["a tree", "the number 1", "1"], "gold": 2}
    mmlu = read_parts("mmlu", folder, 5)
    assert [part.label for part in mmlu] == ["clock_reading", "knots"]
    assert mmlu[0].rows[1] == {
        "question": 'clock_reading, "1"?',
        "choices": ["one, two", "b", "c", "d"],
        "gold": 1,
    }
    bbh = read_parts("bbh", folder, 3)
    assert bbh[0].description == "Do the task.\n\n"
    assert bbh[0].shots[0] == {
        "input": "sorting_words example 0?",
        "target": "It is plain. So the answer is apple pear.",
    }
    # As it is unpacked, too.
    (folder / "HumanEval.jsonl").write_bytes(gzip.decompress((folder / "HumanEval.jsonl.gz").read_bytes()))
    (folder / "HumanEval.jsonl.gz").unlink()
    assert len(read_parts("humaneval", folder, 0)[0].rows) == 2


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("gsm8k", "gsm8k_test.jsonl", '{"question": "a"}\n', r"no column 'answer'"),
        ("gsm8k", "gsm8k_test.jsonl", "[1, 2]\n", "not a list of rows"),
        ("gsm8k", "gsm8k_test.jsonl", "{\n", "not in the form"),
        ("gsm8k", "gsm8k_test.jsonl", "", "holds no rows of gsm8k"),
        ("gsm8k", "gsm8k_test.jsonl", '{"question": 3, "answer": "4"}\n', "'question' is no text"),
        ("truthfulqa", "truthfulqa_mc.json", '[{"question": "a", "mc1_targets": 3}]', "not in the form"),
        (
            "truthfulqa",
            "truthfulqa_mc.json",
            '[{"question": "a", "mc1_targets": {"b": 0}, "mc2_targets": {"b": 1}}]',
            "no true answer",
        ),
        (
            "mmlu",
            "mmlu/test/knots_test.csv",
            "question,choice0,choice1,choice2,choice3,answer\nq,a,b,c,d,9\n",
            "not in",
        ),
        ("mmlu", "mmlu/test/knots_test.csv", "question,choice0,choice1,choice2,choice3,answer\nq,a\n", "is no text"),
        ("ifeval", "ifeval.jsonl", '{"prompt": "", "instruction_id_list": [3], "kwargs": [{}]}\n', "list of texts"),
        ("ifeval", "ifeval.jsonl", '{"prompt": "", "instruction_id_list": ["a"], "kwargs": [3]}\n', "not in the form"),
        ("mmlu", "mmlu/test/knots_test.csv", "question,choice0\na,b\n", r"no column 'choice1'"),
        ("mmlu", "mmlu/dev/knots_dev.csv", "question,choice0\n", "has 0 rows, and 5 are needed"),
        ("bbh", "bbh/cot-prompts/which_option.txt", "nothing", "has 0 worked examples, and 3 are needed"),
        (
            "mbpp",
            "mbpp.jsonl",
            '{"task_id": 11, "text": "", "code": "", "test_list": []}\n',
            "lacks the solved examples",
        ),
        ("humaneval", "HumanEval.jsonl.gz", "plain", "cannot be read"),
        ("ifeval", "ifeval.jsonl", '{"prompt": "", "instruction_id_list": ["a"], "kwargs": []}\n', "not in the form"),
    ],
)
def test_files_that_are_not_in_form(tmp_path: Path, name: str, file: str, content: str, message: str) -> None:
    folder = write_benchmarks(tmp_path)
    (folder / file).write_text(content)
    shots = next(task.shots for task in PAPER if task.name == name)
    with pytest.raises(DataError, match=message) as caught:
        read_parts(name, folder, shots)
    assert "\n" not in str(caught.value)


def test_a_packed_file_that_is_damaged(tmp_path: Path) -> None:
    path = write_benchmarks(tmp_path) / "HumanEval.jsonl.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-12], whole[:20] + b"\xff" * 30 + whole[50:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"HumanEval\.jsonl\.gz cannot be read"):
            read_parts("humaneval", path.parent, 0)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    folder = write_benchmarks(tmp_path)
    (folder / "gsm8k_test.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_parts("gsm8k", folder, 5)


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("Thus\n#### 1,200", 1, 1),
        ("#### $1200.00", 1, 1),
        ("#### 1200.", 1, 1),
        ("#### 1200\n\nQuestion: next 7", 1, 0),
        ("It is 1200 dollars.", 0, 1),
        ("It costs $1,200.", 0, 1),
        ("#### 120", 0, 0),
        ("#### -1200", 0, 0),
        ("", 0, 0),
        ("no number, ####", 0, 0),
    ],
)
def test_numbers_of_gsm8k(answer: str, strict: float, flexible: float) -> None:
    found = scorers.gsm8k_score({"answer": "3 x 400\n#### 1,200"}, [answer])
    assert found == {"exact_match_strict": strict, "exact_match_flexible": flexible}


@pytest.mark.parametrize(
    ("target", "answer", "score"),
    [
        ("(B)", "Since it is so. So the answer is (B).", 1),
        ("(B)", "So the answer is (B)", 1),
        ("(B)", "So the answer is B.", 0),
        ("] ] >", "the answer is ] ] >.", 1),
        ("apple pear", "So the answer is apple pear.\nQ", 1),
        ("yes", "So the answer is no. So the answer is yes.", 0),
        ("-50", "So the answer is -50.", 1),
        ("(B)", "(B)", 0),
    ],
)
def test_answers_of_bbh(target: str, answer: str, score: float) -> None:
    assert scorers.bbh_score({"target": target}, [answer]) == {"exact_match": score}


def test_choices_by_likelihood() -> None:
    doc = {"choices": ["no", "a much longer answer"], "gold": 1}
    assert scorers.choice_score(doc, [(-3.0, False), (-5.0, False)]) == {"acc": 0.0, "acc_norm": 1.0}
    assert scorers.choice_score(doc, [(-5.0, False), (-5.0, False)])["acc"] == 0.0, "a tie goes to the first"
    doc = {"mc1": {"choices": ["a", "b"], "labels": [0, 1]}, "mc2": {"choices": ["a", "b", "c"], "labels": [1, 0, 1]}}
    assert scorers.mc1_score(doc, [(-2.0, False), (-1.0, False)]) == {"mc1": 1.0}
    equal = [(-9000.0, False)] * 3
    assert scorers.mc2_score(doc, equal)["mc2"] == pytest.approx(2 / 3), "no underflow"


HUMANEVAL = {
    "prompt": 'import math\n\ndef half(x):\n    """Halve it."""\n',
    "entry_point": "half",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(4) == math.floor(2.5)\n",
}
MBPP = {
    "test_list": ["assert inc(1) == 2", "assert inc(one) == 2"],
    "test_setup_code": "one = 1",
    "text": "Add one.",
    "code": "def inc(x): return x + 1",
}


@pytest.mark.parametrize(
    "completion",
    [
        "    return x // 2\n",
        "```python\ndef half(x):\n    return x // 2\n```",
        "Sure:\n\n```python\nfrom math import floor\n\ndef half(x):\n    return floor(x / 2)\n```\nIt halves.",
        "```\ndef half(x):\n    return x // 2\n```",
        "def half(x):\n    return x // 2\n",
        "```python\n    return x // 2\n```",
        "```py\ndef half(x):\n    return x // 2",
    ],
)
def test_programs_of_humaneval(completion: str) -> None:
    exec(scorers.humaneval_program(HUMANEVAL, completion), {})
    wrong = completion.replace("// 2", "// 3").replace("/ 2)", "/ 3)")
    with pytest.raises(AssertionError):
        exec(scorers.humaneval_program(HUMANEVAL, wrong), {})


@pytest.mark.parametrize(
    "completion",
    [
        "def inc(x):\n    return x + 1\n[DONE]\nand more that is no program",
        "def inc(x):\n    return x + 1\n",
        "[BEGIN]\ndef inc(x):\n    return x + 1\n[DONE]",
        "The function:\n```python\ndef inc(x):\n    return x + 1\n```\nIt adds one.",
        "```bash\nls\n```\n```python\ndef inc(x):\n    return x + 1\n```",
    ],
)
def test_programs_of_mbpp(completion: str) -> None:
    exec(scorers.mbpp_program(MBPP, completion), {})
    with pytest.raises(AssertionError):
        exec(scorers.mbpp_program(MBPP, completion.replace("x + 1", "x + 2")), {})


def test_prompt_of_mbpp_shows_the_tests() -> None:
    assert scorers.mbpp_prompt(MBPP).endswith("tests:\n\nassert inc(1) == 2\nassert inc(one) == 2\n[BEGIN]\n")


LEAST, LESS = "at least", "less than"
CASES = [
    ("keywords:existence", {"keywords": ["tree", "Sea"]}, "Trees by the sea", "Trees"),
    ("keywords:frequency", {"keyword": "tree", "frequency": 2, "relation": LEAST}, "Tree tree", "tree"),
    ("keywords:frequency", {"keyword": "tree", "frequency": 2, "relation": LESS}, "tree", "tree, trees"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocket", "a Rock."),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": LEAST}, "Quiqui q", "q"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": LESS}, "a!", "a!!"),
    ("language:response_language", {"language": "de"}, "Das ist ein Baum und nicht zwei.", "This is a tree."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LEAST}, "One. Two.", "Mr. Lee went."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LESS}, "At 3.5 dollars!", "One? Two"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***\n", "a\n***\n***\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": LEAST}, "one two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, "one two", "one two three"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "So"},
        'One.\n\n"so, two',
        "So.\n\nOne",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "a\np. p. s later", "P.S. a"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a\nP.S. later", "later"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b c*", "*a* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "Day 1\na\nDay 2", "Day 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<a poem>>\nIt", "<< >>"),
    ("combination:two_responses", {}, "a\n******\nb", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, " say it. Yes", "Yes. Say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So it was. "the end."', "The end. Not"),
    ("startend:quotation", {}, ' "quoted" ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LEAST},
        "A BIG, well-MADE TREE-HOUSE",
        "Big HOUSE",
    ),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": LESS}, "one BIG", "TWO BIG"),
    ("change_case:english_capital", {}, "THIS IS IT.", "This is it."),
    ("change_case:english_capital", {}, "IT IS THE END OF IT.", "DAS IST NICHT DAS ENDE."),
    ("change_case:english_lowercase", {}, "this is it.", "This is it."),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]


@pytest.mark.parametrize(("kind", "settings", "good", "bad"), CASES)
def test_instructions(kind: str, settings: dict[str, object], good: str, bad: str) -> None:
    assert follows(kind, settings, good)
    assert not follows(kind, settings, bad)
    assert not follows(kind, settings, " \n"), "nothing is no answer"
    assert follows(kind, settings | {"unused": None}, good), "None is absent, as in tables with a column a setting"


def test_every_kind_of_instruction_is_tried() -> None:
    assert len({kind for kind, *_ in CASES}) == 25


def test_instructions_that_cannot_be_checked() -> None:
    with pytest.raises(DataError, match="instruction 'a:b' that is none"):
        follows("a:b", {}, "text")
    with pytest.raises(DataError, match="settings of keywords:existence"):
        follows("keywords:existence", {}, "text")
    with pytest.raises(DataError, match="settings of keywords:frequency"):
        follows("keywords:frequency", {"keyword": "a", "frequency": 1, "relation": "about"}, "text")


def test_strict_and_loose_readings() -> None:
    doc = {"instructions": [json.dumps(["startend:quotation", {}]), json.dumps(["punctuation:no_comma", {}])]}
    assert scorers.ifeval_score(doc, ['"fine"']) == {"prompt_strict": 1.0, "prompt_loose": 1.0}
    assert scorers.ifeval_score(doc, ['Sure:\n*"fine"*']) == {"prompt_strict": 0.0, "prompt_loose": 1.0}
    assert scorers.ifeval_score(doc, ["fine"]) == {"prompt_strict": 0.0, "prompt_loose": 0.0}
    assert scorers.ifeval_score(doc, ["Sure,\n"]) == {"prompt_strict": 0.0, "prompt_loose": 0.0}


def test_sentences() -> None:
    assert [sentences(text) for text in ("", "One", "One. Two!", 'He said "no." Then left.', "J. Lee came.")] == [
        0,
        1,
        2,
        2,
        1,
    ]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("This is a short story about the sea.", "en"),
        ("Hii ni hadithi fupi na ninaipenda sana.", "sw"),
        ("Đây là một câu chuyện ngắn.", "vi"),
        ("Tämä on lyhyt tarina, ja se on hyvä.", "fi"),
        ("Esta é uma história curta que não acaba.", "pt"),
        ("Questa è una storia che non finisce.", "it"),
        ("Это короткий рассказ, и он мой.", "ru"),
        ("Това е кратък разказ за мен.", "bg"),
        ("यह एक छोटी कहानी है और मुझे अच्छी लगी।", "hi"),
        ("ही एक छोटी गोष्ट आहे आणि मला ती आवडते.", "mr"),
        ("यो एउटा सानो कथा हो र म खुसी छु।", "ne"),
        ("این یک داستان کوتاه است.", "fa"),
        ("یہ ایک مختصر کہانی ہے۔", "ur"),
        ("هذه قصة قصيرة في البيت.", "ar"),
        ("นี่คือเรื่องสั้น", "th"),
        ("이것은 짧은 이야기입니다.", "ko"),
        ("これは短い話です。", "ja"),
        ("12 + 5 = 17", None),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert language_of(text) == language
