"""`fastcifar train`: what can be refused is refused first; then torch is imported, the data loaded, and trained on."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from fastcifar.catalogue import DEFAULT_DATASET
from fastcifar.cli import screen
from fastcifar.cli.arguments import RecipeOptions, Switch, parse_with_recipe, quick_train_size
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.output import TRACE, check_out
from fastcifar.phases import Phases
from fastcifar.start import ColdStart, ShrinkPerturb, Start, WarmStart

if TYPE_CHECKING:
    import torch

    from fastcifar.data import Dataset
    from fastcifar.training import RunRecord, Trainer
    from fastcifar.training.profile import StepTrace
    from fastcifar.training.timeline import Timeline

PROG = "fastcifar train"


@dataclass(frozen=True)
class Options(RecipeOptions):
    """Train a recipe's network, show its accuracy, and save the run.

    The flags of the run stand first, the fields of the recipe after them; their defaults are the recipe's.
    """

    dataset: str = DEFAULT_DATASET
    """The data set."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds it; without one, CIFAR-10 is looked for in the user's cache, then downloaded."""
    synthetic_fallback: Switch = False
    """Where CIFAR-10 cannot be downloaded, say so and train on the synthetic set."""
    holdout: Annotated[int, arg(metavar="N")] = 0
    """Test on N training images, which are then not trained on, in place of the test set; 0: the test set."""
    train_size: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Train on N training images only: always the same, and those of a smaller N among those of a larger."""
    train_fraction: Annotated[float | None, arg(metavar="F", help_behavior_hint="(default: 1)")] = None
    """Train on this share, above 0 up to 1, of the training images (of --train-size and --classes, where given)."""
    balanced: Switch = False
    """Take as nearly as possible the same number of each class for --train-size and --train-fraction."""
    subset_seed: Annotated[int, arg(metavar="N")] = 0
    """Names the choice of images for --train-size and --train-fraction."""
    classes: Annotated[str | None, arg(metavar="L,L,...", help_behavior_hint="(default: all)")] = None
    """Train and test on images with these labels alone, as in 0,1,2; the network keeps an output for every class."""
    cold_start: Switch = False
    """Begin with fresh weights, as happens without --warm-start."""
    warm_start: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """Begin with the weights of a saved run (its folder) or of a .safetensors file."""
    shrink: Annotated[float | None, arg(metavar="S", help_behavior_hint="(default: 1, and 0.4 with --perturb)")] = None
    """Multiply the weights of --warm-start by S, 0 to 1."""
    perturb: Annotated[float | None, arg(metavar="P", help_behavior_hint="(default: 0, and 0.1 with --shrink)")] = None
    """Add P times fresh weights to those of --warm-start."""
    reset_head: Switch = False
    """With --warm-start, begin with a fresh classifier, whatever its shape in the source."""
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
    evaluate_at_start: Switch = False
    """Evaluate before the first step too, on the training images also: epoch 0."""
    profile: Switch = False
    """Print where process_seconds went, and write trace.json into the run's folder: a few steps of the (first) run for
    chrome://tracing."""
    quiet: Switch = False
    """Print the last line only."""
    json: Switch = False
    """Print run.json and nothing else to standard output; for several runs {"runs": [...], "summary": {...}}."""


