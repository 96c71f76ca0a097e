"""The Gram form of Newton-Schulz is the iteration, in float64; in half precision it errs about as much."""

import importlib
import itertools

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastcifar.kernels import newton_schulz
from fastcifar.kernels.operators import PRODUCTS

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EACH = (*(8.2, -22.9, 16.5), *(4.1, -2.9, 0.5), *(3.9, -2.8, 0.5), *(3.3, -2.4, 0.5), *(2.3, -1.6, 0.4))
"""About Polar Express's, of five steps."""


def filled(batches, dtype, device, spectrum=None):
    """Return flat x of random matrices of norm 1, all but their first `spectrum` singular values tiny, if given."""
    parts = []
    for count, rows, columns in batches:
        matrices = torch.randn(count, rows, columns, dtype=torch.float64)
        if spectrum:
            left, values, right = torch.linalg.svd(matrices, full_matrices=False)
            values[:, spectrum:] *= 1e-4
            matrices = left * values[:, None] @ right
        parts.append((matrices / matrices.norm(dim=(1, 2), keepdim=True)).flatten())
    return torch.cat(parts).to(dtype).to(device)


def iterated(x, batches, steps, coefficients=COEFFICIENTS):
    """Return the iteration as it is defined, in float64, every X from the X before."""
    results, start = [], 0
    for count, rows, columns in batches:
        matrices = x[start : start + count * rows * columns].double().view(count, rows, columns)
        start += matrices.numel()
        for step in range(steps):
            a, b, c = coefficients[3 * step : 3 * step + 3] if len(coefficients) > 3 else coefficients
            gram = matrices @ matrices.mT
            matrices = a * matrices + (b * gram + c * gram @ gram) @ matrices
        results.append(matrices.flatten())
    return torch.cat(results)


def run(x, batches, steps, coefficients=COEFFICIENTS):
    out = torch.empty_like(x)
    newton_schulz(x, out, [*itertools.chain(*batches)], steps=steps, coefficients=coefficients)
    return out


batches_of = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 24)), min_size=1, max_size=2)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(batches=[(2, 32, 48), (1, 16, 20)], steps=3, seed=0)
@example(batches=[(1, 20, 7)], steps=1, seed=1)
@given(batches=batches_of, steps=st.integers(1, 3), seed=st.integers(0, 99))
def test_it_is_the_iteration(path, device, batches, steps, seed):
    """In float32 to 2e-5. Every step multiplies the rounding error of a square by up to a² = 12: of 1500 draws of three
    steps in plain torch one in twenty errs by more than 3e-6, where rows outnumber columns, and the worst by 8e-6; in
    TF32 most would by 4e-3."""
    torch.manual_seed(seed)
    x = filled(batches, torch.float32, device)
    found, exact = run(x, batches, steps).double(), iterated(x, batches, steps)
    assert (found - exact).norm() / exact.norm() < 2e-5


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_in_float64_it_equals_the_plain_iteration(steps):
    batches = [(2, 16, 54), (4, 64, 144)]
    x = filled(batches, torch.float64, "cpu")
    for coefficients in (COEFFICIENTS, EACH[: 3 * steps]):
        found, expected = run(x, batches, steps, coefficients), iterated(x, batches, steps, coefficients)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.float32, 2e-5)], ids=["small", "stepwise"])
def test_every_step_has_the_coefficients_that_are_given_for_it(path, device, dtype, bound):
    batches = [(2, 32, 48), (1, 16, 20)]
    x = filled(batches, dtype, device)
    exact = iterated(x, batches, 3, EACH)
    assert (run(x, batches, 3, EACH[:9]).double() - exact).norm() < bound * exact.norm()


KINDS = {
    "random": lambda values: values,
    "six-large": lambda values: torch.cat([values[:, :6], 1e-4 * values[:, 6:]], dim=1),
    "one-large": lambda values: torch.cat([values[:, :1], 1e-2 * values[:, 1:]], dim=1),
    "decaying": lambda values: torch.logspace(0, -4, values.shape[1], dtype=values.dtype).expand_as(values),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_steep_first_steps_err_about_as_the_plain_iteration(steps, kind):
    """In bfloat16 on a CPU. Were the first square rounded to bfloat16 as with Jordan's coefficients, that of one large
    singular value would err by 17% in three steps and by any amount in five."""
    left, values, right = torch.linalg.svd(torch.randn(2, 64, 216, dtype=torch.float64), full_matrices=False)
    matrices = left * KINDS[kind](values)[:, None] @ right
    x = (matrices / matrices.norm(dim=(1, 2), keepdim=True)).bfloat16()
    plain, exact = x, iterated(x.flatten(), [x.shape], steps, EACH).view_as(x)
    for a, b, c in zip(EACH[: 3 * steps : 3], EACH[1::3], EACH[2::3], strict=False):
        gram = plain @ plain.mT
        plain = torch.baddbmm(plain, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), plain, beta=a)

    def error(values):
        return ((values.double() - exact).norm() / exact.norm()).item()

    ours = error(run(x.flatten(), [x.shape], steps, EACH[: 3 * steps]).view_as(x))
    assert ours < max(2 * error(plain), 0.05)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("spectrum", [None, 6], ids=["random", "six-large"])
