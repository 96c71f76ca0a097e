"""`fastcifar train`: what can be refused is refused first; then torch is imported, the data loaded, and trained on."""

from __future__ import annotations

import dataclasses
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from tyro.conf import arg

from fastcifar.catalogue import find, name_of
from fastcifar.cli import screen
from fastcifar.cli.arguments import asks_help, last_given, parse_with_recipe, quick_train_size
from fastcifar.cli.options import Switch, TrainingOptions
from fastcifar.cli.starts import describe_start, start_of
from fastcifar.errors import UserError, notify
from fastcifar.escape import in_file_name
from fastcifar.experiments import Diverged, Failed, Job, Outcome
from fastcifar.interval import AUTO, read_interval
from fastcifar.launch import Rank, launch_name
from fastcifar.output import (
    BESIDE,
    DIAGNOSE,
    EPOCHS,
    IN_TRAINING,
    RECORD,
    SETTINGS,
    TRACE,
    TRACK,
    check_out,
    reserved,
)
from fastcifar.phases import Phases
from fastcifar.recipes import Recipe, label
from fastcifar.recipes.declare import setting
from fastcifar.report.figures import refuse_without_matplotlib
from fastcifar.screen import Screen, duration
from fastcifar.signals import SIGNALS, Stop
from fastcifar.start import Start
from fastcifar.track import TRACKED

if TYPE_CHECKING:
    import torch

    from fastcifar.cli.unfinished import Asked
    from fastcifar.data import Dataset
    from fastcifar.experiments.folders import RunFolders
    from fastcifar.experiments.runner import Progress
    from fastcifar.training import Trainer
    from fastcifar.training.profile import StepTrace

PROG = "fastcifar train"

Diagnosed = Literal["updates", "activations", "curvature", "forgetting", "plasticity"]


