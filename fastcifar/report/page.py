"""One page of HTML about runs, from their records and predictions alone. It holds all that it shows and loads nothing;
every text of a record is escaped. Jinja2, of the extra `report`, is imported to make it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar.by_class import ClassScores
from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.recipes.text import leaves, to_text, to_toml
from fastcifar.record import RunRecord
from fastcifar.report.agreement import HardImage
from fastcifar.report.answers import Answers
from fastcifar.report.calibration import reliability_figure
from fastcifar.report.figures import refuse_without_matplotlib
from fastcifar.report.plots import run_figures
from fastcifar.report.runs import STOPWATCHES, KeptRuns, Runs
from fastcifar.report.summary import data_words, row_names
from fastcifar.report.tables import Table, percent

MARK = '<meta name="generator" content="fastcifar report">'
"""By which a page of ours is known, in its first lines."""
IMAGES = 24
"""The most images that are shown as the hardest, and as the most confused."""
_MOST_CLASSES = 20
"""Classes of a confusion matrix; of more, the pairs that are most often confused."""
_PAIRS = 25
_ANSWERS = 3
"""The most answers that are named of an image."""
_LARGEST = 64
"""The side of an image in pixels from which on it is made smaller."""
_SHORT = 0.005
"""The share of all seconds from which on a phase is shown."""
_NONE = "–"


def refuse_without_packages() -> None:
    """Raise UserError where no page can be made."""
    refuse_without_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise UserError("the page is made by Jinja2, which is not installed: pip install 'fastcifar[report]'") from None


def page(kept: KeptRuns, answers: Sequence[Answers], notes: Iterable[str], where: Iterable[object]) -> str:
    """Return the page.

    answers: what the runs say of test images, each set of images once.
    notes: what is said of the runs first.
    where: the folders of the runs.

    Raises UserError where Jinja2 or matplotlib is missing.
    """
    refuse_without_packages()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def as_text(value: object) -> object:
        return value if isinstance(value, Markup) else shown(value)

    folder = Path(__file__).parent
    style, script = (Markup((folder / f"page.{end}").read_text(encoding="utf-8")) for end in ("css", "js"))
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=as_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = row_names(kept.groups)
    every = [dataclasses.replace(runs, name=name) for runs, name in zip(kept.groups, names, strict=True)]
    groups = [runs for runs in every if runs.records]
    said = [
        {
            "what": each.what,
            "runs": each.runs,
            "missing": each.missing,
            "hardest": [_thumbnail(each, image) for image in each.hardest(IMAGES)],
            "confused": [_thumbnail(each, image) for image in each.most_confused(IMAGES)],
            **calibration(each, f"reliability-{number}"),
        }
        for number, each in enumerate(answers)
    ]
    return made.get_template("page.html.j2").render(
        **{"mark": Markup(MARK), "style": style, "script": script},
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_heading(every, where),
        notes=[*notes, *_left_out(kept)],
        groups=groups_table(every),
        single=runs_table(every) if sum(len(runs.records) for runs in groups) > len(groups) else None,
        failed=[(runs.name, each.seed, each.reason) for runs in every for each in runs.failed],
        figures=[Markup(figure.svg(key)) for key, figure in run_figures(kept.groups).items()],
        differences=differences_table(groups),
        phases=phases(groups),
        confusions=[found for runs in groups if (found := confusion(runs)) is not None],
        answers=said,
        pictured=[each for each in said if each["hardest"] or each["confused"]],
        environments=[environment(runs) for runs in groups],
    )


def groups_table(groups: Sequence[Runs]) -> Table:
    """Return a row for each group of runs: what was trained, how many runs, what they reached and how long it took."""

    def mean(key: str, write: str) -> Callable[[Runs], str | None]:
        return lambda runs: None if (found := runs.summary(key)) is None else write.format(found.mean)

    def one_of(pick: Callable[[list[float]], float]) -> Callable[[Runs], str | None]:
        return lambda runs: f"{pick(values):.2%}" if len(values := runs.values(_metric(runs))) > 1 else None

    def accuracy(runs: Runs) -> str | None:
        return None if (found := runs.summary(_metric(runs))) is None else percent(found)

    columns: dict[str, Callable[[Runs], str | None]] = {
        "recipe": lambda runs: runs.name,
        "data": lambda runs: data_words(runs.records[0]) if runs.records else None,
        "n": lambda runs: str(len(runs.records)),
        "failed": lambda runs: str(len(runs.failed)) if any(each.failed for each in groups) else None,
        "accuracy": accuracy,
        "least": one_of(min),
        "greatest": one_of(max),
        "without TTA": mean("accuracy", "{:.2%}"),
        "log-loss [nats]": mean("tta_loss", "{:.4f}"),
        **{f"{key.removesuffix('_seconds')} [s]": mean(key, "{:,.1f}") for key in STOPWATCHES},
    }
    return _table("Runs that differ in the seed alone; ± half the 95% interval of the mean", columns, groups)


def runs_table(groups: Sequence[Runs]) -> Table:
    """Return a row for each run."""

    def number(key: str, write: str) -> Callable[[tuple[Runs, RunRecord]], str | None]:
        return lambda row: None if (value := getattr(row[1], key)) is None else write.format(value)

    columns: dict[str, Callable[[tuple[Runs, RunRecord]], str | None]] = {
        "recipe": lambda row: row[0].name,
        "started": number("started", "{}"),
        "seed": number("seed", "{}"),
        "accuracy": number("tta_accuracy", "{:.2%}"),
        "without TTA": number("accuracy", "{:.2%}"),
        "validation": number("val_accuracy", "{:.2%}"),
        "log-loss [nats]": number("tta_loss", "{:.4f}"),
        **{f"{key.removesuffix('_seconds')} [s]": number(key, "{:,.1f}") for key in STOPWATCHES},
        "images/s": number("images_per_second", "{:,.0f}"),
        "best epoch": number("best_epoch", "{}"),
    }
    return _table("All runs", columns, [(runs, record) for runs in groups for record in runs.records])


def _table(title: str, columns: Mapping[str, Callable[[Any], str | None]], rows: Sequence[Any]) -> Table:
    """Return a table without the columns that no row has a text for."""
    cells = {head: [text_of(row) for row in rows] for head, text_of in columns.items()}
    cells = {head: texts for head, texts in cells.items() if any(text is not None for text in texts)}
    rows = [tuple(_NONE if text is None else text for text in row) for row in zip(*cells.values(), strict=True)]
    return Table(title, tuple(cells), tuple(rows))


def differences_table(groups: Sequence[Runs]) -> Table | None:
    """Return a row for each field that is not the same for all groups, and a column for each group; None where none
    differs."""
    facts = [_facts(runs.records[0]) for runs in groups]
    names = _all(name for each in facts for name in each)
    differing = [name for name in names if any(each.get(name) != facts[0].get(name) for each in facts)]
    rows = tuple((name, *(_written(each.get(name)) for each in facts)) for name in differing)
    return Table("Fields that differ", ("field", *(runs.name for runs in groups)), rows) if rows else None


def _facts(record: RunRecord) -> dict[str, object]:
    """Return what was asked of a run, and where it ran, by dotted names."""
    data, device = record.dataset, record.device
    fields = {name: value for name, value in leaves(dataclasses.asdict(record.recipe)) if name != "name"}
    fields |= {"data set": data.name, "training images": data.train_size, "held out": data.holdout, "fold": data.fold}
    fields |= {"resized to": data.resized, "device": device.name, "threads": device.threads}
    return fields | {"computed in": record.dtype, "torch": record.versions.torch, "start": _start(record)}


def _written(value: object) -> str:
    """Return a value in words, a text as it is."""
    return _NONE if value in ("", None) else value if isinstance(value, str) else to_text(value)


def _start(record: RunRecord) -> str:
    facts = [f"{name} {value}" for name, value in leaves(record.init) if name not in ("mode", "sha256")]
    return ", ".join([str(record.init.get("mode", "")), *facts])


def phases(groups: Sequence[Runs]) -> list[dict[str, Any]]:
    """Return for each group the mean seconds of its phases with their shares of the longest phase of all groups."""
    found = []
    for runs in groups:
        records = [record for record in runs.records if record.phases]
        names = _all(name for record in records for name in record.phases)
        means = {name: sum(record.phases.get(name, 0.0) for record in records) / len(records) for name in names}
        if means:
            found.append((runs.name, len(records), means))
    longest = max((seconds for *_, means in found for seconds in means.values()), default=0.0) or 1.0
    return [
        {
            **{"name": name, "n": n, "total": f"{sum(means.values()):,.1f} s"},
            "rows": [
                (phase, f"{seconds:,.2f} s", f"{seconds / (sum(means.values()) or 1):.1%}", f"{seconds / longest:.2%}")
                for phase, seconds in _longest_first(means)
            ],
        }
        for name, n, means in found
    ]


def _longest_first(means: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return phases with their seconds, those that are too short to see together."""
    least = _SHORT * sum(means.values())
    found = sorted(((name, seconds) for name, seconds in means.items() if seconds > least), key=lambda pair: -pair[1])
    short = [seconds for seconds in means.values() if seconds <= least]
    return found + ([(f"{len(short)} shorter phase{'s' * (len(short) > 1)}", sum(short))] if short else [])


