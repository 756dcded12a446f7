"""Loop iterations of each program of a launch, from the launch's arguments.

Each kernel has a function here that says what its first lines compute, for one program of the grid. A kernel that
isn't here is taken to have no loop and no choice; if its code has one, following it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace

from torch import Tensor

from perf.static.machine.issue_order import Planned, Trips
from perf.static.offline import Launched

Program = tuple[int, int, int]  # its place in the grid


def trips(launched: Launched, program: Program) -> Trips:
    """The trips of one program of a launch."""
    of = SimpleNamespace(**launched.arguments, **launched.constants)
    return KERNELS.get(launched.name, straight)(of, program)


def straight(of: SimpleNamespace, program: Program) -> Trips:
    """No loop, and nothing to choose."""
    return Trips()


def forward(of: SimpleNamespace, program: Program) -> Trips:
    """One tile, whole or masked."""
    number = program[1] + program[2] * of.GRID_FOLD
    batch, row_tile = divmod(number, of.row_tiles) if of.BATCHED else (0, number)
    rows = of.rows if batch < of.batch else 0
    is_whole = (row_tile + 1) * of.BLOCK_ROWS <= rows and (program[0] + 1) * of.BLOCK_COLS <= of.cols * of.ALIGN
    return Trips(masked=not is_whole, loads=tiles(of, of.x_ptr))


def backward(of: SimpleNamespace, program: Program) -> Trips:
    """The batches of a program, and in each the steps along the axis where the bias is constant, then single tiles."""
    group, segment = divmod(program[1], of.segments)
    size, across = (of.rows, of.BLOCK_ROWS), (of.cols * of.ALIGN, of.BLOCK_COLS)
    (length, block), (width, tile) = (across, size) if of.BIAS == "rows" else (size, across)
    step = of.UNROLL * block
    left = length - segment * of.program_steps * step
    steps = max(min(of.program_steps * of.UNROLL, cdiv(left, block)), 0)
    whole = max(min(of.program_steps, left // step), 0) if (program[0] + 1) * tile <= width else 0
    loads = tiles(of, of.dy_ptr, of.x_ptr, of.ddx_ptr)
    loops = Planned(whole, loads=of.UNROLL * loads), Planned(steps - whole * of.UNROLL, loads=loads)
    return Trips((Planned(batches(of, group), loops),))


def transpose(of: SimpleNamespace, program: Program) -> Trips:
    """The batches of a program."""
    loads = tiles(of, of.x_ptr, getattr(of, "dy_ptr", None))
    return Trips((Planned(batches(of, program[1]), loads=loads),))


def reduce_partials(of: SimpleNamespace, program: Program) -> Trips:
    """The partial sums."""
    return Trips((Planned(cdiv(of.partials, of.BLOCK_ROWS), loads=tiles(of, of.partial_ptr)),))


def rows_of_a_partial(of: SimpleNamespace, program: Program) -> Trips:
    """The rows of one partial sum, in the comparison kernels."""
    tensors = (of.from_ptr,) if hasattr(of, "from_ptr") else (of.dy_ptr, of.x_ptr, getattr(of, "w_ptr", None))
    steps = cdiv(min(of.PARTIAL_ROWS, of.rows - program[1] * of.PARTIAL_ROWS), of.BLOCK_ROWS)
    return Trips((Planned(steps, loads=tiles(of, *tensors)),))


def batches(of: SimpleNamespace, group: int) -> int:
    """The batches that there are of a group which programs share."""
    there_are: int = max(min(of.program_batches, of.batch - group * of.program_batches), 0)
    return there_are


def tiles(of: SimpleNamespace, *tensors: Tensor | None) -> int:
    """The bytes of one tile of each of these tensors, those that are left out apart."""
    itemsizes: int = sum(each.itemsize for each in tensors if each is not None)
    area: int = of.BLOCK_ROWS * of.BLOCK_COLS
    return area * itemsizes


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


KERNELS: Mapping[str, Callable[[SimpleNamespace, Program], Trips]] = {
    "bias_gelu_forward": forward,
    "bias_gelu_backward": backward,
    "bias_gelu_transpose_forward": transpose,
    "bias_gelu_transpose_backward": transpose,
    "reduce_partials": reduce_partials,
    "column_sums": rows_of_a_partial,
    "tile_backward": rows_of_a_partial,
    "gated_backward": rows_of_a_partial,
}