def main(args: Sequence[str]) -> int:
    phases = Phases("start of Python")
    with phases("command line"):
        options = parse_with_recipe(args, Options, PROG, train_size=quick_train_size(args))
        _check(options)
        start = _start(options)
    out = options.out or Path("runs") / f"{options.settings.name}-{time.strftime('%Y%m%d-%H%M%S')}-{options.seed}"
    seeds = range(options.seed, options.seed + options.runs)
    folders = [out / f"seed-{seed}" for seed in seeds] if options.runs > 1 else [out]
    for folder in folders:
        check_out(folder)

    trainer = _trainer(options, phases)
    remarks = _remarks(options, start, trainer.dataset)
    estimates = trainer.device.type == "cpu" and not options.quick
    show = screen.Screen(
        silent=options.quiet or options.json,
        bar=not options.quiet,
        estimated_steps=options.runs * _like_the_first(trainer.timeline) if estimates else 0,
    )
    show.say(screen.header(trainer, seeds))
    if options.warm_start:
        show.say(f"{_said(start)} from {options.warm_start}")
    if options.quick:
        show.say("quick: a narrower network, fewer epochs and fewer images; the full run is")
        show.say("  " + shlex.join([*PROG.split(), *_full_run(args)]))

    trace = _trace(options, trainer)
    records: list[RunRecord] = []
    try:
        for seed, folder in zip(seeds, folders, strict=True):
            show.say(f"\nseed {seed}, run {len(records) + 1} of {options.runs}" if options.runs > 1 else "")
            records.append(_run(trainer, seed, start, folder, options, show, None if records else trace))
            if options.runs > 1:
                show.say(f"seed {seed}  {screen.result_line(records[-1], remarks)}")
    except (UserError, NonFiniteLoss, KeyboardInterrupt) as error:
        if records:
            error.args = (f"{str(error) or 'interrupted'}; {len(records)} of {options.runs} runs are kept in {out}",)
        raise
    if trace:
        show.say()
        show.say(screen.phases_table(records[-1]))
        show.say(screen.trace_lines(trace, folders[0] / TRACE))
    _conclude(records, out, remarks, options, show)
    return 0


def _full_run(args: Sequence[str]) -> list[str]:
    """The arguments without --quick, and without --out, whose folder the quick run takes."""
    words = [word for word in args if word != "--quick" and not word.startswith("--out=")]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return words


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
    elif options.train_fraction is None:
        for flag, given in (("--balanced", options.balanced), ("--subset-seed", options.subset_seed)):
            if given:
                allowed = "with --train-size or --train-fraction"
                raise UserError(f"{flag} says which images a subset takes; allowed: {allowed}")
    require("--subset-seed", 0 <= options.subset_seed < 2**32, "0 up to 2**32 - 1")
    if options.train_fraction is not None:
        require("--train-fraction", 0 < options.train_fraction <= 1, "above 0, up to 1")
    _labels(options)


def _labels(options: Options) -> list[int] | None:
    """The labels in --classes; None where it is not given."""
    if options.classes is None:
        return None
    words = options.classes.split(",")
    if not all(word.isascii() and word.isdigit() for word in words):
        raise UserError(f"--classes is {options.classes!r}; allowed: labels with a comma between them, as in 0,1,2")
    return [int(word) for word in words]


def _start(options: Options) -> Start:
    """What the run begins with; refuses a source that is not there and flags that contradict each other."""
    if options.warm_start is None:
        given = {"--shrink": options.shrink, "--perturb": options.perturb, "--reset-head": options.reset_head or None}
        for flag, value in given.items():
            if value is not None:
                raise UserError(f"{flag} is for given weights; allowed: with --warm-start PATH")
        return ColdStart()
    if options.cold_start:
        raise UserError("--cold-start and --warm-start contradict each other; allowed: one of them")
    factors = {"shrink": options.shrink, "perturb": options.perturb}
    factors = {name: factor for name, factor in factors.items() if factor is not None}
    if factors:
        return ShrinkPerturb(options.warm_start, **factors, reset_head=options.reset_head)
    return WarmStart(options.warm_start, options.reset_head)


def _said(start: Start) -> str:
    """How the run begins, in a few words for a line; empty for a cold start."""
    if isinstance(start, ColdStart):
        return ""
    how = f"shrink {start.shrink:g} perturb {start.perturb:g}" if isinstance(start, ShrinkPerturb) else "warm start"
    return how + (" reset-head" if start.reset_head else "")


def _trainer(options: Options, phases: Phases) -> Trainer:
    if options.profile:  # torch's profiler says on standard error when it starts and stops, unless told not to
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with phases("imports"):
        import torch

        from fastcifar.kernels import keep_freed_memory
        from fastcifar.training import Trainer, resolve_device

    if options.threads:
        torch.set_num_threads(options.threads)
    with phases("device start"):
        device = resolve_device(options.device)
        if device.type == "cpu":
            keep_freed_memory()
        else:  # the device starts while the data is read
            Thread(target=torch.zeros, args=(1,), kwargs={"device": device}, daemon=True).start()
    with phases("data"):
        dataset = _load(options, device)
    return Trainer(options.settings, dataset, device, phases)


