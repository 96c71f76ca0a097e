from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import Augment, Batch, EpochPlan
from fastcifar.errors import UserError
from fastcifar.recipes.transforms import TransformConfig

EVERYTHING = Augment(crop=4, flip="random", cutout=8, brightness=0.1, contrast=0.2)
TENSORS = ("indices", "offsets", "flips", "cutouts", "jitter", "numbers")


def add(images, numbers, config):
    return images + config.most * numbers.to(images)[:, :, None, None]


def scale(images, numbers, config):
    return images * (1 + numbers[:, :1, None, None] * numbers[:, 1:, None, None])  # float32, whatever the images are


@dataclass(frozen=True)
class Add(TransformConfig):
    kind = "add"
    function = staticmethod(add)
    most: float = 1.0

    @property
    def active(self):
        return self.most > 0


@dataclass(frozen=True)
class Scale(TransformConfig):
    kind = "scale"
    function = staticmethod(scale)
    draws: ClassVar[int] = 2
    active = True


TRANSFORMS = (Add(), Scale())


def draw(augment=EVERYTHING, epoch=0, seed=0, count=1000, **settings):
    return EpochPlan.draw(count, augment, epoch, seed, **settings)


def same(first, second):
    pairs = [(getattr(first, name), getattr(second, name)) for name in TENSORS]
    return all(one is other is None or torch.equal(one, other) for one, other in pairs)


@settings(max_examples=50)
@given(
    count=st.integers(1, 300),
    image_size=st.integers(2, 32),
    size=st.integers(1, 32),
    crop=st.integers(0, 31),
    cutout=st.integers(0, 32),
    flip=st.sampled_from(["none", "random", "alternating", "by-visit"]),
    early=st.sampled_from(["crop", "resize"]),
    epoch=st.integers(0, 1000),
    seed=st.integers(-(2**63), 2**64 - 1),
)
def test_a_plan_is_a_permutation_with_crops_and_cutouts_inside_their_bounds(
    count, image_size, size, crop, cutout, flip, early, epoch, seed
):
    size = min(size, image_size)
    side = size if early == "crop" else image_size
    crop, cutout = min(crop, image_size - 1), min(cutout, side)
    plan = draw(Augment(crop, flip, cutout, early=early), epoch, seed, count, image_size=image_size, size=size)
    assert plan.size == size and plan.resized == (early == "resize")
    assert len(plan) == count and plan.indices.dtype == torch.int64
    assert sorted(plan.indices.tolist()) == list(range(count))
    assert plan.offsets.shape == (count, 2) and plan.offsets.dtype == torch.int32
    assert plan.offsets.min() >= -crop and plan.offsets.max() <= image_size - side + crop
    assert plan.flips.shape == (count,) and plan.flips.dtype == torch.bool
    if cutout:
        assert plan.cutouts.shape == (count, 4) and plan.cutouts.dtype == torch.int32
        cutout = max(1, round(cutout * size / side))
        assert plan.cutouts[:, :2].min() >= 0 and plan.cutouts[:, :2].max() + cutout <= size
        assert (plan.cutouts[:, 2:] == cutout).all()
    else:
        assert plan.cutouts is None


def test_every_place_of_crop_and_cutout_is_about_equally_likely():
    plan, smaller = draw(count=81_000), draw(count=81_000, size=24)
    for places, first, kinds in (
        (plan.offsets, -4, 9),
        (plan.cutouts[:, :2], 0, 25),
        (smaller.offsets, -4, 17),
        (smaller.cutouts[:, :2], 0, 17),
    ):
        counts = torch.bincount((places[:, 0] - first) * kinds + places[:, 1] - first, minlength=kinds**2).double()
        assert len(counts) == kinds**2
        expected = 81_000 / kinds**2
        chi_square = ((counts - expected) ** 2 / expected).sum()
        freedom = kinds**2 - 1
        assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_a_plan_depends_on_seed_and_epoch_alone():
    third = draw(epoch=3, seed=3, count=100)
    torch.manual_seed(0)
    first = draw(epoch=1, seed=3, count=100)
    assert same(first, draw(epoch=1, seed=3, count=100)) and same(third, draw(epoch=3, seed=3, count=100))
    others = [draw(epoch=epoch, seed=seed, count=100) for seed, epoch in ((3, 1), (3, 2), (4, 1), (1, 3))]
    assert len({tuple(plan.indices.tolist()) for plan in others}) == 4


def test_drawing_a_plan_leaves_the_global_generator_as_it_was():
    state = torch.get_rng_state()
    draw(count=100)
    assert torch.equal(state, torch.get_rng_state())


