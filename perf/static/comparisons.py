"""Kernels to compare with, written as formulas are usually written down, and named for what they are.

"flat index" goes through the elements in one dimension and finds the bias by division, as generated code does; "one
pass" has our shape of kernel, a tile of rows and columns, so that only the formula differs.
"""

import functools
import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from perf.cases import Case
from perf.static.offline import META, Call
from triton_gelu.formulas import SIGMOID, TANH

SQRT_HALF = tl.constexpr(math.sqrt(0.5))
DENSITY = tl.constexpr(1 / math.sqrt(2 * math.pi))
SCALE = tl.constexpr(math.sqrt(2 / math.pi))
CUBIC = tl.constexpr(TANH.bend)
QUICK = tl.constexpr(SIGMOID.linear)

FLAT_BLOCK = 1024
FORWARD_TILE = (4, 1024)
BACKWARD_TILE = (2, 1024)
SUM_TILE = (16, 128)
ROWS_PER_PARTIAL = 128  # rows of one partial sum
DIVISIBLE = 16
DTYPES = ("bfloat16",)  # one is enough to compare formulas with
FUNCTIONS = {"none": "libdevice.erf", "tanh": "libdevice.tanh", "sigmoid": "tl.sigmoid"}


@triton.jit
def gelu(u, FORMULA: tl.constexpr):
    if FORMULA == "none":
        gate = 0.5 * (1 + libdevice.erf(u * SQRT_HALF))
    elif FORMULA == "tanh":
        gate = 0.5 * (1 + libdevice.tanh(SCALE * (u + CUBIC * u * u * u)))
    elif FORMULA == "sigmoid":
        gate = tl.sigmoid(u * QUICK)
    else:
        tl.static_assert(False, f"there is no comparison kernel for formula '{FORMULA}'")
    return u * gate


@triton.jit
def dgelu(u, FORMULA: tl.constexpr):
    if FORMULA == "none":
        gate = 0.5 * (1 + libdevice.erf(u * SQRT_HALF))
        slope = DENSITY * tl.exp(-0.5 * u * u)
    elif FORMULA == "tanh":
        t = libdevice.tanh(SCALE * (u + CUBIC * u * u * u))
        gate = 0.5 * (1 + t)
        slope = 0.5 * (1 - t * t) * SCALE * (1 + 3 * CUBIC * u * u)
    elif FORMULA == "sigmoid":
        gate = tl.sigmoid(u * QUICK)
        slope = QUICK * gate * (1 - gate)
    else:
        tl.static_assert(False, f"there is no comparison kernel for formula '{FORMULA}'")
    return gate + u * slope


