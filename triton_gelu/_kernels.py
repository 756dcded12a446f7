"""Kernels. Tensors are [batch, rows, cols], columns contiguous; the bias runs along "rows", "cols", or is "none".

Run-time widths and strides come in units of ALIGN elements: that is how the compiler knows which accesses may be wide.
UPPER case is known when compiling.
"""

import triton
import triton.language as tl

from triton_gelu._formulas import INTERPRETED, d2gelu, dgelu, gelu

# Integers are not specialised on their values: no shape compiles a kernel for itself.
FORWARD_INTEGERS = ["batch", "rows", "cols", "row_tiles", "x_batch", "x_row", "y_batch", "y_row"]
BACKWARD_INTEGERS = [
    "batch", "rows", "cols", "segments", "slab_batches", "slab_steps",
    "dy_batch", "dy_row", "v_batch", "v_row", "x_batch", "x_row", "dx_batch", "dx_row",
]  # fmt: skip


@triton.jit
def corner(ptr, batch, top, left, batch_stride, row_stride, ALIGN: tl.constexpr):
    """Where a tile begins: 64 bits away, for tensors of any size."""
    return ptr + ((tl.cast(batch, tl.int64) * batch_stride + tl.cast(top, tl.int64) * row_stride) * ALIGN + left)


@triton.jit
def within(row, col, row_stride, ALIGN: tl.constexpr):
    """The elements of a tile, counted from its corner."""
    return (row * (row_stride * ALIGN))[:, None] + col[None, :]


