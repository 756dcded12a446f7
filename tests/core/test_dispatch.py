"""The environment's choice of backend: TRITON_GELU_BACKEND, for debugging."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import triton_gelu
from triton_gelu.core import compat_triton, dispatch
from triton_gelu.core.declare import FORWARD
from triton_gelu.ops.bias_gelu import BIAS_GELU
from triton_gelu.ops.bias_gelu_transpose import BIAS_GELU_TRANSPOSE

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("nothing_kept")


@pytest.fixture
def torch_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "demanded", dispatch.TORCH)


@pytest.fixture
def kernels_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "demanded", dispatch.KERNELS)


@pytest.fixture
def graphs_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Triton drives the device of compiled graphs."""
    monkeypatch.setattr(compat_triton, "INTERPRETED", False)
    monkeypatch.setattr(compat_triton, "drives", lambda device_type: (True, "Triton drives this device"))


def launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*args: object) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(BIAS_GELU, "plan", launch)
    monkeypatch.setattr(BIAS_GELU_TRANSPOSE, "plan", launch)


@pytest.mark.usefixtures("torch_demanded")
def test_with_torch_demanded_no_kernel_is_launched(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    launches_nothing(monkeypatch)
    x, bias = torch.randn(2, 3, 8, device=device, requires_grad=True), torch.randn(8, device=device, requires_grad=True)
    y = triton_gelu.bias_gelu(x, bias)
    gradients = torch.autograd.grad(y.sum(), (x, bias), create_graph=True)
    torch.autograd.grad(gradients[0].square().sum(), (x, bias))
    triton_gelu.bias_gelu_transpose(x, bias[:3]).sum().backward()
    assert BIAS_GELU.choose(x) == dispatch.Choice(BIAS_GELU.plain, "TRITON_GELU_BACKEND is torch")


@pytest.mark.usefixtures("torch_demanded")
def test_with_torch_demanded_a_fused_model_runs_pytorchs_own_operators(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    launches_nothing(monkeypatch)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8)).to(device)
    x = torch.randn(4, 8, device=device)
    before = model(x)
    said = "TRITON_GELU_BACKEND is torch: PyTorch's own operators run, as before."
    assert str(triton_gelu.fuse(model, x)).endswith(said)
    assert triton_gelu.FusionReport((), "meta").runs == said
    assert torch.equal(model(x), before)
    model(x).sum().backward()


@pytest.mark.usefixtures("graphs_with_kernels")
@pytest.mark.parametrize("demanded", [None, dispatch.KERNELS, dispatch.TORCH])
def test_a_compiled_graph_holds_what_is_demanded(demanded: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "demanded", demanded)
    monkeypatch.setattr(
        BIAS_GELU, "recorded", dispatch.Backend("recorded", lambda *given: "kernels", lambda *given: ())
    )
    monkeypatch.setattr(BIAS_GELU, "plain", dispatch.Backend("plain", lambda *given: "torch", lambda *given: ()))
    with FakeTensorMode():
        assert BIAS_GELU.compute(FORWARD, torch.empty(4, 8), None, 1, "tanh") == (demanded or "kernels")


@pytest.mark.usefixtures("graphs_with_kernels", "torch_demanded")
def test_a_graph_that_was_compiled_with_kernels_is_not_taken_from_disk_where_torch_is_demanded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registered: list[object] = []
    monkeypatch.setattr("triton_gelu.core.compat_torch.register_decomposition", lambda *given: registered.append(given))
    BIAS_GELU._register_decompositions()
    monkeypatch.setattr(dispatch, "demanded", None)
    BIAS_GELU._register_decompositions()
    levels = len(BIAS_GELU.operators)
    assert [bool(kernels) for _, _, kernels in registered] == [False] * levels + [True] * levels  # type: ignore[misc]


@pytest.mark.usefixtures("kernels_demanded")
def test_with_kernels_demanded_they_compute_where_they_run(device: str) -> None:
    x = torch.randn(4, 8, device=device, requires_grad=True)
    triton_gelu.bias_gelu(x, torch.randn(8, device=device)).sum().backward()
    assert BIAS_GELU.choose(x).backend is BIAS_GELU.launched


@pytest.mark.usefixtures("kernels_demanded")
def test_with_kernels_demanded_other_calls_raise(device: str) -> None:
    with pytest.raises(RuntimeError, match=r"TRITON_GELU_BACKEND is kernels, and .*: kernels compute in float32"):
        triton_gelu.gelu(torch.randn(4, 8, device=device, dtype=torch.float64))
    assert triton_gelu.gelu(torch.randn(4, 8, device="meta")).is_meta  # where nothing is computed, nothing is amiss


@pytest.mark.usefixtures("kernels_demanded", "without_kernels")
def test_with_kernels_demanded_calls_graphs_and_fused_models_raise_where_none_run(device: str) -> None:
    no_driver = r"TRITON_GELU_BACKEND is kernels, and none run on this .* tensor: Triton"
    with pytest.raises(RuntimeError, match=no_driver):
        triton_gelu.gelu(torch.randn(4, 8, device=device))
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU()).to(device)
    x = torch.randn(4, 8, device=device)
    assert "A call will raise: TRITON_GELU_BACKEND is kernels" in str(triton_gelu.fuse(model, x))
    with pytest.raises(RuntimeError, match=no_driver):
        model(x)
    with pytest.raises(RuntimeError, match=no_driver):
        torch.compile(triton_gelu.gelu, fullgraph=True, backend="aot_eager")(x)


@pytest.mark.parametrize("value", ["cuda", "Torch", " "])
def test_what_the_environment_may_not_demand_is_named_with_what_it_may(value: str) -> None:
    expected = f"TRITON_GELU_BACKEND must be 'torch', 'kernels' or not set, got {value!r}"
    with pytest.raises(ValueError, match=expected):
        dispatch.parse_switch(value)
    assert [dispatch.parse_switch(each) for each in ("", "torch", "kernels")] == [None, "torch", "kernels"]


@pytest.mark.parametrize("value", ["torch", "kernels"])
def test_the_report_says_what_the_environment_demands_and_where_that_raises(value: str) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_GELU_BACKEND": value, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-m", "triton_gelu"]
    text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert f"(TRITON_GELU_BACKEND is {value})" in text
    assert ("-> plain PyTorch: TRITON_GELU_BACKEND is torch\n" in text) == (value == "torch")
    assert ("-> an error: TRITON_GELU_BACKEND is kernels, and" in text) == (value == "kernels")
