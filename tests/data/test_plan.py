import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import Augment, EpochPlan
from fastcifar.errors import UserError

EVERYTHING = Augment(crop=4, flip="random", cutout=8, brightness=0.1, contrast=0.2)
TENSORS = ("indices", "offsets", "flips", "cutouts", "jitter")


def draw(augment=EVERYTHING, epoch=0, seed=0, count=1000, visited=None, **settings):
    visits = None if visited is None else len(visited)
    generator = torch.Generator().manual_seed(seed)
    return EpochPlan.prepare(count, augment, epoch, generator, visits=visits, **settings)(visited)


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(1, 300),
    image_size=st.integers(2, 32),
    size=st.integers(1, 32),
    crop=st.integers(0, 31),
    cutout=st.integers(0, 32),
    flip=st.sampled_from(["none", "random", "alternating"]),
    epoch=st.integers(0, 1000),
    seed=st.integers(-(2**63), 2**64 - 1),
)
def test_a_plan_is_a_permutation_with_crops_and_cutouts_inside_their_bounds(
    count, image_size, size, crop, cutout, flip, epoch, seed
):
    size = min(size, image_size)
    crop, cutout = min(crop, image_size - 1), min(cutout, size)
    plan = draw(Augment(crop, flip, cutout), epoch, seed, count, image_size=image_size, size=size)
    assert plan.size == size
    assert len(plan) == count and plan.indices.dtype == torch.int64
    assert sorted(plan.indices.tolist()) == list(range(count))
    assert plan.offsets.shape == (count, 2) and plan.offsets.dtype == torch.int32
    assert plan.offsets.min() >= -crop and plan.offsets.max() <= image_size - size + crop
    assert plan.flips.shape == (count,) and plan.flips.dtype == torch.bool
    if cutout:
        assert plan.cutouts.shape == (count, 4) and plan.cutouts.dtype == torch.int32
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


def test_random_flips_are_half_of_the_images_and_others_in_each_epoch():
    flips = torch.stack([draw(epoch=epoch, count=40_000, shuffle=False).flips for epoch in range(2)])
    assert (flips.double().mean(1) - 0.5).abs().max() < 0.0125
    assert abs((flips[0] == flips[1]).double().mean() - 0.5) < 0.0125


def test_alternating_flips_mirror_each_image_in_every_other_epoch():
    by_image = []
    for epoch in range(4):
        plan = draw(Augment(crop=4, flip="alternating"), epoch, count=10_000)
        by_image.append(torch.empty(10_000, dtype=torch.bool).index_put_((plan.indices,), plan.flips))
    assert abs(by_image[0].double().mean() - 0.5) < 0.025
    assert torch.equal(by_image[1], ~by_image[0])
    assert torch.equal(by_image[2], by_image[0]) and torch.equal(by_image[3], by_image[1])


def test_no_flip_mirrors_nothing():
    assert not draw(Augment(flip="none")).flips.any()


def test_a_plan_depends_on_seed_and_epoch_alone():
    generator = torch.Generator().manual_seed(3)
    third = EpochPlan.prepare(100, EVERYTHING, 3, generator)(None)
    torch.rand(10, generator=generator)
    torch.manual_seed(0)
    first = EpochPlan.prepare(100, EVERYTHING, 1, generator)(None)
    assert same(first, draw(epoch=1, seed=3, count=100)) and same(third, draw(epoch=3, seed=3, count=100))
    others = [draw(epoch=epoch, seed=seed, count=100) for seed, epoch in ((3, 1), (3, 2), (4, 1), (1, 3))]
    assert len({tuple(plan.indices.tolist()) for plan in others}) == 4


def test_drawing_a_plan_leaves_the_generator_and_the_global_one_as_they_were():
    generator = torch.Generator().manual_seed(3)
    states = generator.get_state(), torch.get_rng_state()
    EpochPlan.prepare(100, EVERYTHING, 0, generator)(None)
    assert torch.equal(states[0], generator.get_state()) and torch.equal(states[1], torch.get_rng_state())


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


def test_batches_are_parts_of_the_plan():
    plan = draw(count=10)
    part = plan.batch(4, 9)
    assert torch.equal(part.indices, plan.indices[4:9]) and torch.equal(part.offsets, plan.offsets[4:9])
    assert torch.equal(part.flips, plan.flips[4:9]) and torch.equal(part.cutouts, plan.cutouts[4:9])
    assert torch.equal(part.jitter, plan.jitter[4:9]) and part.size == plan.size
    assert len(plan.batch(8, 12)) == 2
    bare = draw(Augment(cutout=0), count=10).batch(0, 3)
    assert bare.cutouts is None and bare.jitter is None


def test_to_moves_every_tensor():
    moved = draw(count=10, size=20).to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS) and moved.size == 20
    assert draw(Augment(cutout=0), count=10).to("meta").cutouts is None


def test_what_the_image_does_not_hold_is_refused():
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


@pytest.mark.parametrize("augment", [Augment(), EVERYTHING], ids=["bare", "everything"])
def test_a_batch_is_the_choices_in_its_places(augment):
    plan = draw(augment, count=20, size=30)
    whole, part = plan, plan.batch(5, 9)
    assert part.size == 30
    for name in TENSORS:
        mine, theirs = getattr(whole, name), getattr(part, name)
        assert (mine is None) == (theirs is None) == (name in ("cutouts", "jitter") and augment == Augment())
        assert mine is None or torch.equal(mine[torch.arange(5, 9)], theirs)


@pytest.mark.parametrize("augment", [Augment(), EVERYTHING], ids=["bare", "everything"])
@pytest.mark.parametrize("count", [20, 7])
def test_copy_overwrites_the_first_rows_of_the_tensors_themselves(augment, count):
    plan, other = draw(augment, 0, count=20), draw(augment, 1, count=20, visited=torch.arange(count))
    last, places = plan.indices[count:].clone(), plan.indices.data_ptr()
    plan.copy_(other)
    assert plan.indices.data_ptr() == places and torch.equal(plan.indices[count:], last)
    for name in TENSORS:
        mine, theirs = getattr(plan, name), getattr(other, name)
        assert (mine is None and theirs is None) or torch.equal(mine[:count], theirs)


@pytest.mark.parametrize("augment", [EVERYTHING, Augment(flip="alternating")], ids=["everything", "alternating"])
@pytest.mark.parametrize("visits", [None, 7])
def test_a_plan_for_a_device_is_finished_there_without_reading_a_value(augment, visits):
    """The meta device has none."""
    prepare = EpochPlan.prepare(20, augment, 1, torch.Generator(), visits=visits, device="meta")
    plan = prepare(visits and torch.empty(visits, dtype=torch.int64, device="meta"))
    assert len(plan) == (visits or 20)
    assert {tensor.device.type for name in TENSORS if (tensor := getattr(plan, name)) is not None} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("visited", [None, [3, 5, 6, 10, 40]])
def test_a_plan_for_a_gpu_is_that_for_the_host_and_waits_for_nothing(visited):
    visited = None if visited is None else torch.tensor(visited)
    expected = [draw(epoch=epoch, count=50, visited=visited) for epoch in range(20)]
    there = None if visited is None else visited.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(100_000_000)  # the copies are all still to come when the last is queued
        plans = [draw(epoch=epoch, count=50, visited=there, device="cuda") for epoch in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(same(plan.to("cpu"), other) for plan, other in zip(plans, expected, strict=True))
