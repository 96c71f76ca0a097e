"""`compile = "step"`: the same training through torch.compile, and no compiler needed where there is none."""

import dataclasses
import warnings
from importlib import import_module

import pytest
import torch
from torch._dynamo.utils import counters

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.recipes import Recipe, change
from fastcifar.training import Trainer
from fastcifar.training.compiled import CompiledNetwork, missing_compiler
from tests.small import DAVIDNET

train_module = import_module("fastcifar.training.train")  # by an attribute of that name it is the function

PLAIN = change(DAVIDNET, {"epochs": 1, "network.residual": ()})
COMPILED = dataclasses.replace(PLAIN, compile="step")


@pytest.fixture(scope="module")
def data():
    return make_synthetic(96, 32)


def test_a_compiled_training_is_the_training(data, monkeypatch):
    def traced(model, device):  # by torch.compile's own machinery, without a C++ compiler's minute
        return CompiledNetwork(model, device, backend="aot_eager")

    monkeypatch.setattr(train_module, "CompiledNetwork", traced)
    counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile is")
        trainer = Trainer(COMPILED, data)
        trainer.rehearse()
        ahead = dict(counters["frames"])
        compiled = trainer.run(0)
    assert ahead["ok"] > 0
    assert counters["frames"] == ahead  # nothing is compiled while the watch runs
    plain = Trainer(PLAIN, data).run(0)
    assert (compiled.record.compiled, plain.record.compiled) == (True, False)
    assert compiled.record.phases["kernel compilation"] > 0
    assert compiled.rows[0].train_loss == pytest.approx(plain.rows[0].train_loss, rel=1e-5)
    torch.testing.assert_close(compiled.tta_logits, plain.tta_logits, rtol=1e-3, atol=1e-4)


def test_without_a_compiler_one_line_says_so_and_the_training_goes_on(data, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing_compiler(torch.device("cpu")) == "there is no C++ compiler no-such-compiler"
    with pytest.warns(UserWarning, match="stays as it is: there is no C") as said:
        run = Trainer(COMPILED, data, "cpu").run(0)
    assert len(said) == 1
    assert run.record.compiled is False
    assert torch.equal(run.tta_logits, Trainer(PLAIN, data, "cpu").run(0).tta_logits)


def test_without_triton_nothing_is_compiled_for_cuda(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing_compiler(torch.device("cuda")) == "there is no Triton"


def test_where_compiling_fails_one_line_says_so_and_the_network_is_called_as_it_is():
    def broken(graph, inputs):
        raise RuntimeError("a compiler\nwith a fault")

    model = torch.nn.Linear(3, 2)
    network = CompiledNetwork(model, torch.device("cpu"), backend=broken)
    images = torch.ones(1, 3)
    with pytest.warns(UserWarning, match="stays as it is: .*a compiler with a fault") as said:
        assert torch.equal(network(images), model(images))
    assert torch.equal(network(images), model(images))
    assert len(said) == 1
    assert "\n" not in str(said[0].message)


def test_another_value_is_refused():
    with pytest.raises(UserError, match="compile is 'all'; allowed: one of off, step"):
        Recipe(compile="all")
