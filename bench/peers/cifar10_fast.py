"""davidcpage/cifar10-fast: its training, for `python -m bench.peers`, and a check that ours is the same.

    python -m bench.peers.cifar10_fast CHECKOUT equal    # same weights, same 20 batches: are the losses equal to 1e-5?

of `davidnet` and new_dawn.py, and of the ladder's myrtle-single-norm and the network of experiments.ipynb.

Their sources are read from the checkout and adapted in memory to today's torch (see `SHIMS`).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import sys
import time
import types
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from bench.peers.adapt import Shims, load_module, read_code, stand_in
from bench.peers.harness import WITH_TTA, Enough, Harness
from bench.program import new_parser, run_program
from fastcifar.data import Dataset, Loader, load_dataset
from fastcifar.errors import UserError
from fastcifar.kernels import cross_entropy
from fastcifar.models import build_model
from fastcifar.optim import FlatModel, FlatSGD
from fastcifar.recipes import Recipe, change, get_recipe

SHIMS: dict[str, Shims] = {
    "core": [
        ("isinstance(val, (float, np.float))", "isinstance(val, float)"),
        ("len(self.log) is 1", "len(self.log) == 1"),
    ],
    "torch_backend": [
        ("dw.add_(weight_decay, w)", "dw.add_(w, alpha=weight_decay)"),  # a signature that torch 1.5 deprecated
        ("w.add_(dw.add_(momentum, v))", "w.add_(dw.add_(v, alpha=momentum))"),
        (".astype(np.float)", ".astype(float)"),  # removed in numpy 1.24
        ("torch.symeig(Σ, eigenvectors=True)", "torch.linalg.eigh(Σ)"),  # removed in torch 1.13
        # Padding once gave NCHW whatever it got. It keeps the strides of this now, and their ghost batch norm fails.
        ("x.permute([source.index(d) for d in target])", "x.permute([source.index(d) for d in target]).contiguous()"),
    ],
    "dawn_utils": [],
    "new_dawn": [("\nmain()", "\n")],  # the last line, which starts their training
}
"""Replacements in each of their files, which import one another in this order."""

HARNESS: dict[str, Shims] = {
    "new_dawn": [
        ("timer = Timer(synch=torch.cuda.synchronize)", "timer = _timed(Timer)"),
        ("update_ema(momentum=0.99, update_freq=5))", "update_ema(momentum=0.99, update_freq=5), _after_batch)"),
        ("logs, state = Table(),", "logs, state = _logs(Table()),"),
    ]
}
"""Replacements for `load`: our clocks, and the table that they would write to a file."""

_NO_WARM_UP = ("for size in [batch_size, len(dataset['valid']['targets']) % batch_size]:", "for size in []:")
"""Their warm-up of cuDNN, two steps long, which a CPU has not."""

ON_CPU: dict[str, dict[str, Shims]] = {
    "float32": {"torch_backend": [("node.half()", "node.float()")], "new_dawn": [("float16", "float32"), _NO_WARM_UP]},
    "bfloat16": {
        "torch_backend": [
            ("node.half()", "node.float()"),  # autocast computes in bfloat16: see `load`
            ("x.detach().cpu()", "x.detach().float().cpu()"),  # numpy has no bfloat16
        ],
        "new_dawn": [("np.float16", "np.float32"), ("torch.float16", "torch.bfloat16"), _NO_WARM_UP],
    },
}
"""Replacements of float16, which is emulated on a CPU: by what their program would use there, and by what it could."""


def load_peer(
    checkout: str | Path, further: Mapping[str, Shims] | None = None, namespace: Mapping[str, object] | None = None
) -> types.ModuleType:
    """Return their `new_dawn` module, not run, with `further` shims for each file and the names of `namespace` in each.
    Raises UserError where the checkout is not one."""
    stand_in("pandas")  # imported for a table that is not used here
    further = further or {}
    for name, shims in SHIMS.items():
        load_module(Path(checkout) / f"{name}.py", [*shims, *further.get(name, ())], name, namespace)
    return sys.modules["new_dawn"]


def load(checkout: Path, harness: Harness, dtype: str = "float32") -> Callable[[int], None]:
    """Load their program, in float16 on CUDA, else in `dtype`; the function trains once from a seed."""
    on_cpu = harness.device.type == "cpu"
    further = {name: [*HARNESS.get(name, ()), *(ON_CPU[dtype].get(name, ()) if on_cpu else ())] for name in SHIMS}
    timers, logs = [], []

    def timed(timer):
        timers.append(timer(synch=harness.synchronize))
        return timers[-1]

    def after_batch(batch, state) -> None:
        if batch:
            harness.step_done()

    names = {"_timed": timed, "_after_batch": after_batch, "_logs": lambda table: logs.append(table) or table}
    peer = load_peer(checkout, further, names)
    if on_cpu and dtype == "bfloat16":
        peer.Network.forward = torch.autocast("cpu", torch.bfloat16)(peer.Network.forward)
    peer.cifar10 = lambda root: {
        key: {"data": split["images"].cpu().numpy(), "targets": split["labels"].cpu().numpy()}
        for key, split in (("train", harness.split(train=True)), ("valid", harness.split(train=False)))
    }

    def train(seed: int) -> None:
        sys.argv = ["new_dawn.py"]
        del timers[:], logs[:]
        try:
            peer.main()
        except Enough:
            harness.own_seconds = timers[0].total_time + time.perf_counter() - timers[0].times[-1]
            raise
        harness.own_seconds = logs[0].log[-1]["total time"]
        # Their clock is ours, the host's, read when the device has finished: one measure of the same sections.
        harness.seconds = harness.own_seconds
        last = logs[0].log[-1]["valid"]
        harness.evaluation_seconds, harness.accuracies[WITH_TTA] = last["time"], float(last["acc"])

    return train


class Trainer:
    """Their network, loss and optimizers, for steps on batches of ours."""

    peer: types.ModuleType
    model: torch.nn.Module
    state: dict[str, object]
    steps: tuple[Callable, ...]

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Train on a batch; returns the mean loss."""
        batch = {"input": images, "target": labels}
        for step in self.steps:
            self.state.update(step(batch, self.state) or {})
        return self.state[self.peer.OUTPUT]["loss"].detach().mean()


