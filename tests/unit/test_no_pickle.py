"""Nothing reads or runs what could act by being read: pickles, unsafe YAML, code of models, of data, of a shell."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import torch

from spice_select.config import GradientConfig, ModelConfig
from spice_select.data.sources import load_rows
from spice_select.errors import DataError, ModelError
from spice_select.gradients.proxy import load_proxy, load_tokenizer
from tests.proxies import tiny_model
from tests.support import ROOT

SOURCE = ROOT / "src" / "spice_select"
FILES = sorted(SOURCE.rglob("*.py"))
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "joblib", "shelve", "marshal", "dill", "jsonpickle"}
# The sandbox runs programs that a model wrote: that is its task, and where it is walled in.
SANDBOX = {"sandbox.py", "sandbox_child.py", "sandbox_kernel.py"}
# Starts processes of this package alone, by a list of arguments.
STARTS = {"workers.py"}


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _keywords(call: ast.Call) -> dict[str, str]:
    return {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_reads_and_runs_nothing_that_acts(path: Path) -> None:
    assert not {name.partition(".")[0] for name in _imports(path)} & PICKLES
    for name, call in _calls(path):
        words, last = _keywords(call), name.rpartition(".")[2]
        here = f"{path.name}:{call.lineno} calls {name}"
        if name in ("torch.load", "load") and "torch" in name:
            assert words.get("weights_only") == "True", here
        if name in ("np.load", "numpy.load"):
            assert words.get("allow_pickle") == "False", here
        if last in ("write_array", "read_array", "save") and name.startswith(("np.", "numpy.")):
            assert words.get("allow_pickle") == "False", here
        if name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
            # The loader of a benchmark's task files is a SafeLoader with our own functions by name.
            assert (path.name, words.get("Loader")) == ("asking.py", "_Loader"), here
        assert last not in ("read_pickle", "to_pickle", "load_pickle"), here
        if path.name not in SANDBOX:
            assert name not in ("eval", "exec", "compile", "__import__"), here
            assert not name.startswith(("os.system", "os.popen", "os.exec", "os.spawn", "pty.")), here
            assert not name.startswith("subprocess.") or path.name in STARTS, here
        assert words.get("shell", "False") == "False", here
        trust = words.get("trust_remote_code")
        assert trust is None or trust != "True", here


def test_the_loader_of_task_files_is_safe() -> None:
    import yaml

    from spice_select.evaluation.asking import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getpid []", Loader=_Loader)


def test_foreign_code_is_trusted_by_the_users_flag_alone() -> None:
    said = set()
    for path in FILES:
        for _, call in _calls(path):
            said.add(_keywords(call).get("trust_remote_code"))
    assert ModelConfig().trust_remote_code is False
    assert said - {None, "False"} <= {"model.trust_remote_code", "trust", "config.model.trust_remote_code"}


# --- models and data with code of their own---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from tests.encoding import byte_level

    path = tmp_path / "model"
    tiny_model("llama").save_pretrained(path)
    byte_level().save_pretrained(path)
    return path


def _witness(path: Path) -> str:
    return f"from pathlib import Path\nPath({str(path)!r}).write_text('ran')\n"


def test_code_of_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(_witness(ran) + "class EvilConfig: pass\nclass EvilModel: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "evil"
    config["architectures"] = ["EvilModel"]
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_proxy(ModelConfig(name=str(folder)), GradientConfig())
    assert "\n" not in str(caught.value)
    assert not ran.exists()


def test_code_of_a_tokenizer_is_not_run(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / "evil_tokenizer.py").write_text(_witness(ran) + "class EvilTokenizer: pass\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil_tokenizer.EvilTokenizer", None]}
    settings["tokenizer_class"] = "EvilTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    try:
        load_tokenizer(ModelConfig(name=str(folder)))
    except ModelError as error:
        assert "\n" not in str(error)
    assert not ran.exists()


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.write_text, (ran, "ran")

    next(folder.glob("*.safetensors")).unlink()
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles are never loaded"):
        load_proxy(ModelConfig(name=str(folder)), GradientConfig())
    assert not ran.exists()


def test_a_loading_script_beside_rows_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    data = tmp_path / "rows"
    data.mkdir()
    (data / "rows.py").write_text(_witness(ran))
    with pytest.raises(DataError, match="holds no file of rows"):
        load_rows([data])
    (data / "train.jsonl").write_text('{"text": "a"}\n')
    assert len(load_rows([data])) == 1
    assert not ran.exists()


# --- dependencies---

# Import names that differ from those of their distributions.
_NAMES = {
    "PyYAML": "yaml",
    "scikit-learn": "sklearn",
    "lm-eval": "lm_eval",
    "sentence-transformers": "sentence_transformers",
}
# What a dependency gives out or takes in as its own: it comes with that one, in the version that fits it.
_OF_OTHERS = {
    "huggingface_hub": "transformers",
    "markupsafe": "jinja2",
    "typing_extensions": "pydantic",
    "pandas": "datasets",
}
# Imported by none of our lines, and needed all the same.
_SILENT = {"accelerate": "transformers asks for it where weights are placed on devices", "tokenizers": ""}


def _declared() -> tuple[set[str], set[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(lines: list[str]) -> set[str]:
        plain = {re.split(r"[<>=\[; ]", line)[0] for line in lines}
        return {_NAMES.get(name, name.replace("-", "_")) for name in plain}

    extras = project["optional-dependencies"]
    return names(project["dependencies"]), set().union(
        *(names(lines) for name, lines in extras.items() if name != "dev")
    )


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    imported = {name.partition(".")[0] for path in FILES for name in _imports(path)}
    foreign = imported - set(sys.stdlib_module_names) - {"spice_select", "__future__"}
    needed, extra = _declared()
    assert foreign - needed - extra <= set(_OF_OTHERS), "imported and not declared"
    for name, giver in _OF_OTHERS.items():
        asked = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower().replace("-", "_") for line in requires(giver) or ()}
        assert giver in needed and name in asked, f"{name} no longer comes with {giver}"
    assert (needed | extra) - foreign <= set(_SILENT), "declared and never imported"


def test_extras_are_imported_inside_functions_alone() -> None:
    _, extra = _declared()
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            assert not {name.partition(".")[0] for name in names} & extra, f"{path.name} imports an extra at once"


def test_every_dependency_has_a_known_distribution() -> None:
    known = packages_distributions()
    needed, _ = _declared()
    assert {name for name in needed if name not in known} == set()
