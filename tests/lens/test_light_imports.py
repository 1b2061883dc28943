"""The table that transformers makes of itself is kept, and is the one it would have made; the hub's client is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest

from lens_tui.lens import light_imports
from lens_tui.lens.light_imports import NAMES, Later

_SAME = """
import json, sys
from pathlib import Path
import lens_tui.lens
import transformers
from transformers.utils import import_utils
kept = import_utils.define_import_structure
make = getattr(kept, "args", [kept])[0]
models = Path(transformers.__file__).parent / "models"
make.cache_clear()
asked = [(str(models),), (models, "models"), (str(models / "__init__.py"),), (str(models / "llama" / "__init__.py"),)]
print(json.dumps({
    "kept": make is not kept,
    "equal": [kept(*one) == make(*one) for one in asked],
    "loader": type(import_utils.__loader__).__name__,
    "finders": [getattr(finder, "name", "") for finder in sys.meta_path],
    "name": transformers.AutoTokenizer.__name__,
}))
"""


def _fresh(home: Path) -> dict[str, Any]:
    env = {**os.environ, "LENS_TUI_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", _SAME], env=env, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_table_is_transformers_own_when_it_is_made_when_it_is_read_and_when_it_is_broken(tmp_path: Path) -> None:
    made = _fresh(tmp_path)
    (file,) = (tmp_path / "cache").glob("transformers-*.json")
    whole, inode = file.read_bytes(), file.stat().st_ino
    read = _fresh(tmp_path)
    assert file.stat().st_ino == inode  # it was not made again
    file.write_bytes(whole[:-40])
    broken = _fresh(tmp_path)
    assert file.read_bytes() == whole
    for found in (made, read, broken):
        assert found["kept"]
        assert found["equal"] == [True] * 4
        assert found["loader"] == "SourceFileLoader"
        assert "transformers.utils.import_utils" not in found["finders"]
        assert found["name"] == "AutoTokenizer"


def _room(folder: Path) -> tuple[ModuleType, list[tuple[Any, ...]]]:
    """A module as transformers' is, below ``folder``, and what its maker was asked."""
    asked: list[tuple[Any, ...]] = []

    def define_import_structure(module_path: str, prefix: str | None = None) -> dict[frozenset[str], Any]:
        asked.append((module_path, prefix))
        return {
            frozenset({"torch"}): {"llama.modeling_llama": {"LlamaModel"}},
            frozenset(): {"llama.config": {"A", "B"}},
        }

    (folder / "utils").mkdir(parents=True)
    (folder / "models").mkdir()
    module = ModuleType("import_utils")
    module.__file__ = str(folder / "utils" / "import_utils.py")
    module.define_import_structure = define_import_structure  # type: ignore[attr-defined]
    return module, asked


def test_the_maker_is_asked_once_for_all_models_and_each_time_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, asked = _room(tmp_path / "transformers")
    monkeypatch.setattr(light_imports, "_kept_in", lambda models: tmp_path / "table.json")
    light_imports.use(module)
    models = tmp_path / "transformers" / "models"
    table: Any = module.define_import_structure
    first = table(models, prefix="models")
    assert first == {
        frozenset({"torch"}): {"models.llama.modeling_llama": {"LlamaModel"}},
        frozenset(): {"models.llama.config": {"A", "B"}},
    }
    first[frozenset()]["added"] = {"C"}  # as transformers does with what it gets
    again = table(str(models / "__init__.py"))
    assert again == {
        frozenset({"torch"}): {"llama.modeling_llama": {"LlamaModel"}},
        frozenset(): {"llama.config": {"A", "B"}},
    }
    assert asked == [(str(models), None)]
    table(str(models / "llama" / "__init__.py"))
    table(str(models / "llama"), prefix="x")
    assert asked[1:] == [(str(models / "llama" / "__init__.py"), None), (str(models / "llama"), "x")]


def test_what_is_installed_to_be_edited_is_never_kept(tmp_path: Path) -> None:
    module, _ = _room(tmp_path / "transformers")  # not where the installed package lies
    before = module.define_import_structure
    light_imports.use(module)
    assert module.define_import_structure is before


def test_a_release_without_the_function_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = _room(tmp_path / "transformers")
    monkeypatch.setattr(light_imports, "_kept_in", lambda models: tmp_path / "table.json")
    del module.define_import_structure
    light_imports.use(module)
    assert not hasattr(module, "define_import_structure")


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = _room(tmp_path / "transformers")
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(light_imports, "_kept_in", lambda models: tmp_path / "a file" / "table.json")
    light_imports.use(module)
    models = tmp_path / "transformers" / "models"
    for _ in range(2):
        assert module.define_import_structure(models)[frozenset()] == {"llama.config": {"A", "B"}}
    assert len(asked) == 2


_LOADED = """
import importlib.util, json, sys
import lens_tui.lens
assert importlib.util.find_spec("mlx_lm") is not None  # a look is no import
lens = lens_tui.LensModel("demo")
said = {"text": len(lens.tokens.encode("the dog")), "client": "huggingface_hub.hf_api" in sys.modules}
import mlx_lm.utils, transformers.utils.hub
from lens_tui.lens.light_imports import NAMES, Later
standing = [name for name in NAMES if isinstance(vars(transformers.utils.hub)[name], Later)]
import huggingface_hub
said |= {"standing": standing, "given back": [name for name in NAMES if name in vars(huggingface_hub)]}
api = transformers.utils.hub.hf_api()
said |= {"real": type(api) is huggingface_hub.HfApi, "library": api.library_name}
try:
    mlx_lm.utils.snapshot_download("nobody/nothing", local_files_only=True, cache_dir=sys.argv[1])
except huggingface_hub.errors.LocalEntryNotFoundError as error:
    said["refused"] = True
print(json.dumps(said))
"""


def test_a_folder_is_loaded_without_the_client_and_what_stands_in_does_as_it_does(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _LOADED, str(tmp_path)], capture_output=True, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["text"] > 0
    assert not said["client"]
    assert said["standing"] == sorted(NAMES)
    assert said["given back"] == []
    assert (said["real"], said["library"], said["refused"]) == (True, "transformers", True)


def test_a_stand_in_is_what_it_stands_for() -> None:
    later: Any = Later("CommitOperationAdd")
    made = later(path_in_repo="a.txt", path_or_fileobj=b"text")
    assert type(made) is huggingface_hub.CommitOperationAdd
    assert isinstance(made, later)
    assert not isinstance("text", later)
    assert later.__dataclass_fields__ is huggingface_hub.CommitOperationAdd.__dataclass_fields__

    class Mine(later):  # type: ignore[misc]
        """A class of one's own."""

    assert Mine.__mro__[1] is huggingface_hub.CommitOperationAdd
    assert (later | None) is later
    assert (None | later) is later


def test_a_client_that_is_there_is_not_stood_in_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert huggingface_hub.HfApi is not None  # imports it
    with light_imports.standing_in(huggingface_hub):
        assert not isinstance(huggingface_hub.HfApi, Later)
    monkeypatch.delitem(sys.modules, "huggingface_hub.hf_api")
    for name in set(NAMES) & vars(huggingface_hub).keys():
        monkeypatch.delattr(huggingface_hub, name)
    with light_imports.standing_in(huggingface_hub):
        assert all(isinstance(vars(huggingface_hub)[name], Later) for name in NAMES)
    assert not any(name in vars(huggingface_hub) for name in NAMES)
