"""The CPU backend of gated GELUs: what it computes block by block is what plain PyTorch computes at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from truth import FORMULAS

from perf.accuracy.truth import spacing
from triton_gelu.ops import bias_geglu, bias_gelu_mul, cpu_blocks, gated_cpu

LAYOUTS: dict[str, Callable[[], tuple[Tensor, int]]] = {
    "a matrix": lambda: (torch.randn(37, 24), 1),
    "a matrix with a bias down its rows": lambda: (torch.randn(38, 23), 0),
    "rows longer than a block": lambda: (torch.randn(3, 302), 1),
    "a convolution's output": lambda: (torch.randn(5, 8, 31), 1),
    "channels longer than a block": lambda: (torch.randn(2, 4, 250), 1),
    "a channels-last image": lambda: (torch.randn(2, 6, 9, 13).contiguous(memory_format=torch.channels_last), 1),
    "a transposed matrix": lambda: (torch.randn(24, 37).t(), 1),
    "a permuted tensor": lambda: (torch.randn(4, 5, 6, 7).permute(2, 0, 3, 1), 1),
    "a chunk of the features": lambda: (torch.randn(3, 7, 40).chunk(2, -1)[1], 2),
    "columns with gaps": lambda: (torch.randn(3, 7, 40)[..., ::2], 2),
    "an expanded tensor": lambda: (torch.randn(7, 40).expand(3, 7, 40), 2),
    "a vector": lambda: (torch.randn(450), 0),
    "two elements": lambda: (torch.randn(2), 0),
    "nothing": lambda: (torch.randn(0, 8), 1),
    "halves of nothing": lambda: (torch.randn(8, 0), 1),
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts tensors into blocks of a hundred elements."""
    monkeypatch.setattr(cpu_blocks, "block_size", lambda: 100)


def assert_same(ours: tuple[Tensor | None, ...], plain: tuple[Tensor | None, ...], dtype: torch.dtype) -> None:
    for one, other in zip(ours, plain, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, rtol=4 * torch.finfo(dtype).eps, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activated", ["first", "second"])
def test_blocks_of_any_layout_give_what_one_plain_pass_gives(
    activated: str, layout: str, approximate: str, dtype: torch.dtype, small_blocks: None
) -> None:
    x, dim = LAYOUTS[layout]()
    x, bias = x.to(dtype), torch.randn(x.shape[dim])
    half = x.narrow(dim, 0, x.shape[dim] // 2)
    dy = torch.randn(half.shape[::-1]).to(dtype).permute(*reversed(range(x.ndim)))
    before = [t.clone() for t in (x, bias, dy)]
    options = dim, approximate, activated
    y = gated_cpu.joined_forward(x, bias, *options)
    dx, dbias = gated_cpu.joined_backward(dy, x, bias, *options, (True, True))
    assert_same((y,), (bias_geglu.forward(x, bias, *options),), dtype)
    assert_same((dx, dbias), bias_geglu.backward(dy, x, bias, *options, (True, True)), dtype)
    assert dx is not None
    assert y.stride() == torch.empty_like(half).stride()
    assert dx.stride() == torch.empty_like(x).stride()
    assert all(map(torch.equal, (x, bias, dy), before))


@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=4)), ids=str)
@pytest.mark.parametrize("shape", [(9, 50), (450,), (1, 50)], ids=str)
def test_of_two_tensors_only_what_is_needed_is_computed(
    shape: tuple[int, ...], needs: tuple[bool, bool, bool, bool], small_blocks: None
) -> None:
    x, other, dy = (torch.randn(shape) for _ in range(3))
    bias, other_bias = torch.randn(shape[-1]), torch.randn(shape[-1]).double()
    dim = len(shape) - 1
    for biases in ((bias, other_bias), (None, other_bias), (bias, None), (None, None)):
        ours = gated_cpu.backward(dy, x, other, *biases, dim, "none", needs)
        theirs = bias_gelu_mul.backward(dy, x, other, *biases, dim, "none", needs)
        assert_same(ours, theirs, torch.float32)
        found = [t.data_ptr() for t in ours if t is not None]
        assert len(set(found)) == len(found)
        y = gated_cpu.forward(x, other, *biases, dim, "none")
        assert_same((y,), (bias_gelu_mul.forward(x, other, *biases, dim, "none"),), torch.float32)


@pytest.mark.parametrize("activated", ["first", "second"])
def test_the_bias_gradient_of_many_rows_does_not_lose_the_small_ones(activated: str) -> None:
    dy = torch.cat([torch.full((1, 4), 1e4), torch.full((999_999, 4), 1e-4)]).bfloat16()
    x = torch.ones(1_000_000, 8, dtype=torch.bfloat16)
    x.narrow(1, 0 if activated == "first" else 4, 4).fill_(10)  # where the derivative is 1, so that terms are known
    gradient = gated_cpu.joined_backward(dy, x, torch.zeros(8), 1, "tanh", activated, (False, True))[1]
    assert gradient is not None
    du, dw = gradient.chunk(2)[:: 1 if activated == "first" else -1]
    for got, factor in ((du, 1), (dw, 10)):
        exact = factor * dy.double().sum(0)
        assert ((got.double() - exact).abs() <= 8 * 2**-24 * exact + 0.5 * spacing(exact, torch.float32)).all()
