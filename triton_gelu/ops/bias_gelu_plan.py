"""The launch plans of `bias_gelu`: tiles, grids and partial sums of its three levels, by shape and GPU.

Behind them are pure functions of geometry, itemsize, formula and target. Every decision can be read, and tested,
without a GPU: core/in_flight.py chooses how a program asks for memory, core/tiling.py what it computes at a time and
how many programs share a sum. Of the backward pass a size may be a compiler's symbol (see core/plan.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..core import in_flight
from ..core.dropout import NOTHING_DROPPED, Drops, numbered, split_numbered
from ..core.matrices import Ints, Matrices, matrices_with_result
from ..core.plan import ALIGN, PARTIALS, Backward, Launch, Partials, Plan, Step, cdiv, num_warps, reduce
from ..core.targets import Target
from ..core.tiling import (
    ACCESSES,
    Tile,
    backward_tile,
    forward_tile,
    of_whole_counters,
    partial_share,
    partial_sums,
)

GRID_FOLD = 32768  # grid axes y and z end at 65535 programs: what is larger is folded over both


@dataclass(frozen=True)
class Gate:
    """Whether GELU's value is multiplied, and by what: GATED in gated_kernels.py, and how far the halves are apart.

    `halves` has that, in elements, for x, for its incoming gradient in a second backward pass, and for its gradient.
    """

    gated: str = "no"
    halves: tuple[int, int, int] = (0, 0, 0)

    @property
    def is_joined(self) -> bool:
        return self.gated in ("first", "second")


NO_GATE = Gate()


def forward(
    target: Target, layout: Ints, x: Tensor, bias: Tensor | None, dim: int, approximate: str, *, dropout_p: float = 0.0
) -> Plan:
    """Plan y = gelu(x + bias); `layout` has the strides of results."""
    places = numbered(x.shape, dim, layout, dropout_p, x.itemsize)
    axis = None if bias is None else dim
    matrices, copied = matrices_with_result(layout, x.shape, axis, x.stride(), numbered=places)
    matrices, drops = split_numbered(matrices, dropout_p, x.itemsize)
    launch = forward_launch(matrices, x.itemsize, approximate, target, drops=drops)
    return Plan((Step(launch, ("x", "bias", "y", None, None, "seed")),), dense=("x",) if copied else ())


def backward(
    target: Target,
    layout: Ints,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool],
    *,
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
    *,
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
    places = numbered(x.shape, dim, layout, dropout_p, x.itemsize)
    axis = None if bias is None else dim
    matrices, copied = matrices_with_result(layout, x.shape, axis, *strides, numbered=places)
    matrices, drops = split_numbered(matrices, dropout_p, x.itemsize)
    needs_dy, needs_x, needs_bias = needs
    plan = backward_launches(
        matrices, x.itemsize, approximate, target,
        needs_dy=needs_dy, needs_x=needs_x, needs_bias=needs_bias, drops=drops,
    )  # fmt: skip
    ddy, dx, dbias = results
    partials = Partials(dbias, plan.partials, matrices.bias_size, plan.reduce) if needs_bias else None
    tensors = "dy", "ddx", "ddbias", "x", "bias", ddy, dx, PARTIALS if needs_bias else None, *(None,) * 6, "seed"
    dense = tuple(name for name, tensor in given.items() if tensor is not None) if copied else ()
    return Plan((Step(plan.main, tensors),), partials, dense)


def forward_launch(
    matrices: Matrices,
    itemsize: int,
    formula: str,
    target: Target,
    gate: Gate = NO_GATE,
    drops: Drops = NOTHING_DROPPED,
) -> Launch:
    """Plan `y = gelu(x + bias)`; `matrices` has the strides of x, y and, if there is a gate, of other."""
    align = math.gcd(matrices.alignment(ALIGN), *gate.halves)
    chosen = in_flight.forward(target, align, gated=gate.gated != "no")
    tile = forward_tile(matrices, itemsize, target.tile_scale, chosen)
    tile = tile if drops.rate is None else of_whole_counters(tile, chosen.unroll)
    row_tiles = cdiv(matrices.rows, tile.rows)
    stacked = row_tiles * matrices.batch
    return Launch(
        kernel="bias_gelu_forward",
        grid=(cdiv(matrices.cols, tile.cols), min(stacked, GRID_FOLD), cdiv(stacked, GRID_FOLD)),
        integers=(
            matrices.batch, matrices.rows, matrices.cols // align, row_tiles,
            *_strides(matrices, 3, align), gate.halves[0] // align, *drops.integers,
        ),
        constants=(
            *drops.constants, *_constants(matrices, formula, target, align, tile, tile.rows),
            ("BATCHED", matrices.batch > 1), ("GRID_FOLD", GRID_FOLD), ("SAME_STRIDES", _same_strides(matrices)),
            ("UNROLL", chosen.unroll), ("LOADS", chosen.loads), ("GATED", gate.gated),
        ),
        num_warps=num_warps(tile.warps, target),
        registers=chosen.registers,
    )  # fmt: skip


def backward_launches(
    matrices: Matrices,
    itemsize: int,
    formula: str,
    target: Target,
    *,
    needs_dy: bool,
    needs_x: bool,
    needs_bias: bool,
    gate: Gate = NO_GATE,
    needs_other: bool = False,
    needs_other_bias: bool = False,
    double: bool | None = None,
    drops: Drops = NOTHING_DROPPED,
) -> Backward:
    """Plan `dx = dy * gelu'(x + bias)` and its sum over everything but the axis of the bias.

    `matrices` has the strides of dy, ddx, x and dx, where ddx is the gradient of dx in a second backward pass and
    stands for dy in the first, which has no gradient of dy. The gradient of a bias that was added to x before, so that
    the kernel is given none, is planned alike: `matrices.bias` names its axis. With a gate `matrices` goes on with
    other and ddy, and the sums of both biases lie next to each other; `double` tells a second backward pass.
    """
    gated = gate.gated != "no"
    align = math.gcd(matrices.alignment(ALIGN), *gate.halves)
    chosen = in_flight.backward(
        target, align, matrices.bias, formula, double=needs_dy if double is None else double, gated=gated
    )
    places = target.processors * chosen.programs
    tile = backward_tile(matrices, itemsize, target.tile_scale, places)
    tile = tile if drops.rate is None else of_whole_counters(tile, 1)
    unroll = chosen.unroll
    if matrices.bias == "rows":
        tiles, length, step = cdiv(matrices.rows, tile.rows), matrices.cols, tile.cols * unroll
    else:
        tiles, length, step = cdiv(matrices.cols, tile.cols), matrices.rows, tile.rows * unroll
    wanted = max(places // tiles, 1) if isinstance(tiles, int) else 1
    share = partial_share(matrices, itemsize)
    vectors = max(needs_bias + needs_other_bias, 1)
    sums = partial_sums(
        matrices.batch, length, step, wanted, itemsize, share, vectors=vectors, tensors=5 if gated else 3
    )
    main = Launch(
        kernel="bias_gelu_backward",
        grid=(tiles, sums.count, 1),
        integers=(
            matrices.batch, matrices.rows, matrices.cols // align, sums.segments, sums.batches, sums.steps,
            *_strides(matrices, 6, align), *(half // align for half in gate.halves), *drops.integers,
        ),
        constants=(
            *drops.constants, *_constants(
                matrices, formula, target, align, tile, tile.rows if matrices.bias == "rows" else sums.steps * step
            ),
            ("SAME_STRIDES", _same_strides(matrices)),
            ("NEEDS_DY", needs_dy), ("NEEDS_X", needs_x), ("NEEDS_BIAS", needs_bias),
            ("UNROLL", unroll), ("LOADS", chosen.loads),
            ("GATED", gate.gated), ("NEEDS_OTHER", needs_other), ("NEEDS_OTHER_BIAS", needs_other_bias),
        ),
        num_warps=num_warps(tile.warps, target),
        registers=chosen.registers,
    )  # fmt: skip
    if sums.count == 1 or not (needs_bias or needs_other_bias):
        return Backward(main, sums.count, None)
    if vectors == 2 and not gate.is_joined:
        both = reduce(sums.count, 2 * matrices.bias_size, target)
        both = replace(both, kernel="reduce_both_partials", integers=(sums.count, matrices.bias_size))
        return Backward(main, sums.count, both)
    return Backward(main, sums.count, reduce(sums.count, vectors * matrices.bias_size, target))


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


def _strides(matrices: Matrices, tensors: int, align: int) -> Iterable[int]:
    """The strides of so many tensors in units of `align`, 0 for those that `matrices` does not have."""
    pairs = (*matrices.strides, *((0, 0),) * (tensors - len(matrices.strides)))
    return (stride // align for pair in pairs for stride in pair)
