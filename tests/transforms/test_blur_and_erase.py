import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.recipes.transforms.gaussian_blur import GaussianBlurConfig
from fastcifar.recipes.transforms.random_erasing import RandomErasingConfig
from fastcifar.transforms.blur import blur
from fastcifar.transforms.erase import erase, noise_of


def drawn(count, columns, seed=0):
    return torch.rand(count, columns, generator=torch.Generator().manual_seed(seed))


def splitmix(number):
    """SplitMix64 as its authors have it (Steele, Lea and Flood 2014), of the state `number` times its constant."""
    bits = number * 0x9E3779B97F4A7C15 % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return bits ^ bits >> 31


@pytest.mark.parametrize(("side", "shape"), [(3, (5, 9)), (7, (9, 5))])
def test_blur_is_a_sum_over_the_mirrored_image_weighted_by_a_gaussian(side, shape):
    x, numbers = torch.randn(6, 3, *shape, generator=torch.Generator().manual_seed(1)), drawn(6, 2, seed=2)
    config = GaussianBlurConfig(0.5, (0.3, 1.7), side)
    reach = side // 2
    for image, (chosen, place), out in zip(x, numbers.tolist(), blur(x, numbers, config), strict=True):
        if chosen >= 0.5:
            assert torch.equal(out, image)
            continue
        sigma = 0.3 + 1.4 * place
        steps = np.arange(-reach, reach + 1)
        filter = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * sigma**2))
        filter /= filter.sum()
        padded = np.pad(image.double().numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))
        torch.testing.assert_close(out.double(), torch.from_numpy((windows * filter).sum((3, 4))), rtol=0, atol=1e-5)
    assert 0 < (numbers[:, 0] < 0.5).sum() < 6


@settings(max_examples=40)
@given(
    height=st.integers(2, 20),
    width=st.integers(2, 20),
    area=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair))),
    aspect=st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)).map(lambda pair: tuple(sorted(pair))),
    seed=st.integers(0, 9),
)
def test_one_rectangle_inside_each_chosen_image_is_erased_and_nothing_else(height, width, area, aspect, seed):
    x, numbers = torch.ones(12, 3, height, width), drawn(12, 6, seed)
    out = erase(x, numbers, RandomErasingConfig(0.6, area, aspect))
    for image, (chosen, *_) in zip(out, numbers.tolist(), strict=True):
        gone = image[0] == 0
        assert torch.equal(image == 0, gone.expand(3, -1, -1)) and gone.any() == (chosen < 0.6)
        assert torch.equal(gone, gone.any(1)[:, None] & gone.any(0))  # a rectangle, whose rows and columns have no gap
        for line in (gone.any(1), gone.any(0)):
            assert not line.any() or line.nonzero().max() - line.nonzero().min() + 1 == line.sum()


def test_areas_and_aspects_are_those_that_are_asked_for_and_places_are_uniform():
    x = torch.ones(1, 3, 100, 100).expand(500, -1, -1, -1)
    gone = (erase(x, drawn(500, 6), RandomErasingConfig(1.0)) == 0)[:, 0]
    tall, wide = gone.any(2).sum(1).double(), gone.any(1).sum(1).double()
    share = tall * wide / 10_000
    assert share.min() > 0.015 and share.max() < 0.42 and abs(share.mean() - 0.21) < 0.02
    stretch = (tall / wide).log()
    assert stretch.min() > math.log(0.3) - 0.15 and stretch.max() < math.log(3.3) + 0.15 and abs(stretch.mean()) < 0.1
    top = gone.any(2).double().argmax(1) / (100 - tall).clamp(min=1)
    assert abs(top.mean() - 0.5) < 0.05 and abs(top.std() - 12**-0.5) < 0.03


def test_noise_is_normal_of_each_image_its_own_and_of_its_key_alone():
    keys = drawn(300, 1, seed=5)
    noise = noise_of(keys, 3072)
    for key, place in ((0, 0), (7, 3071)):
        uniform = splitmix(int(keys[key].item() * 2**24) * 3072 + place) / 2**64
        assert abs(NormalDist().inv_cdf(uniform) - noise[key, place]) < 1e-4
    assert abs(noise.mean()) < 0.005 and abs(noise.std() - 1) < 0.005 and abs((noise**4).mean() - 3) < 0.03
    assert abs((noise.abs() > 1.959964).double().mean() - 0.05) < 0.001
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 6 / 3072**0.5
    assert torch.corrcoef(noise[:, :200].T).fill_diagonal_(0).abs().max() < 6 / 300**0.5
    assert torch.equal(noise_of(keys[7:8], 3072)[0], noise[7]) and noise.isfinite().all()
    x, numbers = torch.zeros(300, 3, 32, 32), drawn(300, 6)
    out = erase(x, numbers, RandomErasingConfig(1.0, (1.0, 1.0), (1.0, 1.0), "random"))
    assert torch.equal(out.permute(0, 2, 3, 1).reshape(300, -1), noise_of(numbers[:, 5:], 3072))


@pytest.mark.parametrize(
    ("config", "fields", "said"),
    [
        (GaussianBlurConfig, {"side": 4}, "gaussian_blur.side is 4; allowed: an odd number"),
        (GaussianBlurConfig, {"sigma": (2, 1)}, r"gaussian_blur.sigma is \(2, 1\); allowed: the least, then the gr"),
        (RandomErasingConfig, {"area": (0.3, 0.2)}, r"random_erasing.area is .*; allowed: the least, then the great"),
        (RandomErasingConfig, {"aspect": (3, 1)}, r"random_erasing.aspect is .*; allowed: the least, then the great"),
        (RandomErasingConfig, {"fill": "gray"}, "random_erasing.fill is 'gray'; allowed: one of zero, random"),
    ],
)
def test_what_makes_no_sense_is_refused(config, fields, said):
    with pytest.raises(UserError, match=rf"^transforms\.{said}"):
        config(**fields)
