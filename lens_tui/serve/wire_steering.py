"""Steering as a request says it: this library's records, the names the server was started with, vLLM-Lens' form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lens_tui.records import Add, Intervention, LensError, NormMatch, Positions, SteeringVector
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
