"""Turn saved runs and experiments into results for the tables of docs/ (see `bench.record` and `bench.tables`).

    python -m bench.collect recipes RUN... --save FILE                # folders of fastcifar train: all runs of a recipe
    python -m bench.collect warm-start RESULTS.json... --save FILE    # of fastcifar warm-start half and table

Without `--save` the rows are printed alone. Run this on the machine that measured, at the commit that measured, or say
which they were: `--hardware`, `--commit`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from bench.program import add_save_option, new_parser, run_program
from bench.record import append, describe_hardware
from fastcifar.catalogue import dataset_for
from fastcifar.errors import UserError
from fastcifar.escape import in_markdown, shown
from fastcifar.experiments import EXPERIMENTS
from fastcifar.experiments.result import known
from fastcifar.experiments.store import json_values
from fastcifar.experiments.warm_starts import WARM
from fastcifar.output import RECORD
from fastcifar.recipes import RECIPES, Recipe, get_recipe, narrow, network_of, recipe_from_dict
from fastcifar.recipes.text import leaves
from fastcifar.record import DeviceFacts, RunRecord
from fastcifar.report.statistics import Summary, summarize
from fastcifar.training import describe_device, resolve_device

Result = dict[str, object]  # a line of a results file
_KEPT = ("seed", "accuracy", "tta_accuracy", "train_seconds", "time_seconds")
"""Keys of a run's record that a result keeps, beside the number of its threads."""


def recipes(sources: Sequence[Path]) -> Iterator[Result]:
    """Yield one result for each recipe among the runs: every run counts, so they may differ in the seed alone."""
    by_recipe: dict[str, list[RunRecord]] = {}
    for source in sources:
        path = source / RECORD if source.is_dir() else source
        run = RunRecord.from_json(_read(path), str(path))
        anywhere = dataclasses.replace(run.dataset, source="")  # its hash, not its place, says which data it is
        by_recipe.setdefault(run.recipe.name, []).append(dataclasses.replace(run, dataset=anywhere))
    for name, runs in by_recipe.items():
        for field in ("recipe", "dataset", "subset", "init", "device", "dtype", "versions"):
            if any(getattr(run, field) != getattr(runs[0], field) for run in runs):
                raise UserError(f"the runs of {name} differ in {field}; allowed: runs that differ in the seed alone")
        if runs[0].init["mode"] != "cold":
            raise UserError(f"the runs of {name} begin with other weights; allowed: runs with fresh ones")
        seeds = [run.seed for run in runs]
        if sorted(seeds) != list(range(min(seeds), min(seeds) + len(seeds))):
            raise UserError(f"the runs of {name} have seeds {sorted(seeds)}; allowed: seeds in a row, each once")
        first, dataset = runs[0], runs[0].dataset
        changed = list(_changed(first.recipe))
        command = ["fastcifar train", f"--recipe {name}", *_flags(changed), *_of_data(first)]
        with_tta = summarize([known(run.tta_accuracy) for run in runs])
        plain = summarize([known(run.accuracy) for run in runs])
        seconds = [run.train_seconds for run in runs]
        held_out = f", tested on {dataset.holdout:,} held out" if dataset.holdout else ""
        yield {
            "table": "recipes",
            "row": {
                "recipe": f"`{name}`" + f" with {in_markdown(', '.join(changed))}" * bool(changed),
                "epochs": f"{first.epochs:g}",
                "on": f"{in_markdown(dataset.name)}, {dataset.train_size:,} images{held_out}",
                "accuracy with TTA": f"{with_tta.mean:.2%}",
                "without": f"{plain.mean:.2%}",
                "n": str(len(runs)),
                "95% interval": _interval(with_tta),
                "`train_seconds`": f"{statistics.median(seconds):.4g}",
                "`time_seconds`": f"{statistics.median(run.time_seconds for run in runs):.4g}",
            },
            "n": len(runs),
            "spread": f"standard deviation {with_tta.std:.2%}" if with_tta.std is not None else "-",
            "command": " ".join([*command, f"--seed {min(seeds)} --runs {len(runs)}"]),
            "hardware": _hardware_of(first.device),
            "versions": {package: version for package, version in first.to_json()["versions"].items() if version},
            "date": max(run.started for run in runs)[:10],
            "runs": [{**{key: run.to_json()[key] for key in _KEPT}, "threads": run.device.threads} for run in runs],
        }


def warm_start(sources: Sequence[Path]) -> Iterator[Result]:
    """Yield one result for each way of starting, of each network and optimizer."""
    for source in sources:
        result = _read(source)
        if result.get("experiment") not in ("half", "table"):
            raise UserError(
                f"{source} is of no experiment half or table; allowed: results.json of fastcifar warm-start"
            )
        recipe = recipe_from_dict(result["recipe"], str(source))
        cells = result.get("cells") or [
            {**result, "network": recipe.network.kind, "optimizer": recipe.optimizer.kind},
        ]
        for cell in cells:
            for arm, found in cell["arms"].items():
                accuracies = found["test_accuracy"]["values"]
                summary = summarize(accuracies)
                yield {
                    "table": "warm-start",
                    "row": {
                        "recipe": f"`{recipe.name}`",
                        "network": in_markdown(cell["network"]),
                        "optimizer": in_markdown(cell["optimizer"]),
                        "images": f"{result['train_size']:,} of {in_markdown(result['dataset'])}",
                        "start": in_markdown(arm),
                        "test accuracy": f"{summary.mean:.2%}",
                        "n": str(summary.n),
                        "95% interval": _interval(summary),
                        "train accuracy": f"{found['train_accuracy']['mean']:.2%}",
                        "points above warm": _points(cell["differences"].get(f"{arm} - {WARM}")),
                    },
                    "n": summary.n,
                    "spread": f"standard deviation {summary.std:.2%}" if summary.std is not None else "-",
                    "command": _warm_start_command(result, recipe),
                    "settings": {
                        key: value
                        for key, value in result.items()
                        if key not in ("arms", "cells", "seeds", "differences")
                    },
                    "seeds": cell.get("seeds", result["seeds"]),
                    "test_accuracies": accuracies,
                    "train_seconds": found["train_seconds"]["values"],
                }


