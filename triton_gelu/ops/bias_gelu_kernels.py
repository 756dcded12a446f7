"""The kernels of `bias_gelu`: y = gelu(x + bias), its derivative, and the derivative of that.

Tensors are [batch, rows, cols], columns contiguous. `bias` runs along the "rows" or "cols" (BIAS); "none" is for
tensors that need no vector along an axis. Run-time widths and strides come in units of ALIGN elements. Names in UPPER
case are constants when a kernel is compiled; the plan (bias_gelu_plan.py) chooses them.
"""

import triton
import triton.language as tl

from ..core.philox_device import counter_at, dropped, load_seed, weight_of_part
from ..core.tiles import (
    add_bias,
    corner,
    integer,
    load,
    load_raw,
    load_vector,
    mask,
    never,
    pointers,
    reduce_partials,
    store,
    store_sum,
    tie,
    widen,
)
from ..formulas.device import d2gelu, dgelu, gelu

__all__ = ["KERNELS", "bias_gelu_backward", "bias_gelu_forward", "reduce_partials"]

# Integers are not specialised on their values: no shape compiles a kernel for itself.
DROPOUT_INTEGERS = ["counter_batch", "counter_row", "last", "scale"]
FORWARD_INTEGERS = ["batch", "rows", "cols", "row_tiles", "x_batch", "x_row", "y_batch", "y_row", *DROPOUT_INTEGERS]
BACKWARD_INTEGERS = [
    "batch", "rows", "cols", "segments", "program_batches", "program_steps",
    "dy_batch", "dy_row", "ddx_batch", "ddx_row", "x_batch", "x_row", "dx_batch", "dx_row",
    *DROPOUT_INTEGERS,
]  # fmt: skip


@triton.jit(do_not_specialize=FORWARD_INTEGERS)
def bias_gelu_forward(
    x_ptr,  # [batch, rows, cols]
    bias_ptr,  # [rows] or [cols], or None
    seed_ptr,  # [], or None: nothing is dropped
    y_ptr,  # [batch, rows, cols]
    batch, rows, cols, row_tiles, x_batch, x_row, y_batch, y_row, counter_batch, counter_row, last, scale,
    FORMULA: tl.constexpr, BIAS: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr, BF16_CVT: tl.constexpr,
    ALIGN: tl.constexpr, INT64_INDEX: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
    BATCHED: tl.constexpr, GRID_FOLD: tl.constexpr, SAME_STRIDES: tl.constexpr, UNROLL: tl.constexpr,
    LOADS: tl.constexpr, INT64_COUNTER: tl.constexpr,
):  # fmt: skip
    """y = gelu(x + bias), one tile a program, taken in UNROLL parts, with LOADS as core/in_flight.py says.

    With a seed, elements are dropped as core/dropout.py says; the last four integers are for that.
    """
    DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    index: tl.constexpr = tl.int64 if INT64_INDEX else tl.int32
    rows = integer(rows)
    cols = tl.cast(cols, index) * ALIGN
    left = tl.program_id(0).to(index) * BLOCK_COLS
    number = tl.program_id(1) + tl.program_id(2) * GRID_FOLD
    if BATCHED:
        b = number // row_tiles
        top = (number - b * row_tiles).to(rows.dtype) * BLOCK_ROWS
        rows = tl.where(b < batch, rows, 0)
    else:
        b = 0
        top = number.to(rows.dtype) * BLOCK_ROWS
    DOWN: tl.constexpr = BLOCK_ROWS // UNROLL  # from one part of the tile to the next
    RIGHT: tl.constexpr = 0 if DOWN else BLOCK_COLS // UNROLL
    FIRST: tl.constexpr = UNROLL - 1 if LOADS == "volatile" else 0  # what is used first is asked for last
    ORDER: tl.constexpr = -1 if FIRST else 1
    row = tl.arange(0, DOWN if DOWN else BLOCK_ROWS).to(index)
    col = tl.arange(0, RIGHT if RIGHT else BLOCK_COLS)
    if SAME_STRIDES:  # then offsets are computed once
        y_batch, y_row = x_batch, x_row
    x = pointers(corner(x_ptr, b, top, left, x_batch, x_row, ALIGN), row, col, x_row, ALIGN)
    y = pointers(corner(y_ptr, b, top, left, y_batch, y_row, ALIGN), row, col, y_row, ALIGN)
    x_step = tl.cast(x_row, index) * (DOWN * ALIGN) + RIGHT
    y_step = tl.cast(y_row, index) * (DOWN * ALIGN) + RIGHT
    seed = load_seed(seed_ptr)
    counter = counter_at(seed, b, top, left, counter_batch, counter_row, DTYPE, INT64_COUNTER)
    whole = (top <= rows - BLOCK_ROWS) & (left <= cols - BLOCK_COLS)  # no sum here is past 2^31
    for MASKED in tl.static_range(2):  # a whole tile needs no mask
        if whole != (MASKED == 1):
            # All of x is asked for before any is waited for; y leaves part by part, so that few registers are taken.
            xs = ()
            biases = ()
            for i in tl.static_range(FIRST, FIRST + ORDER * UNROLL, ORDER):
                r = row + i * DOWN
                c = col + i * RIGHT
                inside = mask(r, c, rows - top, cols - left, MASKED)
                xs += (load_raw(x + i * x_step, inside, LOADS == "volatile"),)
                biases += (load_vector(bias_ptr, top, left, r, c, rows, cols, BIAS, DTYPE, BF16_CVT, MASKED),)
            if LOADS == "tied" and MASKED == 0:
                xs = tie(xs, (), never(batch, rows, cols), ALIGN)
            for i in tl.static_range(UNROLL):
                inside = mask(row + i * DOWN, col + i * RIGHT, rows - top, cols - left, MASKED)
                u = add_bias(xs[(i - FIRST) * ORDER], biases[(i - FIRST) * ORDER], ALIGN, PTX, F32X2)
                result = gelu(u, FORMULA, DTYPE, PTX, F32X2)  # computed before the address is
                w = weight_of_part(
                    seed, counter, row + i * DOWN, i * RIGHT, counter_row, last, scale, DTYPE, u.shape[1]
                )
                result = dropped(result, w, F32X2)
                store(y + i * y_step, result, inside, BF16_CVT)


