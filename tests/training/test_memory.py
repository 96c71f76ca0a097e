"""Memory that runs out: one line, wherever it happens; nothing is kept, and the next run is as any other."""

import dataclasses
import gc
import weakref
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from fastcifar.cli import main
from fastcifar.data import Dataset
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import OutOfMemory
from fastcifar.kernels import launch
from fastcifar.models.davidnet import DavidNet
from fastcifar.recipes import AverageConfig, EMAConfig
from fastcifar.training import Listener, Trainer, TrainingState, memory, train
from fastcifar.training.step import TrainingStep
from tests.small import BARE, DAVIDNET

TRAIN = import_module("fastcifar.training.train")  # by an attribute of that name it is the function
SCORING = import_module("fastcifar.training.scoring")
DATA = make_synthetic(64, 16)
CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 5.20 GiB is free"
)


def gpu():
    raise torch.OutOfMemoryError(CUDA)


def gpu_library():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def cpu():
    torch.empty(2**60, dtype=torch.uint8)


def host():
    np.empty(2**60, dtype=np.uint8)


def python():
    raise MemoryError


def in_a_cycle():
    try:
        cpu()
    except RuntimeError as error:
        errors = [error]  # which has this frame, and so those that called it
        raise errors[0] from None


FAILURES = [gpu, gpu_library, cpu, host, python, in_a_cycle]


class Once(nn.Module):
    """A linear network that calls `fail` at a pass, counted from 1, and never again."""

    fail, at, passes = None, 0, 0

    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, classes)

    def forward(self, x):
        Once.passes += 1
        if Once.passes == Once.at:
            Once.fail()
        return self.linear(x.flatten(1))


def once(fail, at):
    Once.fail, Once.at, Once.passes = staticmethod(fail), at, -10  # a new one is called once, to look at it
    return Once


def failed(trainer, **arguments):
    """Return the error of a run."""
    with pytest.raises(OutOfMemory) as raised:
        trainer.run(3, **arguments)
    return raised.value


def trainer_that_fails(fail=cpu, at=3, recipe=BARE):
    trainer = Trainer(recipe, DATA, "cpu", model=once(fail, at))
    Once.passes = -1  # a run makes a new one
    return trainer


@pytest.mark.parametrize("fail", FAILURES)
def test_any_kind_is_told_in_a_line_with_what_to_try(fail):
    error = failed(trainer_that_fails(fail))
    assert isinstance(error, MemoryError) and error.__context__ is None and error.__cause__ is None
    told = str(error)
    assert told.startswith("out of memory on cpu at step 3 of 12: ") and "\n" not in told
    assert "batch_size is 16, evaluate.batch_size 1000; allowed: a batch_size below 16, dtype bfloat16" in told
    asked = {gpu: "20.0 GiB", gpu_library: None, python: None}.get(fail, "1,073,741,824.0 GiB")
    assert (asked is None) == ("asked for" not in told) and (asked or "") in told


@pytest.mark.parametrize("fail", [gpu, python])
def test_the_next_run_is_as_that_of_another_trainer(fail):
    trainer = trainer_that_fails(fail)
    failed(trainer)
    run, other = trainer.run(3), Trainer(BARE, DATA, "cpu", model=Once).run(3)
    assert [dataclasses.replace(row, seconds=0) for row in run.rows] == [
        dataclasses.replace(row, seconds=0) for row in other.rows
    ]
    assert all(torch.equal(run.state[name], other.state[name]) for name in other.state)


AVERAGED = dataclasses.replace(DAVIDNET, ema=EMAConfig(decay=0), average=AverageConfig(epochs=1, images=32))
PLACES = {
    (TRAIN, "build_optimizer"): "in model and optimizer",
    (TrainingState, "begin_epoch"): "in plans",
    (DavidNet, "fit_whitening"): "in whitening",
    (TrainingStep, "__call__"): "at step 1 of 12",
    (SCORING, "estimate_statistics"): "in average",
    (SCORING, "evaluate"): "in evaluation",
    (Dataset, "to"): "in data and settings",
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[1])
def test_it_says_where_and_the_trainer_goes_on(monkeypatch, place):
    trainer = None
    with monkeypatch.context() as patched, pytest.raises(OutOfMemory) as raised:
        patched.setattr(*place, lambda *args, **kwargs: cpu())
        trainer = Trainer(AVERAGED, DATA, "cpu")
        trainer.run(3)
    assert str(raised.value).startswith(f"out of memory on cpu {PLACES[place]}: ")
    assert "a smaller network.widths" in str(raised.value)
    assert ("an evaluate.batch_size below 1000" in str(raised.value)) == ("evaluation" in PLACES[place])
    if trainer:
        assert torch.equal(trainer.run(3).tta_logits, Trainer(AVERAGED, DATA, "cpu").run(3).tta_logits)


def test_in_a_listener_it_says_so():
    trainer = Trainer(BARE, DATA, "cpu")
    assert "on cpu in listeners: " in str(failed(trainer, listeners=[Listener(on_epoch=lambda row: cpu())]))


