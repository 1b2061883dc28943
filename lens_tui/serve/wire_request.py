"""Bodies of completions and chat completions as orders for the model's thread, checked field by field.

Steering is this library's records, the names the server was started with, or vLLM-Lens' form.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lens_tui.records import Add, Intervention, LensError, NormMatch, Positions, Sampling, SteeringVector
from lens_tui.records.codec import from_json
from lens_tui.records.interventions import ALL, BenchRow, as_number, as_positions, mode_of, positions_of
from lens_tui.records.read_files import parse_json
from lens_tui.records.sanitise import one_line
from lens_tui.records.vector_formats.vllm_lens import parse as parse_vllm_lens

from .limits import Refused, ServeLimits

_NAMED = {"id", "vector", "feature", "sae", "layer", "site", "scale", "mode", "positions"}
_HINT = "See docs/serve.md for the forms of steering."


@dataclass(frozen=True, slots=True)
class FeatureTerm:
    """A feature of one of the server's SAEs (the first one for ``""``) as a direction: made where the model is."""

    id: str
    sae: str
    feature: int
    layer: int | None
    scale: float
    mode: str
    positions: Positions

    def intervention(self, vector: SteeringVector) -> Intervention:
        """The record, once the feature's vector is known."""
        return _acting(self.id, vector, self.layer, self.scale, self.mode, self.positions)


Asked = Intervention | FeatureTerm


def read_steering(body: Mapping[str, Any], vectors: Mapping[str, SteeringVector], limits: ServeLimits) -> list[Asked]:
    """All that ``steering`` and ``vllm_xargs`` of a body ask for, in order, ids made different.

    Args:
        body: The request.
        vectors: Those that the server was started with, by name.
        limits: How many there may be.

    Raises:
        LensError: For the first thing that cannot be.
    """
    listed = body.get("steering")
    listed = [listed] if isinstance(listed, Mapping) else listed or []
    if not isinstance(listed, list):
        raise Refused("The steering is not a list.", _HINT, param="steering")
    if len(listed) > limits.steering:
        raise Refused(f"The steering has {len(listed)} parts; {limits.steering} are allowed.", param="steering")
    found = [_part(f"steering[{at}]", item, vectors) for at, item in enumerate(listed)]
    found += _vllm(body.get("vllm_xargs"), limits)
    if len(found) > limits.steering:
        raise Refused(f"The steering has {len(found)} parts; {limits.steering} are allowed.", param="steering")
    names = [item.id for item in found]
    twice = {name for name in names if names.count(name) > 1}
    return [replace(item, id=f"{item.id}#{at}") if item.id in twice else item for at, item in enumerate(found)]


def _part(where: str, item: Any, vectors: Mapping[str, SteeringVector]) -> Asked:
    if not isinstance(item, Mapping):
        raise Refused(f"{where} is not an object with named values.", _HINT, param="steering")
    named = {**item, "id": one_line(str(item.get("id") or where), 60)}
    try:
        vector = named.get("vector")
        if isinstance(vector, str | list) or ("feature" in named and named.get("mode") != "clamp_feature"):
            return _term(named, vectors)
        if isinstance(named.get("positions"), str | list):
            named["positions"] = _positions_data(named["positions"])
        return from_json(Intervention, named)
    except LensError as error:
        raise Refused(f"{where}: {error.message}", error.hint or _HINT, param="steering") from error


def _positions_data(value: str | list[Any]) -> dict[str, Any]:
    found = _positions(value)
    return {"kind": found.kind, "indices": list(found.indices), "role": found.role}


def _positions(value: Any) -> Positions:
    if isinstance(value, str):
        return positions_of(value)
    if isinstance(value, Mapping):
        return from_json(Positions, value)
    return ALL if value is None else as_positions(value)