@triton.jit
def backward_of_part(
    dy, w, ddx, ddbias, x, bias, ddy, dx, inside, DTYPE: tl.constexpr, FORMULA: tl.constexpr,
    PTX: tl.constexpr, F32X2: tl.constexpr, BF16_CVT: tl.constexpr, ALIGN: tl.constexpr,
    NEEDS_DY: tl.constexpr, NEEDS_X: tl.constexpr,
):  # fmt: skip
    """Store ddy and dx of a part of a tile, and return what dbias is the sum of; `dy` and `x` are loaded already."""
    u = add_bias(x, bias, ALIGN, PTX, F32X2)
    du = dropped(widen(dy, DTYPE, ALIGN, PTX, BF16_CVT), w, F32X2)
    if ddx is None:
        du *= dgelu(u, FORMULA, DTYPE, PTX, F32X2)
    else:
        ddu = load(ddx, inside, DTYPE, ALIGN, PTX, BF16_CVT) + ddbias
        if NEEDS_DY:
            store(ddy, dropped(ddu * dgelu(u, FORMULA, DTYPE, PTX, F32X2), w, F32X2), inside, BF16_CVT)
        du *= ddu * d2gelu(u, FORMULA, DTYPE, PTX, F32X2)
    if NEEDS_X:
        store(dx, du, inside, BF16_CVT)
    return du


