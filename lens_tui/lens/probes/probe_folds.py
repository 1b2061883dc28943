"""Folds for held-out scores, and labels dealt at random: the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

Array = NDArray[np.float64]
Whole = NDArray[np.int64]


def numbered(groups: Sequence[Any]) -> Whole:
    """Groups of any names by number, in order of their first appearance."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(group, len(known)) for group in groups], dtype=np.int64)


def stratified(labels: Array, groups: Whole, folds: int, seed: int, *, classes: bool) -> Whole:
    """The fold of each example: groups stay together, and labels are as alike in the folds as groups allow.

    Groups are dealt in a random order, larger ones first, each to the fold that has least of what it holds.

    Args:
        labels: ``(n,)``.
        groups: ``(n,)``, the number of each example's group.
        folds: How many, at most; no more than every class has groups.
        seed: Of the order.
        classes: Labels are 0 and 1; else numbers, of which each fold gets about as many.

    Raises:
        LensError: For fewer than two groups of a class.
    """
    count = int(groups.max()) + 1
    kinds = (labels > 0.5).astype(np.int64) if classes else np.zeros(len(labels), np.int64)
    held = np.zeros((count, 2 if classes else 1), np.int64)
    np.add.at(held, (groups, kinds), 1)
    least = int((held > 0).sum(axis=0).min())
    if least < 2:
        raise LensError(
            "There are too few examples to hold some out of each label.", "Give at least two, in different groups."
        )
    folds = min(folds, least)
    if folds < 2:
        raise LensError(f"Held-out scores need at least 2 folds, not {folds}.")
    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(-held[order].max(axis=1), kind="stable")]
    sums, fold_of = np.zeros((folds, held.shape[1])), np.zeros(count, np.int64)
    for group in order:
        # Of what the group holds, the fold that has least; of those that are alike, the emptiest.
        costs = [(*sums[at][held[group] > 0].tolist(), sums[at].sum()) for at in range(folds)]
        at = min(range(folds), key=costs.__getitem__)
        sums[at] += held[group]
        fold_of[group] = at
    found: Whole = fold_of[groups]
    return found


def dealt(labels: Array, groups: Whole, count: int, seed: int) -> Array:
    """Labels at random, ``(n, count)``: within groups where a group holds several labels, else whole groups' labels.

    So a permutation keeps what makes examples alike: the two texts of a pair change places, the tokens of a text keep
    one label.
    """
    rng = np.random.default_rng(seed)
    size = int(groups.max()) + 1
    members = [np.flatnonzero(groups == group) for group in range(size)]
    found = np.empty((len(labels), count))
    if all((labels[member] == labels[member[0]]).all() for member in members):
        own = np.array([labels[member[0]] for member in members])
        for at in range(count):
            found[:, at] = own[rng.permutation(size)][groups]
        return found
    for at in range(count):
        for member in members:
            found[member, at] = labels[rng.permutation(member)]
    return found
