"""What all kernels share: where a tile's elements are, loading them as float32, storing float32, adding partial sums.

Tensors are [batch, rows, cols], columns contiguous. Run-time widths and strides come in units of ALIGN elements: that
is how the compiler knows which accesses may be wide. Of capabilities, PTX allows NVIDIA's inline assembly, F32X2 the
instructions of sm_100, and BF16_CVT says that rounding to bfloat16 is an instruction (targets.py says which GPU has
which).
"""

import triton
import triton.language as tl

from .arithmetic import INTERPRETED


@triton.jit
def integer(n):
    """n as a tensor, even where a compiler has made a constant of a 1: Inductor ignores do_not_specialize."""
    return n + tl.full((), 0, tl.int32)


@triton.jit
def corner(ptr, batch, top, left, batch_stride, row_stride, ALIGN: tl.constexpr):
    """The address of a tile's first element, computed in 64 bits: tensors may have any size."""
    if ptr is None:
        return  # None: before Triton 3.7 a kernel can't spell that out
    else:
        return ptr + ((tl.cast(batch, tl.int64) * batch_stride + tl.cast(top, tl.int64) * row_stride) * ALIGN + left)


@triton.jit
def pointers(tile, row, col, row_stride, ALIGN: tl.constexpr):
    """The addresses of the elements of a tile whose first one is at `tile`."""
    if tile is None:
        return
    elif ALIGN == 1:  # a thread has many pieces of a row: constants apart, where columns are added last
        return (tile + row * row_stride)[:, None] + col[None, :]
    else:  # one piece: the offset of each is shared by tensors with the same strides
        return tile + ((row * (row_stride * ALIGN))[:, None] + col[None, :])


@triton.jit
def mask(row, col, rows, cols, MASKED: tl.constexpr):
    """Which elements of a tile lie inside the tensor; None where all do, as in a tile that is not MASKED."""
    if MASKED:
        return (row < rows)[:, None] & (col < cols)[None, :]
    else:
        return


