"""Gated GELUs as a compiled graph for a GPU holds them: right for every 16-bit number, by few operations."""

from __future__ import annotations

import pytest
import torch
from truth import DTYPES, FORMULAS

from perf.accuracy import truth
from triton_gelu.ops import bias_geglu, gated_compiled
from triton_gelu.ops.bias_geglu import BIAS_GEGLU
from triton_gelu.ops.bias_gelu_mul import BIAS_GELU_MUL


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_every_16_bit_number_gives_rounded_results(dtype: torch.dtype, approximate: str) -> None:
    x = truth.every(dtype)
    x = x[x.isfinite()]
    w, dy = (torch.randn(x.shape).to(dtype) for _ in range(2))
    y = gated_compiled.forward(x, w, None, None, 0, approximate)
    dx, dw, *_ = gated_compiled.backward(dy, x, w, None, None, 0, approximate, (True, True, False, False))
    u, factor, incoming = x.double(), w.double(), dy.double()
    value, slope = truth.gelu(u, approximate), truth.gelu(u, approximate, 1)
    largest = torch.maximum(slope.abs(), truth.largest_term(u, approximate, 1))
    for got, true, scale, bound in (
        (y, factor * value, factor * value, 0.55),
        (dw, incoming * value, incoming * value, 0.55),
        (dx, incoming * factor * slope, incoming * factor * largest, 0.6),
    ):
        assert got is not None
        counts = (scale.abs() > 2.0**-120) & (scale.abs() < torch.finfo(dtype).max / 2)
        assert truth.ulps(got, true, scale.abs())[counts].max() <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("activated", ["first", "second"])
@pytest.mark.parametrize(("shape", "dim"), [((5, 6), 1), ((2, 6, 3), 1), ((6, 4), 0)], ids=str)
def test_a_joined_tensor_gives_what_plain_pytorch_gives(
    shape: tuple[int, ...], dim: int, activated: str, approximate: str, dtype: torch.dtype
) -> None:
    x, bias = torch.randn(shape).to(dtype), torch.randn(shape[dim]).to(dtype)
    options = dim, approximate, activated
    y, plain = (each(x, bias, *options) for each in (gated_compiled.joined_forward, bias_geglu.forward))
    torch.testing.assert_close(y, plain)
    dy = torch.randn_like(y)
    for needs in ((True, True), (True, False), (False, True)):
        ours = gated_compiled.joined_backward(dy, x, bias, *options, needs)
        theirs = bias_geglu.backward(dy, x, bias, *options, needs)
        assert [each is not None for each in ours] == list(needs)
        for one, other in zip(ours, theirs, strict=True):
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-5 if dtype != torch.float32 else 1e-5)


def test_graphs_for_gpus_hold_them() -> None:
    for op in (BIAS_GEGLU, BIAS_GELU_MUL):
        assert op.recorded is not None
        assert op.recorded.forward in (gated_compiled.joined_forward, gated_compiled.forward)
