"""cuDNN's own search is on while a recipe that asks for it trains, and at no other time."""

import dataclasses

import pytest
import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.host import ProcessSetting
from fastcifar.recipes import recipe_from_dict
from fastcifar.training import Listener, Trainer, device
from fastcifar.training.device import cudnn_search
from fastcifar.training.rehearse import replay_on_noise, step_on_noise
from tests.small import MLP

RECIPE = dataclasses.replace(MLP, epochs=1, cudnn_search=True)


@pytest.fixture(params=[False, True], ids=["off before", "on before"])
def before(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", request.param)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    return request.param


def is_on() -> bool:
    assert torch.backends.cudnn.deterministic  # no other flag is touched
    return torch.backends.cudnn.benchmark


def test_it_is_on_in_every_pass_of_a_training_and_then_as_it_was(before):
    trainer, seen = Trainer(RECIPE, make_synthetic(64, 16)), []
    for network in (trainer.network, trainer.evaluated):
        network.register_forward_pre_hook(lambda module, inputs: seen.append(is_on()))
    trainer.run(0)
    assert len(seen) > 2 and all(seen) and is_on() == before
    seen.clear()
    step_on_noise(trainer)()
    replay_on_noise(trainer)()
    assert len(seen) == 2 and all(seen) and is_on() == before


def test_listeners_have_torch_as_the_program_set_it(before):
    seen = []
    listener = Listener(
        on_start=lambda trainer: seen.append(is_on()),
        on_step=lambda step, total: seen.append(is_on()),
        on_epoch=lambda row: seen.append(is_on()),
        on_end=lambda record: seen.append(is_on()),
    )
    Trainer(RECIPE, make_synthetic(64, 16)).run(0, listeners=[listener])
    assert len(seen) > 3 and set(seen) == {before} and is_on() == before


def test_without_it_torch_stays_as_it_is_set(before):
    trainer, seen = Trainer(dataclasses.replace(RECIPE, cudnn_search=False), make_synthetic(64, 16)), []
    trainer.model.register_forward_pre_hook(lambda module, inputs: seen.append(is_on()))
    trainer.run(0)
    assert set(seen) == {before} and is_on() == before


def test_a_failure_leaves_it_as_it_was(before):
    with pytest.raises(ZeroDivisionError), cudnn_search(True):
        assert is_on()
        raise ZeroDivisionError
    assert is_on() == before


def test_all_that_cudnn_has_is_tried_and_torchs_limit_restored(monkeypatch):
    limits = [10]
    monkeypatch.setattr(device, "_cudnn_limit", ProcessSetting(lambda: limits[-1], limits.append))
    with cudnn_search(False):
        assert limits == [10]
    with cudnn_search(True):
        assert limits == [10, 0]
    assert limits == [10, 0, 10]


def test_a_record_from_before_the_field_is_a_recipe_without_it():
    fields = dataclasses.asdict(RECIPE)
    del fields["cudnn_search"]
    assert recipe_from_dict(fields) == dataclasses.replace(RECIPE, cudnn_search=False)
