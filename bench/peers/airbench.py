"""KellerJordan/cifar10-airbench, its variants, and hiverge/cifar10-speedrun, which descends from it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from bench.peers.adapt import Shims, half_newton_schulz, in_half, load_program
from bench.peers.harness import WITH_TTA, Harness

DATA = [("if not os.path.exists(data_path):", "if False:"), ("torch.cuda.Event(", "_harness.Event(")]
"""No file is looked for, and their stopwatch is one that can be read. The call that loads the file comes with each."""

# float16 is emulated on a CPU: images are of its `cpu_type`, weights float32 (see `in_half`).
ON_CPU = [
    (".half()", ".to(_cpu_type)"),
    ("torch.cuda.synchronize()", "_harness.synchronize()"),
]
ON_CPU_OLDER = [("net.half()", "_in_half(net)"), *ON_CPU, (".cuda()", "")]

MUON: Shims = [
    *DATA,
    ('torch.load(data_path, map_location=torch.device("cuda"))', "_harness.split(train)"),
    ("ceil(3 * len(train_loader))", "_harness.bias_steps(ceil(3 * len(train_loader)))"),
    ("            step += 1\n", "            step += 1\n            _harness.step_done()\n"),
]
MUON_ON_CPU: Shims = [("mod.half()", "mod.float()"), *ON_CPU, ("torch.compile", "_harness.compile")]

OLDER: Shims = [
    *DATA,
    ("torch.load(data_path, map_location=torch.device(gpu))", "_harness.split(train)"),
    ("            current_steps += 1\n", "            current_steps += 1\n            _harness.step_done()\n"),
]

FASTER: Shims = [
    *DATA,
    ("torch.load(data_path, map_location='cuda')", "_harness.split(train)"),
    # In the large network's loop alone: the small one's counts its steps in the same words, without what follows here.
    ("        if current_steps % 5 == 0:\n", "        _harness.step_done()\n        if current_steps % 5 == 0:\n"),
]

SPEEDRUN: Shims = [
    *DATA,
    ('torch.load(data_path, map_location=torch.device("cuda"), weights_only=True)', "_harness.split(train)"),
    ("ceil(0.19 * len(train_loader))", "_harness.bias_steps(ceil(0.19 * len(train_loader)))"),
    ("            step += 1\n", "            step += 1\n            _harness.step_done()\n"),
]
SPEEDRUN_ON_CPU: Shims = [
    ("mod.half()", "mod.float()"),
    *ON_CPU,
    ("torch.half", "torch.float32"),  # the momentum
    ('device="cuda"', 'device="cpu"'),
    (".pin_memory()", ""),
    ("torch.compile", "_harness.compile"),
]

Train = Callable[[int], None]
"""It trains once from a seed, by their own code; its times and accuracies are left in the harness."""


def load_96_faster(checkout: Path, harness: Harness) -> Train:
    """Load the program that trains a small network, which chooses the images, then the large one, whose steps count."""
    on_cpu = [*ON_CPU_OLDER, ("torch.compile", "_harness.compile")]
    module = _load(checkout / "airbench96_faster.py", FASTER, on_cpu, harness)
    compiled = harness.compile if harness.device.type == "cpu" else torch.compile
    proxy, trains_bias, freezes_bias = (module.make_net(module.hyp[name]) for name in ("proxy", "net", "net"))
    for model in (proxy, freezes_bias):
        model[0].bias.requires_grad = False
    models = [compiled(model, mode="max-autotune") for model in (proxy, trains_bias, freezes_bias)]
    optim = module.hyp["opt"]
    epochs = optim["train_epochs"]

    def train(seed: int) -> None:
        trains_bias[0].bias.requires_grad = harness.limit is None
        optim["train_epochs"] = epochs
        if harness.limit is not None:  # the small network's steps are limited by this alone
            steps_per_epoch = len(harness.split(train=True)["images"]) // optim["batch_size"]
            optim["train_epochs"] = (harness.limit + 0.5) / steps_per_epoch
        module.main(seed, module.hyp, *models)

    return train


def _with_one_model(file: str, shims: Shims, on_cpu: Shims, checkout: Path, harness: Harness) -> Train:
    """Load one of the newer programs: one model, compiled once, whose weights each run draws anew."""
    module = _load(checkout / file, shims, on_cpu, harness)
    model = module.CifarNet().to(harness.device).to(memory_format=torch.channels_last)
    if harness.device.type == "cuda":
        model.compile(mode="max-autotune")
    else:
        in_half(model)
        half_newton_schulz(module)

    def train(seed: int) -> None:
        module.main(seed, model)

    return train


load_muon = partial(_with_one_model, "airbench94_muon.py", MUON, MUON_ON_CPU)
load_speedrun = partial(_with_one_model, "cifar10_speedrun.py", SPEEDRUN, SPEEDRUN_ON_CPU)


def _with_a_new_model(file: str, checkout: Path, harness: Harness) -> Train:
    module = _load(checkout / "legacy" / file, OLDER, ON_CPU_OLDER, harness)
    epochs = module.hyp["opt"]["whiten_bias_epochs"]

    def train(seed: int) -> None:
        module.hyp["opt"]["whiten_bias_epochs"] = epochs if harness.limit is None else 0
        module.main(seed)

    return train


load_95, load_96 = (partial(_with_a_new_model, file) for file in ("airbench95.py", "airbench96.py"))


def _load(path: Path, shims: Shims, on_cpu: Shims, harness: Harness) -> ModuleType:
    module = load_program(path, shims, on_cpu, harness, _in_half=in_half)
    evaluate = module.evaluate

    def noted(model, loader, tta_level=0):
        with harness.evaluation() if tta_level == WITH_TTA else nullcontext():
            accuracy = evaluate(model, loader, tta_level)
        harness.accuracies[tta_level] = accuracy
        return accuracy

    module.evaluate = noted
    return module
