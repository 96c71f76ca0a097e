import itertools

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastcifar.kernels import muon_direction, muon_update

RATES, FLAGS = [0.1, 0.3, 0.2], [True, False, True]


def laid_out(shapes, gap=0):
    """Return `(layout, length, batches)` of filters behind a gap, in x with a few elements behind each row."""
    layout, start, place = [], 32 * gap, 0
    for rows, columns in shapes:
        layout.append((start, rows, columns, place, columns + 3))
        start += -(-rows * columns // 32) * 32
        place += rows * (columns + 3)
    return layout, start, place


def flat_matrices(filters, length, device):
    flat = torch.zeros(length, device=device)
    for start, rows, columns, *_ in filters:
        flat[start : start + rows * columns] = torch.randn(rows * columns, device=device)
    return flat


def matrices(flat, filters):
    return [flat[start : start + rows * columns].double().view(rows, columns) for start, rows, columns, *_ in filters]


def placed(x, filters):
    return [
        x[place : place + rows * stride].double().view(rows, stride)[:, :columns]
        for _, rows, columns, place, stride in filters
    ]


shapes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=1, max_size=4)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(shapes=[(65, 70)], dtypes=(torch.float16, torch.float16), gap=0, seed=0)  # more partial sums than a block
@given(
    shapes=shapes,
    dtypes=st.sampled_from([(torch.float32,) * 2, (torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)]),
    gap=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_directions_are_their_formula(path, device, assert_close, shapes, dtypes, gap, seed):
    torch.manual_seed(seed)
    filters, length, batches = laid_out(shapes, gap)
    weights, velocity = (flat_matrices(filters, length, device) for _ in range(2))
    grads, before = flat_matrices(filters, length, device).to(dtypes[0]), velocity.clone()
    x = torch.full((batches,), 7.0, dtype=dtypes[1], device=device)
    norms = muon_direction(weights, grads, velocity, x, [*itertools.chain(*filters)], momentum=0.6)
    for number, (gradient, old, new, made, weight) in enumerate(
        zip(
            *(matrices(flat, filters) for flat in (grads, before, velocity)),
            placed(x, filters),
            matrices(weights, filters),
            strict=True,
        )
    ):
        expected = 0.6 * old + gradient
        assert_close(new, expected, torch.float32)
        direction = gradient + 0.6 * expected
        assert_close(made, direction / direction.norm(), dtypes[1])
        assert_close(norms[number], weight.norm(), torch.float32)
    between = torch.ones(batches, dtype=torch.bool)
    for values in placed(torch.arange(batches), filters):
        between[values.long().flatten()] = False
    assert (x.cpu()[between] == 7).all(), "x is written between the filters' rows"
    assert not torch.cat([velocity[: 32 * gap], weights[: 32 * gap]]).any()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=shapes,
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    step=st.integers(0, 7),
    averaged=st.booleans(),
    even=st.booleans(),
    seed=st.integers(0, 99),
)
@example(shapes=[(70, 65), (3, 70)], dtype=torch.float16, step=1, averaged=False, even=True, seed=0)  # several blocks
def test_an_update_is_its_formula(path, device, assert_close, shapes, dtype, step, averaged, even, seed):
    """`even`: by the mean squares of its rows."""
    torch.manual_seed(seed)
    filters, length, batches = laid_out(shapes, gap=1)
    weights, ema = (flat_matrices(filters, length, device) for _ in range(2))
    updates = torch.randn(batches, device=device).to(dtype)
    compute = None if dtype == torch.float32 else torch.zeros(length, dtype=dtype, device=device)
    before, old_ema = weights.clone(), ema.clone()
    squares = torch.rand(sum(rows for _, rows, *_ in filters), device=device)
    old_squares, first = squares.clone(), 0
    norms = torch.stack([weight.norm() for weight in matrices(weights, filters)]).float()
    muon_update(
        *(weights, updates, compute, ema if averaged else None, norms, torch.tensor(RATES, device=device)),
        *(torch.tensor(FLAGS, device=device), torch.tensor([step], device=device), [*itertools.chain(*filters)]),
        **{"decay": 0.05, "ema_decay": 0.8, "ema_every": 3},
        **({"row_squares": squares, "row_momentum": 0.7} if even else {}),
    )
    now = min(step, len(RATES) - 1)
    for old, new, update, average, old_average in zip(
        *(matrices(flat, filters) for flat in (before, weights)),
        placed(updates, filters),
        *(matrices(flat, filters) for flat in (ema, old_ema)),
        strict=True,
    ):
        if even:
            rows = slice(first, first := first + len(update))
            running = 0.7 * old_squares[rows].double() + 0.3 * update.square().mean(1)
            assert_close(squares[rows], running, torch.float32)
            evened = update / running.sqrt()[:, None]
            update = evened * update.norm() / evened.norm()
        expected = old * (len(old) ** 0.5 / old.norm() if FLAGS[now] else 1.0)
        expected = expected * (1 - RATES[now] * 0.05) - RATES[now] * update
        assert_close(new, expected, torch.float32)
        moved = averaged and step % 3 == 0
        assert_close(average, 0.8 * old_average + 0.2 * expected if moved else old_average, torch.float32)
    if compute is not None:
        assert_close(compute, weights, dtype)
    assert not weights[:32].any()


