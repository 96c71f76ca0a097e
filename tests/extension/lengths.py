"""How long is long enough? A recipe trained for several numbers of epochs."""

import dataclasses
from dataclasses import dataclass

import fastcifar
from fastcifar.report import Figure, Line, summarize


@fastcifar.experiment("lengths")
@dataclass(frozen=True)
class Lengths(fastcifar.Experiment):
    """Train a recipe for several numbers of epochs."""

    recipe: fastcifar.Recipe = dataclasses.field(default_factory=fastcifar.Recipe)
    epochs_each: tuple[float, ...] = fastcifar.setting((1.0, 2.0), above=0, unit="epochs")
    """How many epochs, an arm each."""

    holdout = 64

    def jobs(self, dataset):
        recipes = {epochs: fastcifar.change(self.recipe, {"epochs": epochs}) for epochs in self.epochs_each}
        return [
            fastcifar.Job(f"{epochs:g}-epochs", seed, recipe)
            for seed in self.seeds
            for epochs, recipe in recipes.items()
        ]

    def result(self, settings, outcomes):
        return Answer(self, settings, outcomes)


@dataclass(frozen=True)
class Answer(fastcifar.Result):
    """The arms side by side, and a figure."""

    def figures(self):
        lengths = self.experiment.epochs_each
        accuracies = [summarize([100 * run.tta_accuracy for run in runs]) for runs in self.records.values()]
        means, intervals = [each.mean for each in accuracies], [each.interval for each in accuracies]
        line = Line(lengths, means, 0, self.settings["recipe"]["name"], intervals=intervals)
        return {"lengths": Figure("epochs", "accuracy (%)", (line,))}
