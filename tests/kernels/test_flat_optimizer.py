import inspect

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar import kernels
from fastcifar.kernels import flat_ema, flat_sgd

RATES = [0.1, 0.3, 0.2]


def formula(weights, grads, velocity, ema, step, *, factor, momentum, decay, form, grad_scale, ema_decay, ema_every):
    """Return the step as the docstring says it, in float64: `(weights, velocity, ema)`."""
    weights, velocity, ema = weights.double(), velocity.double(), ema.double()
    lr = RATES[min(step, len(RATES) - 1)] * factor
    gradient = grads.double() * grad_scale + decay * weights
    if form == "page":
        velocity = momentum * velocity - lr * gradient
        weights = weights - lr * gradient + momentum * velocity
    else:
        velocity = momentum * velocity + gradient
        weights = weights - lr * (gradient + momentum * velocity)
    if step % ema_every == 0:
        ema = ema_decay * ema + (1 - ema_decay) * weights
    return weights, velocity, ema


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 400),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    form=st.sampled_from(["page", "torch"]),
    step=st.integers(0, 7),
    seed=st.integers(0, 99),
)
def test_a_step_is_its_formula(path, device, assert_close, length, dtype, form, step, seed):
    torch.manual_seed(seed)
    weights, velocity, ema = (torch.randn(length, device=device) for _ in range(3))
    grads = torch.randn(length, device=device).to(dtype)
    compute = torch.full((length,), torch.nan, dtype=dtype, device=device)
    expected = formula(
        *(weights, grads, velocity, ema, step),
        **{"factor": 0.5, "momentum": 0.9, "decay": 0.01, "form": form},
        **{"grad_scale": 0.25, "ema_decay": 0.8, "ema_every": 3},
    )
    flat_sgd(
        *(weights, grads, velocity, compute, ema, torch.tensor(RATES, device=device)),
        torch.tensor([step], device=device),
        **{"lr_factor": 0.5, "momentum": 0.9, "weight_decay": 0.01, "form": form},
        **{"grad_scale": 0.25, "ema_decay": 0.8, "ema_every": 3},
    )
    for out, reference in zip((weights, velocity, ema), expected, strict=True):
        assert_close(out, reference, torch.float32)
    assert_close(compute, expected[0], dtype)


def test_the_torch_form_is_torchs_sgd(path, device, assert_close):
    weights, velocity = torch.randn(50, device=device), torch.zeros(50, device=device)
    parameter = weights.double().clone().requires_grad_()
    rates = torch.tensor([0.1] * 4, device=device)
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for step in range(4):
        grads = torch.randn(50, device=device)
        parameter.grad = grads.double()
        optimizer.step()
        counter = torch.tensor([step], device=device)
        flat_sgd(*(weights, grads, velocity, None, None, rates, counter), momentum=0.9, weight_decay=0.01, form="torch")
    assert_close(weights, parameter, torch.float32)


def test_unless_told_otherwise_the_rate_and_gradient_are_as_given_and_the_average_is_the_weights(path, device):
    weights, ema = torch.zeros(9, device=device), torch.ones(9, device=device)
    rates, step = torch.tensor([0.5], device=device), torch.tensor([1], device=device)
    flat_sgd(weights, torch.ones_like(ema), ema * 0, None, ema, rates, step, momentum=0.0, weight_decay=0.0)
    assert weights.tolist() == ema.tolist() == [-0.5] * 9


def test_the_average_moves_only_when_it_is_due(path, device):
    values, ema = torch.ones(300, device=device), torch.zeros(300, device=device)
    seen = []
    for step in range(5):
        flat_ema(values, ema, torch.tensor([step], device=device), ema_decay=0.5, ema_every=2)
        seen.append(ema.unique().item())
    assert seen == [0.5, 0.5, 0.75, 0.75, 0.875]


def test_what_is_none_is_left_out_and_what_is_read_is_not_written(path, device):
    weights, grads, velocity = (torch.randn(70, device=device) for _ in range(3))
    rates, step = torch.tensor(RATES, device=device), torch.tensor([1], device=device)
    read = (grads, rates, step)
    before = [tensor.clone() for tensor in read]
    old = weights.clone()
    flat_sgd(weights, grads, velocity, None, None, rates, step, momentum=0.9, weight_decay=0.0)
    assert all(torch.equal(*pair) for pair in zip(read, before, strict=True))
    assert not torch.equal(weights, old)


