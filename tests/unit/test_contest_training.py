from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from spice_select.analysis.contest import Contestant, TrainingNumbers, TrainingSetup
from spice_select.analysis.contest_lines import method_lines
from spice_select.analysis.contest_training import training_line, training_sentence
from spice_select.config import RunConfig, load_config
from spice_select.paths import with_whole_paths
from spice_select.run_folder import differences
from tests.contests import chosen

SETUP = TrainingSetup(
    model="demo",
    settings={},
    rows=3,
    domains={"a": 2, "b": 1},
    in_pool=0,
    untrained=TrainingNumbers(seed=0, loss_macro=9.0, loss_micro=9.0, by_domain={"a": 9.0, "b": 9.0}),
    fingerprints={},
)


def trained(seed: int, loss: float) -> TrainingNumbers:
    return TrainingNumbers(
        seed=seed, loss_macro=loss, loss_micro=loss + 1, by_domain={"a": loss - 1, "b": loss + 1}, steps=2, tokens=10
    )


def entry(label: str, losses: Sequence[float], seed: int = 0, k: int = 4, error: str | None = None) -> Contestant:
    numbers = tuple(trained(seed + place, loss) for place, loss in enumerate(losses))
    return chosen(label, seed, k=k).model_copy(update={"training": numbers, "training_error": error})


def sentence(given: Mapping[str, Sequence[float]], random: str | None = "random") -> str:
    draws = [entry("random", [loss], seed) for seed, loss in enumerate(given.get("random", ()))]
    others = [entry(label, losses) for label, losses in given.items() if label != "random"]
    lines = method_lines([*draws, *others], random)
    return training_sentence({line.label: line.training for line in lines if line.training}, random, SETUP)


def test_a_line_is_the_mean_of_its_trainings() -> None:
    line = training_line([trained(0, 2.0), trained(1, 5.0)], "why", None)
    assert (line.trials, line.loss_macro, line.loss_micro, line.by_domain) == (2, 3.5, 4.5, {"a": 2.5, "b": 4.5})
    assert line.deviation == pytest.approx(np.std([2, 5], ddof=1)) and line.error == "why"
    assert training_line([trained(0, 2.0)], None, None).deviation is None
    assert training_line([], "why", None).loss_macro is None


def test_distances_are_in_randoms_spread_and_only_for_as_many_rows() -> None:
    draws = [entry("random", [loss], seed) for seed, loss in enumerate((3.0, 4.0, 5.0))]
    lines = method_lines([*draws, entry("spice", [1.0]), entry("full", [1.0], k=40), chosen("length", 0)], "random")
    random, spice, full, length = (line.training for line in lines)
    assert random is not None and spice is not None and full is not None and length is None
    assert (random.loss_macro, random.deviation, random.trials) == (4.0, 1.0, 3)
    assert spice.from_random == -3.0 and full.from_random is None


def test_the_sentence_sorts_by_twice_the_larger_spread() -> None:
    said = sentence({"random": (3.0, 4.0, 5.0), "spice": (1.9,), "loss": (2.1,), "wild": (0.0, 3.0), "bad": (6.5,)})
    assert said == (
        "Picks that trained to a lower held-out loss than random's by more than twice its spread: spice (-2.1); not "
        "told apart: loss, wild; to a higher one by as much: bad (+2.5) (random: 4.000 \N{PLUS-MINUS SIGN}1.0 nats "
        "over 3 seeds; the others: 1 to 2); untrained the model has 9.000 nats."
    )


def test_the_sentence_says_when_nothing_is_told_apart_and_when_nothing_can_be() -> None:
    none = sentence({"random": (3.0, 5.0), "spice": (3.9,)})
    assert none.startswith("No method's picks trained to a lower held-out loss than random's by more than twice")
    assert "over 2 seeds, too few to tell a spread well" in none and "spice" not in none
    once = sentence({"random": (3.0,), "spice": (1.0,)})
    assert "cannot be told from chance, with one training on random picks" in once and "spice 1.000" in once
    assert "no training on random picks" in sentence({"spice": (1.0,)}, None)
    alike = sentence({"random": (3.0, 3.0, 3.0), "same": (3.0,), "spice": (2.0,)})
    assert "spread: spice;" in alike and "not told apart: same" in alike


def test_what_is_trained_is_no_identity_of_a_folder() -> None:
    first = load_config(values={"training": {"heldout": "a.jsonl"}})
    second = load_config(values={"training": {"lr": 1e-3}, "seed": 1, "gradients": {"seed": 0}})
    assert first.training.heldout == ("a.jsonl",)
    assert differences(first, second) == [("seed", 0, 1)]


def test_paths_are_made_whole(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held.jsonl").write_text("{}")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    given = RunConfig.model_validate({"training": {"heldout": ["held.jsonl", "owner/name"], "model": "model"}})
    found = with_whole_paths(given).training
    assert found.heldout == (str(tmp_path / "held.jsonl"), "owner/name") and found.model == str(tmp_path / "model")
    assert with_whole_paths(RunConfig()).training.model == ""
