"""The Triton kernels of `newton_schulz` and their launches."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.kernels.launch import launch, product_side
from fastcifar.kernels.newton_schulz import SIZES, batches_of, is_small, may_round, steps_of

# `table_ptr`: int32 [matrices, 4]: place in x, rows, columns, place in the squares. ALIGN divides all of them.


@triton.jit
def _fields(table_ptr, ALIGN: tl.constexpr):
    """Return place in x, rows, columns and place in the squares of this program's matrix."""
    fields = table_ptr + tl.program_id(1) * 4
    return (
        tl.multiple_of(tl.load(fields), ALIGN),
        tl.multiple_of(tl.load(fields + 1), ALIGN),
        tl.multiple_of(tl.load(fields + 2), ALIGN),
        tl.multiple_of(tl.load(fields + 3), ALIGN),
    )


@triton.jit
def _places(width, TILE: tl.constexpr):
    """Return rows and columns of this program's tile of a matrix `width` columns wide."""
    across = tl.cdiv(width, TILE)
    inside = tl.arange(0, TILE)
    return tl.program_id(0) // across * TILE + inside, tl.program_id(0) % across * TILE + inside


@triton.jit
def _tile(matrix_ptr, down, across, height, width):
    """Load the rows `down` and columns `across` of a matrix [height, width]; zeros outside."""
    inside = (down < height)[:, None] & (across < width)[None, :]
    return tl.load(matrix_ptr + down[:, None] * width + across[None, :], inside, other=0.0)


@triton.jit
def _put(matrix_ptr, down, across, height, width, values):
    """Write what `_tile` reads."""
    inside = (down < height)[:, None] & (across < width)[None, :]
    tl.store(matrix_ptr + down[:, None] * width + across[None, :], values, inside)


@triton.jit
def _rounded(square, PRECISION: tl.constexpr):
    """Round to TF32 if products take the elements so. NaN, which the carry could turn into 0, stays."""
    if PRECISION == "tf32":
        bits = (square.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        square = tl.where(square == square, bits.to(tl.float32, bitcast=True), square)
    return square


@triton.jit
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


@triton.jit
def _times(left, square_ptr, scratch_ptr, mine, rows, SIDE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    """Multiply `left` [ROWS, SIDE] by a square, by this program's rows of the scratch: registers have no slices."""
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


@triton.jit
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


@triton.jit
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


@triton.jit
def _square_times(left, right, PRECISION: tl.constexpr):
    """Multiply two squares, `right` being rounded already."""
    return tl.dot(_rounded(left, PRECISION), right, input_precision=PRECISION)


@triton.jit
def _small_kernel(
    x_ptr,  # float16 or bfloat16
    table_ptr,
    out_ptr,  # like x
    a,
    b,
    c,
    later_ptr,  # float32 [STEPS - 1, 3]: a, b and c of the steps after the first, or None where all have the same
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
        for step in range(STEPS - 1):  # as in `_step_kernel`
            half = _square_times(factor, gram, PRECISION)
            once = _square_times(half, gram, PRECISION)
            twice = _square_times(once, gram, PRECISION)
            gram = _rounded(a * half + b * once + c * twice, PRECISION)
            if later_ptr is not None:
                mine = later_ptr + 3 * step
                a, b, c = tl.load(mine), tl.load(mine + 1), tl.load(mine + 2)
            factor = tl.where(diagonal, a, 0.0) + b * gram + c * _square_times(gram, gram, PRECISION)
            product = _rounded(_square_times(factor, product, PRECISION), PRECISION)
        _put(out_ptr + start, down, over, rows, columns, tl.dot(product.to(right.dtype), right))


@functools.cache
def _table(shapes: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Return the matrices one by one, on the device, and the elements of all their squares. Made before a graph that
    reads it is captured, and kept for that graph."""
    rows_of_table, squares = [], 0
    for place, (count, rows, columns) in batches_of(shapes):
        for number in range(count):
            rows_of_table.append([place.start + number * rows * columns, rows, columns, squares])
            squares += rows * rows
    return torch.tensor(rows_of_table, dtype=torch.int32).to(device), squares


@functools.cache
def _later(each: tuple[tuple[float, float, float], ...], device: torch.device) -> Tensor | None:
    """Return a, b and c of each step but the first on the device, None if all are the same; see `_table`."""
    return torch.tensor(each[1:], dtype=torch.float32).to(device) if len(set(each)) > 1 else None


def newton_schulz_triton(
    x: Tensor, out: Tensor, shapes: Sequence[int], steps: int, coefficients: Sequence[float]
) -> None:
    table, size = _table(tuple(shapes), x.device)
    sizes = SIZES.of(x)
    most_rows, align = max(shapes[1::3]), math.gcd(16, *shapes[1::3], *shapes[2::3])
    half, each = x.element_size() == 2, steps_of(coefficients, steps)
    precision = ("tf32" if may_round(coefficients, steps) else "tf32x3") if half else "ieee"
    side = product_side(most_rows)

    def tiles(height: int, width: int) -> int:
        return -(-height // sizes.tile) * -(-width // sizes.tile)

    if is_small(x, shapes):
        later = _later(tuple(each), x.device)
        spills = later is not None and precision == "tf32x3"  # 64 rows with so few warps
        launch(
            _small_kernel,
            (-(-max(shapes[2::3]) // sizes.tile), len(table)),
            *(x, table, out, *map(float, each[0]), later),
            STEPS=steps,
            ALIGN=align,
            SIDE=side,
            TILE=sizes.tile,
            DEPTH=2 * sizes.depth,
            PRECISION=precision,
            num_warps=2 * sizes.warps if spills else sizes.warps,
        )
        return
    gram, next_gram, product, next_product, scratch = x.new_empty((5, size), dtype=torch.float32)
    whole = {
        "ALIGN": align,
        "TILE": sizes.tile,
        "DEPTH": 2 * sizes.depth // x.element_size(),
        "PRECISION": "ieee",  # of matrices in float32; half precision has no choice
        "num_warps": sizes.warps if half else 2 * sizes.warps,
    }
    most_tiles = max(tiles(rows, rows) for rows in shapes[1::3])
    launch(_gram_kernel, (most_tiles, len(table)), x, table, gram, SQUARES=precision, **whole)
    for step, numbers in enumerate(each):
        launch(
            _step_kernel,
            (-(-most_rows // sizes.square_rows), len(table)),
            *(table, gram, product, next_gram, next_product, scratch, *map(float, numbers)),
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
