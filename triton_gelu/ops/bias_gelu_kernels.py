"""The kernels of `bias_gelu`: y = gelu(x + bias), its derivative, and the derivative of that.

Tensors are [batch, rows, cols], columns contiguous. `bias` runs along the "rows" or "cols" (BIAS); "none" is for
tensors that need no vector along an axis. Run-time widths and strides come in units of ALIGN elements. Names in UPPER
case are constants when a kernel is compiled; the plan (bias_gelu_plan.py) chooses them.
"""

import triton
import triton.language as tl

from ..core.arithmetic import mul
from ..core.philox_device import DROPOUT_INTEGERS, counter_at, dropped, load_seed, weight_of_part
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
    terms,
    tie,
    widen,
)
from ..formulas.device import d2gelu, dgelu, gelu
from .gated_kernels import activated, factor, gated_backward_of_part, reduce_both_partials

__all__ = ["KERNELS", "bias_gelu_backward", "bias_gelu_forward", "reduce_both_partials", "reduce_partials"]

# Integers are not specialised on their values: no shape compiles a kernel for itself.
FORWARD_INTEGERS = [
    "batch", "rows", "cols", "row_tiles", "x_batch", "x_row", "y_batch", "y_row", "other_batch", "other_row", "x_half",
    *DROPOUT_INTEGERS,
]  # fmt: skip
BACKWARD_INTEGERS = [
    "batch", "rows", "cols", "segments", "program_batches", "program_steps",
    "dy_batch", "dy_row", "ddx_batch", "ddx_row", "x_batch", "x_row", "dx_batch", "dx_row", "other_batch", "other_row",
    "ddy_batch", "ddy_row", "x_half", "ddx_half", "dx_half", *DROPOUT_INTEGERS,
]  # fmt: skip


