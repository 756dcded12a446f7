"""Kernels. Tensors are [batch, rows, cols], columns contiguous; the bias runs along "rows", "cols", or is "none".

Run-time widths and strides come in units of ALIGN elements: that is how the compiler knows which accesses may be wide.
UPPER case is known when compiling.
"""

import triton
import triton.language as tl

from ..formulas.device import INTERPRETED, d2gelu, dgelu, gelu

# Integers are not specialised on their values: no shape compiles a kernel for itself.
FORWARD_INTEGERS = ["batch", "rows", "cols", "row_tiles", "x_batch", "x_row", "y_batch", "y_row"]
BACKWARD_INTEGERS = [
    "batch", "rows", "cols", "segments", "slab_batches", "slab_steps",
    "dy_batch", "dy_row", "v_batch", "v_row", "x_batch", "x_row", "dx_batch", "dx_row",
]  # fmt: skip

TRANSPOSE_INTEGERS = ["batch", "rows", "cols", "col_tiles", "slab_batches", "x_batch", "x_row", "dy_batch", "dy_row"]


@triton.jit
def integer(n):
    """n as a tensor, even where a compiler has made a constant of a 1: Inductor minds no do_not_specialize."""
    return n + tl.full((), 0, tl.int32)


@triton.jit
def corner(ptr, batch, top, left, batch_stride, row_stride, ALIGN: tl.constexpr):
    """Where a tile begins: 64 bits away, for tensors of any size."""
    if ptr is None:
        return  # None: before Triton 3.7 a kernel can't spell that out
    else:
        return ptr + ((tl.cast(batch, tl.int64) * batch_stride + tl.cast(top, tl.int64) * row_stride) * ALIGN + left)


@triton.jit
def pointers(tile, row, col, row_stride, ALIGN: tl.constexpr):
    """The elements of a tile that begins at `tile`."""
    if tile is None:
        return
    elif ALIGN == 1:  # a thread has many pieces of a row: constants apart, where columns are added last
        return (tile + row * row_stride)[:, None] + col[None, :]
    else:  # one piece: the offset of each is shared by tensors alike
        return tile + ((row * (row_stride * ALIGN))[:, None] + col[None, :])


@triton.jit
def plain_nan(x, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """One NaN for all where DTYPE is rounded to by hand, which would make numbers of those with the most bits."""
    return tl.where(x == x, x, float("nan")) if ISA == 0 and DTYPE == tl.bfloat16 else x


@triton.jit
def widen(x, DTYPE: tl.constexpr, ISA: tl.constexpr, ALIGN: tl.constexpr):
    """Exactly the same in fp32, for a result of DTYPE."""
    if x.dtype != tl.bfloat16:
        return plain_nan(x.to(tl.float32), DTYPE, ISA)
    elif INTERPRETED:  # the interpreter's own conversion loses subnormals
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif ISA > 1 and ALIGN > 1:  # compilers take three instructions for a pair
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=&r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2
        )
    else:
        return x.to(tl.float32)


@triton.jit
def shift(x, bias, ISA: tl.constexpr, ALIGN: tl.constexpr):
    """x + bias in fp32."""
    if ISA == 3 and x.dtype != tl.float32:
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
        return widen(x, x.dtype, ISA, ALIGN) + bias


@triton.jit
def load_raw(ptr, inside):
    """A tile as it is stored, 0 outside; `inside` is None where nothing is."""
    if inside is None:
        return tl.load(ptr)
    else:
        return tl.load(ptr, mask=inside, other=0.0)


@triton.jit
def load(ptr, inside, DTYPE: tl.constexpr, ISA: tl.constexpr, ALIGN: tl.constexpr = 1):
    """A tile as fp32, for a result of DTYPE."""
    return widen(load_raw(ptr, inside), DTYPE, ISA, ALIGN)


