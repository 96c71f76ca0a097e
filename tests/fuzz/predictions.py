"""A file of predictions: logits and labels in an .npz, mutated as `own_npz.py` mutates one of images."""

from __future__ import annotations

import zipfile
from pathlib import Path
from random import Random

import numpy as np

from fastcifar.errors import UserError
from fastcifar.training.predictions import read_predictions
from tests.fuzz import npz
from tests.fuzz.engine import one_line
from tests.fuzz.own_npz import true_size as true_size
from tests.fuzz.own_npz import with_other_header

LOGITS = np.random.RandomState(3).normal(size=(24, 3)).astype(np.float32)
ARRAYS = {"plain_logits": LOGITS[::-1].copy(), "tta_logits": LOGITS, "labels": np.arange(24) % 4 - 1}
CASES = 150


def seeds() -> dict[str, bytes]:
    files = npz.parts(ARRAYS)
    return {"stored": npz.zipped(files), "deflated": npz.zipped(files, zipfile.ZIP_DEFLATED)}


def mutate(data: bytes, random: Random) -> bytes:
    """Change an array's header or values, or what `npz.py` changes in the file of a data set."""
    if random.random() < 0.3:
        return npz.mutate(data, random)
    files = npz.parts(ARRAYS)
    name = random.choice(list(files))
    array = ARRAYS[name.removesuffix(".npy")].copy()
    if random.random() < 0.3:
        numbers = (-2, 3, 127) if array.ndim == 1 else (-2, 3, np.nan, np.inf, 3e38)
        array.flat[random.randrange(array.size)] = random.choice(numbers)
    return with_other_header(files, name, array, random)


def check(data: bytes, folder: Path) -> bool:
    path = folder / "predictions.npz"
    path.write_bytes(data)
    try:
        found = read_predictions([path])
    except UserError as error:
        one_line(error)
        return False
    with np.lib.npyio.NpzFile(path.open("rb"), own_fid=True) as arrays:  # np.load refuses bytes before an archive
        assert np.array_equal(found.logits[0], arrays["tta_logits"].astype(np.float32)), "other logits"
        assert np.array_equal(found.labels, arrays["labels"]), "other labels"
    assert np.isfinite(found.logits).all() and -1 <= found.labels.min() <= found.labels.max() < found.logits.shape[2]
    return True
