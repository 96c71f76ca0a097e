"""An .npz of images of the user's own, of any size: what `npz.py` mutates, and names and colors beside it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from random import Random

import numpy as np

from fastcifar.data.npz import load_npz
from fastcifar.errors import UserError
from tests.fuzz import npz
from tests.fuzz.engine import one_line

IMAGES = np.random.RandomState(5).randint(0, 256, (24, 6, 5, 3)).astype(np.uint8)
LABELS = np.arange(24) % 3
SPLIT = {
    "train_images": IMAGES[:16],
    "train_labels": LABELS[:16],
    "test_images": IMAGES[16:],
    "test_labels": LABELS[16:],
}
KERAS = {"x_train": IMAGES / 255, "y_train": LABELS[:, None], "x_test": IMAGES[:9].transpose(0, 3, 1, 2)}
NAMED = {**SPLIT, "classes": np.array(["ant", "bee", "cow"]), "mean": np.full(3, 100.0), "std": np.full(3, 50.0)}
CASES = 150


def seeds() -> dict[str, bytes]:
    return {
        **{"split": npz.zipped(npz.parts(SPLIT)), "keras": npz.zipped(npz.parts(KERAS), zipfile.ZIP_DEFLATED)},
        **{"named": npz.zipped(npz.parts(NAMED))},
    }


def mutate(data: bytes, random: Random) -> bytes:
    """Change an array's header, or what `npz.py` changes in the file of another data set."""
    if random.random() < 0.3:
        return npz.mutate(data, random)
    arrays = random.choice((SPLIT, KERAS, NAMED))
    files = npz.parts(arrays)
    name = random.choice(list(files))
    return with_other_header(files, name, arrays[name.removesuffix(".npy")], random)


def with_other_header(files: dict[str, bytes], name: str, array: np.ndarray, random: Random) -> bytes:
    """Return an archive of the files in which that of `array` claims another type or shape, perhaps."""
    descr = random.choice(npz.DTYPES) if random.random() < 0.5 else repr(array.dtype.str)
    shape = random.choice(npz.SHAPES) if random.random() < 0.5 else str(array.shape)
    text = f"{{'descr': {descr}, 'fortran_order': {random.choice((True, False))}, 'shape': {shape}}}"
    files[name] = npz.header(text) + array.tobytes()
    return npz.zipped(files, random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def true_size(data: bytes) -> int:
    """Return the bytes that the arrays hold when unpacked, twice: as they are, and as what is made of them."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return 2 * max(len(data), sum(min(each.file_size, 1032 * len(data)) for each in archive.infolist()))
    except Exception:
        return len(data)


def check(data: bytes, folder: Path) -> bool:
    path = folder / "data.npz"
    path.write_bytes(data)
    try:
        dataset = load_npz(path)
    except UserError as error:
        one_line(error)
        return False
    with np.load(path) as arrays:
        keys = ("test_images", "x_test", "val_images", "x_val")
        found = next(arrays[key] for key in keys if key in arrays and len(arrays[key]))
    found = np.rint(found * 255) if found.dtype.kind == "f" else found
    found = found[..., None] if found.ndim == 3 else found
    found = found if found.shape[3] in (1, 3) else found.transpose(0, 2, 3, 1)
    assert np.array_equal(np.broadcast_to(found, (*found.shape[:3], 3)), dataset.test.images.numpy()), "other values"
    return True