class BaselineTrainer(Trainer):
    """Their first network, loss and optimizer, as experiments.ipynb has them, in float64.

    checkout: theirs, whose notebook is read.
    widths: channels of the network.
    """

    def __init__(self, checkout: Path, widths: list[int], batch: int, steps_per_epoch: int) -> None:
        self.peer = peer = load_peer(checkout)
        names = dict(vars(sys.modules["torch_backend"]))
        exec(notebook_cell(checkout / "experiments.ipynb", "def DAWN_net("), names)
        self.model = peer.Network(names["DAWN_net"](c=widths)).double()
        for name, parameter in self.model.named_parameters():  # torch's scales were drawn so until 1.2
            if "bn" in name and name.endswith("weight"):
                torch.nn.init.uniform_(parameter)
        schedule = peer.PiecewiseLinear([0, 15, 30, 35], [0, 0.1, 0.005, 0])
        lr = lambda step: schedule(step / steps_per_epoch) / batch  # noqa: E731
        settings = {"lr": lr, "weight_decay": peer.Const(5e-4 * batch), "momentum": peer.Const(0.9)}
        optimizer = peer.SGD(peer.trainable_params(self.model).values(), settings)
        self.state = {peer.MODEL: self.model, peer.LOSS: peer.x_ent_loss, peer.OPTS: [optimizer]}
        self.steps = (peer.forward(training_mode=True), peer.backward(), peer.opt_steps)


class PeerTrainer(Trainer):
    """Their network, loss, optimizers and moving average, in the dtype of the `whitening` filters `[27, 3, 3, 3]`."""

    def __init__(self, peer: types.ModuleType, recipe: Recipe, whitening: torch.Tensor, steps_per_epoch: int) -> None:
        self.peer = peer
        # Their filter is V / sqrt(Λ + 1e-2): exactly `whitening`.
        prep = partial(peer.whitening_block, Λ=torch.ones(27, dtype=whitening.dtype) - 1e-2, V=whitening)
        channels = dict(zip(("prep", "layer1", "layer2", "layer3"), recipe.network.widths, strict=True))
        net = peer.net(channels, weight=1 / 16, conv_bn=peer.conv_bn, prep=prep)
        self.model = peer.Network(net).to(whitening.dtype)
        batch, epochs = recipe.batch_size, recipe.epochs
        schedule = peer.PiecewiseLinear([0, epochs / 5, epochs - 2], [0, 1.0, 0.1])
        is_bias = peer.group_by_key(("bias" in k, v) for k, v in peer.trainable_params(self.model).items())

        def optimizer(weights, factor: int):
            lr = lambda step: schedule(step / steps_per_epoch) * factor / batch  # noqa: E731
            decay, momentum = peer.Const(5e-4 * batch / factor), peer.Const(0.9)
            return peer.SGD(weights, {"lr": lr, "weight_decay": decay, "momentum": momentum})

        self.state = {
            peer.MODEL: self.model,
            peer.VALID_MODEL: copy.deepcopy(self.model),
            peer.LOSS: peer.label_smoothing_loss(0.2),
            peer.OPTS: [optimizer(is_bias[False], 1), optimizer(is_bias[True], 64)],
        }
        average = peer.update_ema(momentum=0.99, update_freq=5)
        self.steps = (peer.forward(training_mode=True), peer.backward(), peer.opt_steps, average)


