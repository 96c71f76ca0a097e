"""`Diagnosis`, the base of the listeners that measure a training, and `Found`, what one measured, as a file."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from fastcifar.data.archives import npz_header, read_npz
from fastcifar.errors import Notice, UserError, brief
from fastcifar.output import parse_json, short_name, user_path, write_whole
from fastcifar.recipes import label
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.report import Figure, Line
from fastcifar.training.listeners import Listener

if TYPE_CHECKING:
    from fastcifar.training.timeline import Timeline
    from fastcifar.training.train import Trainer

VERSION = 1
"""The version of the files."""
_MOST_DRAWN = 10
"""Layers in a figure, as many as there are colors; of more, so many that are spread evenly."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a diagnosis measured at M moments of a training, for L layers; NaN where there is nothing to say.

    In a file each array is one of an .npz, and `about` and `layers` are JSON in its array `about`, uint8.
    """

    kind: ClassVar[str]
    axes: ClassVar[Mapping[str, tuple[str | int, ...]]] = {"steps": ("moments",)}
    """The axes of each array: a name, which has one length in a file, or a length."""

    about: Mapping[str, Any]
    """The training: `recipe`, `dataset`, `seed`, `device`, `total_steps`, `epochs`, and what the kind says more."""
    layers: tuple[str, ...]
    """The names of the layers."""
    steps: np.ndarray
    """int64 `[M]`: steps made before each moment."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.steps)} moments, {len(self.layers)} layers)"

    def save(self, file: str | Path) -> Path:
        """Write the file, whole or not at all, in place of one that is there. Raises UserError where that cannot be
        done."""
        file = user_path(file, "the diagnosis")
        about = {"version": VERSION, "kind": self.kind, "layers": self.layers, **self.about}
        arrays = {name: getattr(self, name) for name in self.axes}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        write_whole(file, lambda part: np.savez_compressed(part, **arrays))
        return file

    @staticmethod
    def read(file: Path, kinds: Sequence[type[Found]]) -> Found:
        """Return what is in a file of one of the `kinds`. Raises UserError for any other file."""
        try:
            shape, _ = npz_header(file, "about")
            about = parse_json(read_npz(file, "about", "u1", shape, "bytes").tobytes())
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror or error}") from None
        version, word, layers = (about.pop(name, None) for name in ("version", "kind", "layers"))
        kind = next((each for each in kinds if each.kind == word), None)
        allowed = f"version {VERSION} of {' or '.join(each.kind for each in kinds)}"
        if kind is None or version != VERSION or not isinstance(layers, list):
            raise UserError(f"{file} is of version {version!r} and of kind {brief(word)}; allowed: {allowed}")
        lengths: dict[str | int, int] = {"layers": len(layers)}
        arrays = {}
        for name, axes in kind.axes.items():
            shape, _ = npz_header(file, name)
            for axis, length in zip(axes, shape, strict=False):
                lengths.setdefault(axis, axis if isinstance(axis, int) else length)
            expected, wanted = tuple(lengths.get(axis, -1) for axis in axes), "i8" if name == "steps" else "f8"
            said = f"{wanted} {list(axes)}, each axis of one length"
            arrays[name] = read_npz(file, name, wanted, expected, said)
        return kind(about, tuple(map(str, layers)), **arrays)

    def figures(self) -> dict[str, Figure]:
        """Return the figures to draw, by the names of their files."""
        raise NotImplementedError

    def draw(self, folder: str | Path) -> list[Path]:
        """Save `figures` in `folder` as KIND-NAME.png, .svg and .pdf, and return the paths. Raises UserError where
        matplotlib is missing or a file cannot be written."""
        folder = user_path(folder, "the folder of figures")
        files = []
        for name, figure in self.figures().items():
            files += dataclasses.replace(figure, title=self.title(figure.title)).save(folder / f"{self.kind}-{name}")
        return files

    def title(self, what: str) -> str:
        """Return the title of a figure: what it shows, of which training."""
        about = self.about
        return f"{what}: {about.get('recipe')}, {about.get('dataset')}, seed {about.get('seed')}, n=1"

    def drawn(self, layers: Sequence[str] | None = None) -> list[int]:
        """Return the places of the layers that a figure shows."""
        places = [place for place, name in enumerate(self.layers) if layers is None or name in layers]
        if len(places) <= _MOST_DRAWN:
            return places
        return [places[place] for place in np.linspace(0, len(places) - 1, _MOST_DRAWN).round().astype(int)]

    def lines(self, values: np.ndarray, places: Sequence[int], **how: Any) -> tuple[Line, ...]:
        """Return a line for the layers at `places`, of `values` `[M, L]` by step; those that are not finite are left
        out."""
        return tuple(
            Line(self.steps.tolist(), known(values[:, place]), color, self.layers[place], **how)
            for color, place in enumerate(places)
        )


