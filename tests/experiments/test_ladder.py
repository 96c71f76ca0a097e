"""`ladder`, for real on a few synthetic images."""

import json

import pytest

from fastcifar.cli.experiment import read_options
from fastcifar.errors import UserError
from fastcifar.experiments.named.ladder import Ladder
from fastcifar.recipes import get_recipe
from fastcifar.recipes.named.ladder import LADDER, WALK

NAMES = [rung.name for rung in LADDER]


def climb(dataset, folder=None, **options):
    small = {"rungs": ("myrtle-3x3", "davidnet"), "narrow": True}
    return Ladder(**{**small, **options}).run(dataset, folder, holdout=64, device="cpu")


def test_rungs_are_trained_in_order_with_shared_seeds_and_go_on(dataset, trained, tmp_path, monkeypatch):
    small(monkeypatch)
    climb(dataset, tmp_path, rungs=("davidnet",))
    result = climb(dataset, tmp_path, rungs=("davidnet", "myrtle-max-pool", "myrtle-3x3"), runs=2)
    assert [(recipe.name, seed) for recipe, seed in trained] == [
        ("davidnet", 0),
        *[("myrtle-3x3", 0), ("myrtle-max-pool", 0)],
        *[("myrtle-3x3", 1), ("myrtle-max-pool", 1), ("davidnet", 1)],
    ]
    assert result.n == 2 and result.tested == "held-out"
    rows = {row["rung"]: row for row in json.loads((tmp_path / "results.json").read_text())["rungs"]}
    assert list(rows) == ["myrtle-3x3", "myrtle-max-pool", "davidnet"]
    seconds = {name: row["train_seconds"]["mean"] for name, row in rows.items()}
    assert rows["myrtle-max-pool"]["speed_up"] == pytest.approx(seconds["myrtle-3x3"] / seconds["myrtle-max-pool"])
    assert rows["myrtle-3x3"]["speed_up"] is None and rows["davidnet"]["speed_up"] is None
    assert (rows["myrtle-3x3"]["post_accuracy"], rows["myrtle-3x3"]["post_seconds"]) == (0.856, 36)
    accuracies = [run.tta_accuracy for run in result.ended("davidnet")]
    assert rows["davidnet"]["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
    table = (tmp_path / "table.md").read_text()
    assert "at a quarter of the width" in table.splitlines()[0] and "n=2" in table
    assert "| myrtle-3x3 | 3x3 downsampling convolutions |" in table and "85.6%" in table
    assert set(result.figures()) == {"accuracy", "seconds"}


def small(monkeypatch):
    """Shorten what the rungs of these tests would train."""
    at_scale = Ladder.at_scale

    def short(self, recipe):
        from fastcifar.recipes import change

        recipe = at_scale(self, recipe)
        ghost = {"network.ghost_batch": 16} if recipe.network.kind == "davidnet" else {}
        return change(recipe, {**ghost, "network.widths": (4, 4, 4, 4), "batch_size": 32, "epochs": 1})

    monkeypatch.setattr(Ladder, "at_scale", short)


def test_a_scale_shortens_images_epochs_and_average_alike():
    ladder = Ladder(scale=0.25, narrow=True)
    recipe, whole = ladder.at_scale(get_recipe("myrtle-ema")), get_recipe("myrtle-ema")
    assert (recipe.epochs, recipe.batch_size) == (3.25, 512)
    share = 0.25 * 0.25  # of the steps: a quarter of the images for a quarter of the epochs
    assert (recipe.ema.decay, recipe.ema.every) == (pytest.approx(0.99 ** (1 / share)), 1)
    assert recipe.network.widths == (16, 32, 64, 128)
    assert (recipe.schedule, recipe.optimizer, recipe.augment) == (whole.schedule, whole.optimizer, whole.augment)
    shortest = Ladder(scale=0.02).at_scale(whole)
    assert (shortest.epochs, shortest.ema.decay) == (1, pytest.approx(0.99 ** (13 / 0.02)))
    assert Ladder().at_scale(whole) == whole


def test_a_scale_trains_on_its_share_of_the_images(dataset):
    with pytest.raises(UserError, match=r"^scale is 0.5 of 100 images, and davidnet has batches of 512; allowed: "):
        Ladder(rungs=("davidnet",), scale=0.5).jobs(dataset.take(100))

    class Large:
        train = range(45_000)

    jobs = Ladder(scale=0.2).jobs(Large())
    assert {job.train_size for job in jobs} == {9_000} and [job.arm for job in jobs] == [rung.name for rung in WALK]
    assert {job.train_size for job in Ladder().jobs(Large())} == {None}


def test_the_walk_is_cut_and_branches_are_asked_for():
    def names(**options):
        return [rung.name for rung in Ladder(**options).chosen]

    assert names() == [rung.name for rung in WALK]
    assert names(from_="myrtle-ema") == ["myrtle-ema", "davidnet"]
    assert names(to="myrtle-single-norm") == ["myrtle-baseline", "myrtle-single-norm"]
    assert names(rungs=("fenwicks", "myrtle-cutout")) == ["myrtle-cutout", "fenwicks"]
    assert names(rungs=("walk", "branches")) == NAMES
    assert names(rungs=("branches",)) == [rung.name for rung in LADDER if rung.is_branch]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--from myrtle-cutuot", r"^--from is 'myrtle-cutuot'; did you mean 'myrtle-cutout'\?; allowed: a rung of "),
        ("--to fenwicks", r"^--to is fenwicks, a branch; allowed: a rung of the walk; --rungs fenwicks trains it$"),
        ("--from myrtle-ema --to myrtle-celu", r"^--to is 'myrtle-celu'; allowed: myrtle-ema or a rung after it, "),
        ("--from davidnet --to myrtle-celu", r"^--to is 'myrtle-celu'; allowed: davidnet, where the walk begins with"),
        ("--from myrtle-celu --rungs branches", r"^--from is .*; allowed: myrtle-baseline, or any with rungs walk"),
        ("--to myrtle-3x3 --rungs myrtle-celu", r"^--to is .*; allowed: davidnet, or any with rungs walk"),
        ("--rungs walk myrtle-3x4", r"^--rungs has 'myrtle-3x4'; did you mean 'myrtle-3x3'\?; allowed: walk, br"),
        ("--rungs []", r"^--rungs is .*; allowed: walk, branches or names of rungs$"),
        ("--scale 0", r"^--scale is 0; allowed: above 0, up to 1$"),
        ("--epochs 3", r"^unknown flag --epochs"),
        ("--recipe davidnet", r"^unknown flag --recipe"),
        ("--optimizer lars", r"^unknown flag --optimizer"),
        ("--train-size 500", r"^--train-size is 500; allowed: batch_size, 512, or more images$"),
    ],
)
def test_bad_flags_are_refused_in_a_line(words, said):
    with pytest.raises(UserError, match=said):
        options = read_options(Ladder, words.split())
        options.check(*options.experiment.trained_recipes().values())


def test_quick_is_the_whole_walk_at_a_scale():
    options = read_options(Ladder, ["--quick"])
    made = options.experiment
    assert (made.scale, made.narrow, options.train_size, options.holdout) == (0.2, True, None, 5000)
    assert made.subject.endswith("22 rungs, at scale 0.2 of images and epochs, at a quarter of the width")
    assert read_options(Ladder, ["--quick", "--scale", "0.1"]).experiment.scale == 0.1
