"""Whole models, written in PyTorch and with this package, are the same model."""

from __future__ import annotations

import pytest
import torch
from example_rows import CPU

from perf import models, providers
from perf.cases import Case
from perf.time import check


@pytest.mark.parametrize("name", models.MODELS)
def test_a_whole_model_is_right_in_pytorch_and_with_this_package(name: str) -> None:
    case = Case(name, (1, 6, 64), dim=None, approximate="none", direction="forward_backward", model=name)
    inputs = case.inputs(CPU)
    expected = check.expected(case, inputs)
    for provider in (providers.eager, providers.fused):
        outputs = providers.thunk(case, provider(case), inputs)()
        assert not check.objection(case, outputs, expected)
        outputs[-1].add_(1e-2 * outputs[-1].abs().max())
        assert "is wrong at" in check.objection(case, outputs, expected)


def test_a_whole_model_of_pytorch_has_none_of_our_layers() -> None:
    for whole in models.MODELS.values():
        plain = whole.plain((1, 6, 64), "none")
        assert not any(type(part).__name__.endswith(("LinearGELU", "Conv1dGELU", "MLP")) for part in plain.modules())
        assert sum(isinstance(part, torch.nn.GELU) for part in plain.modules()) >= models.DEPTH
