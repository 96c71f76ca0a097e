"""A training shown as it goes on: what its listener tells the screen, and the lines above."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastcifar
from fastcifar.data import Dataset
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.recipes import Recipe, SelectConfig, change
from fastcifar.screen import Screen
from fastcifar.training import Listener, Trainer, progress, train
from fastcifar.training.progress import ShowProgress
from tests.small import MLP

SLOW = change(MLP, {"optimizer.lr": 0.01})


def images(name, **val):
    x, y = np.zeros((50_000, 2, 2, 3), np.uint8), np.zeros(50_000, int)
    return Dataset.from_arrays(x, y, x[:10_000], y[:10_000], std=(1, 1, 1), name=name, **val)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"epochs": 10.0}, "10 epochs of 97 steps of 512 images on cpu"),
        ({"epochs": 1}, "1 epoch of 97 steps of 512 images on cpu"),
        ({"epochs": 7.59}, "7.59 epochs of 97 steps of 512 images on cpu"),
        ({"select": SelectConfig(keep=0.75)}, "10 epochs of up to 97 steps of 512 images on cpu"),
    ],
)
def test_the_header_says_how_many_epochs_of_how_many_steps(fields, line):
    dataset = images("cifar10")
    place = {"device": SimpleNamespace(type="cpu"), "dtype": "torch.bfloat16"}
    trainer = SimpleNamespace(
        recipe=Recipe(**fields), dataset=dataset, timeline=SimpleNamespace(steps_per_epoch=97), **place
    )
    lines = progress.header(trainer, [3]).splitlines()
    assert lines[0] == "davidnet on cifar10: 50,000 training, 10,000 test images"
    assert lines[1].startswith(line) and lines[1].endswith("bfloat16), seed 3")


def test_the_columns_and_the_header_say_which_images_have_labels():
    x, y = np.zeros((5, 2, 2, 3), np.uint8), [0] * 5
    three = Dataset.from_arrays(x, y, x, x_val=x[:2], y_val=y[:2], std=(1, 1, 1))
    assert progress.tested(three) == {"val acc": "val_accuracy"}
    assert progress.tested(three.hold_out(2)) == {"held-out": "test_accuracy", "val acc": "val_accuracy"}
    assert progress.tested(images("cifar10")) == {"test acc": "test_accuracy"}
    assert progress.tested(Dataset.from_arrays(x, y, x, std=(1, 1, 1))) == {"test acc": "test_accuracy"}
    measured = three.labeled_test()
    assert (measured.tested, measured.test, measured.val) == ("validation", three.val, None)
    assert measured.labeled_test() is measured


@pytest.fixture(scope="module")
def data():
    return make_synthetic(70, 20)


class Heard(Screen):
    """Notes what the screen would show at every step."""

    def __init__(self):
        self.bars, self.rows = [], []
        super().__init__()

    def begin(self, total_steps, tested=(), first_step=0):
        self.begun = total_steps, first_step

    def step(self, step, total_steps, so_far):
        self.bars.append((step, so_far()))

    def epoch(self, row):
        self.rows.append(row)


@pytest.mark.parametrize("changes", [{}, {"drop_last": False}, {"epochs": 1.5}, {"select.keep": 0.5}])
def test_the_row_so_far_is_that_of_an_epoch_cut_short(data, changes):
    """At each step loss and accuracy are those of a training that has seen no more: of the last step's, its row's."""
    recipe, heard, said = change(SLOW, changes), Heard(), []
    trainer = Trainer(recipe, data, "cpu")

    def look(step, total):
        state, epoch = trainer.state, next(each for each in trainer.timeline.epochs if each.end >= step)
        losses, correct = state.tensors.losses, state.tensors.correct
        done, batch = step - epoch.first_step, epoch.stage.batch
        said.append((step == epoch.end, losses[:done].mean().item() / batch, correct.item() / (done * batch)))

    run = trainer.run(1, listeners=[ShowProgress(heard), Listener(on_step=look)])
    assert heard.begun == (trainer.total_steps, 0) and heard.rows == list(run.rows)
    assert [step for step, _ in heard.bars] == list(range(1, trainer.total_steps + 1))
    seen = [row.images for _, row in heard.bars]
    assert seen == sorted({*seen}) and {row.images for row in run.rows} <= {*seen}
    for (_, row), (ends, loss, accuracy) in zip(heard.bars, said, strict=True):
        if ends:
            numbers = row.train_loss, row.train_accuracy
            assert numbers in [(each.train_loss, each.train_accuracy) for each in run.rows]
        else:
            assert (row.train_loss, row.train_accuracy) == pytest.approx((loss, accuracy))
        assert 0 < row.seconds <= run.train_seconds


def test_progress_prints_the_header_and_a_row_for_each_epoch_and_changes_nothing(data, capsys):
    plain, told = train(SLOW, data, seed=2), []
    assert capsys.readouterr() == ("", "")
    run = train(SLOW, data, seed=2, progress=True, listeners=[Listener(on_epoch=told.append)])
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("small on synthetic data") and lines[1].endswith("seed 2") and not err
    assert [line.split()[0] for line in lines[2:]] == ["epoch", "1", "2", "3"] and told == list(run.rows)
    assert run.losses == plain.losses and (run.plain_logits == plain.plain_logits).all()


def test_progress_with_checkpoints_is_shown_too(data, capsys, tmp_path):
    train(SLOW, data, progress=True, checkpoints=tmp_path / "states")
    assert len(capsys.readouterr().out.splitlines()) == 6


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_is_put_away_where_a_training_fails(data, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with pytest.raises(NonFiniteLoss):
        train(MLP, data, progress=True, **{"optimizer.lr": 1e10})
    assert "0/12" in terminal.getvalue()
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")  # the cursor is seen again


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_progress_is_true_or_false(data, value):
    with pytest.raises(UserError, match=r"^progress is .*; allowed: "):
        train(SLOW, data, progress=value)
    with pytest.raises(UserError, match=r"^listeners is of type int; allowed: a list of them"):
        fastcifar.train(SLOW, data, progress=True, listeners=3)
