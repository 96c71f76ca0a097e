"""Which hidden units do little, against a slow loop in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.plasticity.units import dormant, least_useful, magnitudes, outgoing, replacements, utilities

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
seeds = st.integers(0, 2**32)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=10)
@given(sizes=SIZES, seed=seeds, flat=st.booleans())
def test_magnitudes_and_dormant_units(sizes, seed, flat):
    images, units, side = sizes
    generator = torch.Generator().manual_seed(seed)
    shape = (images, units) if flat else (images, units, side, side)
    values = torch.randn(shape, generator=generator, dtype=torch.float64).relu()
    values[:, torch.rand(units, generator=generator) < 0.3] *= 1e-3
    means = []
    for unit in range(units):
        one = values[:, unit].flatten().tolist()
        means.append(sum(map(abs, one)) / len(one))
    found = magnitudes(values)
    close(found, torch.tensor(means, dtype=torch.float64))
    of_layer = sum(means) / units
    for threshold in (0.0, 0.025, 0.5):
        scores = [mean / of_layer if of_layer else 0 for mean in means]
        assert dormant(found, threshold).tolist() == [score <= threshold for score in scores]


def test_magnitudes_of_half_precision_are_summed_in_single():
    values = torch.full((1, 1, 100, 100), 0.1, dtype=torch.bfloat16)
    found = magnitudes(values, torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, values[0, :, 0, 0].float())


@settings(max_examples=10)
@given(units=st.integers(1, 6), inputs=st.integers(1, 3), out=st.integers(1, 4), seed=seeds, maturity=st.integers(1, 9))
def test_utilities_and_the_least_useful(units, inputs, out, seed, maturity):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, units * inputs, generator=generator, dtype=torch.float64)
    averages = torch.rand(units, generator=generator, dtype=torch.float64)
    ages = torch.randint(1, 12, (units,), generator=generator)
    wanted = []
    for unit in range(units):
        columns = [abs(float(weight[o, unit * inputs + i])) for o in range(out) for i in range(inputs)]
        wanted.append(float(averages[unit]) / (1 - 0.9 ** int(ages[unit])) * sum(columns) / len(columns))
    found = utilities(averages, ages, 0.9, weight)
    close(found, torch.tensor(wanted, dtype=torch.float64))
    filters = weight.view(out, units, inputs, 1)
    close(outgoing(filters, units), outgoing(weight, units))
    mature = [unit for unit in range(units) if ages[unit] > maturity]
    for count in range(len(mature) + 1):
        chosen = sorted(sorted(mature, key=lambda unit: wanted[unit])[:count])
        assert least_useful(found, ages, maturity, count).nonzero().flatten().tolist() == chosen


@settings(max_examples=25)
@given(units=st.integers(1, 20), rate=st.floats(0, 1), maturity=st.integers(1, 12), steps=st.integers(0, 60))
def test_the_number_of_replacements_is_known_before(units, rate, maturity, steps):
    """Whichever of the mature units is replaced, here the oldest or the youngest."""
    for order in (1, -1):
        ages, waiting, wanted = [0] * units, 0.0, []
        for _ in range(steps):
            ages = [age + 1 for age in ages]
            mature = sorted((unit for unit in range(units) if ages[unit] > maturity), key=lambda u: order * ages[u])
            waiting += rate * units if mature else 0
            count = min(int(waiting), len(mature))
            waiting -= count
            for unit in mature[:count]:
                ages[unit] = 0
            wanted.append(count)
        assert list(replacements(units, rate, maturity, steps)) == wanted


@pytest.mark.parametrize(("rate", "least"), [(0.0, 0), (1e-3, 88), (1.0, 900)])
def test_a_rate_is_a_share_of_the_units_in_each_step(rate, least):
    counts = list(itertools.islice(replacements(100, rate, 100, 1000), 1000))
    assert sum(counts[:100]) == 0 and least <= sum(counts) <= max(90, 1000 * rate)