def test_what_does_not_fit_is_refused_by_name():
    buffers = {name: torch.zeros(8) for name in ("weights", "grads", "velocity", "compute", "ema")}
    rest = {"rates": torch.zeros(2), "step": torch.zeros(1, dtype=torch.int64), "momentum": 0.9, "weight_decay": 0.0}
    for name in ("grads", "velocity", "compute", "ema"):
        for wrong in (torch.zeros(7), torch.zeros(16)[::2]):
            with pytest.raises(ValueError, match=rf"^{name} .*; allowed: "):
                flat_sgd(**{**buffers, name: wrong}, **rest)
    with pytest.raises(ValueError, match="form is 'adam'; allowed: page, torch"):
        flat_sgd(**buffers, **rest, form="adam")


def test_are_well_formed_operators(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    step, rates = torch.tensor([1]), torch.tensor(RATES)
    constants = (1.0, 0.9, 0.1, "page", 1.0, 0.9, 1)
    for compute, ema in ((None, None), (torch.zeros(8, dtype=torch.bfloat16), torch.zeros(8))):
        buffers = (torch.randn(8), torch.randn(8), torch.randn(8), compute, ema)
        torch.library.opcheck(torch.ops.fastcifar.flat_sgd.default, (*buffers, rates, step, *constants))
    torch.library.opcheck(torch.ops.fastcifar.flat_ema.default, (torch.randn(8), torch.randn(8), step, 0.9, 1))


def test_compiles_into_one_graph(path, device):
    rates, step = torch.tensor(RATES, device=device), torch.tensor([0], device=device)
    both = [[torch.arange(9.0, device=device) + offset for offset in range(4)] for _ in range(2)]

    def update(weights, grads, velocity, ema):
        flat_sgd(weights, grads, velocity, None, ema, rates, step, momentum=0.9, weight_decay=0.1, ema_decay=0.5)

    torch.compile(update, fullgraph=True, backend="aot_eager")(*both[0])
    update(*both[1])
    assert all(torch.equal(*pair) for pair in zip(*both, strict=True))


@pytest.mark.gpu
def test_a_captured_graph_replays_with_the_next_rate(path):
    rates, step = torch.tensor([0.0, 0.5], device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    weights, grads, velocity, ema = (torch.randn(100, device="cuda") for _ in range(4))
    arguments = (weights, grads, velocity, None, ema, rates, step)
    constants = {"momentum": 0.0, "weight_decay": 0.0, "ema_decay": 0.5, "ema_every": 2}
    flat_sgd(*arguments, **constants)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        flat_sgd(*arguments, **constants)
    old_weights, old_ema = weights.clone(), ema.clone()
    step.fill_(1)
    graph.replay()
    assert torch.equal(ema, old_ema)
    assert torch.allclose(weights, old_weights - 0.5 * grads)


@pytest.mark.parametrize("operation", ["flat_sgd", "flat_ema"])
def test_the_reference_has_the_operations_defaults(operation):
    names = operation, f"{operation}_reference"
    ours, reference = (inspect.signature(getattr(kernels, name)).parameters for name in names)
    defaults = ({name: each.default for name, each in parameters.items()} for parameters in (ours, reference))
    assert next(defaults) == next(defaults)


@pytest.mark.parametrize("name", ["weights", "grads", "ema"])
def test_where_a_gradient_is_wanted_it_is_refused(name):
    buffers = {each: torch.ones(4) for each in ("weights", "grads", "velocity", "compute", "ema")}
    buffers[name].requires_grad_()
    rates, step = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"^{name} wants a gradient; allowed: none, or torch\.no_grad\(\)$"):
        flat_sgd(**buffers, rates=rates, step=step, momentum=0.9, weight_decay=0.1)
    with torch.no_grad():
        flat_sgd(**buffers, rates=rates, step=step, momentum=0.9, weight_decay=0.1)
    assert buffers["weights"][0] != 1
