from __future__ import annotations

import pytest

from spice_select.errors import ConfigError
from spice_select.methods import Need, method_class, method_names
from spice_select.methods.specs import LONGEST_LABEL, needs_target, parse_specs


def test_names_and_settings_are_read_in_the_order_given() -> None:
    first, second, third = parse_specs("spice, random ,fisher:alpha=2:normalize=unit")
    assert [spec.label for spec in (first, second, third)] == ["spice", "random", "fisher-alpha=2-normalize=unit"]
    assert (first.name, dict(first.settings)) == ("spice", {})
    assert dict(third.settings) == {"alpha": 2, "normalize": "unit"}
    assert third.method.model_dump()["alpha"] == 2.0


def test_several_texts_are_one_list() -> None:
    assert [spec.name for spec in parse_specs(["spice,random", "length"])] == ["spice", "random", "length"]


def test_labels_are_safe_and_unique_whatever_the_values() -> None:
    specs = parse_specs(["spice:hinge='25%':reference=pool", "spice:hinge='25 %':reference=pool", "spice:hinge=0.25"])
    labels = [spec.label for spec in specs]
    assert len({label.lower() for label in labels}) == 3
    for label in labels:
        assert not set(label) & set("/\\:%'\" *?") and not label.startswith(".")
    assert dict(specs[0].settings) == {"hinge": "25%", "reference": "pool"}
    long = parse_specs("spice:" + ":".join(f"{key}={value}" for key, value in LONG.items()))[0]
    assert len(long.label) <= LONGEST_LABEL


LONG = {"alpha": 1.2345678901, "conflict_weight": 0.123456789, "penalty": "relative", "reference": "selected"}


def test_commas_and_colons_within_brackets_or_quotes_are_the_values_own() -> None:
    with pytest.raises(ConfigError, match=r"cannot be \[1, 2\]"):
        parse_specs("spice:alpha=[1, 2],random")
    with pytest.raises(ConfigError, match="cannot be 'a:b,c'"):
        parse_specs("spice:hinge=0.1:penalty='a:b,c'")
    with pytest.raises(ConfigError, match="cannot be 'C:/x'"):
        parse_specs("spice:penalty=C:/x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "No method was named"),
        (" , ", "No method was named"),
        ("spize", "did you mean 'spice'"),
        ("spice:alfa=1", "did you mean 'method.alpha'"),
        ("spice:alpha", "is no method with settings"),
        ("spice:=1", "is no method with settings"),
        ("spice:alpha=1:alpha=2", "gives the setting 'alpha' twice"),
        ("spice:alpha=-1", "cannot be -1"),
        ("spice,random,spice", "'spice' was named twice with the same settings; name it once"),
        ("spice:alpha=1,spice:alpha=1.0", "'spice:alpha=1.0' and 'spice:alpha=1' was named twice"),
        ("all,spice", "'all' names it too"),
    ],
)
def test_faults_are_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_specs(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_same_method_may_enter_with_other_settings() -> None:
    assert [spec.label for spec in parse_specs("spice,spice:alpha=2")] == ["spice", "spice-alpha=2"]


def test_all_leaves_out_what_needs_a_target_unless_there_is_one() -> None:
    without, those = parse_specs("all"), parse_specs("all", target=True)
    assert [spec.name for spec in those] == method_names()
    aiming = [name for name in method_names() if Need.TARGET in method_class(name)().required()]
    assert aiming and [spec.name for spec in without] == [name for name in method_names() if name not in aiming]
    assert needs_target(those) == aiming and needs_target(without) == []