@pytest.mark.parametrize("rows", [32, 80])
@pytest.mark.parametrize("steps", [3, 5])
def test_in_half_precision_it_errs_about_as_the_plain_iteration(path, device, rows, steps, spectrum, dtype, bound):
    """Where the plain one rounds squares and matrices to half precision, here squares are rounded to TF32, as fine as
    float16, and at more than three steps only the last product is rounded. Of six large singular values the small ones
    suffer: the product of the factors, up to a³ = 41, is rounded once more than the matrices of the plain one, which
    makes its error 1.8 to 2.3 times as large in float16. Squares whose last bits tensor cores cut off: 5 times."""
    if path == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 matrices as whole numbers")
    batches = [(2, rows, 3 * rows) if rows == 32 else (1, rows, 2 * rows)]  # interpreted, larger ones take long
    x = filled(batches, dtype, device, spectrum)
    exact = iterated(x, batches, steps)
    plain = x.view(batches[0])
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = plain @ plain.mT
        plain = torch.baddbmm(plain, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), plain, beta=a)

    def error(values):
        return ((values.flatten().double() - exact).norm() / exact.norm()).item()

    ours = error(run(x, batches, steps))
    assert ours < 2.5 * error(plain)
    if steps == 3:
        assert ours < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_nan_stays_in_its_matrix(path, device, dtype):
    batches = [(3, 16, 32)]
    x = filled(batches, dtype, device)
    x[600] = torch.nan
    found = run(x, batches, 3).view(3, -1)
    assert found[1].isnan().any() and not found[[0, 2]].isnan().any()


def test_equal_inputs_give_equal_bits(path, device):
    for batches in ([(2, 32, 48), (1, 48, 64)], [(1, 80, 96)]):
        x = filled(batches, torch.float16, device)
        assert torch.equal(run(x, batches, 2), run(x, batches, 2))


def test_small_matrices_of_several_shapes_are_taken_together(path, device, assert_close):
    batches = [(2, 32, 48), (1, 48, 64), (1, 5, 100), (1, 20, 7)]
    x = filled(batches, torch.float16, device)
    assert_close(run(x, batches, 2), iterated(x, batches, 2), torch.float16)


@pytest.mark.parametrize(
    ("shapes", "align"),
    [([2, 80, 96, 1, 112, 64, 1, 80, 80], 16), ([1, 80, 96, 1, 80, 100], 4), ([1, 96, 96, 1, 70, 96], 2)],
)
def test_the_alignment_that_kernels_are_told_divides_all_rows_and_columns(monkeypatch, shapes, align):
    pytest.importorskip("triton")
    module, told = importlib.import_module("fastcifar.kernels.newton_schulz_triton"), set()
    monkeypatch.setattr(module, "launch", lambda *_, **options: told.add(options["ALIGN"]))
    module.newton_schulz_triton(torch.empty(0), torch.empty(0), shapes, 3, COEFFICIENTS)
    assert told == {align}


def test_its_products_are_counted_as_by_hand():
    """Of each launch: for matrices of up to 64 rows in half precision one, else the squares, each step, the matrices.
    A step multiplies squares 5 times and moves 4; the first and the last have less to do."""
    x = torch.empty(2 * 80 * 96)
    squares, cubes, whole = 2 * 80**2, 2 * 80**3, 2 * 80**2 * 96
    assert PRODUCTS["newton_schulz"](x, x, [2, 80, 96], 3, COEFFICIENTS) == [
        (whole, 4 * (len(x) + squares)),
        *((4 * cubes, 4 * 3 * squares), (5 * cubes, 4 * 4 * squares), (2 * cubes, 4 * 3 * squares)),
        (whole, 4 * (2 * len(x) + squares)),
    ]
    x = torch.empty(64 * 96, dtype=torch.float16)
    small = [(2 * 64**2 * 96 + 11 * 64**3, 2 * 2 * len(x))]
    assert PRODUCTS["newton_schulz"](x, x, [1, 64, 96], 3, COEFFICIENTS) == small


def test_what_does_not_fit_is_refused():
    x = torch.zeros(24)
    with pytest.raises(ValueError, match=r"^x is torch.float32 \[24\]; allowed: a contiguous torch.float32 \[12\]"):
        newton_schulz(x, x.clone(), [1, 3, 4], steps=3, coefficients=COEFFICIENTS)
    with pytest.raises(ValueError, match=r"^out is torch.float64 \[24\]; allowed: a contiguous torch.float32 \[24\]"):
        newton_schulz(x, x.double(), [2, 3, 4], steps=3, coefficients=COEFFICIENTS)
    with pytest.raises(ValueError, match=r"^there are 6 coefficients; allowed: 3, or 3 for each of 3 steps"):
        newton_schulz(x, x.clone(), [2, 3, 4], steps=3, coefficients=(1.0,) * 6)
    with pytest.raises(ValueError, match=r"^steps is 0; allowed: 1 or more"):
        newton_schulz(x, x.clone(), [2, 3, 4], steps=0, coefficients=COEFFICIENTS)


def test_is_a_well_formed_operator():
    x = filled([(2, 3, 4)], torch.float32, "cpu")
    torch.library.opcheck(torch.ops.fastcifar.newton_schulz, (x, torch.zeros(24), [2, 3, 4], 3, list(COEFFICIENTS)))


@pytest.mark.parametrize("name", ["x", "out"])
def test_where_a_gradient_is_wanted_it_is_refused(name):
    buffers = {"x": torch.ones(6), "out": torch.ones(6)}
    buffers[name].requires_grad_()
    with pytest.raises(ValueError, match=rf"^{name} wants a gradient; allowed: none, or torch\.no_grad\(\)$"):
        newton_schulz(**buffers, shapes=(1, 2, 3), steps=1, coefficients=(3.0, -4.0, 2.0))
