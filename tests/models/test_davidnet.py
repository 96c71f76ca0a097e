"""DavidNet's shape, its tricks one by one, ghost batch norm and patch whitening."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fastcifar.data.synthetic import make_synthetic
from fastcifar.models import GhostBatchNorm, PatchWhitening
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.whitening import patch_second_moment, whitening_filters
from tests.small import NARROW


def trained(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_davidnet_has_the_sources_parameters_and_output_shape():
    model = DavidNet()
    filters = 27 * 64 + 9 * (64 * 128 + 2 * 128 * 128 + 128 * 256 + 256 * 512 + 2 * 512 * 512) + 512 * 10
    biases = 64 + 3 * 128 + 256 + 3 * 512
    assert trained(model) == filters + biases
    assert model.whitening.weight.numel() == 27 * 27
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    "change",
    [
        {"whitening": False},
        {"norm": False},
        {"ghost_batch": 0},
        {"freeze_scale": False},
        {"activation": "relu"},
        {"activation": "gelu"},
        {"activation": "silu"},
        {"activation": "none"},
        {"pool": "avg"},
        {"final_pool": "avg"},
        {"residual": ()},
        {"residual": (1, 2, 3)},
        {"logit_scale": 1.0},
        {"celu_alpha": 1.0},
    ],
    ids=str,
)
def test_every_trick_is_one_field_that_changes_the_network_and_still_trains(change):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    outputs = []
    for config in (NARROW, dataclasses.replace(NARROW, **change)):
        torch.manual_seed(0)
        model = DavidNet(config).train()
        for module in model.modules():
            if isinstance(module, GhostBatchNorm):
                module.bias.data.normal_(0, 0.1)
                module.weight.data.uniform_(0.5, 1.5)  # no effect where scales are frozen at 1
        out = model(images)
        out.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        outputs.append(out.detach())
    assert not torch.allclose(*outputs)


def test_without_norm_the_block_is_convolution_pool_bias_activation():
    torch.manual_seed(0)
    model = DavidNet(dataclasses.replace(NARROW, norm=False, whitening=False, residual=()))
    block = model.layers[0].block
    block.norm.bias.data.normal_()
    x = torch.randn(2, 4, 32, 32)
    expected = F.celu(F.max_pool2d(block.conv(x), 2) + block.norm.bias[:, None, None], 0.3)
    torch.testing.assert_close(block(x), expected)


def test_ghost_batch_norm_is_plain_batch_norm_of_each_group():
    torch.manual_seed(0)
    norm = GhostBatchNorm(5, ghost_batch=4, activation="relu", momentum=0.2)
    norm.bias.data.normal_()
    plain = torch.nn.BatchNorm2d(5, momentum=1.0)
    plain.bias.data.copy_(norm.bias)
    x = torch.randn(12, 5, 6, 6)
    out, means, variances = norm(x), [], []
    for start in range(0, 12, 4):
        torch.testing.assert_close(out[start : start + 4], F.relu(plain(x[start : start + 4])), rtol=1e-4, atol=1e-5)
        means.append(plain.running_mean.clone())
        variances.append(plain.running_var.clone())
    torch.testing.assert_close(norm.running_mean, 0.2 * torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, 0.8 + 0.2 * torch.stack(variances).mean(0))


def test_ghost_batch_norm_evaluates_with_its_running_statistics():
    torch.manual_seed(0)
    norm = GhostBatchNorm(3, ghost_batch=2).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.bias.data.normal_()
    x, residual = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias) + residual
    torch.testing.assert_close(norm(x, residual=residual), expected)


def test_a_batch_that_does_not_divide_into_ghost_batches_is_refused():
    with pytest.raises(ValueError, match="batch of 6 images does not divide into ghost batches of 4"):
        GhostBatchNorm(3, ghost_batch=4)(torch.randn(6, 3, 4, 4))


def test_whitened_patches_have_covariance_lambda_over_lambda_plus_eps():
    data = make_synthetic(600, 10)
    whitening = PatchWhitening(3, 3, eps=1e-2)
    whitening.fit(data.train.images, data.mean, data.std)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    pixels = ((data.train.images - mean) / std).permute(0, 3, 1, 2)
    patches = F.unfold(pixels, 3).double().transpose(1, 2).reshape(-1, 27)
    white = F.conv2d(pixels, whitening.weight).permute(0, 2, 3, 1).reshape(-1, 27).double()
    moment = patches.T @ patches / (len(patches) - 1)
    values = torch.linalg.eigvalsh(moment).flip(0)
    covariance = white.T @ white / (len(white) - 1)
    torch.testing.assert_close(covariance, torch.diag(values / (values + 1e-2)), rtol=1e-4, atol=1e-4)


def test_the_second_moment_of_chunks_is_that_of_all_images():
    data = make_synthetic(700, 10)
    parts = [patch_second_moment(part, data.mean, data.std, 3) for part in data.train.images.split(350)]
    whole = patch_second_moment(data.train.images, data.mean, data.std, 3)
    count = 350 * 30 * 30
    torch.testing.assert_close(whole, (parts[0] + parts[1]) * (count - 1) / (2 * count - 1))


def test_whitening_filters_have_fixed_signs():
    moment = torch.randn(27, 27, dtype=torch.float64)
    moment = moment @ moment.T
    filters = whitening_filters(moment, 1e-2)
    largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_whitening_is_frozen_and_fitted_to_the_first_images_alone():
    data = make_synthetic(300, 10)
    model = DavidNet(dataclasses.replace(NARROW, whitening_images=100), 10, data.mean, data.std)
    model.fit_whitening(data.train.images)
    expected = PatchWhitening()
    expected.fit(data.train.images[:100], data.mean, data.std)
    torch.testing.assert_close(model.whitening.weight, expected.weight)
    assert not model.whitening.weight.requires_grad


def test_whitening_and_the_1x1_convolution_are_one_convolution():
    model = DavidNet().double()
    model.fit_whitening(torch.randint(256, (50, 32, 32, 3), dtype=torch.uint8))
    images = torch.randn(4, 3, 9, 11, dtype=torch.float64)
    weight, upstream = model.stem.conv.weight, torch.randn(4, 64, 9, 11, dtype=torch.float64)
    two, one = model.stem.conv(model.whitening(images)), model.whitening.followed_by(model.stem.conv, images)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(out, weight, upstream)[0] for out in (one, two)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-10)
