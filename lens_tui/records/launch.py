"""Which process of several this is, where a launcher such as ``mlx.launch`` started several for one command.

One of them, rank 0, speaks: the others compute the same and write neither to the terminal nor to files.
"""

from __future__ import annotations

import os

_RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def launched() -> bool:
    """Whether a launcher started this process as one of a group."""
    return any(os.environ.get(name, "").isdigit() for name in _RANKS)


def launched_rank() -> int:
    """This process's number, counted from 0; 0 where nobody numbered it."""
    return next((int(said) for name in _RANKS if (said := os.environ.get(name, "")).isdigit()), 0)
