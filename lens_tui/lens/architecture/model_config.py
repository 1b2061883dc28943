"""What a model's config.json says, in the words of mlx-lm's class for it.

mlx-lm's classes take the fields that they know and drop the others without a word, so a field under a newer name, or
one that mlx-lm does not compute, makes another model than the one that was trained. Here every field is read by that
class, put into its words, or the load is refused naming the field. What a field is when config.json leaves it out, and
which fields there are, is taken from transformers' own configuration classes, which the files are written by.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
import sys
import typing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any

from lens_tui.records import LensError
from lens_tui.records.model_folder import WeightHeaders
from lens_tui.records.sanitise import one_line

Facts = dict[str, Any]
HINT = "Use a model that mlx-lm supports whole, or give model_config with a value that it does."
HARMLESS = re.compile(
    r"^_|_token_id$|_token_index$|dropout|drop$|^dtype$|dtype|initializer|init_|_init$|^use_cache$|^pretraining_tp$|"
    r"aux_loss|router_jitter|^output_|^return_|_version$|^architectures$|^auto_map$|^id2label$|^label2id$|"
    r"^max_position_embeddings$|^n_ctx$|^n_positions$|_prob$|^model_type$|^torchscript$|^is_decoder$|problem_type|"
    r"summary_|^training|_config$|^fp32|^gradient|^num_labels$|^use_mamba_kernels$|^chunk_size$|mamba_chunk_size|"
    r"^num_nextn_predict_layers$|^mtp_|_mtp|^rescale_prenorm|^residual_in_fp32$|^time_step_(min|max|floor|limit|rank)$|"
    r"^max_window_layers$|^use_sliding_window$|^transformers|^num_logits_to_keep$|^cache_implementation$|"
    r"^block_size$|^model_max_length$|^max_batch_size$|^ep_size$|tokenizer|^tie_encoder|^vocab_size$|_loss|^quantization|^ignore_"
)
"""Fields that change no logit, or whose effect on the weights' shapes is checked with them."""
ROPE = ("rope_parameters", "rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "rotary_pct")
BASES = ("rope_theta", "rotary_emb_base")
WINDOWS = ("sliding_window", "attention_window_size", "window_size", "sliding_window_size")
PATTERNS = ("sliding_window_pattern", "full_attention_interval")
LOCAL_THETA = ("rope_local_base_freq", "rope_local_theta", "swa_rope_theta")
ALIKE = ({"silu", "swish"}, {"gelu_pytorch_tanh", "gelu_new", "gelu_fast"})
"""Activations of several names."""


@dataclass
class Understood:
    """What is to be changed in config.json for mlx-lm, and the length up to which mlx-lm then computes the model."""

    changes: Facts = field(default_factory=dict)
    window: int | None = None
    untruncated: bool = False
    """YaRN's ramp between its bounds as they are, which mlx-lm rounds to whole numbers."""

    def narrow(self, window: int) -> None:
        """Beyond this length mlx-lm computes something else."""
        self.window = window if self.window is None else min(self.window, window)


def understand(config: Mapping[str, Any], weights: WeightHeaders | None = None) -> Understood:
    """This config.json in mlx-lm's words. Raises :class:`LensError` naming what it would not compute.

    ``weights`` bound the counts, so that no millions of layers are built.
    """
    for key in ("text_config", "quantization", "quantization_config"):
        if not isinstance(config.get(key), dict | None):
            raise LensError(f"The {key} in config.json is not a JSON object.", "Fetch the model again.")
    found = Understood()
    args = _args_class(config)
    text = config.get("text_config")
    inner = _text_class(args, text) if isinstance(text, dict) else None
    _check_values(_Part(config, args, None, weights, ""))  # before transformers makes lists of so many layers
    if isinstance(text, dict) and inner is not None:
        _check_values(_Part(text, inner, None, weights, "text_config."))
    reference = _reference(config)
    if isinstance(text, dict) and inner is not None:
        _check(_Part(text, inner, _inner_reference(reference, config, text), weights, "text_config."), found)
        if found.changes:
            found.changes = {"text_config": {**text, **found.changes}}
        return found
    inner = _text_class(args, config) if "text_config" in {item.name for item in fields(args)} else None
    part = _Part(config, inner or args, _inner_reference(reference, config, config), weights, "")
    _check(part, found)
    return found


@dataclass
class _Part:
    """A configuration, or the language model's inside one, with mlx-lm's class for it and transformers' reading."""

    given: Mapping[str, Any]
    args: type[Any]
    reference: Any
    weights: WeightHeaders | None
    prefix: str

    @property
    def names(self) -> frozenset[str]:
        """The fields of mlx-lm's class."""
        return frozenset(item.name for item in fields(self.args))

    def reads(self, name: str) -> bool:
        """Whether mlx-lm's class has the field and its code uses it."""
        return name in self.names and name in _used(self.args.__module__)

    def value(self, name: str) -> Any:
        """What a field is by transformers' reading, or by the file alone where transformers does not know the model."""
        if self.reference is None:
            return self.given.get(name)
        return getattr(self.reference, name, None) if name in _defaults(self.reference) else None

    def refuse(self, name: str, why: str = "") -> LensError:
        """The error for a field that mlx-lm's class would leave out."""
        kind = one_line(str(self.given.get("model_type", "")), 40) or self.args.__module__.rpartition(".")[2]
        value = one_line(repr(self.given.get(name.split(".")[0])), 60)
        reason = why or f"mlx-lm's {kind} does not compute it"
        return LensError(f"config.json sets {self.prefix}{name} ({value}), and {reason}.", HINT)


def _check(part: _Part, found: Understood) -> None:
    _fill(part, found)
    _rope(part, found)
    _sliding(part, found)
    _check_unread(part, found)
    _check_values(_Part({**part.given, **found.changes}, part.args, None, None, part.prefix))


# -- classes ---------------------------------------------------------------


def _args_class(config: Mapping[str, Any]) -> type[Any]:
    from mlx_lm import utils

    kind = config.get("model_type")
    label = one_line(str(kind), 40)
    if not isinstance(kind, str) or not kind:
        raise LensError("config.json names no model_type.", "Fetch the model again.")
    try:
        if not re.fullmatch(r"[\w.-]{1,80}", kind):
            raise ValueError(kind)
        find: Any = utils._get_classes
        args: type[Any] = find(dict(config))[1]
    except (ValueError, AttributeError, KeyError, TypeError, ImportError) as error:
        hint = "A newer mlx-lm may; or look for a model of an architecture in docs/architectures.md."
        raise LensError(f"mlx-lm does not know the architecture {label}.", hint) from error
    return args


def _text_class(args: type[Any], text: Mapping[str, Any]) -> type[Any] | None:
    """The class that a multimodal wrapper makes of its language model's configuration."""
    makes = re.compile(r"((?:\w+\.)?\w+)\.from_dict\(\s*(?:self|args|config)\.text_config")
    homes = [args.__module__, *_imported(args.__module__)]
    built = [_resolve(home, place) for home in homes for place in dict.fromkeys(makes.findall(_source(home)))]
    classes = [item for item in built if isinstance(item, type)]
    own = [item for item in classes if item.__module__.endswith(f".{text.get('model_type')}")]
    return next(iter(own or classes[::-1]), None)


def _resolve(module: str, place: str) -> Any:
    here: Any = sys.modules[module]
    for name in place.split("."):
        here = getattr(here, name, None)
    return here


@cache
def _source(module: str) -> str:
    return inspect.getsource(sys.modules[module])


def _imported(module: str) -> list[str]:
    """The other modules of mlx-lm's models that a module builds on."""
    names = re.findall(r"^from \.(\w+) import|^from \. import (\w+)", _source(module), re.MULTILINE)
    others = dict.fromkeys(f"mlx_lm.models.{one or two}" for one, two in names)
    return [other for other in others if other in sys.modules and other != module]


@cache
def _used(module: str) -> frozenset[str]:
    """The attributes that a module of mlx-lm's models, or one that it builds on, reads."""
    text = _source(module)
    texts = [text, *(_source(other) for other in _imported(module))]
    found = {name for part in texts for name in re.findall(r"\.(\w+)", part)}
    return frozenset(found | set(re.findall(r"getattr\([^,]+, [\"'](\w+)[\"']", text)))


def _reference(config: Mapping[str, Any]) -> Any:
    """transformers' own reading of a configuration, or ``None`` where it has none for this model."""
    with _hushed():
        from transformers import CONFIG_MAPPING

        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING or _too_deep(config):
            return None
        try:
            return CONFIG_MAPPING[kind].from_dict(deepcopy(dict(config)))
        except Exception:  # its validation is its own; what mlx-lm makes of the file is checked here
            return None


def _too_deep(config: Mapping[str, Any]) -> bool:
    """Whether any part of a model, one that is not loaded too, has more layers than lists can be made for."""
    found = [value for name, value in config.items() if "layer" in name or name == "depth"]
    inner = [_too_deep(value) for value in config.values() if isinstance(value, dict)]
    return any(inner) or any(isinstance(value, int | float) and not value < 1e6 for value in found)


def _inner_reference(reference: Any, config: Mapping[str, Any], text: Mapping[str, Any]) -> Any:
    if reference is None or (text is not config and not hasattr(reference, "text_config")):
        return _reference(text)
    inner = reference.get_text_config()
    return inner if inner is not None else reference


@contextmanager
def _hushed() -> Iterator[None]:
    """transformers' remarks on a configuration are not for the terminal."""
    log = logging.getLogger("transformers")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _defaults(reference: Any) -> Facts:
    """What transformers' class assumes when config.json does not say."""
    kind: Any = type(reference)
    return _usual(kind)


@cache
def _usual(kind: Any) -> Facts:
    with _hushed(), suppress(Exception):  # a class that cannot be made of nothing
        usual: Facts = kind().to_dict()
        return usual
    return {}


# -- values ----------------------------------------------------------------

_COUNT = re.compile(r"^(num|n)_(?!positions|ctx)|_heads$|_layers$|_experts$")
_SIZE = re.compile(
    r"(hidden|intermediate|vocab|ffn|inner).*size$|^(d_model|n_embd|dim|model_dim|hidden_dim)$|_(dims?|rank)$"
)
_FIRST = ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
          "intermediate_size", "d_model", "n_embd", "n_head", "n_layer", "n_layers", "n_heads")  # fmt: skip
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_transformer_layers")
_UNBOUNDED = re.compile(r"limit|clip|time_step|_max$")


