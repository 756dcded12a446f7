"""Launch plans: pure functions of geometry, dtype, formula and target: every decision can be read without a GPU.

There is no autotuning. Tiles are the same for every batch size and sequence length, so a new one compiles nothing but,
at most, the kernel of its divisibility class (`ALIGN`). A compiler may know a size only as a symbol: it is then taken
for a large one, so that one plan serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import sym_min

from .matrices import Ints, Matrices

WARPS = 4
WARP = 32  # threads; where a warp has more, a program has fewer warps
WARP_BYTES = 16 * WARP  # what one warp reads in one 128-bit access
PARTS = 4  # of a forward tile, an access a thread each: all are asked for at once, and stored one after another
ALIGN = 8  # elements of a 128-bit access in 16 bit
FOLD = 32768  # grid axes y and z end at 65535 programs: what is larger is folded over both
PROGRAMS_PER_PROCESSOR = 8  # resident at once with four warps of 64 registers: the backward pass is one wave
REGISTERS = 64  # of those programs
PARTIAL_SHARE = 0.02  # most of the traffic of a backward pass that partial sums may take
TRANSPOSE_TILES = {"forward_transpose": (64, 128, 8), "backward_transpose": (32, 64, 4)}  # rows, columns, warps
TRANSPOSE_PROGRAMS = 16  # a processor: a few waves


@dataclass(frozen=True)
class Target:
    """What a plan needs to know of a device.

    `processors` is the number of multiprocessors (compute units), `isa` what it has instructions for (see `_formulas`),
    `warp` the number of threads in a warp (wave), `parts` how many a forward tile is taken in, and `tile_scale`
    enlarges tiles where a program costs more than its elements.
    """

    processors: int
    isa: int
    warp: int = WARP
    parts: int = PARTS
    tile_scale: int = 1


INTERPRETER = Target(processors=2, isa=0, parts=1, tile_scale=32)  # isa: its own rounding to bfloat16 truncates


@dataclass(frozen=True)
class Launch:
    """One kernel launch but for its tensors: the kernel's name, then its grid, run-time integers and constants.

    `registers` is the most that a thread may take, None: as many as the compiler likes.
    """

    kernel: str
    grid: tuple[int, int, int]
    integers: tuple[int, ...]
    constants: tuple[tuple[str, object], ...]
    num_warps: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """What Triton is asked for in an eager call; PyTorch's compilers know no limit on registers."""
        return {"num_warps": self.num_warps} | ({"maxnreg": self.registers} if self.registers else {})


@dataclass(frozen=True)
class Backward:
    """A backward pass: `slabs` rows of partial sums, and the launch that adds them up (None: nothing to add)."""

    walk: Launch
    slabs: int
    finish: Launch | None


