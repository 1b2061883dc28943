"""Fetch single files of SAE repositories from the Hugging Face hub: never a whole snapshot.

Transfers go through ``huggingface_hub``: they resume, and what is in its cache is used without a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lens_tui.records import LensError
from lens_tui.records.hub import SilentBar, explain_hub, quiet_hub
from lens_tui.records.sanitise import one_line

from .formats.parts import SUFFIXES, USUAL_NAMES

Progress = Callable[[int, int], None]
"""``progress(done, total)`` in bytes."""


def fetch_file(
    repo_id: str, name: str, revision: str | None, progress: Progress | None, cache_dir: str | Path | None
) -> Path | None:
    """The local path of one file of a repository, fetched if it is not cached; ``None`` if the repository lacks it.

    What ``progress`` raises ends the transfer and is passed on; the next call takes it up again.
    Raises ``LensError`` for everything else that can go wrong with a hub.
    """
    quiet_hub()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    _reach(repo_id, name, revision)
    mine: list[BaseException] = []
    options: dict[str, Any] = {} if progress is None else {"tqdm_class": _bar(progress, mine)}
    try:
        return Path(hf_hub_download(repo_id, name, revision=revision, cache_dir=cache_dir, **options))
    except LocalEntryNotFoundError as error:
        raise _explained(error.__cause__ or error, repo_id) from error
    except EntryNotFoundError:
        return None
    except Exception as error:
        if error in mine:
            raise
        raise _explained(error, repo_id) from error


def _reach(repo_id: str, name: str, revision: str | None) -> None:
    """Ask the hub for a file once. Raises ``LensError`` if there is no network.

    The client's downloads and listings try again for half a minute before they say so.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision))
    except (HfHubHTTPError, ValueError, OSError):
        return  # it answers, or is not to be asked: the download says what is wrong
    except Exception as error:
        raise _explained(error, repo_id) from error


def list_files(repo_id: str, revision: str | None, folder: str = "") -> list[str] | None:
    """All file names under a folder of a repository (``""``: all), or ``None`` if the hub cannot be reached.

    Raises ``LensError`` for a repository or revision that does not exist.
    """
    quiet_hub()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        tree = HfApi().list_repo_tree(repo_id, path_in_repo=folder or None, recursive=True, revision=revision)
        return [item.path for item in tree if hasattr(item, "size")]
    except EntryNotFoundError:
        return []
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, ValueError) as error:
        raise _explained(error, repo_id) from error
    except Exception:
        return None


def cached_file(
    repo_id: str, name: str, revision: str | None, cache_dir: str | Path | None
) -> Path | Literal["absent", "unknown"]:
    """A file of a repository if it is in the cache; never uses the network.

    ``absent``: the hub said before that the repository has no such file; ``unknown``: it was never asked for.
    """
    quiet_hub()
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo_id, name, revision=revision, cache_dir=cache_dir)
    except ValueError as error:
        raise _explained(error, repo_id) from error
    if isinstance(found, str):
        return Path(found)
    return "unknown" if found is None else "absent"


def _bar(progress: Progress, raised: list[BaseException]) -> type[SilentBar]:
    """A bar that reports bytes, and notes what the report raises."""

    class Bar(SilentBar):
        def update(self, n: float | None = 1) -> None:
            super().update(n)
            try:
                progress(self.n, max(self.total, self.n))
            except BaseException as error:
                raised.append(error)
                raise

    return Bar


def _explained(error: BaseException, repo_id: str) -> LensError:
    repo = one_line(repo_id, 80)
    hint = "Connect once to fetch it, and check that HF_HUB_OFFLINE is not set."
    absent = LensError(f"The file of {repo} is not in the cache, and the hub cannot be reached.", hint)
    return explain_hub(error, repo, kept="what was fetched so far is kept.", absent=absent)


_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}(/[^\\]*)?")
_CONFIGS = ("config.json", "cfg.json", "hyperparams.json", "../config.json")


def is_hub_id(text: str) -> bool:
    """Whether it could name something at the hub."""
    return _ID.fullmatch(text) is not None and ".." not in text and "//" not in text


def fetch_sae(text: str, revision: str | None, progress: Progress | None, cache_dir: str | Path | None = None) -> Path:
    """The local file or folder of an SAE at the hub, fetched as far as it is not cached. Raises ``LensError``."""
    parts = text.rstrip("/").split("/")
    repo, inner = "/".join(parts[:2]), "/".join(parts[2:])
    if PurePosixPath(inner).suffix in SUFFIXES:
        found = _take(repo, [inner], revision, progress, cache_dir, None)
        if found is None:
            raise LensError(f"{one_line(repo, 80)} has no file {one_line(inner, 80)}.", "Check the name.")
        home = PurePosixPath(inner).parent.as_posix()
        _configs(repo, "" if home == "." else home, revision, cache_dir)
        return found
    names = [_join(inner, name) for name in USUAL_NAMES]
    weights = _take(repo, names, revision, progress, cache_dir, [])  # of the cache
    if weights is None:
        _reach(repo, names[0], revision)
        listed = list_files(repo, revision, inner)
        weights = _take(repo, names, revision, progress, cache_dir, listed)
        if weights is None:
            raise LensError(f"{one_line(text, 120)} has no weights under a usual name.", _others(repo, inner, listed))
    _configs(repo, inner, revision, cache_dir)
    # Llama Scope's weights are in a folder below that of its configuration.
    return weights.parents[1] if weights.name == "final.safetensors" else weights.parent