def _check_values(part: _Part) -> None:
    args: Any = part.args
    hints = _hints(args)
    for name in part.names & part.given.keys():
        value = part.given[name]
        if value is not None:
            _check_value(part, name, value, hints.get(name, Any))
    width, heads = part.given.get("hidden_size"), part.given.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and width < heads and part.given.get("head_dim") is None:
        raise part.refuse("hidden_size", f"it has {heads} heads")
    for name in ("rope_scaling", "rope_parameters"):
        _check_rope_values(part, name, part.given.get(name))
    for name in ("quantization", "quantization_config"):
        _check_quantization(part, name, part.given.get(name))


@cache
def _hints(args: Hashable) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(args)
    except Exception:  # annotations that cannot be evaluated say nothing
        return {}


def _check_value(part: _Part, name: str, value: Any, hint: Any) -> None:
    union = typing.get_origin(hint) in (typing.Union, UnionType)
    kinds = {kind for kind in (typing.get_args(hint) if union else (hint,)) if kind is not type(None)}
    if isinstance(value, list) and kinds <= {int, float} and all(isinstance(item, int | float) for item in value):
        return  # one a layer
    number, counted = isinstance(value, int | float), bool(_COUNT.search(name) or _SIZE.search(name))
    if kinds <= {int, float} and (not number or (isinstance(value, bool) and (counted or kinds == {float}))):
        raise part.refuse(name, "it must be a number")
    if kinds == {bool} and value not in (0, 1):
        raise part.refuse(name, "it must be true or false")
    if kinds == {str} and not isinstance(value, str) and name not in PATTERNS:
        raise part.refuse(name, "it must be a text")
    if not number:
        return
    _check_number(part, name, value)
    if counted and kinds == {int} and value != value // 1:
        raise part.refuse(name, "it must be a whole number")
    if kinds == {int} or counted:
        _check_count(part, name, value)


