"""`examine`: every image and label of a dataset looked at, for `fastcifar data verify`."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import torch

from fastcifar.data.dataset import Dataset, Split

_AT_ONCE = 1 << 26
"""Bytes of images that are looked at at once."""
_NAMED = 5
"""Images that are named by their places."""


def examine(dataset: Dataset) -> dict[str, Any]:
    """Return what is found in a dataset on the CPU, ready for JSON. Two images are the same if all their bytes are, by
    a hash of 128 bits; places count from 0, and no more than the first 5 are given.

    splits: of each its "images", how many are "unlabeled", "counts" of the labeled ones by class, how many are of
        "one_color" and their places, and how many are "repeated", the same as an earlier one of the split.
    shared: of each two splits how many "images" of the second are in the first too, their places in the second and in
        the first, and how many of them have "other_labels" there.
    """
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    splits = {name: split for name, split in splits.items() if split is not None and len(split)}
    found, hashes, firsts, labels = {}, {}, {}, {}
    for name, split in splits.items():
        hashes[name], plain = _look(split)
        labels[name] = split.labels.tolist()
        firsts[name] = {key: place for place, key in reversed(list(enumerate(hashes[name])))}
        found[name] = {
            "images": len(split),
            "unlabeled": int((~split.labeled).sum()),
            "counts": torch.bincount(split.labels[split.labeled], minlength=len(dataset.classes)).tolist(),
            "one_color": {"images": len(plain), "places": plain[:_NAMED]},
            "repeated": len(split) - len(firsts[name]),
        }
    shared = {}
    for first, second in itertools.combinations(splits, 2):
        pairs = [(place, firsts[first][key]) for place, key in enumerate(hashes[second]) if key in firsts[first]]
        given = [(labels[second][place], labels[first][other]) for place, other in pairs]
        others = sum(label != other and min(label, other) >= 0 for label, other in given)
        shared[f"{first} and {second}"] = {"images": len(pairs), "other_labels": others, "places": pairs[:_NAMED]}
    return {"splits": found, "shared": shared}


def _look(split: Split) -> tuple[list[bytes], list[int]]:
    """Return a hash of each image, and the places of those that are of one color."""
    hashes, plain, images = [], [], split.images
    at_once = max(1, _AT_ONCE * len(images) // max(1, images.nbytes))
    for start in range(0, len(images), at_once):
        piece = images[start : start + at_once]
        hashes += [hashlib.blake2b(image, digest_size=16).digest() for image in piece.flatten(1).numpy()]
        pixels = piece.flatten(1, 2)
        is_plain = (pixels == pixels[:, :1]).flatten(1).all(1)
        plain += (start + is_plain.nonzero()[:, 0]).tolist()
    return hashes, plain
