import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import Augment, EpochPlan
from fastcifar.errors import UserError

EVERYTHING = Augment(crop=4, flip="random", cutout=8)


def draw(augment=EVERYTHING, epoch=0, seed=0, count=1000, **settings):
    return EpochPlan.draw(count, augment, epoch, torch.Generator().manual_seed(seed), **settings)


def same(first, second):
    tensors = [(plan.indices, plan.offsets, plan.flips, plan.cutouts) for plan in (first, second)]
    return all(torch.equal(one, other) for one, other in zip(*tensors, strict=True))


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(1, 300),
    size=st.integers(2, 32),
    crop=st.integers(0, 31),
    cutout=st.integers(0, 32),
    flip=st.sampled_from(["none", "random", "alternating"]),
    epoch=st.integers(0, 1000),
    seed=st.integers(-(2**63), 2**64 - 1),
)
def test_a_plan_is_a_permutation_with_crops_and_cutouts_inside_their_bounds(
    count, size, crop, cutout, flip, epoch, seed
):
    crop, cutout = min(crop, size - 1), min(cutout, size)
    plan = draw(Augment(crop, flip, cutout), epoch, seed, count, image_size=size)
    assert len(plan) == count and plan.indices.dtype == torch.int64
    assert sorted(plan.indices.tolist()) == list(range(count))
    assert plan.offsets.shape == (count, 2) and plan.offsets.dtype == torch.int32
    assert plan.offsets.abs().max() <= crop
    assert plan.flips.shape == (count,) and plan.flips.dtype == torch.bool
    if cutout:
        assert plan.cutouts.shape == (count, 4) and plan.cutouts.dtype == torch.int32
        assert plan.cutouts[:, :2].min() >= 0 and plan.cutouts[:, :2].max() + cutout <= size
        assert (plan.cutouts[:, 2:] == cutout).all()
    else:
        assert plan.cutouts is None


def test_every_place_of_crop_and_cutout_is_about_equally_likely():
    plan = draw(count=81_000)
    for places, first, kinds in ((plan.offsets, -4, 9), (plan.cutouts[:, :2], 0, 25)):
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
    third = EpochPlan.draw(100, EVERYTHING, 3, generator)
    torch.rand(10, generator=generator)
    torch.manual_seed(0)
    first = EpochPlan.draw(100, EVERYTHING, 1, generator)
    assert same(first, draw(epoch=1, seed=3, count=100)) and same(third, draw(epoch=3, seed=3, count=100))
    others = [draw(epoch=epoch, seed=seed, count=100) for seed, epoch in ((3, 1), (3, 2), (4, 1), (1, 3))]
    assert len({tuple(plan.indices.tolist()) for plan in others}) == 4


def test_drawing_a_plan_leaves_the_generator_and_the_global_one_as_they_were():
    generator = torch.Generator().manual_seed(3)
    states = generator.get_state(), torch.get_rng_state()
    EpochPlan.draw(100, EVERYTHING, 0, generator)
    assert torch.equal(states[0], generator.get_state()) and torch.equal(states[1], torch.get_rng_state())


def test_switching_one_choice_off_leaves_the_others_as_they_are():
    whole, bare = draw(), draw(Augment(crop=0, flip="none", cutout=0))
    assert torch.equal(whole.indices, bare.indices)
    assert torch.equal(draw(Augment(4, "none", 0)).offsets, whole.offsets)
    assert torch.equal(draw(Augment(0, "random", 0)).flips, whole.flips)
    assert torch.equal(draw(Augment(0, "none", 8)).cutouts, whole.cutouts)


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
    assert len(plan.batch(8, 12)) == 2
    assert draw(Augment(cutout=0), count=10).batch(0, 3).cutouts is None


def test_to_moves_every_tensor():
    moved = draw(count=10).to("meta")
    for tensor in (moved.indices, moved.offsets, moved.flips, moved.cutouts):
        assert tensor.device.type == "meta"
    assert draw(Augment(cutout=0), count=10).to("meta").cutouts is None


def test_what_the_image_does_not_hold_is_refused():
    with pytest.raises(UserError, match=r"augment.crop is 8; allowed: 0 to 7"):
        draw(Augment(crop=8), image_size=8)
    with pytest.raises(UserError, match=r"augment.cutout is 9; allowed: 0 to 8"):
        draw(Augment(crop=0, cutout=9), image_size=8)
    with pytest.raises(UserError, match="epoch is -1; allowed: 0 or more"):
        draw(epoch=-1)


@pytest.mark.parametrize("cutout", [0, 8])
def test_take_gives_the_choices_in_any_places(cutout):
    plan = EpochPlan.draw(20, Augment(cutout=cutout), 0, torch.Generator().manual_seed(1))
    whole, part = plan.take(torch.arange(5, 9)), plan.batch(5, 9)
    for name in ("indices", "offsets", "flips", "cutouts"):
        mine, theirs = getattr(whole, name), getattr(part, name)
        assert (mine is None) == (theirs is None) == (name == "cutouts" and not cutout)
        assert mine is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("cutout", [0, 8])
def test_copy_overwrites_the_tensors_themselves(cutout):
    generator = torch.Generator().manual_seed(1)
    plan, other = (EpochPlan.draw(20, Augment(cutout=cutout), epoch, generator) for epoch in (0, 1))
    places = plan.indices.data_ptr()
    plan.copy_(other)
    assert plan.indices.data_ptr() == places
    for name in ("indices", "offsets", "flips") + (("cutouts",) if cutout else ()):
        assert torch.equal(getattr(plan, name), getattr(other, name))
