import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.kernels.mix import beta, cutmix_choices, mix, mixup_choices


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha):
    count = 40_000
    found = beta(alpha, count, seeded(0)).double().sort()[0]
    assert found[0] >= 0 and found[-1] <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(found.mean() - 0.5) < 5 * (variance / count) ** 0.5
    assert abs(found.var() / variance - 1) < 0.03
    numpys = np.random.default_rng(1).beta(alpha, alpha, count)  # another algorithm
    places = np.linspace(0.001, 0.999, 300)
    distance = np.abs(np.searchsorted(found.numpy(), places) - np.searchsorted(np.sort(numpys), places)).max()
    assert distance / count < 2 * (2 / count) ** 0.5  # Kolmogorov and Smirnov, of one in 600


def test_draws_come_from_the_generator_alone():
    state = torch.get_rng_state()
    for choices in (mixup_choices, cutmix_choices):
        one = choices(0.5, 9, seeded(3))
        assert one.shape == (9, 4) and one.dtype == torch.float32 and torch.equal(one, choices(0.5, 9, seeded(3)))
        assert not torch.equal(one, choices(0.5, 9, seeded(4)))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mixup_is_a_weighted_mean_in_which_an_image_has_the_greater_part(share, dtype):
    x, y = torch.randn(2, 5, 3, 4, 6, generator=seeded(0)).to(dtype)
    mixed, other = mix(x, y, torch.tensor([share, 0, 0.5, 0.5]))
    less = min(share, 1 - share)
    assert abs(other - less) < 1e-6 and mixed.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(mixed.double(), x.double() * (1 - less) + y.double() * less, rtol=0, atol=tolerance)
    if not less:
        assert torch.equal(mixed, x)


def box_of_yun(height, width, cut_ratio, center):
    """rand_bbox of CutMix's published program, for drawn numbers."""
    cut_height, cut_width = int(height * cut_ratio), int(width * cut_ratio)
    row, column = int(center[0] * height), int(center[1] * width)
    rows = np.clip([row - cut_height // 2, row + cut_height // 2], 0, height)
    columns = np.clip([column - cut_width // 2, column + cut_width // 2], 0, width)
    return slice(*rows), slice(*columns)


ratios = st.floats(0, 1, width=32, exclude_max=True)


@settings(max_examples=60)
@given(height=st.integers(2, 20), width=st.integers(2, 20), side=ratios, row=ratios, column=ratios)
def test_cutmix_puts_in_the_published_programs_box_or_all_around_it(height, width, side, row, column):
    choice = torch.tensor([0, side, row, column])
    x, y = torch.zeros(2, 3, height, width), torch.ones(2, 3, height, width)
    mixed, share = mix(x, y, choice)
    ratio, *center = (np.float32(number) for number in (side, row, column))
    box = np.zeros((height, width), bool)
    box[box_of_yun(height, width, ratio, center)] = True
    box = ~box if box.mean() > 0.5 else box
    assert np.array_equal(mixed[1, 2].numpy(), box) and share.item() == pytest.approx(box.mean())


def test_a_square_has_the_share_that_is_drawn_before_it_is_cut_off():
    choices = cutmix_choices(1.0, 20_000, seeded(0))
    assert not choices[:, 0].any() and abs((choices[:, 1] ** 2).mean() - 0.5) < 0.01
    for places in choices[:, 2:].unbind(1):
        assert places.min() >= 0 and places.max() < 1 and abs(places.mean() - 0.5) < 0.01
    assert abs(torch.corrcoef(choices[:, 1:].T).fill_diagonal_(0)).max() < 0.03


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_is_kept_and_no_value_is_read(memory_format):
    x = torch.randn(4, 3, 6, 6).contiguous(memory_format=memory_format)
    assert mix(x, x.roll(1, 0), torch.tensor([0.3, 0.5, 0.5, 0.5]))[0].is_contiguous(memory_format=memory_format)
    assert mix(x.to("meta"), x.to("meta"), torch.zeros(4, device="meta"))[0].shape == x.shape
