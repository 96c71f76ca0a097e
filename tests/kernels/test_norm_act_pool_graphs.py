"""`norm_act_pool` as an operator of torch: its declaration, graphs that are compiled, graphs that CUDA captures."""

import pytest
import torch

from fastcifar.kernels import norm_act_pool, norm_act_pool_inference
from tests.kernels.test_norm_act_pool import PATHS as PATHS
from tests.kernels.test_norm_act_pool import run, tensors


@pytest.mark.parametrize(("pool", "border"), [(False, False), (True, True), (False, True)])
def test_are_well_formed_operators(monkeypatch, pool, border):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    x, bias, scale, residual, gradient = tensors((4, 3, 5, 4), pool=pool, residual=pool, border=border)
    inputs = [None if t is None else t.requires_grad_() for t in (x, bias, scale, residual)]
    operators = torch.ops.fastcifar
    constants = ("celu", 0.3, pool, 1e-5, inputs[3], border)
    running = (torch.zeros(3), torch.ones(3), 0.1)
    torch.library.opcheck(operators.norm_act_pool.default, (*inputs[:3], *running, 2, *constants))
    out, mean, var, pooled, argmax = (t.detach() for t in operators.norm_act_pool(*inputs[:3], *running, 2, *constants))
    saved = (pooled, argmax, None) if pool else (x.detach(), None, out)
    for activation in ("celu", "sum_relu"):
        saved = (*saved[:2], out) if activation == "sum_relu" else saved
        torch.library.opcheck(
            operators.norm_act_pool_backward.default,
            (gradient, *saved, mean, var, bias.detach(), scale.detach(), activation, 0.3, 1e-5, 5, 4, border),
        )
    vectors = (torch.zeros(3), torch.ones(3), bias.detach(), None)
    torch.library.opcheck(
        operators.norm_act_pool_inference.default, (x.detach(), *vectors, *constants[:-2], None, border)
    )


@pytest.mark.parametrize("pool", [False, True])
def test_compiles_into_one_graph(path, device, pool):
    x, bias, scale, residual, gradient = tensors((4, 3, 4, 4), pool=pool, residual=True, border=pool, device=device)

    def double(x, bias, scale, *, residual):
        out, mean, var = norm_act_pool(x * 2, bias, scale, groups=2, pool=pool, residual=residual, border=pool)
        return out, mean, norm_act_pool_inference(x, bias, scale, bias, pool=pool, border=not pool) + var.sum()

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    results = [run(function, x, bias, scale, residual, gradient) for function in (compiled, double)]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", [False, True])
def test_one_compiled_graph_takes_any_batch_and_size(monkeypatch, pool):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def grouped(x, bias):
        groups = x.shape[0] // 2
        return (
            norm_act_pool(x, bias, groups=groups, pool=pool)[0]
            + norm_act_pool_inference(x, bias, bias.exp(), bias)[:, :, :: 1 + pool, :: 1 + pool]
        )

    compiled = torch.compile(grouped, fullgraph=True, dynamic=True, backend=count)
    with torch.no_grad():
        for images, height, width in ((4, 6, 8), (6, 8, 10), (10, 12, 14)):
            x, bias, *_ = tensors((images, 3, height, width))
            torch.testing.assert_close(compiled(x, bias), grouped(x, bias), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("pool", [False, True])
def test_a_captured_graph_replays_with_new_images(path, pool):
    x, bias, scale, residual, gradient = tensors((4, 8, 6, 6), pool=pool, residual=True, device="cuda")
    inputs = [t.requires_grad_() for t in (x, bias, scale, residual)]

    def step():
        out, mean, var = norm_act_pool(*inputs[:3], groups=2, pool=pool, residual=inputs[3])
        return [out, mean, var, *torch.autograd.grad(out, inputs, gradient)]

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static = step()
    x.data.copy_(torch.randn_like(x))
    graph.replay()
    assert all(torch.equal(*pair) for pair in zip(static, step(), strict=True))
