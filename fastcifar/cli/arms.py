"""What `fastcifar compare` and `fastcifar ablate` share: options, data, and a line for each finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from fastcifar.cli.arguments import Switch
from fastcifar.cli.screen import Screen, duration
from fastcifar.errors import UserError
from fastcifar.recipes import Recipe

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.experiments import Progress


@dataclass(frozen=True)
class ArmsOptions:
    """Of every experiment that trains several recipes in turn."""

    dataset: Literal["cifar10", "synthetic"] = "cifar10"
    """CIFAR-10, or a learnable set of ten classes made in memory."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds CIFAR-10; without one, it is looked for in the user's cache, then downloaded."""
    holdout: Annotated[int, arg(metavar="N")] = 5000
    """Evaluate on N training images, which are then not trained on; 0: the test set, which is for confirming."""
    train_size: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Train on N of the remaining training images only, always the same."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """The first seed; the others follow it, the same for every arm."""
    out: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: named after the recipes, in runs)")
    ] = None
    """Folder for the finished runs and the results: new, or one to go on in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: on a GPU if there is one."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: torch's)")] = None
    """CPU threads."""
    quick: Switch = False
    """The same path in seconds a run: narrower networks, fewer epochs, fewer training images."""
    quiet: Switch = False
    """Print the result only."""
    json: Switch = False
    """Print the result as JSON and nothing else to standard output."""


def check(options: ArmsOptions, runs: int, *recipes: Recipe) -> None:
    """Refuse what can be refused before torch is imported."""

    def require(flag: str, value: object, ok: bool, allowed: str) -> None:
        if not ok:
            raise UserError(f"{flag} is {value}; allowed: {allowed}")

    largest = max(recipe.batch_size for recipe in recipes)
    require("--runs", runs, runs >= 1, "1 or more")
    last = "0 up to 10**9 - 1, the last of --runs included"
    require("--seed", options.seed, 0 <= options.seed <= 10**9 - runs, last)
    require("--holdout", options.holdout, options.holdout >= 0, "0 (the test set) or a number of images")
    if options.train_size is not None:
        allowed = f"batch_size, {largest}, or more images"
        require("--train-size", options.train_size, options.train_size >= largest, allowed)
    if options.threads is not None:
        require("--threads", options.threads, options.threads >= 1, "1 or more")


def load(options: ArmsOptions) -> Dataset:
    """The data on the device, with the held-out images in the place of the test set; torch is imported and set here."""
    import torch

    from fastcifar.data import load_dataset
    from fastcifar.kernels import keep_freed_memory
    from fastcifar.training import resolve_device

    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    dataset = load_dataset(options.dataset, options.data_dir, device, options.holdout)
    if options.train_size is None:
        return dataset
    size = min(options.train_size, len(dataset.train)) if options.quick else options.train_size
    return dataset.take(size)


def kept(error: BaseException, show: Show, out: Path) -> None:
    """Say in an error or interruption that the finished runs are not lost."""
    if show.finished:
        runs = f"{show.finished} finished runs are kept in {out}; the same command goes on"
        error.args = (f"{str(error) or 'interrupted'}; {runs}",)


class Show:
    """A line for each finished run, with the time left, and the steps of the one that goes on as a bar."""

    def __init__(self, options: ArmsOptions, at_most: bool) -> None:
        self.screen = Screen(silent=options.quiet or options.json, bar=not options.quiet)
        self.say = self.screen.say
        self.finished = 0
        self._at_most = "at most " if at_most else ""
        self._running = False

    def step(self, step: int, total_steps: int) -> None:
        """Move the bar."""
        if not self._running:
            self.screen.begin(total_steps, "")
            self._running = True
        self.screen.step(step, total_steps)

    def progress(self, progress: Progress) -> None:
        """Say a finished run."""
        self.screen.end()
        self._running, self.finished = False, progress.done
        record = progress.record
        if "tta_loss" in record:
            result = f"loss {record['tta_loss']:.4f}  accuracy {record['tta_accuracy']:.2%}"
            result += "  kept" if progress.kept else f"  {record['train_seconds']:.1f} s"
        else:
            result = "diverged"
        left = ""
        if progress.seconds_left:
            left = f"; {self._at_most}about {duration(progress.seconds_left)} left"
        self.say(f"[{progress.done}/{progress.total}] {progress.key:<28} {result}{left}")
