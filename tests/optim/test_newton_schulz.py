"""Newton-Schulz keeps singular vectors and brings singular values where its polynomial says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.optim import newton_schulz
from fastcifar.optim.newton_schulz import COEFFICIENTS, orthogonalize

SPEEDRUN = (3.4576, -4.7391, 2.0843)
sides = st.integers(1, 12)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def predicted(matrix, steps, coefficients):
    """Compute, by the singular value decomposition, the polynomial applied to each singular value over the norm."""
    a, b, c = coefficients
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / matrix.double().norm()
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return left @ values.diag() @ right


@settings(deadline=None, max_examples=20)
@given(rows=sides, columns=sides, count=st.integers(1, 4), steps=st.integers(0, 5), seed=st.integers(0, 99))
def test_every_matrix_of_a_batch_is_what_the_polynomial_of_its_singular_values_gives(rows, columns, count, steps, seed):
    matrices = random(count, rows, columns, seed=seed)
    for coefficients in (COEFFICIENTS, SPEEDRUN):
        results = newton_schulz(matrices, steps, coefficients)
        for matrix, result in zip(matrices, results, strict=True):
            torch.testing.assert_close(result, predicted(matrix, steps, coefficients), rtol=1e-9, atol=1e-10)


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