def _check_number(part: _Part, name: str, value: float) -> None:
    if not math.isfinite(value) and not _UNBOUNDED.search(name):
        raise part.refuse(name, "a model of it gives NaN")
    if ("theta" in name or name in ("rope_local_base_freq", "rotary_emb_base")) and not 1 <= value < 1e15:
        raise part.refuse(name, "a base of rotary positions is 1 or more")
    if re.search(r"(^|_)(eps|epsilon)$", name) and not 0 <= value < 1:
        raise part.refuse(name, "it must be small and not negative")
    if re.search(r"^(final|attn)_logit_softcap|^logits_soft_cap|^logits_scaling$|^query_pre_attn", name) and value <= 0:
        raise part.refuse(name, "it must be more than 0")
    if name in ("partial_rotary_factor", "rotary_pct") and not 0 <= value <= 1:
        raise part.refuse(name, "it is a part of 1")


def _check_count(part: _Part, name: str, value: float) -> None:
    if not -(1 << 31) <= value < 1 << 31:
        raise part.refuse(name, "no model is that large")
    if not (_COUNT.search(name) or _SIZE.search(name)):
        return
    if value < (1 if name in _FIRST else 0):
        raise part.refuse(name, "it must be 1 or more" if name in _FIRST else "it must not be negative")
    if part.weights is None:
        return
    layers = part.weights.n_layers
    if name in _LAYERS and layers and value > 2 * layers + 8:
        raise part.refuse(name, f"the weights have {layers} blocks")
    if value > 4 * part.weights.largest:
        raise part.refuse(name, f"the weights have nothing larger than {part.weights.largest}")