def test_a_filter_of_zeros_stays_and_one_of_nan_shows(path, device):
    filters, length, batches = laid_out([(4, 8), (4, 8)])
    flat = torch.zeros(length, device=device)
    flat[32:] = torch.nan
    x = torch.full((batches,), 7.0, device=device)
    norms = muon_direction(flat, flat, flat.clone(), x, [*itertools.chain(*filters)], momentum=0.6)
    zeros, bad = placed(x, filters)
    assert not zeros.any() and bad.isnan().all()
    assert norms[0] == 0 and norms[1].isnan()


def test_rows_of_zeros_stay_and_a_nan_shows_in_its_filter_alone(path, device):
    """In the first step too, in which a row's running mean square is 0."""
    filters, length, batches = laid_out([(4, 8), (4, 8), (4, 8)])
    updates = torch.ones(batches, device=device)
    zeros, partly, bad = placed(torch.arange(batches), filters)
    updates[zeros.long()] = 0
    updates[partly[1].long()] = 0
    updates[bad[2, 3].long()] = torch.nan
    weights, one = torch.zeros(length, device=device), torch.ones(1, device=device)
    squares = torch.zeros(12, device=device)
    muon_update(
        *(weights, updates, None, None, torch.ones(3, device=device), one, one == 2, one.long(), sum(filters, ())),
        row_squares=squares,
        row_momentum=0.75,
    )
    first, second, third = matrices(weights, filters)
    assert not first.any() and not second[1].any() and third.isnan().all()
    torch.testing.assert_close(second[[0, 2, 3]], -torch.ones_like(second[:3]))  # of equal rows all keep their size
    assert squares[:8].tolist() == [0, 0, 0, 0, 0.25, 0, 0.25, 0.25] and squares[10].isnan()


LAYOUT = [0, 4, 8, 0, 8]
BAD_LAYOUTS = {
    "empty": [],
    "not five numbers each": [0, 4, 8, 0],
    "off the boundary": [16, 4, 8, 0, 8],
    "beyond the buffers": [32, 4, 9, 0, 9],
    "beyond x": [0, 4, 8, 8, 9],
    "rows that overlap": [0, 4, 8, 0, 7],
}


@pytest.mark.parametrize("layout", BAD_LAYOUTS.values(), ids=BAD_LAYOUTS)
def test_filters_outside_the_buffers_are_refused(layout):
    flat, x = torch.zeros(64), torch.zeros(40)
    with pytest.raises(ValueError, match="allowed"):
        muon_direction(flat, flat, flat, x, layout, momentum=0.5)
    one = torch.ones(1)
    with pytest.raises(ValueError, match="allowed"):
        muon_update(flat, x, None, None, one, one, one.bool(), one.long(), layout)


def test_buffers_of_other_lengths_are_refused():
    flat, x, short = torch.zeros(64), torch.zeros(40), torch.zeros(32)
    with pytest.raises(ValueError, match=r"grads has shape \[32\]"):
        muon_direction(flat, short, flat, x, LAYOUT, momentum=0.5)
    with pytest.raises(ValueError, match=r"ema has shape \[32\]"):
        muon_update(flat, x, None, short, short, short, short.bool(), short.long(), LAYOUT)
    with pytest.raises(ValueError, match=r"norms has shape \[32\]; allowed: \[1\]"):
        muon_update(flat, x, None, None, short, short, short.bool(), short.long(), LAYOUT)
    one = torch.ones(1)
    with pytest.raises(ValueError, match=r"^row_squares has shape \[32\]; allowed: \[4\], one for each row$"):
        muon_update(flat, x, None, None, one, one, one.bool(), one.long(), LAYOUT, row_squares=short)


def test_the_operators_are_registered_right():
    flat, x = torch.randn(64), torch.zeros(32)
    torch.library.opcheck(torch.ops.fastcifar.muon_direction, (flat, flat.clone(), flat.clone(), x, LAYOUT, 0.5))
    one, step = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    buffers = (flat.clone(), x, torch.zeros(64).half(), torch.zeros(64), one, one, one.bool(), step)
    for rows in (None, torch.ones(4)):
        torch.library.opcheck(torch.ops.fastcifar.muon_update, (*buffers, LAYOUT, 0.1, 0.9, 2, rows, 0.9))
