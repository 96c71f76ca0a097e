"""`compile = "step"`: the same training through torch.compile, and no compiler needed where there is none."""

import dataclasses
import warnings
from functools import partial
from importlib import import_module

import pytest
import torch
from functorch.compile import make_boxed_compiler
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.phases import Phases
from fastcifar.recipes import Recipe, change
from fastcifar.training import Trainer
from fastcifar.training import compiled as compiled_module
from fastcifar.training.compiled import CompiledNetwork, missing_compiler
from tests.small import DAVIDNET

train_module = import_module("fastcifar.training.train")  # by an attribute of that name it is the function

PLAIN = change(DAVIDNET, {"epochs": 1, "network.residual": ()})
COMPILED = dataclasses.replace(PLAIN, compile="step")


@pytest.fixture(scope="module")
def data():
    return make_synthetic(96, 32)


@pytest.fixture(scope="module")
def plain(data):
    return Trainer(PLAIN, data, "cpu").run(0)


@pytest.fixture
def compilers(tmp_path, monkeypatch):
    """torch.compile and inductor as in a new process, with a cache folder of their own."""
    if missing_compiler(torch.device("cpu")):
        pytest.skip("there is no C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    with inductor_config.patch(compile_threads=1):  # monkeypatch would leave the setting deleted
        yield tmp_path
    torch.compiler.reset()


def through(monkeypatch, backend):
    """Compile by `backend` in place of inductor."""
    monkeypatch.setattr(train_module, "CompiledNetwork", partial(CompiledNetwork, backend=backend))


def test_a_training_compiled_by_inductor_is_the_training(data, plain, compilers):
    counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile is")
        trainer = Trainer(COMPILED, data, "cpu", Phases())
        trainer.rehearse()
        ahead = dict(counters["frames"])
        compiled = trainer.run(0)
    assert ahead["ok"] > 0
    assert counters["frames"] == ahead  # nothing is compiled while the watch runs
    assert (compiled.record.compiled, plain.record.compiled) == (True, False)
    assert compiled.record.phases["kernel compilation"] > 0
    assert compiled.rows[0].train_loss == pytest.approx(plain.rows[0].train_loss, rel=1e-5)
    torch.testing.assert_close(compiled.tta_logits, plain.tta_logits, rtol=1e-3, atol=1e-4)
    for (name, ours), theirs in zip(
        compiled.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_where_a_pass_does_not_compile_one_line_says_so_and_the_training_is_the_one_that_is_not_compiled(
    data, plain, monkeypatch, fails
):
    def compiler(name):
        def broken(graph, inputs):
            raise OSError("a compiler\nwith a fault")

        return make_boxed_compiler(broken if name == fails else lambda graph, inputs: graph)

    torch.compiler.reset()
    through(monkeypatch, aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward")))
    with pytest.warns(UserWarning, match="stays as it is: .*a compiler with a fault") as said:
        run = Trainer(COMPILED, data, "cpu").run(0)
    assert len([one for one in said if "compile is" in str(one.message)]) == 1
    assert run.record.compiled is False
    assert torch.equal(run.tta_logits, plain.tta_logits)
    for ours, theirs in zip(run.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_step_that_fails_uncompiled_too_raises_its_own_error_without_a_word_of_compiling(data, monkeypatch):
    def loss(logits, labels):
        raise ZeroDivisionError("the loss's own")

    through(monkeypatch, "eager")
    torch.compiler.reset()
    with warnings.catch_warnings(), pytest.raises(ZeroDivisionError, match="the loss's own"):
        warnings.simplefilter("error")
        Trainer(COMPILED, data, "cpu", loss=loss).run(0)


def test_a_torch_that_compiles_wrong_is_told(monkeypatch):
    monkeypatch.setattr(compiled_module, "_RIGHT_FROM", "99.1")
    assert str(missing_compiler(torch.device("cpu"))).endswith("before 99.1 its running variances would be wrong")


def test_without_a_compiler_one_line_says_so_and_the_training_goes_on(data, monkeypatch):
    monkeypatch.setattr(compiled_module, "_RIGHT_FROM", "1")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing_compiler(torch.device("cpu")) == "there is no C++ compiler no-such-compiler"
    with pytest.warns(UserWarning, match="stays as it is: there is no C") as said:
        run = Trainer(COMPILED, data, "cpu").run(0)
    assert len(said) == 1
    assert run.record.compiled is False
    assert torch.equal(run.tta_logits, Trainer(PLAIN, data, "cpu").run(0).tta_logits)


def test_without_triton_nothing_is_compiled_for_cuda(monkeypatch):
    monkeypatch.setattr(compiled_module, "_RIGHT_FROM", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing_compiler(torch.device("cuda")) == "there is no Triton"


def test_another_value_is_refused():
    with pytest.raises(UserError, match="compile is 'all'; allowed: one of off, step"):
        Recipe(compile="all")
