"""Every public module under ordinary torch use: dtypes, autocast, checkpointing, export, copies, inductor.

A new public module has a line in modules.py; `test_every_public_module_is_here` fails without one.
"""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastcifar
from fastcifar.training.compiled import missing_compiler
from tests.modules import MODULES, assert_close, assert_no_worse, gradients, make, plain, running

COMPILER = missing_compiler(torch.device("cpu"))
each_module = pytest.mark.parametrize("name", MODULES)


def test_every_public_module_is_here():
    public = {name: getattr(fastcifar, name) for name in fastcifar.__all__}
    modules = {name for name, value in public.items() if isinstance(value, type) and issubclass(value, nn.Module)}
    assert modules - {"Network"} == MODULES.keys()


@each_module
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradients_are_those_of_plain_torch(name, mode):
    module, x = make(name)
    module.train(mode == "train")
    found = gradients(module, x)
    assert_close(found, gradients(plain(module).double(), x.double()))


@each_module
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16], ids=["float64", "float16", "bfloat16"]
)
def test_a_whole_module_in_another_dtype(name, mode, dtype):
    module, x = make(name)
    module.train(mode == "train")
    wanted, theirs = gradients(module, x), gradients(plain(module).to(dtype), x.to(dtype))
    found = gradients(module.to(dtype), x.to(dtype))
    assert {tensor.dtype for tensor in found} == {dtype}
    assert_no_worse(found, theirs, wanted)


@each_module
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_autocast(name, mode):
    module, x = make(name)
    module.train(mode == "train")

    def call(module, x):
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)

    found, theirs = gradients(module, x, call), gradients(plain(module), x, call)
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in theirs]
    assert_no_worse(found, theirs, gradients(module, x))


@each_module
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_checkpointing_gives_the_same_gradients(name, mode):
    module, x = make(name)
    module.train(mode == "train")
    found = gradients(module, x, lambda module, x: checkpoint(module, x, use_reentrant=False))
    assert_close(found, gradients(module, x), 1e-6)


@each_module
def test_an_exported_module_takes_any_batch(name):
    module, x = make(name)
    batch = {0: torch.export.Dim("batch", min=2)}
    exported = torch.export.export(module.eval(), (x,), dynamic_shapes=(batch,)).module()
    for size in (5, 8, 12):
        torch.testing.assert_close(exported(make(name, size)[1]), module(make(name, size)[1]))


@each_module
@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), None])
def test_a_copy_is_the_same_and_apart(name, again):
    def saved(module: nn.Module) -> nn.Module:
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        other = make(name)[0]
        other.load_state_dict(torch.load(file, weights_only=True))
        return other

    module, x = make(name)
    other = (again or saved)(module)
    assert_close(gradients(other.eval(), x), gradients(module.eval(), x), 0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert_close(gradients(module, x), gradients(make(name)[0].eval(), x), 0)


@pytest.mark.skipif(COMPILER is not None, reason=str(COMPILER))
def test_all_modules_through_inductor():
    """In one graph: inductor takes seconds to compile any."""

    class Every(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.ModuleDict({name: make(name)[0] for name in MODULES})

        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: module(inputs[name]) for name, module in self.each.items()}

    inputs = {name: make(name)[1].requires_grad_() for name in MODULES}
    every = Every()
    outputs = torch.compile(every, dynamic=False)(inputs)
    for name, out in outputs.items():
        weights = torch.linspace(-1, 2, out.numel()).view(out.shape)
        parameters = [parameter for parameter in every.each[name].parameters() if parameter.requires_grad]
        found = torch.autograd.grad((out * weights).sum(), [inputs[name], *parameters], retain_graph=True)
        module, x = make(name)
        assert_close([out.detach(), *found], gradients(module, x))
        assert_close(running(every.each[name]), running(module))
