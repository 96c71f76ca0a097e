"""A server on this machine for the tests of downloads, with the faults that servers have."""

import contextlib
import http.server
import re
import threading
import time


class Server:
    """Serves `content` at every address below `url`, as `answer` does, and keeps the ranges that were asked for."""

    def __init__(self, content, answer=None):
        self.content, self.answer = content, answer or whole
        self.asked = []
        self.url = None


@contextlib.contextmanager
def running(server, wrap=None):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.headers.get("Range"))
            server.answer(self, server.content)

        def log_message(self, *_):
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 50

        def handle_error(self, *_):  # a client that goes away
            pass

    with Quiet(("127.0.0.1", 0), Handler) as running:
        if wrap:
            running.socket = wrap(running.socket)
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        server.url = f"http{'s' if wrap else ''}://127.0.0.1:{running.server_port}/set.tar.gz"
        yield server
        running.shutdown()
        thread.join()


def begin(handler, content, ranges=True, headers=()):
    """Send the status and the headers of an answer, and return the bytes that it is to have."""
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    place = int(asked[1]) if asked and ranges else 0
    if place >= len(content):
        handler.send_error(416)
        return b""
    handler.send_response(206 if place else 200)
    if place:
        handler.send_header("Content-Range", f"bytes {place}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - place))
    for name, value in headers:
        handler.send_header(name, value)
    handler.end_headers()
    return content[place:]


def whole(handler, content, **options):
    handler.wfile.write(begin(handler, content, **options))


def breaks_off(size, **options):
    """Return an answer that ends after `size` bytes."""

    def answer(handler, content):
        handler.wfile.write(begin(handler, content, **options)[:size])

    return answer


def slow(chunk, seconds):
    """Return an answer of `chunk` bytes every so many `seconds`."""

    def answer(handler, content):
        rest = begin(handler, content)
        while rest:
            handler.wfile.write(rest[:chunk])
            rest = rest[chunk:]
            time.sleep(seconds)

    return answer


def portal(handler, _):
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.end_headers()
    handler.wfile.write(b"<html>Welcome! Please log in</html>")


def endless(handler, content):
    """Send what is no archive, without a length and without an end."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(content[2:])


def sends(status, **headers):
    """Return an answer with a status and headers, whose body never ends."""

    def answer(handler, content):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(content)

    return answer


def stalls(handler, content):
    handler.wfile.write(begin(handler, content)[:10])
    time.sleep(3)