def forward(matrices: Matrices, itemsize: int, formula: str, target: Target) -> Launch:
    """Plan `y = gelu(x + bias)`; `matrices` walks x and y."""
    block_rows, block_cols, warps = _forward_tile(matrices, WARP_BYTES // itemsize, target.tile_scale)
    row_tiles = _cdiv(matrices.rows, block_rows)
    stacked = row_tiles * matrices.batch
    align = matrices.alignment(ALIGN)
    return Launch(
        kernel="forward",
        grid=(_cdiv(matrices.cols, block_cols), sym_min(stacked, FOLD), _cdiv(stacked, FOLD)),
        integers=(
            matrices.batch, matrices.rows, matrices.cols // align, row_tiles,
            *_strides(matrices, align),
        ),
        constants=(
            *_constants(matrices, formula, target, align, block_rows, block_cols, block_rows),
            ("BATCHED", matrices.batch > 1), ("FOLD", FOLD), ("ALIKE", _alike(matrices)), ("PARTS", target.parts),
        ),
        num_warps=_warps(warps, target),
    )  # fmt: skip


def backward(
    matrices: Matrices, itemsize: int, formula: str, target: Target, *, needs_dy: bool, needs_x: bool, needs_bias: bool
) -> Backward:
    """Plan `dx = dy * gelu'(x + bias)` and its sum over everything but the bias.

    `matrices` walks dy, v, x and dx, where v is the gradient of dx in a second backward pass and stands for dy in the
    first, which has no gradient of dy.
    """
    block_rows, block_cols = _tile(matrices, WARP_BYTES // itemsize, WARPS * target.tile_scale)
    align = matrices.alignment(ALIGN)
    # NVIDIA's compiler puts loads off. What makes it ask early: loads of a second step before the first is stored, or,
    # which is enough for full accesses, room for x and dy at once (REGISTERS).
    ahead = target.isa > 1 and not needs_dy
    parts = 2 if ahead and align < ALIGN else 1
    if matrices.bias == "rows":
        fixed, length, step = _cdiv(matrices.rows, block_rows), matrices.cols, block_cols * parts
    else:
        fixed, length, step = _cdiv(matrices.cols, block_cols), matrices.rows, block_rows * parts

    # A partial sum is written and read once, in fp32; dy and x are read and dx is written.
    least = math.ceil(2 * 4 / (PARTIAL_SHARE * 3 * itemsize))
    wanted = max(target.processors * PROGRAMS_PER_PROCESSOR // fixed, 1) if isinstance(fixed, int) else 1
    if isinstance(matrices.batch, int) and isinstance(length, int):
        wanted = max(min(matrices.batch * length // least, wanted), 1)
        slab_batches = _cdiv(matrices.batch, wanted)
        segments = max(wanted // matrices.batch, 1)
        slab_steps = _cdiv(_cdiv(length, segments), step)
        segments = _cdiv(length, slab_steps * step)
        slabs = _cdiv(matrices.batch, slab_batches) * segments
    else:  # the last slabs may turn out to be empty
        segments = min(wanted, _cdiv(length, step)) if isinstance(length, int) else wanted
        slab_batches = _cdiv(matrices.batch, wanted // segments)
        slab_steps = _cdiv(_cdiv(length, segments), step)
        slabs = wanted // segments * segments

    reach = block_rows if matrices.bias == "rows" else slab_steps * step
    walk = Launch(
        kernel="backward",
        grid=(fixed, slabs, 1),
        integers=(
            matrices.batch, matrices.rows, matrices.cols // align, segments, slab_batches, slab_steps,
            *_strides(matrices, align),
        ),
        constants=(
            *_constants(matrices, formula, target, align, block_rows, block_cols, reach),
            ("ALIKE", _alike(matrices)),
            ("NEEDS_DY", needs_dy), ("NEEDS_X", needs_x), ("NEEDS_BIAS", needs_bias), ("PARTS", parts),
        ),
        num_warps=_warps(WARPS, target),
        registers=REGISTERS if ahead and parts == 1 else None,
    )  # fmt: skip
    return Backward(walk, slabs, finish(slabs, matrices.bias_size, target) if needs_bias and slabs > 1 else None)


def finish(slabs: int, size: int, target: Target) -> Launch:
    """Plan the sum of `slabs` rows of partial sums, `size` columns each."""
    block_rows = block_cols = 32
    constants = (("ISA", target.isa), ("BLOCK_ROWS", block_rows), ("BLOCK_COLS", block_cols))
    return Launch("finish", (_cdiv(size, block_cols), 1, 1), (slabs, size), constants, _warps(WARPS, target))


def forward_transpose(shape: Ints, x: Ints, formula: str, target: Target) -> Launch:
    """Plan `y = gelu(x + bias)` with rows and columns exchanged, x of `shape` [batch, rows, cols] and strides `x`."""
    return _transpose("forward_transpose", shape, x, None, formula, target)


def backward_transpose(shape: Ints, x: Ints, dy: Ints, formula: str, target: Target, *, needs_bias: bool) -> Backward:
    """Plan the backward pass of that, dy [batch, cols, rows] with strides `dy`."""
    walk = _transpose("backward_transpose", shape, x, dy, formula, target)
    slabs = walk.integers[3] * walk.grid[1]  # one for each tile of columns
    return Backward(walk, slabs, finish(slabs, shape[1], target) if needs_bias and slabs > 1 else None)


def _transpose(kernel: str, shape: Ints, x: Ints, dy: Ints | None, formula: str, target: Target) -> Launch:
    """Tiles of whole sectors on either side, one in each of a few batches a program.

    They are not square where that can be: a compiler gives both sides of a square the same width of access.
    """
    batch, rows, cols = shape
    most_rows, most_cols, warps = TRANSPOSE_TILES[kernel]
    block_rows = max(_power_of_two(rows, most_rows), 16)
    block_cols = max(_power_of_two(cols, most_rows * most_cols * target.tile_scale // block_rows), 64)
    row_tiles, col_tiles = _cdiv(rows, block_rows), _cdiv(cols, block_cols)
    slab_batches = _cdiv(batch, max(target.processors * TRANSPOSE_PROGRAMS // (row_tiles * col_tiles), 1))
    strides, strides_dy = x[:2], () if dy is None else dy[:2]
    align, across = math.gcd(ALIGN, cols, *strides), math.gcd(ALIGN, rows, *strides_dy)
    farthest = max(
        rows + block_rows, cols + block_cols, block_rows * x[1], block_cols * (rows if dy is None else dy[1])
    )
    return Launch(
        kernel=kernel,
        grid=(row_tiles * col_tiles, _cdiv(batch, slab_batches), 1),
        integers=(
            batch, rows // across, cols // align, col_tiles, slab_batches,
            *(stride // align for stride in strides), *(stride // across for stride in strides_dy),
        ),
        constants=(
            ("FORMULA", formula), ("ISA", target.isa), ("ALIGN", align), ("ACROSS", across),
            ("WIDE", farthest >= 2**31), ("BLOCK_ROWS", block_rows), ("BLOCK_COLS", block_cols),
        ),
        num_warps=_warps(warps, target),
    )  # fmt: skip


def _forward_tile(matrices: Matrices, warp: int, scale: int) -> tuple[int, int, int]:
    """Rows, columns and warps of a forward tile.

    Where all warps can stand side by side, each thread loads the bias of its own columns; in narrower tiles the bias
    has to pass through shared memory, two instructions an element.
    """
    if matrices.bias == "cols":
        for warps in (WARPS, WARPS // 2):
            if _fits(matrices.cols, warps * warp):
                return PARTS * scale, warps * warp, warps
    if matrices.bias == "rows":  # narrow, to waste little at the end of a row, unless accesses are narrow, too
        narrower = 2 if matrices.alignment(ALIGN) == ALIGN else 0.5
        return *_tile(matrices, int(warp / narrower), int(narrower * PARTS * WARPS * scale)), WARPS
    return *_tile(matrices, warp, PARTS * WARPS * scale), WARPS


def _tile(matrices: Matrices, warp: int, warps: int) -> tuple[int, int]:
    """Rows and columns of a tile of `warps` accesses of one `warp` each, which covers a row: its sum stays inside."""
    if matrices.bias == "none" and matrices.rows == 1:
        return 1, max(_power_of_two(matrices.cols, warps * warp), ALIGN)
    cols = max(_power_of_two(matrices.cols, warp), ALIGN)
    if matrices.bias == "rows":  # as many rows as there are channels; columns are a sequence, whatever its length
        rows = _power_of_two(matrices.rows, warps * warp // cols)
        return rows, max(_power_of_two(matrices.cols, warps * warp // rows), ALIGN) if rows < 4 else cols
    cols = next((cols >> shift for shift in range(3) if _fits(matrices.cols, cols >> shift)), cols)
    return warps * warp // cols, cols


def _fits(size: int, block: int) -> bool:
    """Whether blocks cover `size` with at most an eighth to spare."""
    return isinstance(size, int) and _cdiv(size, block) * block * 8 <= size * 9


def _constants(
    matrices: Matrices, formula: str, target: Target, align: int, block_rows: int, block_cols: int, reach: int
) -> tuple[tuple[str, object], ...]:
    """The constants of a kernel whose programs go `reach` rows down, and past a row by PARTS tiles at most."""
    widest = max(row for _, row in matrices.strides)
    return (
        ("FORMULA", formula),
        ("BIAS", matrices.bias),
        ("ISA", target.isa),
        ("ALIGN", align),
        ("WIDE", matrices.cols + PARTS * block_cols >= 2**31 or reach * widest >= 2**31),
        ("BLOCK_ROWS", block_rows),
        ("BLOCK_COLS", block_cols),
    )


def _warps(warps: int, target: Target) -> int:
    """As many threads as `warps` of `WARP` have."""
    return warps * WARP // target.warp


def _alike(matrices: Matrices) -> bool:
    """Whether all tensors are walked by the same strides."""
    return all(pair == matrices.strides[0] for pair in matrices.strides)


def _strides(matrices: Matrices, align: int) -> Iterable[int]:
    return (stride // align for pair in matrices.strides for stride in pair)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_two(n: int, most: int) -> int:
    """The smallest power of two from n on, but no more than `most`."""
    return min(1 << (n - 1).bit_length(), most) if isinstance(n, int) else most
