"""IDX and MAT files: equal to what other readers read, and refused where they are damaged or something else."""

import gzip
import struct

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from fastcifar.data.idx import read_idx
from fastcifar.data.mat import read_mat
from fastcifar.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
IDX = struct.pack(">4I", 0x803, 5, 4, 3) + PIXELS.tobytes()


@pytest.mark.parametrize("content", [IDX, gzip.compress(IDX, mtime=0)], ids=["plain", "gzip"])
def test_an_idx_file_gives_its_array(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert np.array_equal(read_idx(tmp_path / "a", (5, 4, 3)), PIXELS)


@pytest.mark.parametrize(
    ("content", "message"),
    {
        "shape": (struct.pack(">4I", 0x803, 5, 3, 4) + PIXELS.tobytes(), r"is uint8 \[5, 3, 4\]; allowed: an IDX file"),
        "huge": (struct.pack(">4I", 0x803, 2**32 - 1, 4, 3), r"is uint8 \[4294967295, 4, 3\]; allowed"),
        "axes": (struct.pack(">2I", 0x801, 60) + PIXELS.tobytes(), "is something else; allowed: an IDX file, uint8"),
        "type": (struct.pack(">4I", 0xD03, 5, 4, 3) + bytes(240), "is something else; allowed"),
        "empty": (b"", "is something else; allowed"),
        "short": (IDX[:-1], "is damaged: it ends too early"),
        "long": (IDX + b"\0", "is damaged: bytes follow its end"),
        "checksum": (gzip.compress(IDX, mtime=0)[:-8] + bytes(8), "is damaged: CRC check failed"),
        "half": (gzip.compress(IDX, mtime=0)[:-20], "is damaged: "),
    }.values(),
)
def test_another_idx_file_is_refused(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(tmp_path / "a", (5, 4, 3))


SHAPES = {"X": (4, 3, 2, 5), "y": (5, 1)}
RIGHT = {"X": PIXELS.repeat(2).reshape(SHAPES["X"]), "y": np.arange(5, dtype=np.uint8)[:, None]}
OTHERS = {"text": "words", "cell": np.array([1, "a"], dtype=object), "record": {"a": 1}, "sparse": scipy.sparse.eye(3)}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f4", "f8"])
def test_a_mat_file_gives_what_scipy_reads(tmp_path, packed, dtype):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {**OTHERS, **RIGHT, "y": RIGHT["y"].astype(dtype)}, do_compression=packed)
    found, expected = read_mat(path, SHAPES), scipy.io.loadmat(path)
    for name in SHAPES:
        assert np.array_equal(found[name], expected[name])


WRONG = {
    "shape": ({"X": RIGHT["X"][:3]}, r"X is uint8 \[3, 3, 2, 5\]; allowed: \[4, 3, 2, 5\]"),
    "absent": ({"X": None}, "lacks X; allowed: with X and y"),
    "complex": ({"y": RIGHT["y"] * 1j}, "is damaged: y is no array of real numbers"),
    **{name: ({"y": each}, "is damaged: ") for name, each in OTHERS.items()},
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_another_mat_file_is_refused(tmp_path, wrong, packed):
    arrays, message = WRONG[wrong]
    arrays = {name: each for name, each in {**RIGHT, **arrays}.items() if each is not None}
    scipy.io.savemat(tmp_path / "a.mat", arrays, do_compression=packed)
    with pytest.raises(UserError, match=message):
        read_mat(tmp_path / "a.mat", SHAPES)


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_mat_file_is_refused(tmp_path, packed):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, RIGHT, do_compression=packed)
    content = path.read_bytes()
    for end in (0, 127, 130, 200, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"is damaged: |is no MAT-file of level 5|lacks X and y"):
            read_mat(path, SHAPES)
    path.write_bytes(content + content[128:])
    with pytest.raises(UserError, match="is damaged: X is there twice"):
        read_mat(path, SHAPES)
    path.write_bytes(content[:124] + b"\0\2" + content[126:])  # as MATLAB 7.3 writes it, which is HDF5
    with pytest.raises(UserError, match="is no MAT-file of level 5; allowed: as MATLAB's save -v6 or -v7 writes it"):
        read_mat(path, SHAPES)
    if packed:
        path.write_bytes(content[:-4] + bytes(4))
        with pytest.raises(UserError, match=r"is damaged: .*incorrect data check"):
            read_mat(path, SHAPES)