FoundKind = TypeVar("FoundKind", bound=Found)


class Diagnosis(Listener, Generic[FoundKind]):
    """A listener that measures a training at some moments of it, which goes on as if nothing had been measured.

    file: keeps what was found so far after every moment; a training that goes on from a state goes on in it, too. Where
        it cannot be written, that is said once, and the training goes on. None: no file.
    moments: how many there are at most, besides that before the first step: the ends of epochs and, where these are
        fewer, of equal parts of each.

    Of several trainings one after another it has what it found of the last. Raises UserError for a number below
    `fewest`.
    """

    found_class: ClassVar[type[Found]]
    fewest: ClassVar[int] = 0
    """The least number of moments besides that before the first step."""

    def __init__(self, file: str | Path | None = None, moments: int = 32) -> None:
        super().__init__()
        self.file = None if file is None else user_path(file, "the diagnosis")
        self.moments = checked("moments", moments, int, Declaration(at_least=self.fewest))
        self._about: dict[str, Any] = {}
        self._layers: tuple[str, ...] = ()
        self._found: list[tuple[int, dict[str, Any]]] = []
        self._complained = False

    @property
    def found(self) -> FoundKind:
        """What was found so far. Raises UserError before a training."""
        if not self._found:
            raise UserError("nothing was measured yet; allowed: once a training has begun")
        steps = np.array([step for step, _ in self._found], np.int64)
        names = (name for name in self.found_class.axes if name != "steps")
        arrays = {name: np.array([found[name] for _, found in self._found], np.float64) for name in names}
        return self.found_class(self._about, self._layers, steps, **arrays)  # pyright: ignore[reportReturnType]

    def begin(self, trainer: Trainer, layers: Sequence[str], **about: Any) -> None:
        """Start anew, or where the training goes on from a state with what the file says of the steps before it."""
        state = trainer.state
        self._about = {
            "recipe": label(trainer.recipe),
            "dataset": short_name(trainer.dataset.name),
            "seed": state.seed,
            "device": trainer.device.type,
            "total_steps": trainer.total_steps,
            "epochs": trainer.recipe.epochs,
            **about,
        }
        self._layers, self._complained, self._found = tuple(layers), False, []
        if state.step and self.file is not None and self.file.is_file():
            try:
                kept = Found.read(self.file, [self.found_class])
            except UserError as error:
                warnings.warn(f"{error}; the diagnosis begins at step {state.step}", Notice, stacklevel=2)
                return
            same = (kept.layers, kept.about.get("seed")) == (self._layers, state.seed)
            for place, step in enumerate(kept.steps.tolist() if same else ()):
                if step <= state.step:
                    values = {name: getattr(kept, name)[place] for name in kept.axes if name != "steps"}
                    self._found.append((step, values))

    def note(self, step: int, **values: Any) -> None:
        """Keep what was found after `step` steps: an array for each of the kind's, without its first axis."""
        self._found.append((step, values))
        if self.file is None:
            return
        try:
            self.found.save(self.file)
        except UserError as error:
            if not self._complained:
                warnings.warn(f"{error}; the training goes on", Notice, stacklevel=2)
            self._complained = True

    def dues(self, timeline: Timeline) -> list[int]:
        """Return the steps after which there is a moment."""
        ends = [epoch.end for epoch in timeline.epochs]
        if len(ends) >= self.moments:
            return [ends[place - 1] for place in _parts(len(ends), self.moments)]
        steps = ((epoch.first_step, _parts(epoch.steps, self.moments // len(ends))) for epoch in timeline.epochs)
        return [first + part for first, parts in steps for part in parts]


def _parts(total: int, count: int) -> list[int]:
    """Return the ends of `count` equal parts of 1 to `total`; fewer, where there are no more."""
    return sorted({-(-total * part // count) for part in range(1, count + 1)})


def known(values: np.ndarray) -> list[float | None]:
    """Return values to draw: None for those that are not finite."""
    return [float(value) if np.isfinite(value) else None for value in values]


def mean(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return the means over the first axis of those values that are finite; NaN where there is none."""
    given = np.asarray(values, np.float64)
    is_known = np.isfinite(given)
    count = is_known.sum(0)
    total = np.where(is_known, given, 0.0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