def _like_the_first(timeline: Timeline) -> float:
    """How many steps like the first take as long as all of the training, a step's time going by its images' pixels."""
    first = timeline.epochs[0].stage.size
    return sum(steps * (stage.size / first) ** 2 for stage, steps in timeline.steps_by_stage().items())


def _trace(options: Options, trainer: Trainer) -> StepTrace | None:
    if not options.profile:
        return None
    from fastcifar.training.profile import StepTrace

    with trainer.phases("profiler"):
        return StepTrace(trainer.device)


def _load(options: Options, device: torch.device) -> Dataset:
    from fastcifar.data import DownloadError, load_dataset

    try:
        dataset = load_dataset(options.dataset, options.data_dir, device, options.holdout)
    except DownloadError as error:
        if not options.synthetic_fallback:
            raise
        print(f"fastcifar: {error}; training on synthetic data instead", file=sys.stderr)
        dataset = load_dataset("synthetic", None, device, options.holdout)
    return _subset(dataset, options)


def _subset(dataset: Dataset, options: Options) -> Dataset:
    """The part of `dataset` that --classes, --train-size and --train-fraction leave."""
    classes, labels = _labels(options), dataset.train.labels.tolist()
    available = len(labels) if classes is None else sum(label in classes for label in labels)
    size = options.train_size
    if size is None or (options.quick and size > available):
        size = available
    if options.train_fraction is not None:
        size = round(size * options.train_fraction)
    if size == available and classes is None:
        return dataset
    return dataset.take(size, options.subset_seed, options.balanced, classes)


def _remarks(options: Options, start: Start, dataset: Dataset) -> list[str]:
    """What a reader of the last line must know of the run."""
    remarks = []
    if options.holdout:
        remarks.append(f"holdout {options.holdout}")
    if options.train_size is not None and not options.quick:
        remarks.append(f"train-size {options.train_size}")
    if options.train_fraction is not None:
        remarks.append(f"train-fraction {options.train_fraction:g}")
    if options.subset_seed:
        remarks.append(f"subset-seed {options.subset_seed}")
    if options.classes:
        remarks.append(f"classes {options.classes}")
    if options.warm_start:
        remarks.append(_said(start))
    if dataset.name == "synthetic":
        remarks.append("synthetic")
    if options.quick:
        remarks.append("quick")
    return remarks


def _run(
    trainer: Trainer,
    seed: int,
    start: Start,
    folder: Path,
    options: Options,
    show: screen.Screen,
    trace: StepTrace | None,
) -> RunRecord:
    """Train and save one run; its record alone is kept in memory, since there may be hundreds."""
    from safetensors import SafetensorError

    from fastcifar.training import Listener

    listeners = [Listener(on_step=show.step, on_epoch=show.epoch), *([trace] if trace else [])]
    show.begin(trainer.total_steps, "held-out" if options.holdout else "test acc")
    try:
        run = trainer.run(
            seed,
            listeners=listeners,
            eval_every=options.eval_every,
            evaluate_at_start=options.evaluate_at_start,
            init=start,
        )
    finally:
        show.end()
        if trace:
            trace.close()
    try:
        with trainer.phases("saving"):
            run.save(folder)
            if trace:
                trace.save(folder / TRACE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save the run in {folder}: {getattr(error, 'strerror', None) or error}") from None
    return run.record


def _conclude(records: list[RunRecord], out: Path, remarks: list[str], options: Options, show: screen.Screen) -> None:
    if options.json:
        summary = {key: dataclasses.asdict(value) for key, value in screen.summaries(records).items()}
        runs = [record.to_json() for record in records]
        print(json.dumps(runs[0] if options.runs == 1 else {"runs": runs, "summary": summary}, indent=2))
        return
    show.say()
    if options.runs == 1:
        show.say(screen.stopwatches(records[0]))
        show.say(f"{records[0].images_per_second:,.0f} images/s; n=1, no interval; saved in {out}")
        print(screen.result_line(records[0], remarks))
    else:
        show.say(screen.summary_table(records))
        show.say(f"saved in {out}")
        print(screen.summary_line(records, remarks))