class OurTrainer:
    """Our model, loss, optimizer and moving average in `dtype`."""

    def __init__(self, recipe: Recipe, dataset: Dataset, dtype: torch.dtype, total_steps: int) -> None:
        self.recipe = recipe
        model = build_model(recipe, len(dataset.classes), dataset.mean, dataset.std)
        self.flat = FlatModel(model, dtype)
        model.fit_whitening(dataset.train.images)
        self.optimizer = FlatSGD(self.flat, recipe, total_steps)
        model.train()

    def take_weights(self, theirs: torch.nn.Module) -> None:
        """Take the trained weights of their network: both list them in the order of the forward pass."""
        trained = ([p for p in model.parameters() if p.requires_grad] for model in (self.flat.model, theirs))
        for mine, other in zip(*trained, strict=True):
            mine.data.copy_(other.data)
        for group in self.flat.groups:
            group.load(group.compute)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Train on a batch; returns the mean loss."""
        loss, _ = cross_entropy(self.flat.model(images), labels, self.recipe.label_smoothing)
        self.flat.backward(loss)
        self.optimizer.step()
        return loss.detach() / len(images)


def ghost_order(batch: int, ghost_batch: int) -> torch.Tensor:
    """Return the places in a batch of our consecutive ghost groups' images: theirs take every (batch/ghost)-th one."""
    return torch.arange(batch).view(ghost_batch, batch // ghost_batch).T.reshape(-1)


def compare_losses(checkout: str | Path, data_dir: str | None, steps: int = 20) -> list[tuple[float, float]]:
    """Return the mean losses (theirs, ours) of each of `steps` training steps from the same weights and batches.

    They are computed in float64, because float32 rounding alone grows to 1e-4 in 20 steps, and at an eighth of the
    width, for time: widths change no formula.
    """
    recipe = get_recipe("davidnet")
    narrow = tuple(width // 8 for width in recipe.network.widths)
    recipe = dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, widths=narrow))
    dataset = load_dataset("cifar10", data_dir)
    steps_per_epoch = len(dataset.train) // recipe.batch_size
    torch.manual_seed(0)
    ours = OurTrainer(recipe, dataset, torch.float64, round(steps_per_epoch * recipe.epochs))
    whitening = ours.flat.model.get_parameter("whitening.weight").detach().contiguous()
    theirs = PeerTrainer(load_peer(checkout), recipe, whitening, steps_per_epoch)
    ours.take_weights(theirs.model)
    order = ghost_order(recipe.batch_size, recipe.network.ghost_batch)
    losses = []
    facts = {"mean": dataset.mean, "std": dataset.std, "dtype": torch.float64}
    loader = Loader(dataset.train, recipe.batch_size, augment=recipe.augment, **facts)
    for images, labels in itertools.islice(loader, steps):
        their_loss = theirs.step(images.contiguous(), labels)
        our_loss = ours.step(images[order].contiguous(memory_format=torch.channels_last), labels[order])
        losses.append((their_loss.item(), our_loss.item()))
    return losses


def compare_first_losses(
    checkout: str | Path, data_dir: str | None, steps: int = 20, images: str = "cifar10"
) -> list[tuple[float, float]]:
    """Return the same of the 18-layer network, at an eighth of the width."""
    recipe = get_recipe("myrtle-single-norm")
    widths = [width // 8 for width in recipe.network.widths]
    recipe = change(recipe, {"network.widths": widths, "network.norm_precision": "single"})
    dataset = load_dataset(images, data_dir)
    steps_per_epoch = -(-len(dataset.train) // recipe.batch_size)
    torch.manual_seed(0)
    ours = OurTrainer(recipe, dataset, torch.float64, round(steps_per_epoch * recipe.epochs))
    theirs = BaselineTrainer(Path(checkout), widths, 128, steps_per_epoch)
    ours.take_weights(theirs.model)
    facts = {"mean": dataset.mean, "std": dataset.std, "dtype": torch.float64}
    loader = Loader(dataset.train, recipe.batch_size, augment=recipe.augment, **facts)
    losses = []
    for batch, labels in itertools.islice(loader, steps):
        their_loss = theirs.step(batch.contiguous(), labels)
        losses.append((their_loss.item(), ours.step(batch, labels).item()))
    return losses


def notebook_cell(path: Path, having: str) -> str:
    """Return the code of the first cell of a notebook that holds a text. Raises UserError where there is none."""
    cells = json.loads(read_code(path, ()))["cells"]
    code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = next((text for text in code if having in text), None)
    if found is None:
        raise UserError(f"{path} is not the version these shims are for: it lacks {having!r}")
    return found


def main() -> int:
    parser = new_parser("bench.peers.cifar10_fast", __doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("what", choices=["equal"])
    parser.add_argument("--data-dir")
    arguments = parser.parse_args()
    differ = False
    for name, compare in (("davidnet", compare_losses), ("myrtle-single-norm", compare_first_losses)):
        losses = compare(arguments.checkout, arguments.data_dir)
        for step, (theirs, ours) in enumerate(losses, start=1):
            print(f"{name} step {step:2d}  theirs {theirs:.9f}  ours {ours:.9f}")
        worst = max(abs(a - b) / a for a, b in losses)
        print(f"{name}: {len(losses)} steps, largest relative difference {worst:.1e}; allowed 1e-5")
        differ |= not worst < 1e-5
    return int(differ)


if __name__ == "__main__":
    run_program("bench.peers.cifar10_fast", main)
