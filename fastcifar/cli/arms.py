"""What the commands that train many runs share: options, data, a line for each finished run, and what is said where
they are stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from fastcifar.catalogue import DEFAULT_DATASET
from fastcifar.cli.arguments import PluginOptions, Switch
from fastcifar.cli.screen import Screen, duration
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from fastcifar.data import Dataset
    from fastcifar.experiments import Progress


@dataclass(frozen=True)
class ArmsOptions(PluginOptions):
    """Of the experiments that train several recipes in turn, `compare` and `ablate`."""

    dataset: str = DEFAULT_DATASET
    """The data set."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds it; without one, CIFAR-10 is looked for in the user's cache, then downloaded."""
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


def output_folder(options: Any, name: str) -> Path:
    """--out, or else a folder called `name` in runs."""
    return options.out or Path("runs") / (name + "-quick" * options.quick)


def load(options: ArmsOptions) -> tuple[Dataset, str]:
    """The data on the device, the held-out images in the place of the test set, and what there is of it in words."""
    from fastcifar.data import load_dataset

    dataset = load_dataset(options.dataset, options.data_dir, start_device(options), options.holdout)
    dataset = take_train_size(dataset, options)
    tested = "held-out" if dataset.holdout else "test"
    return dataset, f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} {tested} images"


def start_device(options: Any) -> torch.device:
    """The device in --device, with --threads; torch is imported and set here."""
    import torch

    from fastcifar.kernels import keep_freed_memory
    from fastcifar.training import resolve_device

    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def take_train_size(dataset: Dataset, options: Any, seed: int = 0) -> Dataset:
    """`dataset` with --train-size of its training images; --quick asks for no more than there are."""
    if options.train_size is None:
        return dataset
    size = min(options.train_size, len(dataset.train)) if options.quick else options.train_size
    return dataset.take(size, seed=seed)


@contextmanager
def shown(
    out: Path, *, silent: bool, bar: bool, describe: Callable[[Progress], str], about: str = "about"
) -> Iterator[Show]:
    """A `Show` while an experiment goes on. Where that is stopped, the error also says that the runs which were
    finished before are kept in `out`."""
    show = Show(Screen(silent, bar), describe, about)
    try:
        yield show
    except (UserError, NonFiniteLoss, KeyboardInterrupt) as error:
        if show.finished:
            runs = f"{show.finished} finished run{'s are' if show.finished > 1 else ' is'} kept in {out}"
            goes_on = "; the same command goes on" if isinstance(error, KeyboardInterrupt) else ""
            error.args = (f"{str(error) or 'interrupted'}; {runs}{goes_on}",)
        raise
    finally:
        show.screen.end()


class Show:
    """A line for each finished run, with the time left, and the steps of the one that goes on as a bar.

    `describe` says a run; `about` stands before the time: runs that may end early make it an upper bound.
    """

    def __init__(self, screen: Screen, describe: Callable[[Progress], str], about: str) -> None:
        self.screen, self.say = screen, screen.say
        self.finished = 0
        self._describe, self._about, self._running = describe, about, False

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
        left = f"; {self._about} {duration(progress.seconds_left)} left" if progress.seconds_left else ""
        self.say(f"[{progress.done}/{progress.total}] {self._describe(progress)}{left}")


def describe_arm(progress: Progress) -> str:
    """A finished run of `compare` or `ablate` in a few words."""
    from fastcifar.training import RunRecord

    record = progress.outcome
    if not isinstance(record, RunRecord):
        return f"{progress.key:<28} diverged"
    took = "kept" if progress.kept else f"{record.train_seconds:.1f} s"
    return f"{progress.key:<28} loss {record.tta_loss:.4f}  accuracy {record.tta_accuracy:.2%}  {took}"