def _check_rope_values(part: _Part, name: str, value: Any) -> None:
    if not isinstance(value, dict):
        if value is not None:
            raise part.refuse(name, "it must be an object")
        return
    for key, item in value.items():
        if isinstance(item, dict):
            _check_rope_values(part, name, item)
        numbers = item if isinstance(item, list) else [item]
        if key == "mrope_section" or isinstance(item, bool):
            continue
        for number in numbers:
            if not isinstance(number, int | float):
                continue
            where = f"{name}.{one_line(str(key), 40)}"
            if not math.isfinite(number) or abs(number) > 1e15:
                raise part.refuse(where, "a model of it gives NaN")
            if key == "rope_theta" and number < 1:
                raise part.refuse(where, "a base of rotary positions is 1 or more")
            if key in ("factor", "original_max_position_embeddings", "short_factor", "long_factor") and number <= 0:
                raise part.refuse(where, "it must be more than 0")


def _check_quantization(part: _Part, name: str, value: Any) -> None:
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if isinstance(item, dict) and key not in ("config_groups", "quantization"):
            _check_quantization(part, name, item)
        if key in ("bits", "group_size") and item is not None and name == "quantization":
            known = (2, 3, 4, 5, 6, 8) if key == "bits" else (16, 32, 64, 128)
            if type(item) is not int or item not in known:
                raise part.refuse(f"{name}.{key}", f"MLX has {', '.join(map(str, known))}")


# -- what is left out --------------------------------------------------------


def _fill(part: _Part, found: Understood) -> None:
    """Fields that config.json leaves out are what transformers' class says, where mlx-lm's class says otherwise."""
    for item in fields(part.args):
        name, required = item.name, item.default is item.default_factory is MISSING
        if name in part.given or name in ROPE or (name in ("model_type", "tie_word_embeddings") and part.prefix):
            continue
        value = getattr(part.reference, name, None)
        if value is None and required and not part.reads(name):
            found.changes[name] = None  # asked for and never used: GPT-2's n_ctx, which transformers 5 does not write
        if not isinstance(value, int | float | str | bool | list) or name in ("head_dim", "layer_types"):
            continue
        if isinstance(value, list) and len(value) != part.given.get("num_hidden_layers"):
            continue  # of a model of the usual number of layers
        if required or value != item.default:
            found.changes[name] = value


# -- rotary positions --------------------------------------------------------


def _rope(part: _Part, found: Understood) -> None:
    """``rope_parameters`` of transformers 5, and bases that config.json leaves out, as mlx-lm's class has them."""
    given = part.given.get("rope_parameters")
    known = getattr(part.reference, "rope_parameters", None) or given
    if not isinstance(known, dict):
        _rope_unread(part)
    else:
        by_layer = {kind: item for kind, item in known.items() if isinstance(item, dict)}
        whole = by_layer.get("full_attention") or next(iter(by_layer.values()), None) or known
        sliding = next((item for kind, item in by_layer.items() if kind != "full_attention"), whole)
        new = isinstance(given, dict) and bool(given)
        if not new and "rope_parameters" in part.names and _needs_rope(part.args):
            found.changes["rope_parameters"] = known
        if new:
            _of_transformers_5(part, found, whole, sliding)
        elif not any(name in part.given for name in (*BASES, *LOCAL_THETA)):
            _bases(part, found, whole.get("rope_theta"), sliding.get("rope_theta"))
            _rope_unread(part)
    scaling = found.changes.get("rope_scaling", part.given.get("rope_scaling"))
    if isinstance(scaling, dict) and part.reads("rope_scaling"):
        _fit_scaling(part, found, scaling)


