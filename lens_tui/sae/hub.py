"""Fetch single files of SAE repositories from the Hugging Face hub: never a whole snapshot.

Transfers go through ``huggingface_hub``: they resume, and what is in its cache is used without a network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lens_tui.records import LensError
from lens_tui.records.hub import explain_hub, quiet_hub
from lens_tui.records.sanitise import one_line

Progress = Callable[[int, int], None]
"""``progress(done, total)`` in bytes."""


def fetch_file(
    repo_id: str, name: str, revision: str | None, progress: Progress | None, cache_dir: str | Path | None
) -> Path | None:
    """The local path of one file of a repository, fetched if it is not cached; ``None`` if the repository lacks it.

    What ``progress`` raises ends the transfer and is passed on; the next call takes it up again.
    Raises ``LensError`` for everything else that can go wrong with a hub.
    """
    quiet_hub()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    mine: list[BaseException] = []
    options: dict[str, Any] = {} if progress is None else {"tqdm_class": _bar(progress, mine)}
    try:
        return Path(hf_hub_download(repo_id, name, revision=revision, cache_dir=cache_dir, **options))
    except LocalEntryNotFoundError as error:
        raise _explained(error.__cause__ or error, repo_id) from error
    except EntryNotFoundError:
        return None
    except Exception as error:
        if error in mine:
            raise
        raise _explained(error, repo_id) from error


def list_files(repo_id: str, revision: str | None, folder: str = "") -> list[str] | None:
    """All file names under a folder of a repository (``""``: all), or ``None`` if the hub cannot be reached.

    Raises ``LensError`` for a repository or revision that does not exist.
    """
    quiet_hub()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        tree = HfApi().list_repo_tree(repo_id, path_in_repo=folder or None, recursive=True, revision=revision)
        return [item.path for item in tree if hasattr(item, "size")]
    except EntryNotFoundError:
        return []
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, ValueError) as error:
        raise _explained(error, repo_id) from error
    except Exception:
        return None


def cached_file(
    repo_id: str, name: str, revision: str | None, cache_dir: str | Path | None
) -> Path | Literal["absent", "unknown"]:
    """A file of a repository if it is in the cache; never uses the network.

    ``absent``: the hub said before that the repository has no such file; ``unknown``: it was never asked for.
    """
    quiet_hub()
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo_id, name, revision=revision, cache_dir=cache_dir)
    except ValueError as error:
        raise _explained(error, repo_id) from error
    if isinstance(found, str):
        return Path(found)
    return "unknown" if found is None else "absent"


def _bar(progress: Progress, raised: list[BaseException]) -> Any:
    """A stand-in for tqdm that reports bytes, and notes what the report raises."""

    class Bar:
        def __init__(self, *_: Any, **options: Any) -> None:
            self.total, self.n = int(options.get("total") or 0), int(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            try:
                progress(self.n, max(self.total, self.n))
            except BaseException as error:
                raised.append(error)
                raise

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_, **__: None

    return Bar


def _explained(error: BaseException, repo_id: str) -> LensError:
    repo = one_line(repo_id, 80)
    hint = "Connect once to fetch it, and check that HF_HUB_OFFLINE is not set."
    absent = LensError(f"The file of {repo} is not in the cache, and the hub cannot be reached.", hint)
    return explain_hub(error, repo, kept="what was fetched so far is kept.", absent=absent)
