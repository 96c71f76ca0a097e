"""`fastcifar data verify`: all of a data set read and looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastcifar.catalogue import DEFAULT_DATASET, find, is_path
from fastcifar.cli.arguments import parse
from fastcifar.cli.data_list import sets_here
from fastcifar.cli.options import ImageOptions, Switch
from fastcifar.cli.streams import wrapped
from fastcifar.errors import DamagedData, UserError, brief
from fastcifar.escape import shown
from fastcifar.registry import resolve

_Line = tuple[str, str, str]
"""How it is ("ok", "note" or "wrong"), what was looked at, and what was found."""


@dataclass(frozen=True)
class Options(ImageOptions):
    """Read all of a data set and say what was verified and how: files against published checksums, the labels, images
    of one color, and images that are in two splits, to the last byte. Exit status 1: something is wrong, which in a set
    of your own an image in two splits, one of one color and a class without training images are too."""

    all: Switch = False
    """Verify every set that is here."""
    json: Switch = False
    """Print a JSON array, an object for each set, and nothing else to standard output."""


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar data verify")
    if options.all and options.dataset != DEFAULT_DATASET:
        raise UserError(f"--all is given with --dataset {brief(options.dataset)}; allowed: one of them")
    names = sets_here(options.data_dir) if options.all else [options.dataset]
    if not names:
        raise UserError("no data set is here; allowed: --data-dir with the folder of one, or --dataset with its path")
    results = []
    for name in names:
        facts, lines = _verify(name, options)
        results.append({"dataset": name, **facts, "findings": [dict(zip(_KEYS, line, strict=True)) for line in lines]})
        if not options.json:
            print("\n" * (len(results) > 1) + f"{shown(name)}: {shown(facts.get('source', 'not read'))}")
            for status, what, said in lines:
                print(wrapped(shown(said), f"{status:<6}{what:<8}", " " * 14))
    if options.json:
        print(json.dumps(results, indent=2))
    return int(any(line["status"] == "wrong" for result in results for line in result["findings"]))


_KEYS = ("status", "what", "found")


def _verify(name: str, options: Options) -> tuple[dict[str, Any], list[_Line]]:
    """Return the facts about a data set, and what is to be said of it. Raises UserError where it is not here."""
    from fastcifar.data.anew import READ_ANEW
    from fastcifar.data.verify import examine

    (entry, variant), before = find(name), READ_ANEW.set(True)
    try:
        if entry.look and not variant:
            return _look(resolve(entry.look)(options.data_dir, options.mirror))
        dataset = options.whole(name)
    except DamagedData as error:
        return {}, [("wrong", "files", str(error))]
    finally:
        READ_ANEW.reset(before)
    facts = examine(dataset)
    how = dataset.verified or "no checksums of it are published: read whole, of the right sizes and labels"
    lines = [("ok", "files", how), *_lines(facts, dataset.classes, "wrong" if is_path(name) else "note")]
    return {"source": dataset.source, "verified": dataset.verified, "sha256": dataset.sha256, **facts}, lines


def _look(found: tuple[str, str, list[str], list[str]]) -> tuple[dict[str, Any], list[_Line]]:
    """Return the facts about a set that is read by its variants, and what is to be said of it."""
    source, how, there, lacking = found
    lines: list[_Line] = [("ok", "files", how), ("ok", "test", f"{len(there)} corruptions, each at 5 severities")]
    if lacking:
        lines.append(("note", "test", f"lacks {', '.join(lacking)}"))
    return {"source": source, "verified": how, "corruptions": there, "lacking": lacking}, lines


def _lines(facts: dict[str, Any], classes: Sequence[str], bad: str) -> Iterator[_Line]:
    """Give what is to be said; `bad` is how that is which is wrong in a set of one's own."""
    for name, split in facts["splits"].items():
        counts, unlabeled = split["counts"], split["unlabeled"]
        each = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
        said = [f"{split['images']:,} images, {each} of each of {len(classes):,} classes"]
        said += [f"{unlabeled:,} unlabeled"] * bool(unlabeled)
        lacking = [classes[label] for label, count in enumerate(counts) if not count and name == "train"]
        if lacking:
            said.append(f"none of {', '.join(lacking[:5])}" + f" and {len(lacking) - 5:,} more" * (len(lacking) > 5))
        yield bad if lacking else "ok", name, ", ".join(said)
        if count := split["one_color"]["images"]:
            yield bad, name, f"{count:,} images of one color: {_places(split['one_color']['places'], count)}"
        if split["repeated"]:
            yield "note", name, f"{split['repeated']:,} images are the same as an earlier one, to the last byte"
    for names, shared in facts["shared"].items():
        first, second = names.split(" and ")
        count, others = shared["images"], shared["other_labels"]
        if count:
            where = _places([place for place, _ in shared["places"]], count)
            labels = f", {others:,} of them with another label there" if others else ""
            yield bad, second, f"{count:,} images are in {first} too, to the last byte{labels}: {where}"
        else:
            yield "ok", second, f"no image is in {first} too, to the last byte"


def _places(places: list[int], count: int) -> str:
    return f"image {', '.join(map(str, places))}" + " ..." * (count > len(places)) + " (from 0)"
