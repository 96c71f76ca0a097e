"""DASH: the formula kernel by kernel, and what it leaves alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.errors import UserError
from fastcifar.plasticity import dash


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    return nn.Sequential(*layers).to(dtype)


def batches(dtype=torch.float64):
    torch.manual_seed(1)
    return [(torch.randn(count, 3, 8, 8, dtype=dtype), torch.arange(count) % 5) for count in (8, 8, 6)]


def cosine(one, other):
    return float((one * other).sum() / (one.norm() * other.norm()))


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_each_kernel_row_and_bias_shrinks_by_its_cosine_with_the_averaged_gradient(floor, alpha):
    module, slow = network(), network()
    averages = [torch.zeros_like(each) for each in slow.parameters()]
    for images, labels in batches():
        F.cross_entropy(slow(images), labels).backward()
        for average, parameter in zip(averages, slow.parameters(), strict=True):
            average.copy_((1 - alpha) * average + alpha * -parameter.grad)
            parameter.grad = None
    filters, filter_bias, _, _, matrix, bias = (average.clone() for average in averages)
    with torch.no_grad():
        for o in range(6):
            for i in range(3):
                kernel = slow[0].weight[o, i]
                kernel *= min(max(cosine(filters[o, i], kernel), floor), 1)
        for o in range(5):
            slow[4].weight[o] *= min(max(cosine(matrix[o], slow[4].weight[o]), floor), 1)
        slow[0].bias *= min(max(cosine(filter_bias, slow[0].bias), floor), 1)
        slow[4].bias *= min(max(cosine(bias, slow[4].bias), floor), 1)
    before = copy.deepcopy(module.state_dict())
    dash(module, batches(), floor=floor, alpha=alpha)
    for name, found in module.named_parameters():
        torch.testing.assert_close(found, slow.get_parameter(name), rtol=0, atol=1e-12, msg=name)
    for name in ("running_mean", "running_var", "num_batches_tracked", "weight", "bias"):
        assert torch.equal(module[1].state_dict()[name], before[f"1.{name}"])
    assert all(parameter.grad is None for parameter in module.parameters())


def test_losses_by_image_frozen_parameters_and_evaluation_mode():
    one, other = network().eval(), network().eval()
    for module in (one, other):
        module[0].weight.requires_grad_(False)
    kept = one[0].weight.clone()
    dash(one, batches(), lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"))
    dash(other, batches())
    assert torch.equal(one[0].weight, kept) and not torch.equal(one[4].weight, network()[4].weight)
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    for parameter in one.parameters():
        parameter.requires_grad_(False)
    dash(one, batches())
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_weights_keep_their_dtype_and_no_gradient_is_a_floor():
    module = network(torch.bfloat16)
    dash(module, batches(torch.bfloat16), lambda logits, labels: logits.float().sum() * 0)
    assert module[0].weight.dtype == torch.bfloat16
    for found, before in zip(module[4].parameters(), network(torch.bfloat16)[4].parameters(), strict=True):
        assert torch.equal(found, (before.float() * 0.3).bfloat16())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"floor": 1.5}, "floor is 1.5; allowed: 0 to 1"),
        ({"alpha": 0}, "alpha is 0; allowed: above 0, up to 1"),
        ({"batches": []}, "batches has none; allowed: one or more"),
        (
            {"batches": [(torch.full((2, 3, 8, 8), torch.nan).double(), torch.arange(2))]},
            "gradients that are not finite",
        ),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_changes(wrong, said):
    module = network()
    with pytest.raises(UserError, match=said):
        dash(module, **{"batches": batches(), **wrong})
    assert all(map(torch.equal, module.parameters(), network().parameters()))


def test_a_loss_that_fails_leaves_weights_and_statistics():
    module = network()

    def stops(logits, labels):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dash(module, batches(), stops)
    assert all(torch.equal(one, network().state_dict()[name]) for name, one in module.state_dict().items())
