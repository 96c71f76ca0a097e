"""`ensemble`: which runs it trains, from which seeds, and what it says of them."""

import dataclasses
import json

import numpy as np
import pytest

from fastcifar.errors import UserError
from fastcifar.experiments.named.ensemble import Ensemble
from fastcifar.recipes import EnsembleConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.report.combined import combine
from fastcifar.training import train
from fastcifar.training.predictions import read_predictions
from tests.small import BARE

SMALL = dataclasses.replace(BARE, epochs=2, optimizer=SGDConfig(lr=0.02, momentum=0.5, bias_lr_factor=1.0))


def ensemble(dataset, folder=None, **options):
    parallel = options.pop("parallel", 1)
    return Ensemble(recipe=SMALL, **options).run(dataset, folder, device="cpu", parallel=parallel)


def test_seeds_of_members_are_the_same_in_every_kind_and_differ_between_ensembles(dataset, trained, tmp_path):
    result = ensemble(dataset, tmp_path / "kept", members=3, joint=("none", "sum", "mean"), eval_every=1)
    joint = [dataclasses.replace(SMALL, ensemble=EnsembleConfig(3, kind)) for kind in ("sum", "mean")]
    first = [(SMALL, 0), (SMALL, 1), (SMALL, 2), (joint[0], 0), (joint[1], 0)]
    assert trained == [*first, (SMALL, 3), (SMALL, 4), (SMALL, 5), (joint[0], 1), (joint[1], 1)]
    assert result.n == 2 and result.seeds == [0, 1]

    alone = [train(SMALL, dataset, seed=seed) for seed in range(3)]
    logits, labels = result.members("none", 0)
    assert np.array_equal(logits, [run.tta_logits.numpy() for run in alone])
    assert np.array_equal(labels, dataset.test.labels.numpy())
    assert result.combined("none")[0] == combine(logits, labels)
    assert np.array_equal(result.members("sum", 1)[0], result.members("none", 1)[0])  # training alone, bit for bit
    assert result.scores("none") == result.scores("sum") and result.difference("sum").mean == 0
    gains = [each.accuracy_gain.mean for each in result.combined("mean", "logits")]
    assert result.scores("mean", "logits")["accuracy_gain"].mean == pytest.approx(np.mean(gains))

    said = json.loads((tmp_path / "kept/results.json").read_text())
    assert said["kinds"]["none"]["logits"] == said["kinds"]["sum"]["logits"]
    assert said["kinds"]["mean"]["churn"]["n"] == 2
    acts = "optimizer.lr 0.02 acts as 0.00666667, optimizer.weight_decay 0.0005 acts as 0.0015"
    assert said["rates"] == [f"joint mean: the gradient of each member is divided by 3: {acts}"]
    assert said["rates"][0] in result.remarks()
    assert [table.title for table in result.tables()][1].startswith("Accuracy of the ensembles less that of none")
    curves = result.figures()
    labels_of = {name: [line.label for line in figure.lines] for name, figure in curves.items()}
    joint = ["{} of 3, joint sum, n=2", "{} of 3, joint mean, n=2"]
    assert labels_of["train-accuracy"] == ["one network, n=6", *(each.format("members' mean") for each in joint)]
    end = "mean logits of 3, joint none, n=2"
    assert labels_of["test-accuracy"] == ["one network, n=6", end, *(each.format("mean logits") for each in joint)]
    ones, end, both, _ = curves["test-accuracy"].lines
    assert list(ones.x) == list(both.x) == [1, 2] and list(end.x) == [2]
    assert end.y[0] == pytest.approx(both.y[-1])  # the same networks
    singles = [record.history[0].train_accuracy for arm in range(3) for record in result.records[f"none/member-{arm}"]]
    assert curves["train-accuracy"].lines[0].y[0] == pytest.approx(100 * np.mean(singles))


def test_more_ensembles_go_on_from_what_is_kept_and_runs_are_saved_ones(dataset, trained, tmp_path):
    options = {"members": 2, "joint": ("none", "sum"), "keep_weights": True}
    first = ensemble(dataset, tmp_path / "kept", runs=1, **options)
    count = len(trained)
    both = ensemble(dataset, tmp_path / "kept", runs=2, **options)
    assert (first.n, both.n, len(trained)) == (1, 2, 2 * count)
    assert both.combined("none")[0] == first.combined("none")[0]
    found = read_predictions([tmp_path / "kept/none", tmp_path / "kept/sum/seed-0", tmp_path / "kept/sum/seed-1.json"])
    place = str(tmp_path / "kept")
    names = [f"{place}/none/member-{member}/seed-{seed}" for member in range(2) for seed in range(2)]
    names += [f"{place}/sum/seed-{seed}#{member}" for seed in range(2) for member in range(2)]
    assert list(found.names) == names
    assert np.array_equal(found.logits[[0, 2, 1, 3]], found.logits[4:])
    assert (tmp_path / "kept/sum/seed-0.safetensors").is_file()
    count = len(trained)
    (tmp_path / "kept/sum/seed-0.npz").unlink()  # which is made again
    again = ensemble(dataset, tmp_path / "kept", runs=2, **options)
    assert (len(trained), again.combined("sum")) == (count + 1, both.combined("sum"))


def test_a_shared_order_and_weights_that_are_shared(dataset):
    result = ensemble(dataset, members=2, joint=("none", "sum", "logits", "shared"), order="shared", runs=1)
    assert np.array_equal(result.members("sum", 0)[0], result.members("none", 0)[0])
    assert result.churn("shared") is None and len(result.members("shared", 0)[0]) == 1
    assert result.scores("shared")["accuracy_gain"].mean == 0
    assert any("one network" in line for line in result.remarks())
    assert result.records["logits"][0].recipe.ensemble == EnsembleConfig(2, "logits", "shared")
    own = ensemble(dataset, members=2, joint=("logits",), runs=1)
    assert np.array_equal(own.members("logits", 0)[0], result.members("logits", 0)[0])  # its order is always shared


def test_several_processes_train_the_same(dataset, tmp_path):
    options = {"members": 2, "joint": ("none", "mean"), "runs": 1}
    together = ensemble(dataset, tmp_path / "kept", parallel=2, **options)
    assert together.scores("mean") == ensemble(dataset, **options).scores("mean")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"members": 1}, "members is 1; allowed: 2 to 1,000 networks"),
        ({"joint": ()}, "allowed: one kind or more, each once"),
        ({"joint": ("sum", "sum")}, "allowed: one kind or more, each once"),
        (
            {"recipe": dataclasses.replace(SMALL, ensemble=EnsembleConfig(4))},
            "^--ensemble.members is 4; allowed: --members 4, which says how many are trained$",
        ),
        (
            {"recipe": dataclasses.replace(SMALL, ensemble=EnsembleConfig(1, "sum"))},
            "^--ensemble.joint is sum; allowed: --joint sum",
        ),
        (
            {"recipe": dataclasses.replace(SMALL, ensemble=EnsembleConfig(1, order="shared"))},
            "^--ensemble.order is shared; allowed: --order shared",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        Ensemble(**{"recipe": SMALL, **options})
