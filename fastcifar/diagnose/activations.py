"""What the layers of a network give, and what becomes of it at the output (Page, How to train your ResNet 7: Batch
norm, 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fastcifar.diagnose.diagnosis import Diagnosis, Found, known, mean
from fastcifar.diagnose.snapshot import Snapshot
from fastcifar.host import TORCH
from fastcifar.models import Network
from fastcifar.models.blocks import Bias
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.record import EpochRow
from fastcifar.report import Figure, Line

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer

BEFORE, AFTER = 0, 1
"""The places in `Activations` of what a norm gets, and of what the layer gives."""
SCALE, SHIFT = 0, 1
"""The places of the two ways to perturb the first layer."""
BATCH, FIXED = 0, 1
"""The places of the two modes of batch norm: statistics of the present batch, and those that it had unperturbed."""
_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, Bias)
_CHANNELS = ("moments", "layers", 2, "channels")
_PERTURBED = ("moments", 2, 2)


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Found):
    """Statistics of layers' outputs on one batch of training images, not augmented, by float32 copies of the weights.

    A layer is a norm, or `Bias` in its place: before it is what the convolution gives, after it what the layer hands
    on, with what is fused in the norm (pooling, activation, residual sum). In a network without any it is a
    convolution or linear layer but for the last, what it gives is before, and after is NaN. Channels are filled up with
    NaN. Batch norm groups its batch as in training. `about` has the number of `images` and the `size` of the
    perturbation.
    """

    kind: ClassVar[str] = "activations"
    axes: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        **Found.axes,
        "mean": _CHANNELS,
        "variance": _CHANNELS,
        "variation": ("moments", 2),
        "change": _PERTURBED,
        "external": _PERTURBED,
    }
    mean: np.ndarray
    """float64 `[M, L, 2, C]`: of each channel before (0) and after (1) the norm, over images and pixels."""
    variance: np.ndarray
    """float64 `[M, L, 2, C]`: likewise."""
    variation: np.ndarray
    """float64 `[M, 2]`: variance over images of the logits over their mean square, both summed over the classes, with
    the statistics of the batch (0), and with the running ones of the training (1); 0: a constant function."""
    change: np.ndarray
    """float64 `[M, 2, 2]`: root mean square change of the logits, over their standard deviation over images, where
    each channel of the first layer's output is scaled (0) or shifted (1), a little and at random; with the batch norms
    behind it on the statistics of the perturbed batch (0) and on those of the unperturbed one (1)."""
    external: np.ndarray
    """float64 `[M, 2, 2]`: likewise of the change of the mean logits over images alone: the external shift."""

    @property
    def dominant(self) -> np.ndarray:
        """The share of a layer's variance that its largest channel holds: float64 `[M, L, 2]`."""
        total, largest = (reduce(np.nan_to_num(self.variance), axis=3) for reduce in (np.sum, np.max))
        return np.divide(largest, total, out=np.full(total.shape, np.nan), where=total > 0)

    def figures(self) -> dict[str, Figure]:
        side = AFTER if np.isfinite(self.mean[:, :, AFTER]).any() else BEFORE
        where, before = ("after the norms", "before the norms") if side == AFTER else ("of the layers",) * 2
        spread = np.sqrt(_over_channels(self.variance[:, :, side]))
        square, variance = (_over_channels(each[:, :, BEFORE]) for each in (self.mean**2, self.variance))
        middle = np.sqrt(np.divide(square, variance, out=np.full(square.shape, np.nan), where=variance > 0))
        figures = {
            "channels-before": self._channels(BEFORE, before),
            **({"channels-after": self._channels(AFTER, where)} if side == AFTER else {}),
            "mean": self._by_layer("mean / standard deviation", f"Channels {before}, root mean square", middle),
            "spread": self._by_layer("standard deviation", f"Outputs {where}, mean variance", spread, log_y=True),
            "dominant": self._by_layer(
                "share of the variance", f"The largest channel {where}", self.dominant[:, :, side], log_y=True
            ),
            "constant": Figure(
                "step",
                "variance over images / mean square",
                self._two(self.variation.T, ("statistics of the batch", "running statistics")),
                title="Logits (0: a constant function)",
            ),
        }
        percent = f"{100 * self.about.get('size', 0):g}%"
        for name, way in (("scale", SCALE), ("shift", SHIFT)):
            modes = ("norm active", "norm fixed")
            whole = self._two(self.change[:, way].T, [f"{mode}: change" for mode in modes])
            common = self._two(self.external[:, way].T, [f"{mode}: external shift" for mode in modes], first=2)
            title = f"Logits, the first layer's channels with another {name} by {percent}"
            figures[name] = Figure("step", "over standard deviation", (*whole, *common), log_y=True, title=title)
        return figures

    def _by_layer(self, ylabel: str, title: str, values: np.ndarray, **how: Any) -> Figure:
        return Figure("step", ylabel, self.lines(values, self.drawn()), title=title, **how)

    def _two(self, values: np.ndarray, labels: Any, first: int = 0) -> tuple[Line, ...]:
        steps = self.steps.tolist()
        return tuple(Line(steps, known(y), first + at, labels[at]) for at, y in enumerate(values))

    def _channels(self, side: int, where: str) -> Figure:
        """Return a figure of the variances of the channels, from the least to the largest, layer by layer."""
        places, lines = self.drawn(), []
        for color, (moment, when) in enumerate(((0, f"step {self.steps[0]}"), (-1, f"step {self.steps[-1]}"))):
            found = [self.variance[moment, place, side] for place in places]
            found = [each[np.isfinite(each)] for each in found]
            if all(len(each) and each.max() > 0 for each in found):
                low, middle, high = zip(*(np.quantile(each, (0, 0.5, 1)) for each in found), strict=True)
                least = min(value for value in (*low, *middle, *high) if value > 0)
                band = [(max(a, least), b) for a, b in zip(low, high, strict=True)]  # a logarithm has no 0
                lines.append(Line(range(len(places)), list(middle), color, f"{when}, median", band=band))
        ticks = tuple("\n".join(self.layers[place].split(".")) for place in places)
        title = f"Variance of the channels {where}, least to largest"
        return Figure("layer", "variance", tuple(lines), log_y=True, ticks=ticks, title=title)


