"""Newton-Schulz iteration on batches of matrices, in Gram form: the nearest orthogonal matrices, nearly (Jordan 2024).

Every step makes X <- (a I + b A + c A²) X with A = X X', and a, b and c of its own if they differ. All of them are
polynomials in the first A, which commute: so A is made once, every step is taken by the small squares A and Q alone,
and the last product is Q X. With R rows and C columns that is 2 R² C + 11 R³ multiply-adds for three steps, where the
plain iteration takes 6 R² C + 3 R³.

Roofline, half precision. SpeedrunNet's filters, 3 of 256 x 2304 and 3 smaller ones: 1.7 G multiply-adds, 4 microseconds
at 790 TFLOP/s; x is read twice and written once, 12 MB, and a step reads and writes squares of 256 KB in the L2 cache:
3 microseconds at 4.3 TB/s. Neither binds: a step is a chain of 4 or 5 products, each some microseconds of latency.
Hence one launch a step for all matrices at hand, every program taking 16 rows of one square from the step's beginning
to its end: 64 programs for the four large filters. The squares of matrices of at most 64 rows in half precision, the
two small ones, stay in registers: those take one launch, each program making the same square for columns of its own, a
chain of 11 products of 64 x 64 by 64 for three steps, some 0.4 microseconds each.

Squares are float32 everywhere. Every step multiplies the rounding error of a square by up to a²: 12 for Jordan's
coefficients, 67, 17 and 15 for the first of Polar Express. While all of it is below `_GROWTH`, as in three steps of
Jordan's, a GPU multiplies the squares of matrices in half precision in TF32; beyond, in three TF32 products each.
Tensor cores cut the bits off that TF32 lacks, every square a little too small by the same share; so it is rounded where
it is made, after which its products with another and with itself err alike and less than those of squares rounded one
by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcifar.kernels.launch import LaunchSizes, use_triton
from fastcifar.kernels.operators import operator, refuse_gradients

_MOST_ROWS = 512
"""A program holds its rows of a square in registers; larger squares take plain torch."""
_GROWTH = 2000
"""Up to so much growth of rounding errors, the product of all a², squares may be rounded to TF32, on a CPU the first to
x's dtype: at 17,000, in three steps of Polar Express, a matrix with one large singular value would err by 17%."""


@dataclass(frozen=True)
class Sizes:
    tile: int
    """Side of the tiles of the products with whole matrices."""
    depth: int
    """Terms of the sum that such a product takes at a time, in half precision; half as many in float32."""
    warps: int
    square_rows: int
    """Rows of a square that a program of its steps holds: 16, the fewest that tensor cores take."""
    square_depth: int
    """Terms of the sum that its products take at a time; half as many in squares of more than 256 rows."""
    square_warps: int
    small_rows: int
    """Rows, at most, of half-precision matrices whose squares one program holds, without spilling registers."""


# Here and not beside the kernels, since the number of launches depends on them, which is counted without Triton too.
SIZES = LaunchSizes(
    {
        (8, 0): Sizes(tile=64, depth=64, warps=4, square_rows=16, square_depth=32, square_warps=8, small_rows=32),
        (9, 0): Sizes(tile=64, depth=64, warps=4, square_rows=16, square_depth=32, square_warps=8, small_rows=64),
    },
    interpreted=Sizes(tile=256, depth=512, warps=1, square_rows=256, square_depth=256, square_warps=1, small_rows=64),
)


def steps_of(coefficients: Sequence[float], steps: int) -> list[tuple[float, float, float]]:
    """Return a, b and c of each step."""
    each = list(zip(coefficients[::3], coefficients[1::3], coefficients[2::3], strict=True))
    return each * steps if len(each) == 1 else each


def may_round(coefficients: Sequence[float], steps: int) -> bool:
    """Return True if squares may be rounded."""
    return math.prod(a * a for a, _, _ in steps_of(coefficients, steps)) <= _GROWTH


def batches_of(shapes: Sequence[int]) -> Iterator[tuple[slice, tuple[int, int, int]]]:
    """Yield the slice of x that each batch lies in, and its shape."""
    start = 0
    for shape in zip(shapes[::3], shapes[1::3], shapes[2::3], strict=True):
        yield slice(start, start + math.prod(shape)), shape
        start += math.prod(shape)


