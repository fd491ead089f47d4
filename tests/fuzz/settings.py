"""Settings as a person gives them: files of YAML, overrides, budgets, quotas, methods, arms, ids and paths."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spice_select.config import RunConfig, load_config, to_yaml
from spice_select.data.hub import parse_hub_id
from spice_select.data.sources import load_rows
from spice_select.methods.specs import parse_specs
from spice_select.paths import with_whole_paths
from spice_select.selection.budget import resolve_budget
from spice_select.selection.quotas import resolve_groups
from spice_select.study.arms import parse_arms
from tests.fuzz.base import Format, Wrong
from tests.fuzz.mutators import JSON, NUMBERS, STRINGS, TEXT


def _text(content: bytes) -> str:
    """As an argument of a command reaches the program."""
    return content.decode("utf-8", "surrogateescape")


def _keys() -> list[str]:
    found = []

    def walk(values: dict, path: str) -> None:
        for key, value in values.items():
            walk(value, f"{path}{key}.") if isinstance(value, dict) and value else found.append(f"{path}{key}")

    walk(RunConfig().model_dump(mode="json"), "")
    return [*found, "method.variant", "selection", "data.columns.prompt", "", "a.b.c.d", "selection.quotas.a.min"]


def override(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A known key with a value that it may not expect."""
    value = rng.choice((rng.choice(STRINGS), str(rng.choice(NUMBERS)), "null", "true", "[]", "{}", "[1, 2]", "{a: 1}",
                        "!!python/object:os.system x", "*a", "&a [*a]", "2020-01-01", "0x10", "1:30", "~", "<<: 1",
                        "? a", "'", '"\\ud800"', "!!binary aGk=", "!!set {a}", ".nan", ".inf", "0o9"))  # fmt: skip
    return f"{rng.choice(_KEYS)}={value}".encode("utf-8", "surrogatepass")


_KEYS = _keys()


def _replays(config: RunConfig, path: Path) -> None:
    text = to_yaml(config)
    path.write_text(text, encoding="utf-8")
    if to_yaml(load_config(path)) != text:
        raise Wrong("a written configuration does not replay")


class ConfigFile(Format):
    """``config.yaml``."""

    name = "config.yaml"
    mutators = TEXT
    weight = 1.0

    def make_seeds(self) -> list[bytes]:
        return [
            b"selection:\n  budget: 10%\n  alpha: auto\n  quotas:\n    code: {min: 0.1, max: 5}\n",
            b"data:\n  sources: [rows.jsonl, 'a/b@main']\n  columns: {prompt: q}\nseed: 3\npreset: paper\n",
            b"model: {name: tiny, dtype: bfloat16}\ngradients:\n  lora: {r: 4}\n  sketch: two-sided\n",
            b"method:\n  name: ifd\n  variant: cherry\nschedule: {kind: pools, warmup_share: 0.1}\n",
            b"a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: [*c, *c, *c, *c]\n",
            b"selection: !!python/object/apply:os.system ['true']\n",
            b"? [1, 2]\n: 3\n",
            b"&x {selection: *x}\n",
            b"selection: &x {budget: *x}\n",
        ]

    def read(self, content: bytes) -> None:
        path = self.folder / "config.yaml"
        self.place(path, content)
        _replays(load_config(path), self.folder / "again.yaml")


class Override(Format):
    """``--set``."""

    name = "--set"
    mutators = (override,) * 12 + TEXT
    weight = 2.0

    def make_seeds(self) -> list[bytes]:
        return [b"selection.alpha=auto", b"data.sources=[a, b]", b"gradients.lora.r=4", b"selection.budget=5 rows"]

    def read(self, content: bytes) -> None:
        config = load_config(None, [part for part in _text(content).split("\n") if part])
        _replays(config, self.folder / "again.yaml")
        with_whole_paths(config)


class BudgetText(Format):
    """Budgets."""

    name = "budget"
    mutators = TEXT
    weight = 6.0

    def make_seeds(self) -> list[bytes]:
        return [b"10%", b"12", b"0.1", b"50000 tokens", b"3 rows", b"1e-3", b"100 %"]

    def read(self, content: bytes) -> None:
        config = load_config(None, (), {"selection": {"budget": _text(content)}})
        found = resolve_budget(config.selection.budget, 1000, 900)
        if not 1 <= found.rows <= 900 or (found.tokens is not None and found.tokens < 1):
            raise Wrong(f"{found}")