@pytest.fixture
def uncollected():
    """Without the collector of cycles nothing in one is freed."""
    Trainer(
        BARE, DATA, "cpu", model=once(cpu, 99)
    )  # a first import of a module keeps the frames that imported it, in a cycle
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(("fail", "at"), [*((fail, 3) for fail in FAILURES), (cpu, 1), (cpu, 13)])  # the evaluation
def test_an_error_that_is_kept_keeps_no_memory(uncollected, fail, at):
    trainers = [trainer_that_fails(fail, at)]  # no variable of this test, which is in the error too
    kept = [weakref.ref(part) for part in (trainers[0], trainers[0].state, trainers[0].network)]
    kept.append(weakref.ref(trainers[0].state.flat.groups[0].weights.untyped_storage()))
    with pytest.raises(OutOfMemory) as raised:
        trainers.pop().run(3)
    assert [reference() for reference in kept] == [None] * 4 and raised.value.__traceback__


def test_a_state_that_finds_no_room_is_not_called_damaged(monkeypatch):
    trainer, states = Trainer(BARE, DATA, "cpu"), []
    trainer.run(listeners=[Listener(on_epoch=lambda row: states.append(trainer.state.state_dict()))])
    monkeypatch.setattr("fastcifar.training.state.copy_tensors", lambda *args, **kwargs: gpu())
    assert "on cpu in model and optimizer: 20.0 GiB more" in str(failed(trainer, resume=states[0]))


def test_before_there_is_a_trainer_it_says_what_torch_says(monkeypatch):
    monkeypatch.setattr(TRAIN, "load_dataset", lambda *args: gpu())
    with pytest.raises(
        OutOfMemory, match=r"^out of memory: CUDA out of memory\. Tried to allocate 20\.00 GiB.*; allowed: "
    ):
        train(BARE, "synthetic", device="cpu")


@pytest.mark.parametrize("at", [1, 2])
def test_a_model_that_is_looked_at_is_told_as_well(at):
    with pytest.raises(OutOfMemory, match="out of memory on cpu in model and optimizer: "):
        train(BARE, DATA, device="cpu", model=once(cpu, at - 10))


def test_an_error_of_train_keeps_no_memory(uncollected):
    kept = []
    start = Listener(on_start=lambda trainer: kept.append(weakref.ref(trainer)))
    with pytest.raises(OutOfMemory) as raised:
        train(BARE, DATA, device="cpu", model=once(cpu, -3), listeners=[start])
    assert kept[0]() is None and raised.value.__traceback__


def test_the_variables_of_an_error_that_is_being_handled_stay():
    def outer(mark):
        raise KeyError(mark)

    try:
        outer("here")
    except KeyError as error:
        failed(trainer_that_fails())
        assert error.__traceback__.tb_next.tb_frame.f_locals["mark"] == "here"


def test_the_programs_settings_and_random_numbers_are_as_before():
    def settings():
        flags = torch.backends.cudnn.benchmark, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return *flags, torch.get_default_dtype(), torch.get_default_device(), torch.get_rng_state().tolist()

    before = settings()
    for at in (3, 13):
        failed(trainer_that_fails(at=at, recipe=dataclasses.replace(BARE, cudnn_search=True)))
        assert settings() == before


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(2, "no file")])
def test_other_errors_are_what_they_were(error):
    def fail():
        raise error

    with pytest.raises(type(error)) as raised:
        trainer_that_fails(fail).run(3)
    assert raised.value is error


def test_a_full_gpu_is_no_reason_to_go_without_triton(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: gpu())
    with pytest.raises(torch.OutOfMemoryError):
        launch._triton_works.__wrapped__()


def test_a_gpu_names_what_is_free_and_other_processes(monkeypatch):
    trainer = trainer_that_fails(gpu)
    trainer.device = torch.device("cuda", 0)
    trainer.phases.failed = "training: steps"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 2**30, 79 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 * 2**30)
    told = str(memory.out_of_memory(torch.OutOfMemoryError(CUDA), trainer))
    assert "on cuda:0 at step 1 of 12: 20.0 GiB more were asked for, 5.0 GiB of 79.0 GiB are free" in told
    assert told.endswith("dtype float16, a smaller model, to end other processes on this GPU, which have 54.0 GiB")


def test_the_command_line_exits_with_a_status_of_its_own(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainingStep, "__call__", lambda *args: cpu())
    assert main(["train", "--dataset", "synthetic", "--quick", "--network", "mlp", "--quiet"]) == 5
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("fastcifar: out of memory on cpu at step 1 of ")


@pytest.mark.parametrize("fail", [gpu, cpu, python])
def test_the_command_line_tells_it_of_any_command(monkeypatch, capsys, fail):
    monkeypatch.setattr("fastcifar.data.load_dataset", lambda *args: fail())
    assert main(["data", "info"]) == 5
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("fastcifar: out of memory: ")