class DiagnoseActivations(Diagnosis[Activations]):
    """A listener that measures what layers give: `activations.found` is `Activations`.

    images: how many of the training images it looks at, the first ones, or all where there are fewer; fewer also where
        ghost batches do not divide them.
    size: how much the first layer is perturbed: each channel's output times 1 + size * a, or plus size * b times its
        standard deviation; a and b are normal, the same at every moment.

    It looks before the first step and at the ends of epochs, on CUDA too, with a network of its own: six forward passes
    of the images. The other arguments are those of `Diagnosis`. Raises UserError for a number out of range.
    """

    found_class = Activations

    def __init__(self, file: str | Path | None = None, moments: int = 32, images: int = 512, size: float = 0.1) -> None:
        super().__init__(file, moments)
        self.images = checked("images", images, int, Declaration(at_least=1))
        self.size = checked("size", size, float, Declaration(above=0))

    @TORCH.applied()
    def on_start(self, trainer: Trainer) -> None:
        self._trainer, self._snapshot = trainer, Snapshot(trainer, self.images)
        for norm in self._snapshot.norms:
            norm.momentum = 1.0  # a pass leaves the statistics of its batch
        self._probe = Probe(self._snapshot.network)
        with self._snapshot.loaded(), torch.no_grad():
            self._probe.find_layers(self._snapshot.batch)
        self.begin(trainer, self._probe.names, images=len(self._snapshot), size=self.size)
        self._dues = {*self.dues(trainer.timeline)}
        if not self._found:
            self._measure()

    def on_epoch(self, row: EpochRow) -> None:
        step = self._trainer.state.step
        if step in self._dues and step != self._found[-1][0]:
            self._measure()

    @TORCH.applied()
    def _measure(self) -> None:
        """Keep what is found at this moment."""
        with self._snapshot.loaded(), torch.no_grad():
            self.note(self._trainer.state.step, **self._values())

    def _values(self) -> dict[str, np.ndarray]:
        network, probe, batch, norms = self._snapshot.network, self._probe, self._snapshot.batch, self._snapshot.norms
        modes = [(module, module.training) for module in network.modules()]
        network.eval()
        variation = [0.0, _variation(network(batch))]
        for module, training in modes:
            module.training = training
        moments, moved = {}, np.full((2, 2, 2), np.nan)
        for mode in (BATCH, FIXED):
            if mode == FIXED:
                network.eval()
            with probe.listening(moments if mode == BATCH else {}):
                logits = network(batch)
            if mode == BATCH:
                variation[BATCH] = _variation(logits)
            for norm in norms:
                norm.track_running_stats = False  # those of the batch stay
            for way in (SCALE, SHIFT):
                with probe.perturbing(way, self.size, moments):
                    moved[:, way, mode] = _moved(logits, network(batch))
        for norm in norms:
            norm.track_running_stats = True
        for module, training in modes:
            module.training = training
        means, variances = probe.arrays(moments)
        return {
            "mean": means,
            "variance": variances,
            "variation": np.array(variation),
            "change": moved[0],
            "external": moved[1],
        }


