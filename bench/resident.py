"""`Resident`: a program in a process of its own, which answers requests until it is closed.

Requests and replies are JSON objects, one a line, on the process's standard input and output. What it prints itself is
kept with its errors, which are shown where it fails. `serve` is the process's own side; it imports nothing from
fastcifar but its errors, so that another version of fastcifar can be served.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcifar.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

_SECONDS_TO_END = 5


class ProgramError(UserError):
    """A program could not be loaded or run. The message is one line; `traceback` is that of its process, or the end of
    what it printed where it died."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class Resident(contextlib.AbstractContextManager):
    """A process that runs a module in an empty folder of its own.

    name: what errors call it.
    module: the module, which calls `serve`.
    path: folders in which Python looks for modules before this checkout.
    environment: is added to this process's.
    """

    def __init__(
        self, name: str, module: str, path: Sequence[Path] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="fastcifar-bench-")  # what the program writes beside itself
        self._log = open(Path(self._folder.name) / "output.txt", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        python_path = os.pathsep.join(filter(None, (*map(str, path), str(ROOT), os.getenv("PYTHONPATH"))))
        self.started = time.perf_counter()  # when the process was started, on this process's clock
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._folder.name,
            env={**os.environ, **(environment or {}), "PYTHONPATH": python_path},
            text=True,
        )

    def ask(self, request: Mapping[str, object], timeout: float | None = None) -> dict[str, Any]:
        """Return the reply to `request`. Raises ProgramError where it fails, dies, or takes more than `timeout` seconds
        and is ended."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(threading.TIMEOUT_MAX if timeout is None else timeout, end)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # the answer, none, says it
                print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            code = self._process.wait()
            why = f"took more than {timeout:g} s and was ended" if late.is_set() else f"died with exit code {code}"
            self._log.seek(0)
            raise ProgramError(f"{self.name} {why}", "".join(self._log.readlines()[-40:]))
        reply = json.loads(line)
        if "error" in reply:
            raise ProgramError(f"{self.name}: {reply['error']}", reply["traceback"])
        return reply

    def close(self) -> None:
        """End the process and remove its folder."""
        with contextlib.suppress(BrokenPipeError):  # it died before it read what was left to send
            self._process.stdin.close()  # where it waits for a request, that is its end
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()

    def __exit__(self, *exc: object) -> None:
        self.close()


Answer = Callable[[dict[str, Any]], dict[str, object]]  # from a request to its reply


def serve(load: Callable[[dict[str, Any]], tuple[dict[str, object], Answer]]) -> None:
    """Answer every request until there are no more.

    `load` is given the first, and returns the reply and the function that answers the others. A request that fails
    leaves the process ready for the next, unless it is the first.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the program's own output, that of C code too, is no reply
    answer: Answer | None = None
    for line in sys.stdin:
        try:
            if answer is None:
                reply, answer = load(json.loads(line))
            else:
                reply = answer(json.loads(line))
            text = json.dumps(reply)
        except (Exception, SystemExit) as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            what = kind + " ".join(str(error).split())
            text = json.dumps({"error": what[:500], "traceback": "".join(traceback.format_exception(error))})
        sys.stdout.flush()
        print(text, file=replies, flush=True)
        if answer is None:
            return
