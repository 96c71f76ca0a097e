"""A tutorial on transfer learning (pystatsml's) in one program: ResNet-18 with weights that were learned elsewhere, all
of it trained further or its classifier alone, by SGD and by Adam, on CIFAR-10.

    python examples/transfer/tutorial.py                   # as the tutorial: 5 epochs of 50,000 images
    python examples/transfer/tutorial.py --scale quick     # 5 epochs of 5,000 images, for a CPU
    python examples/transfer/tutorial.py --scale small     # 200 images that are made: does it run?

The weights are ImageNet's, as torchvision has them, where their file is on this machine (docs/transfer.md: where to put
it). Else this program first trains a network on CIFAR-100, a narrower one for a CPU, and where that cannot be had
on images that are made.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.input import published
from fastcifar.report import Table

IMAGENET = "torchvision:IMAGENET1K_V1"
TUTORIAL = {
    "finetune-sgd": ("78.90%", "31m43s"),
    "finetune-adam": ("80.49%", "31m9s"),
    "extract-sgd": ("46.44%", "8m6s"),
    "extract-adam": ("46.43%", "7m59s"),
}
"""The recipes of its four trainings, with its best validation accuracies and its times."""
EPOCHS = {"whole": 5, "quick": 5, "small": 1}
WIDTHS = {"whole": 64, "quick": 16, "small": 4}
"""Of the network that is trained here where there are no ImageNet weights."""


def read_data(scale: str, name: str) -> fastcifar.Dataset:
    if scale == "small":
        return make_synthetic(train_size=200, test_size=50)
    data = fastcifar.load_dataset(name)
    return data.take(5_000, seed=0) if scale == "quick" else data


def read_other_data(scale: str) -> fastcifar.Dataset:
    """Return images of other classes, to learn weights from."""
    if scale != "small":
        try:
            data = fastcifar.load_dataset("cifar100")
            return data.take(20_000, seed=0) if scale == "quick" else data
        except fastcifar.UserError as error:
            print(f"no CIFAR-100, so the first weights are those of made images, which help little: {error}")
    return make_synthetic(train_size=200 if scale == "small" else 5_000, test_size=50, seed=1)


def find_weights(scale: str, folder: Path) -> str | Path:
    """Return the ImageNet weights where they are here, else a run on other images, saved in `folder`."""
    if scale != "small":
        try:
            published(IMAGENET)
            return IMAGENET
        except fastcifar.UserError as error:
            print(error)
    data = read_other_data(scale)
    print(f"a network is trained on {len(data.train):,} images of {data.title} first")
    changes: dict[str, Any] = {"network.width": WIDTHS[scale], "epochs": 2 * EPOCHS[scale]}
    return fastcifar.train("finetune-adam", data, **changes, eval_every=0).save(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(EPOCHS), default="whole")
    parser.add_argument("--data", default="cifar10", help="a data set's name or path; not read with --scale small")
    given = parser.parse_args()
    data, rows = read_data(given.scale, given.data), []
    with tempfile.TemporaryDirectory() as folder:
        weights = find_weights(given.scale, Path(folder) / "first")
        start = fastcifar.WarmStart(weights, reset_head=True)
        for name, (accuracy, time) in TUTORIAL.items():
            recipe = fastcifar.change(fastcifar.recipe_for(weights, name), {"epochs": EPOCHS[given.scale]})
            run = fastcifar.train(recipe, data, init=start)
            best = max(run.accuracies["test"].values())
            trained = "the classifier" if recipe.freeze == "backbone" else "all"
            rows.append((name, trained, f"{best:.2%}", accuracy, f"{run.process_seconds:.1f} s", time))
            print(f"{name}: {best:.2%}")
    heads = ("recipe", "trained", "best test accuracy", "the tutorial's", "time, all included", "the tutorial's, a CPU")
    title = f"Epochs {EPOCHS[given.scale]}, images {len(data.train):,} of {data.title}; the tutorial: 5 and 50,000"
    Table(title, heads, tuple(rows)).show()


if __name__ == "__main__":
    try:
        main()
    except fastcifar.UserError as error:
        sys.exit(f"error: {error}")
