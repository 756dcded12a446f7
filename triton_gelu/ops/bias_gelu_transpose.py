"""The operator bias_gelu_transpose: GELU of x + bias, [N, C, L], as [N, L, C], plus a position [L, C].

A kernel reads x once and writes y once; its backward pass reads dy and x once and writes dx once. Elsewhere it is made
of `bias_gelu` and PyTorch's own operations: right, and a pass more. So it is in a compiler's graph, where Inductor
fuses transposition and position with the LayerNorm behind them: a kernel of our own there saved nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..core import compat_triton
from ..core.declare import BACKWARD, DOUBLE_BACKWARD, EXCHANGED, FORWARD, PLANE, VECTOR, WHOLE, Arg, Option, Tensors
from ..core.dispatch import Backend, Kernels, Support
from ..core.op import Op
from ..core.run import dense_strides
from ..formulas import check_approximate
from . import bias_gelu_transpose_plan
from .bias_gelu import BIAS_GELU, PLAIN
from .bias_gelu import standard as bias_gelu_standard

CHANNELS = 1
"""The dimension of x that the bias runs along."""


def compose(
    name: str, value: Callable[..., Tensor], gradients: Callable[..., Tensors], second: Callable[..., Tensors]
) -> Backend:
    """The operator made of the three levels of `bias_gelu`, as some backend computes them, and PyTorch's operations."""

    def forward(x: Tensor, bias: Tensor | None, position: Tensor | None, approximate: str) -> Tensor:
        y = value(x, bias, CHANNELS, approximate).transpose(1, 2)
        if position is not None:
            y = (position + y).to(x.dtype)  # position first: eager PyTorch then writes the sum as it is wanted
        return y.contiguous()

    def backward(
        dy: Tensor,
        x: Tensor,
        bias: Tensor | None,
        position: Tensor | None,
        approximate: str,
        needs: tuple[bool, bool, bool],
    ) -> Tensors:
        dx = dbias = dposition = None
        if needs[0] or needs[1]:
            dx, dbias = gradients(dy.transpose(1, 2), x, bias, CHANNELS, approximate, needs[:2])
        if needs[2] and position is not None:
            dposition = dy.sum(0, dtype=torch.promote_types(dy.dtype, position.dtype)).to(position.dtype)
        return dx, dbias, dposition

    def double_backward(
        ddx: Tensor | None,
        ddbias: Tensor | None,
        ddposition: Tensor | None,
        dy: Tensor,
        x: Tensor,
        bias: Tensor | None,
        position: Tensor | None,
        approximate: str,
        needs: tuple[bool, bool, bool, bool],
    ) -> Tensors:
        if ddx is None and ddbias is None:
            ddx = torch.zeros_like(x)
        ddy, d2x, d2bias = second(ddx, ddbias, dy.transpose(1, 2), x, bias, CHANNELS, approximate, needs[:3])
        if ddy is not None:
            ddy = ddy.transpose(1, 2)
            ddy = (ddy if ddposition is None else (ddposition + ddy).to(dy.dtype)).contiguous()
        return ddy, d2x, d2bias, torch.zeros_like(position) if needs[3] and position is not None else None

    return Backend(name, forward, backward, double_backward)


def _kernels_support(x: Tensor) -> Support:
    """Kernels read and write rows of x without gaps, and lay dx out densely."""
    if x.stride(2) == 1 and dense_strides(x) == torch.empty(x.shape, device="meta").stride():
        return Support.yes("x is [N, C, L] with contiguous rows")
    return Support.no("x does not lie as [N, C, L] with contiguous rows")


def _check(x: Tensor, approximate: str) -> tuple[str]:
    """The options; raises where x or they do not fit."""
    if x.ndim != 3:
        raise ValueError(f"x must have three dimensions, [N, C, L], got shape {tuple(x.shape)}")
    check_approximate(approximate)
    return (approximate,)


_levels = [partial(BIAS_GELU.compute, level) for level in (FORWARD, BACKWARD, DOUBLE_BACKWARD)]
COMPOSED = compose("bias_gelu, then PyTorch's operations", *_levels)
assert PLAIN.double_backward is not None

BIAS_GELU_TRANSPOSE = Op(
    "bias_gelu_transpose",
    [Arg("x", WHOLE), Arg("bias", VECTOR, optional=True), Arg("position", PLANE, optional=True, read=False)],
    EXCHANGED,
    [Option("approximate", "str")],
    dim=lambda approximate: CHANNELS,
    check=_check,
    kernels=Kernels(
        compat_triton.import_kernels(".bias_gelu_transpose_kernels", __package__),
        bias_gelu_transpose_plan.forward,
        bias_gelu_transpose_plan.backward,
        supports=_kernels_support,
        in_graphs=False,
    ),
    backends=[COMPOSED],
    plain=compose(PLAIN.name, PLAIN.forward, PLAIN.backward, PLAIN.double_backward),
    graph=COMPOSED,
    standard=compose("standard operators", bias_gelu_standard, PLAIN.backward, PLAIN.double_backward).forward,
)
"""gelu(x + bias), transposed, plus position, and its derivatives: see `triton_gelu.bias_gelu_transpose`."""
