"""davidcpage/cifar10-fast beside ours: the same steps to rounding, and the speed of a step.

    python -m bench.peers.cifar10_fast CHECKOUT equal    # same weights, same 20 batches: are the losses equal to 1e-5?
    python -m bench.peers.cifar10_fast CHECKOUT speed    # training steps in turn: images/s of both, ratio, n, spread

Their sources are read from the checkout and adapted in memory to today's torch (see `SHIMS`).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import statistics
import sys
import time
import types
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch

from fastcifar.data import Dataset, Loader, load_dataset
from fastcifar.errors import UserError
from fastcifar.kernels import cross_entropy
from fastcifar.models import DavidNet
from fastcifar.optim import SGD, FlatModel
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.training import resolve_dtype

SHIMS = {
    "torch_backend": [
        ("dw.add_(weight_decay, w)", "dw.add_(w, alpha=weight_decay)"),  # a signature that torch 1.5 deprecated
        ("w.add_(dw.add_(momentum, v))", "w.add_(dw.add_(v, alpha=momentum))"),
        (".astype(np.float)", ".astype(float)"),  # removed in numpy 1.24
        ("torch.symeig(Σ, eigenvectors=True)", "torch.linalg.eigh(Σ)"),  # removed in torch 1.13
    ],
    "core": [
        ("isinstance(val, (float, np.float))", "isinstance(val, float)"),
        ("len(self.log) is 1", "len(self.log) == 1"),
    ],
    "dawn_utils": [],
    "new_dawn": [("\nmain()", "\n")],  # the last line, which starts their training
}
"""What is replaced in each of their files, in the order in which they import one another."""


def load_peer(checkout: str | Path) -> types.ModuleType:
    """Their `new_dawn` module, not run. Raises UserError where the checkout is not one."""
    checkout = Path(checkout)
    if "pandas" not in sys.modules and importlib.util.find_spec("pandas") is None:
        # They import it for a table that is not used here. Whoever looks for it later asks for its spec.
        sys.modules["pandas"] = types.ModuleType("pandas")
        sys.modules["pandas"].__spec__ = ModuleSpec("pandas", None)
    for name in ("core", "torch_backend", "dawn_utils", "new_dawn"):
        path = checkout / f"{name}.py"
        if not path.is_file():
            raise UserError(f"{checkout} is no checkout of davidcpage/cifar10-fast: {name}.py is missing")
        source = path.read_text(encoding="utf-8")
        for old, new in SHIMS[name]:
            if old not in source:
                raise UserError(f"{path} is not the version these shims are for: it lacks {old!r}")
            source = source.replace(old, new)
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(source, str(path), "exec"), module.__dict__)
    return sys.modules["new_dawn"]


class PeerTrainer:
    """Their network, loss, optimisers and moving average, in the dtype of the `whitening` filters `[27, 3, 3, 3]`;
    `step(images, labels)` returns the mean loss."""

    def __init__(self, peer: types.ModuleType, recipe: Recipe, whitening: torch.Tensor, steps_per_epoch: int) -> None:
        self.peer = peer
        eigens = {
            "Λ": torch.ones(27, dtype=whitening.dtype) - 1e-2,
            "V": whitening,
        }  # their filter is V / sqrt(Λ + 1e-2): exactly `whitening`
        prep = partial(peer.whitening_block, **eigens)
        channels = dict(zip(("prep", "layer1", "layer2", "layer3"), recipe.model.widths, strict=True))
        net = peer.net(channels, weight=1 / 16, conv_bn=peer.conv_bn, prep=prep)
        self.model = peer.Network(net).to(whitening.dtype)
        batch, epochs = recipe.batch_size, recipe.epochs
        schedule = peer.PiecewiseLinear([0, epochs / 5, epochs - 2], [0, 1.0, 0.1])
        biases = peer.group_by_key(("bias" in k, v) for k, v in peer.trainable_params(self.model).items())
        const = peer.Const
        options = [
            peer.SGD(
                biases[is_bias],
                {
                    "lr": lambda step, factor=64 if is_bias else 1: schedule(step / steps_per_epoch) * factor / batch,
                    "weight_decay": const(5e-4 * batch / (64 if is_bias else 1)),
                    "momentum": const(0.9),
                },
            )
            for is_bias in (False, True)
        ]
        self.state = {
            peer.MODEL: self.model,
            peer.VALID_MODEL: copy.deepcopy(self.model),
            peer.LOSS: peer.label_smoothing_loss(0.2),
            peer.OPTS: options,
        }
        self.steps = (
            peer.forward(training_mode=True),
            peer.backward(),
            peer.opt_steps,
            peer.update_ema(momentum=0.99, update_freq=5),
        )

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        batch = {"input": images, "target": labels}
        for step in self.steps:
            self.state.update(step(batch, self.state) or {})
        return self.state[self.peer.OUTPUT]["loss"].detach().mean()


class OurTrainer:
    """Our model, loss, optimiser and moving average in `dtype`; `step(images, labels)` returns the mean loss."""

    def __init__(self, recipe: Recipe, dataset: Dataset, dtype: torch.dtype, total_steps: int) -> None:
        self.recipe = recipe
        model = DavidNet(recipe.model, len(dataset.classes), dataset.mean, dataset.std)
        self.flat = FlatModel(model, dtype)
        model.fit_whitening(dataset.train.images)
        self.whitening = model.whitening.weight.detach().contiguous()
        self.optimizer = SGD(self.flat, recipe, total_steps)
        model.train()

    def take_weights(self, theirs: torch.nn.Module) -> None:
        """Take the trained weights of their network: both list them in the order of the forward pass."""
        source = [p for p in theirs.parameters() if p.requires_grad]
        target = [p for p in self.flat.model.parameters() if p.requires_grad]
        for mine, other in zip(target, source, strict=True):
            mine.data.copy_(other.data)
        for group in self.flat.groups:
            group.load(group.compute)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.flat.zero_grad()
        loss, _ = cross_entropy(self.flat.model(images), labels, self.recipe.label_smoothing)
        loss.backward()
        self.optimizer.step()
        return loss.detach() / len(images)


def ghost_order(batch: int, ghost_batch: int) -> torch.Tensor:
    """Where our consecutive ghost groups find their images in a batch of theirs, which takes every (batch/ghost)-th."""
    return torch.arange(batch).view(ghost_batch, batch // ghost_batch).T.reshape(-1)


def compare_losses(checkout: str | Path, data_dir: str | None, steps: int = 20) -> list[tuple[float, float]]:
    """(theirs, ours): the mean loss of each of `steps` training steps from the same weights and batches.

    In float64, because float32 rounding alone grows to 1e-4 in 20 steps, and at an eighth of the width, for time:
    widths change no formula.
    """
    recipe = get_recipe("davidnet")
    narrow = tuple(width // 8 for width in recipe.model.widths)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, widths=narrow))
    dataset = load_dataset("cifar10", data_dir)
    steps_per_epoch = len(dataset.train) // recipe.batch_size
    torch.manual_seed(0)
    ours = OurTrainer(recipe, dataset, torch.float64, steps_per_epoch * recipe.epochs)
    theirs = PeerTrainer(load_peer(checkout), recipe, ours.whitening, steps_per_epoch)
    ours.take_weights(theirs.model)
    order = ghost_order(recipe.batch_size, recipe.model.ghost_batch)
    losses = []
    for (images, labels), _ in zip(_loader(dataset, recipe, torch.float64), range(steps), strict=False):
        their_loss = theirs.step(images.contiguous(), labels)
        our_loss = ours.step(images[order].contiguous(memory_format=torch.channels_last), labels[order])
        losses.append((their_loss.item(), our_loss.item()))
    return losses


def compare_speed(checkout: str | Path, data_dir: str | None, rounds: int = 5) -> list[tuple[float, float]]:
    """(theirs, ours): seconds of one training step at batch 512, in turn, `rounds` times after one untimed of each;
    theirs in float32 and NCHW as they have it on a CPU, ours in the recipe's own compute type. The batch is made
    beforehand."""
    recipe = get_recipe("davidnet")
    dataset = load_dataset("cifar10", data_dir)
    dtype = resolve_dtype(recipe.dtype, torch.device("cpu"))
    steps_per_epoch = len(dataset.train) // recipe.batch_size
    ours = OurTrainer(recipe, dataset, dtype, steps_per_epoch * recipe.epochs)
    theirs = PeerTrainer(load_peer(checkout), recipe, ours.whitening.float(), steps_per_epoch)
    images, labels = next(iter(_loader(dataset, recipe, dtype)))
    their_images = images.float().contiguous()
    pairs = [
        (_seconds(theirs.step, their_images, labels), _seconds(ours.step, images, labels)) for _ in range(rounds + 1)
    ]
    return pairs[1:]


def _loader(dataset: Dataset, recipe: Recipe, dtype: torch.dtype) -> Loader:
    return Loader(
        dataset.train, recipe.batch_size, augment=recipe.augment, mean=dataset.mean, std=dataset.std, dtype=dtype
    )


def _seconds(step, images: torch.Tensor, labels: torch.Tensor) -> float:
    start = time.perf_counter()
    step(images, labels).item()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("what", choices=["equal", "speed"])
    parser.add_argument("--data-dir")
    arguments = parser.parse_args()
    if arguments.what == "equal":
        losses = compare_losses(arguments.checkout, arguments.data_dir)
        for step, (theirs, ours) in enumerate(losses, start=1):
            print(f"step {step:2d}  theirs {theirs:.9f}  ours {ours:.9f}")
        worst = max(abs(a - b) / a for a, b in losses)
        print(f"{len(losses)} steps, largest relative difference {worst:.1e}; allowed 1e-5")
        return int(not worst < 1e-5)
    pairs = compare_speed(arguments.checkout, arguments.data_dir)
    ratios = [a / b for a, b in pairs]
    for name, seconds in zip(("cifar10-fast", "fastcifar"), zip(*pairs, strict=True), strict=True):
        print(f"{name:13s} {512 / statistics.median(seconds):7.1f} images/s (median of {len(seconds)} steps of 512)")
    print(f"ratio {statistics.median(ratios):.2f} (n={len(ratios)}, {min(ratios):.2f} to {max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"bench.peers.cifar10_fast: {error}", file=sys.stderr)
        sys.exit(2)
