"""What a run was made with, so that it can be made again: versions, machine, and how its model and SAEs are named."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lens_tui import __version__, demo
from lens_tui.records import Arm, ClampFeature, Intervention, ModelInfo, SAEInfo
from lens_tui.records.gates import Monitor, Watched
from lens_tui.records.info import Dequantize
from lens_tui.records.run import MadeWith


def made_with(
    model: ModelInfo,
    arms: Iterable[Arm] = (),
    saes: Iterable[SAEInfo] = (),
    batch_rows: int = 0,
    monitors: Iterable[Watched] = (),
) -> MadeWith:
    """What a run of this model, now and on this machine, is made with.

    Args:
        model: The loaded model.
        arms: The run's; of the SAEs those are noted that an arm names.
        saes: The SAEs at hand.
        batch_rows: Rows of each forward.
        monitors: What reads its tokens.
    """
    items = [item for arm in arms for item in arm.interventions]
    named = {sae for item in items for sae in (sae_of(item), *attached_saes(item)) if sae}
    named |= {sae for watched in monitors for sae in saes_read(watched.monitor)}
    return MadeWith(
        version=__version__,
        mlx=package_version("mlx"),
        mlx_lm=package_version("mlx-lm"),
        machine=f"{platform.system()} {platform.machine()}",
        device=model.device,
        source=model_source(model),
        dtype=model.dtype,
        weights=model.weights,
        batch_rows=batch_rows,
        saes={sae.id: sae_words(sae) for sae in saes if sae.id in named},
        adapter=model.adapter,
    )


STAMPED = frozenset({".json", ".safetensors", ".npz"})
_WHOLE, _SAMPLES, _SAMPLE = 1 << 20, 64, 1 << 12


def model_stamp(model: ModelInfo) -> str:
    """What tells a model's files, and its adapter's, from others: a hash of their names, sizes and contents.

    Of a file of more than 1 MiB 64 pieces of 4 KiB count, evenly apart, so that it takes no time; weights that were
    trained on differ nearly everywhere. ``""`` where there are no files that can be read.
    """
    digest, read = hashlib.sha256(), 0
    for folder in filter(None, (model.path, model.adapter)):
        try:
            files = sorted(file for file in Path(folder).iterdir() if file.suffix in STAMPED)
            for file in files:
                size = file.stat().st_size
                digest.update(f"{file.name}\0{size}\0".encode())
                with file.open("rb") as opened:
                    if size <= _WHOLE:
                        digest.update(opened.read())
                    else:
                        for at in range(_SAMPLES):
                            opened.seek((size - _SAMPLE) * at // (_SAMPLES - 1))
                            digest.update(opened.read(_SAMPLE))
                read += 1
        except OSError:
            return ""
    return digest.hexdigest() if read else ""


def package_version(name: str) -> str:
    """The version of an installed package, ``""`` if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def sae_of(item: Intervention) -> str:
    """The id of the SAE that an intervention is of: the one it names, or that its vector is a feature of."""
    vector = getattr(item, "vector", None)
    facts: Mapping[str, object] = vector.origin.facts if vector is not None and vector.origin.kind == "feature" else {}
    return str(getattr(item, "sae", "") or facts.get("sae", ""))


def attached_saes(item: Intervention) -> tuple[str, ...]:
    """The ids of the SAEs that the model must have been given for it: of what it clamps, and of what its gate reads."""
    clamped = item.sae if isinstance(item, ClampFeature) else ""
    read = "" if item.gate is None else item.gate.monitor.sae
    return tuple(dict.fromkeys(name for name in (clamped, read) if name))


def saes_read(monitor: Monitor) -> tuple[str, ...]:
    """The ids of the SAEs a monitor needs: the one it reads a feature of, or that its direction is a feature of."""
    if monitor.vector is None:
        return (monitor.sae,)
    facts = monitor.vector.origin.facts if monitor.vector.origin.kind == "feature" else {}
    return (str(facts["sae"]),) if facts.get("sae") else ()


def held_as(made: MadeWith) -> Dequantize:
    """How to load the model so that its weights are held as they were."""
    if not made.version:
        return "auto"
    return "always" if made.weights.startswith("float32") else "never"


def model_source(model: ModelInfo | None) -> str:
    """What a model can be loaded by again: the name of the bundled one, a hub id, or the folder."""
    if model is None:
        return ""
    if model.name == demo.NAME or ("/" in model.name and not Path(model.name).exists()):
        return model.name
    return os.path.abspath(model.path) if model.path else model.name


def sae_words(sae: SAEInfo) -> str:
    """How an SAE is named on the command line: bundled name, place at the hub or path; ``@LAYER:SITE`` if told."""
    path = Path(sae.path)
    bundled = next((name for name, place in demo.sae_paths().items() if place == path), None)
    given = "given by the caller" in (sae.provenance.get("layer"), sae.provenance.get("site"))
    found = bundled or sae.provenance.get("repository") or os.path.abspath(path)
    return found + (f"@{sae.layer}:{sae.site}" if given else "")
