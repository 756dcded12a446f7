"""The operator bias_geglu: a gated GELU of the two halves of x + bias, which one projection makes.

The halves lie in one tensor, and their gradients come back in one: it is those of `bias_gelu_mul`, joined.
"""

from __future__ import annotations

from torch import Tensor

from ..core import compat_triton
from ..core.declare import HALF, VECTOR, WHOLE, Arg, Option, Tensors
from ..core.dispatch import Backend, Kernels, cpu_support
from ..core.op import Op
from ..formulas import FORMULAS
from . import bias_gelu, gated_compiled, gated_cpu, gated_plan, vectors
from .bias_gelu import value
from .bias_gelu_mul import gradients, incoming, second_gradients, sums_wide, to_dtype_of
from .halves import check_activated, halves, joined


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str, activated: str) -> Tensor:
    """gelu(one half of x + bias) times the other in x's dtype; arithmetic in fp32, or fp64 for fp64 x."""
    u, w = halves(vectors.add(x, bias, dim), dim, activated)
    return (value(u, approximate) * w).to(x.dtype)


def backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    activated: str,
    needs: tuple[bool, bool],
) -> Tensors:
    """dx and dbias, each if it is needed."""
    u, w = halves(vectors.add(x, bias, dim), dim, activated)
    du, dw = gradients(dy, u, w, approximate, (True, True))
    return _of_inputs(du, dw, x, bias, dim, activated, needs)


def double_backward(
    ddx: Tensor | None,
    ddbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    activated: str,
    needs: tuple[bool, bool, bool],
) -> Tensors:
    """The gradients of `backward` for dy, x and bias, where those of dx and dbias are ddx and ddbias (None: zero)."""
    both = vectors.add(x, bias, dim)
    u, w = halves(both, dim, activated)
    ddu, ddw = halves(incoming(ddx, ddbias, both, dim), dim, activated)
    needs_x = needs[1] or needs[2]
    ddy, d2u, d2w = second_gradients(ddu, ddw, dy, u, w, approximate, (needs[0], needs_x, needs_x))
    return to_dtype_of(dy, ddy), *_of_inputs(d2u, d2w, x, bias, dim, activated, needs[1:])


def _of_inputs(
    du: Tensor | None,
    dw: Tensor | None,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    activated: str,
    needs: tuple[bool, ...],
) -> Tensors:
    """dx and dbias, each if it is needed, where the gradients of the halves are du and dw."""
    if du is None or dw is None:
        return None, None
    dx = joined(du.to(x.dtype), dw.to(x.dtype), dim, activated)
    dbias = None
    if bias is not None and needs[1] and sums_wide(du):
        dbias = joined(vectors.total(du, bias, dim), vectors.total(dw, bias, dim), 0, activated)
    elif bias is not None and needs[1]:
        dbias = vectors.total(dx, bias, dim, du.dtype)
    return dx if needs[0] else None, dbias


def standard(x: Tensor, bias: Tensor | None, dim: int, approximate: str, activated: str) -> Tensor:
    """The same in standard operators: what an exported graph holds."""
    u, w = halves(vectors.standard_sum(x, bias, dim), dim, activated)
    return (FORMULAS[approximate].standard(u) * w).to(x.dtype)


def check_options(x: Tensor, dim: int, approximate: str, activated: str) -> tuple[int, str, str]:
    """The options in canonical form; raises where they do not fit x, or x has no halves."""
    check_activated(activated)
    dim, approximate = bias_gelu.check_options(x, dim, approximate)
    if x.ndim == 0:
        raise ValueError("x must have at least one dimension, to have halves along it, got a 0-d tensor")
    if x.shape[dim] % 2:
        raise ValueError(f"x must have an even size along dim {dim}, for its halves, got shape {tuple(x.shape)}")
    return dim, approximate, activated


CPU = Backend(bias_gelu.CPU.name, gated_cpu.joined_forward, gated_cpu.joined_backward, None, cpu_support)

BIAS_GEGLU = Op(
    "bias_geglu",
    [Arg("x", WHOLE), Arg("bias", VECTOR, optional=True)],
    HALF,
    [Option("dim", "int"), Option("approximate", "str"), Option("activated", "str")],
    dim=lambda dim, approximate, activated: dim,
    check=check_options,
    kernels=Kernels(
        compat_triton.import_kernels(".bias_gelu_kernels", __package__),
        gated_plan.joined_forward,
        gated_plan.joined_backward,
        gated_plan.joined_double_backward,
    ),
    backends=[CPU],
    plain=Backend(bias_gelu.PLAIN.name, forward, backward, double_backward),
    graph=Backend(gated_compiled.NAME, gated_compiled.joined_forward, gated_compiled.joined_backward),
    standard=standard,
)
"""gelu(one half of x + bias) times the other, and its derivatives: see `triton_gelu.bias_geglu`."""
