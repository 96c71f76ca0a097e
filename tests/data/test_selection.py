"""Which images an epoch visits when it leaves out the easiest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import Selection


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 200), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_hardest_images_are_chosen_in_the_order_of_their_places(count, share, seed):
    losses = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    number = round(share * count)
    chosen = Selection(count).choose(losses, number)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == sorted(losses.topk(number).indices.tolist())


def test_an_image_that_was_never_visited_is_the_hardest():
    losses = torch.tensor([5.0, torch.inf, 1.0, torch.inf])
    assert Selection(4).choose(losses, 2).tolist() == [1, 3]
    assert Selection(4).choose(losses, 3).tolist() == [0, 1, 3]


def test_of_equal_losses_the_first_images_are_chosen():
    assert Selection(5).choose(torch.ones(5), 3).tolist() == [0, 1, 2]


def test_losses_that_stay_leave_the_same_images_out_for_ever_without_a_limit():
    selection = Selection(4)
    assert [selection.choose(torch.arange(4.0), 3).tolist() for _ in range(5)] == [[1, 2, 3]] * 5


@pytest.mark.parametrize("max_skips", [1, 2, 3])
@pytest.mark.parametrize("number", [4, 6, 7])
def test_no_image_is_left_out_more_often_in_a_row_than_allowed(max_skips, number):
    selection, skipped = Selection(8, max_skips), [0] * 8
    for _ in range(30):
        chosen = selection.choose(torch.arange(8.0), number).tolist()
        skipped = [0 if place in chosen else skips + 1 for place, skips in enumerate(skipped)]
        assert max(skipped) <= max_skips
    assert len(chosen) == number


def test_where_all_overdue_images_do_not_fit_the_longest_left_out_come_first():
    selection = Selection(6, max_skips=1)
    chosen = [selection.choose(torch.arange(6.0), 2).tolist() for _ in range(6)]
    assert chosen == [[4, 5], [2, 3], [0, 1], [4, 5], [2, 3], [0, 1]]


@settings(deadline=None, max_examples=50)
@given(losses=st.lists(st.integers(0, 3), min_size=1, max_size=40), data=st.data(), max_skips=st.integers(0, 3))
def test_the_choice_is_that_of_a_sort(losses, data, max_skips):
    """By how long an image is overdue, then by its loss, then by its place."""
    number = data.draw(st.integers(1, len(losses)))
    selection, skips = Selection(len(losses), max_skips), [0] * len(losses)
    for _ in range(4):
        overdue = [skip if max_skips and skip >= max_skips else 0 for skip in skips]
        order = sorted(range(len(losses)), key=lambda place: (-overdue[place], -losses[place], place))
        chosen = sorted(order[:number])
        assert selection.choose(torch.tensor(losses, dtype=torch.float32), number).tolist() == chosen
        skips = [0 if place in chosen else skip + 1 for place, skip in enumerate(skips)]


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 60), data=st.data(), max_skips=st.integers(0, 3))
def test_the_choices_are_those_of_the_slow_definition_whatever_the_losses_become(count, data, max_skips):
    selection, skips = Selection(count, max_skips), [0] * count
    loss = st.sampled_from([-1.0, 0.0, 0.5, 0.5000001, 2.0, float("inf")])
    for _ in range(5):
        number = data.draw(st.integers(1, count))
        losses = data.draw(st.lists(loss, min_size=count, max_size=count))
        chosen = []
        while len(chosen) < number:  # one after another, the first of the best
            overdue = {place: skips[place] if 0 < max_skips <= skips[place] else 0 for place in range(count)}
            left = [place for place in range(count) if place not in chosen]
            chosen.append(max(left, key=lambda place: (overdue[place], losses[place], -place)))
        assert selection.choose(torch.tensor(losses), number).tolist() == sorted(chosen)
        skips = [0 if place in chosen else skip + 1 for place, skip in enumerate(skips)]


@pytest.mark.parametrize("max_skips", [0, 2])
def test_no_value_is_read_to_choose(max_skips):
    selection = Selection(9, max_skips, device="meta")  # which has none
    for _ in range(3):
        chosen = selection.choose(torch.empty(9, device="meta"), 4)
        assert chosen.shape == (4,) and chosen.device.type == "meta" and chosen.dtype == torch.int64


def test_a_selection_goes_on_from_its_state():
    one, other = Selection(8, max_skips=2), Selection(8, max_skips=2)
    for _ in range(2):
        one.choose(torch.arange(8.0), 3)
    state = one.state_dict()
    expected = [one.choose(torch.arange(8.0), 3).tolist() for _ in range(4)]
    other.load_state_dict(state)
    assert [other.choose(torch.arange(8.0), 3).tolist() for _ in range(4)] == expected
    other.load_state_dict(state)  # which neither has changed since
    assert other.choose(torch.arange(8.0), 3).tolist() == expected[0]
    assert Selection(8, 2).choose(torch.arange(8.0), 3).tolist() != expected[0]