def confusion(runs: Runs) -> dict[str, Any] | None:
    """Return the confusion matrix of all runs of a group, in shares of each true class; of many classes the pairs that
    are confused most. None where no run has one."""
    classes = runs.records[0].dataset.classes
    shape = (len(classes), len(classes))
    given = [np.array(record.by_class.confusion) for record in runs.records if record.by_class and _is_square(record)]
    matrices = [matrix for matrix in given if matrix.shape == shape]
    if not matrices:
        return None
    total = np.sum(matrices, 0)
    images = total.sum(1)
    found = {"name": runs.name, "n": len(matrices), "images": f"{images.sum():,}", "classes": classes}
    shares = total / np.maximum(images, 1)[:, None]
    wrong = np.where(np.eye(len(classes), dtype=bool), 0.0, shares)
    if len(classes) > _MOST_CLASSES:
        order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
        pairs = [tuple(map(int, np.unravel_index(place, shape))) for place in order if wrong.flat[place]]
        rows = [(classes[a], classes[b], f"{wrong[a, b]:.1%}", f"{total[a, b]:,}", f"{images[a]:,}") for a, b in pairs]
        heads = ("true", "predicted", "share of the true class", "images", "of")
        return found | {"pairs": Table("The most confused pairs of classes", heads, tuple(rows))}
    scores, worst = ClassScores.of(total.tolist()), wrong.max() or 1.0
    rows = []
    for label, name in enumerate(classes):
        cells = []
        for other, count in enumerate(total[label].tolist()):
            is_right, share = label == other, float(shares[label, other])
            heat = share if is_right else share / worst
            said = f"{name} taken for {classes[other]}: {count:,} of {images[label]:,}"
            cells.append((f"{100 * share:.1f}" if count else "", is_right, f"{heat:.3f}", said))
        rows.append((name, cells, f"{images[label]:,}", f"{scores.precision[label]:.1%}"))
    return found | {"pairs": None, "rows": rows}


