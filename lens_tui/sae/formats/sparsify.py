"""EleutherAI's sparsify: ``cfg.json`` and ``sae.safetensors`` in a folder named after the module, ``layers.N[.mlp]``.

``encoder.weight (n, d)``, ``encoder.bias``, ``W_dec (n, d)``, ``b_dec``, with a skip connection ``W_skip (d_out,
d_in)``. ``b_dec`` is subtracted from the input unless it is a transcoder (``transcode``). ``N`` is the block whose
output is read.
"""

from __future__ import annotations

from lens_tui.records import LensError
from lens_tui.records.info import read_hook
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line

from ..files import Activation, Definition, Stored, Weights, read_json
from .parts import Facts, Format, Parts, Source, check_sizes, pick, whole

_ACTIVATIONS: dict[str, Activation] = {"topk": "topk", "groupmax": "groupmax"}


def _recognises(source: Source) -> bool:
    if source.has("encoder.weight", "W_dec"):
        return True
    config = source.config("cfg.json")
    either = source.has("encoder.weight") or source.is_named("sae.safetensors")
    return either and "k" in config and not config.keys() & {"architecture", "hook_name", "metadata"}


def _read(source: Source) -> Parts:
    path = source.file
    config = source.config("cfg.json")
    where = short_path(source.folder)
    if not config:
        raise LensError(f"{where} has no cfg.json, so its k is not known.", "Fetch cfg.json too.")
    if config.get("signed"):
        raise LensError(f"{where} has signed latents, which are not supported.", "Take one without.")
    name = str(config.get("activation") or "topk")
    if name not in _ACTIVATIONS:
        raise LensError(
            f"{where} has the activation {one_line(name, 40)}, which is not supported.", "Supported: topk and groupmax."
        )
    tensors = source.tensors
    w_enc = tensors["W_enc"] if "W_enc" in tensors else pick(tensors, path, "encoder.weight").T
    transcoder = bool(config.get("transcode") or config.get("skip_connection"))
    k = whole(config, "k", f"{where}/cfg.json")
    definition = Definition(activation=_ACTIVATIONS[name], k=k, subtract_b_dec=not config.get("transcode"))
    skip = tensors.get("W_skip")
    weights = Weights(
        w_enc=w_enc,
        w_dec=_like(w_enc, pick(tensors, path, "W_dec", "decoder.weight"), where),
        b_dec=pick(tensors, path, "b_dec", "decoder.bias"),
        vectors={"b_enc": pick(tensors, path, "encoder.bias", "b_enc")},
        w_skip=None if skip is None else skip.T,
    )
    sizes = {"d_in": weights.d_in, "num_latents": weights.width}
    check_sizes(config, f"{where}/cfg.json", sizes, unset=[0])
    return Parts(definition, weights, _facts(source, name, k, transcoder))


def _like(w_enc: Stored, w_dec: Stored, where: str) -> Stored:
    """The decoder as ``(n, d)``. Both orientations are about: the shape decides, not the key."""
    if len(w_enc.shape) != 2 or len(w_dec.shape) != 2:
        raise LensError(f"The weights of {where} are not matrices.", "Fetch the file again.")
    return w_dec.T if w_dec.shape[0] != w_enc.shape[1] and w_dec.shape[1] == w_enc.shape[1] else w_dec


def _facts(source: Source, activation: str, k: int, transcoder: bool) -> Facts:
    facts = Facts()
    facts.say("architecture", f"{activation}_transcoder" if transcoder else activation, "cfg.json")
    facts.say("k", k, "cfg.json k")
    outer = source.folder.parent / "config.json"
    model = read_json(outer).get("model") if outer.is_file() else None
    facts.say("model_name", model if isinstance(model, str) else None, "config.json of the folder above, model")
    folder = source.folder.name
    hook = read_hook(f"model.{folder}", "") if folder.startswith("layers.") else None
    facts.provenance["site"] = f"not known: the folder's name {one_line(folder, 40)} is not a known module"
    if hook is None:
        return facts
    where = f"the folder's name {folder}"
    # A transcoder reads its module's input and gives its output.
    site_in = {"mlp_out": "mlp_in", "resid_post": "resid_pre"}.get(hook.site, "") if transcoder else hook.site
    facts.say("layer", hook.layer, where)
    facts.say("site", site_in, where)
    if transcoder:
        facts.say("layer_out", hook.layer, where)
        facts.say("site_out", hook.site, where)
    return facts


FORMAT = Format("sparsify", _recognises, _read, ("sae.safetensors",))
