"""How far each layer moves in a step, and what its size and its gradient's are (Page, How to train your ResNet 6:
Weight decay, 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from fastcifar.diagnose.diagnosis import Diagnosis, Found, mean
from fastcifar.optim.lookahead import FlatLookahead, lookahead_shares
from fastcifar.report import Figure, Line

if TYPE_CHECKING:
    from fastcifar.optim.flat import FlatGroup
    from fastcifar.record import RunRecord
    from fastcifar.training.train import Trainer

SMOOTHING = 0.9
"""The share of the gradient norm so far in a smoothed one, after each step."""
_BY_LAYER = ("moments", "layers")


@dataclass(frozen=True, eq=False, repr=False)
class Updates(Found):
    """Sizes of weights, gradients and updates, Euclidean norms, for each trained parameter w; layers are named by them.

    A moment's means are over the steps since the moment before it. Gradients g are those of a batch's mean loss, before
    weight decay. On CUDA, where steps are not seen one by one, a moment is the end of an epoch, `update` is NaN and
    `gradient` that of the last batch. Parameters that are frozen have NaN, and so have weights that are all zero where
    they are divided by. `about["weights"]` names the matrices and convolution filters.
    """

    kind: ClassVar[str] = "updates"
    axes: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        **Found.axes,
        "rate": ("moments",),
        "weight": _BY_LAYER,
        "update": _BY_LAYER,
        "displacement": _BY_LAYER,
        "gradient": _BY_LAYER,
        "smoothed": _BY_LAYER,
    }
    rate: np.ndarray
    """float64 `[M]`: the optimizer's learning rate of weights in the last step."""
    weight: np.ndarray
    """float64 `[M, L]`: |w|."""
    update: np.ndarray
    """float64 `[M, L]`: mean of |dw| / |w| by step, of what the optimizer does: steps after which lookahead moves the
    weights too, these return to their average or units may be replaced, and steps that loss scaling leaves out, do not
    count."""
    displacement: np.ndarray
    """float64 `[M, L]`: |w - v| / |v|, v being the weights at the moment before."""
    gradient: np.ndarray
    """float64 `[M, L]`: mean of |g| by step."""
    smoothed: np.ndarray
    """float64 `[M, L]`: a moving average of |g| over the steps that are seen, with `SMOOTHING` the share of those
    before, from the first one on."""

    @property
    def lars_rate(self) -> np.ndarray:
        """The rate that LARS (You, Gitman and Ginsburg 2017) would train each layer with, |w| / |g|, over the one rate
        that gives the median matrix the same step: float64 `[M, L]`. SGD's is 1 for all."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where((self.weight > 0) & (self.smoothed > 0), self.weight / self.smoothed, np.nan)
        matrices = ratio[:, [name in self._matrices for name in self.layers]]
        middle = [np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in matrices]
        return ratio / np.array(middle)[:, None]

    @property
    def _matrices(self) -> list[str]:
        return list(self.about.get("weights", self.layers))

    def figures(self) -> dict[str, Figure]:
        places = self.drawn(self._matrices)
        by_step = bool(np.isfinite(self.update).any())
        moved = self.update if by_step else self.displacement
        what = ("|dw| / |w|", "a step") if by_step else ("|w - v| / |v|", "the steps since the moment before")
        raw = tuple(Line(line.x, line.y, line.color, faint=True) for line in self.lines(self.gradient, places))
        return {
            "size": self._figure(what[0], f"Relative size of {what[1]}", self.lines(moved, places)),
            "weight": self._figure("|w|", "Norm of the weights", self.lines(self.weight, places)),
            "gradient": self._figure(
                "|g|", "Norm of the gradient, smoothed (thin: not)", (*raw, *self.lines(self.smoothed, places))
            ),
            "rate": self._figure(
                "|w| / |g|, median layer: 1",
                "LARS's rate of each layer, where SGD's is 1",
                self.lines(self.lars_rate, places),
            ),
        }

    @staticmethod
    def _figure(ylabel: str, title: str, lines: tuple[Line, ...]) -> Figure:
        return Figure("step", ylabel, lines, log_y=True, title=title)


class DiagnoseUpdates(Diagnosis[Updates]):
    """A listener that measures how far each layer moves: `updates.found` is `Updates`.

    It works with every optimizer, on the weights and gradients in the flat buffers. On a CPU it looks at every step,
    which takes three norms and a copy of the weights; on CUDA at the ends of epochs, as a replayed step shows nothing.
    The arguments are those of `Diagnosis`.
    """

    found_class = Updates

    def on_start(self, trainer: Trainer) -> None:
        state, model = trainer.state, trainer.model
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        held = [(group, place) for group in state.flat.groups for place in range(len(group.parameters))]
        order = {name: number for number, name in enumerate(names.values())}
        held.sort(key=lambda each: order[names[id(each[0].parameters[each[1]])]])
        self._held, self._trainer = held, trainer
        layers = [names[id(group.parameters[place])] for group, place in held]
        matrices = [
            name for name, (group, place) in zip(layers, held, strict=True) if group.parameters[place].dim() > 1
        ]
        self.begin(trainer, layers, weights=matrices)
        self._dues = [step for step in self.dues(trainer.timeline) if step > state.step]
        shares: list[float | None] = []
        if isinstance(state.optimizer, FlatLookahead):
            shares = lookahead_shares(trainer.recipe.lookahead, trainer.total_steps)
        self._others = {step for step, share in enumerate(shares, start=1) if share is not None}
        self._others |= {epoch.end for epoch in trainer.timeline.epochs if trainer.timeline.returns(epoch)}
        self._others |= state.replacement.steps(trainer.timeline.epochs)
        unknown = np.full(len(layers), np.nan)
        self._smoothed = self._found[-1][1]["smoothed"] if self._found else unknown
        self._weight = self._sizes("weights")
        self._last, self._marked = state.step, self._copy()
        self._before = self._copy() if trainer.device.type == "cpu" else self._marked
        self._begin_interval()
        if not self._found:
            nothing = dict.fromkeys(("update", "displacement", "gradient", "smoothed"), unknown)
            self.note(state.step, rate=np.nan, weight=self._weight, **nothing)

    def on_step(self, step: int, total_steps: int) -> None:
        gradient = self._sizes("grads") / self._trainer.recipe.batch_size
        trains = np.array([group.trains for group, _ in self._held])
        gradient[~trains] = np.nan
        if not np.isfinite(gradient[trains]).all():  # left out: the finite ones have the scale of the loss in them
            gradient[:] = np.nan
        seen = np.isfinite(gradient)
        before = np.where(np.isfinite(self._smoothed), self._smoothed, gradient)
        self._smoothed = np.where(seen, SMOOTHING * before + (1 - SMOOTHING) * gradient, self._smoothed)
        weight = self._sizes("weights")
        self._gradients.append(gradient)
        is_update = step == self._last + 1 and step not in self._others and seen[trains].all()
        if is_update:  # else there were several, or it was left out
            self._updates.append(np.where(trains, _ratio(self._moved(self._before), self._weight), np.nan))
        if self._dues and step >= self._dues[0]:
            self._note(step, weight)
        self._last, self._weight = step, weight
        if self._trainer.device.type == "cpu":
            self._copy(self._before)

    def on_end(self, record: RunRecord) -> None:
        if self._gradients:  # the training ended early
            self._note(self._last, self._weight)

    def _note(self, step: int, weight: np.ndarray) -> None:
        """Keep a moment, and begin the next interval."""
        unknown = np.full(len(weight), np.nan)
        trains = np.array([group.trains for group, _ in self._held])
        displacement = _ratio(self._moved(self._marked), self._marked_weight)
        self.note(
            step,
            rate=self._trainer.state.optimizer.learning_rate(step - 1),
            weight=weight,
            update=mean(self._updates) if self._updates else unknown,
            displacement=np.where(trains, displacement, np.nan),
            gradient=mean(self._gradients),
            smoothed=np.where(trains, self._smoothed, np.nan),
        )
        self._weight = weight
        self._dues = [due for due in self._dues if due > step]
        self._copy(self._marked)
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._updates: list[np.ndarray] = []
        self._gradients: list[np.ndarray] = []
        self._marked_weight = self._weight

    def _sizes(self, buffer: str) -> np.ndarray:
        """Return the norm of each parameter's part of a buffer of its group: float64 `[L]`."""
        return self._norms({id(group): getattr(group, buffer) for group, _ in self._held})

    @torch.no_grad()
    def _moved(self, before: dict[int, torch.Tensor]) -> np.ndarray:
        """Return the norm of what each parameter's weights have moved: float64 `[L]`."""
        groups = {id(group): group for group, _ in self._held}
        return self._norms({key: group.weights - before[key] for key, group in groups.items()})

    @torch.no_grad()
    def _norms(self, buffers: dict[int, torch.Tensor]) -> np.ndarray:
        parts = [buffers[id(group)][group.spans[place]] for group, place in self._held]  # the gaps are zero
        wide = [torch.promote_types(part.dtype, torch.float32) for part in parts]
        norms = [torch.linalg.vector_norm(part, dtype=dtype) for part, dtype in zip(parts, wide, strict=True)]
        return torch.stack([norm.double() for norm in norms]).cpu().numpy()

    @torch.no_grad()
    def _copy(self, into: dict[int, torch.Tensor] | None = None) -> dict[int, torch.Tensor]:
        """Return copies of the weights of all groups, made in the tensors of `into`."""
        groups: dict[int, FlatGroup] = {id(group): group for group, _ in self._held}
        if into is None:
            return {key: group.weights.clone() for key, group in groups.items()}
        for key, group in groups.items():
            into[key].copy_(group.weights)
        return into


def _ratio(size: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.divide(size, of, out=np.full(size.shape, np.nan), where=of > 0)
