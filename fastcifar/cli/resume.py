"""`fastcifar train --resume DIR`: goes on with a training that was ended in whatever way."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastcifar.cli import screen
from fastcifar.cli.arguments import groups, last_given, parse
from fastcifar.cli.options import CommandOptions, Resident, Switch, flag_of
from fastcifar.cli.starts import describe_start, start_of
from fastcifar.cli.train import PROG, spares_of, train_runs
from fastcifar.cli.unfinished import Asked
from fastcifar.errors import UserError
from fastcifar.escape import in_file_name
from fastcifar.experiments import Diverged, Failed, Outcome
from fastcifar.interval import read_interval
from fastcifar.launch import Rank
from fastcifar.locks import claimed
from fastcifar.output import CHECKPOINTS, PARTIAL, RECORD, RUNS, UNFINISHED, reserved
from fastcifar.phases import Phases
from fastcifar.recipes import label
from fastcifar.recipes.declare import setting
from fastcifar.screen import Screen
from fastcifar.start import ColdStart, Start


@dataclass(frozen=True)
class ResumeOptions(CommandOptions):
    """The options that may stand beside --resume; without one, what the training was asked for holds."""

    resume: Path | None = None
    data_dir: Path | None = None
    resident: Resident | None = None
    device: Literal["auto", "cpu", "cuda"] | None = None
    threads: int | None = setting(None, at_least=1)
    parallel: int | Literal["auto"] | None = setting(None, at_least=1)
    checkpoint_every: str | None = None
    profile: Switch = False
    quiet: Switch = False
    json: Switch = False


def main(args: Sequence[str]) -> int:
    """Go on with the training that `args` name, and return the exit status."""
    phases = Phases("start of Python")
    with phases("command line"):
        options = _read(args)
        out = options.resume
        assert out is not None
        outcomes = _finished(out)
        asked = None if outcomes else _asked(options, out)
    if outcomes and not Rank.here().is_first:  # the first rank shows them
        return 0
    if outcomes:
        return _show_again(outcomes, out, options)
    assert asked is not None
    with reserved(out, shared=True) if len(asked.seeds) > 1 else _ours(out):
        spares = spares_of(Path("runs") / f"{in_file_name(label(asked.options.settings))}-{out.absolute().name}")
        return train_runs(asked, _start(asked), out, spares, phases, None)


def _read(args: Sequence[str]) -> ResumeOptions:
    """Return the options. Raises UserError for one that may not stand beside --resume."""
    allowed = [flag_of(field.name) for field in dataclasses.fields(ResumeOptions) if field.name != "resume"]
    for group in groups(args):
        flag = group[0].partition("=")[0].replace("_", "-") if group else ""
        if flag.startswith("-") and flag not in (*allowed, "--resume"):
            raise UserError(
                f"{flag} stands beside --resume, with which a training goes on as it was asked for; allowed: "
                f"{', '.join(allowed)}"
            )
    options = parse(args, ResumeOptions(), PROG)
    if not str(last_given(args, "--resume") or "").strip():
        raise UserError("--resume names no folder; allowed: the folder of a training")
    if options.checkpoint_every is not None:
        read_interval(options.checkpoint_every, "--checkpoint-every")
    return options


def _asked(options: ResumeOptions, out: Path) -> Asked:
    """Return what the training in `out` was asked for, with what `options` say of this machine and what is shown."""
    if not (out / UNFINISHED).is_file():
        if (out.parent / UNFINISHED).is_file() and out.name.startswith("seed-"):
            raise UserError(f"{out} is one of several runs; allowed: --resume {out.parent}")
        found = "holds no unfinished training" if out.exists() else "does not exist"
        raise UserError(f"{out} {found}; allowed: the folder of a training, with {UNFINISHED}")
    asked = Asked.read(out)
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    given = {name: value for name, value in given.items() if value is not None and name != "resume"}
    given["plugin"] = (*asked.options.plugin, *options.plugin)
    asked = dataclasses.replace(asked, options=dataclasses.replace(asked.options, **given))
    asked.options.check(asked.options.settings)
    return asked


def _start(asked: Asked) -> Start | Callable[[Path], Start]:
    """Return what runs begin with of which no state is kept. The weights of a warm start may be gone where none is."""
    if asked.init["mode"] == ColdStart().describe()["mode"]:
        return ColdStart()
    return functools.partial(_start_again, asked)


def _start_again(asked: Asked, _: Path) -> Start:
    start, source = start_of(asked.options), str(asked.init["source"])
    if Path(source).absolute() == asked.options.warm_start:  # named as before, for the record
        start = dataclasses.replace(start, source=Path(source))
    if start.describe()["sha256"] != asked.init["sha256"]:
        raise UserError(f"{asked.options.warm_start} holds other weights than before; allowed: the same ones")
    return start


@contextlib.contextmanager
def _ours(out: Path) -> Iterator[None]:
    """Keep the folder of a single run for this process. Raises UserError where another one trains into it."""
    with claimed(out / f"{PARTIAL}lock") as is_ours:
        if not is_ours:
            raise UserError(f"another process trains into {out}; allowed: once that has ended")
        yield


def _finished(out: Path) -> list[Outcome]:
    """Return the outcomes of a run, or of several, that are finished; none where something is left to train."""
    single = (out / RECORD).is_file()
    if not single and ((out / UNFINISHED).is_file() or not ((out / RUNS).is_file() or any(out.glob(f"*/{RECORD}")))):
        return []
    from fastcifar.experiments.folders import outcomes_in, record_in

    return [record_in(out)] if single else list(outcomes_in(out).values())


def _show_again(outcomes: list[Outcome], out: Path, options: ResumeOptions) -> int:
    """Print the results of finished runs, remove what a process that was killed left beside them, and return the exit
    status."""
    single = (out / RECORD).is_file()
    for folder in [out] if single else out.glob("seed-*"):
        left = [*folder.glob(f"{PARTIAL}*"), *folder.glob(CHECKPOINTS), *folder.glob(UNFINISHED)]
        if left and (folder / RECORD).is_file():
            with contextlib.suppress(UserError), _ours(folder):  # else it is being cleared
                for path in left:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    record = next((outcome for outcome in outcomes if not isinstance(outcome, Failed)), None)
    if record is None:
        raise failed[0].error(failed[0].reason)
    data = record.dataset
    remarks = [f"fold {data.fold}"] if data.fold else [f"holdout {data.holdout}"] if data.holdout else []
    remarks += [f"resize {data.resized}"] if data.resized else []
    remarks += [f"train-size {record.dataset.train_size}"] if record.subset else []
    for name in ("seed", "classes"):
        if value := (record.subset or {}).get(name):
            remarks.append(f"{'subset-seed' if name == 'seed' else name} {value}")
    remarks += [describe_start(record.init)] if record.init["mode"] != "cold" else []
    remarks += ["synthetic"] if record.dataset.name == "synthetic" else []
    show = Screen(silent=options.quiet or options.json, bar=False)
    screen.conclude(outcomes, out, remarks, not single, options.json, show)
    return 3 if any(isinstance(outcome, Diverged) for outcome in failed) else 5 if failed else 0
