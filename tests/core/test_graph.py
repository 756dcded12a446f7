"""Plans as compiled graphs record them give what launched plans give: here their nodes are launched, not recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from triton_gelu.core import graph
from triton_gelu.core.op import Op
from triton_gelu.core.plan import Launch
from triton_gelu.ops.bias_gelu import BIAS_GELU
from triton_gelu.ops.gelu_after_bias import GELU_AFTER_BIAS


@pytest.fixture(autouse=True)
def _nodes_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(kernel: Any, planned: Launch, tensors: Sequence[Tensor | None]) -> None:
        kernel[planned.grid](*tensors, *planned.integers, **dict(planned.constants), **planned.options)

    monkeypatch.setattr(graph, "_launch", launch)


SHAPES = [((300, 20), 1), ((2, 7, 33), 1), ((5,), 0), ((0, 4), 1)]


@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("op", [BIAS_GELU, GELU_AFTER_BIAS], ids=lambda op: op.name)
def test_a_recorded_plan_gives_what_a_launched_one_gives(op: Op, shape: tuple[int, ...], dim: int, device: str) -> None:
    assert op.recorded is not None
    x, dy, bias = (torch.randn(size, device=device) for size in (shape, shape, shape[dim]))
    assert torch.equal(op.recorded.forward(x, bias, dim, "tanh"), op.forward(x, bias, dim, "tanh"))
    for needs in ((True, True), (True, False), (False, True)):
        recorded = op.recorded.backward(dy, x, bias, dim, "tanh", list(needs))
        launched = op.backward(dy, x, bias, dim, "tanh", needs)
        for one, other in zip(recorded, launched, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_bias_that_is_not_there_is_none_even_if_it_is_asked_for(device: str) -> None:
    assert BIAS_GELU.recorded is not None
    x = torch.randn(6, 8, device=device)
    dx, dbias = BIAS_GELU.recorded.backward(x, x, None, 1, "tanh", [True, True])
    assert dx is not None
    assert dbias is None
