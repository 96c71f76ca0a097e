import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fastcifar.data import Augment, Loader, Split
from fastcifar.errors import UserError
from fastcifar.recipes.transforms import TransformConfig

MEAN, STD = (120.5, 110.0, 99.25), (60.0, 64.0, 70.5)
NOTHING = Augment(crop=0, flip="none", cutout=0)


def make_split(count=23, size=32):
    random = np.random.default_rng(11)
    images = torch.from_numpy(random.integers(0, 256, (count, size, size, 3), dtype=np.uint8))
    return Split(images, torch.arange(count) % 10)


def made_slowly(split, plan, border):
    """Make the images of `plan`, float64 `[n, H, W, 3]`, one by one from copies with a real border."""
    images = split.images.numpy()
    made = []
    for place in range(len(plan)):
        padded = np.pad(images[plan.indices[place]], ((border, border), (border, border), (0, 0)), mode="reflect")
        top, left = (border + offset for offset in plan.offsets[place].tolist())
        image = padded[top : top + plan.size, left : left + plan.size]
        if plan.flips[place]:
            image = image[:, ::-1]
        values = (image.astype(np.float64) - MEAN) / STD
        if plan.jitter is not None:
            added, factor = plan.jitter[place].tolist()
            values = (values + added / factor) * factor
        if plan.cutouts is not None:
            top, left, height, width = plan.cutouts[place].tolist()
            for row in range(top, top + height):
                for column in range(left, left + width):
                    values[row, column] = 0
        made.append(values)
    return np.stack(made)


@pytest.mark.parametrize(
    ("augment", "size", "crop_size"),
    [
        (NOTHING, 32, None),
        (Augment(crop=4, flip="none"), 32, None),
        (Augment(crop=0, flip="random"), 32, None),
        (Augment(crop=0, flip="alternating"), 32, None),
        (Augment(crop=0, flip="none", cutout=8), 32, None),
        (Augment(crop=0, flip="none", cutout=1), 32, None),
        (Augment(crop=0, flip="none", cutout=32), 32, None),
        (Augment(crop=31, flip="random", cutout=5), 32, None),
        (Augment(crop=4, flip="random", cutout=8), 32, None),
        (Augment(crop=4, flip="alternating", cutout=7), 15, None),
        (Augment(crop=0, flip="none", brightness=0.5), 32, None),
        (Augment(crop=0, flip="none", contrast=0.9), 32, None),
        (Augment(crop=4, flip="random", cutout=8, brightness=0.2, contrast=0.3), 32, 24),
        (Augment(crop=0, flip="alternating", cutout=5), 15, 11),
    ],
    ids=str,
)
def test_batches_are_those_of_a_slow_loop(augment, size, crop_size):
    split = make_split(size=size)
    loader = Loader(split, 7, augment, seed=5, drop_last=False, mean=MEAN, std=STD, size=crop_size)
    for epoch in range(2):
        plan = loader.plan(epoch)
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [7, 7, 7, 2]
        images = torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(images, made_slowly(split, plan, augment.crop), rtol=1e-5, atol=1e-5)
        assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels[plan.indices])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_batches_are_channels_last_in_the_dtype_asked_for(dtype):
    split = make_split()
    images, labels = next(iter(Loader(split, 8, NOTHING, shuffle=False, mean=MEAN, std=STD, dtype=dtype)))
    assert images.shape == (8, 3, 32, 32) and images.dtype == dtype and labels.dtype == torch.int64
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = (split.images[:8].double() - torch.tensor(MEAN)) / torch.tensor(STD)
    error = (images.permute(0, 2, 3, 1).double() - expected).abs().max()
    assert error <= 3 * torch.finfo(dtype).eps


