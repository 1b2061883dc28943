"""What transformers finds out about itself on every import, found out once.

Importing transformers, which mlx-lm does for its tokenizers, reads each of its 1,700 model files (5.24), twice, to know
which names they define: half of the time that the bundled model takes to load, and most of it for a small model. The
table depends on nothing but the files of that release, so it is kept in the cache folder and handed to transformers in
the place of ``define_import_structure``, the function that makes it.

Where anything of this cannot be (an editable install, no cache folder, a release that does it another way, a kept
table that is not one), transformers does as it always does.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from lens_tui.records import LensError, disk, paths

Table = dict[frozenset[str], dict[str, set[str]]]
"""By the packages that they need: the modules below ``transformers/models``, and the names that each defines."""
_ROOM = "transformers.utils.import_utils"
_MAKER = "define_import_structure"
_MOST = 16 << 20


def watch() -> None:
    """Have the next import of transformers use the table that is kept. Costs nothing until then."""
    if "transformers" not in sys.modules and not any(isinstance(finder, _Before) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Before())


class _Before(MetaPathFinder):
    """Finds transformers' module that makes the table, and has it changed once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _ROOM:
            return None
        sys.meta_path.remove(self)
        found = PathFinder.find_spec(fullname, path, target)
        if found is not None and found.loader is not None:
            found.loader = _Then(found.loader)
        return found


class _Then(Loader):
    """Another loader, and after it :func:`use`."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        module.__loader__ = self._own
        self._own.exec_module(module)
        use(module)


def use(module: ModuleType) -> None:
    """Give ``transformers.utils.import_utils`` a maker of tables that remembers the large one."""
    make: Any = getattr(module, _MAKER, None)
    models = Path(module.__file__ or "").parents[1] / "models"
    try:
        file = _kept_in(models)
    except (OSError, LensError):
        return
    if make is not None and file is not None:
        setattr(module, _MAKER, partial(_table, make, models, file))


def _table(make: Callable[..., Table], models: Path, file: Path, module_path: Any, prefix: str | None = None) -> Table:
    """As transformers' own: the table of a folder, or of the folder of a file, its modules after ``prefix``."""
    where = Path(module_path)
    if models not in (where, where.parent) or where.name not in (models.name, "__init__.py"):
        return make(module_path, prefix)
    found = _read(file)
    if found is None:
        found = make(str(models))
        _write(file, found)
    before = f"{prefix}." if prefix is not None else ""
    return {need: {before + name: set(names) for name, names in rest.items()} for need, rest in found.items()}


def _kept_in(models: Path) -> Path | None:
    """The file for this release's table; ``None`` for an install whose files may change as they lie."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        package = distribution("transformers")
    except PackageNotFoundError:
        return None
    if not models.samefile(str(package.locate_file("transformers/models"))):
        return None
    record = Path(str(package.locate_file("transformers"))).parent / f"transformers-{package.version}.dist-info/RECORD"
    # An installer writes RECORD anew whenever it changes a file; a folder that comes by hand changes the one it is in.
    stamps = [(stat.st_mtime_ns, stat.st_size) for stat in (record.stat(), models.stat())]
    key = hashlib.sha256(repr((package.version, str(models), stamps)).encode()).hexdigest()[:16]
    return paths.folder("cache") / f"transformers-{key}.json"


def _read(file: Path) -> Table | None:
    try:
        if file.stat().st_size > _MOST:
            return None
        pairs = json.loads(file.read_bytes())
        return {frozenset(need): {name: set(names) for name, names in rest.items()} for need, rest in pairs}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write(file: Path, table: Table) -> None:
    pairs = [[sorted(need), {name: sorted(names) for name, names in rest.items()}] for need, rest in table.items()]
    try:
        disk.write_bytes(file, json.dumps(pairs, separators=(",", ":")).encode())
    except (OSError, LensError):
        return  # it is made again next time