def _is_square(record: RunRecord) -> bool:
    """Return whether a file has a whole matrix: it may say anything."""
    rows = record.by_class.confusion if record.by_class else ()
    return all(len(row) == len(rows) and all(0 <= count < 2**53 for count in row) for row in rows)


def _thumbnail(answers: Answers, image: HardImage) -> dict[str, Any]:
    """Return what is shown of a test image, with it as a PNG where it is at hand."""
    pixels = answers.images.get(image.image)
    wrong = {answers.classes[answer]: count for answer, count in image.predicted.items() if answer != image.label}
    others = len(wrong) - _ANSWERS
    taken = [f"{name} ×{count:,}" if answers.runs > 1 else name for name, count in list(wrong.items())[:_ANSWERS]]
    return {
        "place": image.image,
        "png": None if pixels is None else _png(pixels),
        "label": answers.classes[image.label],
        "taken": taken + [f"{others} more"] * (others > 0) or ["no other class"],
        "wrong": f"{answers.runs - image.right:,} of {answers.runs:,}" if answers.runs > 1 else "",
    }


def _png(pixels: np.ndarray) -> str:
    """Return an image as base64 of a PNG."""
    from PIL import Image  # comes with matplotlib

    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((_LARGEST, _LARGEST))
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def calibration(answers: Answers, key: str) -> dict[str, Any]:
    """Return the reliability diagram, whose ids begin with `key`, and a table of groups; None where no image has a
    label."""
    from markupsafe import Markup

    found = {group: each for group in answers.groups if (each := group.calibration) is not None}
    if not found:
        return {"reliability": None, "calibration": None}
    rows = []
    for group, each in found.items():
        scaled = (_NONE, _NONE) if each.temperature is None else (f"{each.scaled_ece:.2%}", f"{each.temperature:.3f}")
        rows.append((group.name, str(len(group.answers)), f"{each.ece:.2%}", *scaled, f"{each.loss:.4f}"))
    heads = ("recipe", "n", "ECE", "ECE with temperature", "temperature", "log-loss [nats]")
    runs = f"{answers.runs:,} run{'s' * (answers.runs > 1)}"
    named, colors = {group.name: each for group, each in found.items()}, [group.color for group in found]
    figure = reliability_figure(named, f"Reliability: {answers.what}, predictions of {runs}", colors)
    table = Table("Calibration of single runs, means over the runs", heads, tuple(rows))
    return {"reliability": Markup(figure.svg(key)), "calibration": table}


