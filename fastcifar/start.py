"""The start of a training: fresh weights, another run's, or a mixture of both. Standard library only.

The values check themselves; `fastcifar.training.initialize` carries them out, and says how it treats each kind of
tensor, and `fastcifar.training.methods` what some compute from weights and data. A new one is a dataclass here, in
`STARTS`, and a function there.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.input import sha256_of, weights_file
from fastcifar.recipes.declare import Checked, Declaration, checked, declaration, setting, type_hints
from fastcifar.recipes.layers import read_layers, read_pairs

_FACTORS = {"shrink": Declaration(at_least=0, at_most=1), "perturb": Declaration(at_least=0)}
LAYERS = "layers (--shrink-layers)"
"""What errors call the words of `ShrinkPerturb.layers`."""


class Start(Checked, ABC):
    """The weights that a training begins with: fresh ones (`ColdStart`), or given ones, as they are or changed."""

    mode: ClassVar[str]
    """Its name in run.json and on the command line."""
    seed: int | None

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return the entry `init` of run.json."""

    def weights_seed(self, seed: int) -> int:
        """Return the seed of the fresh weights in a run of `seed`."""
        return seed if self.seed is None else self.seed

    @property
    def keeps_frozen(self) -> bool:
        """True where frozen parameters, such as whitening filters, are the source's, not computed afresh."""
        return False


@dataclass(frozen=True)
class ColdStart(Start):
    """A fresh initialization, drawn from the run's seed or, apart from the run's order of images, from `seed`; with all
    matrices and convolution filters that train times `scale`. Raises UserError for a scale that is not above 0."""

    seed: int | None = None
    scale: float = setting(1.0, above=0)
    mode: ClassVar[str] = "cold"

    def describe(self) -> dict[str, object]:
        given = {"seed": self.seed} if self.seed is not None else {}
        return {"mode": self.mode, **given, **({"scale": self.scale} if self.scale != 1 else {})}


@dataclass(frozen=True)
class _Given(Start):
    source: str | Path
    reset: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    seed: int | None = dataclasses.field(default=None, kw_only=True)


class FromSource(_Given):
    """A start from given weights, of which some may start afresh.

    source: a saved run's folder or a file of weights: .safetensors, or .pt, .pth or .ckpt of torch.save (see
        `load_weights`), or torchvision:IMAGENET1K_V1 (see `published`). Of a run its evaluated weights, averages if it
        had any.
    reset_head: start the classifier afresh, whatever its shape there; None: where its shape there is another, which a
        `Notice` says.
    reset: what else starts afresh, whatever the method does to the rest: "last-2", the 2 last layers with parameters,
        norms among them and with their running statistics, in the order in which a recipe's `freeze` counts the first
        ones; "statistics", the running statistics of all batch norms; "head", as `reset_head`.
    seed: of the fresh weights; None: the run's.

    Raises UserError if there is no such file, and for other words.
    """

    settings: ClassVar[tuple[str, ...]] = ("shrink", "perturb")
    """The method's own numbers, which `describe` names."""
    example: ClassVar[str] = "shrink=0.4,perturb=0.1"
    """Values of them, as in a word for `read_start`."""
    reset_head: bool | None
    shrink: float
    perturb: float

    def _check(self) -> None:
        check_reset(self.reset)
        if "head" in self.reset:  # one form of what is the same
            object.__setattr__(self, "reset_head", True)
        last = max((int(word.removeprefix("last-")) for word in self.reset if word.startswith("last-")), default=0)
        words = [f"last-{last}"] * (last > 0) + ["statistics"] * ("statistics" in self.reset)
        object.__setattr__(self, "reset", tuple(words))
        weights_file(self.source)

    def describe(self) -> dict[str, object]:
        """Return the entry `init` of run.json, with the sha256 of the file of weights."""
        given: dict[str, object] = {"reset": list(self.reset)} if self.reset else {}
        return {
            "mode": self.mode,
            "source": str(self.source),
            "sha256": sha256_of(weights_file(self.source), "the weights in"),
            **self._settings(),
            "reset_head": self.reset_head,
            **(given if self.seed is None else {**given, "seed": self.seed}),
        }

    def _settings(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.settings}

    def by_layer(self) -> dict[str, tuple[float, float]]:
        """Return the factors `shrink` and `perturb` of layers that have others, by name."""
        return {}

    @property
    def keeps_frozen(self) -> bool:
        return any(shrink > 0 for shrink, _ in ((self.shrink, self.perturb), *self.by_layer().values()))


@dataclass(frozen=True)
class WarmStart(FromSource):
    """The weights of `source` as they are. The arguments are those of `FromSource`."""

    reset_head: bool | None = False
    mode: ClassVar[str] = "warm"
    shrink: ClassVar[float] = 1.0
    perturb: ClassVar[float] = 0.0


@dataclass(frozen=True)
class ShrinkPerturb(FromSource):
    """`shrink` times the weights of `source` plus `perturb` times a fresh initialization (Ash and Adams 2020).

    Shrink 1 and perturb 0 is `WarmStart`, shrink 0 and perturb 1 is `ColdStart`. `layers` gives layers factors of their
    own, a word each: layer4:shrink=0.2,perturb=0.5 is for the parameters and running statistics named layer4. and
    more; either may be left out. Of several words for one the longest name counts, alone. The other arguments are those
    of `FromSource`. Raises UserError for factors out of range and words of another form, and if there is no such file.
    """

    shrink: float = setting(0.4, at_least=0, at_most=1)
    perturb: float = setting(0.1, at_least=0)
    reset_head: bool | None = False
    layers: tuple[str, ...] = ()
    mode: ClassVar[str] = "shrink-perturb"

    def _check(self) -> None:
        check_factors(self.shrink, self.perturb)
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))
        for name, factors in self.by_layer().items():
            check_factors(*factors, f" of {brief(name)}")
        super()._check()

    def _settings(self) -> dict[str, object]:
        return {**super()._settings(), **({"layers": list(self.layers)} if self.layers else {})}

    def by_layer(self) -> dict[str, tuple[float, float]]:
        found = read_layers(LAYERS, self.layers, _FACTORS, ("S", "P"))
        return {name: (own.get("shrink", self.shrink), own.get("perturb", self.perturb)) for name, own in found.items()}


