import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar.kernels import update_running_statistics


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.integers(1, 40),
    channels=st.integers(1, 150),
    count=st.integers(1, 9),
    momentum=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_they_move_towards_the_groups_mean(path, device, assert_close, groups, channels, count, momentum, seed):
    torch.manual_seed(seed)
    running = torch.randn(2, channels, device=device)
    mean, var = (torch.randn(groups, channels, device=device) for _ in range(2))
    expected = torch.stack([mean.double().mean(0), var.double().mean(0) * (count / max(1, count - 1))])
    expected = running.double() * (1 - momentum) + momentum * expected
    update_running_statistics(*running, mean, var, momentum=momentum, count=count)
    assert_close(running, expected, torch.float32)


def test_they_are_those_of_torchs_batch_norm(path, device):
    norm = torch.nn.BatchNorm2d(6, momentum=0.3).to(device)
    x = torch.randn(4, 6, 3, 5, device=device)
    norm(x)
    running_mean, running_var = torch.zeros(6, device=device), torch.ones(6, device=device)
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    update_running_statistics(running_mean, running_var, mean[None], var[None], momentum=0.3, count=4 * 3 * 5)
    torch.testing.assert_close(running_mean, norm.running_mean)
    torch.testing.assert_close(running_var, norm.running_var)


@pytest.mark.parametrize("wrong", ["running_mean", "running_var", "mean", "var"])
def test_other_shapes_are_refused(wrong):
    tensors = {name: torch.zeros(3) for name in ("running_mean", "running_var")}
    tensors |= {name: torch.zeros(2, 3) for name in ("mean", "var")}
    tensors[wrong] = torch.zeros(2, 2, 3) if wrong.startswith("running") else torch.zeros(2, 4)
    with pytest.raises(ValueError, match="allowed"):
        update_running_statistics(*tensors.values(), momentum=0.1, count=4)


def test_the_operator_is_registered_right():
    running, batch = torch.zeros(3), torch.rand(2, 3)
    torch.library.opcheck(
        torch.ops.fastcifar.update_running_statistics, (running, running.clone(), batch, batch.clone(), 0.1, 1.5)
    )
