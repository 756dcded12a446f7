"""The launch plans of `bias_gelu`: tiles, grids and partial sums of its three levels, by shape and GPU.

Behind them are pure functions of geometry, itemsize, formula and target. Every decision can be read, and tested,
without a GPU: `forward_tile` and `backward_tile` choose what a program computes, `partial_sums` how many programs share
a sum. A size may be a compiler's symbol (see core/plan.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, sym_min

from ..core import in_flight
from ..core.dropout import NOT_DROPPED, Drops, counted, rate, split_counted
from ..core.in_flight import InFlight
from ..core.matrices import Ints, Matrices, matrices_with_result
from ..core.plan import (
    ALIGN,
    PARTIALS,
    WARP,
    WARPS,
    Backward,
    Launch,
    Partials,
    Plan,
    Step,
    cdiv,
    num_warps,
    power_of_two,
    reduce,
)
from ..core.targets import Target

WARP_BYTES = 16 * WARP  # what one warp reads in one 128-bit access
ACCESSES = 4  # of each thread in a forward tile, or more: all are asked for at once, and stored one after another
GRID_FOLD = 32768  # grid axes y and z end at 65535 programs: what is larger is folded over both
SHARE, SHARE_OF_LARGE = 0.1, 0.025  # most of the traffic of a backward pass that partial sums may take
LARGE = 2**25  # bytes of a tensor: from here on a share is what the memory takes
FEW = 108  # terms: SHARE_OF_LARGE shares no sum of 16-bit numbers that has fewer
FULL = 0.9  # of the places that programs may have at once: a backward pass is one wave, and fills it so far
NARROWEST = 128  # bytes of a row that a tile has at least: whole lines of the cache


@dataclass(frozen=True)
class Tile:
    """What one program computes at a time: rows, columns, and the warps (of 32 threads) that share them."""

    rows: int
    cols: int
    warps: int = WARPS


@dataclass(frozen=True)
class PartialSums:
    """How a sum over `batch` and one more axis is shared out: `count` programs for each tile of the result.

    A program adds up `steps` steps along the axis, which is cut into `segments`, in each of `batches` batches.
    """

    count: int
    segments: int
    batches: int
    steps: int


def forward(
    target: Target, layout: Ints, x: Tensor, bias: Tensor | None, dim: int, approximate: str, dropout_p: float = 0.0
) -> Plan:
    """Plan y = gelu(x + bias); `layout` has the strides of results."""
    matrices, copied, drops = _matrices(layout, x, bias, dim, dropout_p, x.stride())
    launch = forward_launch(matrices, x.itemsize, approximate, target, drops)
    return Plan((Step(launch, ("x", "bias", "seed", "y")),), dense=("x",) if copied else ())


def _matrices(
    layout: Ints, x: Tensor, bias: Tensor | None, dim: int, dropout_p: float, *strides: Ints
) -> tuple[Matrices, bool, Drops | None]:
    """The matrices of tensors and results, whether tensors are to be copied, and what is dropped."""
    axis = None if bias is None else dim
    if not dropout_p:
        return *matrices_with_result(layout, x.shape, axis, *strides), None
    how = rate(dropout_p, x.itemsize)
    numbered = [counted(x.shape, dim, layout, how)]
    matrices, copied = matrices_with_result(layout, x.shape, axis, *strides, numbered=numbered)
    matrices, drops = split_counted(matrices, how)
    return matrices, copied, drops


def backward(
    target: Target,
    layout: Ints,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool],
    dropout_p: float = 0.0,
) -> Plan:
    """Plan dx and dbias in one pass."""
    given, names = {"dy": dy, "ddx": None, "x": x}, ("ddy", "dx", "dbias")
    return _backward(target, layout, given, bias, dim, approximate, dropout_p, (False, *needs), names)


def double_backward(
    target: Target,
    layout: Ints,
    ddx: Tensor,
    ddbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool, bool],
    dropout_p: float = 0.0,
) -> Plan:
    """Plan the gradients of `backward` for dy, x and bias, in one pass."""
    given, names = {"dy": dy, "ddx": ddx, "x": x}, ("ddy", "d2x", "d2bias")
    return _backward(target, layout, given, bias, dim, approximate, dropout_p, needs, names)


def forward_after_bias(target: Target, layout: Ints, x: Tensor, bias: Tensor, dim: int, approximate: str) -> Plan:
    """Plan y = gelu(x) for `gelu_after_bias`, whose x has the bias in it."""
    return _without_bias(forward(target, layout, x, None, dim, approximate))


def backward_after_bias(
    target: Target,
    layout: Ints,
    dy: Tensor,
    x: Tensor,
    bias: Tensor,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool],
) -> Plan:
    """Plan dx and dbias for `gelu_after_bias`: the kernel is given no bias, and asked for its gradient."""
    return _without_bias(backward(target, layout, dy, x, bias if needs[1] else None, dim, approximate, needs))


def _without_bias(plan: Plan) -> Plan:
    return replace(plan, steps=tuple([step.without("bias") for step in plan.steps]))


def _backward(
    target: Target,
    layout: Ints,
    given: Mapping[str, Tensor | None],
    bias: Tensor | None,
    dim: int,
    approximate: str,
    dropout_p: float,
    needs: tuple[bool, bool, bool],
    results: tuple[str, str, str],
) -> Plan:
    """Either of them: the kernel is the same, and so is its order of tensors."""
    x, dy = given["x"], given["dy"]
    assert x is not None
    assert dy is not None
    ddx = given["ddx"]
    strides = dy.stride(), (dy if ddx is None else ddx).stride(), x.stride()
    matrices, copied, drops = _matrices(layout, x, bias, dim, dropout_p, *strides)
    needs_dy, needs_x, needs_bias = needs
    plan = backward_launches(
        matrices, x.itemsize, approximate, target, drops, needs_dy=needs_dy, needs_x=needs_x, needs_bias=needs_bias
    )
    ddy, dx, dbias = results
    partials = Partials(dbias, plan.partials, matrices.bias_size, plan.reduce) if needs_bias else None
    tensors = "dy", "ddx", "ddbias", "x", "bias", "seed", ddy, dx, PARTIALS if needs_bias else None
    dense = tuple(name for name, tensor in given.items() if tensor is not None) if copied else ()
    return Plan((Step(plan.main, tensors),), partials, dense)


def forward_launch(
    matrices: Matrices, itemsize: int, formula: str, target: Target, drops: Drops | None = None
) -> Launch:
    """Plan `y = gelu(x + bias)`; `matrices` has the strides of x and y."""
    align = matrices.alignment(ALIGN)
    chosen = in_flight.forward(target, align)
    tile = forward_tile(matrices, itemsize, target.tile_scale, chosen)
    if drops is not None:
        tile = _of_whole_counters(tile, chosen.unroll)
    row_tiles = cdiv(matrices.rows, tile.rows)
    stacked = row_tiles * matrices.batch
    return Launch(
        kernel="bias_gelu_forward",
        grid=(cdiv(matrices.cols, tile.cols), sym_min(stacked, GRID_FOLD), cdiv(stacked, GRID_FOLD)),
        integers=(
            matrices.batch, matrices.rows, matrices.cols // align, row_tiles,
            *_strides(matrices, align), *(() if drops is None else drops.integers),
        ),
        constants=(
            *(NOT_DROPPED if drops is None else ()), *_constants(matrices, formula, target, align, tile, tile.rows),
            ("BATCHED", matrices.batch > 1), ("GRID_FOLD", GRID_FOLD), ("SAME_STRIDES", _same_strides(matrices)),
            ("UNROLL", chosen.unroll), ("LOADS", chosen.loads), ("INT64_COUNTER", drops is not None and drops.wide),
        ),
        num_warps=num_warps(tile.warps, target),
        registers=chosen.registers,
    )  # fmt: skip


def backward_launches(
    matrices: Matrices,
    itemsize: int,
    formula: str,
    target: Target,
    drops: Drops | None = None,
    *,
    needs_dy: bool,
    needs_x: bool,
    needs_bias: bool,
) -> Backward:
    """Plan `dx = dy * gelu'(x + bias)` and its sum over everything but the axis of the bias.

    `matrices` has the strides of dy, ddx, x and dx, where ddx is the gradient of dx in a second backward pass and
    stands for dy in the first, which has no gradient of dy. The gradient of a bias that was added to x before, so that
    the kernel is given none, is planned alike: `matrices.bias` names its axis.
    """
    align = matrices.alignment(ALIGN)
    chosen = in_flight.backward(target, align, matrices.bias, formula, double=needs_dy)
    places = target.processors * chosen.programs
    tile = backward_tile(matrices, itemsize, target.tile_scale, places)
    if drops is not None:
        tile = _of_whole_counters(tile, 1)
    unroll = chosen.unroll
    if matrices.bias == "rows":
        tiles, length, step = cdiv(matrices.rows, tile.rows), matrices.cols, tile.cols * unroll
    else:
        tiles, length, step = cdiv(matrices.cols, tile.cols), matrices.rows, tile.rows * unroll
    wanted = max(places // tiles, 1) if isinstance(tiles, int) else 1
    sums = partial_sums(matrices.batch, length, step, wanted, itemsize, partial_share(matrices, itemsize))
    main = Launch(
        kernel="bias_gelu_backward",
        grid=(tiles, sums.count, 1),
        integers=(
            matrices.batch, matrices.rows, matrices.cols // align, sums.segments, sums.batches, sums.steps,
            *_strides(matrices, align), *(() if drops is None else drops.integers),
        ),
        constants=(
            *(NOT_DROPPED if drops is None else ()), *_constants(
                matrices, formula, target, align, tile, tile.rows if matrices.bias == "rows" else sums.steps * step
            ),
            ("SAME_STRIDES", _same_strides(matrices)),
            ("NEEDS_DY", needs_dy), ("NEEDS_X", needs_x), ("NEEDS_BIAS", needs_bias),
            ("UNROLL", unroll), ("LOADS", chosen.loads), ("INT64_COUNTER", drops is not None and drops.wide),
        ),
        num_warps=num_warps(tile.warps, target),
        registers=chosen.registers,
    )  # fmt: skip
    several = needs_bias and sums.count > 1
    return Backward(main, sums.count, reduce(sums.count, matrices.bias_size, target) if several else None)


def forward_tile(matrices: Matrices, itemsize: int, scale: int, chosen: InFlight) -> Tile:
    """The tile of a forward program, `ACCESSES` full accesses a thread or as many as it asks for at once.

    Where all warps fit into a row next to each other, each thread loads the bias of its own columns; in narrower tiles
    the bias has to pass through shared memory, two instructions an element.
    """
    warp = WARP_BYTES // itemsize
    accesses = max(chosen.unroll, ACCESSES) * chosen.warps * scale  # of a warp
    if matrices.bias == "cols":
        for warps in {chosen.warps: None, WARPS // 2: None}:
            if _fits(matrices.cols, warps * warp):
                return Tile(accesses // chosen.warps, warps * warp, warps)
    if matrices.bias == "rows":  # narrow, to waste little at the end of a row, unless accesses are narrow, too
        narrower = 2 if matrices.alignment(ALIGN) == ALIGN else 0.5
        return _tile(matrices, int(warp / narrower), int(narrower * accesses), chosen.warps)
    return _tile(matrices, warp, accesses, chosen.warps)


def backward_tile(matrices: Matrices, itemsize: int, scale: int, places: int) -> Tile:
    """The tile of a step of a backward program, one full access a thread of each tensor.

    Along rows, whose number is that of channels, it is as high as it has to be for equal shares of `places` programs
    to fill them: of few tiles more programs can share each.
    """
    tile = _tile(matrices, WARP_BYTES // itemsize, WARPS * scale)
    if matrices.bias != "rows" or not isinstance(matrices.rows, int) or scale > 1:
        return tile
    tiles = [tile]
    while tiles[-1].rows * 2 <= matrices.rows and tiles[-1].cols * itemsize >= 2 * NARROWEST:
        tiles.append(Tile(tiles[-1].rows * 2, tiles[-1].cols // 2))
    preferred = (*tiles[1:2], tile, *tiles[2:])
    return next((each for each in preferred if _filled(cdiv(matrices.rows, each.rows), places) >= FULL), tile)


def _filled(tiles: int, places: int) -> float:
    """How many places are taken on average while each of `tiles` is shared by as many programs as there is room for."""
    programs = tiles * max(places // tiles, 1)
    return programs / (cdiv(programs, places) * places)


def partial_share(matrices: Matrices, itemsize: int) -> float:
    """The most of its traffic that a backward pass may spend on partial sums.

    In a small call, most of whose traffic is that of caches, it is worth more to have all processors at work; but no
    second launch, if few terms have one sum.
    """
    asked: float | None = in_flight.overrides()["backward"].get("share")
    if asked is not None:
        return asked
    size = matrices.batch * matrices.rows * matrices.cols * itemsize
    terms = matrices.batch * (matrices.cols if matrices.bias == "rows" else matrices.rows)
    if not isinstance(size, int) or size >= LARGE or (size < LARGE // 2 and terms < FEW):
        return SHARE_OF_LARGE
    return SHARE


def partial_sums(batch: int, length: int, step: int, wanted: int, itemsize: int, share: float) -> PartialSums:
    """Share out a sum over `batch` batches of an axis of `length`, `step` elements a step.

    `wanted` programs share it, or fewer, where writing and reading their partial sums would take more than `share` of
    the traffic. With sizes that are symbols, the last programs may turn out to have nothing to add.
    """
    if isinstance(batch, int) and isinstance(length, int):
        # A partial sum is written and read once, in fp32; dy and x are read and dx is written.
        least = math.ceil(2 * 4 / (share * 3 * itemsize))
        wanted = max(min(batch * length // least, wanted), 1)
        return min(_shared_out(batch, length, step, wanted), key=lambda sums: (sums.batches * sums.steps, -sums.count))
    segments = min(wanted, cdiv(length, step)) if isinstance(length, int) else wanted
    batches = cdiv(batch, wanted // segments)
    steps = cdiv(cdiv(length, segments), step)
    return PartialSums(wanted // segments * segments, segments, batches, steps)


def _shared_out(batch: int, length: int, step: int, wanted: int) -> Iterable[PartialSums]:
    """The ways to share out a sum to `wanted` programs at most: the axis in segments, and batches among those."""
    most = min(wanted, cdiv(length, step))
    for segments in range(most if batch == 1 else 1, most + 1):
        batches = cdiv(batch, wanted // segments)
        steps = cdiv(cdiv(length, segments), step)
        segments = cdiv(length, steps * step)
        yield PartialSums(cdiv(batch, batches) * segments, segments, batches, steps)


def _tile(matrices: Matrices, warp: int, accesses: int, warps: int = WARPS) -> Tile:
    """A tile of so many `accesses` of one `warp` each, which covers a row: its sum stays inside."""
    if matrices.bias == "none" and matrices.rows == 1:
        return Tile(1, max(power_of_two(matrices.cols, accesses * warp), ALIGN), warps)
    cols = max(power_of_two(matrices.cols, warp), ALIGN)
    if matrices.bias == "rows":  # as many rows as there are channels; columns are a sequence, whatever its length
        rows = power_of_two(matrices.rows, accesses * warp // cols)
        wide = max(power_of_two(matrices.cols, accesses * warp // rows), ALIGN)
        return Tile(rows, wide if rows < 4 else cols, warps)
    cols = next((cols >> shift for shift in range(3) if _fits(matrices.cols, cols >> shift)), cols)
    return Tile(accesses * warp // cols, cols, warps)


def _of_whole_counters(tile: Tile, unroll: int) -> Tile:
    """The tile, or one as large or larger whose `unroll` parts begin and end with counters of core/dropout.py."""
    cols = max(tile.cols, ALIGN)
    tile = replace(tile, rows=max(tile.rows * tile.cols // cols, 1), cols=cols)
    return tile if tile.rows >= unroll else replace(tile, cols=max(cols, ALIGN * unroll))  # parts are those of a row


def _fits(size: int, block: int) -> bool:
    """Whether blocks cover `size` with at most an eighth to spare."""
    return isinstance(size, int) and cdiv(size, block) * block * 8 <= size * 9


def _constants(
    matrices: Matrices, formula: str, target: Target, align: int, tile: Tile, reach: int
) -> tuple[tuple[str, object], ...]:
    """The constants of a kernel whose programs go `reach` rows down, and past a row by ACCESSES tiles at most."""
    widest = max(row for _, row in matrices.strides)
    return (
        ("FORMULA", formula),
        ("BIAS", matrices.bias),
        *target.constants,
        ("ALIGN", align),
        ("INT64_INDEX", matrices.cols + ACCESSES * tile.cols >= 2**31 or reach * widest >= 2**31),
        ("BLOCK_ROWS", tile.rows),
        ("BLOCK_COLS", tile.cols),
    )


def _same_strides(matrices: Matrices) -> bool:
    return all(pair == matrices.strides[0] for pair in matrices.strides)


def _strides(matrices: Matrices, align: int) -> Iterable[int]:
    """All strides in units of `align`."""
    return (stride // align for pair in matrices.strides for stride in pair)