@triton.jit
def store(ptr, y, inside, ISA: tl.constexpr):
    """Round fp32 to the nearest number of the tensor's type, ties to even."""
    if ISA == 0 and ptr.dtype.scalar.element_ty == tl.bfloat16:  # by hand, in half of what a compiler takes
        bits = y.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(ptr, bits.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=inside)
    else:
        tl.store(ptr, y.to(ptr.dtype.scalar.element_ty), mask=inside)


@triton.jit
def store_sum(ptr, y, inside, ISA: tl.constexpr):
    """The same, of a sum over tensors of any type."""
    store(ptr, plain_nan(y, ptr.dtype.scalar.element_ty, ISA), inside, ISA)


@triton.jit
def mask(row, col, rows, cols, EDGE: tl.constexpr):
    """Which elements of a tile the tensor has; None: all, as there are where it has no EDGE."""
    if EDGE:
        return (row < rows)[:, None] & (col < cols)[None, :]
    else:
        return


@triton.jit
def load_bias(
    bias_ptr, top, left, row, col, rows, cols,
    BIAS: tl.constexpr, DTYPE: tl.constexpr, ISA: tl.constexpr, EDGE: tl.constexpr = True,
):  # fmt: skip
    """The bias of a tile as fp32, ready to be broadcast."""
    if bias_ptr is None:
        return 0.0
    elif BIAS == "rows":
        return load(bias_ptr + top + row, row < rows - top if EDGE else None, DTYPE, ISA)[:, None]
    else:
        return load(bias_ptr + left + col, col < cols - left if EDGE else None, DTYPE, ISA)[None, :]