@triton.jit
def load(ptr, inside):
    """A tile as fp32, 0 outside."""
    x = tl.load(ptr, mask=inside, other=0.0)
    if INTERPRETED and x.dtype == tl.bfloat16:  # the interpreter's own conversion loses subnormals
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def store(ptr, y, inside):
    """Round fp32 to the nearest number of the tensor's type, ties to even."""
    if INTERPRETED and ptr.dtype.element_ty == tl.bfloat16:  # the interpreter's own conversion truncates
        bits = y.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(ptr, bits.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=inside)
    else:
        tl.store(ptr, y.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_bias(bias_ptr, top, left, row, col, rows, cols, BIAS: tl.constexpr):
    """The bias of a tile as fp32, ready to be broadcast."""
    if BIAS == "rows":
        return load(bias_ptr + top + row, row < rows - top)[:, None]
    elif BIAS == "cols":
        return load(bias_ptr + left + col, col < cols - left)[None, :]
    else:
        return 0.0


@triton.jit(do_not_specialize=FORWARD_INTEGERS)
def forward(
    x_ptr,  # [batch, rows, cols]
    bias_ptr,  # [rows] or [cols]
    y_ptr,  # [batch, rows, cols]
    batch, rows, cols, row_tiles, x_batch, x_row, y_batch, y_row,
    FORMULA: tl.constexpr, BIAS: tl.constexpr, PTX: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, BATCHED: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """y = gelu(x + bias), one tile a program."""
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    cols = cols.to(index) * ALIGN
    left = tl.program_id(0).to(index) * BLOCK_COLS
    number = tl.program_id(1) + tl.program_id(2) * FOLD
    if BATCHED:
        b = number // row_tiles
        top = (number - b * row_tiles).to(rows.dtype) * BLOCK_ROWS
        rows = tl.where(b < batch, rows, 0)
    else:
        b = 0
        top = number.to(rows.dtype) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS).to(index)
    col = tl.arange(0, BLOCK_COLS).to(index)
    inside = (row < rows - top)[:, None] & (col < cols - left)[None, :]

    x_tile = corner(x_ptr, b, top, left, x_batch, x_row, ALIGN)
    y_tile = corner(y_ptr, b, top, left, y_batch, y_row, ALIGN)
    bias = load_bias(bias_ptr, top, left, row, col, rows, cols, BIAS)
    u = load(x_tile + within(row, col, x_row, ALIGN), inside) + bias
    store(y_tile + within(row, col, y_row, ALIGN), gelu(u, FORMULA, y_ptr.dtype.element_ty, PTX), inside)


@triton.jit(do_not_specialize=BACKWARD_INTEGERS)
def backward(
    dy_ptr,  # [batch, rows, cols]
    v_ptr,  # [batch, rows, cols], the gradient of dx, or None in the first backward pass
    vbias_ptr,  # [rows] or [cols], the gradient of dbias, or None
    x_ptr,  # [batch, rows, cols]
    bias_ptr,  # [rows] or [cols]
    ddy_ptr,  # [batch, rows, cols]
    dx_ptr,  # [batch, rows, cols]
    partial_ptr,  # [slabs, rows] or [slabs, cols]
    batch, rows, cols, segments, slab_batches, slab_steps,
    dy_batch, dy_row, v_batch, v_row, x_batch, x_row, dx_batch, dx_row,
    FORMULA: tl.constexpr, BIAS: tl.constexpr, PTX: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
    ALIKE: tl.constexpr, NEEDS_DY: tl.constexpr, NEEDS_X: tl.constexpr, NEEDS_BIAS: tl.constexpr,
):  # fmt: skip
    """dx = dy * gelu'(u), u = x + bias, and its sums, in one pass.

    In the second backward pass v + vbias is the gradient of that: ddy = v * gelu'(u), dx = v * dy * gelu''(u).

    A program stays on one tile of the bias and walks the other axis, within its slab of batches and of that axis; it
    leaves the sum over its slab behind in fp32.
    """
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    cols = cols.to(index) * ALIGN
    if ALIKE:  # then offsets are computed once
        dy_batch, dy_row, v_batch, v_row, dx_batch, dx_row = x_batch, x_row, x_batch, x_row, x_batch, x_row
    slab = tl.program_id(1)
    first_batch = slab // segments * slab_batches
    row = tl.arange(0, BLOCK_ROWS).to(index)
    col = tl.arange(0, BLOCK_COLS).to(index)
    if BIAS == "rows":
        top = tl.program_id(0) * BLOCK_ROWS
        left = (slab % segments * slab_steps).to(index) * BLOCK_COLS
        steps = tl.minimum(slab_steps, tl.cdiv(cols - left, BLOCK_COLS))
    else:
        top = (slab % segments * slab_steps).to(rows.dtype) * BLOCK_ROWS
        left = tl.program_id(0).to(index) * BLOCK_COLS
        steps = tl.minimum(slab_steps, tl.cdiv(rows - top, BLOCK_ROWS))
    DOWN: tl.constexpr = 0 if BIAS == "rows" else BLOCK_ROWS
    RIGHT: tl.constexpr = BLOCK_COLS if BIAS == "rows" else 0
    bias = load_bias(bias_ptr, top, left, row, col, rows, cols, BIAS)
    vbias = load_bias(vbias_ptr, top, left, row, col, rows, cols, "none" if vbias_ptr is None else BIAS)

    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for b in range(first_batch, tl.minimum(first_batch + slab_batches, batch)):
        dy_tile = corner(dy_ptr, b, top, left, dy_batch, dy_row, ALIGN)
        x_tile = corner(x_ptr, b, top, left, x_batch, x_row, ALIGN)
        dx_tile = corner(dx_ptr, b, top, left, dx_batch, dx_row, ALIGN)
        if v_ptr is not None:
            v_tile = corner(v_ptr, b, top, left, v_batch, v_row, ALIGN)
        if NEEDS_DY:
            ddy_tile = corner(ddy_ptr, b, top, left, dx_batch, dx_row, ALIGN)
        for step in range(steps):
            r = row + step * DOWN
            c = col + step * RIGHT
            inside = (r < rows - top)[:, None] & (c < cols - left)[None, :]
            u = load(x_tile + within(r, c, x_row, ALIGN), inside) + bias
            dy = load(dy_tile + within(r, c, dy_row, ALIGN), inside)
            if v_ptr is None:
                dx = dy * dgelu(u, FORMULA, dx_ptr.dtype.element_ty, PTX)
            else:
                v = load(v_tile + within(r, c, v_row, ALIGN), inside) + vbias
                dx = v * dy * d2gelu(u, FORMULA, dx_ptr.dtype.element_ty, PTX)
            if NEEDS_DY:
                ddy = v * dgelu(u, FORMULA, dx_ptr.dtype.element_ty, PTX)
                store(ddy_tile + within(r, c, dx_row, ALIGN), ddy, inside)
            if NEEDS_X:
                store(dx_tile + within(r, c, dx_row, ALIGN), dx, inside)
            if NEEDS_BIAS:
                total += dx

    if NEEDS_BIAS:
        if BIAS == "rows":
            row += top
            store(partial_ptr + tl.cast(slab, tl.int64) * rows + row, tl.sum(total, 1), row < rows)
        else:
            col += left
            store(partial_ptr + tl.cast(slab, tl.int64) * cols + col, tl.sum(total, 0), col < cols)


@triton.jit(do_not_specialize=["slabs", "size"])
def finish(
    partial_ptr,  # [slabs, size]
    dbias_ptr,  # [size]
    slabs, size,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """dbias = the sum of all slabs, always in the same order."""
    col = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for first in range(0, slabs, BLOCK_ROWS):
        slab = first + tl.arange(0, BLOCK_ROWS)
        inside = (slab < slabs)[:, None] & (col < size)[None, :]
        total += load(partial_ptr + slab.to(tl.int64)[:, None] * size + col[None, :], inside)
    store(dbias_ptr + col, tl.sum(total, 0), col < size)
