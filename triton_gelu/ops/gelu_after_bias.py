"""The operator gelu_after_bias: GELU of a sum that is there, and the bias gradient from bias_gelu's backward kernel.

A layer of PyTorch's own adds its bias for nothing where that is the epilogue of a product. Then GELU needs no bias, but
its backward pass has each term of the bias gradient at hand, and summing them there saves PyTorch a pass: `fuse` asks
for this. The kernels are those of `bias_gelu`, which are given no bias and asked for its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import compat_triton
from ..core.declare import VECTOR, WHOLE, Arg, Option, Tensors
from ..core.dispatch import Backend, Kernels
from ..core.op import Op
from . import bias_gelu_compiled, bias_gelu_plan
from .bias_gelu import CPU, PLAIN, check_options, standard
from .bias_gelu_compiled import COMPILED


def _by(of: Backend) -> Backend:
    """The operator by a backend of `bias_gelu`: its value without a bias, its gradients with one of zeros."""

    def forward(x: Tensor, bias: Tensor, dim: int, approximate: str) -> Tensor:
        return of.forward(x, None, dim, approximate)

    def backward(dy: Tensor, x: Tensor, bias: Tensor, dim: int, approximate: str, needs: tuple[bool, bool]) -> Tensors:
        return of.backward(dy, x, torch.zeros_like(bias) if needs[1] else None, dim, approximate, needs)

    def double_backward(
        ddx: Tensor | None,
        ddbias: Tensor | None,
        dy: Tensor,
        x: Tensor,
        bias: Tensor,
        dim: int,
        approximate: str,
        needs: tuple[bool, bool, bool],
    ) -> Tensors:
        assert of.double_backward is not None
        zeros = torch.zeros_like(bias)
        ddy, d2x, _ = of.double_backward(ddx, ddbias, dy, x, zeros, dim, approximate, (*needs[:2], False))
        return ddy, d2x, zeros if needs[2] else None  # the value of the bias is nowhere read

    return Backend(of.name, forward, backward, double_backward if of.double_backward else None, of.supports)


def _compiled_backward(
    dy: Tensor, x: Tensor, bias: Tensor, dim: int, approximate: str, needs: tuple[bool, bool]
) -> Tensors:
    """dx and dbias in a compiled graph."""
    dx, dbias = bias_gelu_compiled.gradients(dy, x, None, bias if needs[1] else None, dim, approximate)
    return dx if needs[0] else None, dbias


GELU_AFTER_BIAS = Op(
    "gelu_after_bias",
    [Arg("x", WHOLE), Arg("bias", VECTOR, read=False)],
    WHOLE,
    [Option("dim", "int"), Option("approximate", "str")],
    dim=lambda dim, approximate: dim,
    check=check_options,
    kernels=Kernels(
        compat_triton.import_kernels(".bias_gelu_kernels", __package__),
        bias_gelu_plan.forward_after_bias,
        bias_gelu_plan.backward_after_bias,
    ),
    backends=[_by(CPU)],
    plain=_by(PLAIN),
    graph=Backend(COMPILED.name, _by(COMPILED).forward, _compiled_backward),
    standard=lambda x, bias, dim, approximate: standard(x, None, dim, approximate),
)
"""gelu(x), where x is a sum with `bias` along `dim`, and in its backward pass dx and dbias."""
