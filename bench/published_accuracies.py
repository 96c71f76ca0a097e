"""Make fastcifar/report/published.csv: right answers of published networks on CIFAR-10's test images and on CIFAR-10.1.

    python -m bench.published_accuracies CHECKOUT > fastcifar/report/published.csv

CHECKOUT is a clone of https://github.com/modestyachts/CIFAR-10.1, which holds the predictions, a JSON list of labels
for each network and set, and the labels of CIFAR-10.1. CIFAR-10 is looked for as `fastcifar train` looks for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from bench.program import run_program
from fastcifar.data import load_dataset
from fastcifar.errors import UserError
from fastcifar.output import read_file

SETS = {"cifar10": "original", "cifar10.1": "v6", "cifar10.1:v4": "v4"}
"""The names of the data sets here and in the checkout."""
HEAD = """\
# Right answers of the networks of Recht, Roelofs, Schmidt and Shankar (2018), "Do CIFAR-10 Classifiers Generalize to
# CIFAR-10?", arXiv 1806.00451, counted by bench/published_accuracies.py from the predictions and labels in
# https://github.com/modestyachts/CIFAR-10.1 (MIT license, Copyright (c) 2018 modestyachts; of its folder of data only
# the labels were read).
"""


def table(checkout: Path, original: np.ndarray) -> str:
    """Return the table: the numbers of images, then a line for each network, in the order of their names.

    original: labels of CIFAR-10's test images.

    Raises UserError for a file that is missing or holds anything but a label for each image.
    """
    first, *others = SETS.values()
    labels = {first: original}
    labels |= {name: np.load(checkout / f"datasets/cifar10.1_{name}_labels.npy") for name in others}
    lines = [",".join(["model", *SETS]), ",".join(["images", *(str(len(each)) for each in labels.values())])]
    folders = {name: checkout / f"model_predictions/{name}_predictions" for name in labels}
    ending = "_predictions.json"
    for path in sorted(folders[first].glob(f"*{ending}")):
        counts = (_count(folders[name] / path.name, labels[name]) for name in labels)
        lines.append(",".join([path.name.removesuffix(ending), *map(str, counts)]))
    return HEAD + "\n".join(lines) + "\n"


def _count(path: Path, labels: np.ndarray) -> int:
    predictions = np.array(json.loads(read_file(path, "the predictions")))
    if predictions.dtype.kind != "i" or predictions.shape != labels.shape or {*predictions.tolist()} - {*range(10)}:
        raise UserError(f"{path} is {predictions.dtype} {list(predictions.shape)}; allowed: {len(labels)} labels")
    return int((predictions == labels).sum())


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.published_accuracies", description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    labels = load_dataset("cifar10", arguments.data_dir).test.labels.numpy()
    sys.stdout.write(table(arguments.checkout, labels))
    return 0


if __name__ == "__main__":
    run_program("bench.published_accuracies", main)