def environment(runs: Runs) -> dict[str, Any]:
    """Return what the runs of a group ran on and with, and how they are repeated."""
    records = runs.records
    recipe, data = records[0].recipe, records[0].dataset
    versions = [dataclasses.asdict(record.versions) for record in records]
    facts = {
        "data": [f"{data.name}: {data.train_size:,} training and {data.test_size:,} {data.tested} images"],
        "read from": _all(record.dataset.source for record in records),
        "sha256 of the data": [data.sha256],
        "start": _all(map(_start, records)),
        "device": _all(map(_device, records)),
        "computed in": _all(record.dtype for record in records),
        "seeds": [_ranges(record.seed for record in records)],
        "started": [" to ".join(dict.fromkeys(pick(each.started for each in records) for pick in (min, max)))],
        "versions": _all(", ".join(f"{name} {number}" for name, number in each.items() if number) for each in versions),
        "commit of fastcifar": _all(record.commit for record in records if record.commit),
    }
    commands = _all(_command(record.command) for record in records if record.command)
    return {
        "name": runs.name,
        "facts": {name: values for name, values in facts.items() if any(values)},
        "commands": commands,
        "recipe": to_toml(recipe),
    }


def _device(record: RunRecord) -> str:
    threads = record.device.threads
    return record.device.name + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")


def _command(words: Sequence[str]) -> str:
    """Return a command line as it is typed."""
    is_own = Path(words[0]).name == "fastcifar" or words[0].endswith("fastcifar/__main__.py")
    return shlex.join(["fastcifar" if is_own else words[0], *words[1:]])


def _ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers in words: "0 to 4, 7"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}" if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)


def _heading(groups: Sequence[Runs], where: Iterable[object]) -> dict[str, Any]:
    """Return the title, and a line on what is shown: where it lies, n, when and on what it ran."""
    records = [record for runs in groups for record in runs.records]
    data = _all(record.dataset.title for record in records)
    what = groups[0].name if len(groups) == 1 else f"{len(groups):,} groups of runs"
    count = f"{len(records):,} run{'s' * (len(records) != 1)}"
    days = dict.fromkeys(pick(record.started[:10] for record in records) for pick in (min, max)) if records else {}
    facts = [f"{count} in {', '.join(map(str, where))}", " to ".join(days), "; ".join(_all(map(_device, records)))]
    return {"title": f"{what} on {' and '.join(data)}" if data else what, "facts": [fact for fact in facts if fact]}


def _left_out(kept: KeptRuns) -> list[str]:
    """Return a line on what is in no number of the page, where there is such."""
    counts = {
        "failed": sum(len(runs.failed) for runs in kept.groups),
        "unfinished (still training, or broken off)": kept.unfinished,
        "damaged (files, or lines of one)": kept.unreadable,
    }
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return [f"Left out of all numbers: {said}"] if said else []


def _metric(runs: Runs) -> str:
    """Return the key of the accuracy that a group is told by: where test images have no labels that of validation."""
    return "tta_accuracy" if runs.values("tta_accuracy") else "val_accuracy"


def _all(values: Iterable[Any]) -> list[Any]:
    """Return what is among `values`, each once."""
    return list(dict.fromkeys(values))