def test_an_epoch_without_drop_last_holds_every_image_once():
    loader = Loader(make_split(), 7, NOTHING, drop_last=False, mean=(0, 0, 0), std=(1, 1, 1))
    first_pixels = torch.cat([images[:, :, 0, 0] for images, _ in loader])
    expected = loader.split.images[:, 0, 0].float()
    assert sorted(first_pixels.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize(
    ("count", "batch", "drop_last", "batches"),
    [(23, 7, True, 3), (23, 7, False, 4), (21, 7, True, 3), (21, 7, False, 3), (5, 5, True, 1), (5, 9, False, 1)],
)
def test_len_is_the_number_of_batches(count, batch, drop_last, batches):
    loader = Loader(make_split(count, size=8), batch, NOTHING, drop_last=drop_last)
    assert len(loader) == batches == len(list(loader))


def test_each_iteration_is_the_next_epoch_and_any_epoch_can_be_resumed():
    def labels_of(loader):
        return torch.cat([labels for _, labels in loader]).tolist()

    loader = Loader(make_split(), 7, seed=1)
    assert loader.epoch == 0
    epochs = [labels_of(loader) for _ in range(3)]
    assert loader.epoch == 3
    assert len({tuple(labels) for labels in epochs}) == 3
    resumed = Loader(make_split(), 7, seed=1)
    resumed.epoch = 2
    assert labels_of(resumed) == epochs[2]
    assert next(iter(Loader(make_split(), 7, seed=1)))[1].tolist() == epochs[0][:7]


def test_an_iteration_left_early_counts_as_an_epoch():
    loader = Loader(make_split(), 7)
    next(iter(loader))
    assert loader.epoch == 1


def test_two_iterations_at_once_do_not_mix():
    loader = Loader(make_split(), 7, seed=1)
    together = [(first[1].tolist(), second[1].tolist()) for first, second in zip(loader, loader, strict=True)]
    alone = Loader(make_split(), 7, seed=1)
    assert [pair[0] for pair in together] == [labels.tolist() for _, labels in alone]
    assert [pair[1] for pair in together] == [labels.tolist() for _, labels in alone]


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    def first_epoch(seed):
        return torch.cat([images for images, _ in Loader(make_split(), 7, seed=seed)])

    assert torch.equal(first_epoch(4), first_epoch(4))
    for one, other in itertools.combinations((0, 1, 2), 2):
        assert not torch.equal(first_epoch(one), first_epoch(other))


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(UserError, match="batch_size is 24; allowed: 1 to the 23 images"):
        Loader(make_split(), 24)
    with pytest.raises(UserError, match="batch_size is 0; allowed: 1 or more"):
        Loader(make_split(), 0, drop_last=False)


@pytest.mark.parametrize("number", [np.int64, np.array, torch.tensor])
def test_numbers_of_numpy_and_torch_give_the_same_batches(number):
    split, mean, std = make_split(), (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
    loader = Loader(split, number(7), seed=number(3), size=number(20), mean=np.array(mean), std=torch.tensor(std))
    loader.epoch = number(2)
    expected = Loader(split, 7, seed=3, size=20, mean=mean, std=std)
    expected.epoch = 2
    for (images, labels), (others, more) in zip(loader, expected, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, more)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": torch.zeros(3)}, "the split is of type Tensor; allowed: a Split, such as data.train"),
        ({"std": (1, 0, 1)}, "std is .*; allowed: three numbers above 0"),
        ({"mean": (1, float("nan"), 1)}, "mean is .*; allowed: three numbers"),
        ({"drop_last": 1}, "drop_last is 1; allowed: true or false"),
        ({"shuffle": np.int64(1)}, "shuffle is 1; allowed: true or false"),
        ({"size": 20.0}, "size is 20.0; allowed: a whole number"),
        ({"augment": {"crop": 4}}, "augment is of type dict; allowed: an Augment, such as recipe.augment"),
        ({"dtype": "float16"}, "dtype is 'float16'; allowed: torch.float32, or another floating one"),
        ({"dtype": torch.int64}, "dtype is torch.int64; allowed: torch.float32, or another floating one"),
        ({"transforms": [torch.nn.Identity()]}, "transforms holds Identity; allowed: configurations, such as those"),
        ({"transforms": 3}, "transforms holds int; allowed: configurations, such as those"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_refused_when_a_loader_is_made(wrong, message):
    with pytest.raises(UserError, match=message):
        Loader(**{"split": make_split(), "batch_size": 4, **wrong})


def test_a_loader_refuses_what_does_not_fit_into_the_images():
    with pytest.raises(UserError, match="images are 4 by 5 pixels; allowed: square ones"):
        Loader(Split(torch.zeros(8, 4, 5, 3, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)), 4)
    with pytest.raises(UserError, match=r"augment.cutout is 8; allowed: 0 to 6"):
        next(iter(Loader(make_split(size=6), 4)))
    with pytest.raises(UserError, match=r"the crops' size is 33; allowed: 1 to 32"):
        next(iter(Loader(make_split(), 4, size=33)))


def test_the_size_of_the_crops_can_be_set_between_epochs():
    loader = Loader(make_split(), 7, seed=1, size=20)
    assert [images.shape for images, _ in loader] == [(7, 3, 20, 20)] * 3
    loader.size = None
    assert next(iter(loader))[0].shape == (7, 3, 32, 32)


@pytest.mark.parametrize("visits", [0, 51])
def test_visiting_no_images_or_too_many_is_refused(visits):
    with pytest.raises(UserError, match=f"the places of {visits} images are given to visit; allowed: 1 to the 50 "):
        Loader(make_split(50), 7).plan(0, visited=torch.arange(visits))


def test_a_plan_may_visit_some_of_the_images():
    plan = Loader(make_split(), 7).plan(2, size=20, visited=torch.tensor([4, 8, 9]))
    assert sorted(plan.indices.tolist()) == [4, 8, 9] and plan.size == 20


def test_transforms_change_each_batch_after_the_augmentation():
    def add(images, numbers, config):
        return images + numbers[:, :, None, None]

    @dataclass(frozen=True)
    class Add(TransformConfig):
        kind = "add"
        function = staticmethod(add)
        active = True

    loader, bare = Loader(make_split(), 7, seed=1, transforms=[Add()]), Loader(make_split(), 7, seed=1)
    batches, numbers = zip(loader, bare, strict=True), loader.plan(0).numbers.split(7)
    for ((images, labels), (plain, same_labels)), drawn in zip(batches, numbers, strict=False):
        assert torch.equal(images, plain + drawn[:, :, None, None]) and torch.equal(labels, same_labels)
