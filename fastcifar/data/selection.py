"""Choices among training images: subsets, folds, and the images that an epoch visits when it leaves out the easiest."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from fastcifar.errors import UserError
from fastcifar.recipes.declare import Declaration, checked

_FOLD_SEED = 50_001
"""Never to be changed: another seed makes other folds, and old results could not be compared."""


def subset_indices(
    labels: torch.Tensor,
    size: int | None,
    seed: int,
    balanced: bool = False,
    classes: Collection[int] | None = None,
) -> torch.Tensor:
    """Return places drawn without replacement: int64 `[size]`, ascending, on the CPU.

    labels: int64 `[N]`.
    size: number of places; None: all.
    seed: with the same seed (and other arguments), a smaller size is part of a larger one.
    balanced: take as nearly as possible the same number of each class.
    classes: draw only from places with these labels.

    Raises UserError if there are fewer than `size`.
    """
    seed = checked("the subset's seed", seed, int, Declaration(at_least=0, below=2**32))
    balanced = checked("balanced", balanced, bool)
    labels_of = labels.cpu().numpy()
    # RandomState's numbers are frozen (NEP 19); those of torch and of numpy's newer generators may change by version.
    order = np.random.RandomState(seed).permutation(len(labels_of))
    if classes is not None:
        order = order[np.isin(labels_of[order], list(classes))]
    if balanced:
        # One of each class in turn: sort by an image's rank among those of its class.
        rank = np.empty(len(order), dtype=np.int64)
        for label in np.unique(labels_of[order]):
            same = labels_of[order] == label
            rank[same] = np.arange(same.sum())
        order = order[np.argsort(rank, kind="stable")]
    size = len(order) if size is None else int(checked("subset size", size, int))
    if not 0 < size <= len(order):
        of_classes = "" if classes is None else f" of classes {', '.join(map(str, sorted(classes)))}"
        raise UserError(f"subset size is {size}; allowed: 1 to {len(order)}, the training images{of_classes}")
    return torch.from_numpy(np.sort(order[:size]))


def fold_of(labels: torch.Tensor, number: int, folds: int) -> torch.Tensor:
    """Return the places of part `number`, from 1, of `folds` parts of images with these `labels`, int64 `[N]`: int64
    `[n]`, ascending, on the CPU. The parts have no place in common and hold all; their sizes, and those of each class
    in them, differ by one at most."""
    labels_of = labels.cpu().numpy()
    order = np.random.RandomState(_FOLD_SEED).permutation(len(labels_of))
    order = order[np.argsort(labels_of[order], kind="stable")]  # class by class, each dealt to the parts in turn
    return torch.from_numpy(np.sort(order[number - 1 :: folds]))


def hardest(losses: torch.Tensor, number: int) -> torch.Tensor:
    """Return the places, int64 `[number]`, ascending, of the largest `losses`, float `[N]`, infinite for images never
    visited; among equal losses the first places.

    They are chosen by a stable sort on the losses' device, which nothing waits for.
    """
    return losses.argsort(descending=True, stable=True)[:number].sort().values
