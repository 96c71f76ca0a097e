"""`fastcifar train`: what can be refused is refused first; then torch is imported, the data loaded, and trained on."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from fastcifar.cli import screen
from fastcifar.cli.arguments import Switch, last_given, parse
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.output import check_out
from fastcifar.recipes import Recipe, get_recipe, quick

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.training import Trainer

PROG = "fastcifar train"


@dataclass(frozen=True)
class Options:
    """Train a recipe's network, show its accuracy, and save the run.

    The flags of the run stand first, the fields of the recipe after them; their defaults are the recipe's.
    """

    recipe: Annotated[str, arg(metavar="NAME|FILE.toml")] = "davidnet"
    """A named recipe (`fastcifar recipes` lists them) or a TOML file."""
    dataset: Literal["cifar10", "synthetic"] = "cifar10"
    """CIFAR-10, or a learnable set of ten classes made in memory."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds CIFAR-10; without one, it is looked for in the user's cache, then downloaded."""
    synthetic_fallback: Switch = False
    """Where CIFAR-10 cannot be downloaded, say so and train on the synthetic set."""
    holdout: Annotated[int, arg(metavar="N")] = 0
    """Test on N training images, which are then not trained on, in place of the test set; 0: the test set."""
    train_size: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Train on N training images only."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: on a GPU if there is one."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: torch's)")] = None
    """CPU threads."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Names the run's random choices: weights, order, crops, flips."""
    runs: Annotated[int, arg(metavar="N")] = 1
    """Train N times with seeds S, S+1, ..., each saved in DIR/seed-S, and say mean, spread and 95% interval."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/<recipe>-<time>-<seed>)")] = None
    """New or empty folder for run.json, log.tsv, predictions.npz and model.safetensors."""
    quick: Switch = False
    """The same path in under a minute: a narrower network, fewer epochs, fewer training images."""
    eval_every: Annotated[int, arg(metavar="N")] = 1
    """Epochs between evaluations; 0: only at the end. Evaluation is not timed as training."""
    quiet: Switch = False
    """Print the last line only."""
    json: Switch = False
    """Print run.json and nothing else to standard output; for several runs {"runs": [...], "summary": {...}}."""
    settings: Annotated[Recipe, arg(name="")] = dataclasses.field(default_factory=Recipe)


def main(args: Sequence[str]) -> int:
    options = _options(args)
    _check(options)
    out = options.out or Path("runs") / f"{options.settings.name}-{time.strftime('%Y%m%d-%H%M%S')}-{options.seed}"
    seeds = range(options.seed, options.seed + options.runs)
    folders = [out / f"seed-{seed}" for seed in seeds] if options.runs > 1 else [out]
    for folder in folders:
        check_out(folder)

    trainer = _trainer(options)
    remarks = _remarks(options, trainer.dataset)
    show = screen.Screen(silent=options.quiet or options.json, bar=not options.quiet)
    show.say(screen.header(trainer, seeds))
    if options.quick:
        show.say("quick: a narrower network, fewer epochs and fewer images; the full run is")
        show.say("  " + shlex.join([*PROG.split(), *(word for word in args if word != "--quick")]))
    elif trainer.device.type == "cpu" and not show.silent:
        seconds = trainer.estimate_seconds() * options.runs
        show.say(f"about {screen.duration(seconds)} of training, going by a few timed steps")

    records: list[screen.Record] = []
    try:
        for seed, folder in zip(seeds, folders, strict=True):
            show.say(f"\nseed {seed}, run {len(records) + 1} of {options.runs}" if options.runs > 1 else "")
            records.append(_run(trainer, seed, folder, options, show))
            if options.runs > 1:
                show.say(f"seed {seed}  {screen.result_line(records[-1], remarks)}")
    except (UserError, NonFiniteLoss, KeyboardInterrupt) as error:
        if records:
            error.args = (f"{str(error) or 'interrupted'}; {len(records)} of {options.runs} runs are kept in {out}",)
        raise
    _conclude(records, out, remarks, options, show)
    return 0


def _options(args: Sequence[str]) -> Options:
    """The options in `args`. The recipe and --quick are read first: they give the other fields their defaults."""
    name = last_given(args, "--recipe") or "davidnet"
    recipe, train_size = get_recipe(name), None
    if last_given(args, "--quick") is not None:
        recipe, train_size = quick(recipe)
    return parse(args, Options(recipe=name, train_size=train_size, settings=recipe), PROG)


def _check(options: Options) -> None:
    def require(flag: str, ok: bool, allowed: str) -> None:
        if not ok:
            value = getattr(options, flag.removeprefix("--").replace("-", "_"))
            raise UserError(f"{flag} is {value}; allowed: {allowed}")

    batch_size = options.settings.batch_size
    require("--holdout", options.holdout >= 0, "0 (the test set) or a number of images")
    require("--runs", options.runs >= 1, "1 or more")
    require("--seed", options.seed >= 0, "0 up to 2**63 - 1")
    last = "0 up to 2**63 - 1, the last of --runs included"
    require("--seed", options.seed + options.runs <= 2**63, last)
    require("--eval-every", options.eval_every >= 0, "0 (only at the end) or a number of epochs")
    if options.threads is not None:
        require("--threads", options.threads >= 1, "1 or more")
    if options.train_size is not None:
        require("--train-size", options.train_size >= batch_size, f"batch_size, {batch_size}, or more images")


def _trainer(options: Options) -> Trainer:
    import torch

    from fastcifar.training import Trainer, resolve_device

    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    dataset = _load(options, device)
    return Trainer(options.settings, dataset, device)


def _load(options: Options, device: object) -> Dataset:
    from fastcifar.data import DownloadError, load_dataset

    try:
        dataset = load_dataset(options.dataset, options.data_dir, device, options.holdout)
    except DownloadError as error:
        if not options.synthetic_fallback:
            raise
        print(f"fastcifar: {error}; training on synthetic data instead", file=sys.stderr)
        dataset = load_dataset("synthetic", None, device, options.holdout)
    size = options.train_size
    if size is None or (options.quick and size >= len(dataset.train)):
        return dataset
    return dataset.take(size)


def _remarks(options: Options, dataset: Dataset) -> list[str]:
    """What a reader of the last line must know of the run."""
    remarks = []
    if options.holdout:
        remarks.append(f"holdout {options.holdout}")
    if options.train_size is not None and not options.quick:
        remarks.append(f"train-size {options.train_size}")
    if dataset.name == "synthetic":
        remarks.append("synthetic")
    if options.quick:
        remarks.append("quick")
    return remarks


def _run(trainer: Trainer, seed: int, folder: Path, options: Options, show: screen.Screen) -> screen.Record:
    """Train and save one run; its record alone is kept in memory, since there may be hundreds."""
    from safetensors import SafetensorError

    show.begin(trainer.total_steps, "held-out" if options.holdout else "test acc")
    try:
        run = trainer.run(seed, on_step=show.step, on_epoch=show.epoch, eval_every=options.eval_every)
    finally:
        show.end()
    try:
        run.save(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save the run in {folder}: {getattr(error, 'strerror', None) or error}") from None
    return run.record


def _conclude(
    records: list[screen.Record], out: Path, remarks: list[str], options: Options, show: screen.Screen
) -> None:
    if options.json:
        summary = {key: dataclasses.asdict(value) for key, value in screen.summaries(records).items()}
        print(json.dumps(records[0] if options.runs == 1 else {"runs": records, "summary": summary}, indent=2))
        return
    show.say()
    if options.runs == 1:
        show.say(screen.stopwatches(records[0]))
        show.say(f"{records[0]['images_per_second']:,.0f} images/s; n=1, no interval; saved in {out}")
        print(screen.result_line(records[0], remarks))
    else:
        show.say(screen.summary_table(records))
        show.say(f"saved in {out}")
        print(screen.summary_line(records, remarks))
