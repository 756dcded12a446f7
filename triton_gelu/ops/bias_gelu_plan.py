"""Plans of bias_gelu."""

from __future__ import annotations

from torch import Tensor

from ..core import launch
from ..core.launch import Target
from ..core.matrices import matrices_of
from ..core.plan import PARTIALS, Partials, Plan, Step

Ints = tuple[int, ...]


def forward(target: Target, layout: Ints, x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Plan:
    """y = gelu(x + bias) in one launch."""
    matrices, copied = matrices_of(layout, x.shape, None if bias is None else dim, x.stride())
    step = Step(launch.forward(matrices, x.itemsize, approximate, target), ("x", "bias", "y"))
    return Plan((step,), dense=("x",) if copied else ())


def backward(target, layout, dy, x, bias, dim, approximate, needs) -> Plan:
    return double_backward(target, layout, None, None, dy, x, bias, dim, approximate, (False, *needs), "dx", "dbias")


def double_backward(
    target, layout, ddx, ddbias, dy, x, bias, dim, approximate, needs, dx="d2x", dbias="d2bias"
) -> Plan:
    needs_dy, needs_x, needs_bias = needs
    along = None if bias is None else dim
    matrices, copied = matrices_of(
        layout, x.shape, along, dy.stride(), (dy if ddx is None else ddx).stride(), x.stride()
    )
    needs_bias = needs_bias and bias is not None
    plan = launch.backward(
        matrices, x.itemsize, approximate, target, needs_dy=needs_dy, needs_x=needs_x, needs_bias=needs_bias
    )
    step = Step(plan.walk, ("dy", "ddx", "ddbias", "x", "bias", "ddy", dx, PARTIALS if needs_bias else None))
    partials = Partials(dbias, plan.slabs, matrices.bias_size, plan.finish) if needs_bias else None
    names = ("dy", "x") if ddx is None else ("ddx", "dy", "x")
    return Plan((step,), partials, names if copied else ())