def _take(
    repo: str,
    names: Iterable[str],
    revision: str | None,
    progress: Progress | None,
    cache_dir: str | Path | None,
    listed: list[str] | None,
) -> Path | None:
    """The first of some files that is in the cache or, as far as the listing says, at the hub."""
    names = list(names)
    for name in names:
        cached = cached_file(repo, name, revision, cache_dir)
        if isinstance(cached, Path):
            return cached
    wanted = names if listed is None else [name for name in names if name in listed]
    for name in wanted:
        found = fetch_file(repo, name, revision, progress, cache_dir)
        if found is not None:
            return found
    return None


def _configs(repo: str, folder: str, revision: str | None, cache_dir: str | Path | None) -> None:
    for name in _CONFIGS:
        if name.startswith("../"):
            if not folder:
                continue
            above = PurePosixPath(folder).parent.as_posix()
            place = _join("" if above == "." else above, name.removeprefix("../"))
        else:
            place = _join(folder, name)
        if cached_file(repo, place, revision, cache_dir) == "unknown":
            try:
                fetch_file(repo, place, revision, None, cache_dir)
            except LensError:
                return  # no network: what is cached has to do, and what is missing is reported by the reader


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _others(repo: str, inner: str, listed: list[str] | None) -> str:
    """What to give instead: a weight file of another name in the folder, or one of the folders below it."""
    home = PurePosixPath(inner or ".")
    files = [name for name in listed or [] if PurePosixPath(name).suffix in SUFFIXES]
    here = [f"{repo}/{name}" for name in files if PurePosixPath(name).parent == home]
    found = sorted({PurePosixPath(name).parent.as_posix() for name in files if name.endswith(USUAL_NAMES)})
    if not found and not here:
        return "Give the folder or file of one SAE: org/name/folder."
    some = found or sorted(here)
    more = f" and {len(some) - 5} more" if len(some) > 5 else ""
    return f"Give one of its {'folders' if found else 'files'}: {one_line(', '.join(some[:5]), 300)}{more}."


LAYERS = {
    "270m": (5, 9, 12, 15),
    "1b": (7, 13, 17, 22),
    "4b": (9, 17, 22, 29),
    "12b": (12, 24, 31, 41),
    "27b": (16, 31, 40, 53),
}
"""The four layers of each model that have folders outside ``_all``, as published."""
DEPTHS = {"270m": 18, "1b": 26, "4b": 34, "12b": 48, "27b": 62}
SITES = ("resid_post", "mlp_out", "attn_out", "transcoder")
_REPO = re.compile(r"google/gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)")
_FOLDER = re.compile(r"(?P<site>\w+?)(?P<all>_all)?/layer_(?P<layer>\d+)_width_(?P<width>\w+?)_(?P<variant>l0_\w+)/")


def fetch(
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
    for home in _homes(model_id, layer, site):
        folder = f"{home}/layer_{layer}_width_{width}_{variant}"
        path = _get(model_id, f"{folder}/params.safetensors", revision, progress, cache_dir)
        if path is not None:
            with suppress(LensError):  # some folders have none; then the folders' names say what it is
                _get(model_id, f"{folder}/config.json", revision, None, cache_dir)
            where = f"{folder} ({'the set of every layer' if '_all/' in folder else 'the set of four layers'})"
            return path.parent, {"folder": where, "repository": model_id, "revision": _commit(path, revision)}
    raise _missing(model_id, layer, width, variant, site, revision)


def _get(
    model_id: str, name: str, revision: str | None, progress: Progress | None, cache_dir: str | Path | None
) -> Path | None:
    """A file from the cache or the hub; ``None`` if the repository lacks it."""
    cached = cached_file(model_id, name, revision, cache_dir)
    if isinstance(cached, Path):
        return cached
    try:
        return fetch_file(model_id, name, revision, progress, cache_dir)
    except LensError:
        # Without a network, what the hub said before still counts.
        if cached == "absent":
            return None
        raise


def _check(model_id: str, layer: int, site: str) -> None:
    if site not in SITES:
        raise LensError(f"Gemma Scope 2 has no site {site!r}.", f"Its sites are {', '.join(SITES)}.")
    known = _REPO.fullmatch(model_id)
    if known is None and model_id.startswith("google/gemma-scope-2"):
        names = ", ".join(LAYERS)
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
    if known is not None and layer not in LAYERS[known[1]]:
        return (f"{site}_all",)
    return (site, f"{site}_all")


def _missing(model_id: str, layer: int, width: str, variant: str, site: str, revision: str | None) -> LensError:
    wanted = f"{model_id} has no {site} SAE of layer {layer}, width {one_line(width, 20)}, {one_line(variant, 40)}."
    names = list_files(model_id, revision) or []
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
