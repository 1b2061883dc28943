"""What an SAE is known by: a name for its contents, so that labels and indexes stay with it wherever its files go."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError, SAEInfo
from lens_tui.records.hub_fetch import Progress
from lens_tui.records.info import SITES
from lens_tui.records.paths import expanded
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line

from .base import SAE as SAE
from .base import build, with_shape
from .files import Definition, Stored, Weights, check
from .formats import FORMATS
from .formats.parts import MAX_LAYER, Facts, Parts, Source
from .from_hub import fetch_sae, is_hub_id
from .kinds import GatedSAE as GatedSAE
from .kinds import GroupMaxSAE as GroupMaxSAE
from .kinds import JumpReLUSAE as JumpReLUSAE
from .kinds import StandardSAE as StandardSAE
from .kinds import TopKSAE as TopKSAE
from .matrices import Residence

_ROWS = 16


def content_id(definition: Definition, weights: Weights) -> str:
    """``sae-`` and 16 hex digits, the same for the same tensors and definition in whatever folder they lie.

    Biases, thresholds and 16 evenly spaced rows of encoder and decoder are hashed (SHA-256), which takes
    milliseconds at any width. Files altered on purpose in the rows between, and nowhere else, can share an id.
    """
    digest = hashlib.sha256(repr(definition).encode())
    for name, tensor in sorted({"b_dec": weights.b_dec, **weights.vectors}.items()):
        _add(digest, name, tensor, tensor.shape[0])
    matrices = {"w_enc": weights.w_enc, "w_dec": weights.w_dec}
    if weights.w_skip is not None:
        matrices["w_skip"] = weights.w_skip
    for name, tensor in matrices.items():
        _add(digest, name, tensor, _ROWS)
    return f"sae-{digest.hexdigest()[:16]}"


def _add(digest: hashlib._Hash, name: str, tensor: Stored, rows: int) -> None:
    array = tensor.array
    if tensor.turned:
        array = array.T  # rows as they lie in the file: a column would touch every page of it
    digest.update(f"{name}{tensor.shape}{array.dtype.str}{int(tensor.bfloat16)}".encode())
    # At most one place for each row, so none comes twice (np.unique would import numpy.ma, a twentieth of a second).
    places = np.linspace(0, len(array) - 1, min(rows, len(array))).astype(np.int64)
    digest.update(np.ascontiguousarray(array[places]).tobytes())
    if tensor.scales is not None:
        digest.update(np.ascontiguousarray(tensor.scales).tobytes())


def load_sae(
    path: str | Path,
    *,
    site: str | None = None,
    layer: int | None = None,
    model_name: str | None = None,
    residence: Residence | None = None,
    dtype: mx.Dtype = mx.float32,
    input_scale: float | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    extra_provenance: Mapping[str, str] | None = None,
) -> SAE:
    """Load an SAE or transcoder from a folder or weight file, or from the hub.

    The format is recognised by the tensors and the configuration beside them, whatever the file and its folders are
    called. What the SAE reads, from which model and layer, is taken from its configuration or, where that does not
    say, from the names of its folders; ``info.provenance`` says which.

    Args:
        path: a folder, a weight file, or ``org/name/folder`` at the hub, of which only the weights and the
            configuration are fetched, and nothing that is in the hub's cache.
        site: the tensor it reads, for files that do not say; one that contradicts the file is refused.
        layer: the block it reads, from 0; likewise.
        model_name: the model it was trained on; likewise.
        residence: where the encoder is kept: in ``"memory"``, on ``"disk"`` (read again for every block of tokens),
            or in memory in ``"8bit"`` (not exact); by default in memory if under a quarter of the machine's.
        dtype: that of the weights in memory and of the matrix products; biases and activations are float32.
        input_scale: what activations are multiplied by, for files that leave it open.
        revision: the hub's branch, tag or commit.
        progress: called with the bytes fetched and their total, also while nothing arrives; what it raises ends the
            transfer. By default a bar is drawn.
        extra_provenance: facts to add to ``info.provenance``.

    Raises:
        LensError: for whatever is wrong with the path, the file or its contents.
    """
    extra = dict(extra_provenance or {})
    place = _place(path)
    if not place.exists() and isinstance(path, str) and is_hub_id(path):
        place = _from_hub(path, revision, progress)
        extra.setdefault("repository", path)
    parts, info = _open(place, site, layer, model_name, input_scale, extra, name=str(path))
    return build(parts.definition, parts.weights, info, residence=residence, dtype=dtype)


def load_listed(path: Path, layer: int, config: Mapping[str, Any]) -> SAE:
    """A transcoder that a set lists as its layer's, wherever it lies.

    Args:
        path: The file of weights.
        layer: The block, from 0; a file that says another one is refused.
        config: The ``config.yaml`` of the set, for files that say less.

    Raises:
        LensError: As of :func:`load_sae`.
    """
    parts, info = _open(path, None, layer, None, None, {}, of_set=config)
    return build(parts.definition, parts.weights, info)


def _from_hub(name: str, revision: str | None, progress: Progress | None) -> Path:
    """What the hub has by a name that may as well be meant as a path: an error says that it is neither."""
    try:
        return fetch_sae(name, revision, progress)
    except LensError as error:
        here = f"There is no file or folder {one_line(name, 120)} here. At the hub: {error.message}"
        raise LensError(here, error.hint) from error


def sae_info(
    path: str | Path,
    *,
    site: str | None = None,
    layer: int | None = None,
    model_name: str | None = None,
    input_scale: float | None = None,
) -> SAEInfo:
    """What :func:`load_sae` would say of an SAE, without reading its weights but for the few rows its id is made of.

    Args:
        path: as for :func:`load_sae`, but not at the hub.
        site: the tensor it reads, for files that do not say.
        layer: the block it reads, from 0, for files that do not say.
        model_name: the model it was trained on, for files that do not say.
        input_scale: what activations are multiplied by, for files that leave it open.
    """
    parts, info = _open(path, site, layer, model_name, input_scale, {})
    return with_shape(info, parts.weights)


def _open(
    path: str | Path,
    site: str | None,
    layer: int | None,
    model_name: str | None,
    input_scale: float | None,
    extra: Mapping[str, str],
    *,
    name: str = "",
    of_set: Mapping[str, Any] | None = None,
) -> tuple[Parts, SAEInfo]:
    place = _place(path)
    if not place.exists():
        hint = "Give a file, a folder, or org/name/folder at the hub."
        raise LensError(f"There is no SAE at {one_line(str(path), 120) or 'an empty path'}.", hint)
    source = Source(place, one_line(name or str(path), 200), input_scale, of_set)
    if place.is_dir() and source.weights is None and not FORMATS[0].recognises(source):
        raise LensError(f"{short_path(place)} is not an SAE of a known format.", _look_around(place))
    found = next((form for form in FORMATS if form.recognises(source)), None)
    if found is None and not source.has("W_enc", "W_dec") and not source.has("encoder.weight"):
        found = next((form for form in FORMATS if source.is_named(*form.usual)), None)
    if found is None:
        raise LensError(f"{short_path(place)} is not an SAE of a known format.", _lacking(source))
    parts = found.read(source)
    check(parts.definition, parts.weights, short_path(place))
    facts = _with_given(parts.facts, site, layer, model_name, place)
    info = _info(source, facts, found.name, extra)
    return parts, replace(info, id=content_id(parts.definition, parts.weights))


def _with_given(facts: Facts, site: str | None, layer: int | None, model_name: str | None, place: Path) -> Facts:
    if site is not None and site not in SITES:
        raise LensError(f"There is no site {site!r}.", f"The sites are {', '.join(SITES)}.")
    if layer is not None and (type(layer) is not int or not 0 <= layer < MAX_LAYER):
        raise LensError(f"There is no layer {one_line(repr(layer), 30)}.", "Give the block's number, from 0.")
    for name, value in (("site", site), ("layer", layer)):
        known = facts.get(name)
        if value is not None and known is not None and known != value:
            where = facts.provenance[name]
            raise LensError(
                f"{short_path(place)} says its {name} is {known} ({where}), not {value}.",
                f"Leave {name} out to use what the file says.",
            )
    for name, given in (("site", site), ("layer", layer), ("model_name", model_name)):
        if given is not None:
            facts.values[name] = given
            facts.provenance[name] = "given by the caller"
    return facts


def _info(source: Source, facts: Facts, form: str, extra: Mapping[str, str]) -> SAEInfo:
    known: dict[str, Any] = {"site": "", "layer": -1, "model_name": "", **facts.values}
    if "site_out" not in known and "transcoder" not in known["architecture"]:
        known.update(site_out=known["site"], layer_out=known["layer"])
    base = SAEInfo(
        id="",
        name=one_line(source.folder.name if source.path.is_dir() else source.path.stem, 80),
        path=str(source.path),
        architecture=known.pop("architecture"),
        site=known.pop("site"),
        layer=known.pop("layer"),
        d_model=0,
        width=0,
        model_name=known.pop("model_name"),
        format=form,
        provenance={**facts.provenance, **extra},
    )
    return replace(base, **known)


def _place(path: str | Path) -> Path:
    try:
        place = expanded(path)
        place.exists()
    except (OSError, ValueError, TypeError) as error:
        reason = one_line(getattr(error, "strerror", None) or str(error), 80)
        raise LensError(f"{one_line(str(path), 120)} cannot be read: {reason}.", "Check the path.") from error
    return place


def _look_around(place: Path) -> str:
    inside = sorted(entry.name for entry in place.iterdir() if entry.is_dir())[:5]
    if inside:
        return f"Give one of the folders in it, for example {one_line(', '.join(inside), 120)}."
    return f"The formats are {', '.join(form.name for form in FORMATS)}."


def _lacking(source: Source) -> str:
    """What is missing beside tensors that look like those of an SAE, or which names of tensors were looked for."""
    if source.has("W_enc", "W_dec"):
        return "Its tensors are those of SAELens; fetch its cfg.json too."
    if source.has("encoder.weight"):
        return "Its tensors are those of an SAE; fetch its configuration (cfg.json, config.json, hyperparams.json) too."
    names = ", ".join(one_line(name, 30) for name in list(source.values)[:5]) or "nothing"
    return f"It has {names}; an SAE has an encoder and a decoder (w_enc and w_dec, encoder.weight, ...)."


SAE.opener = load_sae
