"""Load a model by folder, hub id or the bundled name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx.nn.layers.base import Module

from lens_tui import demo
from lens_tui.records import LensError
from lens_tui.records.hub import explain_hub
from lens_tui.records.info import Dequantize
from lens_tui.records.sanitise import one_line

from .dequantize import Held, dequantize, evaluate


def load_model(name: str, how: Dequantize = "auto", **load_kwargs: Any) -> tuple[Module, Any, str, Held]:
    """Model, tokenizer, where they were found, and how its weights are held (:mod:`.dequantize`).

    Raises :class:`LensError` for a folder that is no model.
    """
    from mlx_lm import load

    source = str(demo.model_path()) if name == demo.NAME else name
    folder = Path(source).expanduser()
    looks_local = source.startswith((".", "/", "~", "\\")) or folder.exists()
    if looks_local and not folder.exists():
        raise LensError(f"There is no folder {source!r}.", "Check the path, or give a hub id such as 'owner/name'.")
    if looks_local and not (folder / "config.json").is_file():
        raise LensError(
            f"{source!r} is not a model in mlx-lm's format: it has no config.json.", "Convert it with mlx_lm.convert."
        )
    if not looks_local and source.count("/") != 1:
        raise LensError(
            f"There is no model {name!r}: it is no folder here, and no hub id.",
            "Give a folder, a hub id such as 'owner/name', or 'demo'.",
        )
    try:
        found: Any = load(str(folder) if looks_local else source, **{**load_kwargs, "lazy": True})
    except SystemExit as error:  # mlx-lm's OLMo leaves the process if a package of its own is not there
        raise LensError(
            f"The model {name!r} cannot be loaded: mlx-lm's code for it needs a package that is not installed.",
            "See what mlx-lm printed, and install that package.",
        ) from error
    except _hub_troubles() as error:
        repo, hint = one_line(name, 80), "Check the id, your access to it, and the network."
        absent = LensError(f"The model {repo} is not in the cache, and the hub did not give it.", hint)
        raise explain_hub(error, repo, kept="what came is kept.", absent=absent) from error
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LensError(
            f"The model {name!r} cannot be loaded: {first}", "Check the name, the files and the network."
        ) from error
    held = dequantize(found[0], how)
    if not load_kwargs.get("lazy"):
        for _ in evaluate(found[0]):
            pass
    return found[0], found[1], str(folder) if looks_local else source, held


def _hub_troubles() -> tuple[type[Exception], ...]:
    """What the hub's client raises when a repository cannot be had, whatever the reason."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return (HfHubHTTPError, LocalEntryNotFoundError)
