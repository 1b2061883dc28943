"""What a request may ask of a text that has been written: read in one forward under its steering, when it has ended."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.lens.decode.batch_rows import Row
from lens_tui.lens.decode.sampling import kl, log_softmax
from lens_tui.lens.hooks.capture_result import CaptureResult
from lens_tui.lens.hooks.registry import Plan
from lens_tui.lens.hooks.steering import captured, origin_in
from lens_tui.lens.model import LensModel
from lens_tui.records import LensError, SteeringVector
from lens_tui.records.gates import monitor_of
from lens_tui.records.sanitise import one_line
from lens_tui.sae.load_sae import SAE

from .limits import Refused, ServeLimits
from .wire_request import ReadingsAsk, ReadOver, WatchAsk

Key = tuple[int, str]


def sae_named(saes: Mapping[str, SAE], name: str) -> SAE:
    """One of the server's SAEs, the first for ``""``. Raises :class:`LensError`."""
    if name in saes:
        return saes[name]
    if not name and saes:
        return next(iter(saes.values()))
    known = ", ".join(saes) or "none"
    raise LensError(f"The server has no SAE {one_line(name, 60)!r}.", f"It has: {known}.")


class Readings:
    """Reads what one order asks for; made before its rows begin, so that what cannot be read is refused then.

    Args:
        lens: The model.
        ask: What is wanted.
        vectors: The server's vectors.
        saes: The server's SAEs.

    Raises:
        LensError: For a layer, a site, a feature or an SAE that there is not.
    """

    def __init__(
        self, lens: LensModel, ask: ReadingsAsk, vectors: Mapping[str, SteeringVector], saes: Mapping[str, SAE]
    ) -> None:
        self._lens, self._ask, self._vectors, self._saes = lens, ask, vectors, saes
        decoder = lens.registry.decoder
        self._captured: list[Key] = [(decoder.index(layer), ask.site) for layer in ask.layers]
        self._keys = list(self._captured)
        self._width = sum(lens.registry.sites.point(*key).width for key in self._captured)
        if ask.features:
            sae = sae_named(saes, ask.sae)
            if ask.features > sae.d_sae:
                raise LensError(f"The SAE has {sae.d_sae} features.", "Lower lens.features.k.")
            self._keys.append(self._place(sae))
        for monitor in ask.monitors:
            self._keys.append(self._of_monitor(monitor))
        self._keys = list(dict.fromkeys(self._keys))
        for key in self._keys:
            lens.registry.sites.point(*key)

    def check_size(self, n_prompt: int, max_tokens: int, limits: ServeLimits) -> None:
        """Refuse captures that would be more bytes than an answer may hold."""
        tokens = (n_prompt if self._ask.over != "generated" else 0) + (max_tokens if self._ask.over != "prompt" else 0)
        size = tokens * self._width * 4
        if size > limits.captured:
            most = limits.captured >> 20
            hint = "Capture fewer layers, or lower max_tokens."
            raise Refused(f"The captures may take {size / 1e6:,.0f} MB; {most} MiB are allowed.", hint, param="lens")

    def of(self, row: Row) -> dict[str, Any]:
        """What is read of a row that has ended, as JSON data."""
        lens, prompt, registry = self._lens, row.plan.prompt, self._lens.registry
        passage = replace(row.passage(registry.bos), ids=(*prompt.ids, *row.ids))
        span = _span(self._ask.over, len(prompt.ids), len(passage.ids))
        result = CaptureResult(registry, tuple(self._keys), by_site=True) if self._keys else None
        logits = passage.forward(registry, Plan((row.plan.entries,), (result,) if result else ()))
        tokens = [lens.tokens.display(at) for at in passage.ids[span]]
        found: dict[str, Any] = {"over": self._ask.over, "tokens": tokens}
        if result is not None:
            values = captured(result, lambda: origin_in(registry, passage, row.plan.entries))
            tensors = {key: value[0, span] for key, value in values.items()}
            found |= self._read(tensors)
        if self._ask.kl:
            found["kl"] = _divergence(logits, passage.forward(registry, Plan(((),))), len(prompt.ids))
        return found

    def _read(self, tensors: Mapping[Key, mx.array]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._captured:
            found["capture"] = [_array(key, tensors[key]) for key in self._captured]
        if self._ask.features:
            sae = sae_named(self._saes, self._ask.sae)
            place = self._place(sae)
            features, values = sae.top_k(tensors[place], self._ask.features)
            found["features"] = {
                "sae": sae.info.name,
                "layer": place[0],
                "site": place[1],
                "tokens": [
                    [{"feature": at, "activation": value} for at, value in zip(*pair, strict=True) if at >= 0]
                    for pair in zip(_listed(features), _listed(values), strict=True)
                ],
            }
        if self._ask.monitors:
            found["monitors"] = [self._followed(monitor, tensors) for monitor in self._ask.monitors]
        return found

    def _followed(self, monitor: WatchAsk, tensors: Mapping[Key, mx.array]) -> dict[str, Any]:
        h = tensors[self._of_monitor(monitor)]
        if monitor.vector:
            read = monitor_of(self._vectors[monitor.vector])
            direction = mx.array(self._vectors[monitor.vector].direction)
            values = _listed(read.scale * (h.astype(mx.float32) @ direction[:, None])[:, 0] + read.bias)
            return {"vector": monitor.vector, **_summary(values)}
        sae = sae_named(self._saes, monitor.sae)
        values = _listed(sae.encode_features(h, [monitor.feature])[:, 0])
        return {"feature": monitor.feature, "sae": sae.info.name, **_summary(values)}

    def _of_monitor(self, monitor: WatchAsk) -> Key:
        if monitor.vector:
            vector = self._vectors[monitor.vector]
            return self._lens.registry.decoder.index(vector.layer), vector.site
        sae = sae_named(self._saes, monitor.sae)
        if monitor.feature >= sae.d_sae:
            raise LensError(f"There is no feature {monitor.feature}: the SAE has {sae.d_sae}.")
        return self._place(sae)

    def _place(self, sae: SAE) -> Key:
        return self._lens.registry.decoder.index(sae.info.layer), sae.info.site


def _span(over: ReadOver, n_prompt: int, n_tokens: int) -> slice:
    if over == "all":
        return slice(0, n_tokens)
    return slice(0, n_prompt) if over == "prompt" else slice(n_prompt, n_tokens)


def _divergence(steered: mx.array, plain: mx.array, n_prompt: int) -> dict[str, Any]:
    """KL in nats of the distribution that each written token was drawn from, both ways."""
    here, there = (log_softmax(logits[0, n_prompt - 1 : -1]) for logits in (steered, plain))
    forward, reverse = _listed(kl(here, there)), _listed(kl(there, here))
    means = {"mean": float(np.mean(forward)), "mean_reverse": float(np.mean(reverse))}
    return {"kl": forward, "reverse_kl": reverse, **means}


def _summary(values: list[float]) -> dict[str, Any]:
    return {"values": values, "max": max(values, default=None), "mean": float(np.mean(values)) if values else None}


def _array(key: Key, tensor: mx.array) -> dict[str, Any]:
    values = np.array(tensor.astype(mx.float32)).astype("<f4")
    data = base64.b64encode(values.tobytes()).decode("ascii")
    return {"layer": key[0], "site": key[1], "shape": list(values.shape), "dtype": "float32", "data": data}


def _listed(values: mx.array) -> list[Any]:
    return values.tolist()  # type: ignore[return-value]
