"""Folds, and the images that an epoch visits when it leaves out the easiest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import Dataset, hardest
from fastcifar.data.selection import fold_of
from fastcifar.errors import UserError


@settings(max_examples=30)
@given(count=st.integers(1, 200), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_hardest_images_are_chosen_in_the_order_of_their_places(count, share, seed):
    losses = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    number = round(share * count)
    chosen = hardest(losses, number)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == sorted(losses.topk(number).indices.tolist())


def test_an_image_that_was_never_visited_is_the_hardest():
    losses = torch.tensor([5.0, torch.inf, 1.0, torch.inf])
    assert hardest(losses, 2).tolist() == [1, 3]
    assert hardest(losses, 3).tolist() == [0, 1, 3]


@settings(max_examples=50)
@given(losses=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5000001, float("inf")]), min_size=1), data=st.data())
def test_of_equal_losses_the_first_images_are_chosen(losses, data):
    number = data.draw(st.integers(1, len(losses)))
    order = sorted(range(len(losses)), key=lambda place: (-losses[place], place))
    assert hardest(torch.tensor(losses), number).tolist() == sorted(order[:number])


def test_no_value_is_read_to_choose():
    chosen = hardest(torch.empty(9, device="meta"), 4)  # which has none
    assert chosen.shape == (4,) and chosen.device.type == "meta" and chosen.dtype == torch.int64


@pytest.mark.parametrize(("classes", "folds"), [(3, 5), (7, 4), (1, 2), (10, 10)])
def test_folds_have_all_images_once_and_about_as_many_of_each_class(classes, folds):
    labels = torch.randint(classes, (103,), generator=torch.Generator().manual_seed(classes))
    parts = [fold_of(labels, number, folds) for number in range(1, folds + 1)]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(103))
    assert all(torch.equal(part, part.sort().values) for part in parts)
    counts = torch.stack([torch.bincount(labels[part], minlength=classes) for part in parts])
    for column in (*counts.unbind(1), counts.sum(1)):
        assert column.max() - column.min() <= 1
    assert torch.equal(parts[1], fold_of(labels, 2, folds))


def test_folds_are_the_same_images_always():
    assert fold_of(torch.arange(40) % 4, 2, 10).tolist() == [10, 19, 20, 33]


def test_a_dataset_of_a_fold_tests_on_it_and_trains_on_the_rest():
    images, labels = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(60, 4, 4, 3), torch.arange(60) % 3
    data = Dataset.from_arrays(images, labels, images[:2], labels[:2], x_val=images[:3])
    for number in (1, 2, 3):
        fold = data.fold(number, 3)
        places = fold_of(labels, number, 3)
        assert fold.test.images[:, 0, 0, 0].tolist() == places.tolist()
        assert sorted([*fold.train.images[:, 0, 0, 0].tolist(), *places.tolist()]) == list(range(60))
        assert (fold.folded, fold.holdout, fold.changes) == (f"{number}/3", 20, {"fold": f"{number}/3"})
        assert fold.val is data.val and fold.sha256 == data.sha256
    refused = {
        lambda: data.fold(0, 5): "the fold is 0; allowed: 1 to 5",
        lambda: data.fold(6, 5): "the fold is 6; allowed: 1 to 5",
        lambda: data.fold(1, 1): "the number of folds is 1; allowed: 2 to 60 parts of the training images",
        lambda: data.fold(1, 61): "the number of folds is 61; allowed: 2 to 60 parts of the training images",
        lambda: data.hold_out(5).fold(1, 5): "fold is 1/5, but 5 images are held out already; allowed: once",
        lambda: data.fold(2, 5).hold_out(5): "holdout is 5, but fold 2/5 is held out already; allowed: once",
    }
    for call, message in refused.items():
        with pytest.raises(UserError, match=f"^{message}"):
            call()
