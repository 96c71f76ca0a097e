"""CIFAR-10 from the network to the cache: once, whole, and verified whenever it is read."""

import contextlib
import dataclasses
import functools
import io
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from rich.console import Console

from fastcifar.cli import main
from fastcifar.data import DownloadError, cifar, describe, download, load_dataset, places
from fastcifar.data import cache as caching
from fastcifar.data.cifar import load_release
from fastcifar.data.fetch import LIMITS, Home, Limits
from fastcifar.data.homes import homes_of
from fastcifar.errors import Notice, UserError
from tests.data import server as serving
from tests.data.conftest import RELEASES

PARTS = ["cifar-10-binary.tar.gz.part", "cifar-10-binary.tar.gz.part.json"]
BINARY, PYTHON, LOCK = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", ".cifar-10-batches-bin.download.lock"
pytestmark = pytest.mark.filterwarnings("ignore::fastcifar.errors.Notice")


def published(handler, folder):
    """Answer with a file of the small release."""
    path = folder / handler.path.rpartition("/")[2]
    if path.is_file():
        serving.whole(handler, path.read_bytes())
    else:
        handler.send_error(404)


@pytest.fixture
def server(small, monkeypatch):
    """Serve the small release's folder from this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("FASTCIFAR_MIRROR", raising=False)
    with serving.running(serving.Server(small.folder, published)) as running:
        running.url = running.url.rpartition("/")[0]
        small.release = dataclasses.replace(small.release, homes=(f"{running.url}/{small.release.binary.filename}",))
        yield running


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "deep" / "cache"


def failed(small, cache, message):
    with pytest.raises(DownloadError, match=message) as caught:
        load_release(small.release, None, cache)
    line = str(caught.value)
    assert isinstance(caught.value, UserError) and "\n" not in line
    assert line.startswith(f"cannot download {small.release.homes[0]}: ")
    assert "--data-dir" in line and "--mirror" in line


def held(cache):
    return sorted(path.name for path in cache.iterdir())


@pytest.mark.parametrize("small", RELEASES, indirect=True)
def test_missing_data_is_downloaded_once_and_kept_unpacked(small, server, cache):
    first = load_release(small.release, None, cache)
    assert first.train.labels.tolist() == small.labels[:100].tolist()
    assert np.array_equal(first.test.images, small.images[100:])
    assert held(cache) == [small.binary.name] and len(server.asked) == 1
    second = load_release(small.release, None, cache)
    assert len(server.asked) == 1 and second.sha256 == first.sha256
    assert second.source == first.source == str(cache / small.binary.name)


@pytest.mark.parametrize("small", RELEASES, indirect=True)
def test_a_home_with_the_python_archive_is_as_good(small, server, cache):
    python = f"{server.url}/{small.release.python.filename}"
    small.release = dataclasses.replace(small.release, homes=(f"{small.release.homes[0]}?x=1", python))
    (small.folder / small.release.binary.filename).unlink()
    dataset = load_release(small.release, None, cache)
    assert np.array_equal(dataset.train.images, small.images[:100])
    assert held(cache) == [small.python.name] and dataset.verified == "checksums made from the official archive"


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_the_official_home_is_first_in_the_catalogue_and_every_home_has_a_known_archive(release):
    homes = homes_of(release.archives, release.homes, None)
    assert homes[0].url.startswith("https://www.cs.toronto.edu/") and len(homes) > 2
    for home in homes:
        assert f"/{home.archive.filename}" in home.url and len(home.archive.sha256) == 64 and not home.chosen


@pytest.mark.parametrize("by", ["argument", "environment"])
@pytest.mark.parametrize("address", ["{folder}", "{folder}/", f"{{folder}}/{PYTHON}", "{file}", f"{{file}}/{BINARY}"])
def test_the_users_mirror_is_tried_first(small, server, monkeypatch, address, by, cache):
    address = address.format(folder=server.url, file=small.folder.as_uri())
    small.release = dataclasses.replace(small.release, homes=(f"http://127.0.0.1:9/{BINARY}",))
    mirror = address if by == "argument" else None
    monkeypatch.setenv("FASTCIFAR_MIRROR", "ftp://nowhere" if mirror else address)
    assert np.array_equal(load_release(small.release, None, cache, mirror).train.images, small.images[:100])
    assert len(server.asked) == ("file" not in address)


@pytest.mark.parametrize(
    ("mirror", "urls"),
    {
        "http://a/dir?token=1": [f"http://a/dir/{BINARY}?token=1", f"http://a/dir/{PYTHON}?token=1"],
        "http://a/dir/#x": [f"http://a/dir/{BINARY}#x", f"http://a/dir/{PYTHON}#x"],
        f"http://a/?x={BINARY}": [f"http://a/{BINARY}?x={BINARY}", f"http://a/{PYTHON}?x={BINARY}"],
        "http://a/my ü%20?ö": [f"http://a/my%20%C3%BC%20/{name}?%C3%B6" for name in (BINARY, PYTHON)],
        f"http://bücher.de:80/{BINARY}": [f"http://xn--bcher-kva.de:80/{BINARY}"],
    }.items(),
)
def test_a_file_in_the_users_mirror_goes_before_what_follows_the_path(mirror, urls):
    assert [home.url for home in homes_of(RELEASES["cifar10"].archives, (), mirror)] == urls


@pytest.mark.parametrize(
    "mirror", ["nowhere", "/a/folder", "ftp://a/b", "http://", "http://[a", "http://a/other.tar.gz", "http://a/\n"]
)
def test_a_mirror_that_is_no_address_is_refused(small, monkeypatch, mirror, capsys):
    allowed = f"allowed: the address (http, https or file) of a folder, or of {BINARY} or {PYTHON}"
    with pytest.raises(UserError, match=re.escape(f"mirror is {mirror!r}; {allowed}") + "$"):
        load_release(small.release, small.folder, mirror=mirror)
    monkeypatch.setenv("FASTCIFAR_MIRROR", mirror)
    with pytest.raises(UserError, match=re.escape(f"$FASTCIFAR_MIRROR is {mirror!r}; {allowed}") + "$"):
        load_release(small.release, small.folder)
    assert main(["data", "info", "--mirror", mirror, "--data-dir", str(small.folder)]) == 2
    assert capsys.readouterr().err == f"fastcifar: mirror is {mirror!r}; {allowed}\n"


@pytest.mark.parametrize(
    "mirror", ["http://me:secret@a/", "me:secret@a/dir", "http://me:secret@[::1/", "http://me:se/cret@a/"]
)
def test_a_mirror_with_a_password_is_refused_without_repeating_it(small, monkeypatch, mirror):
    for where, given in (("mirror", mirror), (r"\$FASTCIFAR_MIRROR", None)):
        monkeypatch.setenv("FASTCIFAR_MIRROR", mirror)
        with pytest.raises(UserError, match=f"{where} has a user name or password before an @; allowed: ") as refusal:
            load_release(small.release, small.folder, mirror=given)
        assert "secret" not in str(refusal.value) and "cret@" not in str(refusal.value)


def test_a_mirror_may_have_a_space_in_its_path(small, tmp_path, cache):
    shutil.copytree(small.folder, tmp_path / "a mirror ü")
    load_release(dataclasses.replace(small.release, homes=()), None, cache, f"file://{tmp_path}/a mirror ü")


def test_load_dataset_gives_the_mirror_to_a_loader_that_takes_one(monkeypatch, small, server, cache, capsys):
    monkeypatch.setattr(places, "user_cache", lambda: cache)
    release = dataclasses.replace(small.release, homes=("http://127.0.0.1:9/" + BINARY,))
    monkeypatch.setattr(cifar, "load_cifar10", functools.partial(load_release, release))
    assert load_dataset("cifar10", mirror=server.url).verified == "checksums made from the official archive"
    assert load_dataset("synthetic", mirror=server.url).verified == ""
    shutil.rmtree(cache)
    assert main(["data", "info", "--mirror", f"{server.url}/{PYTHON}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"cifar10: {cache}/cifar-10-batches-py"
    assert "verified by checksums made from the official archive" in lines


@pytest.mark.parametrize(
    ("place", "how"),
    [
        ("official", "sizes and labels only"),
        (f"official/{PYTHON}", "md5 of the official archive"),
        ("a.npz", "its arrays' checksums"),
    ],
)
def test_a_dataset_says_how_it_was_verified(small, tmp_path, place, how):
    images, labels = small.images, small.labels
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    dataset = load_release(small.release, tmp_path / place)
    assert dataset.verified.startswith(how) and describe(dataset)["verified"] == dataset.verified


def test_a_folder_that_another_process_made_meanwhile_is_used(small, server, monkeypatch, cache):
    waits = caching._alone

    @contextlib.contextmanager
    def another(*call):
        monkeypatch.setattr(caching, "_alone", waits)
        load_release(small.release, None, cache)
        with waits(*call):
            yield

    monkeypatch.setattr(caching, "_alone", another)
    dataset = load_release(small.release, None, cache)
    assert dataset.train.labels.tolist() == small.labels[:100].tolist()
    assert held(cache) == ["cifar-10-batches-bin"] and len(server.asked) == 1


def test_a_named_place_is_never_downloaded_to(small, server, tmp_path, cache):
    with pytest.raises(UserError, match="holds no CIFAR-10") as caught:
        load_release(small.release, tmp_path / "official" / "..", cache)
    assert not isinstance(caught.value, DownloadError)
    assert server.asked == [] and not (cache).exists()


@pytest.mark.parametrize("known", ["md5", "sha256"])
def test_a_download_with_another_hash_is_refused_and_leaves_nothing(small, server, known, cache):
    binary = dataclasses.replace(small.release.binary, **{known: "0" * 32})
    small.release = dataclasses.replace(small.release, binary=binary)
    failed(small, cache, f"sends other bytes: their {known} is ")
    assert held(cache) == []


def test_a_cache_that_cannot_be_written_is_refused(small, server, tmp_path, cache):
    (tmp_path / "file").write_text("")
    failed(small, tmp_path / "file" / "cache", "cannot write to .*cache: ")
    (cache / LOCK).mkdir(parents=True)
    failed(small, cache, r"cannot write .*/\.cifar-10.*\.download\.lock: ")


@pytest.mark.parametrize("name", ["platformdirs", "rich.console"])
def test_a_machine_without_a_package_is_told_so(small, server, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DownloadError, match=f"{name} is not installed"):
        load_release(small.release, None)


def test_a_damaged_folder_in_the_cache_is_an_error_and_not_downloaded_over(small, server, cache):
    load_release(small.release, None, cache)
    (cache / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"cifar-10-batches-bin lacks test_batch.bin"):
        load_release(small.release, None, cache)
    assert len(server.asked) == 1


@pytest.mark.parametrize("archive", [BINARY, PYTHON])
def test_a_flipped_bit_in_the_cache_is_refused_by_the_files_name(small, server, cache, archive):
    small.release = dataclasses.replace(small.release, homes=(f"{server.url}/{archive}",))
    folder = cache / load_release(small.release, None, cache).source
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    path = next(folder.glob("data_batch_4*"))
    right, damaged = path.read_bytes(), bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 16
    for where in (cache, None):  # in the cache, or as a place that is named
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"^{re.escape(str(path))} is damaged: its sha256 is .*; allowed: ") as no:
            load_release(small.release, None if where else folder, where)
        assert "\n" not in str(no.value)
        path.write_bytes(right)
        assert load_release(small.release, None if where else folder, where).verified.startswith("checksums")
    sums = folder / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("labels: ", "labels: 0"))
    with pytest.raises(UserError, match="SHA256SUMS is damaged; allowed: "):
        load_release(small.release, None, cache)
    for others in ("", "some other text\n", f"{'0' * 64}  data_batch_1.bin\n"):  # not ours, and not read
        sums.write_text(others)
        assert load_release(small.release, None, cache).verified == "sizes and labels only"


def installing(small, server, cache, limits=LIMITS):
    """Do as `load_release` in a process that was forked, without torch; the fingerprint is not looked at."""
    home = Home(f"{server.url}/{BINARY}", small.release.binary)
    caching.install([home], cache, cifar._files, lambda *_: "0" * 64, limits)


@pytest.fixture
def start():
    """Start a function in another process, and kill at the end those that are left."""
    processes = []

    def begin(*call):
        processes.append(multiprocessing.get_context("fork").Process(target=functools.partial(*call), daemon=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside a server's thread
            processes[-1].start()
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.join()


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_eight_processes_download_once_and_make_one_copy(small, server, start, capfd, cache):
    server.answer = lambda *call: (time.sleep(0.3), published(*call))
    processes = [start(installing, small, server, cache) for _ in range(8)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert len(server.asked) == 1 and held(cache) == ["cifar-10-batches-bin"]
    folder = cache / "cifar-10-batches-bin"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    for path in small.binary.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_process_that_waits_says_so_and_takes_over_from_one_that_was_killed(small, server, cache, start):
    content = (small.folder / BINARY).read_bytes()
    server.answer = lambda handler, _: serving.slow(2000, 0.02)(handler, content)
    part = cache / f"{BINARY}.part"
    holder = start(installing, small, server, cache)
    until(lambda: part.is_file() and part.stat().st_size > 4000)
    os.kill(holder.pid, signal.SIGSTOP)
    stuck = r"another process, which holds .*\.download\.lock, has made no progress for 0\.3 s; allowed: "
    with pytest.warns(Notice) as caught, pytest.raises(DownloadError, match=stuck):
        installing(small, server, cache, Limits(idle=0.3))
    assert [str(each.message) for each in caught] == [f"waiting for another process, which downloads to {cache}"]
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (cache / LOCK).is_file()  # a stale one
    server.answer, size = published, part.stat().st_size
    load_release(small.release, None, cache)
    assert server.asked == [None, f"bytes={size}-"] and held(cache) == ["cifar-10-batches-bin"]


def test_a_process_that_waits_goes_on_as_long_as_something_arrives(small, server, cache, start):
    content = (small.folder / BINARY).read_bytes()
    server.answer = lambda handler, _: serving.slow(len(content) // 20, 0.05)(handler, content)
    start(installing, small, server, cache)
    until(lambda: (cache / f"{BINARY}.part").is_file())
    installing(small, server, cache, Limits(idle=0.5))
    assert len(server.asked) == 1 and held(cache) == ["cifar-10-batches-bin"]


def test_an_unpacking_that_is_killed_leaves_nothing_that_is_taken_for_data(small, server, cache, start, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(caching.os, "fsync", lambda _: time.sleep(60))  # in the first file
        holder = start(installing, small, server, cache)
        until(lambda: list(cache.glob("*/data_batch_1.bin")))
    holder.kill()
    holder.join()
    assert held(cache) == [LOCK, "cifar-10-batches-bin.part", *PARTS]
    dataset = load_release(small.release, None, cache)
    assert np.array_equal(dataset.train.images, small.images[:100])
    assert len(server.asked) == 1 and held(cache) == ["cifar-10-batches-bin"]  # the archive was there


@pytest.mark.parametrize("while_unpacking", [False, True])
def test_a_disk_that_is_full_is_said_and_the_next_time_works(small, server, cache, while_unpacking):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (small.folder / BINARY).stat().st_size
    room = size if while_unpacking else size // 2
    homes = [Home(f"{server.url}/{BINARY}", small.release.binary)]
    full = f"cannot write to {re.escape(str(cache))}: File too large; allowed: --data-dir"
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(DownloadError, match=full):
            caching.install(homes, cache, lambda *_: [("data_batch_1.bin", bytes(2 * size))], lambda *_: "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert held(cache) == PARTS and (cache / PARTS[0]).stat().st_size == room
    load_release(small.release, None, cache)
    assert held(cache) == ["cifar-10-batches-bin"]


def test_the_bar_shows_bytes_and_speed_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda stderr: Console(file=screen, force_terminal=True, width=120))
    with download.progress("some.tar.gz", 4_000_000, "https://a.place") as show:
        show(3_000_000)
        show(3_500_000)
        show(0)
        show(4_000_000)
    assert "some.tar.gz" in screen.getvalue() and "4.0/4.0 MB" in screen.getvalue()


def test_elsewhere_notices_say_how_far_a_download_is(monkeypatch, capsys):
    seconds = iter([0, 30, 60, 60, 90])
    monkeypatch.setattr(download.time, "monotonic", lambda: next(seconds))
    with pytest.warns(Notice) as caught, download.progress("some.tar.gz", 4_000_000, "https://a.place") as show:
        for done in (1_000_000, 2_000_000, 2_200_000, 3_000_000):
            show(done)
    first, second = (str(each.message) for each in caught)
    assert first == "downloading some.tar.gz, 4.0 MB, 1.0 of which are here, from https://a.place"
    assert second == "some.tar.gz: 2.2 of 4.0 MB, 20 kB/s"
    assert capsys.readouterr() == ("", "")


def test_the_package_imports_and_loads_without_what_a_download_needs(small):
    code = f"""
import dataclasses, sys
for name in ("platformdirs", "certifi", "rich", "tyro"):
    sys.modules[name] = None
from fastcifar.data import load_dataset
from fastcifar.data.cifar import CIFAR10, load_release
load_release(dataclasses.replace(CIFAR10, records=(20,) * 6), {str(small.binary)!r})
assert load_dataset("synthetic").name == "synthetic"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
