"""Domains of the demo that are about text: small programs, facts of an invented land, rewriting, and short letters."""

from __future__ import annotations

from random import Random

from spice_select.demo.example import DAYS, NAMES, WORDS, Example, Prompt, make_example, pick_other

# Each row: town, founded, river, known for, festival month, mayor, thousands of people. All of it is invented.
TOWNS = (
    ("Orvane", 1204, "Sill", "glass bells", "March", "Tilda Marsh", 48),
    ("Brackmoor", 1377, "Wend", "peat bricks", "May", "Corin Vale", 12),
    ("Tessaly Cross", 1451, "Sill", "blue wool", "June", "Anselm Rook", 31),
    ("Quillhaven", 1129, "Marrow", "goose quills", "April", "Hestia Dunn", 67),
    ("Dunmarrow", 1290, "Marrow", "salt bread", "August", "Pell Arkwright", 22),
    ("Ivenholt", 1533, "Tarn", "cedar chests", "October", "Maren Frost", 9),
    ("Saltgrave", 1088, "Wend", "smoked eel", "July", "Jory Pike", 54),
    ("Lanternford", 1612, "Tarn", "paper lamps", "December", "Sabine Holm", 17),
    ("Kestrel Rise", 1340, "Ash", "falcon hoods", "September", "Rufus Thorne", 14),
    ("Mirewick", 1266, "Ash", "reed baskets", "February", "Odile Crane", 26),
    ("Copperby", 1498, "Sill", "copper kettles", "November", "Basil Wren", 39),
    ("Harrowgate End", 1175, "Wend", "iron ploughs", "January", "Linnea Stroud", 43),
    ("Pearlsby", 1407, "Tarn", "river pearls", "May", "Evander Lowe", 20),
    ("Thornquay", 1322, "Marrow", "tarred rope", "June", "Isolde Grey", 58),
    ("Vellmar", 1051, "Ash", "silver clocks", "September", "Casper Oake", 91),
    ("Windlow", 1580, "Wend", "sail cloth", "March", "Freya Lund", 11),
)
# Each row: how the property is asked for (twice), and how it is told.
PROPERTIES = (
    ("In what year was {t} founded?", "Give the founding year of {t}.", "{t} was founded in {v}"),
    ("Which river runs through {t}?", "Name the river of {t}.", "The river that runs through {t} is the {v}"),
    ("What is {t} known for?", "Name the product that {t} is famous for.", "{t} is known for its {v}"),
    (
        "In which month does {t} hold its festival?",
        "When is the festival of {t}?",
        "The festival of {t} is held in {v}",
    ),
    ("Who is the mayor of {t}?", "Name the mayor of {t}.", "The mayor of {t} is {v}"),
    (
        "How many thousand people live in {t}?",
        "Give the population of {t} in thousands.",
        "In thousands, {t} has a population of {v}",
    ),
)
# Each row: base form, past, what may follow.
VERBS = (
    ("carry", "carried", ("the basket", "the ladder", "the lantern")),
    ("paint", "painted", ("the bridge", "the violin", "the window")),
    ("open", "opened", ("the letter", "the bottle", "the tunnel")),
    ("repair", "repaired", ("the engine", "the kettle", "the saddle")),
    ("follow", "followed", ("the river", "the rabbit", "the falcon")),
    ("clean", "cleaned", ("the carpet", "the mirror", "the stable")),
    ("measure", "measured", ("the garden", "the ribbon", "the blanket")),
    ("sketch", "sketched", ("the castle", "the turtle", "the valley")),
    ("visit", "visited", ("the temple", "the island", "the market")),
    ("polish", "polished", ("the silver", "the helmet", "the marble")),
)
EVENTS = (
    "birthday",
    "concert",
    "picnic",
    "garden party",
    "book evening",
    "chess match",
    "harvest dinner",
    "school play",
)
PLACES = (
    "the town hall",
    "the old mill",
    "the library",
    "my house",
    "the lake",
    "the green park",
    "the river cafe",
    "the school",
)
REASONS = ("a bad cold", "a late train", "a broken pipe", "a family visit", "an extra shift", "a dentist appointment")