def _points(difference: dict | None) -> str:
    """Return mean and 95% interval of the difference of two ways of starting, seed by seed, in points of accuracy."""
    if difference is None:
        return "-"
    found = difference["test_accuracy"]
    interval = (
        "" if found["interval"] is None else " ({:+.2f} to {:+.2f})".format(*(100 * x for x in found["interval"]))
    )
    return f"{100 * found['mean']:+.2f}{interval}"


def _warm_start_command(result: dict, recipe: Recipe) -> str:
    """Return the command line that makes this result again."""
    experiment, seeds = EXPERIMENTS[result["experiment"]], result["seeds"]
    words = [f"fastcifar warm-start {experiment.name} --recipe {recipe.name}", *_flags(_changed(recipe))]
    images = result["dataset"], result["holdout"], result["subset"], result.get("fold", ""), result.get("resized", 0)
    words += _data_flags(recipe.name, *images)
    for field in dataclasses.fields(experiment):
        value = result.get(field.name, field.default)
        if field.name == "networks":
            words.append(f"--networks {' '.join(value)}")
            others = (network_of(recipe, kind) for kind in value if kind != recipe.network.kind)
            narrower = (less for each in others if (less := narrow(each)) != each)
            if any(value[each.kind] == json_values(dataclasses.asdict(each)) for each in narrower):
                words.append("--narrow true")
        elif field.name == "optimizers":
            words.append("--optimizers " + " ".join(f"{kind}={rate}" if rate else kind for kind, rate in value.items()))
        elif field.name != "recipe" and value != field.default:
            words.append(" ".join([f"--{field.name.replace('_', '-')}", *_words(value)]))
    # Those of failed runs are in no number, but the command asked for them.
    words.append(f"--runs {max(seeds) - min(seeds) + 1}")
    return " ".join([*words, f"--seed {min(seeds)}"] if min(seeds) else words)


def _of_data(run: RunRecord) -> list[str]:
    """Return the flags for the images of a run and the threads that trained it."""
    threads = [f"--threads {run.device.threads}"] if run.device.type == "cpu" else []
    data = run.dataset
    return _data_flags(run.recipe.name, data.name, data.holdout, run.subset, data.fold, data.resized) + threads


def _data_flags(recipe: str, dataset: str, holdout: int, subset: dict | None, fold: str, resized: int) -> list[str]:
    """Return the flags for the images of runs of the recipe of this name."""
    subset = subset or {}
    given = {
        "dataset": "" if dataset == dataset_for(recipe) else dataset,
        "resize": resized,
        "fold": fold,
        "holdout": 0 if fold else holdout,
        "train-size": subset.get("size"),
        "balanced": "true" if subset.get("balanced") else "",
        "subset-seed": subset.get("seed"),
        "classes": ",".join(map(str, subset.get("classes") or ())),
    }
    return _flags(f"{flag} {value}" for flag, value in given.items() if value)


def _flags(words: Iterable[str]) -> list[str]:
    return [f"--{each}" for each in words]


def _changed(recipe: Recipe) -> Iterator[str]:
    """Yield the flags for the fields in which a recipe differs from the recipe of its name."""
    if recipe.name in RECIPES:
        named = dict(leaves(dataclasses.asdict(get_recipe(recipe.name))))
        for name, value in leaves(dataclasses.asdict(recipe)):
            if value != named.get(name):
                yield " ".join([name.removesuffix(".kind").replace("_", "-"), *_words(value)])


def _words(value: object) -> Iterator[str]:
    """Yield the words of a field's value as a flag takes it: a list by its items, one of pairs by their items."""
    if isinstance(value, tuple):
        for item in value:
            yield from _words(item)
    else:
        yield str(value)


KINDS: dict[str, Callable[[Sequence[Path]], Iterator[Result]]] = {"recipes": recipes, "warm-start": warm_start}


def _interval(summary: Summary) -> str:
    return "-" if summary.interval is None else "{:.2%} to {:.2%}".format(*summary.interval)


def _hardware_of(device: DeviceFacts) -> str:
    """Return the hardware of a run: in full where that is this machine, else the name that the run gives."""
    if device.type == "cpu" and describe_device(resolve_device("cpu")).name == device.name:
        return describe_hardware("cpu")
    return device.name


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; allowed: results as JSON") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no results; allowed: results as JSON")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser("bench.collect", __doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    parser.add_argument("--hardware", help="what measured (default: what the source says, or this machine)")
    parser.add_argument("--commit", help="the commit that measured (default: the one checked out)")
    add_save_option(parser)
    options = parser.parse_args(arguments)
    given = {key: getattr(options, key) for key in ("hardware", "commit") if getattr(options, key)}
    try:
        results = [{**result, **given} for result in KINDS[options.kind](options.sources)]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the sources are not what {options.kind} needs ({type(error).__name__}: {error}); see --help"
        ) from None
    for result in results:
        print("  ".join(f"{heading}: {shown(cell)}" for heading, cell in result["row"].items()))
        if options.save:
            append(options.save, result)
    return 0


if __name__ == "__main__":
    run_program("bench.collect", main)
