"""Domains of the demo whose answers are computed: arithmetic, units, strings, lists and the calendar."""

from __future__ import annotations

import calendar
import datetime
from random import Random

from spice_select.demo.example import DAYS, NAMES, WORDS, Example, Prompt, make_example, pick_other

ITEMS = (
    "apples", "beads", "books", "buttons", "coins", "cookies", "eggs", "flowers", "keys", "marbles", "pears", "pencils",
    "plums", "shells", "stamps", "stickers", "stones", "tickets",
)  # fmt: skip
UNITS = (
    ("metres", "centimetres", 100),
    ("kilometres", "metres", 1000),
    ("kilograms", "grams", 1000),
    ("litres", "millilitres", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
    ("dozens", "pieces", 12),
    ("centuries", "years", 100),
)
MONTHS = tuple(calendar.month_name)[1:]


def _near(rng: Random, value: int) -> int:
    """A wrong number that is close to the right one and not negative."""
    return rng.choice([v for d in (1, 2, 3, 5, 10) for v in (value - d, value + d) if v >= 0])


def arithmetic(rng: Random) -> Example:
    """Word problems of one or two steps, answered tersely or with the working shown."""
    name, items, place = rng.choice(NAMES), rng.choice(ITEMS), rng.choice(("a friend", "a neighbour", "a cousin"))
    kind = rng.choice(("gain", "lose", "groups", "share", "two steps"))
    if kind == "gain":
        a, b = rng.randint(3, 60), rng.randint(2, 39)
        value = a + b
        prompts = (
            f"{name} has {a} {items} and gets {b} more from {place}. How many {items} does {name} have now?",
            f"How many {items} does {name} have after adding {b} from {place} to the first {a}?",
            f"{name} owned {a} {items}, then {b} further {items} came from {place}. What is the total?",
        )
        working = f"{name} starts with {a} {items} and gets {b} more, so we add. {a} + {b} = {{v}}."
    elif kind == "lose":
        a = rng.randint(12, 90)
        b = rng.randint(2, a - 5)
        value = a - b
        prompts = (
            f"{name} has {a} {items} and gives {b} of them to {place}. How many {items} are left?",
            f"Out of {a} {items}, {name} hands {b} to {place}. How many remain?",
            f"{name} had {a} {items}. {b} of the {items} went to {place}. How many does {name} still have?",
        )
        working = f"{name} begins with {a} {items} and {b} are taken away, so we subtract. {a} - {b} = {{v}}."
    elif kind == "groups":
        a, b = rng.randint(2, 12), rng.randint(2, 12)
        value = a * b
        prompts = (
            f"{name} fills {a} boxes with {b} {items} each. How many {items} is that?",
            f"There are {b} {items} in every box and {name} has {a} boxes. Find the number of {items}.",
            f"If one box holds {b} {items}, how many {items} do the {a} boxes of {name} hold?",
        )
        working = f"Each of the {a} boxes holds {b} {items}, so we multiply. {a} * {b} = {{v}}."
    elif kind == "share":
        a, value = rng.randint(2, 9), rng.randint(2, 12)
        total = a * value
        prompts = (
            f"{name} shares {total} {items} equally among {a} children. How many {items} does each child get?",
            f"{a} children divide the {total} {items} of {name} evenly. How many for each child?",
            f"What does each of {a} children receive when {name} splits {total} {items} into equal parts?",
        )
        working = f"The {total} {items} are divided into {a} equal parts. {total} / {a} = {{v}}."
    else:
        a, b = rng.randint(2, 9), rng.randint(3, 10)
        c = rng.randint(1, a * b - 1)
        value = a * b - c
        prompts = (
            f"{name} buys {a} bags of {b} {items} and loses {c} on the way home. How many {items} remain?",
            f"After buying {a} bags with {b} {items} in each, {name} drops {c}. How many {items} are there in the end?",
            f"{a} bags hold {b} {items} each. {name} throws {c} of all these {items} away. How many stay?",
        )
        working = (
            f"First find how many {items} {name} bought. {a} * {b} = {a * b}. "
            f"Then take away the {c} that are gone. {a * b} - {c} = {{v}}."
        )
    answers = ("The answer is {v}.", f"It is {{v}} {items}.", working, f"{working} So the answer is {{v}} {items}.")
    return make_example(rng, "arithmetic", prompts, answers, str(value), str(_near(rng, value)))


def units(rng: Random) -> Example:
    """Conversions between units, in both directions."""
    large, small, factor = rng.choice(UNITS)
    n = rng.randint(2, 40)
    if rng.random() < 0.65:
        source, target, amount, value = large, small, n, n * factor
        wrong = n * pick_other(rng, (3, 7, 10, 12, 24, 60, 100, 1000), factor)
        rule = f"There are {factor} {small} in one of the {large}, and {n} * {factor} = {{v}}."
    else:
        source, target, amount, value = small, large, n * factor, n
        wrong = _near(rng, n)
        rule = f"Every {factor} {small} make one of the {large}, and {n * factor} / {factor} = {{v}}."
    prompts = (
        f"Convert {amount} {source} to {target}.",
        f"How many {target} are there in {amount} {source}?",
        Prompt(f"Give this quantity in {target}.", f"{amount} {source}"),
        f"Express {amount} {source} as {target}.",
    )
    answers = (
        f"That is {{v}} {target}.",
        f"{amount} {source} are {{v}} {target}.",
        f"{rule} That makes {{v}} {target}.",
        f"To turn {source} into {target} we use a fixed rule. {rule}",
    )
    return make_example(rng, "units", prompts, answers, str(value), str(wrong))


def strings(rng: Random) -> Example:
    """Small operations on one word."""
    word, other = rng.sample(WORDS, 2)
    kind = rng.choice(("reverse", "upper", "letters", "vowels", "first", "last", "twice", "drop", "spell"))
    if kind in ("letters", "vowels"):
        count = len(word) if kind == "letters" else sum(letter in "aeiou" for letter in word)
        value, wrong = str(count), str(_near(rng, count))
        asks = (f"Count the {kind} in the word.", f"How many {kind} does the word have?", f"Give the number of {kind}.")
    else:
        tasks = {
            "reverse": (str(word[::-1]), str(other[::-1]), "Reverse the word.", "Write the word backwards."),
            "upper": (
                word.upper(),
                other.upper(),
                "Write the word in capital letters.",
                "Turn the word into upper case.",
            ),
            "first": (word[:3], word[1:4], "Give the first three letters.", "Which three letters begin the word?"),
            "last": (word[-2:], word[-4:-2], "Give the last two letters.", "Which two letters end the word?"),
            "twice": (word * 2, other + word, "Write the word twice without a space.", "Repeat the word once, joined."),
            "drop": (word[1:], word[:-1], "Remove the first letter of the word.", "Cut off the first letter."),
            "spell": (
                "-".join(word),
                "-".join(other),
                "Spell the word with dashes.",
                "Put a dash between the letters.",
            ),
        }
        value, wrong, *asks = tasks[kind]
        if value == wrong:
            wrong = other
    prompts = [Prompt(ask, word) for ask in asks] + [f'{ask} The word is "{word}".' for ask in asks]
    answers = (
        "It is {v}.",
        f"For {word} it is {{v}}.",
        f'The word given is "{word}" and the result is "{{v}}".',
        "I looked at the word letter by letter from start to end, and the answer is {v}.",
    )
    return make_example(rng, "strings", prompts, answers, value, wrong)


def lists(rng: Random) -> Example:
    """Sorting and other operations on a list of numbers or words."""
    kind = rng.choice(("ascending", "descending", "largest", "smallest", "total", "words", "unique", "length"))
    numbers = rng.sample(range(1, 60), rng.randint(3, 6))
    while numbers in (sorted(numbers), sorted(numbers, reverse=True)):
        rng.shuffle(numbers)
    show = ", ".join(map(str, numbers))
    if kind == "words":
        words = rng.sample(WORDS, rng.randint(3, 5))
        while words == sorted(words):
            rng.shuffle(words)
        show, value, wrong = ", ".join(words), ", ".join(sorted(words)), ", ".join(words)
        asks = (
            "Sort the words alphabetically.",
            "Put these words in alphabetical order.",
            "Order the words from A to Z.",
        )
    elif kind == "unique":
        repeated = numbers + rng.sample(numbers, rng.randint(1, 2))
        show, value, wrong = ", ".join(map(str, repeated)), show, ", ".join(map(str, repeated))
        asks = (
            "Remove the repeated numbers.",
            "Keep only the first of each number.",
            "Drop every duplicate from the list.",
        )
    elif kind in ("ascending", "descending"):
        ordered = sorted(numbers, reverse=kind == "descending")
        value, wrong = ", ".join(map(str, ordered)), ", ".join(map(str, ordered[::-1]))
        ends = ("smallest", "largest") if kind == "ascending" else ("largest", "smallest")
        asks = (
            f"Sort the numbers in {kind} order.",
            f"Order the list from {ends[0]} to {ends[1]}.",
            f"Arrange {kind}.",
        )
    else:
        result = {"largest": max(numbers), "smallest": min(numbers), "total": sum(numbers), "length": len(numbers)}[
            kind
        ]
        value, wrong = str(result), str(_near(rng, result))
        if kind in ("largest", "smallest"):
            wrong = str(pick_other(rng, numbers, result))
        asks = {
            "largest": ("Find the largest number.", "Which number is the maximum?", "Give the biggest number here."),
            "smallest": ("Find the smallest number.", "Which number is the minimum?", "Give the least number here."),
            "total": ("Add up all the numbers.", "What is the sum of the list?", "Give the total of these numbers."),
            "length": ("Count the numbers.", "How many numbers are in the list?", "Give the length of the list."),
        }[kind]
    prompts = [Prompt(ask, show) for ask in asks] + [f"{ask} The list is {show}." for ask in asks]
    answers = (
        "Here it is: {v}",
        "The result is {v}.",
        f"The list holds {show}. Going through it one by one gives {{v}}.",
        "I compared the items one after another and checked that none was missed. The result is {v}.",
    )
    return make_example(rng, "lists", prompts, answers, value, wrong)


def dates(rng: Random) -> Example:
    """Weekdays, leap years, lengths of months and dates some days on."""
    kind = rng.choice(("weekday", "weekday", "leap", "month", "later", "later"))
    if kind == "weekday":
        day, n, ahead = rng.randrange(7), rng.randint(2, 30), rng.random() < 0.6
        value = DAYS[(day + (n if ahead else -n)) % 7]
        wrong, word = pick_other(rng, DAYS, value), "after" if ahead else "before"
        prompts = (
            f"Which weekday is {n} days {word} {DAYS[day]}?",
            Prompt(f"Name the weekday {n} days {word} this one.", DAYS[day]),
            f"Start at {DAYS[day]} and count {n} days {'forward' if ahead else 'back'}. Where do you land?",
        )
        reason = (
            f"A week has 7 days, so {n} days are {n // 7} weeks and {n % 7} days. Counting {n % 7} from {DAYS[day]}"
        )
        answers = ("It is {v}.", f"{n} days {word} {DAYS[day]} is {{v}}.", f"{reason} gives {{v}}.")
    elif kind == "leap":
        year = rng.randint(1880, 2120)
        value, wrong = ("is", "is not") if calendar.isleap(year) else ("is not", "is")
        prompts = (
            f"Is {year} a leap year?",
            Prompt("Say whether this is a leap year.", str(year)),
            f"Does February {year} have 29 days?",
        )
        answers = (
            f"{year} {{v}} a leap year.",
            f"By the rules of fours, hundreds and four hundreds, {year} {{v}} a leap year.",
        )
    elif kind == "month":
        year, month = rng.randint(1990, 2040), rng.randint(1, 12)
        value = str(calendar.monthrange(year, month)[1])
        wrong = pick_other(rng, ("28", "29", "30", "31"), value)
        prompts = (
            f"How many days does {MONTHS[month - 1]} {year} have?",
            Prompt("Give the number of days in this month.", f"{MONTHS[month - 1]} {year}"),
            f"Tell me the length of {MONTHS[month - 1]} {year} in days.",
        )
        answers = ("It has {v} days.", f"{MONTHS[month - 1]} {year} has {{v}} days.")
    else:
        start = datetime.date(2025, 1, 1) + datetime.timedelta(days=rng.randrange(365))
        n = rng.randint(3, 28)
        ends = [start + datetime.timedelta(days=n + shift) for shift in (0, rng.choice((-2, -1, 1, 2)))]
        shown = f"{start.day} {MONTHS[start.month - 1]}"
        value, wrong = (f"{end.day} {MONTHS[end.month - 1]}" for end in ends)
        prompts = (
            f"What date is {n} days after {shown} 2025?",
            Prompt(f"Add {n} days to this date of 2025.", shown),
            f"A parcel sent on {shown} 2025 takes {n} days. When does it arrive?",
        )
        length = calendar.monthrange(2025, start.month)[1]
        answers = (
            "It is {v}.",
            f"{n} days later it is {{v}}.",
            f"{MONTHS[start.month - 1]} has {length} days, so it is {{v}}.",
        )
    return make_example(rng, "calendar", prompts, answers, value, wrong)
