"""The kernels of `bias_gelu_transpose`: gelu(x + bias) with rows and columns exchanged, plus a position.

x is [batch, rows, cols], columns contiguous, and y is [batch, cols, rows]; the bias runs along x's rows. Run-time
widths and strides come in units of ALIGN elements along a row of x, and of ALIGN_Y along a row of y. Names in UPPER
case are constants when a kernel is compiled; the plan (bias_gelu_transpose_plan.py) chooses them.
"""

import triton
import triton.language as tl

from ..core.tiles import (
    add_bias,
    corner,
    load,
    load_raw,
    load_vector,
    pointers,
    reduce_partials,
    store,
    store_sum,
    widen,
)
from ..formulas.device import dgelu, gelu
from .bias_gelu_kernels import KERNELS

__all__ = ["KERNELS", "bias_gelu_transpose_backward", "bias_gelu_transpose_forward", "reduce_partials"]

# Integers are not specialised on their values: no shape compiles a kernel for itself.
INTEGERS = ["batch", "rows", "cols", "col_tiles", "program_batches", "x_batch", "x_row", "dy_batch", "dy_row"]


@triton.jit
def locate(
    batch, rows, cols, col_tiles, program_batches, ALIGN: tl.constexpr, ALIGN_Y: tl.constexpr,
    INT64_INDEX: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """A program's tile, which is the same in all of its batches; the numbers of those batches; the masks of x and y."""
    index: tl.constexpr = tl.int64 if INT64_INDEX else tl.int32
    tile = tl.program_id(0)
    top = (tile // col_tiles).to(index) * BLOCK_ROWS
    left = (tile % col_tiles).to(index) * BLOCK_COLS
    row = tl.arange(0, BLOCK_ROWS).to(index)
    col = tl.arange(0, BLOCK_COLS).to(index)
    first = tl.program_id(1) * program_batches
    last = tl.minimum(first + program_batches, batch)
    rows, cols = rows.to(index) * ALIGN_Y, cols.to(index) * ALIGN
    down, right = row < rows - top, col < cols - left
    return rows, cols, top, left, row, col, first, last, down[:, None] & right[None, :], right[:, None] & down[None, :]


@triton.jit(do_not_specialize=INTEGERS)
def bias_gelu_transpose_forward(
    x_ptr,  # [batch, rows, cols]
    bias_ptr,  # [rows], or None
    position_ptr,  # [cols, rows], contiguous, or None
    y_ptr,  # [batch, cols, rows], contiguous
    batch, rows, cols, col_tiles, program_batches, x_batch, x_row,
    FORMULA: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr, BF16_CVT: tl.constexpr,
    ALIGN: tl.constexpr, ALIGN_Y: tl.constexpr, INT64_INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """y = gelu(x + bias) with its rows as columns, plus position."""
    y_row = rows
    rows, cols, top, left, row, col, first, last, inside, inside_y = locate(
        batch, rows, cols, col_tiles, program_batches, ALIGN, ALIGN_Y, INT64_INDEX, BLOCK_ROWS, BLOCK_COLS
    )
    DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    bias = load_vector(bias_ptr, left, top, col, row, cols, rows, "cols", DTYPE, BF16_CVT, True)
    if position_ptr is not None:
        position = corner(position_ptr, 0, left, top, 0, y_row, ALIGN_Y)
        position = load(pointers(position, col, row, y_row, ALIGN_Y), inside_y, DTYPE, ALIGN_Y, PTX, BF16_CVT)
    for b in range(first, last):
        x = pointers(corner(x_ptr, b, top, left, x_batch, x_row, ALIGN), row, col, x_row, ALIGN)
        # Widened by the compiler, not by assembly: x is then transposed before that, in half the memory, and after all
        # loads are on their way.
        u = add_bias(tl.trans(load_raw(x, inside)), bias, ALIGN_Y, False, False)
        y = gelu(u, FORMULA, DTYPE, PTX, F32X2)
        if position_ptr is not None:
            y += position
        y_tile = corner(y_ptr, b, left, top, cols.to(tl.int64) * y_row, y_row, ALIGN_Y)
        store(pointers(y_tile, col, row, y_row, ALIGN_Y), y, inside_y, BF16_CVT)


@triton.jit(do_not_specialize=INTEGERS)
def bias_gelu_transpose_backward(
    dy_ptr,  # [batch, cols, rows]
    x_ptr,  # [batch, rows, cols]
    bias_ptr,  # [rows], or None
    dx_ptr,  # [batch, rows, cols], contiguous, or None
    partial_ptr,  # [partials, rows], one for each tile of columns and each program's batches, or None
    batch, rows, cols, col_tiles, program_batches, x_batch, x_row, dy_batch, dy_row,
    FORMULA: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr, BF16_CVT: tl.constexpr,
    ALIGN: tl.constexpr, ALIGN_Y: tl.constexpr, INT64_INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """dx = gelu'(x + bias) times dy with its rows as columns, and the sums of that over the programs' tiles."""
    dx_row = cols
    rows, cols, top, left, row, col, first, last, inside, inside_dy = locate(
        batch, rows, cols, col_tiles, program_batches, ALIGN, ALIGN_Y, INT64_INDEX, BLOCK_ROWS, BLOCK_COLS
    )
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    bias = load_vector(bias_ptr, top, left, row, col, rows, cols, "rows", DTYPE, BF16_CVT, True) + 0.0  # never -0
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for b in range(first, last):
        # dy comes first: of two layouts the compiler keeps that of the later load, so that dy alone is moved.
        dy = pointers(corner(dy_ptr, b, left, top, dy_batch, dy_row, ALIGN_Y), col, row, dy_row, ALIGN_Y)
        dy = tl.trans(load_raw(dy, inside_dy))
        x = pointers(corner(x_ptr, b, top, left, x_batch, x_row, ALIGN), row, col, x_row, ALIGN)
        u = add_bias(load_raw(x, inside), bias, ALIGN, PTX, F32X2)
        du = widen(dy, DTYPE, ALIGN, PTX, BF16_CVT) * dgelu(u, FORMULA, DTYPE, PTX, F32X2)
        if dx_ptr is not None:
            dx = corner(dx_ptr, b, top, left, rows.to(tl.int64) * dx_row, dx_row, ALIGN)
            store(pointers(dx, row, col, dx_row, ALIGN), du, inside, BF16_CVT)
        total += du
    if partial_ptr is not None:
        partial = tl.program_id(1).to(tl.int64) * col_tiles + tl.program_id(0) % col_tiles
        store_sum(partial_ptr + partial * rows + top + row, tl.sum(total, 1), row < rows - top, BF16_CVT)