def code(rng: Random) -> Example:
    """Write a small Python function, or say what a line of it prints."""
    n, name = rng.randint(2, 30), rng.choice(("work", "run", "solve", "apply", "compute"))
    # name of the task: what it does, the body, a body that does something else
    tasks = {
        "add": (f"adds {n} to a number", f"x + {n}", f"x - {n}"),
        "times": (f"multiplies a number by {n}", f"x * {n}", f"x + {n}"),
        "divisible": (f"tells whether a number is divisible by {n}", f"x % {n} == 0", f"x % {n} == 1"),
        "above": (
            f"keeps the items of a list that are greater than {n}",
            f"[i for i in x if i > {n}]",
            f"[i for i in x if i < {n}]",
        ),
        "head": (f"returns the first {n} items of a list", f"x[:{n}]", f"x[{n}:]"),
        "tail": (f"leaves out the first {n} items of a list", f"x[{n}:]", f"x[:{n}]"),
        "scale": (f"multiplies every item of a list by {n}", f"[i * {n} for i in x]", f"[i + {n} for i in x]"),
        "count": (f"counts how often {n} occurs in a list", f"x.count({n})", f"x.index({n})"),
        "limit": (f"returns the smaller of a number and {n}", f"min(x, {n})", f"max(x, {n})"),
    }
    if rng.random() < 0.25:
        a, b = rng.randint(2, 20), rng.randint(2, 9)
        sign, value, wrong = rng.choice(
            (("+", a + b, a - b), ("*", a * b, a + b), ("%", a % b, a % b + 1), ("//", a // b, a // b + 2))
        )
        if value == wrong:
            wrong += 1
        prompts = (
            f"What does print({a} {sign} {b}) show in Python?",
            Prompt("Say what this line of Python prints.", f"print({a} {sign} {b})"),
            f"I run print({a} {sign} {b}). What appears on the screen?",
        )
        answers = ("It prints {v}.", f"Python works out {a} {sign} {b} and the line prints {{v}}.")
        return make_example(rng, "code", prompts, answers, str(value), str(wrong))
    what, right, wrong = tasks[rng.choice(sorted(tasks))]
    prompts = (
        f"Write a Python function {name}(x) that {what}.",
        Prompt(f"Write the function {name}(x) in Python.", f"It {what}."),
        f"I need a short Python function called {name} with one argument x. It {what}.",
    )
    answers = (
        f"def {name}(x):\n    return {{v}}",
        f"def {name}(x):\n    result = {{v}}\n    return result",
        f'def {name}(x):\n    """A function that {what}."""\n    return {{v}}',
    )
    return make_example(rng, "code", prompts, answers, right, wrong)


def facts(rng: Random) -> Example:
    """Questions about the towns of a land that does not exist, with or without a note to read."""
    if rng.random() < 0.25:
        # In the order of the alphabet, so that one pair of towns is one question.
        one, two = sorted(rng.sample(TOWNS, 2))
        column, words = rng.choice(((1, "older"), (6, "smaller")))
        first, second = sorted((one, two), key=lambda row: int(row[column]))
        prompts = (
            f"Which town is {words}, {one[0]} or {two[0]}?",
            Prompt(f"Say which of the two towns is {words}.", f"{one[0]}; {two[0]}"),
            f"Of {one[0]} and {two[0]}, name the {words} town.",
        )
        unit = "{t}: founded in {v}." if column == 1 else "{t}: {v} thousand people."
        told = " ".join(unit.format(t=row[0], v=row[column]) for row in (one, two))
        answers = (f"The {words} one is {{v}}.", f"{told} Hence {{v}} is {words}.")
        return make_example(rng, "facts", prompts, answers, str(first[0]), str(second[0]))
    town, column = rng.choice(TOWNS), rng.randrange(len(PROPERTIES))
    value = str(town[column + 1])
    wrong = pick_other(rng, sorted({str(row[column + 1]) for row in TOWNS}), value)
    ask, other, told = (text.replace("{t}", str(town[0])) for text in PROPERTIES[column])
    extra = rng.choice([i for i in range(len(PROPERTIES)) if i != column])
    more = PROPERTIES[extra][2].format(t=town[0], v=town[extra + 1])
    prompts = (
        ask,
        other,
        Prompt("Answer in a sentence.", ask),
        Prompt("Answer the question about the land of towns.", other),
    )
    answers = (
        f"{told}.",
        f"{told}. {more}.",
        f"I know the towns well. {told}. Visitors may also like to hear this: {more}.",
    )
    return make_example(rng, "facts", prompts, answers, value, wrong)


def style(rng: Random) -> Example:
    """Rewrite a sentence: tense, politeness, negation, voice, a question."""
    who = rng.choice(NAMES)
    base, past, things = rng.choice(VERBS)
    thing, when = (
        rng.choice(things),
        rng.choice(("before lunch", "after school", "in the morning", "at night", "with care")),
    )
    now, order = f"{who} will {base} {thing} {when}.", f"{base.capitalize()} {thing} {when}."
    kind = rng.choice(("past", "polite", "negate", "passive", "question", "formal"))
    other = pick_other(rng, WORDS, thing.removeprefix("the "))
    source, right, *asks = {
        "past": (
            now,
            f"{who} {past} {thing} {when}.",
            "Put the sentence in the past tense.",
            "Say it as if it had happened.",
        ),
        "polite": (
            order,
            f"Could you please {base} {thing} {when}?",
            "Make the request polite.",
            "Say this in a kinder way.",
        ),
        "negate": (now, f"{who} will not {base} {thing} {when}.", "Negate the sentence.", "Say the opposite with not."),
        "passive": (
            now,
            f"{thing.capitalize()} will be {past} by {who} {when}.",
            "Use the passive voice.",
            "Make it passive.",
        ),
        "question": (
            now,
            f"Will {who} {base} {thing} {when}?",
            "Turn the sentence into a question.",
            "Ask whether this is so.",
        ),
        "formal": (
            order,
            f"Dear colleague, we kindly request that you {base} {thing} {when}. "
            "Thank you for your attention to this matter.",
            "Make this formal enough for an office.",
            "Rewrite this as a formal request.",
        ),
    }[kind]
    wrong = right.replace(thing.capitalize(), f"The {other}").replace(thing, f"the {other}")
    prompts = [Prompt(ask, source) for ask in asks] + [f"{ask} {source}" for ask in asks]
    answers = ("{v}", "Rewritten: {v}", "Here is the sentence you asked for: {v}")
    return make_example(rng, "style", prompts, answers, right, wrong)


def letters(rng: Random) -> Example:
    """Short letters of 30 to 80 words that must name the right day."""
    sender, reader = rng.sample(NAMES, 2)
    event, place, reason, day = rng.choice(EVENTS), rng.choice(PLACES), rng.choice(REASONS), rng.choice(DAYS)
    hour, wrong_day = rng.randint(1, 11), pick_other(rng, DAYS, day)
    kind = rng.choice(("invite", "thank", "apology", "remind"))
    body = {
        "invite": (
            f"I would be very happy to see you at the {event} on {{v}}. We meet at {place} at {hour} in the afternoon. "
            "There will be music, warm food and plenty of time to talk. Please tell me before {v} whether you can come"
        ),
        "thank": (
            f"Thank you so much for coming to the {event} on {{v}}. It was good to have you with us at {place}. "
            "Everybody enjoyed your stories, and we still laugh about them. I hope that we can meet again soon"
        ),
        "apology": (
            f"I am sorry that I missed the {event} at {place} on {{v}}. Because of {reason} I could not leave in time. "
            "I know that you had counted on me, and I feel bad about it. Let me make up for it with a dinner next week"
        ),
        "remind": (
            f"This is a short note to remind you of the {event} on {{v}}. We start at {hour} sharp at {place}. "
            "Please bring something to drink and a warm coat"
        ),
    }[kind]
    purpose = {
        "invite": f"an invitation to the {event} at {place} on {day} at {hour}",
        "thank": f"a letter of thanks for coming to the {event} at {place} on {day}",
        "apology": f"an apology for missing the {event} at {place} on {day} because of {reason}",
        "remind": f"a reminder of the {event} at {place} on {day} at {hour}",
    }[kind]
    prompts = (
        f"Write {purpose}, from {sender} to {reader}.",
        Prompt(f"Write a short letter from {sender} to {reader}.", f"It is {purpose}."),
        f"{sender} has to send {reader} {purpose}. Write the text.",
    )
    weather = rng.choice(
        (
            "It has rained here all week",
            "The first roses are out",
            "We have had snow since Sunday",
            "Our street is quiet again",
        )
    )
    greeting = f" {weather}, and everyone at home sends you greetings and hopes that you are well."
    endings = ("Yours", "Best wishes", "Warm regards", "See you soon")
    answers = tuple(f"Dear {reader}, {body}.{more} {ending}, {sender}" for ending in endings for more in ("", greeting))
    return make_example(rng, "letters", prompts, answers, day, wrong_day)
