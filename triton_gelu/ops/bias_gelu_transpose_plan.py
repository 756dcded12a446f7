"""Plans of bias_gelu_transpose."""

from __future__ import annotations

from torch import Tensor

from ..core import launch
from ..core.launch import Target
from ..core.plan import PARTIALS, Partials, Plan, Step

Ints = tuple[int, ...]


def forward(
    target: Target, layout: Ints, x: Tensor, bias: Tensor | None, position: Tensor | None, approximate: str
) -> Plan:
    return Plan(
        (Step(launch.forward_transpose(x.shape, x.stride(), approximate, target), ("x", "bias", "position", "y")),)
    )


def backward(target, layout, dy, x, bias, position, approximate, needs) -> Plan:
    """dx and the partial sums of dbias in one pass, [N, L, C] read as [N, C, L]; dposition is a sum over the batch."""
    needs_x, needs_bias, needs_position = needs
    sums = (("dposition", "dy"),) if needs_position and position is not None else ()
    needs_bias = needs_bias and bias is not None
    if not (needs_x or needs_bias):
        return Plan(sums=sums)
    strides, dense = dy.stride(), ()
    if strides[2] != 1:
        strides, dense = (x.shape[1] * x.shape[2], x.shape[1], 1), ("dy",)
    plan = launch.backward_transpose(x.shape, x.stride(), strides, approximate, target, needs_bias=needs_bias)
    step = Step(plan.walk, ("dy", "x", "bias", "dx", PARTIALS if needs_bias else None))
    partials = Partials("dbias", plan.slabs, x.shape[1], plan.finish) if needs_bias else None
    return Plan((step,), partials, dense, sums)
