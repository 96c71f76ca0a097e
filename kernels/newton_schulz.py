"""Newton-Schulz iteration on batches of matrices, in Gram form: the nearest orthogonal matrices, nearly (Jordan 2024).

Every step makes X <- (a I + b A + c A²) X with A = X X'. All of them are polynomials in the first A, which commute: so
A is made once, every step is taken by the small squares A and Q alone, and the last product is Q X. With R rows and C
columns that is 2 R² C + 11 R³ multiply-adds for three steps, where the plain iteration takes 6 R² C + 3 R³.

Roofline, half precision. The speedrun network's filters, 2 of 64 x 576 and 4 of 256 x 2304: 2.0 G multiply-adds, 5
microseconds at 790 TFLOP/s; x is read twice and written once, 15 MB, and a step reads and writes squares of 256 KB in
the L2 cache: 3 microseconds at 4.3 TB/s. Neither binds: a step is a chain of 4 or 5 products, each some microseconds of
latency. Hence one launch a step for all matrices at hand, every program taking 16 rows of one square from the step's
beginning to its end: 64 programs for the four large filters. The squares of matrices of at most 64 rows in half
precision, the two small ones, stay in registers: those take one launch, each program making the same square for columns
of its own, a chain of 11 products of 64 x 64 by 64 for three steps, some 0.4 microseconds each.

Squares are float32 everywhere. Of matrices in half precision a GPU multiplies them in TF32, past three steps in three
TF32 products each, since every step multiplies the rounding error of a square by up to a² = 12. Tensor cores cut the
bits off that TF32 lacks, every square a little too small by the same share; so it is rounded where it is made, after
which its products with another and with itself err alike and less than those of squares rounded one by one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastcifar.kernels.launch import kernel, launch, use_triton
from fastcifar.kernels.launch_sizes import launch_sizes
from fastcifar.kernels.operators import operator

if TYPE_CHECKING:
    import triton.language as tl  # given to this module when Triton is loaded

_MOST_ROWS = 512
"""A program holds its rows of a square in registers; larger squares take plain torch."""
_FEW_STEPS = 3
"""Up to so many, squares may be rounded to TF32 (and on a CPU the first to x's dtype)."""


def _batches(shapes: Sequence[int]) -> Iterator[tuple[slice, tuple[int, int, int]]]:
    """Where each batch lies in x, and its shape."""
    start = 0
    for shape in zip(shapes[::3], shapes[1::3], shapes[2::3], strict=True):
        yield slice(start, start + math.prod(shape)), shape
        start += math.prod(shape)


# ---------------------------------------------------------------------------------------------------------- reference


def newton_schulz_reference(
    x: Tensor, out: Tensor, shapes: Sequence[int], steps: int, coefficients: Sequence[float]
) -> None:
    """The specification of `newton_schulz`, in plain torch; the CPU's path."""
    a, b, c = coefficients
    wide = torch.promote_types(x.dtype, torch.float32)
    for place, shape in _batches(shapes):
        matrices = x[place].view(shape)
        exact = matrices if steps <= _FEW_STEPS else matrices.to(wide)
        gram, product = (exact @ exact.mT).to(wide), None
        for left in reversed(range(steps)):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor if product is None else factor @ product
            if left:
                gram = factor @ gram @ factor
        assert product is not None, "no steps"
        torch.bmm(product.to(x.dtype), matrices, out=out[place].view(shape))


# ------------------------------------------------------------------------------------------------------------- Triton
# `table_ptr`: int32 [matrices, 4]: place in x, rows, columns, place in the squares. ALIGN divides all of them.


@kernel()
def _fields(table_ptr, ALIGN: tl.constexpr):
    """Of this program's matrix: its place in x, rows, columns, and place in the squares."""
    fields = table_ptr + tl.program_id(1) * 4
    return (
        tl.multiple_of(tl.load(fields), ALIGN),
        tl.multiple_of(tl.load(fields + 1), ALIGN),
        tl.multiple_of(tl.load(fields + 2), ALIGN),
        tl.multiple_of(tl.load(fields + 3), ALIGN),
    )


@kernel()
def _places(width, TILE: tl.constexpr):
    """Rows and columns of this program's tile of a matrix `width` columns wide."""
    across = tl.cdiv(width, TILE)
    inside = tl.arange(0, TILE)
    return tl.program_id(0) // across * TILE + inside, tl.program_id(0) % across * TILE + inside


@kernel()
def _tile(matrix_ptr, down, across, height, width):
    """Of a matrix [height, width] the elements in the rows `down` and columns `across`; zeros outside."""
    inside = (down < height)[:, None] & (across < width)[None, :]
    return tl.load(matrix_ptr + down[:, None] * width + across[None, :], inside, other=0.0)


@kernel()
def _put(matrix_ptr, down, across, height, width, values):
    """Write what `_tile` reads."""
    inside = (down < height)[:, None] & (across < width)[None, :]
    tl.store(matrix_ptr + down[:, None] * width + across[None, :], values, inside)


@kernel()
def _rounded(square, PRECISION: tl.constexpr):
    """To TF32 where products take the elements so. NaN, of which the carry could make 0, stays."""
    if PRECISION == "tf32":
        bits = (square.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        square = tl.where(square == square, bits.to(tl.float32, bitcast=True), square)
    return square


@kernel()
def _gram_kernel(
    x_ptr,  # float32, float16 or bfloat16
    table_ptr,
    gram_ptr,  # float32, all squares
    ALIGN: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    SQUARES: tl.constexpr,  # the precision of their products
):
    start, rows, columns, place = _fields(table_ptr, ALIGN)
    down, over = _places(rows, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for first in range(0, columns, DEPTH):
        depth = first + tl.arange(0, DEPTH)
        left = _tile(x_ptr + start, down, depth, rows, columns)
        right = _tile(x_ptr + start, over, depth, rows, columns)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
    _put(gram_ptr + place, down, over, rows, rows, _rounded(total, SQUARES))


@kernel()
def _times(left, square_ptr, scratch_ptr, mine, rows, SIDE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    """`left` [ROWS, SIDE] times a square, by way of this program's rows of the scratch: registers have no slices."""
    columns = tl.arange(0, SIDE)
    tl.debug_barrier()  # some threads may still read what stands there
    _put(scratch_ptr, mine, columns, rows, rows, _rounded(left, PRECISION))
    tl.debug_barrier()
    total = tl.zeros_like(left)
    for first in range(0, rows, DEPTH):
        depth = first + tl.arange(0, DEPTH)
        part = _tile(scratch_ptr, mine, depth, rows, rows)
        total = tl.dot(part, _tile(square_ptr, depth, columns, rows, rows), total, input_precision=PRECISION)
    return total


@kernel()
def _step_kernel(
    table_ptr,
    gram_ptr,  # float32, all squares, like the others
    product_ptr,  # unread in the first step
    next_gram_ptr,  # unwritten in the last step
    next_product_ptr,
    scratch_ptr,
    a,
    b,
    c,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    SIDE: tl.constexpr,  # a power of two, of all rows at least
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    _, rows, _, place = _fields(table_ptr, ALIGN)
    if tl.program_id(0) * ROWS < rows:
        gram_ptr, product_ptr, scratch_ptr = gram_ptr + place, product_ptr + place, scratch_ptr + place
        mine, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, SIDE)
        gram = _tile(gram_ptr, mine, columns, rows, rows)
        second = _times(gram, gram_ptr, scratch_ptr, mine, rows, SIDE, DEPTH, PRECISION)
        factor = tl.where(mine[:, None] == columns[None, :], a, 0.0) + b * gram + c * second
        product = factor
        if not FIRST:
            product = _times(factor, product_ptr, scratch_ptr, mine, rows, SIDE, DEPTH, PRECISION)
        _put(next_product_ptr + place, mine, columns, rows, rows, _rounded(product, PRECISION))
        if not LAST:  # the next A is factor * A * factor, of which the last factor is written out in A
            half = _times(factor, gram_ptr, scratch_ptr, mine, rows, SIDE, DEPTH, PRECISION)
            once = _times(half, gram_ptr, scratch_ptr, mine, rows, SIDE, DEPTH, PRECISION)
            twice = _times(once, gram_ptr, scratch_ptr, mine, rows, SIDE, DEPTH, PRECISION)
            next_gram = a * half + b * once + c * twice
            _put(next_gram_ptr + place, mine, columns, rows, rows, _rounded(next_gram, PRECISION))


@kernel()
def _apply_kernel(
    x_ptr,  # float32, float16 or bfloat16
    table_ptr,
    product_ptr,  # float32, all squares
    out_ptr,  # like x
    ALIGN: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    start, rows, columns, place = _fields(table_ptr, ALIGN)
    down, over = _places(columns, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for first in range(0, rows, DEPTH):
        depth = first + tl.arange(0, DEPTH)
        left = _tile(product_ptr + place, down, depth, rows, rows)
        right = _tile(x_ptr + start, depth, over, rows, columns)
        total = tl.dot(left.to(right.dtype), right, total, input_precision=PRECISION)
    _put(out_ptr + start, down, over, rows, columns, total)


@kernel()
def _square_times(left, right, PRECISION: tl.constexpr):
    """`right` is rounded."""
    return tl.dot(_rounded(left, PRECISION), right, input_precision=PRECISION)


@kernel()
def _small_kernel(
    x_ptr,  # float16 or bfloat16
    table_ptr,
    out_ptr,  # like x
    a,
    b,
    c,
    STEPS: tl.constexpr,
    ALIGN: tl.constexpr,
    SIDE: tl.constexpr,  # a power of two, of all rows at least
    TILE: tl.constexpr,  # columns of a program's
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    start, rows, columns, _ = _fields(table_ptr, ALIGN)
    if tl.program_id(0) * TILE < columns:
        down, over = tl.arange(0, SIDE), tl.program_id(0) * TILE + tl.arange(0, TILE)
        diagonal = down[:, None] == down[None, :]
        right = _tile(x_ptr + start, down, over, rows, columns)
        gram = tl.zeros([SIDE, SIDE], tl.float32)
        for first in range(0, columns, DEPTH):
            part = _tile(x_ptr + start, down, first + tl.arange(0, DEPTH), rows, columns)
            gram = tl.dot(part, tl.trans(part), gram)
        gram = _rounded(gram, PRECISION)
        factor = tl.where(diagonal, a, 0.0) + b * gram + c * _square_times(gram, gram, PRECISION)
        product = _rounded(factor, PRECISION)
        for _ in range(STEPS - 1):  # as in `_step_kernel`
            half = _square_times(factor, gram, PRECISION)
            once = _square_times(half, gram, PRECISION)
            twice = _square_times(once, gram, PRECISION)
            gram = _rounded(a * half + b * once + c * twice, PRECISION)
            factor = tl.where(diagonal, a, 0.0) + b * gram + c * _square_times(gram, gram, PRECISION)
            product = _rounded(_square_times(factor, product, PRECISION), PRECISION)
        _put(out_ptr + start, down, over, rows, columns, tl.dot(product.to(right.dtype), right))


@functools.cache
def _table(shapes: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """The matrices one by one, on the device, and the elements of all their squares. Made before a graph that reads it
    is captured, and kept as long as that may be."""
    rows_of_table, squares = [], 0
    for place, (count, rows, columns) in _batches(shapes):
        for number in range(count):
            rows_of_table.append([place.start + number * rows * columns, rows, columns, squares])
            squares += rows * rows
    return torch.tensor(rows_of_table, dtype=torch.int32).to(device), squares


def _is_small(x: Tensor, shapes: Sequence[int]) -> bool:
    """Whether one launch does it all."""
    return x.element_size() == 2 and max(shapes[1::3]) <= launch_sizes(x)[0].small_rows


def _newton_schulz_triton(
    x: Tensor, out: Tensor, shapes: Sequence[int], steps: int, coefficients: Sequence[float]
) -> None:
    table, size = _table(tuple(shapes), x.device)
    sizes, _ = launch_sizes(x)
    most_rows, align = max(shapes[1::3]), math.gcd(16, *shapes[1::3], *shapes[2::3])
    half = x.element_size() == 2
    precision = ("tf32" if steps <= _FEW_STEPS else "tf32x3") if half else "ieee"
    side = max(16, 1 << (most_rows - 1).bit_length())

    def tiles(height: int, width: int) -> int:
        return -(-height // sizes.matrix_tile) * -(-width // sizes.matrix_tile)

    if _is_small(x, shapes):
        launch(
            _small_kernel,
            (-(-max(shapes[2::3]) // sizes.matrix_tile), len(table)),
            *(x, table, out, *map(float, coefficients)),
            STEPS=steps,
            ALIGN=align,
            SIDE=side,
            TILE=sizes.matrix_tile,
            DEPTH=2 * sizes.matrix_depth,
            PRECISION=precision,
            num_warps=sizes.matrix_warps,
        )
        return
    gram, next_gram, product, next_product, scratch = x.new_empty((5, size), dtype=torch.float32)
    whole = {
        "ALIGN": align,
        "TILE": sizes.matrix_tile,
        "DEPTH": 2 * sizes.matrix_depth // x.element_size(),
        "PRECISION": "ieee",  # of matrices in float32; half precision has no choice
        "num_warps": sizes.matrix_warps if half else 2 * sizes.matrix_warps,
    }
    most_tiles = max(tiles(rows, rows) for rows in shapes[1::3])
    launch(_gram_kernel, (most_tiles, len(table)), x, table, gram, SQUARES=precision, **whole)
    for step in range(steps):
        launch(
            _step_kernel,
            (-(-most_rows // sizes.square_rows), len(table)),
            *(table, gram, product, next_gram, next_product, scratch, *map(float, coefficients)),
            FIRST=step == 0,
            LAST=step == steps - 1,
            ALIGN=align,
            ROWS=sizes.square_rows,
            SIDE=side,
            DEPTH=sizes.square_depth if side <= 256 else sizes.square_depth // 2,
            PRECISION=precision,
            num_warps=sizes.square_warps,
        )
        gram, next_gram, product, next_product = next_gram, gram, next_product, product
    most_tiles = max(tiles(rows, columns) for rows, columns in zip(shapes[1::3], shapes[2::3], strict=True))
    launch(_apply_kernel, (most_tiles, len(table)), x, table, product, out, **whole)


# ----------------------------------------------------------------------------------------------------------- operator


def _newton_schulz(x, out, shapes, steps, coefficients) -> None:
    path = _newton_schulz_triton if max(shapes[1::3]) <= _MOST_ROWS and use_triton(x) else newton_schulz_reference
    path(x, out, shapes, steps, coefficients)


def _products(x, out, shapes, steps, coefficients) -> list[tuple[int, int]]:
    """Multiply-adds and bytes of each launch."""
    batches = [shape for _, shape in _batches(shapes)]
    whole = sum(count * rows**2 * columns for count, rows, columns in batches)
    squares = sum(count * rows**2 for count, rows, _ in batches)
    cubes = sum(count * rows**3 for count, rows, _ in batches)
    moved = x.numel() * x.element_size()
    if _is_small(x, shapes):
        return [(2 * whole + (5 * steps - 4) * cubes, 2 * moved)]
    launches = [(whole, moved + 4 * squares)]
    for step in range(steps):
        first, last = step == 0, step == steps - 1
        launches.append(((1 + (not first) + 3 * (not last)) * cubes, 4 * squares * (2 + (not first) + (not last))))
    return [*launches, (whole, 2 * moved + 4 * squares)]


operator(
    "newton_schulz(Tensor x, Tensor(a!) out, int[] shapes, int steps, float[] coefficients) -> ()",
    _newton_schulz,
    lambda *_: None,
    products=_products,
)


def newton_schulz(x: Tensor, out: Tensor, shapes: Sequence[int], *, steps: int, coefficients: Sequence[float]) -> None:
    """Orthogonalize batches of matrices, nearly: write into `out` what `steps` steps of
    `X <- (a I + b X X' + c (X X')²) X` make of every matrix X of `x`, `coefficients` being a, b and c.

    x, out: flat [n], contiguous, of one floating dtype; `shapes` has three numbers for each of the batches [B, R, C]
    that lie in them one after the other, R best no larger than C. The norm of every matrix is 1 at most. A graph can be
    captured once a first call has brought these shapes to the device.

    Raises ValueError for buffers that the batches do not fill, of different dtypes, and for less than 1 step.
    """
    length = sum(math.prod(shape) for _, shape in _batches(shapes)) if len(shapes) % 3 == 0 else -1
    for name, buffer in (("x", x), ("out", out)):
        if buffer.shape != (length,) or not buffer.is_contiguous() or buffer.dtype != x.dtype or not length:
            raise ValueError(
                f"{name} is {buffer.dtype} {list(buffer.shape)}; allowed: a contiguous {x.dtype} [{length}], which is "
                f"what the batches {list(shapes)} fill"
            )
    if steps < 1:
        raise ValueError(f"steps is {steps}; allowed: 1 or more")
    torch.ops.fastcifar.newton_schulz(x, out, shapes, steps, coefficients)
