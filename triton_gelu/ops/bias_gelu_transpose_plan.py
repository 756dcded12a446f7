"""The launch plans of `bias_gelu_transpose`: tiles, grids and partial sums, by shape and GPU.

Behind them are pure functions of shape, strides, formula and target. `tiles` chooses what a program computes and how
the batches are shared out; both passes follow it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..core.matrices import Ints
from ..core.plan import ALIGN, PARTIALS, Backward, Launch, Partials, Plan, Step, cdiv, num_warps, power_of_two, reduce
from ..core.targets import Target


@dataclass(frozen=True)
class Most:
    """The largest tile of a pass, rows and columns, and its warps (of 32 threads)."""

    rows: int
    cols: int
    warps: int


FORWARD, BACKWARD = Most(64, 128, 8), Most(32, 64, 4)
PROGRAMS_PER_PROCESSOR = 16  # a few waves


@dataclass(frozen=True)
class Tiles:
    """Tiles of `rows` x `cols` elements of x, how many of them there are, and how many batches a program computes."""

    rows: int
    cols: int
    row_tiles: int
    col_tiles: int
    batches: int
    programs: int

    @property
    def partials(self) -> int:
        """Rows of partial sums over columns and batches: one for each tile of columns and each program's batches."""
        return self.col_tiles * self.programs


def forward(
    target: Target, layout: Ints, x: Tensor, bias: Tensor | None, position: Tensor | None, approximate: str
) -> Plan:
    """Plan y = gelu(x + bias), transposed, plus position."""
    launch = forward_launch(tuple(x.shape), x.stride(), approximate, target)
    return Plan((Step(launch, ("x", "bias", "position", "y")),))


def backward(
    target: Target,
    layout: Ints,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    approximate: str,
    needs: tuple[bool, bool, bool],
) -> Plan:
    """Plan dx and dbias in one pass; dposition, the sum of dy over the batch, is left to PyTorch."""
    needs_x, needs_bias, needs_position = needs
    sums = (("dposition", "dy"),) if needs_position else ()
    if not (needs_x or needs_bias):
        return Plan(sums=sums)
    shape = _, channels, length = tuple(x.shape)
    rows_are_dense = dy.stride(2) == 1
    strides = dy.stride() if rows_are_dense else (channels * length, channels, 1)
    plan = backward_launches(shape, x.stride(), strides, approximate, target, needs_bias=needs_bias)
    partials = Partials("dbias", plan.partials, channels, plan.reduce) if needs_bias else None
    step = Step(plan.main, ("dy", "x", "bias", "dx", PARTIALS if needs_bias else None))
    return Plan((step,), partials, () if rows_are_dense else ("dy",), sums)


def forward_launch(shape: Ints, x: Ints, formula: str, target: Target) -> Launch:
    """Plan `y = gelu(x + bias)` with rows and columns exchanged, x of `shape` [batch, rows, cols] and strides `x`."""
    return _launch("bias_gelu_transpose_forward", shape, x, None, formula, target, tiles(shape, FORWARD, target))


def backward_launches(shape: Ints, x: Ints, dy: Ints, formula: str, target: Target, *, needs_bias: bool) -> Backward:
    """Plan the backward pass of that, dy [batch, cols, rows] with strides `dy`."""
    chosen = tiles(shape, BACKWARD, target)
    main = _launch("bias_gelu_transpose_backward", shape, x, dy, formula, target, chosen)
    several = needs_bias and chosen.partials > 1
    return Backward(main, chosen.partials, reduce(chosen.partials, shape[1], target) if several else None)


def tiles(shape: Ints, most: Most, target: Target) -> Tiles:
    """Tiles of whole sectors on either side, one in each of a few batches a program.

    They are not square where that can be: a compiler gives both sides of a square the same width of access.
    """
    batch, rows, cols = shape
    block_rows = max(power_of_two(rows, most.rows), 16)
    block_cols = max(power_of_two(cols, most.rows * most.cols * target.tile_scale // block_rows), 64)
    row_tiles, col_tiles = cdiv(rows, block_rows), cdiv(cols, block_cols)
    batches = cdiv(batch, max(target.processors * PROGRAMS_PER_PROCESSOR // (row_tiles * col_tiles), 1))
    return Tiles(block_rows, block_cols, row_tiles, col_tiles, batches, cdiv(batch, batches))


def _launch(kernel: str, shape: Ints, x: Ints, dy: Ints | None, formula: str, target: Target, chosen: Tiles) -> Launch:
    batch, rows, cols = shape
    strides, strides_dy = x[:2], () if dy is None else dy[:2]
    align, align_y = math.gcd(ALIGN, cols, *strides), math.gcd(ALIGN, rows, *strides_dy)
    farthest = max(
        rows + chosen.rows, cols + chosen.cols, chosen.rows * x[1], chosen.cols * (rows if dy is None else dy[1])
    )
    return Launch(
        kernel=kernel,
        grid=(chosen.row_tiles * chosen.col_tiles, chosen.programs, 1),
        integers=(
            batch, rows // align_y, cols // align, chosen.col_tiles, chosen.batches,
            *(stride // align for stride in strides), *(stride // align_y for stride in strides_dy),
        ),
        constants=(
            ("FORMULA", formula), *target.constants, ("ALIGN", align), ("ALIGN_Y", align_y),
            ("INT64_INDEX", farthest >= 2**31), ("BLOCK_ROWS", chosen.rows), ("BLOCK_COLS", chosen.cols),
        ),
        num_warps=num_warps((FORWARD if dy is None else BACKWARD).warps, target),
    )  # fmt: skip
