"""`fastcifar train`: what can be refused is refused first; then torch is imported, the data loaded, and trained on."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from fastcifar.cli import screen
from fastcifar.cli.arguments import parse_with_recipe, quick_train_size
from fastcifar.cli.experiment import shown
from fastcifar.cli.options import Switch, TrainingOptions
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.escape import in_file_name
from fastcifar.experiments import Diverged, Job
from fastcifar.output import RECORD, TRACE, check_out, reserved
from fastcifar.phases import Phases
from fastcifar.recipes import Recipe, label
from fastcifar.recipes.declare import setting
from fastcifar.start import ColdStart, ShrinkPerturb, Start, WarmStart

if TYPE_CHECKING:
    import torch

    from fastcifar.data import Dataset
    from fastcifar.experiments.runner import Progress
    from fastcifar.training import RunRecord, Trainer
    from fastcifar.training.profile import StepTrace

PROG = "fastcifar train"


@dataclass(frozen=True)
class Options(TrainingOptions):
    """Train a recipe's network, show its accuracy, and save the run.

    A run is kept in --out, or else runs/RECIPE-TIME-SEED, a new or empty folder: run.json, log.tsv, predictions.npz and
    model.safetensors. Several runs are kept in its folders seed-S, and end with mean, spread and 95% interval.

    The flags of the run stand first, the fields of the recipe after them; their defaults are the recipe's.
    """

    cold_start: Switch = False
    """Begin with fresh weights, as happens without --warm-start."""
    warm_start: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """Begin with the weights of a saved run (its folder, or that of an experiment and warm/seed-0 or the like) or of a
    .safetensors file."""
    shrink: Annotated[float | None, arg(metavar="S", help_behavior_hint="(default: 1, and 0.4 with --perturb)")] = None
    """Multiply the weights of --warm-start by S, 0 to 1."""
    perturb: Annotated[float | None, arg(metavar="P", help_behavior_hint="(default: 0, and 0.1 with --shrink)")] = None
    """Add P times fresh weights to those of --warm-start."""
    reset_head: Switch = False
    """With --warm-start, begin with a fresh classifier, whatever its shape there."""
    eval_every: Annotated[int, arg(metavar="N")] = setting(1, at_least=0, unit="epochs")
    """Epochs between evaluations; 0: only at the end. Evaluation is not timed as training."""
    evaluate_at_start: Switch = False
    """Evaluate before the first step too, on the training images also: epoch 0."""
    profile: Switch = False
    """Print where process_seconds went, and write trace.json into the run's folder: a few steps of the (first) run for
    chrome://tracing."""

    def check(self, *recipes: Recipe) -> None:
        super().check(*recipes)
        self._require("seed", self.seed + self.runs <= 2**63, "0 up to 2**63 - 1, the last of --runs included")


def main(args: Sequence[str]) -> int:
    phases = Phases("start of Python")
    with phases("command line"):
        options = parse_with_recipe(args, Options, PROG, train_size=quick_train_size(args))
        options.check(options.settings)
        start = _start(options)
    name = f"{in_file_name(label(options.settings))}-{time.strftime('%Y%m%d-%H%M%S')}-{options.seed}"
    usual = Path("runs") / name
    with reserved(options.out or usual, anew=options.out is None, shared=options.runs > 1) as out:
        spares = (usual, Path(tempfile.gettempdir()) / name)
        return _train(args, options, start, out, spares, phases)


