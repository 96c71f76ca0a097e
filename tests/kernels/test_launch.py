"""What kernels are launched with, and what an operator's schema is made of."""

import types

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


@pytest.mark.parametrize(
    ("capability", "dependent"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), True), ((12, 0), True)]
)
def test_kernels_are_dependent_launches_where_the_gpu_can_unless_switched_off(monkeypatch, capability, dependent):
    class Kernel:
        def warmup(self, *arguments, grid, **options):
            return options.get("launch_pdl", False)

    monkeypatch.setattr(launch, "_gpu_of", lambda tensor: (capability, 108))
    with launch.compile_only() as compiled:
        for switch in (True, False):
            monkeypatch.setattr(launch, "DEPENDENT_LAUNCHES", switch)
            launch.launch(Kernel(), (1,), torch.zeros(1))
    assert compiled == [dependent, False]


@pytest.mark.parametrize(("driver", "dependent"), [(12020, False), (12030, True), (13000, True)])
def test_a_driver_that_cannot_record_dependent_launches_makes_none(monkeypatch, driver, dependent):
    monkeypatch.setattr(launch, "_gpu_of", lambda tensor: ((9, 0), 132))
    monkeypatch.setattr(launch, "_driver_version", lambda: driver)
    assert launch._can_be_dependent(types.SimpleNamespace(is_cuda=True)) == dependent


@pytest.mark.gpu
def test_the_driver_is_for_the_cuda_that_torch_is_built_with_or_a_later_minor_version():
    assert launch._driver_version() // 1000 >= int((torch.version.cuda or "0").split(".")[0])


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
