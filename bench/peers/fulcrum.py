"""fulcrumresearch/cifar-10-speedrun: its recipes e1, which holds the record, and e5, of hiverge's family.

Timed is what their rule counts: each training's preparations (its weights, the whitening, and all of e1's augmented
batches) and its steps. What is built, compiled and captured once in a process does not count, nor does the evaluation,
which is ours: airbench's six views, of all test images (their rule asks for the accuracy on the last 8,000).
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bench.peers.adapt import Shims, half_newton_schulz, in_half, load_program
from bench.peers.harness import PLAIN, WITH_TTA, Harness
from fastcifar.recipes import EvaluateConfig
from fastcifar.training import evaluate

_TTA = EvaluateConfig(tta="flip-crop", batch_size=2000)
SHIMS: Shims = [
    ("if not os.path.exists(data_path):", "if False:"),
    ('torch.load(data_path, map_location=torch.device("cuda"), weights_only=True)', "_harness.split(train)"),
    # Only a training has a context; steps taken for the sake of compiling have none.
    (
        "            if ctx is not None:\n                if step == ema_start:",
        "            if ctx is not None:\n                _harness.step_done()\n                if step == ema_start:",
    ),
]
E1_SHIMS: Shims = [
    *SHIMS,
    # In its loop over the graphs of single steps.
    ("        step = s + 1\n        if step", "        step = s + 1\n        _harness.step_done()\n        if step"),
]
ON_CPU: Shims = [  # float16 is emulated on a CPU: images are of its `cpu_type`, weights float32 (see `in_half`)
    ("mod.half()", "mod.float()"),
    (".half()", ".to(_cpu_type)"),
    ("torch.half", "torch.float32"),  # the momentum
    ('device="cuda"', 'device="cpu"'),
    ("torch.compile", "_harness.compile"),
]

Extra = dict[str, Any]  # by name: what their `setup` returns beside the network


def load_e1(checkout: Path, harness: Harness) -> Callable[[int], None]:
    return E1(_load(checkout, "e1", E1_SHIMS, harness), harness).train


def load_e5(checkout: Path, harness: Harness) -> Callable[[int], None]:
    return E5(_load(checkout, "e5", SHIMS, harness), harness).train


class E5:
    """Trainings by their hooks.

    On CUDA with what `setup` makes once. On a CPU, where nothing is compiled and each training may be given other
    images, with a new network and a new loader, and without their warm-up.
    """

    def __init__(self, module: ModuleType, harness: Harness) -> None:
        self.module, self.harness = module, harness
        self.on_cpu = harness.device.type == "cpu"
        self.built = None if self.on_cpu else module.setup()

    def train(self, seed: int) -> None:
        """Time one training and note its accuracies; the harness has seeded the generators."""
        harness = self.harness
        model, extra = self.built or self._build()
        bias_steps = harness.bias_steps(extra["whiten_bias_train_steps"])
        extra = {**extra, "whiten_bias_train_steps": bias_steps}
        extra["train_loader"].epoch = 0  # whose parity says which epochs are mirrored
        starter, ender = harness.Event(), harness.Event()
        harness.synchronize()
        starter.record()
        self._prepare(model, extra)
        self._steps(model, extra)
        ender.record()
        harness.synchronize()
        starter.elapsed_time(ender)
        with harness.evaluation():
            mean, std = (values.mul(255).tolist() for values in (self.module.CIFAR_MEAN, self.module.CIFAR_STD))
            found = evaluate(model, harness.dataset.test, _TTA, mean=mean, std=std)
        harness.accuracies = {PLAIN: found.plain_accuracy, WITH_TTA: found.accuracy}

    def _prepare(self, model: nn.Module, extra: Extra) -> None:
        self.module.reset_all(model, extra["train_loader"], *extra["optimizers"])

    def _steps(self, model: nn.Module, extra: Extra) -> None:
        self.module.train(model, extra, Unheard())

    def _build(self) -> tuple[nn.Module, Extra]:
        module, hyp = self.module, self.module.hyp
        model = in_half(module.Model().to(self.harness.device, memory_format=torch.channels_last))
        loader = module.CifarLoader("cifar10", batch_size=hyp["batch_size"], aug=hyp["aug"])
        next(iter(loader))  # keeps the normalized and padded images, which by their rule is no part of a training
        total, decay, bias = (
            ceil(hyp[name] * len(loader)) for name in ("train_epochs", "decay_epochs", "whiten_bias_epochs")
        )
        steps = {"total_train_steps": total, "decay_steps": decay, "whiten_bias_train_steps": bias}
        return model, {"optimizers": module.make_optimizers(model, decay), "train_loader": loader, **steps}


class E1(E5):
    """On CUDA a whole training is one graph, and timed steps are its graphs of one step each; on a CPU all steps are
    those of its plain loop, which otherwise warms these graphs up."""

    def _prepare(self, model: nn.Module, extra: Extra) -> None:
        if self.on_cpu:
            super()._prepare(model, extra)
        else:
            self.module.setup()  # which but for the first time only prepares a training, its batches too

    def _steps(self, model: nn.Module, extra: Extra) -> None:
        module, harness = self.module, self.harness
        total, decay, bias = (extra[name] for name in ("total_train_steps", "decay_steps", "whiten_bias_train_steps"))
        if self.on_cpu:
            how = {"ctx": Unheard(), "lr_floor": module.hyp["lr_floor"]}
            module.run_steps(model, extra["train_loader"], *extra["optimizers"], decay, bias, total, **how)
        elif harness.limit is None:
            super()._steps(model, extra)
            harness.steps_done = total
        else:
            graphs = extra["fullstep"]
            graphs.prepare()
            graphs.wbts = bias
            module.run_steps_stepdata(model, extra["epoch_data"], graphs, total, decay)


class Unheard:
    """The context that a training of theirs reports to."""

    def validate(self, model: nn.Module, step: int) -> None:
        """Do nothing: by their rule a timed training is not evaluated on the way."""


def _load(checkout: Path, name: str, shims: Shims, harness: Harness) -> ModuleType:
    path = checkout / "runners" / "recipes" / f"{name}.py"
    module = load_program(path, shims, ON_CPU, harness, f"fulcrum_{name}")
    if harness.device.type == "cpu":
        half_newton_schulz(module)
    return module
