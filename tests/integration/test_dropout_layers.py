"""Layers with dropout: in training only, and with the same mask where the activation is computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triton_gelu import GEGLU, MLP, LinearGELU

pytestmark = pytest.mark.kernels

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "LinearGELU": lambda **rest: LinearGELU(6, 32, **rest),
    "GEGLU": lambda **rest: GEGLU(6, 32, **rest),
    "MLP": lambda **rest: MLP(6, 32, 64, **rest),
    "gated MLP": lambda **rest: MLP(6, 32, 64, gated="first", **rest),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_drops_in_training_only(name: str, device: str) -> None:
    layer, without = LAYERS[name](dropout=0.5, device=device), LAYERS[name](device=device)
    without.load_state_dict(layer.state_dict())
    x = torch.randn(4, 6, device=device)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), without(x))


@pytest.mark.parametrize("name", ["LinearGELU", "GEGLU"])
def test_the_result_is_dropped_and_the_mean_is_kept(name: str, device: str) -> None:
    layer = LAYERS[name](dropout=0.25, device=device)
    x = torch.randn(1, 6, device=device).expand(2**14, 6)
    y, expected = layer(x), layer.eval()(x[:1])
    assert abs((y == 0).double().mean().item() - 0.25) < 5 * (0.25 * 0.75 / y.numel()) ** 0.5
    sigma = expected.abs() * (0.25 / 0.75) ** 0.5 / 2**7
    assert ((y.double().mean(0) - expected).abs() <= 5 * sigma + 1e-6).all()


@pytest.mark.parametrize("gated", [None, "first"])
@pytest.mark.parametrize("compiled", [False, True])
def test_recomputing_drops_the_same_as_saving(compiled: bool, gated: Any, device: str) -> None:
    check_recomputing(compiled, gated, device)


@pytest.mark.parametrize("gated", [None, "first"])
def test_recomputing_drops_the_same_as_saving_without_kernels(gated: Any, without_kernels: None, device: str) -> None:
    check_recomputing(False, gated, device)


def check_recomputing(compiled: bool, gated: Any, device: str) -> None:
    plain = MLP(6, 32, gated=gated, dropout=0.3, device=device)
    frugal = MLP(6, 32, gated=gated, dropout=0.3, recompute=True, device=device)
    frugal.load_state_dict(plain.state_dict())
    x = torch.randn(16, 6, device=device, requires_grad=True)
    results = []
    for mlp in (plain, frugal):
        function = torch.compile(mlp, fullgraph=True, backend="aot_eager") if compiled else mlp
        for _ in range(2):  # the second call draws on
            torch.manual_seed(1)
            function(x)
            y = function(x)
            torch.randn(7, device=device)  # whoever draws in between moves no mask
            gradients = torch.autograd.grad(y.square().sum(), [x, *mlp.parameters()])
        results.append([y, *gradients])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_recomputing_keeps_no_random_state_where_a_seed_is_drawn(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def noted(*args: Any, preserve_rng_state: bool, **rest: Any) -> Any:
        asked.append(preserve_rng_state)
        return checkpoint(*args, preserve_rng_state=preserve_rng_state, **rest)

    monkeypatch.setattr("triton_gelu.modules.mlp.checkpoint", noted)
    for dropout in (0.0, 0.3):
        MLP(6, recompute=True, dropout=dropout, device=device)(torch.randn(4, 6, device=device))
    assert asked == [False, False]


def test_a_layer_says_with_what_probability_it_drops() -> None:
    assert "dropout" not in repr(MLP(8))
    assert repr(LinearGELU(8, 8, dropout=0.1)).endswith("approximate='tanh', dropout=0.1)")
    assert repr(GEGLU(8, 8, dropout=0.1)).splitlines()[1].endswith("approximate='none', dropout=0.1")
    assert repr(MLP(8, dropout=0.1)).splitlines()[1].endswith("recompute=False, dropout=0.1")


@pytest.mark.parametrize("name", LAYERS)
def test_an_error_names_dropout(name: str) -> None:
    with pytest.raises(ValueError, match=r"dropout must be between 0 and 1, got 1\.5"):
        LAYERS[name](dropout=1.5)


class Encoder(nn.Module):
    """A block of a transformer's encoder over eight places, with dropout behind GELU in the same pass or after it."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = MLP(16, 64, dropout=0.2)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        if self.fused:
            x = x + self.mlp(x)
        else:
            hidden = nn.functional.gelu(self.mlp.fc1(x), approximate="tanh")
            x = x + self.mlp.fc2(nn.functional.dropout(hidden, 0.2))
        y: Tensor = self.head(x.mean(1))
        return y


@pytest.mark.slow
def test_an_encoder_learns_as_well_with_dropout_in_the_same_pass(device: str) -> None:
    def losses(seed: int, *, fused: bool) -> Tensor:
        torch.manual_seed(seed)
        model = Encoder(fused=fused).to(device)
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        pattern = torch.randn(4, 8, 16, device=device)
        found = []
        for _ in range(40):
            labels = torch.randint(4, (64,), device=device)
            loss = nn.functional.cross_entropy(
                model(pattern[labels] + 2 * torch.randn(64, 8, 16, device=device)), labels
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found[-10:]).mean()

    fused, written = (torch.stack([losses(seed, fused=fused) for seed in range(6)]) for fused in (True, False))
    noise = ((fused.var() + written.var()) / 6).sqrt()
    assert abs(fused.mean() - written.mean()) < 3 * noise
    assert fused.mean() < 1.0  # from log 4 = 1.39 on: it does learn
