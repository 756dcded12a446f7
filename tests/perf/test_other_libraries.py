"""Other libraries are compared where they are installed, and else skipped with the reason."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from example_rows import HERE

from perf import libraries
from perf.accuracy import truth, ulp_errors
from perf.cases import Case
from perf.libraries import LIBRARIES
from perf.rows import TIME
from perf.show import beside
from perf.time import check, measure

GPU = torch.device("cuda")
LINEAR = Case("fc1 + gelu", (16, 64), in_features=32, dtype="bfloat16")


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_it_does_not_compute_or_where_it_is_not_is_the_reason_to_skip(name: str) -> None:
    library = LIBRARIES[name]
    plain = replace(LINEAR, in_features=None)
    assert library.unable(plain, GPU) == f"it computes {library.what} only"
    (row,) = measure.measured(plain, {name: library.provider}, HERE)
    assert (row.status, row.note, row.provider, row.metric) == ("skipped", row.note, name, TIME)
    assert row.note.startswith("it computes")


def test_another_formula_a_backward_pass_and_a_cpu_are_reasons_too(monkeypatch: pytest.MonkeyPatch) -> None:
    addmm, liger = LIBRARIES["torch._addmm_activation"], LIBRARIES["Liger GEGLU"]
    assert addmm.unable(LINEAR, GPU) == ""
    assert addmm.unable(replace(LINEAR, approximate="none"), GPU) == "it computes tanh only"
    assert addmm.unable(replace(LINEAR, direction="forward_backward"), GPU) == "it has no derivative"
    assert addmm.unable(LINEAR, torch.device("cpu")) == "it is a kernel for GPUs"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert liger.missing(GPU) == "liger-kernel is not installed (pip install liger-kernel)"


def test_the_epilogue_is_called_as_a_linear_is_and_its_gelu_alone_leaves_numbers_as_they_are() -> None:
    """On a CPU the epilogue is the exact formula."""
    case = replace(LINEAR, approximate="none", dtype="float32", shape=(2, 8, 64))
    inputs = case.inputs(HERE.device)
    y = libraries.addmm_activation(case)(*inputs.leaves)
    assert check.objection(case, y, check.expected(case, inputs)) == ""
    u = torch.linspace(-3, 3, 101)
    torch.testing.assert_close(
        libraries.epilogue_alone(u).double(), truth.gelu(u.double(), "none"), rtol=1e-5, atol=1e-6
    )


def test_liger_is_given_rows_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []

    def apply(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        shapes.append(x.shape)
        return torch.nn.functional.gelu(x, approximate="tanh") * other

    found = SimpleNamespace(LigerGELUMulFunction=SimpleNamespace(apply=apply))
    monkeypatch.setattr(importlib, "import_module", lambda name: found)
    u = torch.randn(3000)
    torch.testing.assert_close(libraries.liger_alone(u), torch.nn.functional.gelu(u, approximate="tanh"))
    assert shapes == [(3, libraries.LIGER_ROW)]


def test_the_largest_error_stands_beside_the_time() -> None:
    blank = replace(measure.blank_row(LINEAR, HERE), status="ok", value=10.0)
    times = [replace(blank, provider=name) for name in ("eager", "torch._addmm_activation")]
    times.append(replace(blank, provider="Liger GEGLU", status="skipped", value=None))
    error = replace(blank, kind="accuracy", case="every number", metric=ulp_errors.MAXIMUM, unit="ulp")
    errors = [
        replace(error, provider=name, value=value) for name, value in (("torch", 256.0), (times[1].provider, 3.5))
    ]
    text = beside.render([*times, *errors])
    assert "| fc1 + gelu | 16x64 | tanh | forward | eager | 10 us | 256 |" in text
    assert "| forward | torch._addmm_activation | 10 us | 3.5 |" in text
    assert "| forward | Liger GEGLU | skipped |  |" in text
    assert beside.render([times[0], *errors]) == ""
