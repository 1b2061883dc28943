"""Models and SAEs on this machine: what their folders say of themselves, read without MLX, and what was used lately."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lens_tui import blas, demo
from lens_tui.records import LensError, disk, paths
from lens_tui.records.hub import CachedRepo, cached_repos, is_whole, quiet_hub, remove_files, remove_repo
from lens_tui.records.info import Dequantize, split_place
from lens_tui.records.known_saes import families_of
from lens_tui.records.machine import free_memory, machine_memory
from lens_tui.records.model_folder import no_weights, read_config
from lens_tui.records.paths import expanded
from lens_tui.records.read_files import FileAbsent, read_json
from lens_tui.records.sanitise import one_line

Source = Literal["demo", "cache", "folder", "hub"]
_MAX_INDEX = 64 << 20


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that could be loaded. ``id`` is what ``LoadModel`` takes; strings are safe to show.

    ``nbytes`` is the size of its weights on disk; 0 or ``""`` mean unknown (a
    hub id not downloaded yet). ``problem`` says in one sentence why it cannot be
    loaded, and is empty if nothing is known against it. ``kv_bytes`` is what one
    token of one sequence takes in the KV cache, an upper bound for models with
    sliding windows or shared caches. ``float32_bytes`` is what the weights would
    take in float32, 0 if they are so already or it is not known. ``partial`` is how
    many bytes came of a download that broke off and will be gone on with.
    """

    id: str
    name: str
    source: Source
    path: str = ""
    nbytes: int = 0
    architecture: str = ""
    n_layers: int = 0
    d_model: int = 0
    vocab_size: int = 0
    context: int = 0
    quantization: str = ""
    kv_bytes: int = 0
    problem: str = ""
    used: float = 0.0
    float32_bytes: int = 0
    partial: int = 0


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes a comparison will need, next to what the machine has; ``float32``: its weights are turned into that."""

    weights: int
    cache: int
    capture: int
    logits: int
    machine: int
    float32: bool = False

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.cache + self.capture + self.logits

    @property
    def fits(self) -> bool:
        """Whether it is within what MLX may use of this machine."""
        return self.total <= self.machine


def read_model_folder(folder: Path, *, model_id: str = "", source: Source = "folder") -> ModelEntry:
    """What ``folder`` holds. Raises :class:`LensError` if it is not a model mlx-lm could load.

    A model that is recognised but cannot be loaded (shards missing, architecture
    unknown to mlx-lm) is returned with ``problem`` set.
    """
    config = read_config(folder)
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)
    architecture = one_line(str(config.get("model_type", "")), 40)
    nbytes, problem = _weights(folder)
    return ModelEntry(
        id=model_id or str(folder),
        name=one_line(model_id or folder.name, 80),
        source=source,
        path=str(folder),
        nbytes=nbytes,
        architecture=architecture,
        n_layers=_count(text, "num_hidden_layers", "n_layers", "n_layer", "num_layers"),
        d_model=_count(text, "hidden_size", "d_model", "n_embd", "dim", "model_dim"),
        vocab_size=_count(text, "vocab_size") or _count(config, "vocab_size"),
        context=_count(text, "max_position_embeddings", "max_seq_len", "n_positions", "max_sequence_length"),
        quantization=describe_quantization(config),
        kv_bytes=kv_bytes_per_token(text),
        problem=problem or _unsupported(architecture, config),
        float32_bytes=_float32_bytes(config, text, nbytes),
    )


def describe_quantization(config: Mapping[str, Any]) -> str:
    """For example ``8-bit, groups of 64``; empty for a model that is not quantised."""
    found = config.get("quantization") or config.get("quantization_config")
    if not isinstance(found, dict):
        return ""
    if "bits" not in found:
        return one_line(str(found.get("quant_method", "quantised")), 30)
    mode = found.get("mode", "affine")
    name = f"{found['bits']}-bit" if mode == "affine" else f"{mode} {found['bits']}-bit"
    mixed = ", mixed" if any(isinstance(value, dict) for value in found.values()) else ""
    return one_line(f"{name}, groups of {found.get('group_size', 64)}{mixed}", 40)


_CACHED = 2
"""Bytes of a number in a KV cache."""


def kv_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Bytes one token takes in the KV cache of all layers together, in 16 bits; 0 if the config does not say."""
    layers = _count(config, "num_hidden_layers", "n_layers", "n_layer", "num_layers")
    if rank := _count(config, "kv_lora_rank"):  # multi-head latent attention keeps one compressed vector
        return layers * (rank + _count(config, "qk_rope_head_dim")) * _CACHED
    heads = _count(config, "num_attention_heads", "n_head", "n_heads")
    kv_heads = _count(config, "num_key_value_heads", "num_kv_heads") or heads
    width = _count(config, "hidden_size", "d_model", "n_embd", "dim")
    head_dim = _count(config, "head_dim") or (width // heads if heads else 0)
    return 2 * layers * kv_heads * head_dim * _CACHED


def estimate_memory(
    entry: ModelEntry,
    *,
    tokens: int = 1024,
    arms: int = 1,
    captured_layers: int = 0,
    dequantize: Dequantize = "auto",
) -> MemoryEstimate:
    """What comparing ``arms`` arms over ``tokens`` tokens needs, with ``captured_layers`` layers kept as float32.

    ``dequantize`` is how the model would be loaded.
    """
    capture = captured_layers * tokens * arms * entry.d_model * 4
    logits = arms * entry.vocab_size * 4 * 4  # logits, log-softmax and the sampler's working copies, float32
    wide = bool(entry.float32_bytes) and blas.in_float32(dequantize, entry.float32_bytes, free_memory())
    weights, kv_bytes = (entry.float32_bytes, 2 * entry.kv_bytes) if wide else (entry.nbytes, entry.kv_bytes)
    return MemoryEstimate(weights, kv_bytes * tokens * arms, capture, logits, machine_memory(), wide)


def _float32_bytes(config: Mapping[str, Any], text: Mapping[str, Any], nbytes: int) -> int:
    """Near enough: the scales of a quantised model are counted, what it leaves unquantised is not."""
    kind = next(
        (str(found) for found in (text.get("dtype"), text.get("torch_dtype"), config.get("torch_dtype")) if found), ""
    )
    quantized = config.get("quantization")
    if not isinstance(quantized, dict) or not isinstance(quantized.get("bits"), int):
        return nbytes * 2 if kind in ("bfloat16", "float16") else 0
    scales = 64 if kind == "float32" else 32  # bits of a group's scale and bias
    if quantized.get("mode", "affine") != "affine":
        scales = 8
    group = quantized.get("group_size", 64)
    bits = quantized["bits"] + scales / group if isinstance(group, int) and group > 0 else quantized["bits"]
    return int(nbytes * 32 / bits) if bits > 0 else 0


@cache
def supported_architectures() -> frozenset[str]:
    """The ``model_type`` names mlx-lm knows, found without importing it; empty if that is not known."""
    spec = find_spec("mlx_lm")
    if spec is None or spec.origin is None:
        return frozenset()
    home = Path(spec.origin).parent
    names = {file.stem for file in (home / "models").glob("*.py")}
    names |= {folder.parent.name for folder in (home / "models").glob("*/__init__.py")}
    return frozenset(names | _renamed(home / "utils.py")) if names else frozenset()


def _renamed(utils: Path) -> set[str]:
    try:
        tree = ast.parse(utils.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "MODEL_REMAPPING" for t in node.targets):
            return set(ast.literal_eval(node.value))
    return set()


def _unsupported(architecture: str, config: Mapping[str, Any]) -> str:
    known = supported_architectures()
    if not architecture:
        return "Its config.json names no model_type."
    if config.get("model_file"):
        return "It brings its own code (model_file), which is not run."
    if known and architecture not in known:
        return f"mlx-lm does not know the architecture {architecture}."
    return ""


def _weights(folder: Path) -> tuple[int, str]:
    files = {file.name: file for file in folder.glob("model*.safetensors")}
    if not files:
        return 0, no_weights(folder)
    try:
        nbytes = sum(file.stat().st_size for file in files.values())
        index = read_json(folder / "model.safetensors.index.json", _MAX_INDEX)
        wanted = set(index["weight_map"].values())
    except (FileAbsent, FileNotFoundError):
        return sum(file.stat().st_size for file in files.values() if file.exists()), ""
    except (LensError, OSError, KeyError, TypeError, AttributeError):
        return nbytes, "Its model.safetensors.index.json cannot be read."
    missing = len(wanted - set(files))
    return nbytes, f"{missing} of its {len(wanted)} weight files are missing." if missing else ""


def _count(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40:
            return value
    return 0


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")


@dataclass(frozen=True, slots=True)
class SAEEntry:
    """An SAE that could be loaded: ``path`` is what ``LoadSAE`` takes. Strings are safe to show."""

    path: str
    name: str
    source: str
    nbytes: int = 0


def list_models(cache_dir: Path | None = None, folders: Sequence[str | Path] = ()) -> list[ModelEntry]:
    """The bundled demo, then models in the Hugging Face cache and folders used lately, newest first.

    ``folders`` are looked through for models one level down. ``cache_dir`` is
    by default the user's own. Reads only the disk; a few milliseconds
    for each model, so call it off the screen's thread.
    """
    found = [*cached_models(cache_dir), *_folders(folders)]
    found.sort(key=lambda entry: entry.used, reverse=True)
    return [entry for entry in (demo_model(), *found) if entry is not None]


def demo_model() -> ModelEntry | None:
    """The bundled model, or ``None`` in an installation without it."""
    try:
        return read_model_folder(demo.model_path(), model_id=demo.NAME, source="demo")
    except LensError:
        return None


def cached_models(cache_dir: Path | None = None) -> list[ModelEntry]:
    """Language models in the Hugging Face cache: those with a config.json and safetensors weights."""
    entries = (_cached_model(repo) for repo in _repos(cache_dir))
    return sorted((entry for entry in entries if entry), key=lambda entry: entry.used, reverse=True)


def check_model(typed: str) -> ModelEntry:
    """What someone typed as a model: ``demo``, a folder, or a hub id (cached or not).

    A folder wins over a hub id of the same spelling. Raises :class:`LensError`
    with one sentence if it is none of these or cannot be loaded.
    """
    text = typed.strip()
    if text == demo.NAME:
        entry = demo_model()
        if entry is None:
            raise LensError("This installation has no bundled model.", "Reinstall mlx-lens-tui.")
        return entry
    folder = expanded(text)
    if text and folder.is_dir():
        entry = read_model_folder(folder.resolve())
        if entry.problem:
            raise LensError(f"{one_line(str(folder), 120)} cannot be loaded.", entry.problem)
        return entry
    if folder.is_file():
        raise LensError(f"{one_line(text, 120)} is a file.", "Give the folder that holds config.json and the weights.")
    if not _HUB_ID.fullmatch(text) or ".." in text or "--" in text:
        hint = "Give a folder, a hub id like org/name, or demo."
        raise LensError(f"There is no model at {one_line(text, 120) or 'an empty path'}.", hint)
    cached = next((entry for entry in cached_models() if entry.id == text), None)
    return cached or ModelEntry(id=text, name=one_line(text, 80), source="hub")


def list_saes(entry_or_id: str, cache_dir: Path | None = None) -> list[SAEEntry]:
    """SAEs on this disk for a model, by its id: bundled or trained here, those of known families in the hub's cache.

    A Gemma Scope repository counts if its name contains the model's (``gemma-3-1b``
    in ``gemma-scope-2-1b-it``). Whether an SAE fits is measured after loading.
    """
    own = _trained_here(entry_or_id)
    if entry_or_id == demo.NAME:
        bundled = demo.sae_paths().items()
        return [*(SAEEntry(str(path), one_line(name), "demo", _size(path)) for name, path in bundled), *own]
    known = {family.repo for family in families_of(entry_or_id)}
    repos = sorted(_repos(cache_dir), key=lambda repo: repo.repo_id)
    fitting = [repo for repo in repos if repo.repo_id in known or _same_family(repo.repo_id, entry_or_id)]
    return [*own, *(sae for repo in fitting for sae in _cached_saes(repo))]


def saes_at_hub(model: str, here: Sequence[SAEEntry] = ()) -> list[SAEEntry]:
    """SAEs that the hub has for a model of a known family, less those that are ``here``. The hub is not asked."""
    places = (f"{family.repo}/{place}" for family in families_of(model) for place in family.places)
    names = {sae.name for sae in here}
    return [SAEEntry(place, place, "hub") for place in places if place not in names]


def remove(entry: ModelEntry | SAEEntry) -> int:
    """Take a model or SAE off this disk or, if it is a folder of the user's, off the list; the bytes that are free.

    Raises :class:`LensError` for what is not in the hub's cache and not on the list of recent models.
    """
    if isinstance(entry, SAEEntry):
        if entry.source != "cache":
            raise LensError(f"{entry.name} is not in the hub's cache.", "Only what was fetched is removed here.")
        place = Path(entry.path)
        return remove_files([place] if place.is_file() else [file for file in place.rglob("*") if not file.is_dir()])
    if entry.source == "demo":
        raise LensError("The bundled model is part of the app.", "Nothing was removed.")
    if entry.source != "folder":
        forget_model(entry.id)
        return remove_repo(entry.id)
    if not forget_model(entry.id):
        raise LensError(
            f"{entry.name} is in a folder that your settings name.", "Take that folder out of the settings."
        )
    return 0


def named_sae(text: str) -> tuple[str, int | None, str | None]:
    """Where the SAE is that someone names, as path, layer and site (``None`` where they are left to its files).

    A name is a path, that of an SAE trained here or of a bundled one, or ``org/name/folder`` at the hub;
    ``@LAYER:SITE`` may follow it.
    """
    name, layer, site = split_place(text)
    own = paths.saes_folder() / name
    inside = bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts
    if inside and not Path(name).exists() and own.is_dir():
        return str(own), layer, site
    return str(demo.sae_paths().get(name, name)), layer, site


def _trained_here(model: str) -> list[SAEEntry]:
    """The SAEs in the user's folder that say they were trained on this model."""
    names = {model, Path(model).name}
    found = []
    folder = paths.saes_folder()
    # The transcoders of a set are each in a folder of its layer.
    for file in sorted([*folder.glob("*/config.json"), *folder.glob("*/layer_*/config.json")]):
        try:
            config = read_json(file)
        except LensError:
            continue
        says = config.get("model_name") if isinstance(config, dict) else None
        if isinstance(says, str) and says in names and (file.parent / "params.safetensors").is_file():
            name = one_line(file.parent.relative_to(folder).as_posix(), 120)
            found.append(SAEEntry(str(file.parent), name, "own", _size(file.parent)))
    return found


def _repos(cache_dir: Path | None) -> list[CachedRepo]:
    """What is in the Hugging Face cache; nothing if there is none."""
    quiet_hub()
    return cached_repos(cache_dir)


_SAE_WEIGHTS = ("params.safetensors", "params.npz", "sae.safetensors", "final.safetensors", "*.sae.pt")


def _cached_saes(repo: CachedRepo) -> list[SAEEntry]:
    found = []
    for file in sorted({file for name in _SAE_WEIGHTS for file in repo.snapshot.glob(f"**/{name}") if file.is_file()}):
        place = file if file.suffix == ".pt" else file.parent
        if file.name == "final.safetensors":  # Llama Scope's are in a folder below that of the SAE
            place = file.parents[1]
        name = place.relative_to(repo.snapshot).as_posix()
        found.append(SAEEntry(str(place), one_line(f"{repo.repo_id}/{name}", 120), "cache", _size(file.parent)))
    return found


def _same_family(repo_id: str, model: str) -> bool:
    # gemma-scope-2-1b-it is of gemma-3-1b-it; gemma-scope-2b-pt-res of gemma-2-2b.
    scope = re.fullmatch(r"google/gemma-scope-(2-)?(\d+[bm])(?:-(pt|it))?.*", repo_id)
    name = re.search(r"gemma-(\d)-(\d+[bm])(?:-(pt|it))?", model.lower())
    if scope is None or name is None:
        return False
    generation = "3" if scope[1] else "2"
    # The first Gemma Scope was trained on base models and is used on the tuned ones too.
    same_tuning = generation == "2" or (scope[3] or "pt") == (name[3] or "pt")
    return generation == name[1] and scope[2] == name[2] and same_tuning


def _cached_model(repo: CachedRepo) -> ModelEntry | None:
    weights = list(repo.snapshot.glob("model*.safetensors"))
    if not weights and not repo.partial:
        return None
    try:
        entry = read_model_folder(repo.snapshot, model_id=repo.repo_id, source="cache")
    except LensError:
        return None
    if not entry.architecture:
        return None
    if not is_whole(repo.snapshot):  # what is lacking is fetched when it is loaded
        came = entry.nbytes + repo.partial
        entry = replace(entry, source="hub", path="", nbytes=0, float32_bytes=0, partial=came)
        entry = replace(entry, problem=_unsupported(entry.architecture, {}))
    return replace(entry, used=repo.used)


def _folders(folders: Sequence[str | Path]) -> list[ModelEntry]:
    named = [Path(name) for name in recent_models() if Path(name).is_absolute()]
    inside = [place for folder in folders for place in _subfolders(expanded(folder))]
    entries = []
    for folder in dict.fromkeys(named + inside):
        try:
            entries.append(replace(read_model_folder(folder), used=folder.stat().st_mtime))
        except (LensError, OSError):
            continue
    return entries


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(place.resolve() for place in folder.iterdir() if (place / "config.json").is_file())
    except OSError:
        return []


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


_RECENT = 20


def recent_models(path: Path | None = None) -> list[str]:
    """What was loaded lately (hub ids, folders, ``demo``), newest first; a list that cannot be read counts as empty."""
    try:
        found = read_json(path or paths.recent_file())
    except LensError:
        return []
    names = found.get("models") if isinstance(found, dict) else None
    return [name for name in names if isinstance(name, str)][:_RECENT] if isinstance(names, list) else []


def forget_model(model: str) -> bool:
    """Take ``model`` off the list; whether it was on it."""
    names = recent_models()
    if model in names:
        disk.write_json(paths.recent_file(), {"models": [name for name in names if name != model]})
    return model in names


def remember_model(model: str, path: Path | None = None) -> None:
    """Put ``model`` at the head of the list."""
    names = [model, *(name for name in recent_models(path) if name != model)]
    disk.write_json(path or paths.recent_file(), {"models": names[:_RECENT]})
