"""What a network has left to be trained further with: dormant units, sizes of weights and gradients, the rank of its
features and the curvature of its loss, which the literature on the loss of plasticity looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from fastcifar.diagnose.activations import Probe, channel_axis, without_border
from fastcifar.diagnose.curvature import largest_eigenvalue
from fastcifar.diagnose.diagnosis import Diagnosis, Found, known
from fastcifar.diagnose.snapshot import Snapshot
from fastcifar.errors import UserError
from fastcifar.host import TORCH
from fastcifar.plasticity.units import dormant
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.record import EpochRow
from fastcifar.report import Figure, Line

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer

CURVATURE_IMAGES = 128
"""The most images that the curvature is of: as many as `DiagnoseCurvature` has by default."""
_SCALARS = ("dormant", "weight_norm", "gradient_norm", "effective_rank", "srank", "curvature")
_BY_LAYER = ("moments", "layers")


@dataclass(frozen=True, eq=False, repr=False)
class Plasticity(Found):
    """What bears on further training, on one batch of training images, not augmented, by a float32 copy of the weights
    with batch norms in training mode; NaN where it is not finite.

    Layers are the matrices and convolution filters that train at first, by their own names, and then the modules that
    hand on the units that are looked at; each has NaN in the arrays of the other kind. Units are those of
    `Network.units`, or where it knows none the channels that norms with an activation, or `Bias` in their place, hand
    on. `about` has the number of `images`, the `threshold` of dormancy and the images of the curvature,
    `curvature_images`; 0: not measured.
    """

    kind: ClassVar[str] = "plasticity"
    axes: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        **Found.axes,
        **dict.fromkeys((*_SCALARS, "train_accuracy", "test_accuracy"), ("moments",)),
        **dict.fromkeys(("dormant_by_layer", "weight_norm_by_layer", "gradient_norm_by_layer"), _BY_LAYER),
    }
    dormant: np.ndarray
    """float64 `[M]`: the share of all units that are dormant; see `dormant_units`."""
    weight_norm: np.ndarray
    """float64 `[M]`: Euclidean norm of all matrices and filters together."""
    gradient_norm: np.ndarray
    """float64 `[M]`: likewise of the gradient of the batch's mean loss, without weight decay."""
    effective_rank: np.ndarray
    """float64 `[M]`: of what the classifier takes, see `effective_rank`; NaN where that is not known."""
    srank: np.ndarray
    """float64 `[M]`: likewise, see `srank`."""
    curvature: np.ndarray
    """float64 `[M]`: the largest eigenvalue of the loss's Hessian, as in `Curvature`."""
    train_accuracy: np.ndarray
    """float64 `[M]`: the fraction of right answers in the epoch that ends there, while training."""
    test_accuracy: np.ndarray
    """float64 `[M]`: of the evaluation at its end, NaN where there is none; before the first step with
    `evaluate_at_start`."""
    dormant_by_layer: np.ndarray
    """float64 `[M, L]`: the share of a layer's units."""
    weight_norm_by_layer: np.ndarray
    """float64 `[M, L]`."""
    gradient_norm_by_layer: np.ndarray
    """float64 `[M, L]`."""

    def at_start(self) -> dict[str, float]:
        """Return what was found at the first moment, before the first step, by name: dormant, weight_norm,
        gradient_norm, effective_rank, srank and curvature; NaN where it is not known."""
        return {name: float(getattr(self, name)[0]) for name in _SCALARS}

    def figures(self) -> dict[str, Figure]:
        whole = {
            "dormant": ("share of all units", "Dormant units", {"dormant": self.dormant}),
            "norms": ("norm", "Weights and gradient", {"weights": self.weight_norm, "gradient": self.gradient_norm}),
            "rank": ("rank", "Features", {"effective rank": self.effective_rank, "srank": self.srank}),
            "curvature": ("largest eigenvalue", "Curvature of the loss", {"curvature": self.curvature}),
        }
        by_layer = {
            "dormant-by-layer": ("share of the layer's units", "Dormant units", self.dormant_by_layer),
            "weight-by-layer": ("|w|", "Norm of the weights", self.weight_norm_by_layer),
            "gradient-by-layer": ("|g|", "Norm of the gradient", self.gradient_norm_by_layer),
        }
        accuracy = self._named({"test accuracy": self.test_accuracy, "accuracy in training": self.train_accuracy}, 7)
        beside: dict[str, Any] = {"right": accuracy, "right_label": "accuracy"} if accuracy else {}
        figures = {}
        for name, (ylabel, title, values) in whole.items():
            if lines := self._named(values):
                log = name in ("norms", "curvature")
                title = f"{title}, beside accuracy" if beside else title
                figures[name] = Figure("step", ylabel, lines, log_y=log, title=title, **beside)
        for name, (ylabel, title, values) in by_layer.items():
            layers = [layer for layer, each in zip(self.layers, values.T, strict=True) if np.isfinite(each).any()]
            if layers:
                log, lines = not name.startswith("dormant"), self.lines(values, self.drawn(layers))
                figures[name] = Figure("step", ylabel, lines, log_y=log, title=title)
        return figures

    def _named(self, values: Mapping[str, np.ndarray], first: int = 0) -> tuple[Line, ...]:
        """Return a line for each of the `values` `[M]` by step that is known somewhere; from gray on, dashed."""
        steps, apart = self.steps.tolist(), 10 if first else 1
        lines = (
            Line(steps, known(each), first + apart * place, name) for place, (name, each) in enumerate(values.items())
        )
        return tuple(line for line in lines if any(y is not None for y in line.y))


