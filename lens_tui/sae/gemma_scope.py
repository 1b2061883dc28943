"""Find and fetch a Gemma Scope 2 SAE: which of the folders it is in, and two files, never a snapshot."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lens_tui.records import LensError
from lens_tui.records.sanitise import one_line

from .hub import Progress, cached_file, fetch_file, list_files

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
        # Without a network, what the hub said before stands.
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