@triton.jit
def terms(du, ALONG_ROWS: tl.constexpr, ALIGN: tl.constexpr, BITS: tl.constexpr):
    """What is added up of a part, tile by tile: du, or where a row has one sum, what a thread has of it in a piece."""
    if ALONG_ROWS:
        PIECE: tl.constexpr = min(ALIGN, 128 // BITS)
        du = tl.sum(tl.reshape(du, (du.shape[0], du.shape[1] // PIECE, PIECE)), 2)
    return du


@triton.jit(do_not_specialize=BACKWARD_INTEGERS)
def bias_gelu_backward(
    dy_ptr,  # [batch, rows, cols]
    ddx_ptr,  # [batch, rows, cols], the gradient of dx, or None in the first backward pass
    ddbias_ptr,  # [rows] or [cols], the gradient of dbias, or None
    x_ptr,  # [batch, rows, cols]
    bias_ptr,  # [rows] or [cols], or None
    seed_ptr,  # [], or None: nothing is dropped
    ddy_ptr,  # [batch, rows, cols]
    dx_ptr,  # [batch, rows, cols]
    partial_ptr,  # [partials, rows] or [partials, cols]
    batch, rows, cols, segments, program_batches, program_steps,
    dy_batch, dy_row, ddx_batch, ddx_row, x_batch, x_row, dx_batch, dx_row,
    counter_batch, counter_row, last, scale,
    FORMULA: tl.constexpr, BIAS: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr, BF16_CVT: tl.constexpr,
    ALIGN: tl.constexpr, INT64_INDEX: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
    SAME_STRIDES: tl.constexpr, NEEDS_DY: tl.constexpr, NEEDS_X: tl.constexpr, NEEDS_BIAS: tl.constexpr,
    UNROLL: tl.constexpr, LOADS: tl.constexpr, INT64_COUNTER: tl.constexpr,
):  # fmt: skip
    """dx = dy * gelu'(u), u = x + bias, and its sums over everything but BIAS, in one pass.

    In the second backward pass ddx + ddbias is the gradient of that: ddy = (ddx + ddbias) * gelu'(u), and the gradient
    of x, stored to dx and summed, is (ddx + ddbias) * dy * gelu''(u).

    A program stays on one tile of BIAS and goes along the other axis, UNROLL tiles a step, with LOADS as
    core/in_flight.py says: through one of `segments` parts of that axis (`program_steps` steps), in `program_batches`
    batches. It stores the sum of all that as float32.
    A bias may be None while its gradient is wanted: it has then been added to x already. With a seed, dy is multiplied
    by what the result was, and so is ddy.
    """
    index: tl.constexpr = tl.int64 if INT64_INDEX else tl.int32
    rows = integer(rows)
    cols = tl.cast(cols, index) * ALIGN
    if SAME_STRIDES:  # then offsets are computed once
        dy_batch, dy_row, ddx_batch, ddx_row, dx_batch, dx_row = x_batch, x_row, x_batch, x_row, x_batch, x_row
    partial = tl.program_id(1)
    first_batch = partial // segments * program_batches
    row = tl.arange(0, BLOCK_ROWS).to(index)
    col = tl.arange(0, BLOCK_COLS).to(index)
    DOWN: tl.constexpr = 0 if BIAS == "rows" else BLOCK_ROWS
    RIGHT: tl.constexpr = BLOCK_COLS if BIAS == "rows" else 0
    STEP: tl.constexpr = UNROLL * (DOWN + RIGHT)
    FIRST: tl.constexpr = UNROLL - 1 if LOADS == "volatile" else 0  # what is used first is asked for last
    ORDER: tl.constexpr = -1 if FIRST else 1
    if BIAS == "rows":
        top = tl.program_id(0) * BLOCK_ROWS
        left = (partial % segments * program_steps).to(index) * STEP
        steps = tl.minimum(program_steps * UNROLL, tl.cdiv(cols - left, BLOCK_COLS))
        whole = tl.where(top <= rows - BLOCK_ROWS, tl.minimum(program_steps, (cols - left) // STEP), 0)
    else:
        top = (partial % segments * program_steps).to(rows.dtype) * STEP
        left = tl.program_id(0).to(index) * BLOCK_COLS
        steps = tl.minimum(program_steps * UNROLL, tl.cdiv(rows - top, BLOCK_ROWS))
        whole = tl.where(left <= cols - BLOCK_COLS, tl.minimum(program_steps, (rows - top) // STEP), 0)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    bias = load_vector(bias_ptr, top, left, row, col, rows, cols, BIAS, DTYPE, BF16_CVT, True)
    bias += 0.0  # never -0: nor is a sum then
    zero = never(batch, rows, cols)
    seed = load_seed(seed_ptr)
    ddbias = load_vector(ddbias_ptr, top, left, row, col, rows, cols, BIAS, DTYPE, BF16_CVT, True)

    BITS: tl.constexpr = DTYPE.primitive_bitwidth
    total = terms(tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32), BIAS == "rows", ALIGN, BITS)
    for b in range(first_batch, tl.minimum(first_batch + program_batches, batch)):
        dy_tile = corner(dy_ptr, b, top, left, dy_batch, dy_row, ALIGN)
        x_tile = corner(x_ptr, b, top, left, x_batch, x_row, ALIGN)
        dx_tile = corner(dx_ptr, b, top, left, dx_batch, dx_row, ALIGN)
        ddx_tile = corner(ddx_ptr, b, top, left, ddx_batch, ddx_row, ALIGN)
        ddy_tile = corner(ddy_ptr, b, top, left, dx_batch, dx_row, ALIGN)
        counter = counter_at(seed, b, top, left, counter_batch, counter_row, DTYPE, INT64_COUNTER)
        for step in range(whole):  # whole tiles need no mask
            xs = ()
            dys = ()
            for i in tl.static_range(FIRST, FIRST + ORDER * UNROLL, ORDER):  # before any is waited for
                r = row + (step * UNROLL + i) * DOWN
                c = col + (step * UNROLL + i) * RIGHT
                xs += (load_raw(pointers(x_tile, r, c, x_row, ALIGN), None, LOADS == "volatile"),)
                dys += (load_raw(pointers(dy_tile, r, c, dy_row, ALIGN), None, LOADS == "volatile"),)
            if LOADS == "tied":
                xs = tie(xs, dys, zero, ALIGN)
            for i in tl.static_range(UNROLL):
                r = row + (step * UNROLL + i) * DOWN
                c = col + (step * UNROLL + i) * RIGHT
                right = (step * UNROLL + i) * RIGHT
                w = weight_of_part(seed, counter, r, right, counter_row, last, scale, DTYPE, BLOCK_COLS)
                du = backward_of_part(
                    dys[(i - FIRST) * ORDER], w, pointers(ddx_tile, r, c, ddx_row, ALIGN), ddbias,
                    xs[(i - FIRST) * ORDER], bias,
                    pointers(ddy_tile, r, c, dx_row, ALIGN), pointers(dx_tile, r, c, dx_row, ALIGN),
                    None, DTYPE, FORMULA, PTX, F32X2, BF16_CVT, ALIGN, NEEDS_DY, NEEDS_X,
                )  # fmt: skip
                total += terms(du, BIAS == "rows", ALIGN, BITS)
        for step in range(whole * UNROLL, steps):  # what is left, one tile a step: few registers are taken
            r = row + step * DOWN
            c = col + step * RIGHT
            inside = mask(r, c, rows - top, cols - left, True)
            x = load_raw(pointers(x_tile, r, c, x_row, ALIGN), inside, LOADS == "volatile")
            dy = load_raw(pointers(dy_tile, r, c, dy_row, ALIGN), inside, LOADS == "volatile")
            w = weight_of_part(seed, counter, r, step * RIGHT, counter_row, last, scale, DTYPE, BLOCK_COLS)
            du = backward_of_part(
                dy, w, pointers(ddx_tile, r, c, ddx_row, ALIGN), ddbias, x, bias,
                pointers(ddy_tile, r, c, dx_row, ALIGN), pointers(dx_tile, r, c, dx_row, ALIGN),
                inside, DTYPE, FORMULA, PTX, F32X2, BF16_CVT, ALIGN, NEEDS_DY, NEEDS_X,
            )  # fmt: skip
            total += terms(du, BIAS == "rows", ALIGN, BITS)

    if NEEDS_BIAS:
        if BIAS == "rows":
            row += top
            sums = partial_ptr + tl.cast(partial, tl.int64) * rows + row
            store_sum(sums, tl.sum(total, 1), row < rows, BF16_CVT)
        elif BIAS == "cols":
            col += left
            sums = partial_ptr + tl.cast(partial, tl.int64) * cols + col
            store_sum(sums, tl.sum(total, 0), col < cols, BF16_CVT)
        else:
            tl.static_assert(False, f"there is no sum along the axis '{BIAS}'")


KERNELS = bias_gelu_forward, bias_gelu_backward
"""Those that compiled graphs of the operator hold."""
