"""Importing mlx-lm, and transformers with it, without what a model in a folder has no need of.

Importing transformers, which mlx-lm does for its tokenizers, reads each of its 1,700 model files (5.24), twice, to know
which names they define: half of the time that the bundled model takes to load, and most of it for a small model. The
table depends on nothing but the files of that release, so it is kept in the cache folder and handed to transformers in
the place of ``define_import_structure``, the function that makes it.

Where anything of this cannot be (an editable install, no cache folder, a release that does it another way, a kept
table that is not one), transformers does as it always does.

Both name huggingface_hub's client at the top of their files. It brings fifteen thousand lines and a library for HTTP, a
tenth of that time, for models that are fetched or published. So while mlx-lm is imported stand-ins have these names.
What anybody else imports from huggingface_hub, then or later, is its own, or does as its own.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
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
    """Have the next import of transformers use the table that is kept, and that of mlx-lm leave the hub's client.

    Costs nothing until then.
    """
    if "transformers" not in sys.modules:
        _around_import(_ROOM, _changed)
    if "mlx_lm" not in sys.modules:
        _around_import("mlx_lm", standing_in)


@contextmanager
def _changed(module: ModuleType) -> Iterator[None]:
    yield
    use(module)


Around = Callable[[ModuleType], AbstractContextManager[None]]


def _around_import(name: str, around: Around) -> None:
    """Have a module's code run inside of a context when it is first imported."""
    if not any(isinstance(finder, _Before) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Before(name, around))


class _Before(MetaPathFinder):
    """Finds a module, and has it loaded inside of a context."""

    def __init__(self, name: str, around: Around) -> None:
        self.name, self.around = name, around

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or fullname in sys.modules:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is not None and found.loader is not None:
            found.loader = _Inside(found.loader, self)
        return found


class _Inside(Loader):
    """Another loader, at work in a finder's context, and the finder is gone: until then one may only have looked."""

    def __init__(self, own: Loader, finder: _Before) -> None:
        self._own, self._finder = own, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        module.__loader__ = self._own
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        with self._finder.around(module):
            self._own.exec_module(module)


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


NAMES = ("CommitOperationAdd", "HfApi", "ModelCard", "ModelCardData", "snapshot_download")
"""What mlx-lm and transformers name of the hub's client."""
_HUB = "huggingface_hub"


@contextmanager
def standing_in(_importing: ModuleType) -> Iterator[None]:
    """Inside, huggingface_hub gives out stand-ins, unless its client is there already."""
    hub = import_module(_HUB)
    names = [name for name in NAMES if name not in vars(hub)] if f"{_HUB}.hf_api" not in sys.modules else []
    for name in names:
        setattr(hub, name, Later(name))
    try:
        yield
    finally:
        for name in names:
            delattr(hub, name)


class Later:
    """A class or function of huggingface_hub, by its name, imported when it is called, subclassed or looked into."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _it(self) -> Any:
        return getattr(import_module(_HUB), self._name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What it does or makes."""
        return self._it()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._it(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._it())

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (self._it(),)

    def __or__(self, other: object) -> Later:
        return self  # in an annotation, which nobody reads

    __ror__ = __or__
