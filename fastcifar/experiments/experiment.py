"""`Experiment`: options, the trainings they ask for and what those say, in one class; `Job`: one of its trainings.

An experiment is one file: a frozen dataclass of options with `jobs`, decorated with `experiment`. Its fields are the
flags of its command and the arguments of the library, and its runs are kept, resumed and shown by `run` alone. This
module and those of the experiments import torch only when something is trained, so that a command's help needs none.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from fastcifar.errors import UserError
from fastcifar.experiments.result import Failed, Outcome, Result, failure_word
from fastcifar.launch import Rank
from fastcifar.output import temporary_folder, user_path
from fastcifar.recipes import Recipe, label, quick
from fastcifar.recipes.declare import Checked, Declaration, check_fields, checked, setting, type_hints
from fastcifar.registry import Registry
from fastcifar.start import ColdStart, Start

if TYPE_CHECKING:
    import torch

    from fastcifar.data import Dataset
    from fastcifar.experiments.runner import OnProgress
    from fastcifar.training import Listener

SEEDS = 10**9
"""The seeds of an experiment are below this, and those of its rounds lie this far apart: shrink-perturb draws its noise
from the run's seed, and it must not be the fresh weights that the round before began with."""

Found = TypeVar("Found", bound=Result)


_COLD = ColdStart()


@dataclass(frozen=True)
class Job:
    """One training of an experiment. It is data alone, so that several processes can share a list of jobs."""

    arm: str
    """The alternative that it trains, as in "full" or "1000/warm". Jobs of one arm differ by their seeds."""
    seed: int
    recipe: Recipe
    train_size: int | None = None
    """Training images, taken by `subset_seed`; None: all."""
    subset_seed: int = 0
    round: int = 0
    """Each round of a seed has its own random choices."""
    after: str | None = None
    """The key of the job that it is trained after, unless that failed."""
    start: Start | Callable[[Path], Start] = _COLD
    """The start of the training; with `after` it may be a function of the file of that job's weights."""
    until_train_accuracy: float | None = None
    """See `Trainer.run`."""
    eval_every: int = 0
    """Epochs between evaluations; 0: only at the end."""
    keep: Literal["last", "best"] = "last"
    """See `Trainer.run`."""
    evaluate_at_start: bool = False
    evaluate_train: bool = False
    """Evaluate the training images too, at the end and without augmentation."""
    keep_weights: bool = False
    """Keep the weights; else they are removed once no other job needs them."""
    keep_predictions: bool = False
    """Keep the logits of the test images, as predictions.npz of a run."""
    diagnose: tuple[str, ...] = ()
    """The diagnoses to keep beside its outcome, by the words of --diagnose."""
    moments: int = 32
    """The most moments of a diagnosis, besides that before the first step."""
    own_seed: int | None = None
    """The seed of its random choices where that is not `seed`, by which its outcome is kept."""

    @property
    def key(self) -> str:
        """The name that its outcome is kept under."""
        return f"{self.arm}/seed-{self.seed}"

    @property
    def run_seed(self) -> int:
        """The seed of its random choices."""
        return (self.seed if self.own_seed is None else self.own_seed) + self.round * SEEDS