def _term(item: Mapping[str, Any], vectors: Mapping[str, SteeringVector]) -> Asked:
    """A vector by name or by its numbers, or a feature: with a scale, and a layer, mode and positions if it likes."""
    if unknown := sorted(map(str, set(item) - _NAMED)):
        known = ", ".join(sorted(_NAMED))
        raise LensError(f"There is an unknown key {one_line(unknown[0], 60)!r}.", f"Known: {known}.")
    mode = mode_of(str(item.get("mode", "add"))[:60])
    if mode.amount and "scale" not in item:
        raise LensError("There is no scale.", "Give one.")
    scale = as_number(item.get("scale", 0.0), "The scale")
    layer, positions, name = item.get("layer"), _positions(item.get("positions")), str(item["id"])
    if layer is not None and type(layer) is not int:
        raise LensError("The layer is not a whole number.", "Layers count from 0; negative ones from the end.")
    if "feature" in item:
        feature, sae = item["feature"], item.get("sae", "")
        if type(feature) is not int or feature < 0 or not isinstance(sae, str):
            raise LensError("The feature is not a number of a feature of a named SAE.", _HINT)
        return FeatureTerm(name, sae, feature, layer, scale, mode.id, positions)
    given = item["vector"]
    if isinstance(given, str):
        if given not in vectors:
            known = ", ".join(vectors) or "none"
            raise LensError(f"The server has no vector {one_line(given, 60)!r}.", f"It has: {known}.")
        return _acting(name, vectors[given], layer, scale, mode.id, positions)
    if layer is None:
        raise LensError("A vector of numbers has no layer of its own.", "Give the layer.")
    site = item.get("site", "resid_post")
    if not isinstance(site, str) or not all(isinstance(value, int | float) for value in given):
        raise LensError("The vector or its site cannot be read.", _HINT)
    vector = SteeringVector.of(name, given, 0, site=site)
    own = vector.norm if mode.grows else 1.0  # as everywhere, the length of numbers that are given counts
    return _acting(name, vector, layer, scale * own, mode.id, positions)


def _acting(
    name: str, vector: SteeringVector, layer: int | None, scale: float, mode: str, positions: Positions
) -> Intervention:
    row = BenchRow(name, vector, vector.layer if layer is None else layer, scale, mode=mode, positions=positions)
    return row.intervention()


def _vllm(extra: Any, limits: ServeLimits) -> list[Asked]:
    """``vllm_xargs.apply_steering_vectors``: one vector or several of vLLM-Lens, as JSON or as a text of JSON."""
    if extra is None:
        return []
    if not isinstance(extra, Mapping):
        raise Refused("vllm_xargs is not an object with named values.", param="vllm_xargs")
    if others := sorted(map(str, set(extra) - {"apply_steering_vectors"})):
        said = one_line(others[0], 60)
        raise Refused(f"vllm_xargs has {said!r}, which this server does not know.", param="vllm_xargs")
    given = extra.get("apply_steering_vectors")
    given = parse_json(given, "apply_steering_vectors", "Send it as JSON.") if isinstance(given, str) else given
    listed = given if isinstance(given, list) else [given] if given is not None else []
    part = "A part of apply_steering_vectors"
    listed = [parse_json(item, part, "Send it as JSON.") if isinstance(item, str) else item for item in listed]
    if len(listed) > limits.steering:
        raise Refused(f"There are {len(listed)} steering vectors; {limits.steering} are allowed.", param="vllm_xargs")
    found: list[Asked] = []
    for at, item in enumerate(listed):
        found += _vllm_records(f"apply_steering_vectors[{at}]", item)
    return found


def _vllm_records(where: str, item: Any) -> list[Intervention]:
    read = parse_vllm_lens(item, where)
    factor, match = as_number(item.get("scale", 1.0), f"The scale of {where}"), bool(read.facts["norm_match"])
    places = read.facts.get("positions")
    positions = ALL if places is None else Positions("indices", indices=tuple(places))
    found: list[Intervention] = []
    for entry in read.entries:
        row = entry.array
        if row.ndim != 1 and row.shape[0] == 1:
            row = row[0]
        if row.ndim != 1:
            raise Refused(f"{where} has a vector for each position.", "Give one vector a layer.", param="vllm_xargs")
        layer = entry.layer or 0
        name = f"{where} L{layer}"
        vector = SteeringVector.of(name, row, layer)
        # vLLM-Lens: a vector whose norm is matched counts by its direction, every other by its own length too.
        kind, scale = (NormMatch, factor) if match else (Add, factor * vector.norm)
        found.append(kind(id=name, layer=layer, positions=positions, vector=vector, scale=scale))
    return found


