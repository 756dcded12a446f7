"""The operator bias_gelu_mul, GELU of x + bias times another tensor plus its own bias: a gated GELU of two tensors.

With u = x + bias and w = other + other_bias, y = w gelu(u), the gradients are dy w gelu'(u) and dy gelu(u), and those
of these for dy, u and w follow by the product rule. The pointwise functions below say so in the terms of `bias_gelu`;
`bias_geglu` applies them to the halves of one tensor.
"""

from __future__ import annotations

from torch import Tensor

from ..core import compat_torch, compat_triton
from ..core.declare import VECTOR, WHOLE, Arg, Option, Tensors
from ..core.dispatch import Backend, Kernels, cpu_support
from ..core.op import Op
from ..formulas import FORMULAS
from . import bias_gelu, gated_compiled, gated_cpu, gated_plan, vectors
from .bias_gelu import bend, check_options, slope, value


def gradients(dy: Tensor, u: Tensor, w: Tensor, approximate: str, needs: tuple[bool, bool]) -> Tensors:
    """The gradients of y = w gelu(u) for u and w, each if it is needed."""
    dy = dy.to(u.dtype)
    return slope(dy * w, u, approximate) if needs[0] else None, dy * value(u, approximate) if needs[1] else None


def second_gradients(
    ddu: Tensor, ddw: Tensor, dy: Tensor, u: Tensor, w: Tensor, approximate: str, needs: tuple[bool, bool, bool]
) -> Tensors:
    """The gradients of `gradients` for dy, u and w, where those of du and dw are ddu and ddw."""
    dy = dy.to(u.dtype)
    return (
        slope(ddu * w, u, approximate) + ddw * value(u, approximate) if needs[0] else None,
        bend(dy * ddu * w, u, approximate) + slope(dy * ddw, u, approximate) if needs[1] else None,
        slope(dy * ddu, u, approximate) if needs[2] else None,
    )


def forward(
    x: Tensor, other: Tensor, bias: Tensor | None, other_bias: Tensor | None, dim: int, approximate: str
) -> Tensor:
    """gelu(x + bias) (other + other_bias) in x's dtype; arithmetic in fp32, or fp64 for fp64 x."""
    u, w = vectors.add(x, bias, dim), vectors.add(other, other_bias, dim)
    return (value(u, approximate) * w).to(x.dtype)


def backward(
    dy: Tensor,
    x: Tensor,
    other: Tensor,
    bias: Tensor | None,
    other_bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool, bool, bool],
) -> Tensors:
    """The gradients of x, other, bias and other_bias, each if it is needed."""
    u, w = vectors.add(x, bias, dim), vectors.add(other, other_bias, dim)
    du, dw = gradients(dy, u, w, approximate, (needs[0] or needs[2], needs[1] or needs[3]))
    return _of_inputs(du, dw, x, bias, other_bias, dim, needs)


def double_backward(
    ddx: Tensor | None,
    ddother: Tensor | None,
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
) -> Tensors:
    """The gradients of `backward` for dy and the inputs, where those of its results are given (None: zero)."""
    u, w = vectors.add(x, bias, dim), vectors.add(other, other_bias, dim)
    ddu, ddw = incoming(ddx, ddbias, u, dim), incoming(ddother, ddother_bias, w, dim)
    wanted = needs[0], needs[1] or needs[3], needs[2] or needs[4]
    ddy, d2u, d2w = second_gradients(ddu, ddw, dy, u, w, approximate, wanted)
    return to_dtype_of(dy, ddy), *_of_inputs(d2u, d2w, x, bias, other_bias, dim, needs[1:])


def standard(
    x: Tensor, other: Tensor, bias: Tensor | None, other_bias: Tensor | None, dim: int, approximate: str
) -> Tensor:
    """gelu(x + bias) (other + other_bias) in standard operators: what an exported graph holds."""
    u, w = vectors.standard_sum(x, bias, dim), vectors.standard_sum(other, other_bias, dim)
    return (FORMULAS[approximate].standard(u) * w).to(x.dtype)


def incoming(ddx: Tensor | None, ddbias: Tensor | None, u: Tensor, dim: int) -> Tensor:
    """The gradient of du, where those of dx and dbias are given (None: zero): both are made of du."""
    return vectors.add(u.new_zeros(()).expand_as(u) if ddx is None else ddx.to(u.dtype), ddbias, dim)


def sums_wide(du: Tensor) -> bool:
    """Whether the gradient of a bias is the sum of du before rounding. A compiler is given what is stored to add up.

    Of the wider numbers, it would write or compute each a second time.
    """
    return compat_torch.is_plain_eager(du) or compat_torch.is_transformed()


def to_dtype_of(x: Tensor, gradient: Tensor | None) -> Tensor | None:
    """A gradient of x, if it is needed, in x's dtype."""
    return None if gradient is None else gradient.to(x.dtype)


def _of_inputs(
    du: Tensor | None,
    dw: Tensor | None,
    x: Tensor,
    bias: Tensor | None,
    other_bias: Tensor | None,
    dim: int,
    needs: tuple[bool, ...],
) -> Tensors:
    """The gradients of x, other and the biases that are needed, where those of u and w are du and dw."""
    needs_x, needs_other, needs_bias, needs_other_bias = needs
    dx, dother = to_dtype_of(x, du), to_dtype_of(x, dw)
    return (
        dx if needs_x else None,
        dother if needs_other else None,
        _of_bias(du, dx, bias, dim) if needs_bias else None,
        _of_bias(dw, dother, other_bias, dim) if needs_other_bias else None,
    )


def _of_bias(du: Tensor | None, dx: Tensor | None, bias: Tensor | None, dim: int) -> Tensor | None:
    if du is None or dx is None or bias is None:
        return None
    return vectors.total(du if sums_wide(du) else dx, bias, dim, du.dtype)


CPU = Backend(bias_gelu.CPU.name, gated_cpu.forward, gated_cpu.backward, None, cpu_support)

BIAS_GELU_MUL = Op(
    "bias_gelu_mul",
    [
        Arg("x", WHOLE),
        Arg("other", WHOLE),
        Arg("bias", VECTOR, optional=True),
        Arg("other_bias", VECTOR, optional=True),
    ],
    WHOLE,
    [Option("dim", "int"), Option("approximate", "str")],
    dim=lambda dim, approximate: dim,
    check=check_options,
    kernels=Kernels(
        compat_triton.import_kernels(".bias_gelu_kernels", __package__),
        gated_plan.forward,
        gated_plan.backward,
        gated_plan.double_backward,
    ),
    backends=[CPU],
    plain=Backend(bias_gelu.PLAIN.name, forward, backward, double_backward),
    graph=Backend(gated_compiled.NAME, gated_compiled.forward, gated_compiled.backward),
    standard=standard,
)
"""gelu(x + bias) (other + other_bias), its backward and double backward: see `triton_gelu.bias_gelu_mul`."""
