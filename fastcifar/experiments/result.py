"""`Result`: what the runs of an experiment say together, as data, tables, figures and files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Union

from fastcifar.errors import NonFiniteLoss, OutOfMemory, UserError
from fastcifar.escape import in_markdown, shown
from fastcifar.output import RESULTS, short_name, user_path, write_whole
from fastcifar.recipes import label
from fastcifar.report import Figure, Summary, Table, counted, percent, seconds, summarize
from fastcifar.report.summary import times_of

if TYPE_CHECKING:
    from fastcifar.experiments.experiment import Experiment, Job
    from fastcifar.experiments.store import Store
    from fastcifar.training import RunRecord


@dataclass(frozen=True)
class Failed:
    """A run that ended without a record: it ran out of memory, say. Another try may succeed."""

    reason: str
    """The error's message."""
    word: ClassVar[str] = "failed"
    """What happened to it; in a file the key of the reason."""
    error: ClassVar[type[Exception]] = OutOfMemory
    """What ends a command whose runs all fail so."""

    def to_json(self) -> dict[str, str]:
        """Return what a file holds in place of a record."""
        return {self.word: self.reason}


@dataclass(frozen=True)
class Diverged(Failed):
    """A run whose loss became NaN or infinite, as it would again."""

    word: ClassVar[str] = "diverged"
    error: ClassVar[type[Exception]] = NonFiniteLoss


@dataclass(frozen=True)
class NotTrained(Diverged):
    """A run that was left out, as it would diverge like the one before it."""

    word: ClassVar[str] = "not trained"


Outcome = Union["RunRecord", Failed]
"""A run as it is kept."""


def is_tried_again(outcome: Outcome | None) -> bool:
    """Return whether a run failed in a way that another try may not: no such outcome is kept."""
    return isinstance(outcome, Failed) and not isinstance(outcome, Diverged)


def failed_from(values: Mapping[str, Any]) -> Failed | None:
    """Return what `to_json` of a run that failed is read back as; None for a record."""
    kind = next((kind for kind in (NotTrained, Diverged, Failed) if kind.word in values), None)
    return kind and kind(str(values[kind.word]))


def failure_word(failed: Sequence[Failed]) -> str:
    """Return "diverged" where all of these did, else "failed"."""
    return Diverged.word if all(isinstance(each, Diverged) for each in failed) else Failed.word


