"""What is true (float64, without cancellation), and how far from it a result may be."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FORMULAS = ("tanh", "none", "sigmoid")


def gelu(u: Tensor, approximate: str) -> Tensor:
    """GELU of a float64 tensor."""
    if approximate == "none":
        return u * 0.5 * torch.erfc(-u / math.sqrt(2))
    return u * torch.sigmoid(_z(u, approximate))


def dgelu(u: Tensor, approximate: str) -> Tensor:
    """Its derivative."""
    if approximate == "none":
        return 0.5 * torch.erfc(-u / math.sqrt(2)) + u * torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)
    z = _z(u, approximate)
    dz = 1.702 if approximate == "sigmoid" else 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * u * u)
    return torch.sigmoid(z) * (1 + u * dz * torch.sigmoid(-z))


def _z(u: Tensor, approximate: str) -> Tensor:
    return 1.702 * u if approximate == "sigmoid" else 2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)


def torch_gelu(u: Tensor, approximate: str) -> Tensor:
    """What a user of PyTorch would write."""
    if approximate == "sigmoid":
        return u * torch.sigmoid(1.702 * u)
    return torch.nn.functional.gelu(u, approximate=approximate)


def broadcast(bias: Tensor | None, x: Tensor, dim: int) -> Tensor | float:
    """The bias in a shape that adds to x along `dim`."""
    return 0.0 if bias is None else bias.view(-1, *[1] * (x.ndim - dim % x.ndim - 1))


Triple = tuple[Tensor, Tensor, Tensor | None]


def true_pass(x: Tensor, bias: Tensor | None, dy: Tensor, dim: int, approximate: str) -> Triple:
    """y, dx and dbias in float64."""
    u = x.double() + broadcast(None if bias is None else bias.double(), x, dim)
    dx = dy.double() * dgelu(u, approximate)
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


def spacing(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbouring numbers of a type at |truth|: one ulp."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(truth.abs().clamp(min=info.tiny)).exponent - 1
    return info.eps * torch.exp2(exponent.double())


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