@dataclass(frozen=True)
class Options(TrainingOptions):
    """Train a recipe's network, show its accuracy, and save the run.

    A run is kept in --out, or else runs/RECIPE-TIME-SEED, a new or empty folder: run.json, log.tsv, predictions.npz and
    model.safetensors. Several runs are kept in its folders seed-S, their records in runs.jsonl too, and end with mean,
    spread and 95% interval of all that are there.
    """

    cold_start: Switch = False
    """Begin with fresh weights, as happens without --warm-start."""
    warm_start: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """Begin with the weights of a saved run (its folder, or that of an experiment and warm/seed-0 or the like) or of a
    file: .safetensors, or .pt, .pth or .ckpt of torch.save."""
    start: Annotated[str | None, arg(metavar="METHOD", help_behavior_hint="")] = None
    """What becomes of the weights of --warm-start: warm, nothing; shrink-perturb:shrink=0.4,perturb=0.1; fire, or
    fire:steps=10; dash, or dash:floor=0.3,alpha=0.3,batch=1024. docs/warm-start.md says what each does."""
    shrink: Annotated[float | None, arg(metavar="S", help_behavior_hint="(default: 1, and 0.4 with --perturb)")] = (
        setting(None, at_least=0, at_most=1)
    )
    """Multiply the weights of --warm-start by S, 0 to 1."""
    perturb: Annotated[float | None, arg(metavar="P", help_behavior_hint="(default: 0, and 0.1 with --shrink)")] = (
        setting(None, at_least=0)
    )
    """Add P times fresh weights to those of --warm-start."""
    shrink_layers: Annotated[tuple[str, ...], arg(metavar="WORD", help_behavior_hint="")] = ()
    """Other factors of layers, as in layer4:shrink=0.2,perturb=0.5, with --shrink, --perturb or --start
    shrink-perturb."""
    reset_head: Switch = False
    """With --warm-start, begin with a fresh classifier, whatever its shape there."""
    fit_head: Switch = False
    """With --warm-start, begin with a fresh classifier where its shape there is another, as with other classes."""
    reset: Annotated[tuple[str, ...], arg(metavar="WORD", help_behavior_hint="")] = ()
    """With --warm-start, what begins afresh: head, as --reset-head; last-2, the 2 last layers with parameters;
    statistics, the running ones of all batch norms."""
    eval_every: Annotated[int, arg(metavar="N")] = setting(1, at_least=0, unit="epochs")
    """Epochs between evaluations; 0: only at the end. Evaluation is not timed as training."""
    evaluate_at_start: Switch = False
    """Evaluate before the first step too, on the training images also: epoch 0."""
    profile: Switch = False
    """Print where process_seconds went, and write trace.json into the run's folder: a few steps of the (first) run for
    chrome://tracing."""
    plot: Switch = False
    """When all is trained, draw the figures of `fastcifar plot`, of all runs that are there, into the folder figures
    beside them."""
    checkpoint_every: Annotated[str, arg(metavar="E")] = AUTO
    """How often the state of the training is kept, for --resume: epochs, as in 2 or 0.5, a time, as in 10min, or never;
    auto: in runs of more than about two minutes, so that it costs less than 1% of their time."""
    keep_weights: Literal["last", "all"] = "last"
    """all: keep the evaluated weights of every epoch too, as weights/epoch-001.safetensors and so on."""
    keep: Literal["last", "best"] = "last"
    """best: end with the weights of the evaluated epoch that is the best by validation accuracy or, without such a
    split, on the images that are tested on; the record says which epoch."""
    diagnose: Annotated[tuple[Diagnosed, ...], arg(help_behavior_hint="")] = ()
    """Measure the training, while it is not timed; arrays and figures are in the run's folder diagnose. updates: how
    far each layer moves in a step; by epoch, activations: what each gives; curvature, forgetting: what limits rates;
    plasticity: what is left of the network to be trained further."""
    resume: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Go on with the training in DIR, which was ended in whatever way, as it was asked for. Beside it are allowed
    --data-dir, --resident, --device, --threads, --parallel, --checkpoint-every, --profile, --plugin, --quiet and
    --json."""

    prog: ClassVar[str] = PROG

    def check(self, *recipes: Recipe) -> None:
        super().check(*recipes)
        for recipe in recipes:
            recipe.schedule.refuse_eval_every(self.eval_every)
        self._require("keep", self.keep == "last" or self.eval_every, "last with --eval-every 0")
        self._require("seed", self.seed + self.runs <= 2**63, "0 up to 2**63 - 1, the last of --runs included")
        read_interval(self.checkpoint_every, "--checkpoint-every")
        if self.runs == 1 and (ranks := Rank.here().count) > 1:
            raise UserError(f"--runs is 1, for torchrun's {ranks} ranks; allowed: 2 or more, which they share")

    def _check(self) -> None:
        super()._check()
        if self.profile and self.parallel != 1:
            raise UserError(f"--profile traces one process, and --parallel is {self.parallel}; allowed: one of them")


def main(args: Sequence[str]) -> int:
    if last_given(args, "--resume") is not None and not asks_help(args):
        from fastcifar.cli import resume

        return resume.main(args)
    phases = Phases("start of Python")
    with phases("command line"):
        options = parse_with_recipe(args, Options, PROG, train_size=quick_train_size(args))
    return run(options, args, phases)


def run(options: Options, args: Sequence[str], phases: Phases) -> int:
    """Train as `options` say, which were read from `args`, and return the exit status."""
    from fastcifar.cli.unfinished import Asked

    with phases("command line"):
        if options.plot:
            refuse_without_matplotlib()
        options = options.resized_for(options.settings)
        options.check(options.settings)
        named = {"--diagnose": get_args(Diagnosed), "--track": TRACKED, "--reset": ("head, statistics, last-1, ...",)}
        named["--shrink-layers"] = ("words as in layer4:shrink=0.2,perturb=0.5",)
        for flag, words in named.items():
            if last_given(args, flag) == "":
                raise UserError(f"{flag} names nothing; allowed: {', '.join(words)}")
        start = start_of(options)
        seeds = tuple(range(options.seed, options.seed + options.runs))
        asked = Asked(options, start.describe(), seeds)
    launch = launch_name() if options.runs > 1 else None
    name = f"{in_file_name(label(options.settings))}-{launch or time.strftime('%Y%m%d-%H%M%S')}-{options.seed}"
    usual = Path("runs") / name
    anew = options.out is None and launch is None
    with reserved(options.out or usual, anew=anew, shared=options.runs > 1) as out:
        if (out / SETTINGS).exists():
            allowed = "a new or an empty folder, or one of several runs"
            raise UserError(f"output folder {out} holds an experiment; allowed: {allowed}")
        for folder in (out / f"seed-{seed}" for seed in seeds if options.runs > 1):
            if not (folder / RECORD).is_file():
                check_out(folder, besides=(*IN_TRAINING, *BESIDE))
        return train_runs(asked, start, out, spares_of(usual), phases, args)


def spares_of(usual: Path) -> tuple[Path, ...]:
    """Return the folders that a run is saved in where its own takes it no more."""
    return usual, Path(tempfile.gettempdir()) / usual.name


def train_runs(
    asked: Asked,
    start: Start | Callable[[Path], Start],
    out: Path,
    spares: Sequence[Path],
    phases: Phases,
    args: Sequence[str] | None,
) -> int:
    """Train the runs that are asked for and save them in `out`, or in one of `spares` where that fails; return the exit
    status.

    args: the command's, or None where it goes on with what an earlier one was asked for.
    """
    from fastcifar.cli.unfinished import begun, done

    options, seeds = _with_absolute_paths(asked.options), asked.seeds
    asked = dataclasses.replace(asked, options=options)
    is_first = Rank.here().is_first
    silent = options.quiet or options.json or not is_first
    show = Screen(silent, bar=not options.quiet and is_first)
    own: dict[int, Outcome] = {}
    try:
        with begun(asked, out, args is None, lambda: sum(not isinstance(each, Failed) for each in own.values())):
            device, threads = _start_device(options, phases)
            if args is not None:  # once more, with what is in use
                dataclasses.replace(
                    asked, options=dataclasses.replace(options, device=device.type, threads=threads)
                ).write(out)
            with phases("data"):
                dataset = options.load(device)
            store = _train(asked, start, dataset, out, spares, phases, args, show, own)
            failed = [outcome for outcome in own.values() if isinstance(outcome, Failed)]
            if all(isinstance(each, Diverged) for each in failed):  # others are tried again
                done(out, seeds)
            if not is_first:  # the first rank tells what all of them found
                return 0
            if len(failed) == len(own):
                raise failed[0].error(failed[0].reason)
    finally:
        show.end()
    remarks = _remarks(options, asked.init, dataset)
    if options.plot:
        show.say(screen.drawn_runs(out))
    if options.keep == "best" and len(seeds) > 1:
        remarks.append("best epochs")
    screen.conclude(list(store.outcomes().values()), out, remarks, len(seeds) > 1, options.json, show)
    return 3 if any(isinstance(each, Diverged) for each in failed) else 5 if failed else 0


def _train(
    asked: Asked,
    start: Start | Callable[[Path], Start],
    dataset: Dataset,
    out: Path,
    spares: Sequence[Path],
    phases: Phases,
    args: Sequence[str] | None,
    show: Screen,
    own: dict[int, Outcome],
) -> RunFolders:
    """Do as `train_runs`, and put the outcomes into `own` as they come, by their seeds."""
    from fastcifar.experiments.folders import RunFolders
    from fastcifar.experiments.parallel import at_once, runner_for
    from fastcifar.training import Listener
    from fastcifar.training.progress import ShowProgress, header

    options, seeds = asked.options, asked.seeds
    job = Job("run", 0, options.settings, start=start, eval_every=options.eval_every)
    job = dataclasses.replace(job, keep=options.keep)
    job = dataclasses.replace(job, evaluate_at_start=options.evaluate_at_start, diagnose=options.diagnose)
    jobs = [dataclasses.replace(job, seed=seed) for seed in seeds]
    keep = {"every": options.checkpoint_every, "keeps_epochs": options.keep_weights == "all", "track": options.track}
    store = RunFolders(jobs, out, _same(asked.init, options.keep, dataset), phases, spares, **keep)

    def begin(trainer: Trainer) -> None:
        seed = trainer.state.seed
        show.say(f"\nseed {seed}, run {seeds.index(seed) + 1} of {len(seeds)}" if len(seeds) > 1 else "")
        if trainer.state.step:
            show.say(f"goes on after step {trainer.state.step} of {trainer.total_steps}")

    kept, seed_of, so_far = set[str](), {job.key: job.seed for job in jobs}, ""
    gathered = screen.Gathered(show, arms=False)

    def note(progress: Progress) -> None:
        nonlocal so_far
        if len(seeds) > 1 and not progress.is_waiting:
            so_far = gathered.note(progress)
        if progress.outcome:  # of several processes in the order in which they end, and below in that of the seeds
            own[seed_of[progress.key]] = progress.outcome
        if progress.is_waiting:
            show.say(f"waiting for another process, which trains {progress.key}")
        elif progress.kept:
            kept.add(progress.key)
        elif progress.outcome is None and not (options.quick or show.shows_bars) and progress.seconds_left:
            show.say(f"about {duration(progress.seconds_left)} of training, going by its first steps")

    device = dataset.train.device
    trace = _trace(options, device, phases)
    stop = Stop(SIGNALS, store.keep_state)
    listeners = [Listener(on_start=begin), ShowProgress(show), *([trace] if trace else [])]
    listeners.append(Listener(on_start=stop.begin, on_step=stop.step, on_epoch=stop.epoch))
    how = {"listeners": listeners, "on_progress": note, "phases": phases}
    parallel = at_once(options.parallel, len(jobs), device)
    runner = runner_for(parallel, jobs, dataset, store, device, **how)
    trainer = runner.trainer(jobs[0])
    remarks = _remarks(options, asked.init, dataset)
    show.say(header(trainer, seeds, min(parallel, len(seeds))))
    if rates := trainer.recipe.ensemble.rates(trainer.recipe.optimizer):
        show.say(rates)
    del trainer  # one that fails is dropped
    if options.warm_start:
        show.say(f"{describe_start(asked.init)} from {asked.init['source']}")
    if options.quick and args is not None:
        show.say("quick: a narrower network, fewer epochs and fewer images; the full run is")
        show.say("  " + shlex.join([*options.prog.split(), *_full_run(args)]), whole=True)

    if len(seeds) > 1:
        show.runs(0, len(seeds))
    try:
        for job, outcome in runner:
            SIGNALS.is_held = False
            show.end_run()
            if isinstance(outcome, Failed):
                line = f"{outcome.word}: {outcome.reason}"
            else:
                line = screen.result_line(outcome, remarks) + "  kept" * (job.key in kept)
            if len(seeds) > 1:
                show.say(f"seed {job.seed}  {line}" + f"  {so_far}" * bool(so_far))
            if trace and trace.seed == job.seed:
                trace.save(store.folder(job.key) / TRACE)
            if SIGNALS.number and len(own) < len(seeds):  # one that came in the final evaluation
                raise SIGNALS.interrupted()
    finally:
        if trace:
            trace.close()
    _tell_of_absent(options, [store.folder(key) for key in sorted(kept)])
    records = [outcome for outcome in own.values() if not isinstance(outcome, Failed)]
    if trace and records and len(kept) < len(own):
        seed = trace.seed or options.seed
        show.say()
        show.say(screen.phases_table(records[-1]))
        show.say(screen.trace_lines(trace, (out / f"seed-{seed}" if len(seeds) > 1 else out) / TRACE))
    for job in jobs if options.diagnose else ():
        if job.seed in own and job.key not in kept:
            show.say(screen.drawn_diagnoses(store.folder(job.key), options.diagnose))
    return store


def _tell_of_absent(options: Options, kept: Sequence[Path]) -> None:
    """Say which flags did nothing for the runs in these folders, which are of an earlier command."""
    asked = {
        "--profile": (options.profile, TRACE),
        "--diagnose": (options.diagnose, DIAGNOSE),
        "--track": (options.track, TRACK),
        "--keep-weights all": (options.keep_weights == "all", EPOCHS),
    }
    for flag, (is_given, name) in asked.items():
        without = [folder.name for folder in kept if is_given and not (folder / name).exists()]
        if without:
            said = f"{flag} did nothing for {' '.join(without)}, kept from before"
            notify(f"{said}; another --out trains anew")


def _full_run(args: Sequence[str]) -> list[str]:
    """Return the arguments without --quick, and without --out, whose folder the quick run takes."""
    words = [word for word in args if word != "--quick" and not word.startswith("--out=")]
    while "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return words


def _start_device(options: Options, phases: Phases) -> tuple[torch.device, int]:
    """Return the device, and the threads in use; torch is imported here."""
    if options.profile:  # torch's profiler says on standard error when it starts and stops, unless told not to
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with phases("imports"):
        import fastcifar.kernels
        import fastcifar.training  # noqa: F401  (here, so that the other phases have no imports in them)
    with phases("device start"):
        device = options.start_device()
    import torch

    return device, torch.get_num_threads()


def _with_absolute_paths(options: Options) -> Options:
    folder = options.data_dir
    if folder is None and find(options.dataset)[0].homes and os.environ.get("FASTCIFAR_DATA"):
        folder = Path(os.environ["FASTCIFAR_DATA"]).expanduser()
    paths = {"data_dir": folder, "warm_start": options.warm_start}
    found = {name: path and path.absolute() for name, path in paths.items()}
    return dataclasses.replace(options, dataset=name_of(options.dataset), **found)


def _same(init: Mapping[str, Any], keep: str, dataset: Dataset) -> dict[str, Any]:
    """Return what the record of a run must say for the run to count as one of these."""
    sizes = {"train_size": len(dataset.train), "test_size": len(dataset.test), "holdout": dataset.holdout}
    made = {"fold": "", "resized": 0, "tests_val": False, **dataset.changes}
    return {
        "init": {name: value for name, value in init.items() if name != "source"},  # the sha256 says it
        "subset": dataset.subset,
        "keep": keep,
        "dataset": {"name": dataset.name, "sha256": dataset.sha256, **sizes, **made},
        "device": {"type": dataset.train.device.type},
    }


def _trace(options: Options, device: torch.device, phases: Phases) -> StepTrace | None:
    if not options.profile:
        return None
    from fastcifar.training.profile import StepTrace

    with phases("profiler"):
        return StepTrace(device)


def _remarks(options: Options, init: Mapping[str, Any], dataset: Dataset) -> list[str]:
    """Return what a reader of the last line must know of the run."""
    remarks = [f"fold {options.fold}"] if options.fold else []
    if options.resize:
        remarks.append(f"resize {options.resize}")
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
        remarks.append(describe_start(init))
    if dataset.name == "synthetic":
        remarks.append("synthetic")
    if options.quick:
        remarks.append("quick")
    return remarks
