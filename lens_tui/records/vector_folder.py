"""The folder of your vectors: what lies there, and one more kept in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import paths
from .errors import LensError
from .sanitise import one_line
from .steering_vector import SteeringVector
from .vector_formats import SUFFIXES, load_one
from .vector_formats.own import file_names, read_one, write_one


@dataclass(frozen=True, slots=True, eq=False)
class VectorFile:
    """A file of the vectors folder: the vector it holds, or why it is not known which that is."""

    path: Path
    vector: SteeringVector | None
    problem: str = ""


def keep_vector(vector: SteeringVector) -> Path:
    """The file of the vectors folder that holds this vector; it is written if there is none.

    Of files named after it the first whose direction, layer and site are the same is taken, so that asking again makes
    no second one. Raises :class:`LensError` if the disk refuses.
    """
    for file in file_names(paths.vectors_folder(), vector.name):
        if not file.exists():
            return write_one(vector, file)
        try:
            held = read_one(file)
        except LensError:
            continue
        if (held.layer, held.site) == (vector.layer, vector.site) and np.array_equal(held.direction, vector.direction):
            return file
    raise LensError(f"The vectors folder has no name left for {vector.name!r}.", "Give it another name.")


def list_vectors(folder: Path | None = None) -> list[VectorFile]:
    """The vector files of a folder (the user's own by default), of any format, by name.

    Those that do not give one vector without being asked which, or cannot be read, come with the reason.
    """
    found = []
    for file in sorted((folder or paths.vectors_folder()).glob("*")):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
            continue
        try:
            found.append(VectorFile(file, load_one(file)))
        except LensError as error:
            found.append(VectorFile(file, None, one_line(str(error), 300)))
    return found