@dataclass(frozen=True)
class Experiment(Checked, Generic[Found]):
    """The base of experiments: options as fields (see `setting`), and `jobs`."""

    seed: int = setting(0, at_least=0)
    """The first seed."""
    runs: int = setting(1, at_least=1, at_most=100_000)
    """Runs of each arm, with seeds S, S+1, ...; with more of them the same command goes on."""

    name: ClassVar[str] = ""
    group: ClassVar[str] = ""
    """The word before the name on the command line."""
    holdout: ClassVar[int | Literal["third"]] = 0
    """Training images to evaluate on in place of the test set, unless the caller says otherwise; "third": one third."""
    extending: ClassVar[tuple[str, ...]] = ("runs",)
    """Fields that say which runs there are, not how they are trained: their values may change from call to call."""
    repeatable: ClassVar[tuple[str, ...]] = ()
    """Fields of words whose flags may be given several times."""
    needed_arms: ClassVar[tuple[str, ...]] = ()
    """Arms without which there is no result: a run of theirs that diverges ends the experiment."""
    quick: ClassVar[Mapping[str, Any]] = {}
    """Other defaults of the command's flags with --quick."""
    is_kept: ClassVar[bool] = True
    """The command keeps the runs in a folder of its own where none is named."""
    ends_early: ClassVar[bool] = False
    """It may end before all jobs are done."""
    of_runs: ClassVar[str] = ""
    """The module whose `main`, with its `Options`, is the command where free words name saved runs; none: it takes no
    such words."""

    def _check(self) -> None:
        self._require("seed", self.seed <= SEEDS - self.runs, "0 up to 10**9 - 1, the last of the runs included")

    @classmethod
    def recipe_fields(cls) -> list[str]:
        """Return the names of the fields that hold a recipe."""
        return [each.name for each in dataclasses.fields(cls) if type_hints(cls)[each.name] is Recipe]

    def trained_recipes(self) -> dict[str, Recipe]:
        """Return the recipes that it trains, or makes those from, by name: by default its fields."""
        return {name: getattr(self, name) for name in self.recipe_fields()}

    @property
    def subject(self) -> str:
        """What is trained, in a few words."""
        return " and ".join(map(label, self.trained_recipes().values()))

    @property
    def seeds(self) -> range:
        """The seed of each run of an arm."""
        return range(self.seed, self.seed + self.runs)

    def jobs(self, dataset: Dataset) -> Sequence[Job]:
        """Return the trainings in the order in which to do them. Raises UserError where they do not fit the images."""
        raise NotImplementedError

    def next_jobs(self, dataset: Dataset, result: Found) -> Sequence[Job]:
        """Return further trainings that follow from those so far, now that all of them are in `result`; none: it is
        done. They follow from the outcomes alone, so that every process finds the same ones."""
        return ()

    @property
    def most_jobs(self) -> int:
        """The trainings that there may be with those of `next_jobs`; 0: there are no further ones."""
        return 0

    def refuse_processes(self, count: int) -> None:
        """Raise UserError where so many processes have no use."""

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> Found:
        """Return what `outcomes[arm]`, in the order of the jobs, say; they are few at first, and grow."""
        return Result(self, settings, outcomes)  # pyright: ignore[reportReturnType]  (a subclass that says more)

    def settings(self) -> dict[str, Any]:
        """Return what decides how the runs are trained, ready for JSON."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in self.extending}
        return {"experiment": self.name, **values}

    @classmethod
    def quick_default(cls) -> Recipe | None:
        """Return the recipe of --quick where none is named; None: the usual one, made short."""
        return None

    @classmethod
    def shorten(cls, recipe: Recipe) -> Recipe:
        """Return what --quick makes of a recipe."""
        return quick(recipe)[0]

    def run(
        self,
        dataset: Dataset,
        folder: str | Path | None = None,
        *,
        holdout: int | Literal["third"] | None = None,
        device: str | torch.device = "auto",
        on_progress: OnProgress | None = None,
        listeners: Sequence[Listener] = (),
        parallel: int | Literal["auto"] = 1,
        track: Sequence[str] = (),
    ) -> Found:
        """Train the jobs that `folder` does not hold yet, and return what all of them say.

        dataset: the images. Where none of them are held out yet, `holdout` training images are (None: as many as the
            experiment says, "third": one third of them, 0: none), and evaluated in place of the test split. Where no
            test image has a label, the validation split is evaluated.
        folder: keeps each run as it is finished; the same call again, or one with more runs, goes on from there, and
            several processes that are given the same folder share the jobs. The result's files are written beside the
            runs whenever every arm has as many. None: nothing is kept.
        on_progress: hears of every finished run, and of the time left.
        listeners: hear of every run; of none with `parallel`.
        parallel: runs to train at once on the device, each in a process of its own: they share the images, and torch's
            threads are split among them. A program that asks for it must be importable: what it does at its top level
            stands below `if __name__ == "__main__"`. "auto": see `at_once`.
        track: trackers of the runs, "tensorboard", "wandb" or "csv", which write below `folder`/track.

        The ranks of a torchrun, each of which calls this with the same `folder`, share the jobs too; the first alone
        writes the result's files.

        Raises UserError for bad input, and where `folder` was begun with other settings; NonFiniteLoss or OutOfMemory
        where a run fails without which there is no result; ProcessesDied. Any other run that fails is counted as
        such.
        """
        from fastcifar.experiments.parallel import at_once, runner_for
        from fastcifar.experiments.store import Store, describe_data
        from fastcifar.training.listeners import checked_listeners

        how = {"listeners": checked_listeners(listeners), "on_progress": on_progress}
        dataset = hold_out(dataset, self.holdout if holdout is None else holdout).labeled_test()
        jobs = self.jobs(dataset)
        settings = {**self.settings(), **describe_data(dataset, device)}
        result = self.result(settings, {job.arm: [] for job in jobs})
        parallel = checked("parallel", parallel, int | Literal["auto"], Declaration(at_least=1))
        parallel = at_once(parallel, self.runs, device)
        self.refuse_processes(max(parallel, Rank.here().count))
        with _kept_in(folder) as place:
            store = Store(place, settings, track)
            left = max(self.most_jobs, len(jobs)) - sum(map(store.has, jobs))
            result.settings["parallel"] = store.at_once(min(parallel, left))
            runner = runner_for(parallel, jobs, dataset, store, device, **how)
            runner.at_most = self.most_jobs
            for done, (job, outcome) in enumerate(runner, start=1):
                if isinstance(outcome, Failed) and job.arm in self.needed_arms:
                    raise outcome.error(f"{job.arm} with seed {job.seed}: {outcome.reason}")
                result.add(job, outcome, store)
                if done == len(runner.jobs):
                    runner.add(self.next_jobs(dataset, result))
                if len({len(outcomes) for outcomes in result.outcomes.values()}) == 1 and result.n:
                    if Rank.here().is_first:
                        result.write(place)
                    if result.is_settled:
                        break
        if not result.n:
            arm, first = result.failed[0]
            word = failure_word([each for _, each in result.failed])
            raise first.error(f"a run of every {result.by} {word}; {arm}: {first.reason}")
        return result


ExperimentClass = TypeVar("ExperimentClass", bound=type[Experiment[Any]])

EXPERIMENTS: Registry[type[Experiment[Any]]] = Registry("experiment", "fastcifar.experiments.named")


def experiment(name: str, group: str = "") -> Callable[[ExperimentClass], ExperimentClass]:
    """Register the decorated class as the experiment `name`, whose command is `fastcifar [GROUP] NAME`.

        @fastcifar.experiment("lengths")
        @dataclass(frozen=True)
        class Lengths(fastcifar.Experiment):
            \"\"\"Train a recipe for one epoch, for two and for four.\"\"\"

            recipe: fastcifar.Recipe = fastcifar.Recipe()

            def jobs(self, dataset):
                ...

    Its docstring is the command's help, and its fields are flags; a field `recipe` is the flag --recipe and the flags
    of a recipe's fields; without one the class says in `trained_recipes` what it trains. Raises UserError for a name
    that is taken and for a class that is no frozen dataclass of `Experiment`.
    """

    def register(cls: ExperimentClass) -> ExperimentClass:
        if not (isinstance(cls, type) and issubclass(cls, Experiment) and "__dataclass_fields__" in vars(cls)):
            raise UserError(f"{name} is registered with {cls!r}; allowed: a dataclass(frozen=True) of an Experiment")
        if not cls.recipe_fields() and cls.trained_recipes is Experiment.trained_recipes:
            raise UserError(f"the experiment {name} has no recipe; allowed: a field of type Recipe, such as `recipe`")
        check_fields(name, cls, besides=cls.recipe_fields(), optional=True)
        cls.name, cls.group = name, group
        return EXPERIMENTS.add(name, cls)  # pyright: ignore[reportReturnType]

    return register


def hold_out(dataset: Dataset, count: int | Literal["third"]) -> Dataset:
    """Return `dataset` with `count` training images in the place of its test split; as it is, where `count` is 0 or
    images are held out already. Raises UserError where that leaves none, also of an experiment's own default."""
    if dataset.holdout or not count:
        return dataset
    images = len(dataset.train)
    if count != "third" and images <= count:
        allowed = f"1 to {images - 1:,} (--holdout N, holdout=N) or third"
        raise UserError(f"{count:,} training images are to be held out, and there are {images:,}; allowed: {allowed}")
    return dataset.hold_out(images - images * 2 // 3 if count == "third" else count)


@contextlib.contextmanager
def _kept_in(folder: str | Path | None) -> Iterator[Path]:
    """Give `folder`, or for None a temporary one that is removed at the end."""
    if folder is not None:
        yield user_path(folder, "the folder of runs")
        return
    with temporary_folder() as temporary:
        yield temporary
