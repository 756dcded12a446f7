"""The kernel road."""

import pytest
import torch
from truth import DTYPES, FORMULAS

from triton_gelu import _fused


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", ["v and vbias", "v", "vbias"])
def test_the_second_backward_pass_is_the_derivative_of_the_first(
    given: str, dtype: torch.dtype, approximate: str, device: str
) -> None:
    x, dy, v = (torch.randn(3, 5, 40, device=device, dtype=torch.float64) for _ in range(3))
    bias, vbias = torch.randn(5, device=device, dtype=torch.float64), torch.randn(5, device=device, dtype=torch.float64)
    x, dy, v, bias, vbias = (t.to(dtype) for t in (x, dy, v, bias, vbias))
    inputs = [t.double().requires_grad_() for t in (dy, x, bias)]
    u = (inputs[1] + inputs[2][:, None]).detach().requires_grad_()
    y = torch.nn.functional.gelu(u, approximate=approximate) if approximate != "sigmoid" else u * (1.702 * u).sigmoid()
    (slope,) = torch.autograd.grad(y.sum(), u, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), u)
    both = (v.double() if "v" in given.split() else 0) + (vbias.double()[:, None] if "vbias" in given else 0)
    truth = (
        (both * slope).detach(),
        both * dy.double() * bend,
        (both * dy.double() * bend).sum((0, 2)),
    )
    ours = _fused.double_backward(
        v if "v" in given.split() else None,
        vbias if "vbias" in given else None,
        dy, x, bias, 1, approximate, (True, True, True),
    )  # fmt: skip
    for our, true in zip(ours, truth, strict=True):
        assert our is not None
        assert our.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(our.double(), true, rtol=4 * eps, atol=16 * eps)


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_the_second_backward_pass_computes_what_is_asked_for(needs: tuple[bool, bool, bool], device: str) -> None:
    x, bias = torch.randn(6, 40, device=device), torch.randn(40, device=device)
    everything = _fused.double_backward(x, bias, x, x, bias, 1, "tanh", (True, True, True))
    some = _fused.double_backward(x, bias, x, x, bias, 1, "tanh", needs)
    for wanted, one, same in zip(needs, some, everything, strict=True):
        assert (one is not None) == wanted
        assert one is None or same is None or torch.equal(one, same)
