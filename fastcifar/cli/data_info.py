"""`fastcifar data info`: what a data set holds and where it was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastcifar.cli.arguments import parse
from fastcifar.cli.options import ImageOptions, Switch
from fastcifar.escape import shown

_LONGEST = 60
"""Characters of a class's name; a longer one is cut."""


@dataclass(frozen=True)
class Options(ImageOptions):
    """Load a data set, check it, and say what it holds and where it was found."""

    json: Switch = False
    """Print a JSON object and nothing else to standard output."""


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar data info")

    from fastcifar.data import describe, load_dataset

    dataset = load_dataset(options.dataset, options.data_dir, "cpu", 0, options.mirror)
    facts = describe(dataset if options.resize is None else dataset.resize(options.resize))
    print(json.dumps(facts, indent=2) if options.json else _text(facts))
    return 0


def _text(facts: dict[str, Any]) -> str:
    height, width, _ = facts["image_shape"]
    lines = [
        f"{shown(facts['name'])}: {shown(facts['source'])}",
        f"{facts['train_size']:,} training and {facts['test_size']:,} test images, {height} x {width}, red green blue",
        f"mean {_numbers(facts['mean'])}, standard deviation {_numbers(facts['std'])} of 255",
        f"sha256 {facts['sha256']}",
        *([f"verified by {facts['verified']}"] if facts["verified"] else []),
        "",
    ]
    names = [shown(name, _LONGEST) for name in facts["classes"]]
    width = max(12, *(len(name) + 1 for name in names))
    lines += [f"label  {'class':<{width}}{'train':>7}{'test':>7}"]
    rows = zip(names, facts["train_counts"], facts["test_counts"], strict=True)
    lines += [f"{label:5}  {name:<{width}}{train:7,}{test:7,}" for label, (name, train, test) in enumerate(rows)]
    return "\n".join(lines)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
