"""Load a model by folder, hub id or the bundled name.

What lies in the folder is looked at before mlx-lm opens it, its config.json is
put into mlx-lm's words, and what mlx-lm builds is held against the weights'
shapes before anything is computed.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from lens_tui import demo
from lens_tui.records import LensError
from lens_tui.records.hub_fetch import model_from_hub
from lens_tui.records.info import Dequantize
from lens_tui.records.model_folder import check_sidecars, read_config, read_weights
from lens_tui.records.paths import expanded, settle_temporary
from lens_tui.records.read_files import MAX_TEXT, read_json, regular_size
from lens_tui.records.sanitise import one_line

from .model_config import Understood, understand
from .peft_adapter import is_peft, merge, put_adapter
from .taps import named
from .weights import Held, dequantize, evaluate

OPTIONS = frozenset(
    ["tokenizer_config", "model_config", "adapter_path", "lazy", "return_config", "revision", "trust_remote_code"]
)
AGAIN = "Fetch the model again, or look for another conversion of it."


@dataclass(frozen=True)
class Loaded:
    """A model, its tokenizer, where they were found, and the length up to which mlx-lm computes it as it was made."""

    model: Module
    tokenizer: Any
    path: str
    window: int | None = None
    held: Held | None = None


def load_model(
    name: str, how: Dequantize = "auto", evaluated: bool = True, adapter: str = "", **load_kwargs: Any
) -> Loaded:
    """A model by folder, hub id or ``"demo"``; ``load_kwargs`` are those of ``mlx_lm.load``.

    ``how`` says how its weights are held (:mod:`.weights`); not ``evaluated``, the caller computes them; ``adapter`` is
    a folder of PEFT's or mlx-lm's. Raises :class:`LensError` for all that is no model, or none that mlx-lm computes.
    """
    settle_temporary()
    source = str(demo.model_path()) if name == demo.NAME else name
    folder = expanded(source)
    label = one_line(source, 120)
    try:
        looks_local = source.startswith((".", "/", "~", "\\")) or folder.exists()
    except (OSError, ValueError):  # a name that no file can have
        looks_local = False
    if looks_local and not folder.exists():
        raise LensError(f"There is no folder {label!r}.", "Check the path, or give a hub id such as 'owner/name'.")
    if not looks_local and source.count("/") != 1:
        raise LensError(
            f"There is no model {label!r}: it is neither a folder here nor a hub id.",
            "Give a folder, a hub id such as 'owner/name', or 'demo'.",
        )
    if looks_local and folder.is_file():
        hint = "Give the folder that holds config.json and the weights."
        if folder.suffix == ".gguf":
            hint = "GGUF files are not loaded: look for a safetensors version of the model."
        raise LensError(f"{label} is a file.", hint)
    if unknown := load_kwargs.keys() - OPTIONS:
        raise LensError(
            f"There is no option {one_line(min(unknown), 60)!r} of mlx_lm.load.",
            f"There are {', '.join(sorted(OPTIONS))}.",
        )
    revision = load_kwargs.pop("revision", None)
    where = folder if looks_local else model_from_hub(source, revision=revision)
    lazy = load_kwargs.pop("lazy", False)
    if adapter and not evaluated:
        raise LensError("A model with an adapter is not shared.", "Fuse the adapter first (mlx_lm.fuse).")
    put = os.path.abspath(expanded(adapter)) if adapter else ""
    if adapter and not is_peft(expanded(adapter)):
        load_kwargs["adapter_path"], adapter = str(expanded(adapter)), ""
    found = load_folder(where, label=label, path=str(folder) if looks_local else source, lazy=True, **load_kwargs)
    if adapter:
        put_adapter(found.model, expanded(adapter))
    held = dequantize(found.model, how)
    if adapter:
        merge(found.model)
    for _ in () if lazy or not evaluated else evaluate(found.model):
        pass
    return replace(found, held=replace(held, adapter=put))


def load_folder(
    folder: Path,
    *,
    label: str = "",
    path: str = "",
    tokenizer_config: Mapping[str, Any] | None = None,
    model_config: Mapping[str, Any] | None = None,
    adapter_path: str | None = None,
    lazy: bool = False,
    trust_remote_code: bool = False,
    return_config: bool = False,
) -> Loaded:
    """A model in a folder; the options from ``tokenizer_config`` on are those of ``mlx_lm.load``.

    Args:
        folder: Where ``config.json`` and the weights are.
        label: What the model is called in errors; by default the folder.
        path: What goes on record.
        tokenizer_config: Goes before what the folder says.
        model_config: Goes before ``config.json``.
        adapter_path: A folder of LoRA weights.
        lazy: Leave the weights unevaluated.
        trust_remote_code: Run code that lies in the folder.
        return_config: Taken, and of no effect.

    Raises:
        LensError: For anything that is not a model, or not one that mlx-lm computes.
    """
    del return_config  # there is no place for it in what is given back
    label = label or one_line(str(folder), 120)
    with _explained(label):
        config = {**read_config(folder), **(model_config or {})}
        check_sidecars(folder)
        weights = read_weights(folder)
        own_code = bool(config.get("model_file")) and trust_remote_code  # a class of its own reads it as it likes
        understood = Understood() if own_code else understand(config, weights)
        changes = {**(model_config or {}), **understood.changes}
        with _plain_path(folder) as place:
            from mlx_lm import utils

            build: Any = utils.load_model
            model, own_config = build(
                place,
                lazy,
                model_config=changes,
                get_model_classes=_classes(understood),
                trust_remote_code=trust_remote_code,
            )
        if adapter_path is not None:
            adapt: Any = utils.load_adapters
            model = adapt(model, adapter_path)
            model.eval()
        read: Any = utils.load_tokenizer
        options = {"trust_remote_code": trust_remote_code, **_chat_template(folder), **(tokenizer_config or {})}
        tokenizer = read(folder, options, eos_token_ids=own_config.get("eos_token_id"))
    return Loaded(model, tokenizer, path or str(folder), understood.window)


@contextmanager
def _plain_path(folder: Path) -> Iterator[Path]:
    """The folder by a path that mlx-lm's ``glob`` takes literally: it reads brackets as a pattern."""
    if not glob.has_magic(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lens-tui-") as place:
        link = Path(place) / "model"
        link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link


def _chat_template(folder: Path) -> dict[str, Any]:
    """The chat template where transformers does not look: ``chat_template.json`` or a processor's configuration."""
    if (folder / "chat_template.jinja").exists():
        return {}
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        file = folder / name
        if not file.exists():
            continue
        regular_size(file)
        facts = read_json(file, 4 * MAX_TEXT)
        found = facts.get("chat_template") if isinstance(facts, dict) else None
        if found and name == "tokenizer_config.json":
            return {}
        if isinstance(found, list):  # several, by name
            found = {item["name"]: item["template"] for item in found}
        if found:
            return {"chat_template": found}
    return {}


# -- building it -----------------------------------------------------------


def _classes(understood: Understood) -> Callable[[dict[str, Any]], tuple[Callable[[Any], Module], Any]]:
    """mlx-lm's classes, the model's checked against the weights as soon as both are there."""

    def find(config: dict[str, Any]) -> tuple[Callable[[Any], Module], Any]:
        from mlx_lm import utils

        classes: Any = utils._get_classes
        model_class, args_class = classes(config)

        def build(args: Any) -> Module:
            scaling = config.get("rope_scaling")
            if scaling and getattr(args, "rope_scaling", scaling) is None:
                kind = scaling.get("rope_type") or scaling.get("type")
                raise LensError(
                    f"config.json sets rope_scaling of type {one_line(str(kind), 40)}, and mlx-lm's class for it"
                    " has no such scaling.",
                    AGAIN,
                )
            model: Any = model_class(args)
            if understood.untruncated:
                _untruncate(model, scaling or config.get("rope_parameters") or {}, config)
            _check_when_read(model, config)
            built: Module = model
            return built

        return build, args_class

    return find


def _check_when_read(model: Any, config: Mapping[str, Any]) -> None:
    """Have the model's own ``sanitize``, which mlx-lm calls with the weights, followed by a look at their shapes."""
    own = model.sanitize if hasattr(model, "sanitize") else dict

    def sanitize(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        del model.sanitize
        given = set(weights)
        read: dict[str, mx.array] = own(weights)
        untied = config.get("tie_word_embeddings") is False and "lm_head.weight" in given
        if untied and not any(name.endswith("lm_head.weight") for name in read):
            raise LensError("config.json sets tie_word_embeddings (false), and mlx-lm ties them.", AGAIN)
        _check_shapes(model, read)
        return read

    model.sanitize = sanitize


def _check_shapes(model: Any, weights: Mapping[str, mx.array]) -> None:
    flat: Any = tree_flatten(model.parameters())
    wanted: dict[str, mx.array] = dict(flat)
    for name, value in weights.items():
        place, _, leaf = name.rpartition(".")
        scales = weights.get(f"{place}.scales")
        mine = wanted.get(name)
        if mine is None:
            continue
        if scales is not None and f"{place}.scales" not in wanted:
            if leaf == "weight":
                _check_packed(name, value, scales, mine)
        elif mine.shape != value.shape:
            raise LensError(
                f"config.json does not fit the weights: {one_line(name, 80)} has shape {value.shape}"
                f" where it asks for {mine.shape}.",
                "One of the two belongs to another model; fetch it again.",
            )
        elif mx.issubdtype(mine.dtype, mx.floating) and not mx.issubdtype(value.dtype, mx.floating):
            kind = str(value.dtype).rpartition(".")[2]
            raise LensError(
                f"The weights are stored as {kind} ({one_line(name, 80)}), which mlx-lm would take as they are.",
                "Look for a version in bfloat16, or one converted for MLX.",
            )


def _check_packed(name: str, value: mx.array, scales: mx.array, mine: mx.array) -> None:
    """A quantised matrix is one of the model's, in groups and bits that MLX has: others are a native crash."""
    width, groups, packed = mine.shape[-1], scales.shape[-1], value.shape[-1] * 32
    fits = mine.shape[:-1] == value.shape[:-1] == scales.shape[:-1] and groups and width and packed
    if not fits or width % groups or packed % width or packed // width not in (2, 3, 4, 5, 6, 8):
        raise LensError(
            f"config.json does not fit the weights: {one_line(name, 80)} is quantised for {value.shape[:-1]} rows"
            f" of {groups} groups where it asks for {mine.shape}.",
            "One of the two belongs to another model; fetch it again.",
        )


def _untruncate(model: Any, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """YaRN's frequencies with the ramp between its bounds as they are (``truncate: false``, gpt-oss)."""
    from mlx_lm.models.rope_utils import YarnRoPE

    theta = float(config.get("rope_theta") or scaling.get("rope_theta") or 10000.0)
    original = scaling.get("original_max_position_embeddings", 4096)
    for _, part in named(model):
        if not isinstance(part, YarnRoPE):
            continue
        dims: int = part.dims
        low, high = (
            dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1)
        )
        low, high = max(low, 0), min(high, dims - 1)
        ramp = mx.clip((mx.arange(dims // 2, dtype=mx.float32) - low) / max(high - low, 0.001), 0, 1)
        plain = theta ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)
        part._freqs = 1 / (ramp / (scaling["factor"] * plain) + (1 - ramp) / plain)


# -- errors ----------------------------------------------------------------


@contextmanager
def _explained(label: str) -> Iterator[None]:
    """Whatever mlx-lm and transformers raise is one sentence."""
    try:
        yield
    except LensError as error:
        reason = error.message[:1].lower() + error.message[1:] if error.message.startswith("It") else error.message
        raise LensError(f"{label} cannot be loaded: {reason}", error.hint) from error
    except SystemExit as error:  # mlx-lm's OLMo leaves the process if a package of its own is not there
        raise LensError(
            f"The model {label} cannot be loaded: mlx-lm's code for it needs a package that is not installed.",
            "See what mlx-lm printed, and install that package.",
        ) from error
    except MemoryError as error:
        raise LensError(f"{label} cannot be loaded: it needs more memory than there is.", AGAIN) from error
    except Exception as error:
        raise LensError(f"{label} cannot be loaded: {_plain(error)}.", AGAIN) from error


_WORDS: tuple[tuple[str, str], ...] = (
    (r"Missing (\d+) parameters:\s*(\S+)", r"its weights lack \1 tensors that config.json asks for, \2 among them"),
    (r"Received (\d+) parameters not in model:\s*(\S+)", r"its weights hold \1 tensors that mlx-lm's class for it"
     r" has no place for, \2 among them"),
    (r"__init__\(\) missing \d+ required positional arguments?: (.*)", r"config.json lacks \1"),
    (r"Expected shape (\(.*?\)) but received shape (\(.*?\)) for parameter (\S+)",
     r"config.json does not fit the weights: \3 has shape \2 where it asks for \1"),
    (r"Model type (\S+) not supported", r"mlx-lm does not know the architecture \1"),
    (r"Validation error for field '(\w+)':\s*(?:\w+: )?(?:Field '\w+' )?(.*)", r"\1 in config.json: \2"),
    (r"Unsupported RoPE type (\S+)", r"config.json sets a rope_type, \1, that mlx-lm does not compute"),
    (r"requires importing and running a custom module \((\S+)\)", r"it brings its own code (\1), which is not run"),
)  # fmt: skip


def _plain(error: Exception) -> str:
    """What an error of mlx-lm or transformers says, in words for someone who has only the folder."""
    text = " ".join(str(error).split())
    for pattern, words in _WORDS:
        if found := re.search(pattern, text):
            return one_line(found.expand(words), 200).rstrip(".,")
    if isinstance(error, KeyError):
        return f"its files lack {one_line(text, 80)}"
    if isinstance(error, json.JSONDecodeError):
        return f"one of its files is not valid JSON ({one_line(text, 80)})"
    if isinstance(error, ValueError | ImportError | OSError | RuntimeError) and text:
        return one_line(text, 200).rstrip(".")
    return f"one of its files is not what mlx-lm expects ({one_line(f'{type(error).__name__}: {text}', 160)})".replace(
        ": )", ")"
    )
