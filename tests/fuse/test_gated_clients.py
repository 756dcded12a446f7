"""Models of libraries with gated GELUs: fused at every gate, they compute, learn and compile as they did."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from counting import Calls
from gated_clients import GATED, Gated, losses
from small_tensors import small_tensors_take_the_whole_mechanism
from test_fuse import assert_same, client_results
from torch import nn

from triton_gelu import fuse

__all__ = ["small_tensors_take_the_whole_mechanism"]  # a fixture for every test here

QUICK = ["Gemma", "T5 v1.1", "ModernBERT with biases", "a feed-forward layer", "GluMlp of images"]
LEARN = ["Gemma", "T5 v1.1", "BasicTransformerBlock"]
CASES, LEARNING = (
    [name if name in some else pytest.param(name, marks=pytest.mark.slow) for name in GATED] for some in (QUICK, LEARN)
)


def twins(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, Gated]:
    """A fused model and the same one, which is not."""
    client = GATED[name]
    plain = client.model(dtype)
    model = copy.deepcopy(plain)
    report = fuse(model, **client.inputs(dtype))
    assert [(site.name, site.formula) for site in report if site.gated and site.fused] == client.sites
    return model, plain, client


@pytest.mark.parametrize("name", CASES)
def test_a_gated_client_computes_the_same_by_one_operator_a_gate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain, client = twins(name)
    calls = Calls(monkeypatch)
    ours = client_results(model, client, torch.float32)
    assert (calls.gated, calls.forward) == ([formula for _, formula in client.sites], [])
    assert (calls.fused_biases, calls.summed_biases) == (client.biases * len(client.sites), 0)
    assert_same(ours, client_results(plain, client, torch.float32), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", GATED)
def test_a_gated_client_computes_the_same_in_bfloat16(name: str) -> None:
    model, plain, client = twins(name, torch.bfloat16)
    ours, theirs = (client_results(net, client, torch.bfloat16) for net in (model, plain))
    assert_same(ours, theirs, 0.05)


@pytest.mark.parametrize("name", CASES)
def test_a_gated_client_compiles_to_one_operator_a_gate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    model, plain, client = twins(name)
    expected = client_results(plain, client, torch.float32)
    calls = Calls(monkeypatch)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    y = client.output(compiled(**client.inputs(torch.float32)))
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    (y * weights).sum().backward()
    assert_same([y.detach(), *(p.grad for p in model.parameters())], expected, 1e-4)
    traces = len(calls.gated) // len(client.sites)
    assert sorted(calls.gated) == sorted([formula for _, formula in client.sites] * traces)
    assert traces > 0
    assert calls.forward == []
    assert calls.fused_biases == client.biases * len(client.sites)


@pytest.mark.parametrize("name", LEARNING)
def test_a_gated_client_learns_the_same_in_three_steps(name: str) -> None:
    model, plain, client = twins(name)
    ours, theirs = (losses(net, client, 3) for net in (model, plain))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < ours[0]
