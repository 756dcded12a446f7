"""bias_gelu_transpose: values and gradients on the kernels' road and on the composed one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from truth import DTYPES, FORMULAS, assert_no_worse_than, summation_slack, torch_gelu, true_pass

from triton_gelu import bias_gelu_transpose

Function = Callable[..., Tensor]


def plain(x: Tensor, bias: Tensor | None, position: Tensor | None, *, approximate: str = "tanh") -> Tensor:
    """What a user of PyTorch would write."""
    y = torch_gelu(x if bias is None else x + bias[:, None], approximate).to(x.dtype).transpose(1, 2)
    return y if position is None else (y + position).to(x.dtype)


def results(function: Function, inputs: tuple[Tensor | None, ...], dy: Tensor) -> list[Tensor | None]:
    """The value, and the gradients of those inputs that there are."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    gradients = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], dy))
    return [y.detach(), *(None if t is None else next(gradients) for t in leaves)]


def check(x: Tensor, bias: Tensor | None, position: Tensor | None, dy: Tensor, approximate: str = "tanh") -> None:
    """Nothing is further from the truth than the same thing written in PyTorch."""
    inputs = x, bias, position
    ours = results(lambda *t: bias_gelu_transpose(*t, approximate=approximate), inputs, dy)
    theirs = results(lambda *t: plain(*t, approximate=approximate), inputs, dy)
    turned = dy.transpose(1, 2)
    y, dx, dbias = true_pass(x, bias, turned, 1, approximate)
    truth = [
        y.transpose(1, 2) + (0 if position is None else position.double()),
        dx,
        dbias,
        dy.double().sum(0),
    ]
    assert ours[0] is not None
    assert ours[0].is_contiguous()
    for our, their, true, slack in zip(ours, theirs, truth, (0, 0, summation_slack(dx, 1), 0), strict=True):
        assert (our is None) == (their is None)
        if our is not None and their is not None and true is not None:
            assert_no_worse_than(their, our, true, slack)


def tensors(n: int, c: int, length: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = (n, c, length), (c,), (length, c), (n, length, c)
    x, bias, position, dy = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    return 3 * x, bias, position, dy


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 40, 60), (3, 5, 75)], ids=str)
def test_every_formula_and_type_is_right(
    shape: tuple[int, int, int], dtype: torch.dtype, approximate: str, device: str
) -> None:
    check(*tensors(*shape, dtype, device), approximate)