@triton.jit
def flat_forward(
    x_ptr, bias_ptr, y_ptr, n, C: tl.constexpr, INNER: tl.constexpr, FORMULA: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    u = tl.load(x_ptr + i, i < n).to(tl.float32) + tl.load(bias_ptr + i // INNER % C, i < n).to(tl.float32)
    tl.store(y_ptr + i, gelu(u, FORMULA).to(y_ptr.dtype.element_ty), i < n)


@triton.jit
def flat_dx(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, n, C: tl.constexpr, INNER: tl.constexpr, FORMULA: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    u = tl.load(x_ptr + i, i < n).to(tl.float32) + tl.load(bias_ptr + i // INNER % C, i < n).to(tl.float32)
    dx = tl.load(dy_ptr + i, i < n).to(tl.float32) * dgelu(u, FORMULA)
    tl.store(dx_ptr + i, dx.to(dx_ptr.dtype.element_ty), i < n)


@triton.jit
def column_sums(
    from_ptr, to_ptr, rows, cols, PARTIAL_ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr
):
    """Sums of PARTIAL_ROWS rows each: from [rows, cols] to [rows / PARTIAL_ROWS, cols]."""
    col = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    start = tl.program_id(1) * PARTIAL_ROWS
    for first in range(start, tl.minimum(start + PARTIAL_ROWS, rows), BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < rows)[:, None] & (col < cols)[None, :]
        total += tl.load(from_ptr + row[:, None] * cols + col[None, :], inside, other=0.0).to(tl.float32)
    tl.store(to_ptr + tl.program_id(1) * cols + col, tl.sum(total, 0).to(to_ptr.dtype.element_ty), col < cols)


@triton.jit
def tile_forward(
    x_ptr, bias_ptr, y_ptr, rows, cols, FORMULA: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr
):
    col = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    place = row[:, None] * cols + col[None, :]
    bias = tl.load(bias_ptr + col, col < cols).to(tl.float32)
    u = tl.load(x_ptr + place, inside).to(tl.float32) + bias[None, :]
    tl.store(y_ptr + place, gelu(u, FORMULA).to(y_ptr.dtype.element_ty), inside)


@triton.jit
def tile_backward(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, partial_ptr, rows, cols,
    FORMULA: tl.constexpr, PARTIAL_ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    col = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    bias = tl.load(bias_ptr + col, col < cols).to(tl.float32)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    start = tl.program_id(1) * PARTIAL_ROWS
    for first in range(start, tl.minimum(start + PARTIAL_ROWS, rows), BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < rows)[:, None] & (col < cols)[None, :]
        place = row[:, None] * cols + col[None, :]
        u = tl.load(x_ptr + place, inside, other=0.0).to(tl.float32) + bias[None, :]
        dx = tl.load(dy_ptr + place, inside, other=0.0).to(tl.float32) * dgelu(u, FORMULA)
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), inside)
        total += dx
    tl.store(partial_ptr + tl.program_id(1) * cols + col, tl.sum(total, 0), col < cols)


@triton.jit
def gated_forward(
    x_ptr, w_ptr, bias_ptr, wbias_ptr, y_ptr, rows, cols, x_row,
    FORMULA: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    col = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    place = row[:, None] * x_row + col[None, :]
    u = tl.load(x_ptr + place, inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + place, inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        u += tl.load(bias_ptr + col, col < cols).to(tl.float32)[None, :]
        w += tl.load(wbias_ptr + col, col < cols).to(tl.float32)[None, :]
    y = gelu(u, FORMULA) * w
    tl.store(y_ptr + row[:, None] * cols + col[None, :], y.to(y_ptr.dtype.element_ty), inside)


@triton.jit
def gated_backward(
    dy_ptr, x_ptr, w_ptr, bias_ptr, wbias_ptr, dx_ptr, dw_ptr, partial_ptr, rows, cols, x_row,
    FORMULA: tl.constexpr, PARTIAL_ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """The sums of both gradients lie next to each other in rows of partial sums."""
    col = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    bias = tl.zeros([BLOCK_COLS], tl.float32)
    wbias = tl.zeros([BLOCK_COLS], tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + col, col < cols).to(tl.float32)
        wbias = tl.load(wbias_ptr + col, col < cols).to(tl.float32)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    wtotal = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    start = tl.program_id(1) * PARTIAL_ROWS
    for first in range(start, tl.minimum(start + PARTIAL_ROWS, rows), BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < rows)[:, None] & (col < cols)[None, :]
        place = row[:, None] * x_row + col[None, :]
        u = tl.load(x_ptr + place, inside, other=0.0).to(tl.float32) + bias[None, :]
        w = tl.load(w_ptr + place, inside, other=0.0).to(tl.float32) + wbias[None, :]
        dy = tl.load(dy_ptr + row[:, None] * cols + col[None, :], inside, other=0.0).to(tl.float32)
        dx = dy * w * dgelu(u, FORMULA)
        dw = dy * gelu(u, FORMULA)
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), inside)
        tl.store(dw_ptr + place, dw.to(dw_ptr.dtype.element_ty), inside)
        total += dx
        wtotal += dw
    if partial_ptr is not None:
        partial = partial_ptr + tl.program_id(1) * 2 * cols + col
        tl.store(partial, tl.sum(total, 0), col < cols)
        tl.store(partial + cols, tl.sum(wtotal, 0), col < cols)


def flat(case: Case) -> Call:
    """One dimension; backward writes dx, then sums it: the sum is of rounded values, and reads them again."""
    x, bias = _tensors(case)
    n, channels = case.elements, case.bias_length
    inner = math.prod(case.shape[case.dim % len(case.shape) + 1 :])
    grid = (triton.cdiv(n, FLAT_BLOCK),)
    if case.direction == "forward":
        return lambda: flat_forward[grid](x, bias, x, n, channels, inner, case.approximate, FLAT_BLOCK)

    def backward() -> None:
        flat_dx[grid](x, x, bias, x, n, channels, inner, case.approximate, FLAT_BLOCK)
        rows = n // channels
        partial = _partial(rows, channels)
        _sum(x, partial, rows, channels, ROWS_PER_PARTIAL)
        _sum(partial, bias, len(partial), channels, len(partial))

    return backward


def one_pass(case: Case) -> Call:
    """A tile of rows and columns; backward leaves partial sums behind."""
    x, bias = _tensors(case)
    channels = case.bias_length
    rows = case.elements // channels

    def forward() -> None:
        height, width = FORWARD_TILE
        grid = (triton.cdiv(channels, width), triton.cdiv(rows, height))
        tile_forward[grid](x, bias, x, rows, channels, case.approximate, height, width)

    def backward() -> None:
        height, width = BACKWARD_TILE
        partial = _partial(rows, channels)
        grid = (triton.cdiv(channels, width), len(partial))
        tile_backward[grid](x, x, bias, x, partial, rows, channels, case.approximate, ROWS_PER_PARTIAL, height, width)
        _sum(partial, bias, len(partial), channels, len(partial))

    return backward if case.direction == "backward" else forward


def forward_calls(case: Case) -> dict[str, Callable[..., torch.Tensor]]:
    """The comparison kernels as functions of x and bias on a GPU that is here, named as `rivals` names them."""
    n, channels, name = case.elements, case.bias_length, FUNCTIONS[case.approximate]
    height, width = FORWARD_TILE

    def flat_index(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        flat_forward[(triton.cdiv(n, FLAT_BLOCK),)](x, bias, y, n, channels, 1, case.approximate, FLAT_BLOCK)
        return y

    def in_tiles(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y, rows = torch.empty_like(x), n // channels
        grid = (triton.cdiv(channels, width), triton.cdiv(rows, height))
        tile_forward[grid](x, bias, y, rows, channels, case.approximate, height, width)
        return y

    assert case.dim == -1, "the bias of these lies along the last dimension"
    return {f"{name}, flat index": flat_index, f"{name}, one pass": in_tiles}


def rivals(case: Case) -> dict[str, Call]:
    """The comparison kernels that can do a case, by name; there are none of a second backward pass."""
    if case.direction == "double_backward":
        return {}
    if case.transposed or case.dtype not in DTYPES or case.approximate not in FUNCTIONS:
        return {}
    if case.gated:
        return gated_rivals(case)
    if case.dim is None:
        return {}
    function = FUNCTIONS[case.approximate]
    found = {}
    last = case.dim % len(case.shape) == len(case.shape) - 1
    if case.direction == "forward":
        found[f"{function}, flat index"] = flat(case)
    elif last:
        found[f"{function}, flat index, dx, then a separate dbias sum"] = flat(case)
    if last and case.bias_length % DIVISIBLE == 0:  # else it would show how we treat other widths, not the formula
        found[f"{function}, one pass"] = one_pass(case)
    return found


def gated_rivals(case: Case) -> dict[str, Call]:
    """The same of gated GELUs along the last dimension; and, where there is no bias, in the shape of Liger's kernel.

    There a program computes a row, as one block, and no bias.
    """
    cols = case.shape[-1]
    if case.dim is not None and case.dim % len(case.shape) != len(case.shape) - 1:
        return {}
    rows, dtype = case.elements // cols, case.torch_dtype
    y, whole = (torch.empty(shape, dtype=dtype, device=META) for shape in (case.shape, case.x_shape))
    x, w = whole.chunk(2, -1) if case.joined else (whole, y)
    bias = None if case.dim is None else torch.empty(cols, dtype=dtype, device=META)
    sums = torch.empty(2 * cols, dtype=dtype, device=META)

    def forward(height: int, width: int) -> None:
        grid = triton.cdiv(cols, width), triton.cdiv(rows, height)
        gated_forward[grid](x, w, bias, bias, y, rows, cols, whole.shape[-1], case.approximate, height, width)

    def backward(height: int, width: int, steps: int) -> None:
        partial = None if bias is None else _partial(rows, 2 * cols)
        grid = triton.cdiv(cols, width), triton.cdiv(rows, steps)
        gated_backward[grid](
            y, x, w, bias, bias, x, w, partial, rows, cols, whole.shape[-1], case.approximate, steps, height, width
        )
        if partial is not None:
            _sum(partial, sums, len(partial), 2 * cols, len(partial))

    tiles: dict[str, tuple[int, ...]] = {"one pass": FORWARD_TILE}
    function: Callable[..., None] = forward
    if case.direction == "backward":
        tiles, function = {"one pass": (*BACKWARD_TILE, ROWS_PER_PARTIAL)}, backward
    if bias is None:
        row = triton.next_power_of_2(cols)
        tiles["a row a program, as Liger's"] = (1, row) if function is forward else (1, row, 1)
    name = FUNCTIONS[case.approximate]
    return {f"{name}, {how}": functools.partial(function, *tile) for how, tile in tiles.items()}


def _tensors(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.empty(case.shape, dtype=case.torch_dtype, device=META)
    return x, torch.empty(case.bias_length, dtype=case.torch_dtype, device=META)


def _partial(rows: int, channels: int) -> torch.Tensor:
    return torch.empty(triton.cdiv(rows, ROWS_PER_PARTIAL), channels, dtype=torch.float32, device=META)


def _sum(source: torch.Tensor, to: torch.Tensor, rows: int, channels: int, partial_rows: int) -> None:
    height, width = SUM_TILE
    grid = (triton.cdiv(channels, width), triton.cdiv(rows, partial_rows))
    column_sums[grid](source, to, rows, channels, partial_rows, height, width)
