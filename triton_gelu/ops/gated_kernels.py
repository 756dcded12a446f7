"""What the kernels of `bias_gelu` do where GELU's value is multiplied: y = w gelu(u), with u = x + bias.

w = other + other_bias comes from a tensor of its own or from the other half of x. Its name in the kernels is GATED:

    no      there is no factor, and nothing of this is compiled
    apart   x and other are two tensors
    first   x has two halves, of which the first goes through GELU
    second  the same, of which the second does

A half is reached by one pointer and an offset, in units of ALIGN: a view of it need not be aligned as its tensor is.
The gradients are dx = dy w gelu'(u) and dother = dy gelu(u), and those of these follow by the product rule.
"""

import triton
import triton.language as tl

from ..core.philox_device import dropped
from ..core.tiles import add_bias, load, load_raw, store, store_sum, widen
from ..formulas.device import d2gelu, gelu_and_dgelu


@triton.jit
def activated(ptr, half, GATED: tl.constexpr):
    """Where what goes through GELU begins: `half` elements further if that is a tensor's second half."""
    if ptr is None:
        return  # None: before Triton 3.7 a kernel can't spell that out
    elif GATED == "second":
        return ptr + half
    else:
        return ptr


@triton.jit
def factor(ptr, other_ptr, half, GATED: tl.constexpr):
    """Where the factor begins: in a tensor of its own, or in the other half; None where there is none."""
    if GATED == "apart" and other_ptr is not None:
        return other_ptr
    elif GATED == "apart" or GATED == "no" or ptr is None:
        return
    elif GATED == "first":
        return ptr + half
    elif GATED == "second":
        return ptr
    else:
        tl.static_assert(False, f"there is no factor '{GATED}'")


@triton.jit
def gated_backward_of_part(
    dy, keep, ddx, ddother, ddbias, ddother_bias, x, other, bias, other_bias, ddy, dx, dother, inside,
    DTYPE: tl.constexpr, FORMULA: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr, BF16_CVT: tl.constexpr,
    ALIGN: tl.constexpr, NEEDS_DY: tl.constexpr, NEEDS_X: tl.constexpr, NEEDS_OTHER: tl.constexpr,
):  # fmt: skip
    """Store ddy, dx and dother of a part of a tile, and return what dbias and dother_bias are the sums of.

    `dy`, `x` and `other` are loaded already; `keep` is dropout's weight of y, or None. With ddx and ddother, the
    gradients of dx and dother, this is the second backward pass.
    """
    u = add_bias(x, bias, ALIGN, PTX, F32X2)
    w = add_bias(other, other_bias, ALIGN, PTX, F32X2)
    dy = dropped(widen(dy, DTYPE, ALIGN, PTX, BF16_CVT), keep, F32X2)
    value, slope = gelu_and_dgelu(u, FORMULA, DTYPE, PTX, F32X2)
    if ddx is None:
        du = dy * w * slope
        dw = dy * value
    else:
        ddu = load(ddx, inside, DTYPE, ALIGN, PTX, BF16_CVT) + ddbias
        ddw = load(ddother, inside, DTYPE, ALIGN, PTX, BF16_CVT) + ddother_bias
        dw = dy * ddu * slope
        ddu *= w
        if NEEDS_DY:
            store(ddy, dropped(ddu * slope + ddw * value, keep, F32X2), inside, BF16_CVT)
        du = dy * (ddu * d2gelu(u, FORMULA, DTYPE, PTX, F32X2) + ddw * slope)
    if NEEDS_X:
        store(dx, du, inside, BF16_CVT)
    if NEEDS_OTHER:
        store(dother, dw, inside, BF16_CVT)
    return du, dw


@triton.jit(do_not_specialize=["partials", "size"])
def reduce_both_partials(
    partial_ptr,  # [partials, 2 size]
    sum_ptr,  # [size]
    other_sum_ptr,  # [size]
    partials, size,
    BF16_CVT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """`reduce_partials` of two vectors, whose partial sums lie next to each other."""
    col = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for first in range(0, partials, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < partials)[:, None] & (col < 2 * size)[None, :]
        total += load_raw(partial_ptr + row.to(tl.int64)[:, None] * (2 * size) + col[None, :], inside)
    sums = tl.sum(total, 0)
    store_sum(sum_ptr + col, sums, col < size, BF16_CVT)
    store_sum(other_sum_ptr + (col - size), sums, (col >= size) & (col < 2 * size), BF16_CVT)