@given(seed=st.one_of(st.integers(-(2**63), 2**64 - 1), st.sampled_from([-(2**63), -1, 0, 2**63, 2**64 - 1])))
def test_a_seed_counts_as_torch_counts_it(seed):
    assert same(draw(seed=seed, count=9), draw(seed=torch.Generator().manual_seed(seed).initial_seed(), count=9))


def test_the_choices_of_a_seed_stay_what_they_have_always_been():
    """Recorded runs are repeated by their seeds."""
    plan = draw(epoch=1, seed=-3, count=50, size=24, transforms=TRANSFORMS)
    assert plan.indices[:5].tolist() == [9, 44, 8, 40, 47]
    assert plan.offsets[:3].tolist() == [[12, -2], [0, 3], [5, 1]]
    assert plan.flips[:8].tolist() == [True, False, False, True, False, False, True, False]
    assert plan.cutouts[:2].tolist() == [[12, 0, 8, 8], [14, 3, 8, 8]]
    assert plan.jitter[0].tolist() == [0.012498275376856327, 1.0575505495071411]
    assert plan.numbers[0].tolist() == [0.5871337056159973, 0.503679633140564, 0.5453460812568665]


def test_switching_one_choice_off_leaves_the_others_as_they_are():
    whole, bare = draw(), draw(Augment(crop=0, flip="none", cutout=0))
    assert torch.equal(whole.indices, bare.indices)
    assert torch.equal(draw(Augment(4, "none", 0)).offsets, whole.offsets)
    assert torch.equal(draw(Augment(0, "random", 0)).flips, whole.flips)
    assert torch.equal(draw(Augment(0, "none", 8)).cutouts, whole.cutouts)
    assert torch.equal(draw(Augment(0, "none", 0, 0.1, 0.2)).jitter, whole.jitter)
    assert bare.jitter is None
    brighter, sharper = (draw(Augment(0, "none", 0, *sizes)).jitter for sizes in ((0.1, 0), (0, 0.2)))
    assert torch.equal(brighter[:, 0] * sharper[:, 1], whole.jitter[:, 0])
    assert (brighter[:, 1] == 1).all() and (sharper[:, 0] == 0).all()


def test_each_transform_draws_numbers_of_its_own_and_changes_no_other_choice():
    bare, both = draw(epoch=2, seed=-5), draw(epoch=2, seed=-5, transforms=TRANSFORMS)
    assert bare.numbers is None and both.numbers.shape == (1000, 3) and both.numbers.dtype == torch.float32
    assert all(torch.equal(getattr(bare, name), getattr(both, name)) for name in TENSORS[:-1])
    one, other = (draw(epoch=2, seed=-5, transforms=[each]).numbers for each in TRANSFORMS)
    assert torch.equal(torch.cat([one, other], dim=1), both.numbers)
    turned = draw(epoch=2, seed=-5, transforms=TRANSFORMS[::-1])
    assert torch.equal(turned.numbers, torch.cat([other, one], dim=1)) and turned.transforms == TRANSFORMS[::-1]
    off = draw(epoch=2, seed=-5, transforms=[Add(0.0), Scale()])
    assert torch.equal(off.numbers, other) and off.transforms == (Scale(),)
    assert draw(transforms=[Add(0.0)]).numbers is None
    for values in both.numbers.unbind(1):
        assert values.min() >= 0 and values.max() < 1
    others = [draw(epoch=epoch, seed=seed, transforms=TRANSFORMS).numbers for epoch, seed in ((3, -5), (2, 5))]
    drawn = torch.cat([both.numbers, *others], dim=1)
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.15
    assert torch.equal(draw(epoch=2, seed=-5, transforms=TRANSFORMS).numbers, both.numbers)


def test_numbers_are_uniform():
    numbers = draw(count=100_000, transforms=TRANSFORMS).numbers
    counts = torch.stack([torch.histc(column, 20, 0, 1) for column in numbers.unbind(1)]).double()
    chi_square = ((counts - 5_000) ** 2 / 5_000).sum(1)
    assert chi_square.max() < 19 + 6 * 38**0.5


def test_brightness_and_contrast_are_uniform_within_their_bounds_and_independent():
    added, factor = draw(count=40_000).jitter.double().unbind(1)
    brightness, contrast = added / factor, factor - 1
    for values, bound in ((brightness, 0.1), (contrast, 0.2)):
        assert values.abs().max() <= bound * (1 + 1e-5)
        assert abs(values.mean()) < 5 * bound / (3 * 40_000) ** 0.5
        assert abs(values.std() - bound / 3**0.5) < 0.01 * bound
    assert abs(torch.corrcoef(torch.stack([brightness, contrast]))[0, 1]) < 0.025


