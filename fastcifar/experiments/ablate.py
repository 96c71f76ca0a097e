"""What is each trick of a recipe worth? The recipe with all of them against the recipe without one, for each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastcifar.data import Dataset
from fastcifar.errors import NonFiniteLoss
from fastcifar.experiments.arms import check_runs, held_out, train_arms
from fastcifar.experiments.outcome import Diverged, Outcome, known
from fastcifar.experiments.runs import OnProgress
from fastcifar.experiments.settings import describe_data, kept_in
from fastcifar.experiments.store import Store
from fastcifar.recipes import Recipe, change
from fastcifar.recipes.tricks import TTA, choose_tricks
from fastcifar.report import Summary, Table, counted, percent, points, summarize
from fastcifar.training import RunRecord

FULL = "full"
"""The arm with all tricks."""


@dataclass(frozen=True)
class Worth:
    """A recipe without one trick less the recipe with all, seed by seed, and the 95% intervals of the means."""

    trick: str
    off: dict[str, Any]
    """The fields that switch it off, and their values then."""
    accuracy: Summary | None
    """A fraction, with test-time augmentation; None where every run without the trick diverged."""
    loss: Summary | None
    """Log-loss in nats; None also for test-time augmentation itself, whose absence is not evaluated apart."""
    time_ratio: float | None
    """Training time without the trick over that with all."""
    diverged: int
    """Runs without the trick whose loss became NaN or infinite; they are in no other number."""


@dataclass(frozen=True)
class Ablation:
    """What `ablate` found."""

    settings: dict[str, Any]
    """What the runs were made with."""
    off: dict[str, dict[str, Any]]
    """Each trick and the fields that switch it off."""
    outcomes: dict[str, list[Outcome]]
    """`outcomes[arm]`: of the full recipe and of each arm without a trick what is kept of the run of every seed."""

    @property
    def full(self) -> list[RunRecord]:
        """The runs of the full recipe."""
        return [outcome for outcome in self.outcomes[FULL] if isinstance(outcome, RunRecord)]

    @property
    def n(self) -> int:
        """Runs of each arm."""
        return len(self.outcomes[FULL])

    def worth(self, trick: str) -> Worth:
        """What changes without `trick`."""
        off = self.off[trick]
        if trick == TTA:
            accuracy = summarize([known(run.accuracy) - known(run.tta_accuracy) for run in self.full])
            return Worth(trick, off, accuracy, None, None, 0)
        outcomes = zip(self.full, self.outcomes[trick], strict=True)
        pairs = [(full, without) for full, without in outcomes if isinstance(without, RunRecord)]
        diverged = self.n - len(pairs)
        if not pairs:
            return Worth(trick, off, None, None, None, diverged)
        accuracy = summarize([known(without.tta_accuracy) - known(full.tta_accuracy) for full, without in pairs])
        loss = summarize([known(without.tta_loss) - known(full.tta_loss) for full, without in pairs])
        time = sum(without.train_seconds for _, without in pairs) / sum(full.train_seconds for full, _ in pairs)
        return Worth(trick, off, accuracy, loss, time, diverged)

    def rows(self) -> list[dict[str, Any]]:
        """A row of data for the full recipe and for each trick, ready for JSON."""
        full = {
            "arm": FULL,
            "n": self.n,
            "accuracy": dataclasses.asdict(summarize([known(run.tta_accuracy) for run in self.full])),
            "loss": dataclasses.asdict(summarize([known(run.tta_loss) for run in self.full])),
            "train_seconds": dataclasses.asdict(summarize([run.train_seconds for run in self.full])),
        }
        return [full, *({"arm": f"no-{trick}", **dataclasses.asdict(self.worth(trick))} for trick in self.off)]

    def table(self) -> Table:
        """The tricks, that without which the most accuracy is lost first."""
        worths = [self.worth(trick) for trick in self.off]
        worths.sort(key=lambda worth: worth.accuracy.mean if worth.accuracy else float("-inf"))
        rows = [(FULL, percent(summarize([known(run.tta_accuracy) for run in self.full])), "", "1.000")]
        for worth in worths:
            accuracy = "diverged" if worth.accuracy is None else points(worth.accuracy)
            if worth.accuracy and worth.diverged:
                accuracy += f" (n={worth.accuracy.n}, {worth.diverged} diverged)"
            loss = "-" if worth.loss is None else _loss(worth.loss)
            time = "-" if worth.time_ratio is None else f"{worth.time_ratio:.3f}"
            rows.append((f"no {worth.trick}", accuracy, loss, time))
        how = counted(self.n, "± 95% interval of each by itself")
        title = f"Without one trick, less the full recipe, seed by seed ({how})"
        return Table(title, ("arm", "accuracy, points", "log-loss", "time ratio"), tuple(rows))


def ablate(
    recipe: Recipe,
    dataset: Dataset,
    runs: int = 3,
    folder: str | Path | None = None,
    *,
    only: Sequence[str] = (),
    holdout: int = 5000,
    seed: int = 0,
    device: str | torch.device = "auto",
    on_progress: OnProgress | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Ablation:
    """Train `recipe` and the same without each of its `tricks` (or of those in `only`), one at a time, in turn and from
    the same seeds, `runs` times each.

    Evaluated are `holdout` training images, which are not trained on (0: the test split; a dataset with images held out
    already is taken as it is). The rates are not tuned anew without a trick. The worth of test-time augmentation is
    taken from the full recipe's runs. A run that diverges is counted as such. Finished runs are kept in `folder`, and
    not trained again when it is called with it again, for more `runs` or other tricks. Beside them results.jsonl (a
    line for each arm) and table.md say what the last call asked for.
    Raises UserError for bad input, and NonFiniteLoss where the full recipe diverges.
    """
    check_runs(runs, seed)
    off = choose_tricks(recipe, only)
    dataset = held_out(dataset, holdout)
    arms = {FULL: recipe} | {name: change(recipe, values) for name, values in off.items() if name != TTA}
    settings = {
        "experiment": "ablate",
        "recipe": dataclasses.asdict(recipe),
        **describe_data(dataset, device),
        "seed": seed,
    }
    plan = [(arm, seed + number) for number in range(runs) for arm in arms]
    ablation = Ablation(settings, off, {arm: [] for arm in arms})
    with kept_in(folder) as place:
        store = Store(place, settings)
        for arm, run_seed, outcome in train_arms(arms, dataset, plan, store, device, on_progress, on_step):
            if arm == FULL and isinstance(outcome, Diverged):
                raise NonFiniteLoss(f"the full recipe with seed {run_seed}: {outcome.reason}")
            ablation.outcomes[arm].append(outcome)
            if len({len(outcomes) for outcomes in ablation.outcomes.values()}) == 1:  # every arm has this seed
                store.write("results.jsonl", "".join(json.dumps(row) + "\n" for row in ablation.rows()))
                store.write("table.md", ablation.table().markdown())
    return ablation


def _loss(summary: Summary) -> str:
    half = "" if summary.interval is None else f" ± {summary.interval[1] - summary.mean:.4f}"
    return f"{summary.mean:+.4f}{half}"