@triton.jit(do_not_specialize=FORWARD_INTEGERS)
def bias_gelu_forward(
    x_ptr,  # [batch, rows, cols], or two halves of that
    bias_ptr,  # [rows] or [cols], or None; two of them where x has halves
    y_ptr,  # [batch, rows, cols]
    other_ptr,  # [batch, rows, cols], or None
    other_bias_ptr,  # [rows] or [cols], or None
    seed_ptr,  # [], or None: nothing is dropped
    batch, rows, cols, row_tiles, x_batch, x_row, y_batch, y_row, other_batch, other_row, x_half,
    counter_batch, counter_row, last, scale, INT64_COUNTER: tl.constexpr,
    FORMULA: tl.constexpr, BIAS: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr, BF16_CVT: tl.constexpr,
    ALIGN: tl.constexpr, INT64_INDEX: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
    BATCHED: tl.constexpr, GRID_FOLD: tl.constexpr, SAME_STRIDES: tl.constexpr, UNROLL: tl.constexpr,
    LOADS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """y = gelu(x + bias), one tile a program, taken in UNROLL parts, with LOADS as core/in_flight.py says.

    If it is GATED (gated_kernels.py), y = gelu(x + bias) (other + other_bias). A seed is for core/dropout.py.
    """
    DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    index: tl.constexpr = tl.int64 if INT64_INDEX else tl.int32
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
        y_batch, y_row, other_batch, other_row = x_batch, x_row, x_batch, x_row
    if GATED == "first" or GATED == "second":
        other_batch, other_row = x_batch, x_row
    half = tl.cast(x_half, tl.int64) * ALIGN
    size = rows if BIAS == "rows" else cols
    u_ptr = activated(x_ptr, half, GATED)
    w_ptr = factor(x_ptr, other_ptr, half, GATED)
    u_bias_ptr = activated(bias_ptr, size, GATED)
    w_bias_ptr = factor(bias_ptr, other_bias_ptr, size, GATED)
    x = pointers(corner(u_ptr, b, top, left, x_batch, x_row, ALIGN), row, col, x_row, ALIGN)
    other = pointers(corner(w_ptr, b, top, left, other_batch, other_row, ALIGN), row, col, other_row, ALIGN)
    y = pointers(corner(y_ptr, b, top, left, y_batch, y_row, ALIGN), row, col, y_row, ALIGN)
    x_step = tl.cast(x_row, index) * (DOWN * ALIGN) + RIGHT
    y_step = tl.cast(y_row, index) * (DOWN * ALIGN) + RIGHT
    seed = load_seed(seed_ptr)
    counter = counter_at(seed, b, top, left, counter_batch, counter_row, DTYPE, INT64_COUNTER)
    other_step = tl.cast(other_row, index) * (DOWN * ALIGN) + RIGHT
    whole = (top <= rows - BLOCK_ROWS) & (left <= cols - BLOCK_COLS)  # no sum here is past 2^31
    for MASKED in tl.static_range(2):  # a whole tile needs no mask
        if whole != (MASKED == 1):
            # All of x is asked for before any is waited for; y leaves part by part, so that few registers are taken.
            xs = ()
            biases = ()
            others = ()
            other_biases = ()
            for i in tl.static_range(FIRST, FIRST + ORDER * UNROLL, ORDER):
                r = row + i * DOWN
                c = col + i * RIGHT
                inside = mask(r, c, rows - top, cols - left, MASKED)
                xs += (load_raw(x + i * x_step, inside, LOADS == "volatile"),)
                biases += (load_vector(u_bias_ptr, top, left, r, c, rows, cols, BIAS, DTYPE, BF16_CVT, MASKED),)
                if GATED != "no":
                    w_bias = load_vector(w_bias_ptr, top, left, r, c, rows, cols, BIAS, DTYPE, BF16_CVT, MASKED)
                    others += (load_raw(other + i * other_step, inside, LOADS == "volatile"),)
                    other_biases += (w_bias,)
            if LOADS == "tied" and MASKED == 0:
                xs = tie(xs, others, never(batch, rows, cols), ALIGN)
            for i in tl.static_range(UNROLL):
                r = row + i * DOWN
                inside = mask(r, col + i * RIGHT, rows - top, cols - left, MASKED)
                u = add_bias(xs[(i - FIRST) * ORDER], biases[(i - FIRST) * ORDER], ALIGN, PTX, F32X2)
                result = gelu(u, FORMULA, DTYPE, PTX, F32X2)  # computed before the address is
                if GATED != "no":
                    w = add_bias(others[(i - FIRST) * ORDER], other_biases[(i - FIRST) * ORDER], ALIGN, PTX, F32X2)
                    result = mul(result, w, F32X2)
                keep = weight_of_part(seed, counter, r, i * RIGHT, counter_row, last, scale, DTYPE, result.shape[1])
                store(y + i * y_step, dropped(result, keep, F32X2), inside, BF16_CVT)


@triton.jit
def backward_of_part(
    dy, keep, ddx, ddother, ddbias, ddother_bias, x, other, bias, other_bias, ddy, dx, dother, inside,
    DTYPE: tl.constexpr, FORMULA: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr, BF16_CVT: tl.constexpr,
    ALIGN: tl.constexpr, GATED: tl.constexpr, NEEDS_DY: tl.constexpr, NEEDS_X: tl.constexpr, NEEDS_OTHER: tl.constexpr,
):  # fmt: skip
    """Store what a part of a tile has of ddy, dx and dother, and return what dbias and dother_bias are the sums of.

    `dy`, `x` and `other` are loaded already; `keep` is dropout's weight of y, or None.
    """
    if GATED != "no":
        return gated_backward_of_part(
            dy, keep, ddx, ddother, ddbias, ddother_bias, x, other, bias, other_bias, ddy, dx, dother, inside,
            DTYPE, FORMULA, PTX, F32X2, BF16_CVT, ALIGN, NEEDS_DY, NEEDS_X, NEEDS_OTHER,
        )  # fmt: skip
    else:
        u = add_bias(x, bias, ALIGN, PTX, F32X2)
        du = dropped(widen(dy, DTYPE, ALIGN, PTX, BF16_CVT), keep, F32X2)
        if ddx is None:
            du *= dgelu(u, FORMULA, DTYPE, PTX, F32X2)
        else:
            ddu = load(ddx, inside, DTYPE, ALIGN, PTX, BF16_CVT) + ddbias
            if NEEDS_DY:
                store(ddy, dropped(ddu * dgelu(u, FORMULA, DTYPE, PTX, F32X2), keep, F32X2), inside, BF16_CVT)
            du *= ddu * d2gelu(u, FORMULA, DTYPE, PTX, F32X2)
        if NEEDS_X:
            store(dx, du, inside, BF16_CVT)
        return du, du


@triton.jit(do_not_specialize=BACKWARD_INTEGERS)
def bias_gelu_backward(
    dy_ptr,  # [batch, rows, cols]
    ddx_ptr,  # as x, the gradient of dx, or None in the first backward pass
    ddbias_ptr,  # as bias, the gradient of dbias, or None
    x_ptr,  # [batch, rows, cols], or two halves of that
    bias_ptr,  # [rows] or [cols], or None; two of them where x has halves
    ddy_ptr,  # [batch, rows, cols]
    dx_ptr,  # as x
    partial_ptr,  # [partials, rows] or [partials, cols], or rows of two such vectors
    ddother_ptr,  # these two as other, or None
    ddother_bias_ptr,  # as other_bias, or None
    other_ptr,
    other_bias_ptr,  # [rows] or [cols], or None
    dother_ptr,  # as other
    other_sum_ptr,  # [rows] or [cols] where there is one program for each sum, and other is apart; else None
    seed_ptr,  # [], or None: nothing is dropped
    batch, rows, cols, segments, program_batches, program_steps,
    dy_batch, dy_row, ddx_batch, ddx_row, x_batch, x_row, dx_batch, dx_row,
    other_batch, other_row, ddy_batch, ddy_row, x_half, ddx_half, dx_half,
    counter_batch, counter_row, last, scale, INT64_COUNTER: tl.constexpr,
    FORMULA: tl.constexpr, BIAS: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr, BF16_CVT: tl.constexpr,
    ALIGN: tl.constexpr, INT64_INDEX: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
    SAME_STRIDES: tl.constexpr, NEEDS_DY: tl.constexpr, NEEDS_X: tl.constexpr, NEEDS_BIAS: tl.constexpr,
    UNROLL: tl.constexpr, LOADS: tl.constexpr, GATED: tl.constexpr,
    NEEDS_OTHER: tl.constexpr, NEEDS_OTHER_BIAS: tl.constexpr,
):  # fmt: skip
    """dx = dy * gelu'(u), u = x + bias, and its sums over everything but BIAS, in one pass.

    In the second backward pass ddx + ddbias is the gradient of that: ddy = (ddx + ddbias) * gelu'(u), and the gradient
    of x, stored to dx and summed, is (ddx + ddbias) * dy * gelu''(u). Where it is GATED there is a factor, too, and its
    gradient and sums (gated_kernels.py).

    A program stays on one tile of BIAS and goes along the other axis, UNROLL tiles a step, with LOADS as
    core/in_flight.py says: through one of `segments` parts of that axis (`program_steps` steps), in `program_batches`
    batches. It stores the sum of all that as float32. A bias may be None while its gradient is wanted: it has then been
    added to x already. With a seed dy and ddy are multiplied by what dropout did to y.
    """
    index: tl.constexpr = tl.int64 if INT64_INDEX else tl.int32
    rows = integer(rows)
    cols = tl.cast(cols, index) * ALIGN
    if SAME_STRIDES:  # then offsets are computed once
        dy_batch, ddx_batch, dx_batch, other_batch, ddy_batch = x_batch, x_batch, x_batch, x_batch, x_batch
        dy_row, ddx_row, dx_row, other_row, ddy_row = x_row, x_row, x_row, x_row, x_row
    if GATED == "no":
        ddy_batch, ddy_row = dx_batch, dx_row
    elif GATED == "first" or GATED == "second":
        other_batch, other_row = x_batch, x_row
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
    size = rows if BIAS == "rows" else cols
    u_bias_ptr = activated(bias_ptr, size, GATED)
    ddu_bias_ptr = activated(ddbias_ptr, size, GATED)
    bias = load_vector(u_bias_ptr, top, left, row, col, rows, cols, BIAS, DTYPE, BF16_CVT, True)
    bias += 0.0  # never -0: nor is a sum then
    zero = never(batch, rows, cols)
    seed = load_seed(seed_ptr)
    ddbias = load_vector(ddu_bias_ptr, top, left, row, col, rows, cols, BIAS, DTYPE, BF16_CVT, True)
    w_bias_ptr = factor(bias_ptr, other_bias_ptr, size, GATED)
    ddw_bias_ptr = factor(ddbias_ptr, ddother_bias_ptr, size, GATED)
    other_bias = load_vector(w_bias_ptr, top, left, row, col, rows, cols, BIAS, DTYPE, BF16_CVT, True)
    ddother_bias = load_vector(ddw_bias_ptr, top, left, row, col, rows, cols, BIAS, DTYPE, BF16_CVT, True)
    half, ddhalf, dhalf = (
        tl.cast(x_half, tl.int64) * ALIGN, tl.cast(ddx_half, tl.int64) * ALIGN, tl.cast(dx_half, tl.int64) * ALIGN
    )  # fmt: skip

    BITS: tl.constexpr = DTYPE.primitive_bitwidth
    total = terms(tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32), BIAS == "rows", ALIGN, BITS)
    if GATED != "no":
        other_total = terms(tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32), BIAS == "rows", ALIGN, BITS)
    for b in range(first_batch, tl.minimum(first_batch + program_batches, batch)):
        dy_tile = corner(dy_ptr, b, top, left, dy_batch, dy_row, ALIGN)
        x_tile = corner(activated(x_ptr, half, GATED), b, top, left, x_batch, x_row, ALIGN)
        dx_tile = corner(activated(dx_ptr, dhalf, GATED), b, top, left, dx_batch, dx_row, ALIGN)
        ddx_tile = corner(activated(ddx_ptr, ddhalf, GATED), b, top, left, ddx_batch, ddx_row, ALIGN)
        ddy_tile = corner(ddy_ptr, b, top, left, ddy_batch, ddy_row, ALIGN)
        other_tile = corner(factor(x_ptr, other_ptr, half, GATED), b, top, left, other_batch, other_row, ALIGN)
        dother_tile = corner(factor(dx_ptr, dother_ptr, dhalf, GATED), b, top, left, dx_batch, dx_row, ALIGN)
        ddother_tile = corner(factor(ddx_ptr, ddother_ptr, ddhalf, GATED), b, top, left, ddx_batch, ddx_row, ALIGN)
        counter = counter_at(seed, b, top, left, counter_batch, counter_row, DTYPE, INT64_COUNTER)
        for step in range(whole):  # whole tiles need no mask
            xs = ()
            dys = ()
            others = ()
            for i in tl.static_range(FIRST, FIRST + ORDER * UNROLL, ORDER):  # before any is waited for
                r = row + (step * UNROLL + i) * DOWN
                c = col + (step * UNROLL + i) * RIGHT
                xs += (load_raw(pointers(x_tile, r, c, x_row, ALIGN), None, LOADS == "volatile"),)
                dys += (load_raw(pointers(dy_tile, r, c, dy_row, ALIGN), None, LOADS == "volatile"),)
                if GATED != "no":
                    others += (load_raw(pointers(other_tile, r, c, other_row, ALIGN), None, LOADS == "volatile"),)
            if LOADS == "tied":
                xs = tie(xs, dys + others, zero, ALIGN)
            for i in tl.static_range(UNROLL):
                r = row + (step * UNROLL + i) * DOWN
                right = (step * UNROLL + i) * RIGHT
                c = col + right
                keep = weight_of_part(seed, counter, r, right, counter_row, last, scale, DTYPE, BLOCK_COLS)
                du, dw = backward_of_part(
                    dys[(i - FIRST) * ORDER], keep, pointers(ddx_tile, r, c, ddx_row, ALIGN),
                    pointers(ddother_tile, r, c, ddx_row, ALIGN), ddbias, ddother_bias, xs[(i - FIRST) * ORDER],
                    others[(i - FIRST) * ORDER] if GATED != "no" else None, bias, other_bias,
                    pointers(ddy_tile, r, c, ddy_row, ALIGN), pointers(dx_tile, r, c, dx_row, ALIGN),
                    pointers(dother_tile, r, c, dx_row, ALIGN), None,
                    DTYPE, FORMULA, PTX, F32X2, BF16_CVT, ALIGN, GATED, NEEDS_DY, NEEDS_X, NEEDS_OTHER,
                )  # fmt: skip
                total += terms(du, BIAS == "rows", ALIGN, BITS)
                if GATED != "no":
                    other_total += terms(dw, BIAS == "rows", ALIGN, BITS)
        for step in range(whole * UNROLL, steps):  # what is left, one tile a step: few registers are taken
            r = row + step * DOWN
            c = col + step * RIGHT
            inside = mask(r, c, rows - top, cols - left, True)
            x = load_raw(pointers(x_tile, r, c, x_row, ALIGN), inside, LOADS == "volatile")
            dy = load_raw(pointers(dy_tile, r, c, dy_row, ALIGN), inside, LOADS == "volatile")
            other = None
            if GATED != "no":
                other = load_raw(pointers(other_tile, r, c, other_row, ALIGN), inside, LOADS == "volatile")
            keep = weight_of_part(seed, counter, r, step * RIGHT, counter_row, last, scale, DTYPE, BLOCK_COLS)
            du, dw = backward_of_part(
                dy, keep, pointers(ddx_tile, r, c, ddx_row, ALIGN), pointers(ddother_tile, r, c, ddx_row, ALIGN),
                ddbias, ddother_bias, x, other, bias, other_bias,
                pointers(ddy_tile, r, c, ddy_row, ALIGN), pointers(dx_tile, r, c, dx_row, ALIGN),
                pointers(dother_tile, r, c, dx_row, ALIGN), inside,
                DTYPE, FORMULA, PTX, F32X2, BF16_CVT, ALIGN, GATED, NEEDS_DY, NEEDS_X, NEEDS_OTHER,
            )  # fmt: skip
            total += terms(du, BIAS == "rows", ALIGN, BITS)
            if GATED != "no":
                other_total += terms(dw, BIAS == "rows", ALIGN, BITS)

    if NEEDS_BIAS or NEEDS_OTHER_BIAS:
        tl.static_assert(BIAS != "none", "there is no sum along the axis 'none'")
        row += top
        col += left
        place = row if BIAS == "rows" else col
        VECTORS: tl.constexpr = 2 if NEEDS_BIAS and NEEDS_OTHER_BIAS and other_sum_ptr is None else 1
        sums = partial_ptr + tl.cast(partial, tl.int64) * (VECTORS * size)
        if NEEDS_BIAS:
            first_sums = sums + size if GATED == "second" else sums
            store_sum(first_sums + place, tl.sum(total, 1 if BIAS == "rows" else 0), place < size, BF16_CVT)
        if NEEDS_OTHER_BIAS:
            if other_sum_ptr is not None:
                sums = other_sum_ptr
            other_sums = sums + size if VECTORS == 2 and GATED != "second" else sums
            store_sum(other_sums + place, tl.sum(other_total, 1 if BIAS == "rows" else 0), place < size, BF16_CVT)


KERNELS = (bias_gelu_backward,)
"""Those that compiled graphs of the operator hold."""