@pytest.mark.parametrize("flip", ["random", "alternating"])
def test_an_epoch_visits_the_images_that_it_is_given_and_no_others(flip):
    visited = torch.tensor([3, 5, 6, 10, 40])
    plans = [draw(Augment(flip=flip), epoch, count=50, visited=visited) for epoch in range(3)]
    for plan in plans:
        assert sorted(plan.indices.tolist()) == visited.tolist() and len(plan.offsets) == len(plan.flips) == 5
    assert draw(count=50, visited=visited, shuffle=False).indices.tolist() == visited.tolist()
    if flip == "alternating":  # whatever else is visited
        whole = draw(Augment(flip=flip), 0, count=50)
        by_image = dict(zip(whole.indices.tolist(), whole.flips.tolist(), strict=True))
        assert [by_image[place] for place in plans[0].indices.tolist()] == plans[0].flips.tolist()


def test_the_kinds_of_choice_are_independent_of_each_other():
    plan = draw(Augment(crop=0, flip="random", cutout=31), count=10_000)
    for corner in (plan.cutouts[:, 0], plan.cutouts[:, :2].flatten()[:10_000]):  # 0 or 1
        assert abs((corner == plan.flips).double().mean() - 0.5) < 0.025


def test_without_shuffle_images_come_in_order_and_are_changed_all_the_same():
    plan = draw(shuffle=False)
    assert plan.indices.tolist() == list(range(1000))
    assert torch.equal(plan.offsets, draw().offsets)


def test_to_moves_every_tensor():
    moved = draw(count=10, size=20, transforms=TRANSFORMS).to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS)
    assert moved.size == 20 and moved.transforms == TRANSFORMS
    assert draw(Augment(cutout=0), count=10).to("meta").cutouts is None


def test_crops_and_cutouts_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"augment.crop is 8; allowed: 0 to 7"):
        draw(Augment(crop=8), image_size=8)
    with pytest.raises(UserError, match=r"augment.cutout is 9; allowed: 0 to 8"):
        draw(Augment(crop=0, cutout=9), image_size=8)
    with pytest.raises(UserError, match=r"augment.cutout is 8; allowed: 0 to 7, the crop's side"):
        draw(size=7)
    with pytest.raises(UserError, match=r"the crops' size is 33; allowed: 1 to 32, the image's side"):
        draw(size=33)
    with pytest.raises(UserError, match="epoch is -1; allowed: 0 or more"):
        draw(epoch=-1)
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(UserError, match=rf"seed is {seed}; allowed: -9.* to 18[\d,]*615"):
            draw(seed=seed)


BARE_AND_EVERYTHING = pytest.mark.parametrize(
    ("augment", "transforms"), [(Augment(), ()), (EVERYTHING, TRANSFORMS)], ids=["bare", "everything"]
)


@BARE_AND_EVERYTHING
def test_rows_are_the_choices_in_their_places(augment, transforms):
    plan = draw(augment, count=20, size=30, transforms=transforms)
    part = plan.rows(5, 9)
    assert part.size == 30 and part.transforms == transforms and len(plan.rows(18, 22)) == 2
    for name in TENSORS:
        mine, theirs = getattr(plan, name), getattr(part, name)
        assert (mine is None) == (theirs is None) == (name in TENSORS[-3:] and augment == Augment())
        assert mine is None or torch.equal(mine[torch.arange(5, 9)], theirs)


@BARE_AND_EVERYTHING
@pytest.mark.parametrize("count", [20, 7])
def test_copy_overwrites_the_first_rows_of_the_tensors_themselves(augment, transforms, count):
    plan = draw(augment, 0, count=20, transforms=transforms)
    other = draw(augment, 1, count=20, visited=torch.arange(count), transforms=transforms)
    last, places = plan.indices[count:].clone(), plan.indices.data_ptr()
    plan.copy_(other)
    assert plan.indices.data_ptr() == places and torch.equal(plan.indices[count:], last)
    for name in TENSORS:
        mine, theirs = getattr(plan, name), getattr(other, name)
        assert (mine is None and theirs is None) or torch.equal(mine[:count], theirs)


@BARE_AND_EVERYTHING
def test_an_empty_plan_has_room_for_the_plans_of_its_recipe(augment, transforms):
    buffers = EpochPlan.empty(20, augment, 32, "cpu", transforms)
    plan = draw(augment, count=20, size=24, transforms=transforms)
    assert buffers.size == 32 and buffers.transforms == transforms
    for name in TENSORS:
        mine, theirs = getattr(buffers, name), getattr(plan, name)
        assert (mine is None and theirs is None) or (mine.dtype == theirs.dtype and mine.shape == theirs.shape)
    buffers.copy_(plan)
    assert all(
        torch.equal(getattr(buffers, name), theirs) for name in TENSORS if (theirs := getattr(plan, name)) is not None
    )
    assert buffers.size == 32


