"""A vision course's homework in one program: LeNet, AlexNet and ResNet-18 and their curves, AlexNet's learning rates
and throughput, and predictions. docs/course.md has a command for each of its tasks.

    pip install 'fastcifar[plot]'
    python examples/course/homework.py                   # as the course: 50 epochs of CIFAR-10, for a GPU
    python examples/course/homework.py --scale quick     # a quarter as wide, 4 epochs of 10,000 images, for a CPU
    python examples/course/homework.py --scale small     # 200 images that are made: does it run?
"""

import argparse
import csv
import dataclasses
import sys
from pathlib import Path

import fastcifar
from fastcifar.costs.throughput import Throughput
from fastcifar.data.synthetic import make_synthetic
from fastcifar.experiments.named.sweep import Sweep
from fastcifar.recipes import narrow
from fastcifar.report import Figure, Line, Table
from fastcifar.report.figures import refuse_without_matplotlib
from fastcifar.report.grid import save_grid, spread

COURSE = {"lenet": "38.6%", "alexnet": "76.79%", "resnet18": "88.64%"}
"""The course's networks and their best validation accuracies."""
RATES = "optimizer.lr=1e-5,1e-4,3e-4,1e-3,3e-3"


def read_data(scale: str, name: str) -> fastcifar.Dataset:
    if scale == "small":
        return make_synthetic(train_size=200, test_size=50)
    data = fastcifar.load_dataset(name)
    return data.take(10_000, seed=0) if scale == "quick" else data


def read_recipe(scale: str, name: str) -> fastcifar.Recipe:
    recipe = fastcifar.get_recipe(str(Path(__file__).with_name(f"{name}.toml")))
    if scale == "whole":
        return recipe
    network = narrow(recipe.network) if scale == "quick" else narrow(narrow(recipe.network))
    return dataclasses.replace(recipe, network=network, epochs=4 if scale == "quick" else 1, batch_size=64)


def draw_curves(runs: dict[str, fastcifar.Run], out: Path) -> None:
    for kind, what in (("losses", "log-loss (nats)"), ("accuracies", "accuracy")):
        lines = []
        for color, (name, run) in enumerate(runs.items()):
            train, test = (getattr(run, kind)[split] for split in ("train", "test"))
            lines.append(Line(list(train), list(train.values()), color, faint=True))
            lines.append(Line(list(test), list(test.values()), color, name))
        Figure("epoch", f"{what}; pale: training", tuple(lines), title="the course's networks").save(out / kind)


def write_predictions(run: fastcifar.Run, data: fastcifar.Dataset, out: Path) -> None:
    classes = fastcifar.predict(run, data.test).argmax(1).tolist()
    with open(out / "submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([("Id", "Category"), *enumerate(classes)])
    places = spread(len(classes))
    images, labels = data.test.images[places].numpy(), data.test.labels[places].tolist()
    save_grid(out / "predictions.png", images, labels, [classes[place] for place in places], data.classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("whole", "quick", "small"), default="whole")
    parser.add_argument("--data", default="cifar10", help="a data set's name or path; not read with --scale small")
    parser.add_argument("--out", type=Path, default=Path("runs/homework"), help="a folder, whose files are replaced")
    given = parser.parse_args()
    refuse_without_matplotlib()
    data = read_data(given.scale, given.data)
    recipes = {name: read_recipe(given.scale, name) for name in COURSE}
    sides = {name: data.resize(recipe.network.side_for(data.train.side)) for name, recipe in recipes.items()}
    runs, rows = {}, []
    for name, recipe in recipes.items():
        print(f"{name} is trained; epoch by epoch: {given.out / name}.csv")
        run = runs[name] = fastcifar.train(recipe, sides[name], listeners=[fastcifar.CSV(given.out / f"{name}.csv")])
        size, best = sum(each.numel() for each in run.model.parameters()), max(run.accuracies["test"].values())
        rows.append((name, f"{size:,}", f"{best:.2%}", COURSE[name], f"{run.train_seconds:.1f} s"))
    draw_curves(runs, given.out)
    write_predictions(runs["resnet18"], data, given.out)
    sweep = Sweep(recipe=recipes["alexnet"], vary=(RATES,)).run(sides["alexnet"], holdout=len(data.train) // 10)
    sweep.write(given.out / "sweep")
    sweep.draw(given.out / "sweep")
    speed = Throughput(recipes["alexnet"], side=70, steps=20 if given.scale == "whole" else 2)
    sizes = list(speed.measure(last={"whole": None, "quick": 128, "small": 2}[given.scale]))
    said = f"Epochs {recipes['lenet'].epochs:g}, images {len(data.train):,} of {data.title}; the course: 50 and 50,000"
    heads = ("network", "parameters", "best test accuracy", "the course's", "training")
    rates = tuple((f"{size.batch_size}", f"{size.rate:,.0f}", f"{size.memory / 2**20:,.0f} MiB") for size in sizes)
    speeds = Table("alexnet's throughput", ("batch size", "images/s", "memory"), rates)
    for table in (Table(said, heads, tuple(rows)), *sweep.tables(), speeds):
        table.show()
    print(f"in {given.out}: curves, metrics by epoch, the sweep of rates, submission.csv, predictions.png")


if __name__ == "__main__":
    try:
        main()
    except fastcifar.UserError as error:
        sys.exit(f"error: {error}")
