"""The corruptions of CIFAR-10-C against their formulas written with numpy, scipy and pillow, image by image; what is
random in them is drawn again from the same seed."""

import colorsys
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from fastcifar import UserError, corrupt
from fastcifar.corruptions import ABSENT, CORRUPTIONS, EXTRA, LEVELS, apply, chosen

SEED = 7


def some_images(count=2, side=32):
    """Smooth images with noise on top, and one with black, white and gray parts."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, side, mode="bilinear")
    x = (smooth * 230 + torch.rand(smooth.shape, generator=generator) * 25).to(torch.uint8)
    x[-1, :, :8], x[-1, :, 8:16, :16], x[-1, :, 8:16, 16:] = 0, 255, 90
    return x.permute(0, 2, 3, 1).contiguous()


class Draws:
    """The random numbers of a corruption, in its order."""

    def __init__(self, count):
        self.count, self.generator = count, torch.Generator().manual_seed(SEED)

    def uniform(self, *shape, low=0.0, high=1.0):
        drawn = torch.rand(self.count, *shape, generator=self.generator, dtype=torch.float64)
        return low + drawn.numpy() * (high - low)

    def normal(self, *shape):
        return torch.randn(self.count, *shape, generator=self.generator, dtype=torch.float64).numpy()


def gaussian_noise(x, c, draws):
    return x + draws.normal(*x.shape[1:]) * c


def speckle_noise(x, c, draws):
    return x * (1 + draws.normal(*x.shape[1:]) * c)


def shot_noise(x, c, draws):
    return torch.poisson(torch.from_numpy(x * c), generator=draws.generator).numpy() / c


def impulse_noise(x, c, draws):
    hit, white = draws.uniform(*x.shape[1:]), draws.uniform(*x.shape[1:])
    out = x.copy()
    out[(hit <= c) & (white <= 0.5)], out[(hit <= c) & (white > 0.5)] = 1, 0
    return out


def blurred(x, sigma):
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest", truncate=4)


def gaussian_blur(x, c, draws):
    return blurred(x, c)


def defocus_blur(x, c, draws):
    places = np.arange(-8, 9)
    disk = (places[:, None] ** 2 + places**2 <= c[0] ** 2).astype(float)
    smooth = np.exp(-np.array([1, 0, 1]) / (2 * c[1] ** 2))
    smooth = smooth / smooth.sum()
    kernel = ndimage.correlate(disk / disk.sum(), np.outer(smooth, smooth), mode="constant")
    return ndimage.correlate(x, kernel[None, :, :, None], mode="mirror")


def glass_blur(x, c, draws):
    """With the program's loop, whose exchange of two slices writes one over the other."""
    x = cut(blurred(x, c[0]))
    side = x.shape[1]
    for _ in range(c[1]):
        shape = (2, len(x), side - 2, side - 2)
        back = torch.randint(2, shape, generator=draws.generator).numpy()
        for i in range(len(x)):
            for h in range(side - 1, 1, -1):
                for w in range(side - 1, 1, -1):
                    above, left = h - back[0, i, h - 2, w - 2], w - back[1, i, h - 2, w - 2]
                    x[i, h, w], x[i, above, left] = x[i, above, left], x[i, h, w]
    return blurred(x / 255, c[0])


def smeared(x, angle, radius, sigma):
    size = 2 * radius + 1
    kernel = np.zeros((2 * size + 1, 2 * size + 1))
    for step in range(size):
        column = math.ceil(step * math.cos(math.radians(angle)) - 0.5)
        row = math.ceil(step * math.sin(math.radians(angle)) - 0.5)
        kernel[size + row, size + column] += math.exp(-(step**2) / (2 * sigma**2))
    return ndimage.correlate(x, (kernel / kernel.sum())[:, :, None], mode="nearest")


def motion_blur(x, c, draws):
    angles = draws.uniform(low=-45, high=45)
    return np.stack([np.rint(smeared(image, angle, *c) * 255) for image, angle in zip(x, angles, strict=True)]) / 255