@triton.jit(do_not_specialize=FORWARD_INTEGERS)
def forward(
    x_ptr,  # [batch, rows, cols]
    bias_ptr,  # [rows] or [cols]
    y_ptr,  # [batch, rows, cols]
    batch, rows, cols, row_tiles, x_batch, x_row, y_batch, y_row,
    FORMULA: tl.constexpr, BIAS: tl.constexpr, ISA: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, BATCHED: tl.constexpr, FOLD: tl.constexpr, ALIKE: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """y = gelu(x + bias), one tile a program."""
    DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    rows = integer(rows)
    cols = tl.cast(cols, index) * ALIGN
    left = tl.program_id(0).to(index) * BLOCK_COLS
    number = tl.program_id(1) + tl.program_id(2) * FOLD
    if BATCHED:
        b = number // row_tiles
        top = (number - b * row_tiles).to(rows.dtype) * BLOCK_ROWS
        rows = tl.where(b < batch, rows, 0)
    else:
        b = 0
        top = number.to(rows.dtype) * BLOCK_ROWS
    DOWN: tl.constexpr = BLOCK_ROWS // PARTS  # from one part of the tile to the next
    RIGHT: tl.constexpr = 0 if DOWN else BLOCK_COLS // PARTS
    row = tl.arange(0, DOWN if DOWN else BLOCK_ROWS).to(index)
    col = tl.arange(0, RIGHT if RIGHT else BLOCK_COLS)
    if ALIKE:  # then offsets are computed once
        y_batch, y_row = x_batch, x_row
    x = pointers(corner(x_ptr, b, top, left, x_batch, x_row, ALIGN), row, col, x_row, ALIGN)
    y = pointers(corner(y_ptr, b, top, left, y_batch, y_row, ALIGN), row, col, y_row, ALIGN)
    x_step = tl.cast(x_row, index) * (DOWN * ALIGN) + RIGHT
    y_step = tl.cast(y_row, index) * (DOWN * ALIGN) + RIGHT
    whole = (top <= rows - BLOCK_ROWS) & (left <= cols - BLOCK_COLS)  # no sum here is past 2^31
    for EDGE in tl.static_range(2):
        if whole != (EDGE == 1):
            # All of x is on its way before any is waited for; y leaves part by part, so that few registers are taken.
            xs = ()
            biases = ()
            for i in tl.static_range(PARTS):
                r = row + i * DOWN
                c = col + i * RIGHT
                inside = mask(r, c, rows - top, cols - left, EDGE)
                xs += (load_raw(x + i * x_step, inside),)
                biases += (load_bias(bias_ptr, top, left, r, c, rows, cols, BIAS, DTYPE, ISA, EDGE),)
            for i in tl.static_range(PARTS):
                inside = mask(row + i * DOWN, col + i * RIGHT, rows - top, cols - left, EDGE)
                z = gelu(shift(xs[i], biases[i], ISA, ALIGN), FORMULA, DTYPE, ISA)
                store(y + i * y_step, z, inside, ISA)


@triton.jit
def dgelu_part(
    dy, v, vbias, x, bias, ddy, dx, inside, DTYPE: tl.constexpr,
    FORMULA: tl.constexpr, ISA: tl.constexpr, ALIGN: tl.constexpr, NEEDS_DY: tl.constexpr, NEEDS_X: tl.constexpr,
):  # fmt: skip
    """Stores ddy and dx, and returns what dbias is the sum of."""
    u = shift(x, bias, ISA, ALIGN)
    slope = widen(dy, DTYPE, ISA, ALIGN)
    if v is None:
        slope *= dgelu(u, FORMULA, DTYPE, ISA)
    else:
        v = load(v, inside, DTYPE, ISA, ALIGN) + vbias
        if NEEDS_DY:
            store(ddy, v * dgelu(u, FORMULA, DTYPE, ISA), inside, ISA)
        slope *= v * d2gelu(u, FORMULA, DTYPE, ISA)
    if NEEDS_X:
        store(dx, slope, inside, ISA)
    return slope


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
    FORMULA: tl.constexpr, BIAS: tl.constexpr, ISA: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
    ALIKE: tl.constexpr, NEEDS_DY: tl.constexpr, NEEDS_X: tl.constexpr, NEEDS_BIAS: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """dx = dy * gelu'(u), u = x + bias, and its sums, in one pass.

    In the second backward pass v + vbias is the gradient of that: ddy = v * gelu'(u), dx = v * dy * gelu''(u).

    A program stays on one tile of the bias and walks the other axis, within its slab of batches and of that axis; it
    leaves the sum over its slab behind in fp32.
    """
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    rows = integer(rows)
    cols = tl.cast(cols, index) * ALIGN
    if ALIKE:  # then offsets are computed once
        dy_batch, dy_row, v_batch, v_row, dx_batch, dx_row = x_batch, x_row, x_batch, x_row, x_batch, x_row
    slab = tl.program_id(1)
    first_batch = slab // segments * slab_batches
    row = tl.arange(0, BLOCK_ROWS).to(index)
    col = tl.arange(0, BLOCK_COLS).to(index)
    DOWN: tl.constexpr = 0 if BIAS == "rows" else BLOCK_ROWS
    RIGHT: tl.constexpr = BLOCK_COLS if BIAS == "rows" else 0
    STEP: tl.constexpr = PARTS * (DOWN + RIGHT)
    if BIAS == "rows":
        top = tl.program_id(0) * BLOCK_ROWS
        left = (slab % segments * slab_steps).to(index) * STEP
        steps = tl.minimum(slab_steps, tl.cdiv(cols - left, STEP))
        whole = tl.where(top <= rows - BLOCK_ROWS, tl.minimum(slab_steps, (cols - left) // STEP), 0)
    else:
        top = (slab % segments * slab_steps).to(rows.dtype) * STEP
        left = tl.program_id(0).to(index) * BLOCK_COLS
        steps = tl.minimum(slab_steps, tl.cdiv(rows - top, STEP))
        whole = tl.where(left <= cols - BLOCK_COLS, tl.minimum(slab_steps, (rows - top) // STEP), 0)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    bias = load_bias(bias_ptr, top, left, row, col, rows, cols, BIAS, DTYPE, ISA) + 0.0  # never -0: nor is a sum then
    vbias = load_bias(vbias_ptr, top, left, row, col, rows, cols, BIAS, DTYPE, ISA)

    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for b in range(first_batch, tl.minimum(first_batch + slab_batches, batch)):
        dy_tile = corner(dy_ptr, b, top, left, dy_batch, dy_row, ALIGN)
        x_tile = corner(x_ptr, b, top, left, x_batch, x_row, ALIGN)
        dx_tile = corner(dx_ptr, b, top, left, dx_batch, dx_row, ALIGN)
        v_tile = corner(v_ptr, b, top, left, v_batch, v_row, ALIGN)
        ddy_tile = corner(ddy_ptr, b, top, left, dx_batch, dx_row, ALIGN)
        for EDGE in tl.static_range(2):  # whole tiles, which need no mask, then the others
            for step in range(whole if EDGE else 0, steps if EDGE else whole):
                xs = ()
                dys = ()
                for i in tl.static_range(PARTS):  # all are on their way before any is waited for
                    r = row + (step * PARTS + i) * DOWN
                    c = col + (step * PARTS + i) * RIGHT
                    inside = mask(r, c, rows - top, cols - left, EDGE)
                    xs += (load_raw(pointers(x_tile, r, c, x_row, ALIGN), inside),)
                    dys += (load_raw(pointers(dy_tile, r, c, dy_row, ALIGN), inside),)
                for i in tl.static_range(PARTS):
                    r = row + (step * PARTS + i) * DOWN
                    c = col + (step * PARTS + i) * RIGHT
                    total += dgelu_part(
                        dys[i], pointers(v_tile, r, c, v_row, ALIGN), vbias, xs[i], bias,
                        pointers(ddy_tile, r, c, dx_row, ALIGN), pointers(dx_tile, r, c, dx_row, ALIGN),
                        mask(r, c, rows - top, cols - left, EDGE), DTYPE, FORMULA, ISA, ALIGN, NEEDS_DY, NEEDS_X,
                    )  # fmt: skip

    if NEEDS_BIAS:
        if BIAS == "rows":
            row += top
            store_sum(partial_ptr + tl.cast(slab, tl.int64) * rows + row, tl.sum(total, 1), row < rows, ISA)
        else:
            col += left
            store_sum(partial_ptr + tl.cast(slab, tl.int64) * cols + col, tl.sum(total, 0), col < cols, ISA)


@triton.jit
def place_transpose(
    batch, rows, cols, col_tiles, slab_batches,
    ALIGN: tl.constexpr, ACROSS: tl.constexpr, WIDE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """A program's tile, the same in every batch of its slab; the numbers of those batches; the insides of x and y."""
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    tile = tl.program_id(0)
    top = (tile // col_tiles).to(index) * BLOCK_ROWS
    left = (tile % col_tiles).to(index) * BLOCK_COLS
    row = tl.arange(0, BLOCK_ROWS).to(index)
    col = tl.arange(0, BLOCK_COLS).to(index)
    first = tl.program_id(1) * slab_batches
    last = tl.minimum(first + slab_batches, batch)
    rows, cols = rows.to(index) * ACROSS, cols.to(index) * ALIGN
    down, right = row < rows - top, col < cols - left
    return rows, cols, top, left, row, col, first, last, down[:, None] & right[None, :], right[:, None] & down[None, :]


@triton.jit(do_not_specialize=TRANSPOSE_INTEGERS)
def forward_transpose(
    x_ptr,  # [batch, rows, cols]
    bias_ptr,  # [rows], or None
    position_ptr,  # [cols, rows], contiguous, or None
    y_ptr,  # [batch, cols, rows], contiguous
    batch, rows, cols, col_tiles, slab_batches, x_batch, x_row,
    FORMULA: tl.constexpr, ISA: tl.constexpr, ALIGN: tl.constexpr, ACROSS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """y = gelu(x + bias) with its rows as columns, plus position. Sizes along a row of y come in units of ACROSS."""
    y_row = rows
    rows, cols, top, left, row, col, first, last, inside, inside_y = place_transpose(
        batch, rows, cols, col_tiles, slab_batches, ALIGN, ACROSS, WIDE, BLOCK_ROWS, BLOCK_COLS
    )
    DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    bias = load_bias(bias_ptr, left, top, col, row, cols, rows, "cols", DTYPE, ISA)
    if position_ptr is not None:
        position = corner(position_ptr, 0, left, top, 0, y_row, ACROSS)
        position = load(pointers(position, col, row, y_row, ACROSS), inside_y, DTYPE, ISA, ACROSS)
    for b in range(first, last):
        x = pointers(corner(x_ptr, b, top, left, x_batch, x_row, ALIGN), row, col, x_row, ALIGN)
        # Widened by the compiler, x is turned before that: in half the memory, and after all loads are on their way.
        u = shift(tl.trans(load_raw(x, inside)), bias, 0, ACROSS)
        y = gelu(u, FORMULA, DTYPE, ISA)
        if position_ptr is not None:
            y += position
        y_tile = corner(y_ptr, b, left, top, cols.to(tl.int64) * y_row, y_row, ACROSS)
        store(pointers(y_tile, col, row, y_row, ACROSS), y, inside_y, ISA)


@triton.jit(do_not_specialize=TRANSPOSE_INTEGERS)
def backward_transpose(
    dy_ptr,  # [batch, cols, rows]
    x_ptr,  # [batch, rows, cols]
    bias_ptr,  # [rows], or None
    dx_ptr,  # [batch, rows, cols], contiguous, or None
    partial_ptr,  # [slabs, rows], a slab for each tile of columns and slab of batches, or None
    batch, rows, cols, col_tiles, slab_batches, x_batch, x_row, dy_batch, dy_row,
    FORMULA: tl.constexpr, ISA: tl.constexpr, ALIGN: tl.constexpr, ACROSS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """dx = gelu'(x + bias) times dy with its rows as columns, and the sums of that over the programs' tiles."""
    dx_row = cols
    rows, cols, top, left, row, col, first, last, inside, inside_dy = place_transpose(
        batch, rows, cols, col_tiles, slab_batches, ALIGN, ACROSS, WIDE, BLOCK_ROWS, BLOCK_COLS
    )
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    bias = load_bias(bias_ptr, top, left, row, col, rows, cols, "rows", DTYPE, ISA) + 0.0  # never -0
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for b in range(first, last):
        # dy comes first: of two layouts the compiler keeps that of the later load, so that dy alone is moved.
        dy = pointers(corner(dy_ptr, b, left, top, dy_batch, dy_row, ACROSS), col, row, dy_row, ACROSS)
        dy = tl.trans(load_raw(dy, inside_dy))
        x = pointers(corner(x_ptr, b, top, left, x_batch, x_row, ALIGN), row, col, x_row, ALIGN)
        u = shift(load_raw(x, inside), bias, ISA, ALIGN)
        slope = widen(dy, DTYPE, ISA, ALIGN) * dgelu(u, FORMULA, DTYPE, ISA)
        if dx_ptr is not None:
            dx = corner(dx_ptr, b, top, left, rows.to(tl.int64) * dx_row, dx_row, ALIGN)
            store(pointers(dx, row, col, dx_row, ALIGN), slope, inside, ISA)
        total += slope
    if partial_ptr is not None:
        slab = tl.program_id(1).to(tl.int64) * col_tiles + tl.program_id(0) % col_tiles
        store_sum(partial_ptr + slab * rows + top + row, tl.sum(total, 1), row < rows - top, ISA)


@triton.jit(do_not_specialize=["slabs", "size"])
def finish(
    partial_ptr,  # [slabs, size]
    dbias_ptr,  # [size]
    slabs, size,
    ISA: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """dbias = the sum of all slabs, always in the same order."""
    col = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for first in range(0, slabs, BLOCK_ROWS):
        slab = first + tl.arange(0, BLOCK_ROWS)
        inside = (slab < slabs)[:, None] & (col < size)[None, :]
        total += load_raw(partial_ptr + slab.to(tl.int64)[:, None] * size + col[None, :], inside)
    store_sum(dbias_ptr + col, tl.sum(total, 0), col < size, ISA)


KERNELS = (forward, backward)
