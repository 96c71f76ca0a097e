"""A download arrives whole, and the right one, whatever its homes do."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import os
import random
import shutil
import ssl
import subprocess
import time
import warnings

import pytest

from fastcifar.data.download import DownloadError
from fastcifar.data.fetch import Home, Limits, Pinned, fetch, part_of
from fastcifar.errors import Notice
from tests.data import server as serving
from tests.data.server import Server

CONTENT = gzip.compress(random.Random(3).randbytes(200_000), mtime=0)
OTHER = gzip.compress(random.Random(4).randbytes(200_000), mtime=0)
ARCHIVE = Pinned("set.tar.gz", "set", len(CONTENT), hashlib.md5(CONTENT).hexdigest())
QUICK = Limits(stall=0.3, tries=3, gain=1000, pause=0.0)
ONCE = dataclasses.replace(QUICK, tries=1, gain=10**6)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:
        yield lambda answer=None, content=CONTENT, wrap=None: stack.enter_context(
            serving.running(Server(content, answer), wrap)
        )


def get(folder, *homes, limits=QUICK):
    """Download from these servers or addresses to `folder`, check what came, and return the notices."""
    homes = [each if isinstance(each, Home) else Home(getattr(each, "url", each), ARCHIVE) for each in homes]
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path, archive = fetch(homes, folder, limits)
    assert archive is ARCHIVE and path.read_bytes() == CONTENT
    assert all(each.category is Notice for each in caught)
    return [str(each.message) for each in caught if not str(each.message).startswith("downloading")]


def fails(folder, *homes, limits=QUICK):
    with warnings.catch_warnings(), pytest.raises(DownloadError) as caught:
        warnings.simplefilter("ignore", Notice)
        fetch([Home(getattr(each, "url", each), ARCHIVE) for each in homes], folder, limits)
    line = str(caught.value)
    assert "\n" not in line and line.startswith("cannot download ") and "--mirror" in line
    return line


def closed_port():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
        return f"http://127.0.0.1:{closed.server_port}/set.tar.gz"


BAD = {
    "missing": (serving.sends(404), "answers 404 Not Found"),
    "overloaded": (serving.sends(503), "answers 503 Service Unavailable"),
    "nothing": (serving.sends(204), "answers 204"),
    "portal": (serving.portal, "sends a web page in place of the archive"),
    "endless": (serving.endless, "sends something else than an archive"),
    "loop": (serving.sends(302, Location="/again.tar.gz"), "redirects more than 10 times"),
    "to a file": (serving.sends(302, Location="file:///etc/passwd"), "redirects to file:///etc/passwd"),
    "elsewhere": (serving.sends(301, Location="http://127.0.0.1:x/"), "cannot be reached: "),
    "too long": (serving.sends(200, **{"Content-Length": "99999999999"}), "holds a file of 99999999999 bytes"),
    "no number": (serving.sends(200, **{"Content-Length": "many"}), "holds a file of many bytes"),
    "other bytes": (lambda handler, _: serving.whole(handler, OTHER), "sends other bytes: their md5 is "),
    "silent": (lambda *_: time.sleep(2), "cannot be reached: no byte for 0.3 s"),
    "stalled": (serving.stalls, "breaks off: no byte for 0.3 s"),
    "stumbling": (serving.breaks_off(900), "breaks off after 2,700 of "),
    "empty": (serving.breaks_off(0), "breaks off after 0 of "),
    "gone": (lambda handler, _: handler.connection.close(), "cannot be reached: "),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_home_with_a_fault_is_named_and_the_next_one_taken(serve, tmp_path, kind):
    answer, reason = BAD[kind]
    bad, good = serve(answer), serve()
    line = fails(tmp_path, bad)
    assert f"{bad.url}: {reason}" in line
    (notice,) = get(tmp_path / "another folder", bad, good)
    assert notice.startswith(f"{bad.url} {reason}") and notice.endswith(f"; going on with {good.url}")
    assert len(good.asked) == 1


@pytest.mark.skipif(not shutil.which("openssl"), reason="a certificate is made by openssl")
def test_homes_that_cannot_be_reached_are_named_with_the_reason(serve, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost"
    subprocess.run([*request.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    signed_by_itself = serve(wrap=lambda plain: context.wrap_socket(plain, server_side=True))
    homes = closed_port(), signed_by_itself.url, "http://nowhere.invalid/set.tar.gz", (tmp_path / "no").as_uri()
    reasons = "Connection refused", "its certificate is not valid (self-signed certificate)", "", "No such file"
    line = fails(tmp_path, *homes)
    for home, reason in zip(homes, reasons, strict=True):
        assert f"{home} cannot be reached: {reason}" in line.replace(": cannot", " cannot", 1)
    assert {path.suffix for path in tmp_path.iterdir()} == {".pem"}


def test_a_connection_that_breaks_off_again_and_again_goes_on_where_it_was(serve, tmp_path):
    home = serve(serving.breaks_off(50_000))
    assert get(tmp_path, home) == []
    assert home.asked == [None, *(f"bytes={place}-" for place in range(50_000, len(CONTENT), 50_000))]


@pytest.mark.parametrize("other", [False, True], ids=["at the same home", "at another one"])
def test_the_next_download_goes_on_where_one_broke_off(serve, tmp_path, other):
    first = serve(serving.breaks_off(70_000))
    fails(tmp_path, first, limits=ONCE)
    home = serve() if other else first
    home.answer, home.asked = serving.whole, []
    assert get(tmp_path, home) == []
    assert home.asked == ["bytes=70000-"]


def test_a_server_without_ranges_begins_again(serve, tmp_path):
    home = serve(lambda handler, content: serving.whole(handler, content, ranges=False))
    part_of(tmp_path, ARCHIVE).write_bytes(CONTENT[:90_000])
    assert get(tmp_path, home) == []
    assert home.asked == ["bytes=90000-"]


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_a_file_that_was_changed_meanwhile_is_downloaded_from_the_beginning(serve, tmp_path, header):
    """The first part is of another file of the same size, which the hash shows."""
    home = serve(serving.breaks_off(70_000, headers=[(header, "one")]), OTHER)
    fails(tmp_path, home, limits=ONCE)
    home.content, home.asked = CONTENT, []
    home.answer = lambda handler, content: serving.whole(handler, content, headers=[(header, "another")])
    assert get(tmp_path, home) == ["set.tar.gz.part was damaged, and is downloaded from the beginning"]
    assert home.asked == ["bytes=70000-", None]


def test_a_file_that_is_changed_during_a_download_is_downloaded_from_the_beginning(serve, tmp_path):
    def answer(handler, _):
        first = len(home.asked) == 1
        send = serving.breaks_off(70_000 if first else 10**6, headers=[("ETag", "one" if first else "another")])
        send(handler, OTHER if first else CONTENT)

    home = serve(answer)
    assert get(tmp_path, home) == ["set.tar.gz.part was damaged, and is downloaded from the beginning"]
    assert home.asked == [None, "bytes=70000-", None]


def test_a_home_that_is_changed_again_and_again_is_given_up(serve, tmp_path):
    def answer(handler, content):
        serving.breaks_off(70_000, headers=[("ETag", str(len(home.asked)))])(handler, content)

    home = serve(answer, OTHER)
    assert "sends other bytes" in fails(tmp_path, home)
    assert len(home.asked) == 6  # twice the file, of three parts


def test_machines_of_a_mirror_that_name_other_versions_lose_nothing(serve, tmp_path):
    def answer(handler, content):
        serving.breaks_off(50_000, headers=[("ETag", str(len(home.asked)))])(handler, content)

    home = serve(answer)
    assert get(tmp_path, home) == []
    assert home.asked == [None, *(f"bytes={place}-" for place in range(50_000, len(CONTENT), 50_000))]


@pytest.mark.parametrize("here", [0, 70_000])
def test_an_archive_that_is_called_a_web_page_is_taken(serve, tmp_path, here):
    part_of(tmp_path, ARCHIVE).write_bytes(CONTENT[:here])
    headers = [("Content-Type", "text/html")]
    assert get(tmp_path, serve(lambda handler, content: serving.whole(handler, content, headers=headers))) == []


def test_a_number_may_begin_with_zeros_and_have_any_digits(serve, tmp_path):
    def answer(handler, content):
        handler.send_response(200)
        handler.send_header("Content-Length", f"000{len(content)}")
        handler.end_headers()
        handler.wfile.write(content)

    assert get(tmp_path, serve(answer)) == []
    part_of(tmp_path, ARCHIVE).write_bytes(CONTENT[:5])
    answer = serving.sends(206, **{"Content-Range": f"bytes {'9' * 5000}-9/9"})
    assert "sends another part of the archive" in fails(tmp_path, serve(answer))


def test_a_proxy_is_used_from_when_it_is_set(serve, tmp_path, monkeypatch):
    proxy = serve()
    fails(tmp_path, "http://nowhere.invalid/set.tar.gz")
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/set.tar.gz"))
    assert get(tmp_path, "http://nowhere.invalid/set.tar.gz") == []


@pytest.mark.parametrize("here", [OTHER[:1000], CONTENT + b"more", OTHER])
def test_what_is_here_already_is_not_believed(serve, tmp_path, here):
    part_of(tmp_path, ARCHIVE).write_bytes(here)
    notices = get(tmp_path, serve())
    assert notices in ([], ["set.tar.gz.part was damaged, and is downloaded from the beginning"])
    assert bool(notices) == (len(here) <= len(CONTENT))


@pytest.mark.parametrize(
    "answer",
    [
        serving.portal,
        serving.endless,
        serving.sends(404),
        serving.sends(206),
        lambda handler, content: serving.whole(handler, content[:80_000]),  # which answers 416
    ],
)
def test_a_bad_answer_does_not_cost_what_is_here(serve, tmp_path, answer):
    part_of(tmp_path, ARCHIVE).write_bytes(CONTENT[:90_000])
    fails(tmp_path, serve(answer))
    good = serve()
    assert get(tmp_path, good) == []
    assert good.asked == ["bytes=90000-"]


def test_a_redirect_to_another_host_is_followed(serve, tmp_path):
    good = serve()
    home = serve(serving.sends(302, Location=good.url.replace("127.0.0.1", "localhost")))
    part_of(tmp_path, ARCHIVE).write_bytes(CONTENT[:5])
    assert get(tmp_path, home) == []
    assert good.asked == ["bytes=5-"]


def test_a_file_on_this_machine_is_a_home_too(tmp_path):
    path = tmp_path / "a mirror" / "set.tar.gz"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    part_of(tmp_path, ARCHIVE).write_bytes(CONTENT[:5])
    assert get(tmp_path, path.as_uri()) == []


def test_a_slow_home_is_left_for_the_next_which_goes_on(serve, tmp_path):
    slow, good = serve(serving.slow(20, 0.05)), serve()
    (notice,) = get(tmp_path, slow, good, limits=Limits(window=0.2, slow=1000))
    assert notice == f"{slow.url} is slow: 0 kB/s; going on with {good.url}"
    assert slow.asked == [None] and int(good.asked[0][6:-1]) > 0


def test_where_all_are_slow_the_fastest_goes_on(serve, tmp_path):
    limits = Limits(window=0.1, slow=10e6)
    homes = [serve(serving.slow(chunk, 0.05)) for chunk in (1000, 8000, 2000)]
    down = closed_port()
    notices = get(tmp_path, down, *homes, limits=limits)
    assert notices[-1].endswith(f"; going on with {homes[1].url}") and len(notices) == 4
    assert [len(home.asked) for home in homes] == [1, 2, 1]


def test_the_users_own_is_first_then_the_archive_of_which_most_is_here(tmp_path):
    binary = Pinned("other.tar.gz", "other", 10, "")
    part_of(tmp_path, ARCHIVE).write_bytes(CONTENT[:5])
    homes = [Home(f"{closed_port()}?{number}", archive) for number, archive in enumerate((binary, ARCHIVE, binary))]
    with pytest.raises(DownloadError) as caught:
        fetch([*homes[:2], dataclasses.replace(homes[2], chosen=True)], tmp_path, QUICK)
    places = [str(caught.value).index(homes[number].url) for number in (2, 1, 0)]
    assert places == sorted(places)


def test_a_disk_that_is_full_is_the_disks_fault_and_costs_nothing(serve, tmp_path):
    resource = pytest.importorskip("resource")
    home, before = serve(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.warns(Notice), pytest.raises(OSError, match="File too large"):
            fetch([Home(home.url, ARCHIVE)], tmp_path, QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.path.getsize(part_of(tmp_path, ARCHIVE)) == 100_000
    assert get(tmp_path, home) == []