# ---------------------------------------------------------------------------------------------------------- reference


def newton_schulz_reference(
    x: Tensor, out: Tensor, shapes: Sequence[int], steps: int, coefficients: Sequence[float]
) -> None:
    """Compute `newton_schulz` in plain torch: its specification and the CPU's path."""
    wide = torch.promote_types(x.dtype, torch.float32)
    for place, shape in batches_of(shapes):
        matrices = x[place].view(shape)
        exact = matrices if may_round(coefficients, steps) else matrices.to(wide)
        gram, product = (exact @ exact.mT).to(wide), None
        for step, (a, b, c) in enumerate(steps_of(coefficients, steps), 1):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor if product is None else factor @ product
            if step < steps:
                gram = factor @ gram @ factor
        assert product is not None, "no steps"
        torch.bmm(product.to(x.dtype), matrices, out=out[place].view(shape))


# ----------------------------------------------------------------------------------------------------------- operator


def _newton_schulz(x, out, shapes, *rest):
    if max(shapes[1::3]) <= _MOST_ROWS and use_triton(x):
        from fastcifar.kernels.newton_schulz_triton import newton_schulz_triton

        return newton_schulz_triton(x, out, shapes, *rest)
    return newton_schulz_reference(x, out, shapes, *rest)


def is_small(x: Tensor, shapes: Sequence[int]) -> bool:
    """Return True if one launch does it all."""
    return x.element_size() == 2 and max(shapes[1::3]) <= SIZES.of(x).small_rows


def _products(x, out, shapes, steps, coefficients) -> list[tuple[int, int]]:
    """Return multiply-adds and bytes of each launch."""
    batches = [shape for _, shape in batches_of(shapes)]
    whole = sum(count * rows**2 * columns for count, rows, columns in batches)
    squares = sum(count * rows**2 for count, rows, _ in batches)
    cubes = sum(count * rows**3 for count, rows, _ in batches)
    moved = x.numel() * x.element_size()
    if is_small(x, shapes):
        return [(2 * whole + (5 * steps - 4) * cubes, 2 * moved)]
    launches = [(whole, moved + 4 * squares)]
    for step in range(steps):
        first, last = step == 0, step == steps - 1
        launches.append(((1 + (not first) + 3 * (not last)) * cubes, 4 * squares * (2 + (not first) + (not last))))
    return [*launches, (whole, 2 * moved + 4 * squares)]


operator(
    "newton_schulz",
    _newton_schulz,
    lambda *_: None,
    signature=newton_schulz_reference,
    mutates=("out",),
    products=_products,
)


def newton_schulz(x: Tensor, out: Tensor, shapes: Sequence[int], *, steps: int, coefficients: Sequence[float]) -> None:
    """Orthogonalize batches of matrices, nearly: take `steps` steps of `X <- (a I + b X X' + c (X X')²) X`.

    x, out: flat [n], contiguous, of one floating dtype. The norm of every matrix X of x is 1 at most.
    shapes: three numbers for each of the batches [B, R, C] that lie in x and out one after the other, R best no larger
        than C. A graph can be captured once a first call has brought shapes and coefficients to the device.
    coefficients: a, b and c of all steps, or of each, one after the other.

    Raises ValueError for buffers that the batches do not fill, of different dtypes, or that want a gradient, for less
    than 1 step and for another number of coefficients.
    """
    refuse_gradients(x=x, out=out)
    length = sum(math.prod(shape) for _, shape in batches_of(shapes)) if len(shapes) % 3 == 0 else -1
    for name, buffer in (("x", x), ("out", out)):
        if buffer.shape != (length,) or not buffer.is_contiguous() or buffer.dtype != x.dtype or not length:
            raise ValueError(
                f"{name} is {buffer.dtype} {list(buffer.shape)}; allowed: a contiguous {x.dtype} [{length}], which is "
                f"what the batches {list(shapes)} fill"
            )
    if steps < 1:
        raise ValueError(f"steps is {steps}; allowed: 1 or more")
    if len(coefficients) not in (3, 3 * steps):
        raise ValueError(f"there are {len(coefficients)} coefficients; allowed: 3, or 3 for each of {steps} steps")
    torch.ops.fastcifar.newton_schulz(x, out, shapes, steps, coefficients)
