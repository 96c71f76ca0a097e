"""`Worker`: one program, a peer's or ours, in a process of its own that stays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.resident import ROOT as ROOT
from bench.resident import ProgramError, Resident

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "CUDA_CACHE_PATH": "cuda"}
"""Where torch.compile, Triton and the driver keep what they compiled, as folders of the worker's cache."""

PeerError = ProgramError  # A program that could not be loaded or run


class Worker(Resident):
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
        environment = {}
        if os.environ.get("FASTCIFAR_DATA"):
            environment["FASTCIFAR_DATA"] = os.path.abspath(os.environ["FASTCIFAR_DATA"])
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""  # cifar10-fast asks torch, not its caller
        if cache is not None:
            environment |= {name: str(Path(cache).resolve() / folder) for name, folder in CACHES.items()}
        super().__init__(peer, "bench.peers.serve", environment=environment)
        local = data is not None and str(data) != "synthetic"
        try:
            self.facts = self.ask(
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
        return self.ask({"steps": steps, "seed": seed}, timeout)
