import dataclasses
import http.server
import io
import shutil
import subprocess
import sys
import threading

import pooch
import pytest
from rich.console import Console

from fastcifar.data import DownloadError, cifar10, download
from fastcifar.data.cifar10 import load_cifar10
from fastcifar.data.download import user_cache
from fastcifar.errors import UserError


@pytest.fixture
def server(small, monkeypatch):
    """Serve the small release's folder from this machine, and give the list of requests."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=small.folder)

        def log_message(self, *_):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        small.release = dataclasses.replace(
            small.release, url=f"http://127.0.0.1:{running.server_port}/cifar-10-binary.tar.gz"
        )
        yield requests
        running.shutdown()
        thread.join()


def failed(small, cache, message):
    with pytest.raises(DownloadError, match=message) as caught:
        load_cifar10(None, small.release, cache)
    line = str(caught.value)
    assert isinstance(caught.value, UserError) and "\n" not in line
    assert line.startswith(f"cannot download {small.release.url}: ")
    assert "--data-dir" in line and "--dataset synthetic" in line


def test_missing_data_is_downloaded_once_and_kept_unpacked(small, server, tmp_path, caplog):
    pooch.get_logger().addHandler(caplog.handler)
    cache = tmp_path / "deep" / "cache"
    first = load_cifar10(None, small.release, cache)
    assert first.train.labels.tolist() == small.labels[:100].tolist()
    assert [path.name for path in cache.iterdir()] == ["cifar-10-batches-bin"]
    assert len(server) == 1
    second = load_cifar10(None, small.release, cache)
    assert len(server) == 1
    assert second.sha256 == first.sha256
    assert second.source == first.source == str(cache / "cifar-10-batches-bin")
    pooch.get_logger().removeHandler(caplog.handler)
    assert caplog.messages == []


def test_a_folder_that_another_process_made_meanwhile_is_used(small, server, tmp_path, monkeypatch):
    def slow_download(*arguments):
        shutil.copytree(small.binary, tmp_path / "cache" / "cifar-10-batches-bin")
        return download.download(*arguments)

    monkeypatch.setattr(cifar10, "download", slow_download)
    dataset = load_cifar10(None, small.release, tmp_path / "cache")
    assert dataset.train.labels.tolist() == small.labels[:100].tolist()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cifar-10-batches-bin"]


def test_a_named_place_is_never_downloaded_to(small, server, tmp_path):
    with pytest.raises(UserError, match="holds no CIFAR-10") as caught:
        load_cifar10(tmp_path / "official" / "..", small.release, tmp_path / "cache")
    assert not isinstance(caught.value, DownloadError)
    assert server == [] and not (tmp_path / "cache").exists()


def test_a_download_with_another_hash_is_refused_and_leaves_nothing(small, server, tmp_path):
    small.release = dataclasses.replace(small.release, binary=dataclasses.replace(small.release.binary, md5="0" * 32))
    failed(small, tmp_path / "cache", "hash .* does not match")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_that_breaks_off_is_refused_and_leaves_nothing(small, server, tmp_path, monkeypatch):
    content = (small.folder / "cifar-10-binary.tar.gz").read_bytes()

    def half(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        return io.BytesIO(content[: len(content) // 2])

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "send_head", half)
    failed(small, tmp_path / "cache", "IncompleteRead|broken|does not match")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_address_is_refused_with_the_servers_answer(small, server, tmp_path):
    small.release = dataclasses.replace(small.release, url=small.release.url + ".missing")
    failed(small, tmp_path / "cache", "404")


def test_no_connection_is_refused_with_its_reason(small, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    small.release = dataclasses.replace(small.release, url=f"http://127.0.0.1:{port}/cifar-10-binary.tar.gz")
    failed(small, tmp_path / "cache", "Connection refused; allowed")


def test_a_cache_that_cannot_be_written_is_refused(small, server, tmp_path):
    (tmp_path / "file").write_text("")
    failed(small, tmp_path / "file" / "cache", "cannot write to .*cache: ")


def test_a_machine_without_pooch_is_told_so(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    failed(small, tmp_path / "cache", "pooch is not installed")


def test_a_damaged_folder_in_the_cache_is_an_error_and_not_downloaded_over(small, server, tmp_path):
    load_cifar10(None, small.release, tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"cifar-10-batches-bin lacks test_batch.bin"):
        load_cifar10(None, small.release, tmp_path)
    assert len(server) == 1


def test_the_user_cache_is_poochs():
    assert user_cache() == pooch.os_cache("fastcifar")


def test_the_bar_shows_bytes_on_a_terminal_and_nothing_elsewhere(monkeypatch, capsys):
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda stderr: Console(file=screen, force_terminal=True, width=120))
    with download._progress_bar("some.tar.gz") as bar:
        bar.total = 4_000_000
        bar.update(3_000_000)
        bar.reset()
        bar.update(4_000_000)
        bar.close()
    assert "some.tar.gz" in screen.getvalue() and "4.0/4.0 MB" in screen.getvalue()
    monkeypatch.undo()
    with download._progress_bar("some.tar.gz") as bar:
        bar.total = 0
        bar.update(5)
        bar.close()
    assert capsys.readouterr() == ("", "")


def test_the_package_imports_and_loads_without_pooch_requests_rich_and_tyro(small):
    code = f"""
import sys
for name in ("pooch", "platformdirs", "requests", "rich", "tyro"):
    sys.modules[name] = None
from fastcifar.data import load_dataset
from fastcifar.data.cifar10 import Release, load_cifar10
load_cifar10({str(small.binary)!r}, Release(records=20))
assert load_dataset("synthetic").name == "synthetic"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