@BARE_AND_EVERYTHING
@pytest.mark.parametrize("size", [None, 24])
def test_a_batch_by_its_number_is_the_one_by_a_tensor_and_the_one_of_its_rows(augment, transforms, size):
    images = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8)
    labels, plan = torch.randperm(20), draw(augment, count=20, size=size, transforms=transforms)
    how = {"mean": (120.5, 110.0, 99.25), "std": (60.0, 64.0, 70.5), "dtype": torch.float16}
    for number in range(4):
        part = plan.rows(number * 6, number * 6 + 6)
        numbered = plan.batch(number, 6)
        made = numbered.augment(images, **how)
        assert made.shape == (6 if number < 3 else 2, 3, size or 32, size or 32) and made.dtype == torch.float16
        assert torch.equal(made, Batch(part, len(part)).augment(images, **how))
        assert torch.equal(numbered.labels(labels), labels[part.indices])
        assert numbered.images == len(part) and numbered.position is None
        if number < 3:
            counted = plan.batch(torch.tensor([number]), 6)
            assert torch.equal(counted.augment(images, **how), made)
            assert torch.equal(counted.labels(labels), labels[part.indices])
            assert counted.images == 6 and counted.plan is plan
    assert plan.batch(0, 6).augment(images, **how, size=20).shape == (6, 3, 20, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transforms_change_the_normalized_batch_one_after_the_other(dtype):
    images = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8)
    how = {"mean": (120.5, 110.0, 99.25), "std": (60.0, 64.0, 70.5), "dtype": dtype}
    transforms = (Add(0.5), Add(0.0), Scale())
    bare, plan = draw(count=20), draw(count=20, transforms=transforms)
    first, *factors = plan.numbers[6:12, :, None, None, None].unbind(1)
    added = bare.batch(1, 6).augment(images, **how) + 0.5 * first.to(dtype)
    expected = (added * (1 + factors[0] * factors[1])).to(dtype)
    for position in (1, torch.tensor([1])):
        made = plan.batch(position, 6).augment(images, **how)
        assert made.dtype == dtype and torch.equal(made, expected)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda images, numbers, config: images[1:], r"\[5, 3, 32, 32\]"),
        (lambda images, numbers, config: images[..., 1:], r"\[6, 3, 32, 31\]"),
        (lambda images, numbers, config: images[:, 0], r"\[6, 32, 32\]"),
        (lambda images, numbers, config: None, "a NoneType"),
    ],
)
def test_a_transform_must_return_as_many_images_of_the_same_sides(function, found):
    @dataclass(frozen=True)
    class Wrong(TransformConfig):
        kind = "wrong"
        active = True

    Wrong.function = staticmethod(function)
    batch = draw(count=20, transforms=[Wrong()]).batch(0, 6)
    images = torch.zeros(20, 32, 32, 3, dtype=torch.uint8)
    refusal = rf"^transforms.wrong makes {found} of \[6, 3, 32, 32\]; allowed: as many images, \[6, 3, 32, 32\]$"
    with pytest.raises(UserError, match=refusal):
        batch.augment(images, mean=(0, 0, 0), std=(1, 1, 1), dtype=torch.float32)


@pytest.mark.parametrize("position", [-1, 4, 100])
def test_a_batch_beyond_the_last_is_refused(position):
    with pytest.raises(IndexError, match=f"batch {position} of 6 images each; the plan has 20 images"):
        draw(count=20).batch(position, 6)


@pytest.mark.parametrize("augment", [EVERYTHING, Augment(flip="alternating")], ids=["everything", "alternating"])
@pytest.mark.parametrize("visits", [None, 7])
def test_a_plan_for_a_device_is_finished_there_without_reading_a_value(augment, visits):
    """The meta device has none."""
    visited = visits and torch.empty(visits, dtype=torch.int64, device="meta")
    plan = draw(augment, 1, count=20, visited=visited, transforms=TRANSFORMS, device="meta")
    assert len(plan) == (visits or 20)
    assert {tensor.device.type for name in TENSORS if (tensor := getattr(plan, name)) is not None} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("visited", [None, [3, 5, 6, 10, 40]])
def test_a_plan_for_a_gpu_is_that_for_the_host_and_waits_for_nothing(visited):
    visited = None if visited is None else torch.tensor(visited)
    settings = {"count": 50, "transforms": TRANSFORMS}
    expected = [draw(epoch=epoch, visited=visited, **settings) for epoch in range(20)]
    there = None if visited is None else visited.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(100_000_000)  # the copies are all still to come when the last is queued
        plans = [draw(epoch=epoch, visited=there, device="cuda", **settings) for epoch in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(same(plan.to("cpu"), other) for plan, other in zip(plans, expected, strict=True))
