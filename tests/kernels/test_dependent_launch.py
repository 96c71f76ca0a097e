"""A kernel that is set up while the one before still runs waits for it before it touches memory."""

import ast
import re
from pathlib import Path

import pytest
import torch

from fastcifar.kernels import flat_ema, launch
from fastcifar.training.capture import record
from tests.kernels.machine_code import CASES


def _launched() -> dict[str, ast.FunctionDef]:
    """Return the kernels that `launch` is called with, by name."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in Path(launch.__file__).parent.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "launch"]
    return {name: functions[name] for name in (ast.unparse(call.args[0]) for call in calls)}


@pytest.mark.parametrize("name", sorted(_launched()))
def test_a_kernel_begins_with_the_wait(name):
    kernel = _launched()[name]
    body = kernel.body[1:] if ast.get_docstring(kernel) else kernel.body
    assert ast.unparse(body[0]) == "wait_for_inputs()"


GLOBAL = re.compile(r"\b(ld|st|atom|red|cp|prefetch)\.\S*global|\bprefetch|\bbra\b")
"""An access of global memory in PTX, or a branch, which could lead around a wait."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_kernels_wait_before_their_first_access_where_they_are_dependent_launches(compiled, case):
    for name, found in compiled[case].items():
        for kernel in found:
            code = kernel["ptx"].partition(".entry")[2]
            first = GLOBAL.search(code)
            assert first, name
            waits, lets = (code.find(f"griddepcontrol.{what}") for what in ("wait", "launch_dependents"))
            if case[0] >= 90:
                assert 0 < waits < lets < first.start(), name
            else:
                assert waits == lets == -1, name


def test_every_kernel_of_the_package_is_compiled_as_a_dependent_launch(compiled):
    of_recipes = {name for case in CASES for name, found in compiled[case].items() if found}
    assert {name for name, found in compiled[CASES[2]].items() if found} >= of_recipes & set(_launched())


@pytest.mark.gpu
@pytest.mark.parametrize("length", [100, 5_000_000])
def test_a_graph_of_two_streams_computes_what_one_kernel_after_another_does(monkeypatch, length):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "triton")
    count = torch.zeros(1, dtype=torch.int64, device="cuda")

    def move(ema: torch.Tensor, values: torch.Tensor, decay: float) -> None:
        flat_ema(values, ema, count, ema_decay=decay, ema_every=1)

    def run(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, side: torch.cuda.Stream) -> None:
        current = torch.cuda.current_stream()
        for _ in range(8):
            move(b, a, 0.5)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                move(c, b, 0.75)
                move(c, b, 0.25)
            move(a, b, 0.25)  # b is read in both streams
            current.wait_stream(side)
            move(b, c, 0.5)
        a.mul_(1.01)  # a kernel of torch's

    tensors = [torch.randn(length, device="cuda") for _ in range(3)]
    expected = [tensor.clone() for tensor in tensors]
    monkeypatch.setattr(launch, "DEPENDENT_LAUNCHES", False)
    for _ in range(20):
        run(*expected, torch.cuda.current_stream())
    monkeypatch.setattr(launch, "DEPENDENT_LAUNCHES", True)
    side = torch.cuda.Stream()
    run(*(tensor.clone() for tensor in tensors), side)  # compiled and loaded
    torch.cuda.synchronize()
    graph = record(lambda: run(*tensors, side))
    for _ in range(20):
        graph.replay()
    assert all(torch.equal(*pair) for pair in zip(tensors, expected, strict=True))