def zoomed(image, factor):
    side = image.shape[0]
    seen = math.ceil(side / factor)
    top = (side - seen) // 2
    large = ndimage.zoom(image[top : top + seen, top : top + seen], (factor, factor, 1), order=1)
    top = (large.shape[0] - side) // 2
    return large[top : top + side, top : top + side]


def zoom_blur(x, c, draws):
    factors = {1.06: 7, 1.11: 12, 1.15: 16, 1.2: 21, 1.25: 26}
    each = [np.stack([zoomed(image, 1 + 0.01 * step) for image in x]) for step in range(factors[c])]
    return np.mean([x, *each], axis=0)


def snow(x, c, draws):
    mean, scale, factor, least, radius, sigma, stays = c
    noise, angles = mean + scale * draws.normal(*x.shape[1:3], 1), draws.uniform(low=-135, high=-45)
    out = []
    for image, flakes, angle in zip(x, noise, angles, strict=True):
        flakes = zoomed(flakes, factor)
        flakes[flakes < least] = 0
        flakes = np.rint(smeared(cut(flakes).astype(float), angle, radius, sigma)) / 255
        gray = image @ np.array([0.299, 0.587, 0.114])
        image = stays * image + (1 - stays) * np.maximum(image, gray[:, :, None] * 1.5 + 0.5)
        out.append(image + flakes + np.rot90(flakes, 2))
    return np.stack(out)


def fog(x, c, draws):
    """With a cloud made point by point."""
    size = 2 ** math.ceil(math.log2(x.shape[1]))
    cloud, step, bound = np.zeros((len(x), size, size)), size, 10_000.0
    while step > 1:
        half, count = step // 2, size // step
        for rows, columns, near in (
            (half, half, [(-half, -half), (-half, half), (half, -half), (half, half)]),
            (0, half, [(-half, 0), (half, 0), (0, -half), (0, half)]),
            (half, 0, [(-half, 0), (half, 0), (0, -half), (0, half)]),
        ):
            noise = draws.uniform(count, count, low=-bound, high=bound)
            for i, j in np.ndindex(count, count):
                row, column = rows + i * step, columns + j * step
                around = [cloud[:, (row + down) % size, (column + right) % size] for down, right in near]
                cloud[:, row, column] = np.mean(around, axis=0) + noise[:, i, j]
        step, bound = half, bound / c[1] ** 2
    low, high = cloud.min((1, 2), keepdims=True), cloud.max((1, 2), keepdims=True)
    cloud = ((cloud - low) / (high - low))[:, : x.shape[1], : x.shape[1], None]
    most = x.max((1, 2, 3), keepdims=True)
    return (x + c[0] * cloud) * most / (most + c[0])


def in_hsv(x, change):
    return np.array([colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in x.reshape(-1, 3)])


def brightness(x, c, draws):
    return in_hsv(x, lambda hue, saturation, value: (hue, saturation, min(value + c, 1))).reshape(x.shape)


def saturate(x, c, draws):
    return in_hsv(x, lambda hue, much, value: (hue, min(much * c[0] + c[1], 1), value)).reshape(x.shape)


def contrast(x, c, draws):
    means = x.mean((1, 2), keepdims=True)
    return means * (1 - c) + x * c


