"""Sets of transcoders that stand in for all MLPs of a model: one a layer, or with decoders to all layers behind.

A set is opened from circuit-tracer's, Gemma Scope's, SAELens' and our files. Features and biases are read then, decoder
rows when they are asked for: a set may have 160 GB of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui import demo
from lens_tui.records import FloatArray, LensError, SAEInfo
from lens_tui.records.attribution_graph import Reads, Writes
from lens_tui.records.file_arrays import FileArray
from lens_tui.records.paths import expanded
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line
from lens_tui.sae.formats.circuit_tracer import listed_files, set_config

from .base import SAE, build
from .files import Definition, Stored, Weights, read_json, read_safetensors
from .from_hub import fetch_listed
from .load_sae import load_listed, load_sae, sae_info

Numbers = NDArray[np.int64]
_AT_ONCE = 1 << 24
"""Activations that are held at once."""


class LayerTranscoders:
    """Transcoders of single layers.

    Args:
        saes: By layer, at least one; each reads and gives the same kinds of tensors.
        name: What the set is called in records.
        reads: The tensor that they read.
        writes: The tensor that they give.

    Raises:
        LensError: For transcoders that normalise each token by its own statistics: they are not linear.
    """

    crosses = False

    def __init__(self, saes: Mapping[int, SAE], name: str, reads: Reads, writes: Writes) -> None:
        self.saes = dict(sorted(saes.items()))
        self.name, self.reads, self.writes = name, reads, writes
        self.layers = tuple(self.saes)
        for layer, sae in self.saes.items():
            _check_linear(sae, layer)

    def active(self, layer: int, x: mx.array) -> tuple[Numbers, Numbers, FloatArray]:
        """Where features of a layer are active on ``(tokens, d_in)``: positions, features and activations ``(n,)``."""
        return active_in(self.saes[layer], x)

    def encoder(self, layer: int, features: Numbers) -> tuple[mx.array, FloatArray]:
        """Rows ``(n, d_in)`` and biases ``(n,)``: ``x @ rows.T + bias`` is the activation where it is not 0."""
        return encoder_of(self.saes[layer], features)

    def decoder(self, layer: int, to: int, features: Numbers) -> mx.array:
        """What a unit of activation adds, ``(n, d_out)``; ``to`` is the layer itself."""
        sae = self.saes[layer]
        return sae.effects(features) / sae.definition.output_scale

    def decoder_bias(self, layer: int) -> mx.array:
        """What a layer's transcoder gives without features, ``(d_out,)``."""
        sae = self.saes[layer]
        return sae.tensors["b_dec"] / sae.definition.output_scale

    def skip(self, layer: int) -> mx.array | None:
        """The skip connection of a layer ``(d_in, d_out)``."""
        sae = self.saes[layer]
        found = sae.tensors.get("w_skip")
        if found is None:
            return None
        return found.astype(mx.float32) * (sae.definition.input_scale / sae.definition.output_scale)


@dataclass(frozen=True, eq=False)
class CrossDecoder:
    """Decoders of a layer's features to this layer and others: a matrix whose rows are a feature's, one after another.

    ``rows`` is ``(width * outputs, d_out)``; row ``feature * outputs + to - first`` is for layer ``to``.
    """

    rows: Stored
    outputs: int
    first: int

    def read(self, to: int, features: Numbers) -> mx.array:
        """Rows ``(n, d_out)`` to one layer, in bfloat16 where the file has them so."""
        kind = mx.bfloat16 if self.rows.bfloat16 else mx.float32
        return self.rows.read(features * self.outputs + (to - self.first), dtype=kind)