@dataclass(frozen=True)
class Fire(FromSource):
    """The weights of `source`, of which every trained matrix and every tap of a trained convolution becomes orthogonal
    (FIRE, Han et al. 2026): see `fastcifar.plasticity.fire`.

    steps: of Newton-Schulz iteration; 0: until each is orthogonal to 1e-3 in float64; 10: as the authors'.

    The other arguments are those of `FromSource`.
    """

    steps: int = setting(0, at_least=0, at_most=1000)
    reset_head: bool | None = False
    mode: ClassVar[str] = "fire"
    settings: ClassVar[tuple[str, ...]] = ("steps",)
    example: ClassVar[str] = "steps=10"
    shrink: ClassVar[float] = 1.0
    perturb: ClassVar[float] = 0.0


@dataclass(frozen=True)
class Dash(FromSource):
    """The weights of `source`, each kernel shrunk by how far it points along the negative gradient of the loss on the
    training images (DASH, Shin et al. 2024): see `fastcifar.plasticity.dash`.

    floor: the least factor.
    alpha: the share of each new batch in the moving average of gradients; with 0.3 the last 10 batches are 97% of it.
    batch: images whose mean loss gives a gradient; 0: the recipe's batch_size. The authors' are as many as arrive at a
        time, 1,000 of CIFAR-10.

    The other arguments are those of `FromSource`.
    """

    floor: float = setting(0.3, at_least=0, at_most=1)
    alpha: float = setting(0.3, above=0, at_most=1)
    batch: int = setting(0, at_least=0, unit="images")
    reset_head: bool | None = False
    mode: ClassVar[str] = "dash"
    settings: ClassVar[tuple[str, ...]] = ("floor", "alpha", "batch")
    example: ClassVar[str] = "floor=0.3,alpha=0.3,batch=1024"
    shrink: ClassVar[float] = 1.0
    perturb: ClassVar[float] = 0.0

    def _check(self) -> None:
        self._require("batch", self.batch != 1, "0, or 2 or more images")
        super()._check()


STARTS: dict[str, type[FromSource]] = {each.mode: each for each in (WarmStart, ShrinkPerturb, Fire, Dash)}
"""The starts from given weights by their words."""
_UNWRITTEN = {"reset": tuple[str, ...], "seed": int, "layers": tuple[str, ...]}
"""Entries of `describe` that are there where they are not the default alone."""


def check_reset(words: Iterable[str], name: str = "reset") -> None:
    """Raise UserError for a word that names nothing that `FromSource` resets; `name` is what the error calls them."""
    for word in words:
        if not re.fullmatch("head|statistics|last-[1-9][0-9]{0,5}", word):
            raise UserError(f"{name} has {brief(word)}; allowed: head, statistics, and last-1, last-2, ...")


def check_factors(shrink: float, perturb: float, where: str = "") -> None:
    """Raise UserError where these factors of `ShrinkPerturb` leave no weights."""
    if shrink == perturb == 0:
        raise UserError(f"shrink and perturb{where} are both 0, which leaves no weights; allowed: one of them above 0")


def read_start(word: str) -> tuple[type[FromSource], dict[str, Any]]:
    """Return the class of a start from given weights and its settings, of a word such as fire, fire:steps=10 or
    shrink-perturb:shrink=0.4,perturb=0.1. Raises UserError for another word, and for values out of range."""
    name, colon, text = word.partition(":")
    cls = STARTS.get(name)
    if cls is None:
        raise UserError(f"the start is {brief(word)}{did_you_mean(name, STARTS)}; allowed: {', '.join(STARTS)}")
    hints, fields = type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    own = [key for key in cls.settings if key in fields]
    given = read_pairs(text) if colon else {}
    if given is None or not given.keys() <= set(own):
        raise UserError(f"the start is {brief(word)}; allowed: {f'{name} or {name}:{cls.example}' if own else name}")
    return cls, {
        key: checked(f"{key} in {brief(word)}", _number(value, hints[key]), hints[key], declaration(fields[key]))
        for key, value in given.items()
    }


def check_entry(init: Mapping[str, Any]) -> None:
    """Raise UserError unless `init` is what the `describe` of a start from given weights may have returned."""
    cls = STARTS.get(init["mode"])
    if cls is None:
        raise UserError(f"init.mode is {brief(init['mode'])}; allowed: {', '.join(STARTS)}")
    fields = {field.name: type_hints(cls)[field.name] for field in dataclasses.fields(cls)}
    always = {"source": str, "sha256": str, **{name: fields.get(name, float) for name in cls.settings}}
    always["reset_head"] = fields["reset_head"]
    more = {name: hint for name, hint in _UNWRITTEN.items() if name in fields}
    names = init.keys() - {"mode"}
    if not always.keys() <= names <= {*always, *more}:
        raise UserError(f"init is {brief(init)}; allowed: the entries of a {cls.mode} start")
    for name in names:
        checked(f"init.{name}", init[name], {**always, **more}[name])


def _number(text: str, kind: type) -> object:
    try:
        return kind(text)
    except ValueError:
        return text
