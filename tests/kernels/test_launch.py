"""What kernels are launched with, and what an operator's schema is made of."""

import pytest
import torch

from fastcifar.kernels import launch
from fastcifar.kernels.launch import LaunchSizes
from fastcifar.kernels.operators import operator

TABLE = LaunchSizes({(8, 0): "ampere", (9, 0): "hopper"}, interpreted="interpreter")


@pytest.mark.parametrize(
    ("capability", "row"),
    [((7, 5), "ampere"), ((8, 0), "ampere"), ((8, 9), "ampere"), ((9, 0), "hopper"), ((12, 0), "hopper")],
)
def test_a_gpu_takes_the_newest_sizes_that_are_not_newer_than_itself(monkeypatch, capability, row):
    monkeypatch.setattr(launch, "_gpu_of", lambda tensor: (capability, 108))
    assert TABLE.of(torch.empty(0)) == row
    assert launch.multiprocessors(torch.empty(0)) == 108


def test_a_tensor_on_no_gpu_takes_the_sizes_of_the_interpreter():
    assert TABLE.of(torch.empty(0)) == "interpreter"
    assert launch.multiprocessors(torch.empty(0)) == 1


def test_the_smallest_kernel_writes_its_one(path, device):
    if path == "reference":
        pytest.skip("it has none")
    from fastcifar.kernels.smallest import write_one

    out = torch.zeros(2, device=device)
    write_one[(1,)](out)
    assert out.tolist() == [1, 0]


def test_an_operators_schema_is_its_functions_signature():
    def of_schemas(x: torch.Tensor, out: torch.Tensor | None, steps: int, decay: float) -> torch.Tensor:
        return x.clone()

    operator("of_schemas", lambda *_: None, lambda *_: None, signature=of_schemas, mutates=("out",))
    x, out, steps, _ = torch.ops.fastcifar.of_schemas.default._schema.arguments
    assert (x.alias_info, out.alias_info.is_write) == (None, True)
    assert (str(out.type), str(steps.real_type)) == ("Optional[Tensor]", "int")
