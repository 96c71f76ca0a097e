"""Precision, recall and the confusion matrix by class, by scikit-learn's definitions with zero_division=0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fastcifar.by_class import ClassScores
from fastcifar.errors import UserError, brief
from fastcifar.escape import shown
from fastcifar.report.tables import Table

MOST_ROWS = 20
"""Classes that a table shows; of more, those with the lowest recall."""
_LONGEST = 30


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: int) -> np.ndarray:
    """Return `matrix[label, predicted]`, int64 `[classes, classes]`: how many images of each class are taken for each.

    labels: whole numbers `[N]`; images labeled -1 are left out.
    predicted: the classes that the images are taken for, whole numbers `[N]`.
    classes: how many there are.

    Raises UserError for other arrays and for numbers of no class.
    """
    found = []
    for name, values, least in (("labels", labels, -1), ("predicted", predicted, 0)):
        array = np.asarray(values)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise UserError(f"{name} is {array.dtype} {list(array.shape)}; allowed: whole numbers [N]")
        if array.size and not (array.min() >= least and array.max() < classes):
            raise UserError(f"{name} is {array.min()} to {array.max()}; allowed: {least} to {classes - 1}")
        found.append(array.astype(np.int64))
    label, taken = found
    if label.shape != taken.shape:
        raise UserError(f"labels is {list(label.shape)} and predicted {list(taken.shape)}; allowed: the same images")
    pairs = (label * classes + taken)[label >= 0]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def precision_recall(matrix: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall of each class, fractions, float64 `[classes]`, from a confusion matrix; 0 where
    nothing is taken for the class, or no image is of it. Raises UserError for what is no such matrix."""
    array = np.asarray(matrix)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.dtype.kind not in "iu" or (array < 0).any():
        raise UserError(f"matrix is {array.dtype} {list(array.shape)}; allowed: numbers of images [classes, classes]")
    scores = ClassScores.of(array.tolist())
    return np.array(scores.precision), np.array(scores.recall)


def by_class_table(scores: ClassScores, names: Sequence[str]) -> Table:
    """Return a row for each class, named by `names`, and the means; of more than `MOST_ROWS` classes for those with the
    lowest recall."""
    if len(names) != len(scores.recall):
        raise UserError(f"names is {brief(list(names))}; allowed: {len(scores.recall)} of them")
    order = list(range(len(names)))
    if len(order) > MOST_ROWS:
        order = sorted(order, key=lambda label: scores.recall[label])[:MOST_ROWS]
    rows = [
        (shown(names[label], _LONGEST), f"{sum(scores.confusion[label]):,}", *_wrong(scores, names, label))
        for label in order
    ]
    count = f"{sum(map(sum, scores.confusion)):,}"
    rows.append(("mean", count, f"{scores.mean_precision:.2%}", f"{scores.mean_recall:.2%}", ""))
    which = f"the {MOST_ROWS} of {len(names)} classes with the lowest recall" if len(order) < len(names) else "by class"
    heads = ("class", "images", "precision", "recall", "most often taken for")
    return Table(f"Precision and recall, {which}", heads, tuple(rows))


def _wrong(scores: ClassScores, names: Sequence[str], label: int) -> tuple[str, str, str]:
    """Return the scores of a class, and the class that its images are most often taken for by mistake."""
    counts = [0 if other == label else count for other, count in enumerate(scores.confusion[label])]
    most = max(counts)
    taken = f"{shown(names[counts.index(most)], _LONGEST)} ({most:,})" if most else "-"
    return f"{scores.precision[label]:.2%}", f"{scores.recall[label]:.2%}", taken