def _needs_rope(args: type[Any]) -> bool:
    known = [item for item in fields(args) if item.name == "rope_parameters"]
    return any(item.default is item.default_factory is MISSING for item in known)


def _bases(part: _Part, found: Understood, theta: Any, local: Any) -> tuple[bool, bool]:
    """Put the bases where mlx-lm's class has them; whether there is a place for that of all layers, of the sliding."""
    target = next((name for name in BASES if part.reads(name)), None)
    inner = next((name for name in LOCAL_THETA if part.reads(name)), None)
    if target is not None and theta is not None:
        found.changes[target] = int(theta) if target == "rotary_emb_base" and theta == int(theta) else theta
    if inner is not None and local is not None:
        found.changes[inner] = local
    return target is not None, inner is not None


def _of_transformers_5(part: _Part, found: Understood, whole: Facts, sliding: Facts) -> None:
    own = part.reads("rope_parameters")  # the class takes it as it is
    theta, local = whole.get("rope_theta"), sliding.get("rope_theta")
    placed, placed_local = _bases(part, found, theta, local)
    if not placed and not own and theta not in (None, 10000.0) and _rotates(part):
        raise part.refuse("rope_parameters.rope_theta")
    if local != theta and not placed_local and not own:
        raise part.refuse("rope_parameters", "mlx-lm has one rope_theta for all layers of it")
    share = whole.get("partial_rotary_factor")
    target = next((name for name in ("partial_rotary_factor", "rotary_pct") if part.reads(name)), None)
    if target is not None and share is not None:
        found.changes[target] = share
    elif share is not None and not own and share not in (1.0, _default_share(part)):
        raise part.refuse("rope_parameters.partial_rotary_factor")
    plain = (kind := _kind(whole)) in ("default", "mrope")
    if not plain and not own and sliding is not whole and _kind(sliding) != "default":
        raise part.refuse("rope_parameters", "mlx-lm scales the positions of its full layers only")
    if part.reads("rope_scaling"):
        rest = {key: value for key, value in whole.items() if key not in ("rope_theta", "partial_rotary_factor")}
        found.changes["rope_scaling"] = None if plain else {**rest, "type": kind, "rope_type": kind}
    elif not plain and not own:
        raise part.refuse("rope_parameters.rope_type")


def _default_share(part: _Part) -> Any:
    known = _defaults(part.reference).get("rope_parameters")
    return known.get("partial_rotary_factor") if isinstance(known, dict) else None


def _rope_unread(part: _Part) -> None:
    for name in ("rope_scaling", "rope_theta"):
        value = part.given.get(name)
        plain = value is None or value == 10000.0 or (isinstance(value, dict) and _kind(value) in ("default", "mrope"))
        if not plain and not part.reads(name) and not part.reads("rope_parameters") and _rotates(part):
            raise part.refuse(name)


def _kind(scaling: Mapping[str, Any]) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _rotates(part: _Part) -> bool:
    return bool(re.search(r"rope|RoPE", _source(part.args.__module__)))


def _fit_scaling(part: _Part, found: Understood, scaling: Facts) -> None:
    """What mlx-lm's scaled positions leave out of ``rope_scaling``."""
    kind, rope = _kind(scaling), dict(scaling)
    where = "rope_parameters" if "rope_scaling" in found.changes else "rope_scaling"
    if kind == "linear" and isinstance(rope.get("factor"), int):
        rope["factor"] = float(rope["factor"])  # Phi 3's class asks for a float
    if kind == "yarn":
        if rope.get("original_max_position_embeddings") is None and part.value("max_position_embeddings"):
            rope["original_max_position_embeddings"] = part.value("max_position_embeddings")
        usual = 0.1 * math.log(max(rope.get("factor") or 1.0, 1.0)) + 1.0
        stated, whole = rope.get("attention_factor"), rope.get("mscale") is None
        if stated is not None and whole and abs(stated - usual) > 1e-3:
            raise part.refuse(f"{where}.attention_factor")
        found.untruncated = rope.get("truncate") is False
    if kind in ("longrope", "su"):
        original = rope.get("original_max_position_embeddings") or part.value("original_max_position_embeddings")
        if part.reads("original_max_position_embeddings") and "original_max_position_embeddings" not in part.given:
            found.changes["original_max_position_embeddings"] = original
        if rope.get("short_factor") != rope.get("long_factor") and isinstance(original, int):
            # mlx-lm has the long factors for texts of any length; the short ones belong to all but long texts.
            rope["long_factor"] = rope.get("short_factor")
            if "short_mscale" in rope:
                rope["long_mscale"] = rope["short_mscale"]
            found.narrow(original)
    if rope != scaling:
        found.changes["rope_scaling"] = rope


