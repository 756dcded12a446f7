"""gelu_after_bias: GELU of a sum, whose backward pass leaves the gradient of the bias in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from truth import DTYPES, FORMULAS

from triton_gelu.core.op import Op
from triton_gelu.ops.bias_gelu import BIAS_GELU
from triton_gelu.ops.gelu_after_bias import GELU_AFTER_BIAS

SHAPES = [((5, 40), 1), ((2, 7, 30), 1), ((300, 20), -1), ((2, 6, 5, 7), 1), ((9,), 0), ((0, 4), 1)]


def passes(op: Op, x: Tensor, bias: Tensor, dy: Tensor, dim: int, approximate: str) -> tuple[Tensor, Tensor, Tensor]:
    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    y = op.call(x, bias, dim, approximate)
    return y.detach(), *torch.autograd.grad(y, (x, bias), dy)


@pytest.mark.parametrize("without", [False, True], ids=["kernels", "no kernels"])
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_bias_gelu_of_a_bias_of_zeros_whatever_the_bias_is(
    dtype: torch.dtype, approximate: str, shape: tuple[int, ...], dim: int, without: bool, device: str,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if without:
        request.getfixturevalue("without_kernels")
    x, dy = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    bias = torch.randn(shape[dim], device=device).to(dtype)
    ours = passes(GELU_AFTER_BIAS, x, bias, dy, dim, approximate)
    same = passes(BIAS_GELU, x, torch.zeros_like(bias), dy, dim, approximate)
    for one, other in zip(ours, same, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        assert torch.equal(one, other)


def test_it_is_an_operator_like_the_others(device: str) -> None:
    x, bias = torch.randn(3, 4, 8, device=device), torch.randn(8, device=device)
    torch.library.opcheck(torch.ops.triton_gelu.gelu_after_bias, (x.requires_grad_(), bias.requires_grad_(), 2, "tanh"))
    double = [t.detach()[..., :3].double().requires_grad_() for t in (x, bias)]
    assert torch.autograd.gradgradcheck(lambda x, bias: GELU_AFTER_BIAS.call(x + bias, bias, 2, "none"), double)


def test_only_the_gradient_that_is_needed_is_computed(device: str) -> None:
    x, bias = torch.randn(6, 8, device=device), torch.randn(8, device=device)
    for needs in ((True, False), (False, True)):
        found = GELU_AFTER_BIAS.fastest(1, x)(x, x, bias, 1, "tanh", needs)
        assert tuple(each is not None for each in found) == needs