Kind = Literal["chat", "text"]
ReadOver = Literal["generated", "prompt", "all"]
_IGNORED = {
    "model",
    "user",
    "store",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
}
_BOTH = _IGNORED | {
    "n", "stream", "stream_options", "stop", "seed", "temperature", "top_p", "top_k", "min_p", "max_tokens",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs",
    "steering", "vllm_xargs", "lens",
}  # fmt: skip
_OWN: dict[Kind, set[str]] = {
    "chat": {"messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice"},
    "text": {"prompt", "echo", "best_of", "suffix"},
}
_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_MAX_TOP = 20
_MAX_MESSAGES = 1024


@dataclass(frozen=True, slots=True)
class WatchAsk:
    """What is followed over the tokens: a feature of an SAE, or the projection on a named vector."""

    vector: str = ""
    sae: str = ""
    feature: int = -1


@dataclass(frozen=True, slots=True)
class ReadingsAsk:
    """What is read of a text when it has ended: activations, top features, monitors, KL against the plain model."""

    layers: tuple[int, ...] = ()
    site: str = "resid_post"
    features: int = 0
    sae: str = ""
    monitors: tuple[WatchAsk, ...] = ()
    kl: bool = False
    over: ReadOver = "generated"


@dataclass(frozen=True, slots=True)
class Order:
    """A request: its prompts (texts, messages or token ids), ``n`` answers of each, and all that is its own.

    ``body`` is what it was read from, with a seed: from there another process reads the same.
    """

    kind: Kind
    prompts: tuple[Any, ...]
    sampling: Sampling
    n: int = 1
    penalties: tuple[tuple[str, Any], ...] = ()
    logprobs: bool = False
    top: int = 0
    steering: tuple[Asked, ...] = ()
    readings: ReadingsAsk | None = None
    stream: bool = False
    usage: bool = False
    body: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """How many rows it takes."""
        return self.n * len(self.prompts)

    def sampling_of(self, answer: int) -> Sampling:
        """The settings of one of the ``n`` answers to a prompt: each draws by a seed of its own."""
        return replace(self.sampling, seed=(self.sampling.seed + answer) % 2**64)


def read_order(body: Any, kind: Kind, vectors: Mapping[str, SteeringVector], limits: ServeLimits) -> Order:
    """The order that a body is.

    Args:
        body: The JSON value.
        kind: Of which endpoint.
        vectors: The server's, by name.
        limits: What may be asked for.

    Raises:
        LensError: For the first thing that is wrong or not offered.
    """
    if not isinstance(body, Mapping):
        raise Refused("The body is not a JSON object.", "Send one with named values.")
    if unknown := sorted(map(str, set(body) - _BOTH - _OWN[kind])):
        raise Refused(f"There is no parameter {one_line(unknown[0], 60)!r}.", "See docs/serve.md.", param=None)
    _check_offered(body)
    if body.get("seed") is None:
        body = {**body, "seed": secrets.randbits(32)}
    prompts = (_messages(body, limits),) if kind == "chat" else _prompts(body, limits)
    n = _whole(body, "n", 1, 1, limits.choices)
    if kind == "text" and body.get("best_of") not in (None, n):
        raise Refused("best_of is not offered.", "Use n.", param="best_of")
    if n * len(prompts) > limits.rows:
        asked = f"{len(prompts)} prompts with {n} answers each"
        raise Refused(f"{asked} are more than {limits.rows} rows.", "Send fewer at once.", param="n")
    logprobs, top = _logprobs(body, kind)
    stream = _flag(body, "stream")
    options = _mapping(body, "stream_options")
    return Order(
        kind,
        prompts,
        _sampling(body, limits),
        n,
        tuple((name, body[name]) for name in _PENALTIES if body.get(name) not in (None, 0, 0.0, {})),
        logprobs,
        top,
        tuple(read_steering(body, vectors, limits)),
        _readings(body, vectors),
        stream,
        stream and _flag(options, "include_usage", "stream_options."),
        body,
    )


