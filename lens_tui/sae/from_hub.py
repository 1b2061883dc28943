"""SAEs at the Hugging Face hub: which files of a repository make one up. Never a whole repository is fetched."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from lens_tui.records import LensError
from lens_tui.records.hub_fetch import NotInRepository, Progress, cached_file, fetch, first_file
from lens_tui.records.known_saes import GEMMA_SCOPE_2
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line

from .formats.circuit_tracer import listed_files
from .formats.parts import SUFFIXES, USUAL_NAMES

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}(/[^\\]*)?")
_CONFIGS = ("config.json", "cfg.json", "hyperparams.json")


def is_hub_id(text: str) -> bool:
    """Whether it could name something at the hub."""
    return _ID.fullmatch(text) is not None and ".." not in text and "//" not in text


def fetch_sae(text: str, revision: str | None, progress: Progress | None, cache_dir: str | Path | None = None) -> Path:
    """The local file or folder of an SAE at the hub, fetched as far as it is not cached. Raises ``LensError``."""
    parts = text.rstrip("/").split("/")
    repo, inner = "/".join(parts[:2]), "/".join(parts[2:])
    one_file = PurePosixPath(inner).suffix in SUFFIXES
    names = [inner] if one_file else [_join(inner, name) for name in USUAL_NAMES]
    beside = _configs(_above(inner) if one_file else inner)
    try:
        found = first_file(repo, names, beside, revision=revision, cache_dir=cache_dir, progress=progress)
    except NotInRepository as missing:
        if one_file:
            raise LensError(f"{one_line(repo, 80)} has no file {one_line(inner, 80)}.", "Check the name.") from missing
        message = f"{one_line(text, 120)} has no weights under a usual name."
        raise LensError(message, _others(repo, inner, missing.files)) from missing
    except LensError:
        # No network: what is cached has to do, and what is missing beside it is reported by the reader.
        cached = (cached_file(repo, name, revision, cache_dir) for name in names)
        place = next((place for place in cached if isinstance(place, Path)), None)
        if place is None:
            raise
        found = place
    if one_file:
        return found
    # Llama Scope's weights are in a folder below that of its configuration.
    return found.parents[1] if found.name == "final.safetensors" else found.parent


_ADDRESS = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})/(?P<name>[^?#\\]+)(\?revision=(?P<at>[^&#]+))?"
)
_SETS = ("layer", "W_enc", "W_dec", "params_layer")
_DEEPEST = 128  # layers of a set


def fetch_transcoders(text: str, progress: Progress | None = None) -> Path:
    """The local folder of a set of transcoders at the hub, fetched as far as it is not cached.

    Args:
        text: ``org/name``, or ``org/name/folder``: the place of ``layer_0.safetensors`` and its like, or of a
            ``config.yaml`` that lists its files by address, which are fetched when the set is opened.
        progress: as of :func:`~lens_tui.records.hub_fetch.fetch`.

    Raises:
        LensError: for a place without a set, and for everything that can go wrong with a hub.
    """
    parts = text.rstrip("/").split("/")
    repo, inner = "/".join(parts[:2]), "/".join(parts[2:])
    if listed := _lists_its_files(repo, _join(inner, "config.yaml"), progress):
        return listed
    weights = [_join(inner, f"{stem}_{at}.safetensors") for stem in _SETS for at in range(_DEEPEST)]
    # Each by its name: a star would match what is in folders, and repositories hold many sets.
    wanted = [glob.escape(name) for name in (_join(inner, "config.yaml"), _join(inner, "config.json"), *weights)]
    first = [_join(inner, f"{stem}_0.safetensors") for stem in _SETS]
    try:
        return fetch(repo, wanted, first_of=first, progress=progress).parent
    except NotInRepository as missing:
        raise LensError(
            f"{one_line(text, 120)} has no set of transcoders.",
            "Give the folder that has layer_0.safetensors or its like in it: org/name/folder.",
        ) from missing
    except LensError:
        # No network: what is cached has to do, and what is missing of it is reported by the reader.
        cached = (cached_file(repo, name, None, None) for name in first)
        place = next((place for place in cached if isinstance(place, Path)), None)
        if place is None:
            raise
        return place.parent


def _lists_its_files(repo: str, name: str, progress: Progress | None) -> Path | None:
    """The folder of a set whose ``config.yaml`` says where its files are; ``None`` where they lie beside it."""
    try:
        folder = first_file(repo, [name], progress=progress).parent
    except LensError:  # without it, or without a network: what has come of the set decides
        return None
    return folder if listed_files(folder) else None


def fetch_listed(home: Path) -> list[Path]:
    """The local files of a set whose ``config.yaml`` lists them, in its order, fetched as far as they are not cached.

    Args:
        home: The folder of the ``config.yaml``. Addresses are ``hf://org/name/file``, with ``?revision=`` or without;
            what is no address is a file in this folder.

    Raises:
        LensError: For what is neither, files that are not there, and everything that can go wrong with a hub.
    """
    places = [_address(line, home) for line in listed_files(home)]
    for repo, revision in dict.fromkeys(place[:2] for place in places if isinstance(place, tuple)):
        names = [place[2] for place in places if isinstance(place, tuple) and place[:2] == (repo, revision)]
        if not all(isinstance(cached_file(repo, name, revision, None), Path) for name in names):
            beside = [
                other for name in names for other in (*_configs(_above(name)), _join(_above(name), "config.yaml"))
            ]
            with suppress(NotInRepository):  # which of them it has not is said below
                patterns = [glob.escape(name) for name in (*names, *beside)]
                fetch(repo, patterns, first_of=names, revision=revision)
    return [_listed_file(place, home) for place in places]


def _address(line: str, home: Path) -> Path | tuple[str, str | None, str]:
    """A file in the folder, or repository, revision and name of one at the hub."""
    found = _ADDRESS.fullmatch(line)
    inside = PurePosixPath(found["name"] if found else line)
    wrong = ".." in inside.parts or inside.is_absolute() or (found is None and "://" in line)
    if wrong or inside.suffix not in SUFFIXES:
        raise LensError(
            f"config.yaml of {short_path(home)} lists {one_line(line, 120)!r}, which is no file of weights.",
            "Its transcoders are hf://org/name/file, or files beside it.",
        )
    return (found["repo"], found["at"], found["name"]) if found else home / inside


def _listed_file(place: Path | tuple[str, str | None, str], home: Path) -> Path:
    if isinstance(place, Path):
        file, where = place if place.is_file() else None, f"{short_path(home)} has no file {one_line(place.name, 120)}"
    else:
        repo, revision, name = place
        found = cached_file(repo, name, revision, None)
        file, where = found if isinstance(found, Path) else None, f"{repo} has no file {one_line(name, 120)}"
    if file is None:
        raise LensError(f"{where}, which config.yaml of the set lists.", "Fetch the set again, or take another.")
    return file


def _configs(folder: str) -> list[str]:
    """Where the configuration of an SAE in a folder may be: there, or in the folder above."""
    above = [_join(_above(folder), "config.json")] if folder else []
    return [*(_join(folder, name) for name in _CONFIGS), *above]


def _above(place: str) -> str:
    home = PurePosixPath(place).parent.as_posix()
    return "" if home == "." else home


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _others(repo: str, inner: str, listed: Sequence[str]) -> str:
    """What to give instead: a weight file of another name in the folder, or one of the folders below it."""
    home = PurePosixPath(inner or ".")
    files = [
        name for name in listed if PurePosixPath(name).suffix in SUFFIXES and home in (PurePosixPath(name).parents)
    ]
    here = [f"{repo}/{name}" for name in files if PurePosixPath(name).parent == home]
    found = sorted({PurePosixPath(name).parent.as_posix() for name in files if name.endswith(USUAL_NAMES)})
    if not found and not here:
        return "Give the folder or file of one SAE: org/name/folder."
    some = found or sorted(here)
    more = f" and {len(some) - 5} more" if len(some) > 5 else ""
    return f"Give one of its {'folders' if found else 'files'}: {one_line(', '.join(some[:5]), 300)}{more}."


DEPTHS = {"270m": 18, "1b": 26, "4b": 34, "12b": 48, "27b": 62}
SITES = ("resid_post", "mlp_out", "attn_out", "transcoder")
_REPO = re.compile(r"google/gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)")
_FOLDER = re.compile(r"(?P<site>\w+?)(?P<all>_all)?/layer_(?P<layer>\d+)_width_(?P<width>\w+?)_(?P<variant>l0_\w+)/")


def fetch_gemma_scope(
    model_id: str,
    layer: int,
    width: str,
    variant: str,
    site: str,
    revision: str | None,
    progress: Progress | None,
    cache_dir: str | Path | None,
) -> tuple[Path, dict[str, str]]:
    """The local folder of an SAE and what is to be said of where it is from. Raises ``LensError``."""
    _check(model_id, layer, site)
    files: Sequence[str] = ()
    for home in _homes(model_id, layer, site):
        folder = f"{home}/layer_{layer}_width_{width}_{variant}"
        wanted, beside = [f"{folder}/params.safetensors"], [f"{folder}/config.json"]
        try:  # some folders have no config.json; then the folders' names say what it is
            path = first_file(model_id, wanted, beside, revision=revision, cache_dir=cache_dir, progress=progress)
        except NotInRepository as missing:
            files = missing.files
            continue
        except LensError:
            cached = cached_file(model_id, wanted[0], revision, cache_dir)
            if cached == "absent":  # without a network, what the hub said before still counts
                continue
            if cached == "unknown":
                raise
            path = cached
        where = f"{folder} ({'the set of every layer' if '_all/' in folder else 'the set of four layers'})"
        return path.parent, {"folder": where, "repository": model_id, "revision": _commit(path, revision)}
    raise _missing(model_id, layer, width, variant, site, files)


def _check(model_id: str, layer: int, site: str) -> None:
    if site not in SITES:
        raise LensError(f"Gemma Scope 2 has no site {site!r}.", f"Its sites are {', '.join(SITES)}.")
    known = _REPO.fullmatch(model_id)
    if known is None and model_id.startswith("google/gemma-scope-2"):
        names = ", ".join(GEMMA_SCOPE_2)
        raise LensError(
            f"There is no Gemma Scope 2 repository {one_line(model_id, 80)}.",
            f"They are google/gemma-scope-2-SIZE-pt and -it, where SIZE is one of {names}.",
        )
    if known is not None and not 0 <= layer < DEPTHS[known[1]]:
        depth = DEPTHS[known[1]]
        raise LensError(f"Gemma 3 {known[1]} has no layer {layer}: its {depth} layers are 0 to {depth - 1}.", "")


def _homes(model_id: str, layer: int, site: str) -> tuple[str, ...]:
    """The folders to look in, in order. The four-layer set is the better trained one where it exists."""
    known = _REPO.fullmatch(model_id)
    if known is not None and layer not in GEMMA_SCOPE_2[known[1]]:
        return (f"{site}_all",)
    return (site, f"{site}_all")


def _missing(model_id: str, layer: int, width: str, variant: str, site: str, names: Sequence[str]) -> LensError:
    wanted = f"{model_id} has no {site} SAE of layer {layer}, width {one_line(width, 20)}, {one_line(variant, 40)}."
    found = [match for name in names if (match := _FOLDER.match(name)) and match["site"] == site]
    if not found:
        return LensError(wanted, f"It has nothing for {site}." if names else "Check layer, width and variant.")
    here = [match for match in found if int(match["layer"]) == layer]
    if here:
        kinds = sorted({f"width {match['width']} {match['variant']}" for match in here})
        return LensError(wanted, f"Of layer {layer} it has {_listed(kinds)}.")
    layers = sorted({int(match["layer"]) for match in found})
    return LensError(wanted, f"It has layers {_listed(map(str, layers))}.")


def _listed(names: Iterable[str]) -> str:
    names = [one_line(name, 40) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _commit(path: Path, revision: str | None) -> str:
    # The cache keeps files under snapshots/<commit>/.
    found = re.search(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
    return found[1] if found else revision or "main"