# -- windows -----------------------------------------------------------------


def _sliding(part: _Part, found: Understood) -> None:
    """Sliding windows: where mlx-lm's class has none, or lays the layers out otherwise, longer texts are refused."""
    args: Any = part.args
    window, layers = part.value("sliding_window"), part.value("layer_types")
    period = _period(layers)
    for name in PATTERNS:
        if not part.reads(name) or not period:
            continue
        spelt = _hints(args).get(name) in (str, str | None)
        if spelt and not isinstance(part.given.get(name), str):
            found.changes[name] = "L" * (period - 1) + "G"
        elif not spelt and name not in part.given:
            found.changes[name] = period
    if not isinstance(window, int) or isinstance(window, bool) or part.given.get("use_sliding_window") is False:
        return
    kinds = set(layers) if isinstance(layers, list) else {"sliding_attention"}
    if "sliding_attention" not in kinds and "full_attention" in kinds:
        return
    both = part.reads("layer_types") and part.reads("sliding_window")
    if both and "full_attention" in kinds:
        if "layer_types" not in part.given:
            found.changes["layer_types"] = layers
        return
    if both and "fa_idx" in _source(part.args.__module__):  # it needs a layer of full attention
        if "layer_types" in part.given:
            found.changes["layer_types"] = None
    elif any(part.reads(name) for name in WINDOWS):
        return
    found.narrow(max(1, window))


def _period(layers: Any) -> int | None:
    """Every how many layers one has full attention, if that is regular."""
    if not isinstance(layers, list) or "full_attention" not in layers:
        return None
    size = layers.index("full_attention") + 1
    regular = all((kind == "full_attention") == ((at + 1) % size == 0) for at, kind in enumerate(layers))
    return size if regular and size > 1 else None


# -- all others ---------------------------------------------------------------


def _check_unread(part: _Part, found: Understood) -> None:
    """Refuse a field that transformers' class has, that is not what it is by default, and that mlx-lm does not read."""
    if part.reference is None:
        _check_unread_by_name(part)
        return
    defaults, alike = _defaults(part.reference), getattr(part.reference, "attribute_map", {})
    for name, value in part.given.items():
        own = alike.get(name, name)
        if own not in defaults or HARMLESS.search(name) or name in ROPE or part.reads(name) or part.reads(own):
            continue
        if _neutral(value) or _same(value, defaults[own]):
            continue
        if name == "sliding_window" or (name in PATTERNS and part.reads("layer_types")):
            continue
        if name == "layer_types" and _laid_out(part, found):
            continue
        if _COUNT.search(name) or _SIZE.search(name) or (name.endswith("_bias") and value):
            continue  # the weights would have other shapes, or tensors that mlx-lm does not know
        raise part.refuse(name)


def _check_unread_by_name(part: _Part) -> None:
    for name, value in part.given.items():
        telling = re.search(r"softcap|soft_cap|^alibi|clip_qkv", name)
        if telling and not _neutral(value) and not part.reads(name):
            raise part.refuse(name)


def _laid_out(part: _Part, found: Understood) -> bool:
    """Whether the layers' kinds reach mlx-lm otherwise: by a period, or by the length that is allowed."""
    layers = part.given["layer_types"]
    if found.window is not None or not isinstance(layers, list) or set(layers) == {"full_attention"}:
        return True
    for name in PATTERNS:
        if part.reads(name):
            period = _period(layers)
            return period is not None and found.changes.get(name, part.given.get(name)) in (
                period,
                "L" * (period - 1) + "G",
            )
    return False


def _neutral(value: Any) -> bool:
    return value is None or value is False or value in (0, 1.0, "", "default") or value == [] or value == {}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one == other or any(one in names and other in names for names in ALIKE)
    if isinstance(one, Sequence) and isinstance(other, Sequence):
        return list(one) == list(other)
    return bool(one == other)
