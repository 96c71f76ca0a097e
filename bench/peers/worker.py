"""`Worker`: one program, a peer's or ours, in a process of its own that stays."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from fastcifar.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "CUDA_CACHE_PATH": "cuda"}
"""Where torch.compile, Triton and the driver keep what they compiled, as folders of the worker's cache."""

_SECONDS_TO_END = 5


class PeerError(UserError):
    """A program that could not be loaded or run. The message is one line; `traceback` is that of its process, or the
    end of what it printed where it died."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class Worker:
    """A process that holds the program `peer`: one of `programs.PROGRAMS` out of its `checkout`, or "fastcifar:" and
    the name or the TOML file of a recipe of ours.

    `data` is a folder as `--data-dir` takes it, None: where fastcifar finds it, or "synthetic"; what is compiled is
    kept in `cache`, None: where torch and Triton keep it. `facts` then holds batch_size, dtype, device, torch and
    dataset. Raises PeerError where it cannot be loaded, or not in `timeout` seconds.
    """

    def __init__(
        self,
        peer: str,
        checkout: Path | None,
        data: Path | str | None = None,
        device: str = "cpu",
        cache: Path | None = None,
        timeout: float | None = None,
    ) -> None:
        self.peer = peer
        self._folder = tempfile.TemporaryDirectory(prefix="fastcifar-peer-")  # what the program writes beside itself
        self._log = open(Path(self._folder.name) / "output.txt", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))}
        if environment.get("FASTCIFAR_DATA"):
            environment["FASTCIFAR_DATA"] = os.path.abspath(environment["FASTCIFAR_DATA"])
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""  # cifar10-fast asks torch, not its caller
        if cache is not None:
            environment |= {name: str(Path(cache).resolve() / folder) for name, folder in CACHES.items()}
        self.started = time.perf_counter()
        """When the process was started, on this process's clock."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers.serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._folder.name,
            env=environment,
            text=True,
        )
        local = data is not None and str(data) != "synthetic"
        try:
            self.facts = self._ask(
                {
                    "peer": peer,
                    "checkout": checkout and str(Path(checkout).resolve()),
                    "data": str(Path(data).resolve()) if local else data and str(data),
                    "device": device,
                },
                timeout,
            )
        except BaseException:
            self.close()
            raise

    def run(self, steps: int | None = None, seed: int = 0, timeout: float | None = None) -> dict[str, Any]:
        """One training from `seed` to its end, or one untimed step of it and `steps` timed ones. The first run of a
        worker also compiles and loads what the others find ready.

        The result: `peer`; `steps` and `images` done; `accuracy` and `plain_accuracy` (with and without test-time
        augmentation, fractions; None where the training was stopped, or the program does not say); `own_seconds`, what
        the program's own stopwatch says (of a stopped training: what it had come to, with whatever else it counts,
        such as the untimed step and preparations; None where it cannot be read then); `seconds`, by our clock, around
        the same sections (of a stopped training: around the timed steps alone); `step_seconds` of each timed step;
        `train_seconds` and `time_seconds`, its own stopwatch without the last evaluation and with it, whichever its
        rule is (None of a stopped training, and time_seconds also where that evaluation's time cannot be told); and of
        ours, in whole trainings, `phases`, the seconds of the worker's whole process up to then, and `captured` and
        `not_captured`, as in a run's record.

        Raises PeerError where it fails, dies, or takes more than `timeout` seconds and is ended.
        """
        return self._ask({"steps": steps, "seed": seed}, timeout)

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

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, request: dict[str, object], timeout: float | None) -> dict[str, Any]:
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(timeout, end) if timeout is not None else None
        if timer:
            timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # the answer, none, says it
                print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        finally:
            if timer:
                timer.cancel()
        if not line:
            code = self._process.wait()
            why = f"took more than {timeout:g} s and was ended" if late.is_set() else f"died with exit code {code}"
            raise PeerError(f"{self.peer} {why}", self._printed())
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(f"{self.peer}: {reply['error']}", reply["traceback"])
        return reply

    def _printed(self) -> str:
        """The last lines of what the program printed."""
        self._log.seek(0)
        return "".join(self._log.readlines()[-40:])