@triton.jit
def to_float32(x, ALIGN: tl.constexpr, PTX: tl.constexpr):
    """The same numbers in float32: exact, except for float64."""
    if x.dtype == tl.bfloat16:
        if INTERPRETED:  # the interpreter's own conversion loses subnormals
            return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
        elif PTX and ALIGN > 1:  # compilers take three instructions for a pair
            return tl.inline_asm_elementwise(
                "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
                "=&r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            return x.to(tl.float32)
    elif x.dtype == tl.float16 or x.dtype == tl.float32 or x.dtype == tl.float64:
        return x.to(tl.float32)
    else:
        tl.static_assert(False, f"tensors of type {x.dtype} are not known to the kernels")


@triton.jit
def one_nan(x, DTYPE: tl.constexpr, BF16_CVT: tl.constexpr):
    """One NaN for all that `store` will round to DTYPE by hand: of a NaN with many bits that would make a number."""
    return tl.where(x == x, x, float("nan")) if DTYPE == tl.bfloat16 and not BF16_CVT else x


@triton.jit
def widen(x, DTYPE: tl.constexpr, ALIGN: tl.constexpr, PTX: tl.constexpr, BF16_CVT: tl.constexpr):
    """`to_float32` for a result of DTYPE."""
    if x.dtype == tl.bfloat16:  # its NaNs are rounded to themselves
        return to_float32(x, ALIGN, PTX)
    else:
        return one_nan(to_float32(x, ALIGN, PTX), DTYPE, BF16_CVT)


@triton.jit
def add_bias(x, bias, ALIGN: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr):
    """x + bias in float32, where bias is float32."""
    if F32X2 and (x.dtype == tl.bfloat16 or x.dtype == tl.float16):
        KIND: tl.constexpr = "bf16" if x.dtype == tl.bfloat16 else "f16"
        if ALIGN == 1:
            return tl.inline_asm_elementwise(
                "add.f32." + KIND + " $0, $1, $2;", "=f,h,f", [x, bias], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            return tl.inline_asm_elementwise(
                "{.reg .b16 x, y; mov.b32 {x, y}, $2;"
                " add.f32." + KIND + " $0, x, $3; add.f32." + KIND + " $1, y, $4;}",
                "=&f,=f,r,f,f", [x, bias], dtype=tl.float32, is_pure=True, pack=2,
            )  # fmt: skip
    else:
        return to_float32(x, ALIGN, PTX) + bias


@triton.jit
def load_raw(ptr, inside, VOLATILE: tl.constexpr = False):
    """A tile in the tensor's type, 0 outside of the tensor; `inside` is None where no element is outside.

    Compilers leave VOLATILE loads in their order.
    """
    if inside is None:
        return tl.load(ptr, volatile=VOLATILE)
    else:
        return tl.load(ptr, mask=inside, other=0.0, volatile=VOLATILE)


@triton.jit
def never(batch, rows, cols):
    """A zero that no compiler can know: no size is negative. (Some know sizes that are 1.)"""
    return ((integer(batch) < 0) | (rows < 0) | (cols < 0)).to(tl.int16)


@triton.jit
def tie(xs, ys, zero, ALIGN: tl.constexpr):
    """`xs`, the first of which is computed from every access of `xs` and `ys`: x | ((all others) & zero), bit by bit.

    So no compiler can put off any of their loads behind the arithmetic on the first (core/in_flight.py). A thread has
    four registers of each tile, and of those that came with one access it takes the first. Numbers keep all their bits.
    """
    if INTERPRETED:
        return xs
    first = xs[0]
    BITS: tl.constexpr = first.dtype.primitive_bitwidth
    tl.static_assert(BITS == 16 or BITS == 32, f"tiles of type {first.dtype} can't be tied together")
    zeros = zero if BITS == 16 else zero.to(tl.int32)
    KIND: tl.constexpr = "r" if BITS == 16 else "f"
    FOUR: tl.constexpr = "," + KIND + "," + KIND + "," + KIND + "," + KIND
    RESULTS: tl.constexpr = "=&" + KIND + ",=&" + KIND + ",=&" + KIND + ",=&" + KIND
    PACK: tl.constexpr = 4 * 32 // BITS
    if ALIGN * BITS >= 128:
        OR: tl.constexpr = "or.b32 $0, $4, $8; mov.b32 $1, $5; mov.b32 $2, $6; mov.b32 $3, $7;"
        ALL: tl.constexpr = "and.b32 t, $8, $12;"
    elif ALIGN * BITS == 64:
        OR: tl.constexpr = "or.b32 $0, $4, $8; mov.b32 $1, $5; or.b32 $2, $6, $10; mov.b32 $3, $7;"
        ALL: tl.constexpr = "or.b32 t, $8, $10; or.b32 t, t, $4; or.b32 t, t, $6; and.b32 t, t, $12;"
    else:
        OR: tl.constexpr = "or.b32 $0, $4, $8; or.b32 $1, $5, $9; or.b32 $2, $6, $10; or.b32 $3, $7, $11;"
        ALL: tl.constexpr = (
            "or.b32 t, $8, $9; or.b32 t, t, $10; or.b32 t, t, $11;"
            " or.b32 t, t, $4; or.b32 t, t, $5; or.b32 t, t, $6; or.b32 t, t, $7; and.b32 t, t, $12;"
        )
    LAST: tl.constexpr = len(xs) + len(ys) - 1
    others = (xs + ys)[LAST]  # the last first: else it may come after those that are there already
    for i in tl.static_range(1, LAST):
        others = tl.inline_asm_elementwise(
            OR, RESULTS + FOUR + FOUR, [others, (xs + ys)[LAST - i]], dtype=first.dtype, is_pure=True, pack=PACK
        )
    first = tl.inline_asm_elementwise(
        "{.reg .b32 t; " + ALL + " or.b32 $0, $4, t; or.b32 $1, $5, t; or.b32 $2, $6, t; or.b32 $3, $7, t;}",
        RESULTS + FOUR + FOUR + ",r,r,r,r", [first, others, zeros], dtype=first.dtype, is_pure=True, pack=PACK,
    )  # fmt: skip
    tied = (first,)
    for i in tl.static_range(1, len(xs)):
        tied += (xs[i],)
    return tied


@triton.jit
def load(ptr, inside, DTYPE: tl.constexpr, ALIGN: tl.constexpr, PTX: tl.constexpr, BF16_CVT: tl.constexpr):
    """A tile as float32, for a result of DTYPE."""
    return widen(load_raw(ptr, inside), DTYPE, ALIGN, PTX, BF16_CVT)


@triton.jit
def load_vector(
    ptr, top, left, row, col, rows, cols,
    AXIS: tl.constexpr, DTYPE: tl.constexpr, BF16_CVT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A tile's part of a vector along its "rows" or "cols", as float32 ready to be broadcast; 0 if there is none."""
    if ptr is None:
        return 0.0
    elif AXIS == "rows":
        return load(ptr + top + row, row < rows - top if MASKED else None, DTYPE, 1, False, BF16_CVT)[:, None]
    elif AXIS == "cols":
        return load(ptr + left + col, col < cols - left if MASKED else None, DTYPE, 1, False, BF16_CVT)[None, :]
    else:
        tl.static_assert(False, f"a vector lies along 'rows' or 'cols', not '{AXIS}'")


@triton.jit
def store(ptr, y, inside, BF16_CVT: tl.constexpr):
    """Round float32 to the nearest number of the tensor's type, ties to even, and store it."""
    DTYPE: tl.constexpr = ptr.dtype.scalar.element_ty
    if DTYPE == tl.bfloat16 and not BF16_CVT:  # by hand, in half of what a compiler takes
        bits = y.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(ptr, bits.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=inside)
    elif DTYPE == tl.bfloat16 or DTYPE == tl.float16 or DTYPE == tl.float32 or DTYPE == tl.float64:
        tl.store(ptr, y.to(DTYPE), mask=inside)
    else:
        tl.static_assert(False, f"tensors of type {DTYPE} are not known to the kernels")


@triton.jit
def store_sum(ptr, y, inside, BF16_CVT: tl.constexpr):
    """`store` of a sum over tensors of any type, whose NaNs may have any bits."""
    store(ptr, one_nan(y, ptr.dtype.scalar.element_ty, BF16_CVT), inside, BF16_CVT)


@triton.jit(do_not_specialize=["partials", "size"])
def reduce_partials(
    partial_ptr,  # [partials, size]
    sum_ptr,  # [size]
    partials, size,
    BF16_CVT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """The sum of all rows of partial sums, always in the same order."""
    col = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for first in range(0, partials, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < partials)[:, None] & (col < size)[None, :]
        total += load_raw(partial_ptr + row.to(tl.int64)[:, None] * size + col[None, :], inside)
    store_sum(sum_ptr + col, tl.sum(total, 0), col < size, BF16_CVT)
