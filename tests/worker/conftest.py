from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lens_tui.worker import jobs
from lens_tui.worker.thread import Worker
from tests.folders import lens_home, llama_folder, sae_folder
from tests.one_tokenizer import one_tokenizer
from tests.worker.drive import Driver

__all__ = ["one_tokenizer"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random llama as a folder."""
    return llama_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SAE of the small llama's layer 1."""
    return sae_folder(tmp_path_factory.mktemp("saes") / "layer_1_width_64")


@pytest.fixture
def driver() -> Iterator[Driver]:
    """A worker with nothing loaded."""
    made = Driver(Worker())
    yield made
    assert made.worker.close(60)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of the user's is touched."""
    folder = lens_home(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_TUI_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def loaded(tiny: Path, home: Path) -> Iterator[Driver]:
    """A worker with the small llama loaded."""
    made = Driver(Worker())
    made.done(jobs.LoadModel(str(tiny)))
    yield made
    assert made.worker.close(60)
