"""The verb ``info``: versions, device, folders and models found, or the facts of one model."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from lens_tui import __version__, blas, demo
from lens_tui.records import paths

from .output import print_json, say, sentences
from .sources import Json, Model, open_model

_PACKAGES = ("mlx-lens-tui", "mlx", "mlx-lm", "textual", "rich", "numpy", "safetensors", "huggingface-hub")

verbs = typer.Typer()


@verbs.command()
@sentences
def info(model: Model = "", json: Json = False) -> None:
    """Say what is installed and which models and SAEs there are.

    With --model: what that model is.
    """
    facts = _model_facts(model) if model else _machine_facts()
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        for line in _lines(name, value) if name != "model" else ():
            say(line)


def _model_facts(model: str) -> dict[str, Any]:
    with open_model(model) as lens:
        return {"model": lens.info.name, **asdict(lens.info), "sites": list(lens.sites(0))}


def _machine_facts() -> dict[str, Any]:
    import mlx.core as mx

    from lens_tui.tasks.models import list_models

    return {
        "model": None,
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(mx.default_device()),
        **({"blas": blas.state().says} if blas.state().says else {}),
        "folders": {
            "settings": str(paths.settings_file()),
            "data": str(paths.folder("data")),
            "log": str(paths.log_file()),
        },
        "saes": sorted(demo.sae_paths()),
        "vectors": [f"{ready.name}*{ready.scale:g}  {ready.says}" for ready in demo.vectors()],
        "models": [entry.id for entry in list_models()],
    }


def _version(name: str) -> str:
    if name == "mlx-lens-tui":
        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _lines(name: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        width = max((len(key) for key in value), default=0)
        return [name, *(f"  {key:<{width}}  {item}" for key, item in value.items())]
    if isinstance(value, list):
        return [name, *(f"  {item}" for item in value)] if value else [f"{name}  (none)"]
    return [f"{name:<18}{value or _EMPTY.get(name, value)}"]


_EMPTY = {"weights": "as in the files", "adapter": "none"}
"""What an empty value means."""