def _train(
    args: Sequence[str], options: Options, start: Start, out: Path, spares: Sequence[Path], phases: Phases
) -> int:
    """Train the runs and save them in `out`, or in one of `spares` where that fails; return the exit status."""
    seeds = range(options.seed, options.seed + options.runs)
    folders = [out / f"seed-{seed}" for seed in seeds] if options.runs > 1 else [out]
    for folder in folders:
        if options.runs > 1 and not (folder / RECORD).is_file():
            check_out(folder)

    show = screen.Screen(silent=options.quiet or options.json, bar=not options.quiet)
    dataset = _load(options, phases)
    from fastcifar.experiments.runner import Runner
    from fastcifar.experiments.store import RunFolders
    from fastcifar.training import Listener

    asked = Job("run", 0, options.settings, start=start, eval_every=options.eval_every)
    asked = dataclasses.replace(asked, evaluate_at_start=options.evaluate_at_start)
    jobs = [dataclasses.replace(asked, seed=seed) for seed in seeds]
    store = RunFolders(jobs, folders, _same(start, dataset), phases, spares)

    def begin(trainer: Trainer) -> None:
        seed = trainer.state.seed
        show.say(f"\nseed {seed}, run {seed - options.seed + 1} of {options.runs}" if options.runs > 1 else "")
        show.begin(trainer.total_steps, "held-out" if options.holdout else "test acc")

    kept: set[str] = set()

    def note(progress: Progress) -> None:
        if progress.is_waiting:
            show.say(f"waiting for another process, which trains {progress.key}")
        elif progress.kept:
            kept.add(progress.key)
        elif progress.outcome is None and not options.quick and progress.seconds_left:
            show.say(f"about {screen.duration(progress.seconds_left)} of training, going by its first steps")

    device = dataset.train.device
    trace = _trace(options, device, phases)
    listeners = [Listener(on_start=begin, on_step=show.step, on_epoch=show.epoch), *([trace] if trace else [])]
    runner = Runner(jobs, dataset, store, device, listeners=listeners, on_progress=note, phases=phases)
    trainer = runner.trainer(jobs[0])
    remarks = _remarks(options, start, dataset)
    show.say(screen.header(trainer, seeds))
    if options.warm_start:
        show.say(f"{_describe(start)} from {options.warm_start}")
    if options.quick:
        show.say("quick: a narrower network, fewer epochs and fewer images; the full run is")
        show.say("  " + shlex.join([*PROG.split(), *_full_run(args)]))

    records: list[RunRecord] = []
    diverged: list[Diverged] = []
    goes_on = "the same command" if options.out else f"the same command with --out {out}"
    with shown(show, out if options.runs > 1 else None, lambda: len(records), goes_on):
        try:
            for job, outcome in runner:
                show.end()
                if isinstance(outcome, Diverged):
                    diverged.append(outcome)
                    line = f"diverged: {outcome.reason}"
                else:
                    records.append(outcome)
                    line = screen.result_line(outcome, remarks) + "  kept" * (job.key in kept)
                if options.runs > 1:
                    show.say(f"seed {job.seed}  {line}")
                if trace and trace.seed == job.seed:
                    trace.save(store.folder(job.key) / TRACE)
        finally:
            if trace:
                trace.close()
    if diverged and not records:
        raise NonFiniteLoss(diverged[0].reason)
    if diverged:
        remarks.append(f"{len(diverged)} of {options.runs} diverged")
    if trace:
        show.say()
        show.say(screen.phases_table(records[-1]))
        show.say(screen.trace_lines(trace, folders[(trace.seed or options.seed) - options.seed] / TRACE))
    _conclude(records, diverged, out, remarks, options, show)
    return 3 if diverged else 0


def _full_run(args: Sequence[str]) -> list[str]:
    """Return the arguments without --quick, and without --out, whose folder the quick run takes."""
    words = [word for word in args if word != "--quick" and not word.startswith("--out=")]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return words


def _start(options: Options) -> Start:
    """Return what the run begins with. Raises UserError for weights that are not there and contradicting flags."""
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


def _describe(start: Start) -> str:
    """Return how the run begins, in a few words for a line; empty for a cold start."""
    if isinstance(start, ColdStart):
        return ""
    how = f"shrink {start.shrink:g} perturb {start.perturb:g}" if isinstance(start, ShrinkPerturb) else "warm start"
    return how + (" reset-head" if start.reset_head else "")


def _load(options: Options, phases: Phases) -> Dataset:
    if options.profile:  # torch's profiler says on standard error when it starts and stops, unless told not to
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with phases("imports"):
        import fastcifar.kernels
        import fastcifar.training  # noqa: F401  (here, so that the other phases have no imports in them)
    with phases("device start"):
        device = options.start_device()
    with phases("data"):
        return options.load(device)


def _same(start: Start, dataset: Dataset) -> dict[str, Any]:
    """Return what the record of a run must say for the run to count as one of these."""
    sizes = {"train_size": len(dataset.train), "test_size": len(dataset.test), "holdout": dataset.holdout}
    return {
        "init": {name: value for name, value in start.describe().items() if name != "source"},  # the sha256 says it
        "subset": dataset.subset,
        "dataset": {"name": dataset.name, "sha256": dataset.sha256, **sizes},
        "device": {"type": dataset.train.device.type},
    }


def _trace(options: Options, device: torch.device, phases: Phases) -> StepTrace | None:
    if not options.profile:
        return None
    from fastcifar.training.profile import StepTrace

    with phases("profiler"):
        return StepTrace(device)


def _remarks(options: Options, start: Start, dataset: Dataset) -> list[str]:
    """Return what a reader of the last line must know of the run."""
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
        remarks.append(_describe(start))
    if dataset.name == "synthetic":
        remarks.append("synthetic")
    if options.quick:
        remarks.append("quick")
    return remarks


def _conclude(
    records: list[RunRecord],
    diverged: list[Diverged],
    out: Path,
    remarks: list[str],
    options: Options,
    show: screen.Screen,
) -> None:
    if options.json:
        summary = {key: dataclasses.asdict(value) for key, value in screen.summaries(records).items()}
        runs = [record.to_json() for record in records]
        several = {"runs": runs, "summary": summary, "diverged": len(diverged)}
        print(json.dumps(runs[0] if options.runs == 1 else several, indent=2))
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
