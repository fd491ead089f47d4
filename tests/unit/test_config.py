from __future__ import annotations

from pathlib import Path

import pytest

from spice_select.config import PRESETS, RunConfig, load_config, resolve, to_yaml
from spice_select.errors import ConfigError
from spice_select.run_folder import differences


def test_a_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(overrides=["selection.budget=10%", "data.sources=[a.jsonl]", "gradients.lora.r=4", "seed=7"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file) == config


def test_presets_set_the_same_fields_and_validate() -> None:
    assert {frozenset(preset["selection"]) for preset in PRESETS.values()} == {frozenset(PRESETS["paper"]["selection"])}
    for name, preset in PRESETS.items():
        config = resolve({"preset": name})
        assert config.preset == name
        for key, value in preset["selection"].items():
            assert getattr(config.selection, key) == value


def test_the_paper_preset_is_the_paper() -> None:
    selection = resolve({"preset": "paper"}).selection
    assert (selection.alpha, selection.conflict_weight, selection.penalty) == (1.0, 0.1, "absolute")
    assert (selection.reference, selection.hinge, selection.normalize, selection.fisher) == (
        "selected",
        0.0,
        "none",
        "exact",
    )


def test_order_of_precedence(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(resolve({"preset": "recommended", "selection": {"budget": 5, "alpha": 3.0}})))
    assert load_config(file).selection.alpha == 3.0
    assert load_config(file, preset="paper").selection.alpha == 1.0
    assert load_config(file, preset="paper").selection.budget == 5
    flags = {"selection": {"budget": "7"}}
    assert load_config(file, values=flags).selection.budget == "7"
    assert load_config(file, ["selection.budget=9"], flags).selection.budget == 9


def test_overrides_of_preset_and_seed_are_those_of_the_flags(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(resolve({"preset": "recommended", "seed": 1, "selection": {"budget": 5}})))
    assert load_config(file, ["preset=paper"]) == load_config(file, preset="paper")
    assert load_config(file, ["preset=paper", "selection.alpha=3"]).selection.alpha == 3.0
    assert load_config(file, ["seed=4"]).gradients.seed == 4
    assert load_config(file, ["gradients.seed=5", "seed=4"]).gradients.seed == 5


def test_settings_of_several_forms_name_them_all() -> None:
    for override, form in (("budget=[1]", "50000 tokens"), ("alpha=big", "auto"), ("quotas=[]", "proportional, or")):
        with pytest.raises(ConfigError, match=form):
            load_config(overrides=[f"selection.{override}"])


def test_one_name_stands_for_a_list_of_names() -> None:
    config = load_config(overrides=["data.sources=a.jsonl", "data.contamination=b.jsonl"])
    assert (config.data.sources, config.data.contamination) == (("a.jsonl",), ("b.jsonl",))


def test_one_seed_rules_the_sketch_unless_it_has_its_own() -> None:
    assert resolve({"seed": 5}).gradients.seed == 5
    assert resolve({"seed": 5, "gradients": {"seed": 6}}).gradients.seed == 6


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("selection.alpah=2", "selection.alpha"),
        ("gradients.lora.rank=3", "gradients.lora.r"),
        ("selection.alpha=-1", "selection.alpha"),
        ("selection.alpha=nan", "selection.alpha"),
        ("data.max_length=1", "data.max_length"),
        ("preset=papr", "preset"),
        ("nonsense", "section.key=value"),
        ("method=dpp", "give one of its settings, such as method.name"),
    ],
)
def test_faults_are_named(override: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    assert field in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "text", "1: 2"])
def test_files_that_hold_no_settings(tmp_path: Path, content: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError):
        load_config(file)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("")
    assert load_config(file) == RunConfig()


def test_differences_name_fields_and_pass_over_what_has_no_identity() -> None:
    first = resolve({"selection": {"budget": 5}, "model": {"device": "cpu"}, "output": {"folder": "a"}})
    second = resolve({"selection": {"budget": 6}, "model": {"device": "cuda"}, "output": {"folder": "b"}})
    assert differences(first, second) == [("selection.budget", 5, 6)]


def test_a_written_method_gives_way_to_another_with_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("method: {name: length, order: shortest}")
    assert load_config(file).method.settings == {"order": "shortest"}
    assert load_config(file, values={"method": {"name": "length"}}).method.settings == {"order": "shortest"}
    assert load_config(file, values={"method": {"name": "dpp"}}).method.settings == {}
    asked = load_config(file, ["method.kernel=vmf", "method.name=dpp"]).method
    assert (asked.name, asked.settings) == ("dpp", {"kernel": "vmf"})
