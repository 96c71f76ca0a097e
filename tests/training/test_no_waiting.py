"""The host never waits for a GPU inside an epoch, nor between epochs where nobody looks."""

import dataclasses
import itertools
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import NonFiniteLoss
from fastcifar.recipes import RECIPES, Recipe, change
from fastcifar.training import Listener, Trainer
from fastcifar.training.stopwatch import HostEvent
from tests.small import DAVIDNET, EVERYTHING, MLP, TYPICAL

BEGIN = "begin"


class Reads(TorchDispatchMode):
    """Notes in `log` whatever would make the host wait for a GPU: values, and shapes that follow from values."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "bincount")

    def __init__(self, log):
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            index is not None and index.dtype == torch.bool
            for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if name.startswith(self.waiting) or by_mask:
            self.log.append(name)
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def log(monkeypatch):
    """Return a list that takes the notes of `Reads` and of reads of a tensor's values, and a note for each epoch."""
    log = []

    def noting(name):
        method = getattr(torch.Tensor, name)
        return lambda *args, **kwargs: (log.append(name), method(*args, **kwargs))[1]

    for name in ("cpu", "numpy", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, noting(name))
    return log


def reads_by_epoch(log, trainer, monkeypatch, **arguments):
    """Return the run, and the reads in each epoch but the last, up to the next, with a device that is always behind."""
    monkeypatch.setattr(HostEvent, "query", lambda event: False)
    enter = trainer.enter
    monkeypatch.setattr(trainer, "enter", lambda stage: (log.append(BEGIN), enter(stage)))
    with Reads(log):
        run = trainer.run(0, **arguments)
    starts = [place for place, what in enumerate(log) if what == BEGIN]
    assert len(starts) == len(trainer.timeline.epochs)
    assert len(log) > starts[-1] + 1  # the end of a training is looked at, and noted
    return run, [log[start + 1 : stop] for start, stop in itertools.pairwise(starts)]


REDO = change(MLP, {"redo.every": 1, "redo.threshold": 0.9, "ema.decay": 0.9, "ema.return_every": 1})
CONTINUAL = change(MLP, {"continual_backprop.rate": 0.125, "continual_backprop.maturity": 2})
MIXED = change(MLP, {"mix.mixup": 0.2, "mix.cutmix": 1.0, "transforms.rand_augment.operations": 1})
LOOKED_AT = {"plain": DAVIDNET, "everything": EVERYTHING, "mixed": MIXED, "redo": REDO, "continual backprop": CONTINUAL}


@pytest.mark.parametrize("recipe", LOOKED_AT.values(), ids=LOOKED_AT)
def test_nothing_is_read_before_the_last_step_where_nobody_looks(log, monkeypatch, recipe):
    data = make_synthetic(64, 16)
    run, reads = reads_by_epoch(log, Trainer(recipe, data, "cpu"), monkeypatch, eval_every=0)
    assert not any(reads)
    seen = []
    watched = Trainer(recipe, data, "cpu").run(0, eval_every=0, listeners=[Listener(on_epoch=seen.append)])

    def without_seconds(rows):
        return [dataclasses.replace(row, seconds=0) for row in rows]

    assert without_seconds(run.rows) == without_seconds(watched.rows) == without_seconds(seen)
    assert all(one.seconds < other.seconds for one, other in itertools.pairwise(run.rows))
    assert all(torch.equal(run.state[name], watched.state[name]) for name in run.state)


@pytest.mark.parametrize(
    ("arguments", "looks"),
    [
        ({"listeners": [Listener(on_epoch=lambda row: None)]}, [True, True]),
        ({"listeners": [Listener(on_step=lambda step, steps: None)]}, [True, True]),
        ({"listeners": [Listener(on_end=lambda record: None)]}, [False, False]),
        ({"until_train_accuracy": 1.0}, [True, True]),
        ({"eval_every": 2}, [False, True]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_it_is_read_where_somebody_looks(log, monkeypatch, arguments, looks):
    trainer = Trainer(DAVIDNET, make_synthetic(64, 16), "cpu")
    _, reads = reads_by_epoch(log, trainer, monkeypatch, **{"eval_every": 0, **arguments})
    assert [bool(epoch) for epoch in reads] == looks


@pytest.mark.parametrize("behind", [False, True])
def test_a_loss_that_is_no_number_is_named_rightly_however_late_it_is_read(monkeypatch, behind):
    monkeypatch.setattr(HostEvent, "query", lambda event: not behind)
    trainer = Trainer(DAVIDNET, make_synthetic(64, 16), "cpu")
    steps = []

    def spoil(replay):
        steps.append(len(steps) + 1)
        replay()
        if steps[-1] == 6:
            trainer.state.tensors.losses[1] = torch.inf

    trainer.rehearse()
    trainer.replays = {stage: partial(spoil, replay) for stage, replay in trainer.replays.items()}
    with pytest.raises(NonFiniteLoss, match=r"the loss became inf at step 6 of 12 \(epoch 2\)"):
        trainer.run(0, eval_every=0)
    assert steps[-1] == (12 if behind else 8)  # what is there is read, and what is not yet is not waited for


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("name", TYPICAL)
def test_nothing_waits_for_the_device_from_the_first_step_to_the_last(monkeypatch, name, captured):
    recipe: Recipe = RECIPES[name]
    rates = {name for name in ("lr", "bias_lr", "head_lr") if hasattr(recipe.optimizer, name)}
    gentle = dataclasses.replace(recipe.optimizer, **dict.fromkeys(rates, 1e-3))  # its own are for its batches
    recipe = dataclasses.replace(recipe, epochs=4, batch_size=64, optimizer=gentle)
    trainer = Trainer(recipe, make_synthetic(256, 64), "cuda")
    before = trainer.run(0, eval_every=0)
    if not captured:
        trainer.replays = {stage: partial(trainer.step, stage) for stage in trainer.replays}
        trainer.run(0, eval_every=0)
    enter, end_epoch = trainer.enter, trainer.end_epoch

    def enter_and_forbid(stage):
        enter(stage)
        torch.cuda.set_sync_debug_mode("error")

    def end_and_allow(epoch):
        end_epoch(epoch)
        if epoch is trainer.timeline.epochs[-1]:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(trainer, "enter", enter_and_forbid)
    monkeypatch.setattr(trainer, "end_epoch", end_and_allow)
    try:
        run = trainer.run(0, eval_every=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(run.rows) == len(before.rows)