def elastic_transform(x, c, draws):
    side = x.shape[1]
    far, near = side // 2 + side // 3, side // 2 - side // 3
    points = np.array([[far, far], [far, near], [near, near]], float)
    shifts = draws.uniform(3, 2, low=-side * c[2], high=side * c[2])
    displaced = [side * c[0] * draws.uniform(side, side, low=-1, high=1) for _ in range(2)]
    rows, columns = np.mgrid[:side, :side].astype(float)
    out = []
    for i, image in enumerate(x):
        moved = np.column_stack([points + shifts[i], np.ones(3)])
        back = np.linalg.solve(moved, points)
        places = np.stack([columns, rows, np.ones_like(rows)], -1) @ back
        right, down = (ndimage.gaussian_filter(each[i], side * c[1], mode="reflect", truncate=3) for each in displaced)
        planes = []
        for plane in image.transpose(2, 0, 1):
            plane = ndimage.map_coordinates(plane, [places[..., 1], places[..., 0]], order=1, mode="mirror")
            planes.append(ndimage.map_coordinates(plane, [rows + down, columns + right], order=1, mode="reflect"))
        out.append(np.stack(planes, -1))
    return np.stack(out)


def pixelate(x, c, draws):
    image = pytest.importorskip("PIL.Image")
    side = x.shape[1]
    small = int(side * c)
    each = [image.fromarray(one) for one in cut(x)]
    return np.stack([np.asarray(one.resize((small, small), image.BOX).resize((side, side), image.BOX)) for one in each])


def jpeg_compression(x, c, draws, tmp="image.jpg"):
    image = pytest.importorskip("PIL.Image")
    out = []
    for one in cut(x):
        image.fromarray(one).save(tmp, quality=c)
        out.append(np.asarray(image.open(tmp)))
    return np.stack(out)


def cut(x):
    """Bytes as those of CIFAR-10-C are made: no rounding but of the error of float64."""
    return np.floor(x.clip(0, 1) * 255 + 1e-9).astype(np.uint8)