_PENALTIES = ("presence_penalty", "frequency_penalty", "logit_bias")


def _check_offered(body: Mapping[str, Any]) -> None:
    """Refuse what is not offered, unless it is asked for in the way that asks for nothing."""
    form = body.get("response_format")
    if form is not None and not (isinstance(form, Mapping) and form.get("type") == "text"):
        raise Refused("Only response_format of type 'text' is offered.", "Leave it out.", param="response_format")
    if body.get("tools") or body.get("tool_choice") not in (None, "none", "auto"):
        raise Refused("Tools are not offered.", "Leave tools and tool_choice out.", param="tools")
    for name in ("echo", "suffix"):
        if body.get(name):
            raise Refused(f"{name} is not offered.", "Leave it out.", param=name)


def _sampling(body: Mapping[str, Any], limits: ServeLimits) -> Sampling:
    given = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    temp, top_p = _real(body, "temperature", 1.0, 0.0, 2.0), _real(body, "top_p", 1.0, 0.0, 1.0)
    stop = body.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, list | tuple) or len(stop) > 16 or not all(isinstance(s, str) and s for s in stop):
        raise Refused("stop is not a text or up to 16 texts.", param="stop")
    if any(len(text) > 1000 for text in stop):
        raise Refused("A text of stop is longer than 1,000 characters.", param="stop")
    return Sampling(
        max_tokens=_whole(body, given, limits.default_tokens, 1, limits.max_tokens),
        temp=0.0 if top_p == 0.0 else temp,  # of no probability at all: the likeliest token
        top_p=0.0 if top_p == 1.0 else top_p,
        min_p=_real(body, "min_p", 0.0, 0.0, 1.0),
        top_k=_whole(body, "top_k", 0, -1, 10**6) if body.get("top_k") != -1 else 0,
        repetition_penalty=_real(body, "repetition_penalty", 0.0, 0.0, 1000.0),
        seed=_whole(body, "seed", 0, -(2**63), 2**63 - 1) % 2**64,
        stop=tuple(stop),
    )


