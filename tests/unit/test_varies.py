"""Whether an answer depends on the seed follows from the method's settings and from those of the selection section."""

from __future__ import annotations

import pytest

from spice_select.config import load_config
from spice_select.methods import make_method
from spice_select.preconditions import varies
from spice_select.study.arms import parse_arms


@pytest.mark.parametrize(
    ("overrides", "name", "settings", "expected"),
    [
        ([], "spice", {}, "no"),
        ([], "spice", {"loop": "stochastic"}, "draw"),
        ([], "fisher", {"partitions": 3}, "draw"),
        (["selection.loop=stochastic"], "spice", {}, "draw"),
        (["selection.partitions=2"], "fisher", {}, "draw"),
        (["selection.partitions=2"], "length", {}, "no"),
        (["selection.loop=dense"], "spice", {}, "no"),
        ([], "less", {}, "training"),
    ],
)
def test_samples_and_partitions_draw(overrides, name, settings, expected):
    assert varies(make_method(name, settings), load_config(overrides=overrides)) == expected


def test_an_arm_of_a_study_draws_by_its_own_selection():
    arms = parse_arms("spice,spice:label=parts:selection.partitions=4,spice:label=some:loop=stochastic", load_config())
    assert [arm.record().varies for arm in arms] == ["no", "draw", "draw"]
