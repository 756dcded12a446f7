"""What is timed is right: it is held against float64 first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from example_rows import CPU, HERE, SMALL

from perf import cases, providers
from perf.cases import Case
from perf.rows import Row, read_rows
from perf.time import check, measure


def wrongly(change: Callable[[torch.Tensor], torch.Tensor]) -> providers.Provider:
    """Eager PyTorch with its answer spoilt."""
    return lambda case: lambda *leaves: change(providers.eager(case)(*leaves))


def notes(rows: Sequence[Row], provider: str) -> str:
    return " ".join(row.note for row in rows if row.provider == provider and row.status == "failed")


@pytest.mark.parametrize("dtype", cases.DTYPES.values())
@pytest.mark.parametrize("approximate", cases.FORMULAS)
def test_pytorch_and_ours_pass_the_check_in_every_shape_of_a_case(dtype: str, approximate: str) -> None:
    shapes = (
        Case("last", (400, 96)),
        Case("channels", (4, 32, 100), dim=1),
        Case("no bias", (30, 64), dim=None),
        Case("linear", (10, 20, 96), in_features=64),
        Case("stem", (6, 32, 50), dim=1, transposed=True),
        Case("joined", (400, 96), gated="first"),
        Case("joined channels", (4, 32, 100), dim=1, gated="second"),
        Case("joined, no bias", (30, 64), dim=None, gated="second"),
        Case("two tensors", (400, 96), gated=cases.TWO),
        Case("two tensors, no bias", (30, 64), dim=None, gated=cases.TWO),
    )
    for case in cases.product(shapes, dtypes=[dtype], approximates=[approximate], directions=cases.DIRECTIONS):
        inputs = case.inputs(CPU)
        for provider in (providers.eager, providers.fused):
            outputs = providers.thunk(case, provider(case), inputs)()
            assert check.objection(case, outputs, check.expected(case, inputs)) == "", (provider, case)


def test_the_other_half_is_caught() -> None:
    case = Case("swapped", (64, 32), gated="first")
    inputs = case.inputs(CPU)
    outputs = providers.eager(replace(case, gated="second"))(*inputs.leaves)
    assert "y is wrong at" in check.objection(case, outputs, check.expected(case, inputs))


@pytest.mark.parametrize("dtype", cases.DTYPES.values())
def test_the_other_formula_is_caught_in_every_dtype(dtype: str) -> None:
    for mine, other in (("tanh", "none"), ("none", "tanh"), ("tanh", "sigmoid")):
        case = Case("swapped", (512, 512), dtype=dtype, approximate=mine)
        inputs = case.inputs(CPU)
        outputs = providers.eager(replace(case, approximate=other))(*inputs.leaves)
        assert "y is wrong at" in check.objection(case, outputs, check.expected(case, inputs))


def test_a_wrong_provider_is_caught_and_not_timed(tmp_path: Path) -> None:
    spoilt: dict[str, providers.Provider] = {
        "eager": providers.eager,
        "nan": wrongly(lambda y: torch.where(y == y.max(), math.nan, y)),
        "wider": wrongly(torch.Tensor.double),
        "fewer": wrongly(lambda y: y[:3]),
        "no gradient of the bias": lambda case: (
            lambda x, bias: F.gelu(x + bias.detach() + 0 * bias, approximate="tanh")
        ),
        "raises": lambda case: lambda x, bias: torch.ops.aten.nothing_like_it(x),
    }
    both = replace(SMALL, direction="forward_backward")
    assert measure.sweep([SMALL, both], spoilt, HERE, tmp_path / "rows.jsonl")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert "y is wrong at 1 of 192 elements: nan" in notes(rows, "nan")
    assert "expected (6, 32) in torch.float32" in notes(rows, "wider")
    assert "y is (3, 32)" in notes(rows, "fewer")
    assert "dbias is wrong" in notes(rows, "no gradient of the bias")
    assert "AttributeError" in notes(rows, "raises")
    timed = {row.provider for row in rows if row.status == "ok" and row.direction == both.direction}
    assert timed == {"eager", "copy"}
