"""The images that an epoch visits when it leaves out the easiest."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import hardest


@settings(deadline=None, max_examples=30)
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


@settings(deadline=None, max_examples=50)
@given(losses=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5000001, float("inf")]), min_size=1), data=st.data())
def test_of_equal_losses_the_first_images_are_chosen(losses, data):
    number = data.draw(st.integers(1, len(losses)))
    order = sorted(range(len(losses)), key=lambda place: (-losses[place], place))
    assert hardest(torch.tensor(losses), number).tolist() == sorted(order[:number])


def test_no_value_is_read_to_choose():
    chosen = hardest(torch.empty(9, device="meta"), 4)  # which has none
    assert chosen.shape == (4,) and chosen.device.type == "meta" and chosen.dtype == torch.int64
