"""Newton-Schulz keeps singular vectors and brings singular values where its polynomial says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.optim import newton_schulz, polar_express
from fastcifar.optim.newton_schulz import COEFFICIENTS, orthogonalize

SPEEDRUN = (3.4576, -4.7391, 2.0843)
sides = st.integers(1, 12)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def applied(values, steps, coefficients):
    for step in range(steps):
        a, b, c = coefficients[3 * step : 3 * step + 3] if len(coefficients) > 3 else coefficients
        values = a * values + b * values**3 + c * values**5
    return values


def predicted(matrix, steps, coefficients):
    """Compute, by the singular value decomposition, the polynomial applied to each singular value over the norm."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / matrix.double().norm()
    values = applied(values, steps, coefficients)
    return left @ values.diag() @ right


@settings(max_examples=20)
@given(rows=sides, columns=sides, count=st.integers(1, 4), steps=st.integers(0, 5), seed=st.integers(0, 99))
def test_every_matrix_of_a_batch_is_what_the_polynomial_of_its_singular_values_gives(rows, columns, count, steps, seed):
    matrices = random(count, rows, columns, seed=seed)
    for coefficients in (COEFFICIENTS, SPEEDRUN, *([polar_express(steps)] if steps else [])):
        results = newton_schulz(matrices, steps, coefficients)
        for matrix, result in zip(matrices, results, strict=True):
            torch.testing.assert_close(result, predicted(matrix, steps, coefficients), rtol=1e-9, atol=1e-10)


PUBLISHED = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
]
"""Polar Express's for singular values from 0.001 on, without the safety factor (algorithm 1 of arXiv 2505.16932)."""


def test_polar_express_has_the_coefficients_of_the_paper():
    expected = [number / 1.01**power for each in PUBLISHED for number, power in zip(each, (1, 3, 5), strict=True)]
    assert polar_express(9) == pytest.approx([*expected, *(1.875, -1.25, 0.375) * 2], rel=1e-9)
    assert polar_express(3) == polar_express(9)[:9]


@settings(max_examples=10)
@given(least=st.floats(0.03, 0.97), seed=st.integers(0, 99))
def test_no_other_polynomial_of_a_first_step_brings_all_singular_values_nearer_to_1(least, seed):
    a, b, c = polar_express(1, least)
    best = torch.tensor([1.01 * a, 1.01**3 * b, 1.01**5 * c], dtype=torch.float64)
    grid = torch.linspace(least, 1, 2000, dtype=torch.float64)
    powers = grid[:, None] ** torch.tensor([1, 3, 5])
    error = (powers @ best - 1).abs().max()
    others = best + 10.0 ** -torch.arange(1, 6)[:, None, None] * random(5, 200, 3, seed=seed)
    assert error < 1 and ((powers @ others.mT - 1).abs().amax(1) > error * (1 - 1e-4)).all()


@settings(max_examples=50)
@given(least=st.floats(1e-6, 0.999999))
def test_by_polar_express_all_singular_values_from_the_least_on_end_at_1(least):
    grid = torch.cat([torch.linspace(least, 1, 999), torch.logspace(math.log10(least), 0, 999)]).double()
    assert (applied(grid, 14, polar_express(14, least)) - 1).abs().max() < 1e-4


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 0.0), (torch.bfloat16, 0.03)])
def test_singular_values_end_in_the_interval_of_the_polynomial(dtype, slack):
    """A random 64 x 576 matrix has no singular value near 0; after 5 steps any above 0.01 is in 0.68 to 1.21."""
    grid = torch.linspace(0.01, 1, 100_000, dtype=torch.float64)
    for _ in range(5):
        grid = COEFFICIENTS[0] * grid + COEFFICIENTS[1] * grid**3 + COEFFICIENTS[2] * grid**5
    low, high = grid.aminmax()
    assert 0.67 < low < 0.69 and 1.1 < high < 1.21
    values = torch.linalg.svdvals(newton_schulz(random(3, 64, 576), 5, dtype=dtype).double())
    assert low - slack <= values.min() and values.max() <= high + slack


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scale_of_a_matrix_is_nothing_to_the_result(scale, dtype):
    matrices = random(2, 8, 20, dtype=torch.float32)
    expected = newton_schulz(matrices, 3, dtype=dtype)
    torch.testing.assert_close(newton_schulz(matrices * scale, 3, dtype=dtype), expected, rtol=0.02, atol=0.02)
    assert expected.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_gives_zero_and_what_is_all_but_zero_gives_a_finite_result(dtype):
    assert not newton_schulz(torch.zeros(2, 4, 6, dtype=dtype)).any()
    for tiny in (1e-13, 1e-25, 1e-40):
        result = newton_schulz(torch.full((4, 6), tiny), dtype=dtype)
        assert result.isfinite().all() and result.double().norm() < 700


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (2, 3, 6, 9), (1, 1)])
def test_the_transposed_matrix_gives_the_transposed_result_of_the_same_shape(shape):
    matrices = random(*shape)
    result = newton_schulz(matrices, 4)
    assert result.shape == shape
    torch.testing.assert_close(newton_schulz(matrices.mT, 4).mT, result, rtol=1e-10, atol=1e-12)


def test_permuted_columns_give_the_result_with_its_columns_permuted():
    """So a filter may be taken in memory order, channels last."""
    matrix, order = random(5, 12), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(newton_schulz(matrix[:, order], 3), newton_schulz(matrix, 3)[:, order])


def test_matrices_of_several_shapes_come_back_in_their_order():
    matrices = [random(*shape, seed=seed) for seed, shape in enumerate([(3, 5), (4, 2), (3, 5), (1, 7), (4, 2)])]
    for matrix, result in zip(matrices, orthogonalize(matrices, 3), strict=True):
        torch.testing.assert_close(result, newton_schulz(matrix, 3))
    assert orthogonalize([], 3) == []
