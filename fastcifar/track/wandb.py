"""Metrics and configuration as a run of Weights & Biases."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcifar.output import read_json, user_path, write_whole
from fastcifar.track.packages import refuse_missing
from fastcifar.track.tracker import METRICS, Metrics, Tracker

_KEPT = "wandb-run.json"
"""The file in `dir` that names the run, and the last epoch that it has."""


class WandB(Tracker):
    """Sends metrics and configuration to a run of Weights & Biases, or with WANDB_MODE=offline keeps them in files for
    `wandb sync`.

    project: its project; None: $WANDB_PROJECT, or fastcifar.
    dir: the folder for wandb's files, in which a training that goes on from a state finds its run again; None: wandb's,
        and such a training begins a new run with all epochs.
    init: what `wandb.init` takes, such as name, group, tags, mode.

    No question is asked: raises UserError without the package wandb, and where neither an account is known nor the mode
    is offline or disabled.
    """

    def __init__(self, project: str | None = None, *, dir: str | Path | None = None, **init: Any) -> None:
        super().__init__()
        refuse_missing(["wandb"], init.get("mode"))
        self.project = project or os.environ.get("WANDB_PROJECT") or "fastcifar"
        self.dir = None if dir is None else user_path(dir, "the folder of wandb's files")
        self._init, self._run, self._last = init, None, -1

    def begin(self, name: str, config: dict[str, Any], told: Sequence[Metrics]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        kept: dict[str, Any] = {}
        if self.dir is not None:
            self.dir.mkdir(parents=True, exist_ok=True)
            if told and (self.dir / _KEPT).is_file():
                kept = read_json(self.dir / _KEPT)
        self._last = kept.get("epoch", -1)
        given = {"name": name, "config": config, "dir": None if self.dir is None else str(self.dir)}
        given |= {"id": kept["id"], "resume": "allow"} if kept else {}
        # Of its own, beside one that the program around it may have, whose output stays the program's.
        given |= {"reinit": "create_new", "settings": wandb.Settings(console="off")}
        self._run = wandb.init(project=self.project, **{**given, **self._init})
        for metric in METRICS:
            self._run.define_metric(metric, step_metric=None if metric == "epoch" else "epoch")
        for metrics in told:
            self.note(metrics)

    def note(self, metrics: Metrics) -> None:
        if metrics["epoch"] <= self._last:  # the run has it, from before the training was broken off
            return
        assert self._run is not None
        self._run.log({name: value for name, value in metrics.items() if value is not None})
        self._last = metrics["epoch"]
        if self.dir is not None:
            write_whole(self.dir / _KEPT, json.dumps({"id": self._run.id, "epoch": self._last}) + "\n")

    def end(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
