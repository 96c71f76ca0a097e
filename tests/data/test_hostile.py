"""Archives that are wrong or hostile, one of each kind; tests/fuzz mutates thousands of them."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import struct
import tarfile
import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import cifar
from fastcifar.data.archives import read_npz, read_tar_gz
from fastcifar.data.arrays import images_from, labels_from
from fastcifar.data.cifar import load_release
from fastcifar.data.pickled import read_pickle
from fastcifar.errors import UserError
from tests.fuzz import npz, pickled, releases
from tests.fuzz.releases import PIXELS, RECORDS, RELEASE, TRUE_SIZE, assert_same, gz, members, tar

FORMS = ("binary", "python")


@contextlib.contextmanager
def limited(size=TRUE_SIZE):
    """Raise AssertionError unless the block takes less memory of Python and numpy than twice the data and a little."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * size + (5 << 20), f"{peak >> 20} MiB"


def refused(place, message, release=RELEASE):
    with limited(), pytest.raises(UserError, match=message) as caught:
        load_release(release, place)
    assert str(caught.value).isprintable()


def pinned(path, form, content):
    """Write an archive to `path` and return the release of which it is the official one."""
    path.write_bytes(content)
    archive = dataclasses.replace(getattr(RELEASE, form), md5=hashlib.md5(content).hexdigest(), size=TRUE_SIZE)
    return dataclasses.replace(RELEASE, **{form: archive})


def changed(form, **fields):
    """Return an archive whose third batch says other things of itself."""
    parts = members(form)
    for name, value in fields.items():
        setattr(parts[3][0], name, value)
    return gz(tar(parts))


def header(kind, text):
    member = tarfile.TarInfo("header")
    member.type, member.size = kind, len(text)
    return member, text


