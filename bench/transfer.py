"""Measure what weights that were learned on CIFAR-100 are worth on few images of CIFAR-10, and a frozen-feature epoch.

    python -m bench.transfer --data DIR100 DIR10                      # 5 seeds; hours on two CPU cores
    python -m bench.transfer --data DIR100 DIR10 --seeds 2 --pretrain 1 --images 1000 --epochs 1   # to try it
    python -m bench.transfer --data DIR100 DIR10 --save bench/results/transfer.jsonl
    python -m bench.transfer --data DIR100 DIR10 --seeds 0 --pretrain 0.1 --width 64 --stem imagenet   # the last line

A narrow ResNet-18 (width 16, stem for CIFAR) is trained once on CIFAR-100. Then for each seed a cold start, fine-tuning
and feature extraction train on the same images of CIFAR-10, in turn, with the same order of images; the difference to
the cold start is paired by seed. Last, seconds of an epoch of the classifier through the backbone and on features that
are computed once, by the rows' stopwatch, each in one training. All is tested on held-out training images.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.program import add_save_option, new_parser, run_program
from bench.record import append
from fastcifar.data import Dataset, load_dataset, resolve_device
from fastcifar.recipes import Recipe, change, get_recipe
from fastcifar.report.statistics import Summary, summarize
from fastcifar.start import ColdStart, Start, WarmStart
from fastcifar.training import Trainer
from fastcifar.transfer import recipe_for

HOLDOUT = 5000
EXTRACTION: dict[str, Any] = {"freeze": "backbone", "frozen_mode": "once"}


def pretrain(data: Dataset, epochs: float, width: int, stem: str, device: str, folder: Path) -> Path:
    """Train a ResNet-18 on `data`, save the run in `folder`, and return it."""
    network = {"network": "resnet18", "network.width": width, "network.stem": stem}
    recipe = change(get_recipe("warmstart-resnet18"), {**network, "epochs": epochs, "optimizer": "Adam"})
    recipe = change(recipe, {"augment.crop": 4, "augment.flip": "random", "schedule.values": (1.0, 0.0)})
    return Trainer(recipe, data, device).run(eval_every=0).save(folder)


def arms(weights: Path, epochs: float) -> dict[str, tuple[Recipe, Start]]:
    """Return the recipe and the start of each arm, all with Adam at 0.001, and as many epochs."""
    recipe = change(recipe_for(weights), {"optimizer": "Adam", "optimizer.lr": 0.001, "epochs": epochs})
    given = WarmStart(weights, reset_head=None)
    return {
        "cold start": (recipe, ColdStart()),
        "fine-tuned": (recipe, given),
        "features extracted": (change(recipe, EXTRACTION), given),
    }


def epoch_seconds(weights: Path, data: Dataset, epochs: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each epoch but the first of the classifier's training, by the mode of the backbone."""
    start, found = WarmStart(weights, reset_head=None), dict[str, list[float]]()
    for mode in ("eval", "once"):
        recipe = change(recipe_for(weights), {**EXTRACTION, "frozen_mode": mode, "epochs": epochs + 1})
        rows = Trainer(recipe, data, device).run(init=start).rows
        found[mode] = [later.seconds - before.seconds for before, later in itertools.pairwise(rows)]
    return found


def main() -> int:
    parser = new_parser("bench.transfer", __doc__ or "")
    parser.add_argument("--data", nargs=2, required=True, metavar=("DIR100", "DIR10"))
    parser.add_argument("--seeds", type=int, default=5, help="0: only the epochs' seconds")
    parser.add_argument("--pretrain", type=float, default=30, help="epochs on CIFAR-100")
    parser.add_argument("--pretrain-images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=16, help="of the network; ResNet-18's own is 64")
    parser.add_argument("--stem", choices=("cifar", "imagenet"), default="cifar")
    parser.add_argument("--images", type=int, default=5000, help="of CIFAR-10")
    parser.add_argument("--epochs", type=float, default=20, help="on these")
    parser.add_argument("--device", default="auto")
    add_save_option(parser)
    given = parser.parse_args()
    device = str(resolve_device(given.device))
    first, second = (load_dataset(name, where) for name, where in zip(("cifar100", "cifar10"), given.data, strict=True))
    if given.pretrain_images < len(first.train):
        first = first.take(given.pretrain_images, seed=0)
    data = second.hold_out(HOLDOUT).take(given.images, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        weights = pretrain(first, given.pretrain, given.width, given.stem, device, Path(folder) / "pretrained")
        accuracies: dict[str, list[float]] = {}
        trainers = {
            arm: (Trainer(recipe, data, device), start) for arm, (recipe, start) in arms(weights, given.epochs).items()
        }
        for seed in range(given.seeds):
            for arm, (trainer, start) in trainers.items():
                run = trainer.run(seed, init=start, eval_every=0)
                accuracies.setdefault(arm, []).append(100 * (run.accuracy or 0))
                print(f"seed {seed}  {arm:<20} {accuracies[arm][-1]:6.2f}%", flush=True)
        cold = accuracies.get("cold start", [])
        for arm, values in accuracies.items():
            gains = [one - other for one, other in zip(values, cold, strict=True)]
            gain = summarize(gains)
            above = f"against the cold start {_said(gain)} points, n {len(cold)}"
            print(f"{arm:<20} {statistics.fmean(values):6.2f}%  {above}")
            if given.save and arm != "cold start":
                on = f"{given.images:,} images of CIFAR-10, from weights of CIFAR-100"
                what = f"{arm}, {on}: points above the cold start"
                _save(given, device, what, f"{gain.mean:.2f}", _said(gain), gains)
        seconds = epoch_seconds(weights, data, 5, device)
    backbone, once = (statistics.median(seconds[mode]) for mode in ("eval", "once"))
    ratios = [one / other for one, other in zip(seconds["eval"], seconds["once"], strict=True)]
    ratio = f"{backbone / once:.0f} times as fast ({min(ratios):.0f} to {max(ratios):.0f}, {len(ratios)} epochs)"
    print(f"an epoch: {backbone:.3f} s through the backbone, {once:.5f} s on features: {ratio}")
    if given.save:
        network = f"ResNet-18 of width {given.width}, the stem for {given.stem}"
        what = f"an epoch of {given.images:,} images on frozen features against one through the backbone"
        spread = f"{min(ratios):.0f} to {max(ratios):.0f}"
        _save(given, device, f"{what}, {network}: times as fast", f"{backbone / once:.0f}", spread, ratios)
    return 0


def _said(found: Summary) -> str:
    if found.interval is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} ({found.interval[0]:+.2f} to {found.interval[1]:+.2f})"


def _save(given: Any, device: str, what: str, value: str, spread: str, values: list[float]) -> None:
    command = f"python -m bench.transfer --data DIR100 DIR10 --seeds {given.seeds} --pretrain {given.pretrain:g}"
    command += f" --images {given.images} --epochs {given.epochs:g} --width {given.width} --stem {given.stem}"
    facts = {"n": len(values), "spread": spread, "command": command, "table": "transfer", "what": what}
    append(given.save, {**facts, "value": value, "values": values}, device)


if __name__ == "__main__":
    run_program("bench.transfer", main)