class DiagnosePlasticity(Diagnosis[Plasticity]):
    """A listener that measures what bears on further training: `plasticity.found` is `Plasticity`.

    images: how many of the training images it looks at, the first ones, or all where there are fewer; fewer also where
        ghost batches do not divide them.
    threshold: of dormancy, see `dormant_units`.
    curvature: measure the curvature of the loss too, on the first `CURVATURE_IMAGES` of the images.

    It looks before the first step and at the ends of epochs, with a network of its own: two passes of the images
    forward and one back, the singular values of the features on the CPU, and for the curvature up to 60 times two
    passes forward and back, most of the time. The other arguments are those of `Diagnosis`. Raises UserError for a
    number out of range.
    """

    found_class = Plasticity

    def __init__(
        self,
        file: str | Path | None = None,
        moments: int = 32,
        images: int = 512,
        threshold: float = 0.025,
        curvature: bool = True,
    ) -> None:
        super().__init__(file, moments)
        self.images = checked("images", images, int, Declaration(at_least=1))
        self.threshold = checked("threshold", threshold, float, Declaration(at_least=0))
        self.curvature = checked("curvature", curvature, bool)

    @TORCH.applied()
    def on_start(self, trainer: Trainer) -> None:
        self._trainer, self._snapshot = trainer, Snapshot(trainer, self.images)
        snapshot, network = self._snapshot, self._snapshot.network
        for norm in snapshot.norms:
            norm.track_running_stats = False  # the statistics of the batch, which are not kept
        named = network.module.named_parameters()
        self._matrices = {name: each for name, each in named if each.requires_grad and each.dim() > 1}
        with snapshot.loaded(), torch.no_grad():
            self._units = _units(snapshot)
        most = min(len(snapshot), CURVATURE_IMAGES)
        self._curved = max(most - most % snapshot.whole, snapshot.whole) if self.curvature else 0
        about = {"images": len(snapshot), "threshold": self.threshold, "curvature_images": self._curved}
        self.begin(trainer, (*self._matrices, *(name for name, _, _ in self._units)), **about)
        self._dues = {*self.dues(trainer.timeline)}
        if not self._found:
            self._measure(np.nan, np.nan)

    @TORCH.applied()
    def on_epoch(self, row: EpochRow) -> None:
        step, accuracies = self._trainer.state.step, (row.train_accuracy, row.test_accuracy)
        train, test = (np.nan if each is None else each for each in accuracies)
        if step == self._found[-1][0]:  # epoch 0, whose evaluation comes after the start
            values = self._found.pop()[1]
            self.note(step, **{**values, "train_accuracy": train, "test_accuracy": test})
        elif step in self._dues:
            self._measure(train, test)

    def _measure(self, train_accuracy: float, test_accuracy: float) -> None:
        """Keep what is found at this moment."""
        snapshot, matrices = self._snapshot, list(self._matrices.values())
        shares = np.full(len(self._units), np.nan)
        with snapshot.loaded():
            with self._listening() as dormant:
                loss = snapshot.loss({})
            gradients = torch.autograd.grad(loss, matrices, materialize_grads=True) if matrices else ()
            with torch.no_grad():
                singular = singular_values(_features(snapshot))
            curvature = np.nan
            if self._curved:
                curvature = largest_eigenvalue(lambda at: snapshot.loss(at, self._curved), snapshot.trained)
            weight, gradient = _sizes(matrices), _sizes(gradients)
        for place, each in dormant.items():
            shares[place] = each.mean().item()
        units = np.concatenate([each.cpu().numpy() for each in dormant.values()]) if dormant else np.full(1, np.nan)
        no_units, no_matrices = np.full(len(shares), np.nan), np.full(len(matrices), np.nan)
        self.note(
            self._trainer.state.step,
            dormant=units.mean(),
            weight_norm=_together(weight),
            gradient_norm=_together(gradient),
            effective_rank=effective_rank(singular),
            srank=srank(singular),
            curvature=curvature if np.isfinite(curvature) else np.nan,
            train_accuracy=train_accuracy,
            test_accuracy=test_accuracy,
            dormant_by_layer=np.concatenate([no_matrices, shares]),
            weight_norm_by_layer=np.concatenate([weight, no_units]),
            gradient_norm_by_layer=np.concatenate([gradient, no_units]),
        )

    @contextmanager
    def _listening(self) -> Iterator[dict[int, torch.Tensor]]:
        """Put into what is yielded, for the units of each place, which of them are dormant, 0 or 1, or NaN where they
        are not finite: float64 `[U]`; of a layer that is called several times in the last call."""
        found: dict[int, torch.Tensor] = {}

        def hear(place: int, activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
                given = activation(without_border(output.detach(), kwargs))
                is_dormant = dormant_units(given, self.threshold).double()
                found[place] = is_dormant if given.isfinite().all() else torch.full_like(is_dormant, torch.nan)

            return hook

        hooks = [
            module.register_forward_hook(hear(place, activation), with_kwargs=True)
            for place, (_, module, activation) in enumerate(self._units)
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


def dormant_units(activations: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return which units are dormant (Sokar, Agarwal, Castro and Evci 2023): bool `[U]`, for what they give, `[N, U]`,
    `[N, U, H, W]` or of tokens `[N, T, U]`. A unit's score is its mean |activation| over images and pixels, over the
    mean of all units; dormant are scores up to `threshold`, and all units of a layer that gives nothing but 0."""
    return dormant(activations.movedim(channel_axis(activations), -1).flatten(0, -2).abs().mean(0), threshold)


def singular_values(features: torch.Tensor | None) -> np.ndarray:
    """Return the singular values of `features` `[N, F]`, in float64, the largest first; none where they are not finite
    or not known."""
    if features is None or not features.isfinite().all():
        return np.empty(0)
    return np.linalg.svd(features.double().cpu().numpy(), compute_uv=False)


def effective_rank(singular: np.ndarray) -> float:
    """Return exp of the entropy of singular values over their sum (Roy and Vetterli 2007): from 1 for a single one to
    their number for equal ones; NaN where their sum is 0."""
    total = singular.sum()
    if not total > 0:
        return np.nan
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def srank(singular: np.ndarray, share: float = 0.99) -> float:
    """Return the least k so that the k largest singular values have `share` of the sum of all (Kumar, Agarwal, Ghosh
    and Levine 2021); NaN where that is 0."""
    sums = np.cumsum(np.sort(singular)[::-1])
    if not len(sums) or not sums[-1] > 0:
        return np.nan
    return float(np.searchsorted(sums, share * sums[-1]) + 1)


Seen = tuple[str, nn.Module, Callable[[torch.Tensor], torch.Tensor]]
"""The name of a module whose outputs are units, itself, and what is applied to them."""


def _units(snapshot: Snapshot) -> list[Seen]:
    """Return the units to look at: those that the network knows, or what its norms with an activation hand on. What a
    norm without one hands on is never small, whatever becomes of it behind."""
    network = snapshot.network
    if units := network.units():
        return [(each.seen, network.module.get_submodule(each.seen), each.values) for each in units]
    probe, module = Probe(network), network.module
    probe.find_layers(snapshot.batch)
    layers = ((name, module.get_submodule(name)) for name in probe.names)
    return [(name, layer, _same) for name, layer in layers if getattr(layer, "activation", "none") != "none"]


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _features(snapshot: Snapshot) -> torch.Tensor | None:
    """Return what the classifier takes for the batch, `[N, F]`; None where that is not known."""
    try:
        return snapshot.network.features(snapshot.batch)
    except UserError:
        return None


def _sizes(tensors: Any) -> np.ndarray:
    """Return the Euclidean norm of each of the tensors, in float64; NaN where it is not finite."""
    sizes = np.array([torch.linalg.vector_norm(each.detach(), dtype=torch.float64).item() for each in tensors])
    return np.where(np.isfinite(sizes), sizes, np.nan)


def _together(sizes: np.ndarray) -> float:
    """Return the norm of several tensors together, of which these are the norms; NaN without any."""
    return float(np.sqrt((sizes**2).sum())) if len(sizes) else np.nan
