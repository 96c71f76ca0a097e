"""`Worker`: one program, a peer's or ours, in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.resident import ROOT as ROOT
from bench.resident import ProgramError, Resident

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "CUDA_CACHE_PATH": "cuda"}
"""Folders of the worker's cache in which torch.compile, Triton and the driver keep what they compiled."""

PeerError = ProgramError  # A program that could not be loaded or run


class Worker(Resident):
    """A process that holds a program; its `facts` are batch_size, dtype, device, torch and dataset.

    peer: one of `programs.PROGRAMS`, or "fastcifar:" and the name or the TOML file of a recipe of ours.
    checkout: the folder of a peer's program.
    data: a folder as `--data-dir` takes it; None: where fastcifar finds it; or "synthetic".
    device: "cpu" or "cuda".
    cache: folder for what is compiled; None: where torch and Triton keep it.
    timeout: seconds for loading.

    Raises PeerError where it cannot be loaded, or not in time.
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
        data = str(data) if data is not None else os.environ.get("FASTCIFAR_DATA") or None
        data = data if data in (None, "synthetic") else os.path.abspath(data)  # it runs in another folder
        environment = {}
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""  # cifar10-fast asks torch, not its caller
        if cache is not None:
            environment |= {name: str(Path(cache).resolve() / folder) for name, folder in CACHES.items()}
        super().__init__(peer, "bench.peers.serve", environment=environment)
        checkout = checkout and str(Path(checkout).resolve())
        try:
            self.facts = self.ask({"peer": peer, "checkout": checkout, "data": data, "device": device}, timeout)
        except BaseException:
            self.close()
            raise

    def run(self, steps: int | None = None, seed: int = 0, timeout: float | None = None) -> dict[str, Any]:
        """Train from `seed` to the end, or for one untimed step and `steps` timed ones. The first run of a worker also
        compiles and loads what the others find ready.

        The result holds `peer`, and `steps` and `images` done.
        `accuracy`, `plain_accuracy`: with and without test-time augmentation, fractions; None where the training was
        stopped, or the program does not say.
        `own_seconds`: the program's own stopwatch. Where it was stopped: up to then, with all that it counts, such as
        the untimed step and preparations; None where it cannot be read.
        `seconds`: by our clock, around the same sections; where it was stopped, around the timed steps alone.
        `step_seconds`: of each timed step.
        `train_seconds`, `time_seconds`: the own stopwatch without the last evaluation and with it, whatever its rule;
        None where it was stopped, and time_seconds where that evaluation's time is not known.
        `phases`, `captured`, `not_captured`: of a whole training of ours, as in a run's record.

        Raises PeerError where it fails, dies, or takes more than `timeout` seconds and is ended.
        """
        return self.ask({"steps": steps, "seed": seed}, timeout)
