"""The bias gradient, a sum of very many terms.

fp32 adds terms with an error of at most n 2^-24 sum(|terms|), where n is the largest number of additions that a term
goes through (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 4.2): lanes, then trees, then partial sums.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from truth import FORMULAS, one_pass, spacing, true_pass

from triton_gelu import bias_gelu
from triton_gelu.core.matrices import matrices
from triton_gelu.core.targets import TARGETS
from triton_gelu.ops import bias_gelu_plan

ROWS = 1_000_000

GRADIENTS = {
    "random": lambda: torch.randn(ROWS, 2),
    "of one sign": lambda: torch.rand(ROWS, 2),
    "one huge, many tiny": lambda: torch.full((ROWS, 2), 2.0**-20).index_fill(0, torch.tensor([123_456]), 1.0),
    "one huge at the end": lambda: torch.full((ROWS, 2), 2.0**-20).index_fill(0, torch.tensor([ROWS - 1]), 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRADIENTS)
def test_the_bias_gradient_of_a_million_rows_is_within_2_ulp(kind: str, device: str) -> None:
    x, bias, dy = (t.to(device, torch.bfloat16) for t in (torch.randn(ROWS, 2), torch.randn(2), GRADIENTS[kind]()))
    _, _, dbias = one_pass(lambda x, bias: bias_gelu(x, bias), x, bias, dy)
    _, _, true = true_pass(x, bias, dy, -1, "tanh")
    assert isinstance(dbias, Tensor)
    assert isinstance(true, Tensor)
    assert ((dbias.double() - true).abs() <= 2 * spacing(true, torch.bfloat16)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("approximate", FORMULAS)
def test_a_float32_bias_gradient_of_a_million_terms_has_no_error_that_adds_up(
    approximate: str, dtype: torch.dtype, device: str
) -> None:
    x = (torch.randn(2, ROWS) / 100).to(device, dtype)
    bias, dy = torch.tensor([-0.03, 0.03], device=device), torch.ones_like(x)
    _, _, dbias = one_pass(lambda x, bias: bias_gelu(x, bias, dim=0, approximate=approximate), x, bias, dy)
    _, _, true = true_pass(x, bias, dy, 0, approximate)
    assert isinstance(dbias, Tensor)
    assert isinstance(true, Tensor)
    assert dbias.dtype == torch.float32
    assert ((dbias.double() - true).abs() <= 1e-5 * ROWS).all()


@pytest.mark.parametrize("processors", [108, 132, 148])
@pytest.mark.parametrize("cols", [2, 64, 768, 16384])
def test_a_million_terms_of_one_sign_are_added_within_an_ulp_of_bfloat16(cols: int, processors: int) -> None:
    as_matrices = matrices((ROWS, cols), 1, (cols, 1), (cols, 1), (cols, 1))
    assert as_matrices is not None
    target = replace(TARGETS["h100"], processors=processors)
    plan = bias_gelu_plan.backward_launches(
        as_matrices, 2, "tanh", target, needs_dy=False, needs_x=True, needs_bias=True
    )
    _, _, _, _, _, steps, *_ = plan.main.integers
    constants: dict[str, Any] = dict(plan.main.constants)
    longest = steps * constants["UNROLL"] + math.log2(constants["BLOCK_ROWS"])  # a lane's own sum, then a tree
    if plan.reduce is not None:
        lanes = dict(plan.reduce.constants)["BLOCK_ROWS"]
        assert isinstance(lanes, int)
        longest += math.ceil(plan.partials / lanes) + math.log2(lanes)
    assert longest * 2.0**-24 <= 2.0**-9  # and as much again to round the sum to bfloat16
