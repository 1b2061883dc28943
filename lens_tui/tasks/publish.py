"""Vectors, probes and SAEs at the Hugging Face hub: sent with a card that says what they are, and fetched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lens_tui.records import LensError, paths
from lens_tui.records.hub import explain_hub, quiet_hub
from lens_tui.records.hub_fetch import Progress, first_file
from lens_tui.records.paths import expanded
from lens_tui.records.read_files import short_path
from lens_tui.records.sanitise import one_line
from lens_tui.records.vector_formats import load_vectors

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")
_PRIVATE_FACTS = ("path", "file", "folder")
"""Facts of an origin that are about this machine."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What would be sent: the repository, its files by name, the card, whether others could see it."""

    repo_id: str
    kind: str
    files: Mapping[str, Path] = field(default_factory=dict)
    card: str = ""
    private: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of the files, without the card."""
        return sum(file.stat().st_size for file in self.files.values())


def prepare(source: str | Path, repo_id: str, *, licence: str = "", private: bool = True) -> Publication:
    """Look at a vector, a probe or an SAE and write the card for it; nothing is sent.

    Args:
        source: A file of vectors of this library (probes are such), or an SAE's folder or file.
        repo_id: ``owner/name`` at the hub.
        licence: The hub's word for a licence (``mit``, ``cc-by-4.0``); the card says that none was given without one.
        private: Whether only the owner can see it.

    Raises:
        LensError: For a name that is no repository's, and for a source that is none of these.
    """
    if _ID.fullmatch(repo_id) is None or ".." in repo_id or "--" in repo_id:
        raise LensError(f"{one_line(repo_id, 80)!r} is not a hub id.", "A hub id looks like owner/name.")
    if licence and _LICENCE.fullmatch(licence) is None:
        raise LensError(
            f"{one_line(licence, 40)!r} is not a licence at the hub.", "Use its word, such as mit or cc-by-4.0."
        )
    place = expanded(source)
    if not place.exists():
        raise LensError(f"There is no {short_path(place)}.", "Give the file of a vector or probe, or an SAE's folder.")
    if place.is_file():
        try:
            vectors = load_vectors(place)
        except LensError:
            vectors = ()
        if len(vectors) == 1 and place.suffix == ".safetensors":
            return _of_vector(place, vectors[0], repo_id, licence, private)
    return _of_sae(place, repo_id, licence, private)


def publish(plan: Publication) -> str:
    """Send it; returns the page at the hub.

    The token is the one of ``hf auth login`` or ``HF_TOKEN``. Raises :class:`LensError` where the hub refuses, and for
    a repository that is public when a private one was asked for.
    """
    quiet_hub()
    from huggingface_hub import CommitOperationAdd, HfApi

    api: Any = HfApi()
    try:
        api.create_repo(plan.repo_id, private=plan.private, exist_ok=True)
        if plan.private and api.model_info(plan.repo_id).private is False:
            raise LensError(f"{plan.repo_id} is there and public.", "Say --public, or name another repository.")
        files: dict[str, Path | bytes] = {**plan.files, "README.md": plan.card.encode()}
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(data) if isinstance(data, Path) else data)
            for name, data in files.items()
        ]
        sent = api.create_commit(plan.repo_id, operations, commit_message=f"Add {plan.kind}")
    except LensError:
        raise
    except Exception as error:
        raise _refused(error, plan.repo_id) from None  # what the client raised may hold the request's headers
    return str(sent.commit_url).partition("/commit/")[0]


def pull(name: str, revision: str | None = None, progress: Progress | None = None) -> tuple[str, Path]:
    """Fetch ``owner/name/FILE.safetensors`` into the vectors folder, or an SAE's folder into the hub's cache.

    Returns:
        What it is (``vector``, ``probe`` or ``sae``), and where it is.

    Raises:
        LensError: For what is not there, and for a file that holds no vector.
    """
    from lens_tui.sae.from_hub import fetch_sae, is_hub_id

    if not is_hub_id(name):
        raise LensError(f"{one_line(name, 80)!r} names nothing at the hub.", "Write owner/name or owner/name/FILE.")
    owner, _, inner = name.partition("/")
    repo, _, inner = inner.partition("/")
    wanted = [inner] if inner.endswith(".safetensors") else [] if inner else ["vector.safetensors", "probe.safetensors"]
    if wanted:
        try:
            file = first_file(f"{owner}/{repo}", wanted, (), revision=revision, cache_dir=None, progress=progress)
            vectors = load_vectors(file)
        except LensError:
            if inner and inner.rpartition("/")[2] not in ("params.safetensors", "sae_weights.safetensors"):
                raise
        else:
            return _kept(file, vectors, repo)
    return "sae", fetch_sae(name, revision, progress)


def _kept(file: Path, vectors: Sequence[Any], repo: str) -> tuple[str, Path]:
    if len(vectors) != 1:
        raise LensError(
            f"{short_path(file)} holds {len(vectors)} vectors, and one is kept.", "Fetch the file by itself."
        )
    kind = "probe" if vectors[0].origin.kind == "probe" else "vector"
    target = paths.vectors_folder() / f"{one_line(repo, 60)}.safetensors"
    if target.exists():
        raise LensError(f"{short_path(target)} is there already.", "Move it away first.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
    return kind, target


def _of_vector(place: Path, vector: Any, repo_id: str, licence: str, private: bool) -> Publication:
    kind = "probe" if vector.origin.kind == "probe" else "vector"
    facts = {key: value for key, value in vector.origin.facts.items() if key not in _PRIVATE_FACTS}
    about = {
        "model": vector.model or "not said",
        "layer": vector.layer,
        "site": vector.site,
        "width": vector.d_model,
        "length it was made with": f"{vector.norm:.6g}",
        "made": vector.origin.kind,
        **{key: value for key, value in facts.items() if isinstance(value, str | int | float | bool)},
    }
    verb = "compare 'Once upon a time' --arm 'FILE*SCALE'" if kind == "vector" else "probe apply FILE TEXT"
    use = f"mlx-lens-tui pull {repo_id}   # prints FILE\nmlx-lens-tui {verb}"
    return Publication(
        repo_id, kind, {f"{kind}.safetensors": place}, _card(repo_id, kind, about, licence, use), private
    )


def _of_sae(place: Path, repo_id: str, licence: str, private: bool) -> Publication:
    from lens_tui.sae.load_sae import sae_info

    info = sae_info(str(place))
    about = {
        "model": info.model_name or "not said",
        "layer": info.layer if info.layer >= 0 else "not said",
        "site": info.site or "not said",
        "architecture": info.architecture,
        "width": info.width,
        "d_model": info.d_model,
        "L0 (declared)": "not said" if info.l0 is None else f"{info.l0:.4g}",
        "format": info.format or "not said",
        "id": info.id,
    }
    if place.is_file():
        files = {place.name: place}
    else:
        kept = [file for file in sorted(place.iterdir()) if file.suffix in (".safetensors", ".json", ".npz")]
        files = {file.name: file for file in kept if file.is_file() and not file.name.startswith(".")}
    use = f"mlx-lens-tui features 'Once upon a time' --sae {repo_id}"
    return Publication(repo_id, "sae", files, _card(repo_id, "SAE", about, licence, use), private)


def _card(repo_id: str, kind: str, about: Mapping[str, Any], licence: str, use: str) -> str:
    rows = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in about.items())
    head = [f"license: {licence}"] if licence else []
    front = "\n".join(["---", *head, "library_name: mlx-lens-tui", "tags:", "- interpretability", "---"])
    said = licence or "none was given: ask its owner"
    what = f"{'An' if kind == 'SAE' else 'A'} {kind} for mlx-lens-tui."
    return (
        f"{front}\n\n# {_cell(repo_id)}\n\n{what}\n\n| | |\n|---|---|\n{rows}\n\n"
        f"Licence: {said}.\n\n"
        f"```bash\n{use}\n```\n"
    )


def _cell(value: Any) -> str:
    """A value inside a table of Markdown: nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", one_line(str(value), 160))


def _refused(error: Exception, repo_id: str) -> LensError:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return LensError(
            f"The hub does not let you write to {repo_id}.", "Log in with `hf auth login`, by a token that may write."
        )
    if isinstance(error, errors.HfHubHTTPError):
        return LensError(f"The hub answered {status} for {repo_id}.", "Try again later.")
    return explain_hub(error, repo_id)
