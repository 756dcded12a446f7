"""The launch plans of `bias_gelu`: tiles, grids and partial sums of its three levels, by shape and GPU.

Behind them are pure functions of geometry, itemsize, formula and target. Every decision can be read, and tested,
without a GPU: core/in_flight.py chooses how a program asks for memory, core/tiling.py what it computes at a time and
how many programs share a sum. A size may be a compiler's symbol (see core/plan.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor, sym_min

from ..core import in_flight
from ..core.matrices import Ints, Matrices, matrices_with_result
from ..core.plan import ALIGN, PARTIALS, Backward, Launch, Partials, Plan, Step, cdiv, num_warps, reduce
from ..core.targets import Target
from ..core.tiling import ACCESSES, Tile, backward_tile, forward_tile, partial_share, partial_sums

GRID_FOLD = 32768  # grid axes y and z end at 65535 programs: what is larger is folded over both


def forward(target: Target, layout: Ints, x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Plan:
    """Plan y = gelu(x + bias); `layout` has the strides of results."""
    matrices, copied = matrices_with_result(layout, x.shape, None if bias is None else dim, x.stride())
    launch = forward_launch(matrices, x.itemsize, approximate, target)
    return Plan((Step(launch, ("x", "bias", "y")),), dense=("x",) if copied else ())


def backward(
    target: Target,
    layout: Ints,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool],
) -> Plan:
    """Plan dx and dbias in one pass."""
    given = {"dy": dy, "ddx": None, "x": x}
    return _backward(target, layout, given, bias, dim, approximate, (False, *needs), ("ddy", "dx", "dbias"))


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
) -> Plan:
    """Plan the gradients of `backward` for dy, x and bias, in one pass."""
    given = {"dy": dy, "ddx": ddx, "x": x}
    return _backward(target, layout, given, bias, dim, approximate, needs, ("ddy", "d2x", "d2bias"))


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
    needs: tuple[bool, bool, bool],
    results: tuple[str, str, str],
) -> Plan:
    """Either of them: the kernel is the same, and so is its order of tensors."""
    x, dy = given["x"], given["dy"]
    assert x is not None
    assert dy is not None
    ddx = given["ddx"]
    strides = dy.stride(), (dy if ddx is None else ddx).stride(), x.stride()
    matrices, copied = matrices_with_result(layout, x.shape, None if bias is None else dim, *strides)
    needs_dy, needs_x, needs_bias = needs
    plan = backward_launches(
        matrices, x.itemsize, approximate, target, needs_dy=needs_dy, needs_x=needs_x, needs_bias=needs_bias
    )
    ddy, dx, dbias = results
    partials = Partials(dbias, plan.partials, matrices.bias_size, plan.reduce) if needs_bias else None
    tensors = "dy", "ddx", "ddbias", "x", "bias", ddy, dx, PARTIALS if needs_bias else None
    dense = tuple(name for name, tensor in given.items() if tensor is not None) if copied else ()
    return Plan((Step(plan.main, tensors),), partials, dense)


def forward_launch(matrices: Matrices, itemsize: int, formula: str, target: Target) -> Launch:
    """Plan `y = gelu(x + bias)`; `matrices` has the strides of x and y."""
    align = matrices.alignment(ALIGN)
    chosen = in_flight.forward(target, align)
    tile = forward_tile(matrices, itemsize, target.tile_scale, chosen)
    row_tiles = cdiv(matrices.rows, tile.rows)
    stacked = row_tiles * matrices.batch
    return Launch(
        kernel="bias_gelu_forward",
        grid=(cdiv(matrices.cols, tile.cols), sym_min(stacked, GRID_FOLD), cdiv(stacked, GRID_FOLD)),
        integers=(
            matrices.batch, matrices.rows, matrices.cols // align, row_tiles,
            *_strides(matrices, align),
        ),
        constants=(
            *_constants(matrices, formula, target, align, tile, tile.rows),
            ("BATCHED", matrices.batch > 1), ("GRID_FOLD", GRID_FOLD), ("SAME_STRIDES", _same_strides(matrices)),
            ("UNROLL", chosen.unroll), ("LOADS", chosen.loads),
        ),
        num_warps=num_warps(tile.warps, target),
        registers=chosen.registers,
    )  # fmt: skip


def backward_launches(
    matrices: Matrices, itemsize: int, formula: str, target: Target, *, needs_dy: bool, needs_x: bool, needs_bias: bool
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
            *_strides(matrices, align),
        ),
        constants=(
            *_constants(
                matrices, formula, target, align, tile, tile.rows if matrices.bias == "rows" else sums.steps * step
            ),
            ("SAME_STRIDES", _same_strides(matrices)),
            ("NEEDS_DY", needs_dy), ("NEEDS_X", needs_x), ("NEEDS_BIAS", needs_bias),
            ("UNROLL", unroll), ("LOADS", chosen.loads),
        ),
        num_warps=num_warps(tile.warps, target),
        registers=chosen.registers,
    )  # fmt: skip
    several = needs_bias and sums.count > 1
    return Backward(main, sums.count, reduce(sums.count, matrices.bias_size, target) if several else None)


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
