"""The contract of torch's optimizers, with torch.optim.SGD as the control: hooks, copies, and saved states."""

import copy
import io
import pickle

import pytest
import torch

from tests.alone import MAKERS, after, flat, parameters_of, same, train, weights

OURS = [name for name in MAKERS if name != "torch"]


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def test_hooks_are_called_once_around_what_they_are_for(make):
    optimizer, calls = make(weights(), lr=0.1), []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("before step")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after step")),
        optimizer.register_state_dict_pre_hook(lambda *_: calls.append("before saving")),
        optimizer.register_state_dict_post_hook(lambda _, state: calls.append("after saving") or {**state, "more": 1}),
        optimizer.register_load_state_dict_pre_hook(lambda _, state: calls.append(f"before loading {state['more']}")),
        optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("after loading")),
    ]
    train(optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    expected = ["before step", "after step", "before saving", "after saving", "before loading 1", "after loading"]
    assert calls == expected
    for handle in handles:
        handle.remove()
    train(optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == expected


def test_a_hook_may_put_another_state_in_place_of_one_that_is_loaded(make):
    optimizer, other = make(weights(), lr=0.1), make(weights(), lr=0.2)
    train(other, range(1))
    theirs = copy.deepcopy(other.state_dict())
    optimizer.register_load_state_dict_pre_hook(lambda *_: theirs)
    optimizer.load_state_dict(make(weights(), lr=0.3).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.2 and flat(optimizer.state_dict()) == flat(theirs)


def copied(optimizer):
    return copy.deepcopy(optimizer)


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", [copied, pickled, saved])
def test_a_copy_trains_on_as_the_original_and_apart_from_it(make, how):
    optimizer = make([{"params": weights()}, {"params": weights(((3, 4),)), "lr": 0.3}], lr=0.1)
    train(optimizer, range(3))
    other = how(optimizer)
    assert type(other) is type(optimizer) and repr(other) == repr(optimizer)
    before = parameters_of(other)
    train(optimizer, range(3, 6))
    assert same(before, parameters_of(other))
    assert same(after(other, range(3, 6)), parameters_of(optimizer))
    called = []
    other.register_step_pre_hook(lambda *_: called.append(1))
    other.add_param_group({"params": weights(((5, 2),))})
    train(other)
    assert called == [1] * 4


@pytest.mark.parametrize("grows", [False, True])
def test_a_state_goes_on_elsewhere_with_the_same_bits(make, grows):
    """Through a file that holds tensors and plain values alone; `grows`: with a group that was added on the way."""
    whole = make(weights(), lr=0.1)
    train(whole, range(3))
    if grows:
        whole.add_param_group({"params": weights(((3, 4),)), "lr": 0.3})
        train(whole, range(3, 4))
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    other = make(weights(seed=1), lr=0.7)
    if grows:
        other.add_param_group({"params": weights(((3, 4),))})
    train(other, range(1))  # it need not be fresh
    for group, theirs in zip(other.param_groups, whole.param_groups, strict=True):
        for parameter, value in zip(group["params"], theirs["params"], strict=True):
            parameter.data.copy_(value)
    other.load_state_dict(torch.load(file))
    assert flat(other.state_dict()) == flat(whole.state_dict())
    assert same(after(whole, range(4, 9)), after(other, range(4, 9)))


@pytest.mark.parametrize(
    "name", [name for name in MAKERS if name != "torch"]
)  # torch's own goes on in the tensors that it is given
def test_a_state_that_is_loaded_stays_as_it_is(name):
    optimizer, other = (MAKERS[name](weights(), lr=0.1) for _ in range(2))
    train(optimizer, range(3))
    state = optimizer.state_dict()
    before = flat(state)
    other.load_state_dict(state)
    train(other)
    assert flat(state) == before


OTHERS = {
    "another group": lambda make: make([{"params": weights()}, {"params": weights(((3, 4),))}], lr=0.2),
    "fewer parameters": lambda make: make(weights()[:1], lr=0.2),
    "other shapes": lambda make: make(weights(((4, 6), (3, 2, 3, 2))), lr=0.2),
}


@pytest.mark.parametrize(  # torch's takes other shapes, and fails in the next step
    ("name", "other"),
    [(name, other) for name in MAKERS for other in OTHERS if (name, other) != ("torch", "other shapes")],
)
def test_the_state_of_another_layout_is_refused_and_changes_nothing(name, other):
    optimizer, theirs = MAKERS[name](weights(), lr=0.1), OTHERS[other](MAKERS[name])
    train(optimizer, range(3))
    train(theirs, range(2))
    state, before = flat(optimizer.state_dict()), parameters_of(optimizer)
    with pytest.raises(ValueError, match="state"):
        optimizer.load_state_dict(theirs.state_dict())
    assert flat(optimizer.state_dict()) == state and same(before, parameters_of(optimizer))


@pytest.mark.parametrize(
    ("name", "setting"),
    [("LARS", "maximize"), ("Muon", "maximize"), ("Muon", "adjust_lr_fn"), ("Muon", "row_momentum")],
)
def test_states_and_pickles_from_before_a_setting_are_read(name, setting):
    optimizer, other = MAKERS[name](weights(), lr=0.1), MAKERS[name](weights(), lr=0.1)
    train(optimizer, range(2))
    state, inside = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(optimizer.__getstate__())
    for group in (*state["param_groups"], *inside["param_groups"], inside["defaults"]):
        del group[setting]
    unpickled = type(optimizer).__new__(type(optimizer))
    unpickled.__setstate__(inside)
    for parameter, value in zip(other.param_groups[0]["params"], parameters_of(optimizer), strict=True):
        parameter.data.copy_(value)
    other.load_state_dict(state)
    expected = after(optimizer, range(2, 4))
    assert same(after(other, range(2, 4)), expected) and same(after(unpickled, range(2, 4)), expected)
    unpickled.add_param_group({"params": weights(((3, 4),))})
    train(unpickled)
