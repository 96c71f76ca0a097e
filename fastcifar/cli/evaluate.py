"""`fastcifar eval RUN_DIR`: the saved network's accuracy, measured again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fastcifar.cli.arguments import parse
from fastcifar.cli.options import CommandOptions, Switch, read_fold
from fastcifar.cli.screen import share
from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.output import run_files, user_path
from fastcifar.recipes import DEFAULT_RECIPE, label


@dataclass(frozen=True)
class Options(CommandOptions):
    """Evaluate the network of a saved run again, on the images that the run tested on."""

    run_dir: Annotated[Positional[str], arg(metavar="RUN_DIR", help_behavior_hint="")] = ""
    """The folder of the run, which holds run.json and model.safetensors, or a run whose weights an experiment kept, as
    in runs/half/warm/seed-0."""
    weights: Annotated[str | None, arg(metavar="PATH", help_behavior_hint="(default: the run's)")] = None
    """Other weights for the run's network: those of one of its epochs, another run's folder, or a .safetensors, .pt,
    .pth or .ckpt file."""
    tta: Annotated[Literal["none", "flip", "flip-crop"] | None, arg(help_behavior_hint="(default: the run's)")] = None
    """Test-time augmentation: none, or the mean logits of each image and its mirror image, or of these and shifted
    ones."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds it; without one, CIFAR is looked for in the user's cache, then downloaded."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device to evaluate on; auto: a GPU if there is one."""
    json: Switch = False
    """Print a JSON object and nothing else to standard output."""


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar eval")
    if not options.run_dir:
        raise UserError(
            f"eval needs the folder of a saved run, as in: fastcifar eval runs/{DEFAULT_RECIPE}-20250101-120000-0"
        )
    folder = user_path(options.run_dir, "RUN_DIR")
    record_file, _ = run_files(folder)
    if not os.path.isfile(record_file):
        allowed = "a folder that fastcifar train wrote, or a run that an experiment kept, as in DIR/warm/seed-0"
        raise UserError(f"{folder} holds no run: {record_file.name} is missing; allowed: {allowed}")

    from fastcifar.data import load_dataset
    from fastcifar.optim import FlatModel
    from fastcifar.training import evaluate, load_run, load_weights, resolve_device, resolve_dtype

    device = resolve_device(options.device)
    recipe, model, record = load_run(folder)
    if options.weights is not None:
        load_weights(model, options.weights)
    data = record.dataset
    dataset = load_dataset(data.name, options.data_dir, device, 0 if data.fold else data.holdout)
    dataset = dataset.fold(*read_fold(data.fold, "the run's fold")) if data.fold else dataset
    classes = (record.subset or {}).get("classes")
    if isinstance(classes, list):
        dataset = dataset.take(classes=classes)
    dataset = dataset.resize(data.resized) if data.resized else dataset
    dtype = resolve_dtype(recipe.dtype, device, record.dtype)  # the run's own, so that rounding is the same too
    model = FlatModel(model.to(device), dtype).model
    tta = options.tta or recipe.evaluate.tta
    evaluation = evaluate(model, dataset.test, replace(recipe.evaluate, tta=tta))
    stored = {"none": record.accuracy, recipe.evaluate.tta: record.tta_accuracy}.get(tta)
    if dataset.sha256 != record.dataset.sha256 or options.weights is not None:
        stored = None  # other images or weights: nothing to compare with

    images = len(dataset.test)
    if options.json:
        result = {
            "run": str(folder),
            "weights": options.weights,
            "dataset": dataset.name,
            "holdout": dataset.holdout,
            "images": images,
            "tta": tta,
            "accuracy": evaluation.accuracy,
            "stored_accuracy": stored,
            "loss": evaluation.loss,
        }
        print(json.dumps(result, indent=2))
        return 0
    tests = f"{images:,} {'held-out' if dataset.holdout else 'test'} images of {shown(dataset.name)}"
    run_said = "" if stored is None else f"; the run said {stored:.2%}"
    print(f"{label(recipe)}  {share(evaluation.accuracy)} (tta {tta}) on {tests}{run_said}")
    return 0