def _messages(body: Mapping[str, Any], limits: ServeLimits) -> list[dict[str, str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= _MAX_MESSAGES:
        raise Refused(f"messages is not a list of 1 to {_MAX_MESSAGES:,} messages.", param="messages")
    found = []
    for at, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise Refused(f"messages[{at}] has no role of {', '.join(_ROLES)}.", param="messages")
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
                raise Refused(f"messages[{at}] has parts that are not text.", "Send text alone.", param="messages")
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise Refused(f"messages[{at}] has no text as its content.", param="messages")
        found.append({"role": _ROLES[role], "content": content})
    _check_length(sum(len(message["content"]) for message in found), limits, "messages")
    return found


def _prompts(body: Mapping[str, Any], limits: ServeLimits) -> tuple[Any, ...]:
    given = body.get("prompt")
    if isinstance(given, str) or (isinstance(given, list) and given and type(given[0]) is int):
        given = [given]
    if not isinstance(given, list) or not given:
        raise Refused("prompt is not a text, token ids or a list of these.", param="prompt")
    for prompt in given:
        ids = isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)
        if not ids and not (isinstance(prompt, str) and prompt):
            raise Refused("prompt holds what is no text and no list of token ids, or is empty.", param="prompt")
        _check_length(len(prompt), limits, "prompt", ids=ids)
    return tuple(given)


def _check_length(length: int, limits: ServeLimits, param: str, *, ids: bool = False) -> None:
    most = limits.prompt_tokens if ids else limits.prompt_characters
    if length > most:
        of = "tokens" if ids else "characters"
        raise Refused(f"The prompt has {length:,} {of}; {most:,} are allowed.", "Send less.", param=param)


def _logprobs(body: Mapping[str, Any], kind: Kind) -> tuple[bool, int]:
    if kind == "text":
        given = body.get("logprobs")
        if given is None or given is False:
            return False, 0
        return True, _whole(body, "logprobs", 0, 0, _MAX_TOP)
    wanted, top = _flag(body, "logprobs"), _whole(body, "top_logprobs", 0, 0, _MAX_TOP)
    if top and not wanted:
        raise Refused("top_logprobs needs logprobs.", "Send logprobs: true with it.", param="top_logprobs")
    return wanted, top


def _readings(body: Mapping[str, Any], vectors: Mapping[str, SteeringVector]) -> ReadingsAsk | None:
    asked = _mapping(body, "lens")
    if not asked:
        return None
    _check_keys(asked, "lens", {"capture", "features", "monitors", "kl", "over"})
    capture, features = _mapping(asked, "capture", "lens."), _mapping(asked, "features", "lens.")
    _check_keys(capture, "lens.capture", {"layers", "site"})
    _check_keys(features, "lens.features", {"k", "sae"})
    layers, over = capture.get("layers", []), asked.get("over", "generated")
    layers = [layers] if type(layers) is int else layers
    if not isinstance(layers, list) or not all(type(at) is int for at in layers) or len(layers) > 256:
        raise Refused("lens.capture.layers is not a list of layers.", param="lens")
    if asked.get("capture") is not None and not layers:
        raise Refused("lens.capture has no layers.", "Name those to capture.", param="lens")
    if over not in ("generated", "prompt", "all"):
        raise Refused("lens.over is not generated, prompt or all.", param="lens")
    site, sae = capture.get("site", "resid_post"), features.get("sae", "")
    if not isinstance(site, str) or not isinstance(sae, str):
        raise Refused("The site or the SAE in lens is not a name.", param="lens")
    monitors = asked.get("monitors") or []
    if not isinstance(monitors, list) or len(monitors) > 64:
        raise Refused("lens.monitors is not a list of up to 64.", param="lens")
    k = _whole(features, "k", 10, 1, 256, "lens.features.") if asked.get("features") is not None else 0
    found = tuple(_monitor(item, vectors) for item in monitors)
    return ReadingsAsk(tuple(dict.fromkeys(layers)), site, k, sae, found, _flag(asked, "kl", "lens."), over)


def _check_keys(given: Mapping[str, Any], name: str, known: set[str]) -> None:
    if unknown := sorted(map(str, set(given) - known)):
        said = f"{name} has an unknown key {one_line(unknown[0], 60)!r}."
        raise Refused(said, "See docs/serve.md.", param=name.partition(".")[0])


def _monitor(item: Any, vectors: Mapping[str, SteeringVector]) -> WatchAsk:
    if isinstance(item, Mapping):
        vector, feature, sae = item.get("vector"), item.get("feature"), item.get("sae", "")
        if isinstance(vector, str) and vector in vectors and set(item) == {"vector"}:
            return WatchAsk(vector=vector)
        if type(feature) is int and feature >= 0 and isinstance(sae, str) and set(item) <= {"feature", "sae"}:
            return WatchAsk(sae=sae, feature=feature)
    known = ", ".join(vectors) or "none"
    raise Refused("A monitor is neither a feature nor one of the server's vectors.", f"Vectors: {known}.", param="lens")


def _mapping(body: Mapping[str, Any], name: str, within: str = "") -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong(within + name, "an object with named values")
    return value


def _flag(body: Mapping[str, Any], name: str, within: str = "") -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(within + name, "true or false")
    return bool(value)


def _whole(body: Mapping[str, Any], name: str, usual: int, low: int, high: int, within: str = "") -> int:
    value = body.get(name)
    value = usual if value is None else value
    if type(value) is not int or not low <= value <= high:
        raise _wrong(within + name, f"a whole number from {low:,} to {high:,}")
    return value


def _real(body: Mapping[str, Any], name: str, usual: float, low: float, high: float) -> float:
    value = body.get(name)
    value = usual if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _wrong(name, f"a number from {low:g} to {high:g}")
    return float(value)


def _wrong(path: str, wanted: str) -> Refused:
    """What the value at a path (``lens.features.k``) is not; OpenAI's ``param`` is the body's own parameter."""
    return Refused(f"{path} is not {wanted}.", param=path.partition(".")[0])