@dataclass(frozen=True)
class Result:
    """The result of an experiment. This one compares arms by the accuracy and log-loss with the recipe's test-time
    augmentation; experiments with another answer have subclasses."""

    experiment: Experiment[Any]
    settings: dict[str, Any]
    """The options and data that the runs were made with, ready for JSON."""
    outcomes: dict[str, list[Outcome]]
    """`outcomes[arm]`, in the order of the seeds."""
    by: ClassVar[str] = "seed"
    """Where `n` is 0, a run of every one of these failed: the word for the error."""
    _left_out: ClassVar[str] = "whose seeds are in no number beside them"
    """What becomes of runs that failed."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.__repr__ = cls.__repr__  # its own: `dataclass` would write one of all outcomes

    def __repr__(self) -> str:
        runs, failed = sum(map(len, self.outcomes.values())), len(self.failed)
        said = f"{runs} runs of {len(self.outcomes)} arms{f', {failed} failed' * (failed > 0)}"
        return f"{type(self).__name__}({shown(self.title)}, {said})"

    @property
    def seeds(self) -> list[int]:
        """The seeds in which every arm has a record."""
        return [self.experiment.seeds[place] for place in self._whole]

    @property
    def records(self) -> dict[str, list[RunRecord]]:
        """`records[arm]`, in the order of `seeds`."""
        return {arm: [outcomes[place] for place in self._whole] for arm, outcomes in self.outcomes.items()}  # pyright: ignore[reportReturnType]

    @property
    def n(self) -> int:
        """The number of `seeds`."""
        return len(self._whole)

    @property
    def failed(self) -> list[tuple[str, Failed]]:
        """The runs that failed, by their arm, without those that were not trained."""
        failed = ((arm, each) for arm, found in self.outcomes.items() for each in found if isinstance(each, Failed))
        return [(arm, each) for arm, each in failed if not isinstance(each, NotTrained)]

    @property
    def diverged(self) -> list[tuple[str, Diverged]]:
        """Those of them that diverged."""
        return [(arm, each) for arm, each in self.failed if isinstance(each, Diverged)]

    @property
    def tested(self) -> str:
        """What the images are that the runs were tested on: "test", "held-out" or "validation"."""
        found = (each for outcomes in self.outcomes.values() for each in outcomes if not isinstance(each, Failed))
        first = next(found, None)
        return first.dataset.tested if first else "test"

    def add(self, job: Job, outcome: Outcome, store: Store) -> None:
        """Take in the next outcome of an arm; `store` keeps what belongs to it."""
        self.outcomes.setdefault(job.arm, []).append(outcome)

    @property
    def counts(self) -> dict[str, int]:
        """How many runs failed, and how many of them diverged."""
        return {"failed": len(self.failed), "diverged": len(self.diverged)}

    @property
    def _whole(self) -> list[int]:
        seeds = enumerate(zip(*self.outcomes.values(), strict=False))
        return [place for place, outcomes in seeds if not any(isinstance(each, Failed) for each in outcomes)]

    @property
    def title(self) -> str:
        """What was trained on which data: the heading of tables and, with n, of figures."""
        recipes = (label(getattr(self.experiment, name)) for name in self.experiment.recipe_fields())
        side = self.settings.get("resized")
        images = short_name(self.settings["dataset"]) + (f", images brought to {side} pixels" if side else "")
        return f"{self.experiment.name}: {', '.join(recipes)}, {images}"

    @property
    def is_settled(self) -> bool:
        """True when the answer is clear, and no further job is to be trained."""
        return False

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as data, ready for JSON."""
        arms = {
            arm: {
                "accuracy": summary([known(record.tta_accuracy) for record in records]),
                "loss": summary([known(record.tta_loss) for record in records]),
                "train_seconds": summary([record.train_seconds for record in records]),
                "epochs": [record.epochs for record in records],
            }
            for arm, records in self.records.items()
        }
        return {**self.settings, "seeds": self.seeds, "arms": arms, **self.counts}

    def tables(self) -> list[Table]:
        """Return the tables to show."""
        rows = []
        for arm, records in self.records.items():
            accuracy, loss = (summarize(list(map(known, values))) for values in _metrics(records))
            time = summarize([record.train_seconds for record in records])
            rows.append((arm, percent(accuracy), f"{loss.mean:.4f}", seconds(time)))
        return [Table(f"At the end ({counted(self.n)})", ("arm", "accuracy", "log-loss", "training"), tuple(rows))]

    def remarks(self) -> list[str]:
        """Return the answer in a line or two, and what else a reader of the tables must know."""
        return self._failures()

    def mixed(self) -> list[str]:
        """Return lines on what an arm's runs do not have in common, though the settings are the same: the compute type,
        which "auto" chooses on each machine, and what their times are of."""
        lines, every = [], []
        for arm, outcomes in self.outcomes.items():
            records = [each for each in outcomes if not isinstance(each, Failed)]
            if len(types := sorted({record.dtype for record in records})) > 1:
                lines.append(f"{arm} has runs in {' and '.join(types)}, told together here; --dtype names one type")
            every += records
        return [*lines, *times_of(every)]

    def figures(self) -> dict[str, Figure]:
        """Return the figures to draw, by the names of their files."""
        return {}

    def files(self) -> dict[str, str]:
        """Return the texts to keep beside the runs, by the names of their files."""
        tables = "\n".join(table.markdown() for table in self.tables())
        return {
            RESULTS: json.dumps(self.to_dict(), indent=2) + "\n",
            "table.md": f"# {in_markdown(self.title)}\n\n{tables}\n"
            + "".join(f"{in_markdown(line)}\n" for line in (*self.remarks(), *self.mixed())),
        }

    def write(self, folder: str | Path) -> list[Path]:
        """Write `files` to `folder`, in place of earlier ones. Raises UserError where that cannot be done."""
        folder = user_path(folder, "the folder of the result")
        for name, text in (files := self.files()).items():
            write_whole(folder / name, text)
        return [folder / name for name in files]

    def draw(self, folder: str | Path) -> list[Path]:
        """Save `figures` in `folder` as PNG, SVG and PDF. Raises UserError where matplotlib is missing."""
        folder = user_path(folder, "the folder of figures")
        files = []
        for name, figure in self.figures().items():
            title = figure.title or f"{self.title}, n={self.n}"
            files += dataclasses.replace(figure, title=title).save(folder / name)
        return files

    def _failures(self) -> list[str]:
        if not self.failed:
            return []
        arm, first = self.failed[0]
        runs = f"{len(self.failed)} run{'s' * (len(self.failed) > 1)} {failure_word([each for _, each in self.failed])}"
        return [f"{runs}, {self._left_out} ({arm}: {first.reason})"]


@dataclass(frozen=True)
class SeparateArms(Result):
    """A result in which a run that failed says something of its own arm alone: the others' runs of its seed count."""

    _left_out: ClassVar[str] = "which are in no number of their own arms"

    @property
    def n(self) -> int:
        """The seeds of which every arm has an outcome, be it that the run failed."""
        return min(map(len, self.outcomes.values()))

    @property
    def seeds(self) -> list[int]:
        return list(self.experiment.seeds)[: self.n]

    def ended(self, arm: str) -> list[RunRecord]:
        """Return the runs of `arm` that did not fail, of its first `n`."""
        found = self.outcomes.get(arm, [])[: self.n]
        return [each for each in found if not isinstance(each, Failed)]

    def failed_of(self, arm: str) -> list[Failed]:
        """Return those that did."""
        return [each for each in self.outcomes.get(arm, [])[: self.n] if isinstance(each, Failed)]

    def failed_words(self, arm: str) -> str:
        """Return " (2 diverged)", for a cell of a table; "" where none failed."""
        failed = self.failed_of(arm)
        return f" ({len(failed)} {failure_word(failed)})" if failed else ""


def known(value: float | None) -> float:
    """Return an accuracy or a loss that a run must have. Raises UserError for one that was not measured."""
    if value is None:
        raise UserError("a kept run has no accuracy or loss; allowed: runs on images with labels, in a new folder")
    return value


def paired(values: Sequence[float], others: Sequence[float]) -> Summary:
    """Return mean and interval of the differences of two results for each seed."""
    return summarize([value - other for value, other in zip(values, others, strict=True)])


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return n, mean, standard deviation and 95% interval of `values`, and these, ready for JSON."""
    return {**dataclasses.asdict(summarize(values)), "values": list(values)}


def _metrics(records: Sequence[RunRecord]) -> list[list[float | None]]:
    return [[record.tta_accuracy for record in records], [record.tta_loss for record in records]]