@pytest.mark.parametrize("side", [32, 21])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_its_formula(name, side, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    x = some_images(side=side)
    for level in LEVELS if side == 32 else (3,):
        found = corrupt(x, name, level, SEED)
        assert found.dtype == torch.uint8 and found.shape == x.shape
        expected = globals()[name.replace("-", "_")](
            x.numpy() / 255, CORRUPTIONS[name].parameters[level - 1], Draws(len(x))
        )
        assert np.array_equal(found.numpy(), expected if expected.dtype == np.uint8 else cut(expected))


STATISTICS = {
    "gaussian-noise": lambda v, c: (v, c**2),
    "speckle-noise": lambda v, c: (v, (v * c) ** 2),
    "shot-noise": lambda v, c: (v, v / c),
    "impulse-noise": lambda v, c: (v * (1 - c) + c / 2, c / 2 + v**2 * (1 - c) - (v * (1 - c) + c / 2) ** 2),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_noise_has_its_mean_and_variance_in_each_channel(name):
    x = torch.full((32, 32, 32, 3), 102, dtype=torch.uint8)
    mean, variance = STATISTICS[name](0.4, CORRUPTIONS[name].parameters[-1])
    out = corrupt(x, name, 5, 1).double() / 255
    cutting = 0 if name == "impulse-noise" else 0.5 / 255  # to whole numbers
    assert (out.mean((0, 1, 2)) + cutting - mean).abs().max() < 4 * (variance / 32_768) ** 0.5
    assert (out.var((0, 1, 2)) / (variance + cutting**2 / 3) - 1).abs().max() < 0.05
    halves = out[:, :16].flatten(), out[:, 16:].flatten()
    assert abs(torch.corrcoef(torch.stack(halves))[0, 1]) < 0.02


def test_noise_of_black_and_white_stays_within_its_support():
    black, white = (torch.full((8, 16, 16, 3), value, dtype=torch.uint8) for value in (0, 255))
    for name in ("shot-noise", "speckle-noise"):
        assert not corrupt(black, name, 5).any()
    assert set(corrupt(white, "shot-noise", 5).flatten().tolist()) <= {int(255 * n / 50) for n in range(51)}
    assert set(corrupt(some_images() // 2 + 50, "impulse-noise", 5).flatten().tolist()) >= {0, 255}


def test_clouds_and_snow_differ_by_image_and_fog_keeps_the_lightest_value():
    x = some_images()[:1].expand(16, 32, 32, 3)
    for name, least in {"fog": 16, "snow": 16, "elastic-transform": 16, "glass-blur": 16, "motion-blur": 12}.items():
        assert len({image.numpy().tobytes() for image in corrupt(x, name, 4)}) >= least  # angles may round alike
    lightest = corrupt(torch.full_like(x, 200), "fog", 5).amax((1, 2, 3))
    assert lightest.tolist() == [200] * 16  # in a constant image, where the cloud is thickest


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_seed_names_the_images_and_parts_of_any_size_agree(name, monkeypatch):
    x = some_images(4, 16)
    before, state = x.clone(), torch.get_rng_state()
    found = corrupt(x, name, 2, 1)
    assert torch.equal(found, corrupt(x, name, 2, 1)) and torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(corrupt(x.double() / 255, name, 2, 1), found)
    assert corrupt(x[:0], name).shape == (0, 16, 16, 3)
    if torch.equal(corrupt(x, name, 2, 2), found):  # nothing in it is random
        monkeypatch.setattr(apply, "_AT_ONCE", 16 * 16 * 3)
        assert torch.equal(corrupt(x, name, 2, 1), found)


def test_other_images_and_arguments_are_refused():
    x = some_images(2, 16)
    for wrong in (x[0], x.permute(0, 3, 1, 2), x[:, :12], x[:, :4, :4], x.int()):
        with pytest.raises(UserError, match=r"images are .*; allowed: uint8 or floating \[N, side, side, 3\] of 8"):
            corrupt(wrong, "fog")
    with pytest.raises(UserError, match="images have values outside 0 to 1"):
        corrupt(x.double(), "fog")
    with pytest.raises(UserError, match="images are of type list; allowed: a tensor"):
        corrupt(x.tolist(), "fog")
    with pytest.raises(UserError, match="severity is 6; allowed: 1 to 5"):
        corrupt(x, "fog", 6)
    with pytest.raises(UserError, match="unknown corruption 'frog'; did you mean 'fog'"):
        corrupt(x, "frog")


def test_words_name_corruptions(monkeypatch):
    assert chosen("fog,contrast,fog") == ["fog", "contrast"]
    assert chosen("all") == list(CORRUPTIONS) and len({*CORRUPTIONS, *ABSENT, *EXTRA}) == 19
    assert chosen("noise,fog") == ["gaussian-noise", "shot-noise", "impulse-noise", "speckle-noise", "fog"]
    assert chosen("weather,frost,blur", ["fog", "frost", "spatter", "new"]) == ["fog", "frost", "spatter"]
    assert chosen("all", ["fog", "new"]) == ["fog", "new"]
    for words, among in (("fog,gausian-noise", CORRUPTIONS), ("gausian-noise", ["gaussian-noise"])):
        with pytest.raises(UserError, match="unknown corruption 'gausian-noise'; did you mean 'gaussian-noise'"):
            chosen(words, among)
    with pytest.raises(UserError, match=r"frost is not made here: .*photographs"):
        chosen("frost")
    monkeypatch.setattr("fastcifar.corruptions.find_spec", lambda name: None)
    assert "jpeg-compression" not in chosen("all") and "pixelate" in chosen("digital")
    for call in (lambda: chosen("jpeg-compression"), lambda: corrupt(some_images(), "jpeg-compression")):
        with pytest.raises(UserError, match=r"not installed; allowed: pip install 'fastcifar\[images\]'"):
            call()


@pytest.mark.gpu
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_gpu_gives_the_same_but_for_its_random_numbers(name):
    x = some_images(8)
    found, expected = corrupt(x.cuda(), name, 3), corrupt(x, name, 3)
    assert found.is_cuda and found.shape == x.shape
    if torch.equal(corrupt(x, name, 3, 1), expected):
        assert torch.equal(found.cpu(), expected)
    else:
        assert abs(found.double().mean() - expected.double().mean()) < 12
