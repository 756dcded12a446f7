"""The float64 reference of whole passes in tests, and the tolerance: how far from it a result may be."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from perf.accuracy.truth import gelu, spacing
from triton_gelu.formulas import FORMULAS

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def torch_gelu(u: Tensor, approximate: str) -> Tensor:
    """What a user of PyTorch would write."""
    return FORMULAS[approximate].standard(u)


def broadcast(bias: Tensor | None, x: Tensor, dim: int) -> Tensor | float:
    """The bias in a shape that adds to x along `dim`."""
    return 0.0 if bias is None else bias.view(-1, *[1] * (x.ndim - dim % x.ndim - 1))


Triple = tuple[Tensor, Tensor, Tensor | None]


def true_pass(x: Tensor, bias: Tensor | None, dy: Tensor, dim: int, approximate: str) -> Triple:
    """y, dx and dbias in float64."""
    u = x.double() + broadcast(None if bias is None else bias.double(), x, dim)
    dx = dy.double() * gelu(u, approximate, order=1)
    others = [d for d in range(x.ndim) if d != dim % x.ndim]
    dbias = None if bias is None else dx.sum(others) if others else dx
    return gelu(u, approximate), dx, dbias


def one_pass(function: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, bias: Tensor | None, dy: Tensor) -> Triple:
    """y, dx and dbias of a function of (x, bias), by autograd."""
    x = x.detach().requires_grad_()
    bias = None if bias is None else bias.detach().requires_grad_()
    y = function(x, bias)
    dx, *rest = torch.autograd.grad(y, [x] if bias is None else [x, bias], dy)
    return y.detach(), dx, rest[0] if rest else None


def assert_no_worse_than(baseline: Tensor, ours: Tensor, truth: Tensor, slack: Tensor | float = 0.0) -> None:
    """The policy: against float64, err no more than PyTorch does in the same type, give or take the final rounding."""
    assert ours.dtype == baseline.dtype
    assert ours.shape == truth.shape
    error = (ours.double() - truth).abs()
    allowed = (baseline.double() - truth).abs().max() + 0.5 * spacing(truth, ours.dtype) + slack
    worst = (error - allowed).max().item()
    assert worst <= 0, f"off by {error.max().item():.3g}, {worst:.3g} more than allowed"


def summation_slack(terms: Tensor, dim: int) -> Tensor:
    """What the fp32 sum of `terms` over everything but `dim` may be off by, whatever its order.

    The bound holds with high probability: Higham and Mary, "A new approach to probabilistic rounding error analysis".
    """
    others = [d for d in range(terms.ndim) if d != dim % terms.ndim]
    total = terms.abs().sum(others) if others else terms.abs()
    return math.sqrt(terms.numel() / terms.shape[dim]) * 2.0**-24 * total
