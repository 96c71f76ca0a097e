"""Every way to go on from an earlier training's weights, side by side: does it catch up with the cold start?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fastcifar.errors import UserError
from fastcifar.experiments.experiment import Job, experiment
from fastcifar.experiments.methods import Method, Round, chosen, cold_of, key_of
from fastcifar.experiments.methods_result import PLASTICITY, MethodsResult
from fastcifar.experiments.result import Outcome
from fastcifar.experiments.warm_starts import COLD, WARM, WarmStarts
from fastcifar.recipes import Recipe, change, label
from fastcifar.recipes.declare import setting
from fastcifar.recipes.text import read_changes

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.models import Network

Protocol = Literal["half", "online"]
Condition = Literal["plain", "regularized"]


@experiment("methods", group="warm-start")
@dataclass(frozen=True)
class Methods(WarmStarts["MethodsResult"]):
    """Train from the weights of the round before by every method since Ash and Adams 2020, beside the cold start.

    half: half of the images, then all of them. online: more images round by round, each to --until-train-accuracy.
    plain: the recipe; regularized: with standard augmentation and more regularization, where there may be no harm to
    repair. Runs of a seed share the order of their images; differences are seed by seed. Methods that change the
    training have a cold start of their own.
    """

    only: tuple[str, ...] = ()
    """Methods by name, besides the cold and the warm start; none: all."""
    protocols: tuple[Protocol, ...] = ("half", "online")
    """How images come: half, online or both."""
    conditions: tuple[Condition, ...] = ("plain", "regularized")
    """How it is trained: plain, regularized or both."""
    method_settings: tuple[str, ...] = ()
    """Other settings of methods, as METHOD:FIELD=VALUE: a field of its start, or of the recipe."""
    regularized: tuple[str, ...] = ("augment.crop=4", "augment.flip=random", "optimizer.weight_decay=5e-4")
    """What regularized changes in the recipe, as FIELD=VALUE."""
    fraction: float = setting(0.5, above=0, below=1)
    """Share of the images in the first round of half."""
    round_size: int = setting(1000, at_least=1, unit="images")
    """Images that each round of online adds."""
    looked_into: int = setting(1, at_least=0)
    """Runs of each arm, the first ones, whose dormant units, norms, rank and curvature are measured before the first
    step of every round."""
    until_train_accuracy: float | None = setting(0.99, above=0, at_most=1)
    """End a round of online after the first epoch with this running training accuracy, a fraction."""

    extending = (
        "seed",
        "runs",
        "only",
        "protocols",
        "conditions",
        "regularized",
        "looked_into",
    )  # runs of another recipe are refused
    quick: ClassVar[Mapping[str, Any]] = {
        **{"train_size": 2000, "protocols": ("half",), "conditions": ("plain",)},
        "looked_into": 0,  # the curvature takes longer than the training
    }

    def _check(self) -> None:
        super()._check()
        for name in ("only", "protocols", "conditions"):
            values = getattr(self, name)
            self._require(name, len({*values}) == len(values), "each of them once")
            self._require(name, values or name == "only", "one or more")
        _ = self.methods, self.recipes  # which refuse what they do not know

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The methods by name, the warm start first."""
        only = self.only and tuple(dict.fromkeys((WARM, *self.only)))
        return chosen(only, self.method_settings)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """The recipe by condition."""
        changed = change(self.recipe, read_changes(self.regularized), "regularized")
        return {
            name: each for name, each in (("plain", self.recipe), ("regularized", changed)) if name in self.conditions
        }

    @property
    def training_methods(self) -> dict[str, Method]:
        """Those that change the training, not the start alone."""
        return {name: each for name, each in self.methods.items() if each.changes}

    @property
    def _factors(self) -> dict[str, float]:
        return {"shrink": self.shrink, "perturb": self.perturb}

    def trained_recipes(self) -> dict[str, Recipe]:
        return self.recipes

    @property
    def subject(self) -> str:
        return f"{label(self.recipe)}, {len(self.methods)} methods"

    def sizes(self, protocol: str, images: int) -> list[int]:
        """Return the training images in each round, of `images` in all."""
        if protocol == "half":
            return [round(images * self.fraction), images]
        return list(range(self.round_size, images + 1, self.round_size))

    def jobs(self, dataset: Dataset) -> list[Job]:
        images, batch_size = len(dataset.train), self.recipe.batch_size
        for protocol in self.protocols:
            sizes = self.sizes(protocol, images)
            if len(sizes) < 2 or sizes[0] < batch_size:
                said = f"{protocol} has rounds of {', '.join(map(str, sizes)) or 'no'} images"
                raise UserError(f"{said}; allowed: two rounds or more, of batch_size, {batch_size}, or more images")
        network, layers = _network(self.recipe, dataset)
        rounds = {
            (condition, protocol): [
                (size, self._fitting(plain, self._round(protocol, size // plain.batch_size), network, layers))
                for size in self.sizes(protocol, images)
            ]
            for condition, plain in self.recipes.items()
            for protocol in self.protocols
        }  # once for all seeds
        return [
            job for seed in self.seeds for part, each in rounds.items() for job in self._jobs(*part, seed, each, layers)
        ]

    def _until(self, protocol: str) -> float | None:
        """Return the training accuracy that ends a round."""
        return self.until_train_accuracy if protocol == "online" else None

    def _round(self, protocol: str, steps: int) -> Round:
        return Round(steps, is_open=self._until(protocol) is not None)

    def _fitting(self, plain: Recipe, round: Round, network: Network, layers: Sequence[str]) -> dict[str, Recipe]:
        """Return the recipes of the methods that go with a network, by name. Raises UserError for one that does not,
        and that `only` or `method_settings` asks for."""
        recipes, asked = {}, {*self.only, *(word.partition(":")[0] for word in self.method_settings)}
        for name, method in self.methods.items():
            try:
                method.refuse(name, network, layers, self._factors)
                recipes[name] = method.recipe(plain, round)
            except UserError:
                if name in asked:
                    raise
        return recipes

    def _jobs(
        self,
        condition: str,
        protocol: str,
        seed: int,
        rounds: Sequence[tuple[int, Mapping[str, Recipe]]],
        layers: Sequence[str],
    ) -> Iterator[Job]:
        """Give the trainings of one seed: of each round first the cold starts, with fresh weights. `rounds`: of each
        its images, and the recipes of the methods."""
        plain, sizes = self.recipes[condition], [size for size, _ in rounds]
        for number, (size, recipes) in enumerate(rounds):
            colds = {COLD: plain, **{cold_of(name): recipes[name] for name in self.training_methods if name in recipes}}
            fields: dict[str, Any] = {
                "train_size": size,
                "round": number,
                "until_train_accuracy": self._until(protocol),
            }
            if seed - self.seed < self.looked_into:
                fields |= {"diagnose": (PLASTICITY,), "moments": 0}
            for arm, recipe in colds.items():
                if arm == COLD or number in (0, len(sizes) - 1):  # between them it answers nothing
                    yield self.job(key_of(condition, protocol, size, arm), seed, recipe=recipe, **fields)
            for name, recipe in recipes.items() if number else ():
                before = name if number > 1 else cold_of(name) if cold_of(name) in colds else COLD
                after = f"{key_of(condition, protocol, sizes[number - 1], before)}/seed-{seed}"
                start = self.methods[name].begin(layers, self._factors, seed)
                arm = key_of(condition, protocol, size, name)
                yield self.job(arm, seed, recipe=recipe, after=after, start=start, **fields)

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> MethodsResult:
        return MethodsResult(self, settings, outcomes)


def _network(recipe: Recipe, dataset: Dataset) -> tuple[Network, list[str]]:
    """Return the network of `recipe`, which is not trained, and the names of its layers that train, in their order."""
    from fastcifar.host import building
    from fastcifar.models import build_model
    from fastcifar.models.freezing import layers_of
    from fastcifar.registry import resolve

    with building(0, resolve(recipe.network.builder)):
        network = build_model(recipe, len(dataset.classes), dataset.mean, dataset.std, sides=(dataset.train.side,))
    own = {name: each.parameters(recurse=False) for name, each in layers_of(network.module).items()}
    return network, [name for name, weights in own.items() if any(weight.requires_grad for weight in weights)]
