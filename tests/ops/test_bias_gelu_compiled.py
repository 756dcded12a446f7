"""bias_gelu in the operations that a compiled graph for a GPU holds: each 16-bit number, against the truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from truth import FORMULAS, assert_no_worse_than, one_pass, summation_slack, torch_gelu, true_pass

from perf.accuracy import truth
from triton_gelu.formulas import FORMULAS as LIST
from triton_gelu.formulas import Normal, compiled, plain
from triton_gelu.ops.bias_gelu_compiled import COMPILED

HALVES = (torch.float16, torch.bfloat16)
FLUSHED = 2.0**-120


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("approximate", FORMULAS)
def test_the_value_of_every_16_bit_number_is_rounded_almost_correctly(approximate: str, dtype: torch.dtype) -> None:
    x = truth.every(dtype)
    y = COMPILED.forward(x, None, 0, approximate)
    true = truth.gelu(x.double(), approximate)
    kept = x.isfinite() & (true.abs() >= FLUSHED)
    exact = isinstance(LIST[approximate].gate, Normal)
    normal = kept & (true.abs() >= torch.finfo(dtype).tiny)
    assert truth.ulps(y, true)[normal].max() <= (0.53 if exact else 0.501)
    assert truth.ulps(y, true)[kept].max() <= 1
    assert (y[x.isfinite() & ~kept].abs() <= FLUSHED).all()
    assert y.isnan().tolist() == x.isnan().tolist()
    assert y[x.isinf()].sort().values.tolist() == [0, float("inf")]


SLOPES = {
    "slope": lambda u, approximate, dtype: compiled.slope(u, approximate, dtype),
    "short slope": lambda u, approximate, dtype: compiled.short_slope(u, approximate),
}


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("approximate", FORMULAS)
def test_the_slope_of_every_16_bit_number_is_rounded_almost_correctly(
    approximate: str, dtype: torch.dtype, slope: str
) -> None:
    x = truth.every(dtype)
    found = SLOPES[slope](x.float(), approximate, dtype).to(dtype)
    true = truth.gelu(x.double(), approximate, order=1)
    size = true.abs()
    kept = x.isfinite() & (size >= FLUSHED)
    crossing = kept & (size < 0.01) & (x.abs() < 4)  # the slope's zero: relative accuracy is not to be had there
    normal = kept & (size >= torch.finfo(dtype).tiny) & ~crossing
    error = truth.ulps(found, true)
    assert error[normal].max() <= 0.6
    assert error[crossing].max() <= 2
    assert (found[x.isfinite() & ~kept].abs() <= FLUSHED).all()
    assert found.isnan().tolist() == x.isnan().tolist()
    assert found[x.isinf()].sort().values.tolist() == [0, 1]


SHAPES = [((37, 20), 1), ((2, 6, 33), 1), ((5,), 0), ((0, 4), 1)]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("approximate", FORMULAS)
def test_a_pass_is_no_worse_than_pytorch_s(
    approximate: str, shape: tuple[int, ...], dim: int, dtype: torch.dtype
) -> None:
    x, dy, bias = (torch.randn(size).to(dtype) for size in (shape, shape, shape[dim]))

    def pytorch(x: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        return torch_gelu(x + bias.view(-1, *[1] * (x.ndim - dim - 1)), approximate)

    y = COMPILED.forward(x, bias, dim, approximate)
    dx, dbias = COMPILED.backward(dy, x, bias, dim, approximate, (True, True))
    assert dx is not None
    assert dbias is not None
    if not x.numel():
        assert not dbias.any()
        return
    true = true_pass(x, bias, dy, dim, approximate)
    theirs = one_pass(pytorch, x, bias, dy)
    assert_no_worse_than(theirs[0], y, true[0])
    assert_no_worse_than(theirs[1], dx, true[1])
    rounding = (dx.double() - true[1]).abs().sum([d for d in range(x.ndim) if d != dim])
    assert theirs[2] is not None
    assert true[2] is not None
    assert_no_worse_than(theirs[2], dbias, true[2], summation_slack(true[1], dim) + rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("approximate", FORMULAS)
def test_in_other_types_it_is_plain_pytorch(approximate: str, dtype: torch.dtype) -> None:
    u = 8 * torch.randn(1000, dtype=dtype)
    assert torch.equal(compiled.value(u, approximate, dtype), plain.gelu(u, approximate))
    assert torch.equal(compiled.slope(u, approximate, dtype), plain.dgelu(u, approximate))


def test_only_the_gradient_that_is_needed_is_returned() -> None:
    x, bias = torch.randn(6, 8), torch.randn(8)
    for needs in ((True, False), (False, True)):
        found = COMPILED.backward(x, x, bias, 1, "tanh", needs)
        assert tuple(each is not None for each in found) == needs
