"""Fusing models of other libraries: `clients.py` has them, and they are skipped where those are not installed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from counting import Calls
from small_tensors import small_tensors_take_the_whole_mechanism
from test_fuse import assert_same, fused
from torch import Tensor, nn

from triton_gelu import fuse

if TYPE_CHECKING:
    from clients import Client

__all__ = ["small_tensors_take_the_whole_mechanism"]  # a fixture for every test here

clients = pytest.importorskip("clients")
CLIENTS = clients.CLIENTS


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_is_fused_at_every_site_and_computes_the_same(name: str, dtype: torch.dtype) -> None:
    model, plain, client = twins(name, dtype)
    assert fused(fuse(model, **client.inputs(dtype))) == client.sites
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert_same(client_results(model, client, dtype), client_results(plain, client, dtype), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.sites])
def test_a_client_learns_the_same(name: str) -> None:
    losses: list[list[float]] = []
    model, plain, client = twins(name, torch.float32)
    fuse(model, **client.inputs(torch.float32))
    for net in (model, plain):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        losses.append([])
        for _ in range(4):
            y = client.output(net(**client.inputs(torch.float32)))
            loss = (y - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.sites])
def test_a_client_compiles_with_its_operators_in_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    model, plain, client = twins(name, torch.float32)
    inputs = client.inputs(torch.float32)
    fuse(model, **inputs)
    if client.compiles_in_eval:
        model.eval(), plain.eval()
    expected = client.output(plain(**inputs))
    calls, compiled = Calls(monkeypatch), torch.compile(model, backend="aot_eager", fullgraph=True)
    y = client.output(compiled(**inputs))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    traces = len(calls.forward) // len(client.sites)
    assert sorted(calls.forward) == sorted([formula for _, formula in client.sites] * traces)
    assert calls.fused_biases == len(client.sites)


@pytest.mark.slow
def test_the_table_of_clients_is_what_fuse_finds() -> None:
    assert Path(__file__).with_name("clients.md").read_text() == clients.table(), "see the docstring of clients.py"


def twins(name: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Client]:
    client = CLIENTS[name]
    model = client.model(dtype)
    return model, copy.deepcopy(model), client


def client_results(model: nn.Module, client: Client, dtype: torch.dtype) -> list[Tensor | None]:
    y = client.output(model(**client.inputs(dtype)))
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (y * weights).sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters())]