class CrossLayerTranscoders:
    """Cross-layer transcoders (Ameisen et al. 2025): features read one layer, and write to it and all those behind.

    Args:
        encoders: By layer, from 0 on without a gap; their own decoders are not looked at.
        decoders: As many.
        name: What the set is called in records.
        reads: The tensor that they read.
        writes: The tensor that they add to.
    """

    crosses = True

    def __init__(
        self, encoders: Sequence[SAE], decoders: Sequence[CrossDecoder], name: str, reads: Reads, writes: Writes
    ) -> None:
        self.encoders, self.decoders = tuple(encoders), tuple(decoders)
        self.name, self.reads, self.writes = name, reads, writes
        self.layers = tuple(range(len(self.encoders)))

    def active(self, layer: int, x: mx.array) -> tuple[Numbers, Numbers, FloatArray]:
        """As of :class:`LayerTranscoders`."""
        return active_in(self.encoders[layer], x)

    def encoder(self, layer: int, features: Numbers) -> tuple[mx.array, FloatArray]:
        """As of :class:`LayerTranscoders`."""
        return encoder_of(self.encoders[layer], features)

    def decoder(self, layer: int, to: int, features: Numbers) -> mx.array:
        """What a unit of activation in ``layer`` adds to layer ``to``, ``(n, d_out)``."""
        return self.decoders[layer].read(to, features)

    def decoder_bias(self, layer: int) -> mx.array:
        """What is added to a layer whatever is active, ``(d_out,)``."""
        return self.encoders[layer].tensors["b_dec"]

    def skip(self, layer: int) -> mx.array | None:
        """The skip connection of a layer ``(d_in, d_out)``."""
        found = self.encoders[layer].tensors.get("w_skip")
        return None if found is None else found.astype(mx.float32)