Moments = dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]
"""`moments[layer, side]`: mean and variance by channel, float32 `[C]`."""


class Probe:
    """The layers of a network, what they give, and the first one perturbed."""

    def __init__(self, network: Network) -> None:
        self._network = network
        named = {module: name for name, module in network.module.named_modules()}
        self._kinds = _NORMS if any(isinstance(module, _NORMS) for module in named) else (nn.Conv2d, nn.Linear)
        self._named, self._layers = named, list[nn.Module]()
        self._channels = 1

    @property
    def names(self) -> list[str]:
        """The names of the layers, in the order in which they are called."""
        return [self._named[layer] for layer in self._layers]

    @property
    def _side(self) -> int:
        """The place of what the layers give."""
        return AFTER if self._kinds is _NORMS else BEFORE

    def find_layers(self, batch: torch.Tensor) -> None:
        """Find the layers that `batch` passes through, in their order."""
        called = {}
        hooks = [
            module.register_forward_hook(lambda module, args, output: called.setdefault(module))
            for module in self._named
            if isinstance(module, self._kinds)
        ]
        _ = self._network(batch)
        for hook in hooks:
            hook.remove()
        self._layers = list(called) if self._kinds is _NORMS else list(called)[:-1]

    @contextmanager
    def listening(self, moments: Moments) -> Iterator[None]:
        """Put what the layers give in the block into `moments`; of one that is called several times the last call."""

        def hear(at: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
                if self._side == AFTER:
                    moments[at, BEFORE] = _by_channel(args[0])
                moments[at, self._side] = _by_channel(without_border(output, kwargs))

            return hook

        hooks = [layer.register_forward_hook(hear(at), with_kwargs=True) for at, layer in enumerate(self._layers)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def perturbing(self, way: int, size: float, moments: Moments) -> Iterator[None]:
        """Scale or shift the channels of the first layer's output in the block; unperturbed they have `moments`."""
        if not self._layers:
            yield
            return
        variance = moments[0, self._side][1]
        normal = torch.randn(len(variance), generator=torch.Generator().manual_seed(way)).to(variance)

        def hook(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone(memory_format=torch.preserve_format)
            inside = without_border(output, kwargs).movedim(channel_axis(output), -1)  # a view
            _ = inside.mul_(1 + size * normal) if way == SCALE else inside.add_(size * variance.sqrt() * normal)
            return output

        handle = self._layers[0].register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def arrays(self, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
        """Return means and variances, `[L, 2, C]`, with NaN for what is not there."""
        channels = max((len(mean) for mean, _ in moments.values()), default=1)
        arrays = np.full((2, len(self._layers), 2, channels), np.nan)
        for (at, side), both in moments.items():
            arrays[:, at, side, : len(both[0])] = torch.stack(both).double().cpu().numpy()
        return arrays[0], arrays[1]


def channel_axis(x: torch.Tensor) -> int:
    """Return the axis of the channels: the second, but the last of tokens `[N, T, C]`."""
    return -1 if x.dim() == 3 else 1


def without_border(output: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the output of a norm without its border of zeros, if it was asked for one."""
    return output[:, :, 1:, 1:] if kwargs.get("border") else output


def _by_channel(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of each channel."""
    variance, mean = torch.var_mean(x.movedim(channel_axis(x), -1).flatten(0, -2).float(), 0, correction=0)
    return mean, variance


def _variation(logits: torch.Tensor) -> float:
    """Return the variance over images of logits `[N, K]` over their mean square; NaN where all are 0."""
    wide = logits.double()
    square = wide.square().mean(0).sum().item()
    return wide.var(0, correction=0).sum().item() / square if square else math.nan


def _moved(logits: torch.Tensor, perturbed: torch.Tensor) -> tuple[float, float]:
    """Return how far logits `[N, K]` have moved, and their means over images, as root mean squares over the logits'
    standard deviation over images; NaN where that is 0."""
    wide = logits.double()
    change, spread = perturbed.double() - wide, wide.var(0, correction=0).mean().sqrt().item()
    sizes = (each.square().mean().sqrt().item() for each in (change, change.mean(0)))
    whole, common = (size / spread if spread else math.nan for size in sizes)
    return whole, common


def _over_channels(values: np.ndarray) -> np.ndarray:
    """Return the means over the last axis, of channels, of those that are there; NaN where none is."""
    return mean(np.moveaxis(values, -1, 0))