class QuotaSettings(Format):
    """Quotas."""

    name = "quotas"
    mutators = JSON
    weight = 5.0

    def make_seeds(self) -> list[bytes]:
        return [
            b'"proportional"', b'{"a": {"min": 0.1, "max": 0.5}, "b": {"max": 9}}', b'{"c": {"min": 3, "max": 3}}',
            b'{"a": {"min": 10, "max": 10}, "b": {"min": 0, "max": 0}}',
        ]  # fmt: skip

    def read(self, content: bytes) -> None:
        config = load_config(None, (), {"selection": {"quotas": _json(content)}})
        if config.selection.quotas is None:
            return
        labels = ["a", "b", "c"] * 20
        eligible = np.ones(60, dtype=bool)
        eligible[50:] = False
        groups = resolve_groups(labels, config.selection.quotas, eligible, eligible, 12)
        if (groups.least > groups.most).any() or groups.least.sum() > 12 or groups.most.sum() < 12:
            raise Wrong(f"{groups.least} {groups.most}")


def _json(content: bytes) -> object:
    from spice_select.errors import ConfigError

    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise ConfigError("no JSON") from None


class MethodSpecs(Format):
    """``--methods`` of a comparison."""

    name = "methods"
    mutators = TEXT
    weight = 0.5

    def make_seeds(self) -> list[bytes]:
        return [
            b"spice,random,dpp:kernel=cosine", b"all", b"ifd:variant=cherry:most=0.5,tsds:ratio=[0.5, 0.5]",
            b"kcenter:start='a,b:c=d'", b"less,length:longest=true", b"selectit,semdedup:clusters=5",
        ]  # fmt: skip

    def read(self, content: bytes) -> None:
        for spec in parse_specs(_text(content), target=True):
            require_file_name(spec.label)


class StudyArms(Format):
    """Arms of a study."""

    name = "arms"
    mutators = TEXT
    weight = 0.7

    def make_seeds(self) -> list[bytes]:
        return [
            b"spice:schedule.warmup_steps=50:label=warm,random", b"full,spice:selection.alpha=auto",
            b"spice:schedule.kind=pools:label=p,fisher", b"dpp:kernel=cosine:embeddings.layer=2",
        ]  # fmt: skip

    def read(self, content: bytes) -> None:
        for arm in parse_arms(_text(content), _BASE):
            require_file_name(arm.label)
            json.dumps(arm.record().model_dump(mode="json"))


_BASE = RunConfig()


def require_file_name(name: str) -> None:
    """A name that is one part of a path, on any disk."""
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(os.fsencode(name)) > 200:
        raise Wrong(f"the name {name[:80]!r} of a file")


class SourceNames(Format):
    """Names of sources: paths and Hub ids."""

    name = "source-names"
    mutators = TEXT
    weight = 0.4

    def make_seeds(self) -> list[bytes]:
        (self.folder / "here").mkdir()
        (self.folder / "here" / "rows.jsonl").write_text('{"text": "a"}\n')
        (self.folder / "directory.jsonl").mkdir()
        os.mkfifo(self.folder / "fifo.jsonl")
        (self.folder / "loop.jsonl").symlink_to(self.folder / "loop.jsonl")
        (self.folder / "dangling.csv").symlink_to(self.folder / "nowhere.csv")
        os.mkfifo(self.folder / "here" / "pipe.jsonl")
        names = ("here", "here/rows.jsonl", "directory.jsonl", "fifo.jsonl", "loop.jsonl", "dangling.csv", "owner/name")
        more = ("~nobody/x", "/dev/zero", "/dev/null", "/proc/self/mem", "\x00", "a" * 300, "a/" * 3000, "..", "")
        return [name.encode() for name in (*names, *more)]

    def read(self, content: bytes) -> None:
        name = _text(content)
        parsed = parse_hub_id(name)
        if parsed is not None and (".." in parsed.id.split("/") or "\0" in parsed.id):
            raise Wrong(f"a Hub id {parsed}")
        if parsed is not None:
            return
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            load_config(None, (), {"data": {"sources": [name]}})
            with_whole_paths(RunConfig.model_validate({"data": {"sources": [name]}}))
            place = Path(os.path.expanduser(name.replace("\0", "")))
            if not os.path.isdir(place) or self.folder in place.resolve().parents:
                load_rows([name], limit=1)
        finally:
            os.chdir(before)


FORMATS = (ConfigFile, Override, BudgetText, QuotaSettings, MethodSpecs, StudyArms, SourceNames)