def active_in(sae: SAE, x: mx.array) -> tuple[Numbers, Numbers, FloatArray]:
    """Where features are active on ``(tokens, d_in)``, by position and then by feature."""
    step = max(1, _AT_ONCE // sae.d_sae)
    positions, features, values = [], [], []
    for start in range(0, x.shape[0], step):
        found = np.array(sae.encode(x[start : start + step]))
        position, feature = np.nonzero(found)
        positions.append(position + start)
        features.append(feature)
        values.append(found[position, feature])
    return np.concatenate(positions), np.concatenate(features), np.concatenate(values).astype(np.float32)


def encoder_of(sae: SAE, features: Numbers) -> tuple[mx.array, FloatArray]:
    """Rows ``(n, d_in)`` and biases ``(n,)`` of the linear function that activations are where they are not 0."""
    definition, tensors = sae.definition, sae.tensors
    columns, at = sae.encoder_columns(features), mx.array(features.astype(np.int32))
    lost = tensors["b_dec"] @ columns if definition.subtract_b_dec else mx.zeros((len(features),))
    if definition.activation == "gated":
        gain = mx.exp(tensors["r_mag"][at])
        columns, bias = columns * gain, tensors["b_mag"][at] - lost * gain
    else:
        bias = tensors["b_enc"][at] - lost
    if "norms" in tensors:
        columns, bias = columns * tensors["norms"][at], bias * tensors["norms"][at]
    return (columns * definition.input_scale).T, np.array(bias, np.float32)


def _check_linear(sae: SAE, layer: int) -> None:
    if sae.definition.normalize != "none":
        raise LensError(
            f"The transcoder of layer {layer} normalises every token by its own statistics, so that no direct effects"
            " go through it.",
            "Take one that does not.",
        )


TranscoderPaths = str | Path | Sequence[str | Path]
LayerProgress = Callable[[int, int], None]
_INPUTS: dict[str, Reads] = {
    "mlp.hook_in": "mlp_in",
    "hook_mlp_in": "mlp_in",
    "ln2.hook_normalized": "mlp_normed",
    "hook_resid_mid": "resid_mid",
}
_OUTPUTS: dict[str, Writes] = {"mlp.hook_out": "mlp_out", "hook_mlp_out": "mlp_added"}
_PLT = re.compile(r"layer_(\d{1,4})\.safetensors")
_CLT = re.compile(r"W_enc_(\d{1,4})\.safetensors")
_GEMMA = re.compile(r"params_layer_(\d{1,4})\.safetensors")
_FOLDER = re.compile(r"layer_(\d{1,4})(?:\D.*)?")
_MOST = 1000


def load_transcoders(
    path: TranscoderPaths, *, name: str = "", progress: LayerProgress | None = None
) -> LayerTranscoders | CrossLayerTranscoders:
    """Open the transcoders of a model.

    Args:
        path: A folder, or the files and folders of single layers. A folder is a set of circuit-tracer's
            (``config.yaml`` beside ``layer_N.safetensors``, or beside ``W_enc_N`` and ``W_dec_N``, or listing the
            files of its layers by their addresses at the hub, where they are fetched from), Gemma Scope 2's cross-layer
            one (``params_layer_N.safetensors``), or has a folder for each layer, as this program, SAELens
            and Gemma Scope write them. ``demo`` is the bundled model's.
        name: What the set is called in records and graphs, by default its own name or that of its folder.
        progress: Called with (layers opened, layers in all).

    Raises:
        LensError: For what is no set, and for files of it that are damaged or of another kind.
    """
    if path == demo.NAME:
        path, name = demo.transcoders_path(), name or demo.NAME
    if not isinstance(path, str | Path):
        return _layers(None, list(path), name or "transcoders", progress)
    home = expanded(path)
    if not home.is_dir():
        raise LensError(
            f"There is no folder of transcoders {one_line(str(path), 120)}.",
            "Give a folder with a transcoder for each layer, or 'demo' for the bundled ones.",
        )
    config = set_config(home)
    called = name or _text(config.get("scan")) or home.resolve().name
    if listed_files(home):
        return _listed(home, config, called, progress)
    if found := _numbered(home, _GEMMA):
        return _gemma(home, found, called, progress)
    if found := _numbered(home, _CLT):
        return _cross(found, home, config, called, progress)
    if found := _numbered(home, _PLT):
        return _layers(config_sites(config, home), list(found.values()), called, progress)
    folders = _folders(home)
    if not folders:
        raise LensError(
            f"{short_path(home)} has no transcoders.", "Give the folder that has those of each layer in it."
        )
    return _layers(None, folders, called, progress)


def _listed(
    home: Path, config: Mapping[str, Any], name: str, progress: LayerProgress | None
) -> LayerTranscoders | CrossLayerTranscoders:
    """A set whose ``config.yaml`` lists its files: transcoders of single layers, or Gemma Scope 2's across them."""
    sites, files = config_sites(config, home), fetch_listed(home)
    if config.get("model_kind") == "cross_layer_transcoder":
        return _gemma(home, dict(enumerate(files)), name, progress, sites)
    return _layers(sites, files, name, progress, config)


def config_sites(config: Mapping[str, Any], home: Path) -> tuple[Reads, Writes]:
    """What a set of circuit-tracer's reads and gives, by the hooks of its ``config.yaml``.

    Raises :class:`LensError` for a hook that is not known.
    """
    read, given = (str(config.get(f"feature_{side}_hook", "")) for side in ("input", "output"))
    if read not in _INPUTS or given not in _OUTPUTS:
        wrong = read if read not in _INPUTS else given
        known = ", ".join([*_INPUTS, *_OUTPUTS])
        raise LensError(
            f"config.yaml of {short_path(home)} names the hook {one_line(wrong, 60)!r}.", f"Known are {known}."
        )
    return _INPUTS[read], _OUTPUTS[given]


def _layers(
    sites: tuple[Reads, Writes] | None,
    paths: Sequence[str | Path],
    name: str,
    progress: LayerProgress | None,
    listed_in: Mapping[str, Any] | None = None,
) -> LayerTranscoders:
    """Transcoders of single layers; those that a set lists are of the layers from 0 on."""
    saes: dict[int, SAE] = {}
    known = sites
    for number, path in enumerate(paths):
        sae = load_sae(path) if listed_in is None else load_listed(Path(path), number, listed_in)
        layer = sae.info.layer
        if layer < 0:
            raise LensError(f"It is not known of which layer {one_line(sae.info.name, 60)} is.", "Its files must say.")
        if layer in saes:
            raise LensError(
                f"There are two transcoders of layer {layer}: {one_line(saes[layer].info.name, 60)} and "
                f"{one_line(sae.info.name, 60)}.",
                "Give one for each layer.",
            )
        mine = info_sites(sae.info) if sites is None else sites
        if known not in (None, mine):
            raise LensError(f"The transcoder of layer {layer} is of other tensors than those before.", "Give one set.")
        known = mine
        saes[layer] = sae
        if progress is not None:
            progress(number + 1, len(paths))
    if known is None:
        raise LensError("There are no transcoders.", "Give one for each layer.")
    return LayerTranscoders(saes, name, *known)


def info_sites(info: SAEInfo) -> tuple[Reads, Writes]:
    """What a transcoder reads and gives. Raises :class:`LensError` for an SAE, and where that is not known."""
    reads: dict[str, Reads] = {"mlp_in": "mlp_in", "mlp_normed": "mlp_normed"}
    writes: dict[str, Writes] = {"mlp_out": "mlp_out", "mlp_out_normed": "mlp_added"}
    if not info.is_transcoder or info.layer != info.layer_out:
        raise LensError(f"{one_line(info.name, 60)} is no transcoder of one layer.", "Give transcoders of MLPs.")
    if info.site not in reads or info.site_out not in writes:
        raise LensError(
            f"{one_line(info.name, 60)} reads {info.site or 'an unknown tensor'} and gives "
            f"{info.site_out or 'an unknown one'}, not an MLP's input and output.",
            "Give transcoders of MLPs.",
        )
    return reads[info.site], writes[info.site_out]


def _folders(home: Path) -> list[Path]:
    """The folders of single layers in a folder: one for each."""
    found = sorted(place for place in home.iterdir() if place.is_dir() and _FOLDER.fullmatch(place.name))[:_MOST]
    chosen = []
    for place in found:
        inside = place
        while (below := [each for each in sorted(inside.iterdir()) if each.is_dir()]) and not _has_weights(inside):
            if len(below) > 1:
                names = ", ".join(one_line(each.name, 40) for each in below[:4])
                raise LensError(
                    f"{short_path(inside)} has several transcoders: {names}.", "Give one for each layer by path."
                )
            inside = below[0]
        if sae_info(inside).is_transcoder:
            chosen.append(inside)
    return chosen


def _has_weights(folder: Path) -> bool:
    return any(each.suffix in (".safetensors", ".npz", ".pt") for each in folder.iterdir() if each.is_file())


def _numbered(home: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """The files of layers in a folder, by number."""
    names = {int(match[1]): place for place in home.iterdir() if (match := pattern.fullmatch(place.name))}
    return dict(sorted(names.items()))


def _whole(found: Mapping[int, Path], home: Path) -> None:
    if list(found) != list(range(len(found))):
        lacking = next(at for at in range(max(found) + 1) if at not in found)
        raise LensError(
            f"{short_path(home)} has no file of layer {lacking}.", "A cross-layer transcoder needs all of them."
        )


def _cross(
    found: Mapping[int, Path], home: Path, config: Mapping[str, Any], name: str, progress: LayerProgress | None
) -> CrossLayerTranscoders:
    """circuit-tracer's: ``W_enc_i (n, d)``, ``b_enc_i``, ``b_dec_i``, ``threshold_i``; ``W_dec_i (n, L - i, d)``."""
    _whole(found, home)
    encoders, decoders = [], []
    for at, path in found.items():
        tensors = read_safetensors(path)
        rows = _tensor(read_safetensors(home / f"W_dec_{at}.safetensors"), f"W_dec_{at}", 3, home)
        vectors = {"b_enc": _tensor(tensors, f"b_enc_{at}", 1, home)}
        if f"threshold_{at}" in tensors:
            vectors["threshold"] = _tensor(tensors, f"threshold_{at}", 1, home)
        encoder = _tensor(tensors, f"W_enc_{at}", 2, home).T
        encoders.append(_encoder(encoder, _tensor(tensors, f"b_dec_{at}", 1, home), vectors, at, home))
        decoders.append(_decoder(rows, len(found) - at, at, encoders[-1], home))
        if progress is not None:
            progress(at + 1, len(found))
    return CrossLayerTranscoders(encoders, decoders, name, *config_sites(config, home))


def _gemma(
    home: Path,
    found: Mapping[int, Path],
    name: str,
    progress: LayerProgress | None,
    sites: tuple[Reads, Writes] = ("mlp_in", "mlp_added"),
) -> CrossLayerTranscoders:
    """Gemma Scope 2's: ``w_enc (d, n)``, ``w_dec (n, L, d)``, ``b_enc``, ``b_dec``, ``threshold``, perhaps a skip."""
    _whole(found, home)
    config = read_json(home / "config.json") if (home / "config.json").is_file() else {}
    if config.get("type") == "crosscoder":
        raise LensError(f"{short_path(home)} is a crosscoder, which stands in for no MLP.", "Take transcoders.")
    encoders, decoders = [], []
    for at, path in found.items():
        tensors = read_safetensors(path)
        vectors = {key: _tensor(tensors, key, 1, home) for key in ("b_enc", "threshold")}
        skip = tensors.get("affine_skip_connection")
        w_enc, b_dec = _tensor(tensors, "w_enc", 2, home), _tensor(tensors, "b_dec", 1, home)
        encoders.append(_encoder(w_enc, b_dec, vectors, at, home, skip))
        decoders.append(_decoder(_tensor(tensors, "w_dec", 3, home), len(found), 0, encoders[-1], home))
        if progress is not None:
            progress(at + 1, len(found))
    return CrossLayerTranscoders(encoders, decoders, name, *sites)


def _tensor(tensors: Mapping[str, Stored], name: str, axes: int, home: Path) -> Stored:
    found = tensors.get(name)
    if found is None or len(found.shape) != axes or 0 in found.shape:
        what = "is missing" if found is None else f"has shape {found.shape}"
        raise LensError(f"{name} of {short_path(home)} {what}.", "The set is damaged, or of another format.")
    return found


def _encoder(
    w_enc: Stored, b_dec: Stored, vectors: dict[str, Stored], at: int, home: Path, skip: Stored | None = None
) -> SAE:
    """The features of a layer as an SAE; its decoder is elsewhere, and nothing is read of the zeros in its place."""
    definition = Definition(activation="jumprelu" if "threshold" in vectors else "relu")
    nothing = np.broadcast_to(np.zeros((1, 1), np.float32), (w_enc.shape[1], b_dec.shape[0]))
    weights = Weights(w_enc=w_enc, w_dec=Stored("w_dec", nothing), b_dec=b_dec, vectors=vectors, w_skip=skip)
    info = SAEInfo("", f"layer {at}", str(home), "cross_layer_transcoder", "", at, 0, 0, "", format="cross-layer")
    return build(definition, weights, info)


def _decoder(rows: Stored, outputs: int, first: int, encoder: SAE, home: Path) -> CrossDecoder:
    shape = (encoder.d_sae, outputs, encoder.d_out)
    if rows.shape != shape:
        raise LensError(
            f"{rows.name} of {short_path(home)} has shape {rows.shape}, not {shape}.", "The set is damaged."
        )
    flat = (encoder.d_sae * outputs, encoder.d_out)
    array = rows.array.part(0, flat) if isinstance(rows.array, FileArray) else rows.array.reshape(flat)
    return CrossDecoder(replace(rows, array=array), outputs, first)


def _text(value: Any) -> str:
    return one_line(value, 200) if isinstance(value, str) else ""
