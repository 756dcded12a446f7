"""The launch plans of `bias_geglu` and `bias_gelu_mul`: those of `bias_gelu`, whose kernels multiply by another tensor.

The halves of a joined x are matrices of half its size along `dim`, with x's strides, and an offset between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ..core.declare import HALF, half
from ..core.dropout import numbered, split_numbered
from ..core.matrices import Ints, Matrices, matrices
from ..core.plan import PARTIALS, Partials, Plan, Step
from ..core.run import dense_strides
from ..core.targets import Target
from .bias_gelu_plan import Gate, backward_launches, forward_launch


def joined_forward(
    target: Target,
    layout: Ints,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    activated: str,
    *,
    dropout_p: float = 0.0,
) -> Plan:
    """Plan y = gelu(one half of x + bias) times the other."""
    shape, y = HALF.shape(x.shape, dim), dense_strides(half(x, dim))
    axis, places = None if bias is None else dim, numbered(shape, dim, y, dropout_p, x.itemsize)
    seen, strides = _together(shape, axis, (x.stride(), y, *places), (layout, y, *places))
    seen, drops = split_numbered(seen, dropout_p, x.itemsize)
    gate = Gate(activated, (_offset(shape, strides[0], dim), 0, 0))
    seen = replace(seen, strides=(*seen.strides, seen.strides[0]))  # the factor lies as what goes through GELU does
    launch = forward_launch(seen, x.itemsize, approximate, target, gate, drops)
    return Plan((Step(launch, ("x", "bias", "y", None, None, "seed")),), dense=("x",) if strides[0] is layout else ())


def forward(
    target: Target,
    layout: Ints,
    x: Tensor,
    other: Tensor,
    bias: Tensor | None,
    other_bias: Tensor | None,
    dim: int,
    approximate: str,
    *,
    dropout_p: float = 0.0,
) -> Plan:
    """Plan y = gelu(x + bias) (other + other_bias)."""
    axis = None if bias is None and other_bias is None else dim
    places = numbered(x.shape, dim, layout, dropout_p, x.itemsize)
    lie = x.stride(), layout, other.stride(), *places
    seen, strides = _together(x.shape, axis, lie, (*(layout,) * 3, *places))
    seen, drops = split_numbered(seen, dropout_p, x.itemsize)
    launch = forward_launch(seen, x.itemsize, approximate, target, Gate("apart"), drops)
    dense = ("x", "other") if strides[0] is layout else ()
    return Plan((Step(launch, ("x", "bias", "y", "other", "other_bias", "seed")),), dense=dense)


def joined_backward(
    target: Target,
    layout: Ints,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    activated: str,
    needs: tuple[bool, bool],
    *,
    dropout_p: float = 0.0,
) -> Plan:
    """Plan dx and dbias of both halves in one pass."""
    given = {"dy": dy, "x": x}
    return _joined_backward(target, layout, given, bias, dim, approximate, activated, dropout_p, (False, *needs))


def joined_double_backward(
    target: Target,
    layout: Ints,
    ddx: Tensor,
    ddbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    activated: str,
    needs: tuple[bool, bool, bool],
    *,
    dropout_p: float = 0.0,
) -> Plan:
    """Plan the gradients of `joined_backward` for dy, x and bias, in one pass."""
    given = {"dy": dy, "x": x, "ddx": ddx}
    return _joined_backward(target, layout, given, bias, dim, approximate, activated, dropout_p, needs)


def _joined_backward(
    target: Target,
    layout: Ints,
    given: Mapping[str, Tensor],
    bias: Tensor | None,
    dim: int,
    approximate: str,
    activated: str,
    dropout_p: float,
    needs: tuple[bool, bool, bool],
) -> Plan:
    """Either of them."""
    x, double = given["x"], "ddx" in given
    shape, y = HALF.shape(x.shape, dim), dense_strides(half(x, dim))
    ddx = given.get("ddx", x)
    places = numbered(shape, dim, y, dropout_p, x.itemsize)
    lie = given["dy"].stride(), ddx.stride(), x.stride(), layout, y, *places
    seen, strides = _together(shape, None if bias is None else dim, lie, (y, layout, layout, layout, y, *places))
    seen, drops = split_numbered(seen, dropout_p, x.itemsize)
    dense = tuple(given) if strides[2] is layout else ()
    needs_dy, needs_x, needs_bias = needs
    x_half, ddx_half, dx_half = (_offset(shape, strides[place], dim) for place in (2, 1, 3))
    plan = backward_launches(
        replace(seen, strides=(*seen.strides[:4], seen.strides[2], seen.strides[4])),
        x.itemsize, approximate, target, double=double,
        needs_dy=needs_dy, needs_x=needs_x, needs_bias=needs_bias, needs_other=needs_x, needs_other_bias=needs_bias,
        gate=Gate(activated, (x_half, ddx_half if double else 0, dx_half)), drops=drops,
    )  # fmt: skip
    dx, dbias = ("d2x", "d2bias") if double else ("dx", "dbias")
    sums = Partials(dbias, plan.partials, 2 * seen.bias_size, plan.reduce) if needs_bias else None
    tensors = "dy", "ddx", "ddbias", "x", "bias", "ddy", dx, PARTIALS if needs_bias else None, *(None,) * 6, "seed"
    return Plan((Step(plan.main, tensors),), sums, dense)


def backward(
    target: Target,
    layout: Ints,
    dy: Tensor,
    x: Tensor,
    other: Tensor,
    bias: Tensor | None,
    other_bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool, bool, bool],
    *,
    dropout_p: float = 0.0,
) -> Plan:
    """Plan the gradients of x, other and both biases in one pass."""
    given = {"dy": dy, "x": x, "other": other}
    return _backward(
        target, layout, given, bias is not None or other_bias is not None, dim, approximate, dropout_p, (False, *needs)
    )


def double_backward(
    target: Target,
    layout: Ints,
    ddx: Tensor,
    ddother: Tensor,
    ddbias: Tensor | None,
    ddother_bias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    other: Tensor,
    bias: Tensor | None,
    other_bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool, bool, bool, bool],
    *,
    dropout_p: float = 0.0,
) -> Plan:
    """Plan the gradients of `backward` for dy, x, other and both biases, in one pass."""
    given = {"dy": dy, "x": x, "other": other, "ddx": ddx, "ddother": ddother}
    return _backward(
        target, layout, given, bias is not None or other_bias is not None, dim, approximate, dropout_p, needs
    )


def _backward(
    target: Target,
    layout: Ints,
    given: Mapping[str, Tensor],
    biased: bool,
    dim: int,
    approximate: str,
    dropout_p: float,
    needs: tuple[bool, bool, bool, bool, bool],
) -> Plan:
    """Either of them. The gradients of dx and dother have to lie alike."""
    x, double = given["x"], "ddx" in given
    ddx, ddother = given.get("ddx", x), given.get("ddother", x)
    places = numbered(x.shape, dim, layout, dropout_p, x.itemsize)
    lie = given["dy"].stride(), ddx.stride(), x.stride(), layout, given["other"].stride(), layout, *places
    axis, alike = dim if biased else None, ddx.stride() == ddother.stride()
    seen, strides = _together(x.shape, axis, lie, (*(layout,) * 6, *places), alike)
    seen, drops = split_numbered(seen, dropout_p, x.itemsize)
    dense = tuple(given) if strides[2] is layout else ()
    needs_dy, needs_x, needs_other, needs_bias, needs_other_bias = needs
    plan = backward_launches(
        seen, x.itemsize, approximate, target, gate=Gate("apart"), double=double, needs_dy=needs_dy, needs_x=needs_x,
        needs_bias=needs_bias, needs_other=needs_other, needs_other_bias=needs_other_bias,
        drops=drops,
    )  # fmt: skip
    d = "d2" if double else "d"
    wanted = [name for name, needed in ((f"{d}bias", needs_bias), (f"{d}other_bias", needs_other_bias)) if needed]
    several, both = plan.reduce is not None, len(wanted) == 2
    sums = (
        Partials(
            wanted[0], plan.partials, (1 + (both and several)) * seen.bias_size, plan.reduce,
            wanted[1] if both and several else None,
        )
        if wanted
        else None
    )  # fmt: skip
    tensors = (
        "dy", "ddx", "ddbias", "x", "bias", "ddy", f"{d}x", PARTIALS if wanted else None,
        "ddother", "ddother_bias", "other", "other_bias", f"{d}other", wanted[1] if both and not several else None,
        "seed",
    )  # fmt: skip
    return Plan((Step(plan.main, tensors),), sums, dense)


def _offset(shape: Sequence[int], strides: Sequence[int], dim: int) -> int:
    """How far the second half begins after the first, in elements."""
    return shape[dim] * strides[dim]


def _together(
    shape: Sequence[int], dim: int | None, lie: Sequence[Ints], dense: Sequence[Ints], possible: bool = True
) -> tuple[Matrices, Sequence[Ints]]:
    """The matrices that tensors of a shape are, and their strides: those they have, or `dense` where they must."""
    seen = matrices(shape, dim, *lie) if possible else None
    if seen is not None:
        return seen, lie
    return matrices(shape, dim, *dense) or _column(shape, dim, dense), dense


def _column(shape: Sequence[int], dim: int | None, dense: Sequence[Ints]) -> Matrices:
    """The matrices of halves of one element that lie next to each other: one column, with gaps between its rows."""
    steps = [min(step for step, size in zip(strides, shape, strict=True) if size != 1) for strides in dense]
    return Matrices(1, math.prod(shape), 1, "none" if dim is None else "cols", tuple([(0, step) for step in steps]))