TARS = {
    "a file cut short": (lambda form: gz(tar(members(form)))[:-2000], "is damaged: Compressed file ended"),
    "a checksum": (lambda form: gz(tar(members(form)))[:-8] + bytes(8), "is damaged: CRC check failed"),
    "bytes after gzip's end": (lambda form: gz(tar(members(form))) + b"more", "is damaged: Not a gzipped file"),
    "bytes after tar's end": (lambda form: gz(tar(members(form)) + b"more"), "is damaged: bytes follow its end"),
    "no gzip": (lambda form: tar(members(form)), "is damaged: Not a gzipped file"),
    "a member twice": (lambda form: gz(tar([*members(form), members(form)[2]])), "holds .*data_batch_2.* twice"),
    "a member that lacks": (lambda form: gz(tar(members(form)[:-1])), "lacks .*test_batch"),
    "a folder": (lambda form: changed(form, type=tarfile.DIRTYPE, size=0), "is damaged: bad checksum|invalid|checksum"),
    "a link": (lambda form: changed(form, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a member of type b'2'"),
    "a hard link": (lambda form: changed(form, type=tarfile.LNKTYPE, linkname="../a"), "a member of type b'1'"),
    "a device": (lambda form: changed(form, type=tarfile.CHRTYPE), "a member of type b'3'"),
    "a fifo": (lambda form: changed(form, type=tarfile.FIFOTYPE), "a member of type b'6'"),
    "a sparse file": (lambda form: changed(form, type=tarfile.GNUTYPE_SPARSE), "a member of type b'S'"),
    "a long name": (lambda form: changed(form, type=tarfile.GNUTYPE_LONGNAME), "a member of type b'L'"),
    "a huge size": (lambda form: changed(form, size=8**11 - 1), "is damaged: it holds more than"),
    "a negative size": (lambda form: changed(form, size=-512), "is damaged: it holds more than"),
    "a size too small": (lambda form: changed(form, size=512), "data_batch_3.* is 512 bytes|data_batch_3 is no batch"),
    "another name": (lambda form: changed(form, name="../data_batch_3"), "lacks .*data_batch_3"),
    "a renaming header": (
        lambda form: gz(tar([header(tarfile.XHDTYPE, b"19 path=../escaped\n"), *members(form)])),
        "an extended header changes a file's name or size",
    ),
    "a long header": (
        lambda form: gz(tar([header(tarfile.XHDTYPE, b"1" * (1 << 20) + b"1"), *members(form)])),
        "a member of type b'x'",
    ),
    "a bomb": (lambda form: gz(tar(members(form)) + bytes(1 << 26)), "is damaged: bytes follow its end"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TARS)
def test_an_archive_that_is_wrong_is_refused_though_its_md5_is_right(tmp_path, kind, form):
    make, message = TARS[kind]
    path = tmp_path / getattr(RELEASE, form).filename
    refused(path, message, pinned(path, form, make(form)))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_an_archive_of_any_tar_is_read(tmp_path, form, tar_format):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", format=tar_format) as archive:
        for member, content in members(form):
            member.mtime = 1.5  # which PAX_FORMAT has an extended header for
            archive.addfile(member, io.BytesIO(content))
    path = tmp_path / "mirror.tgz"
    assert_same(load_release(pinned(path, form, file.getvalue()), path))


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to nothing", "device"])
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_that_is_no_file_is_refused_and_never_waited_for(tmp_path, kind, form):
    archive = getattr(RELEASE, form)
    for number, name in enumerate(archive.batches):
        make = releases.binary_batch if form == "binary" else releases.python_batch
        (tmp_path / name).write_bytes(make(number))
    assert_same(load_release(RELEASE, tmp_path))
    path = tmp_path / archive.batches[2]
    path.unlink()
    for place in (path, tmp_path / "data.npz"):
        make_special(place, kind)
    refused(tmp_path, f"lacks {path.name}")
    for name in archive.batches:
        path = tmp_path / name
        path.rmdir() if path.is_dir() else path.unlink()
    refused(tmp_path, "holds no CIFAR-10")


def make_special(path, kind):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "/nowhere")


def with_array(**changes):
    """Return an .npz with other members beside or in place of the right ones."""
    return npz.zipped({**npz.parts(npz.WHOLE), **{f"{name}.npy": content for name, content in changes.items()}})


def claiming(text, version=1):
    return npz.header(text, version) + npz.WHOLE["images"].tobytes()


def described(shape, descr="'|u1'", order=False):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


LABELS = npz.parts(npz.WHOLE)["labels.npy"]


def twice():
    """Return an .npz with two members of one name, which zipfile warns of when it writes them."""
    return with_array(labelz=LABELS).replace(b"labelz.npy", b"labels.npy")


NPZ = {
    "a huge shape": (with_array(images=claiming(described("(10000000000, 32, 32, 3)"))), r"images is uint8 \[100000"),
    "a negative shape": (with_array(images=claiming(described("(-24, 32, -32, 3)"))), r"images is uint8 \[-24"),
    "a shape of bools": (with_array(images=claiming(described("(24, 32, 32, True)"))), "images is uint8"),
    "no dimensions": (with_array(images=claiming(described("()"))), r"images is uint8 \[\]"),
    "objects": (with_array(images=claiming(described("(24, 32, 32, 3)", "'|O'"))), "images is object"),
    "structures": (with_array(images=claiming(described("(24, 32, 32, 3)", "[('a', '|u1')]"))), "images is"),
    "code": (with_array(images=claiming("__import__('os').system('touch escaped')")), "images is damaged"),
    "deep nesting": (with_array(images=claiming("-" * 1000 + "1")), "images is damaged"),
    "deeper nesting": (with_array(images=claiming("(" * 60_000)), "its header is 60,001 bytes; allowed: up to 1,024"),
    "a header of 64 MiB": (1, "its header is 67,108,865 bytes"),
    "a format to come": (with_array(images=claiming(described("(24, 32, 32, 3)"), 9)), "images is damaged: .*9"),
    "no array": (with_array(images=b"12345678"), "images is damaged: the magic string is not correct"),
    "bytes after an array": (with_array(labels=LABELS + b"\0"), "labels is damaged: its size is"),
    "an array cut short": (with_array(labels=LABELS[:-1]), "labels is damaged: its size is"),
    "a bomb": (0, "labels is damaged: its size is"),
    "many members": (3, "is damaged, or no .npz"),
    "packed by bzip2": (4, "packed in a way that numpy never does"),
    "packed by LZMA": (5, "packed in a way that numpy never does"),
    "a member twice": (twice(), "labels is damaged: it is there 2 times"),
    "a password": (with_array().replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"), "encrypted"),
}
"""A file's content, or its place in `npz.bombs()`, which take a second to make; and what is said of it."""


@pytest.mark.parametrize("kind", NPZ)
def test_an_npz_that_is_wrong_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = NPZ[kind]
    path = tmp_path / "data.npz"
    path.write_bytes(npz.bombs()[content] if isinstance(content, int) else content)
    refused(path, message)
    assert list(tmp_path.iterdir()) == [path]


def test_an_array_of_format_3_is_read(tmp_path):
    images = np.ascontiguousarray(npz.WHOLE["images"])
    text = described(str(images.shape))
    (tmp_path / "data.npz").write_bytes(with_array(images=npz.header(text, 3) + images.tobytes()))
    assert np.array_equal(read_npz(tmp_path / "data.npz", "images", "u1", images.shape, ""), images)


def test_a_flipped_bit_is_found_wherever_it_is_in_an_array(tmp_path):
    path = tmp_path / "data.npz"
    whole = npz.zipped(npz.parts(npz.WHOLE))
    start = whole.index(npz.WHOLE["images"].tobytes(order="F"))
    for place in range(start, start + TRUE_SIZE, TRUE_SIZE // 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(path, "images is damaged: Bad CRC-32")


@pytest.mark.parametrize("name", pickled.BOMBS)
def test_a_pickle_that_is_hostile_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickled.BOMBS[name]
    with pytest.raises(UserError, match="is no batch of CIFAR-10") as caught:
        read_pickle("batch", len(content), io.BytesIO(content), RECORDS, PIXELS)
    assert str(caught.value).isprintable() and not list(tmp_path.iterdir())


def test_bytes_that_many_arrays_share_are_not_copied_for_each():
    raw = bytes(1 << 20)
    kind = b"cnumpy\ndtype\n\x8c\2u1\x89\x88\x87Rq\1"
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85\x8c\1b\x87R"
    array = new + b"(K\1K\4J\0\0\4\0\x86h\1\x89h\0tb"
    content = b"\x80\4}(\x8c\3rawB" + struct.pack("<I", len(raw)) + raw + b"q\0\x8c\4kind" + kind
    content += b"\x8c\4many](" + array * 50 + b"e\x8c\4data" + array + b"\x8c\6labels](" + b"K\1" * 4 + b"eu."
    with limited(len(raw)):
        labels, pixels = read_pickle("batch", len(content), io.BytesIO(content), 4, len(raw) // 4)
    assert labels.tolist() == [1] * 4 and pixels.shape == (4, 1 << 18)


_LONG = b"\x8a\xff" + b"\x7f" * 255
SLOW = {
    "many keys": b"\x80\2}" + b"".join(b"X\3\0\0\0%03xNs" % place for place in range(4096)) * 8 + b".",
    "different keys": b"\x80\2}" + b"".join(b"X\4\0\0\0%04xNs" % place for place in range(30_000)) + b".",
    "many dimensions": b"\x80\5cnumpy.core.numeric\n_frombuffer\n(C\1acnumpy\ndtype\n\x8c\2u1\x89\x88\x87R("
    + _LONG * 90_000
    + b"t\x8c\1CtR.",
    "tuples in tuples": b"\x80\2})" + b"\x85" * 90_000 + b"Ns.",
    "lists": b"\x80\2](" + b"]" * 90_000 + b"e.",
}


@pytest.mark.parametrize("name", SLOW)
def test_a_pickle_of_a_full_batch_that_takes_long_for_others_is_soon_refused(name):
    start = time.process_time()
    with pytest.raises(UserError, match="is no batch of CIFAR-10"):
        read_pickle("batch", len(SLOW[name]), io.BytesIO(SLOW[name]), 10_000, PIXELS)
    assert time.process_time() - start < 5


TWICE = {
    "an end": (lambda content: content + b".", "bytes follow its end"),
    "a key": (lambda content: content.replace(b"\x09filenames", b"\x06labels"), "a key twice"),
    "a field": (lambda content: content.replace(b"U\x0bbatch_label", b"X\6\0\0\0labels"), "it has a field twice"),
}


@pytest.mark.parametrize("what", TWICE)
def test_a_pickle_that_says_things_twice_is_refused(what):
    change, message = TWICE[what]
    content = change(releases.python_batch(1))
    with pytest.raises(UserError, match=message):
        read_pickle("batch", len(content), io.BytesIO(content), RECORDS, PIXELS)


def test_batches_with_the_official_md5_are_verified_by_it(tmp_path):
    for number, name in enumerate(RELEASE.python.batches):
        (tmp_path / name).write_bytes(releases.python_batch(number))
    assert cifar.verified(tmp_path, RELEASE.python) == "sizes and labels only"
    known = tuple(hashlib.md5(releases.python_batch(number)).hexdigest() for number in range(6))
    official = dataclasses.replace(RELEASE.python, batch_md5=known)
    assert cifar.verified(tmp_path, official) == "md5 of the official batches"
    (tmp_path / "test_batch").write_bytes(releases.python_batch(0))
    with pytest.raises(UserError, match="is damaged: test_batch is not the official file, as the others are"):
        cifar.verified(tmp_path, official)
    assert cifar.verified(tmp_path, RELEASE.binary) == "sizes and labels only"


ZEROS = torch.zeros(2, 4, 4, 3)
NO_IMAGES = {
    **{"sparse": ZEROS.to_sparse(), "without memory": ZEROS.to("meta"), "complex": ZEROS.to(torch.complex64).conj()},
    **{"masked": np.ma.masked_array(ZEROS.numpy(), mask=True), "objects": np.zeros((2, 4, 4, 3), object)},
    **{
        "text": "images",
        "nothing": None,
        "ragged": [[1], [1, 2]],
        "a number beyond all types": [[[[2**70] * 3] * 4] * 4],
    },
    **{"not finite": ZEROS.numpy() + np.inf, "structures": np.zeros((2, 4, 4, 3), "u1,u1")},
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_holds_no_images_is_refused_in_a_line(kind):
    with pytest.raises(UserError) as caught:
        images_from(NO_IMAGES[kind], "x")
    assert str(caught.value).isprintable() and str(caught.value).startswith("x is ")


@pytest.mark.parametrize("label", [2**63, 2**64 - 1])
def test_a_label_beyond_int64_is_refused_and_not_turned_negative(label):
    with pytest.raises(UserError, match=f"y is 3 to {label}; allowed: 0 or more"):
        labels_from(np.array([3, label], np.uint64), 2, "y")


@settings(max_examples=60)
@given(
    st.text("./aZ\0é\n", max_size=110),
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.XHDTYPE, b"?"]),
    st.integers(-(2**40), 2**40) | st.integers(0, 3000),
    st.binary(max_size=2000),
)
def test_any_member_is_given_as_it_is_or_refused(tmp_path_factory, name, kind, size, content):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    path = tmp_path_factory.getbasetemp() / "any.tar.gz"
    path.write_bytes(gzip.compress(tar([(member, content)]), 0))
    try:
        found = [(each, claimed, file.read()) for each, claimed, file in read_tar_gz(path, 1 << 20)]
    except Exception as error:  # `damage` makes a line of it
        assert not isinstance(error, AssertionError)
        return
    rest = content + bytes(10_240)
    assert all(data == rest[:claimed] for _, claimed, data in found)


_SIDES = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 24, 2**31, 2**62]), max_size=4)


@settings(max_examples=60)
@given(
    _SIDES,
    st.sampled_from(["|u1", "<i8", ">u2", "|b1", "<f8", "|O", "<U3", "bogus"]),
    st.booleans(),
    st.text(max_size=5),
)
def test_any_header_of_an_array_is_believed_only_where_its_bytes_are_there(tmp_path_factory, shape, descr, order, end):
    path = tmp_path_factory.getbasetemp() / "any.npz"
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {tuple(shape)}, }}{end}"
    path.write_bytes(npz.zipped({"a.npy": npz.header(text) + bytes(range(24))}))
    try:
        array = read_npz(path, "a", "iu", (3,), "3 integers")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert tuple(shape) == array.shape == (3,) and array.dtype == np.dtype("<i8") == np.dtype(descr)
        assert array.tobytes() == bytes(range(24))
