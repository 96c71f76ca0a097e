"""`fastcifar data info`: what a data set holds and where it was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastcifar.cli.arguments import parse
from fastcifar.cli.options import ImageOptions, Switch
from fastcifar.escape import shown
from fastcifar.output import short_name

if TYPE_CHECKING:
    from fastcifar.data import Split

_LONGEST = 60
"""Characters of a class's name; a longer one is cut."""
_MOST = 200
"""Classes that are listed."""
_FIRST = 1_000
"""Images by which a set is said to be grey."""


@dataclass(frozen=True)
class Options(ImageOptions):
    """Load a data set, check it, and say what it holds and where it was found."""

    json: Switch = False
    """Print a JSON object and nothing else to standard output."""


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar data info")

    from fastcifar.data import describe

    dataset = options.whole()
    splits = [split for split in (dataset.train, dataset.test, dataset.val) if split is not None]
    first = next(split for split in splits if len(split)).first(_FIRST)[:_FIRST]
    facts = {
        **describe(dataset),
        "normalized_with": {"mean": list(dataset.mean), "std": list(dataset.std)},
        "unlabeled": {name: _unlabeled(getattr(dataset, name)) for name in ("train", "test", "val")},
        "grey": bool((first == first[..., :1]).all()),
        "bytes": sum(split.nbytes + split.labels.nbytes for split in splits),
    }
    print(json.dumps(facts, indent=2) if options.json else _text(facts))
    return 0


def _unlabeled(split: Split | None) -> int:
    return 0 if split is None else len(split) - int(split.labeled.sum())


def _text(facts: dict[str, Any]) -> str:
    height, width, _ = facts["image_shape"]
    sizes = {"training": facts["train_size"], "validation": facts["val_size"] or 0, "test": facts["test_size"]}
    held = [f"{size:,} {name}" for name, size in sizes.items() if size or name != "validation"]
    unlabeled = [f"{count:,} of {name}" for name, count in facts["unlabeled"].items() if count]
    colors = f"grey, as far as the first {_FIRST:,} images show" if facts["grey"] else "red green blue"
    given, measured = (
        f"mean {_numbers(each['mean'])}, standard deviation {_numbers(each['std'])} of 255"
        for each in (facts["normalized_with"], facts)
    )
    lines = [
        f"{shown(short_name(facts['name']))}: {shown(facts['source'])}",
        f"{', '.join(held[:-1])} and {held[-1]} images, {height} x {width}, {colors}",
        *([f"without a label: {', '.join(unlabeled)}"] if unlabeled else []),
        f"normalized with {given}",
        *([f"of the training images themselves, {measured}"] if given != measured else []),
        f"{facts['bytes'] / 1e6:,.1f} MB of images and labels, in the memory of the device that they are loaded to",
        f"sha256 {facts['sha256']}",
        *([f"verified by {facts['verified']}"] if facts["verified"] else []),
        "",
    ]
    columns = [name for name in ("train", "val", "test") if facts[f"{name}_counts"] and facts[f"{name}_size"]]
    names = [shown(name, _LONGEST) for name in facts["classes"][:_MOST]]
    width = max(12, *(len(name) + 1 for name in names))
    lines += [f"label  {'class':<{width}}" + "".join(f"{name:>10}" for name in columns)]
    counts = [facts[f"{name}_counts"] for name in columns]
    for label, (name, *numbers) in enumerate(zip(names, *counts, strict=False)):
        lines.append(f"{label:5}  {name:<{width}}" + "".join(f"{number:10,}" for number in numbers))
    if more := len(facts["classes"]) - _MOST:
        lines += [f"... and {more:,} classes more; --json has all"] * (more > 0)
    return "\n".join(lines)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
