"""Layers."""

import copy
import pickle

import pytest
import torch

from triton_gelu import GELU, BiasGELU, bias_gelu, gelu


def test_gelu_is_the_function(device: str) -> None:
    x = torch.randn(4, 8, device=device)
    assert torch.equal(GELU("none")(x), gelu(x, approximate="none"))


def test_bias_gelu_learns_a_bias_that_starts_at_zero(device: str) -> None:
    layer = BiasGELU(6, dim=1, approximate="sigmoid", device=device)
    x = torch.randn(2, 6, 9, device=device)
    assert torch.equal(layer(x), gelu(x, approximate="sigmoid"))
    torch.nn.init.normal_(layer.bias)
    assert torch.equal(layer(x), bias_gelu(x, layer.bias, dim=1, approximate="sigmoid"))
    layer(x).sum().backward()
    assert layer.bias.grad is not None


def test_a_layer_says_what_it_is() -> None:
    assert repr(GELU()) == "GELU(approximate='tanh')"
    assert repr(BiasGELU(64, dim=1, approximate="none")) == "BiasGELU(64, dim=1, approximate='none')"


def test_the_bias_has_the_device_and_type_asked_for() -> None:
    layer = BiasGELU(8, device="meta", dtype=torch.bfloat16)
    assert (layer.bias.device.type, layer.bias.dtype) == ("meta", torch.bfloat16)
    assert list(layer.state_dict()) == ["bias"]


@pytest.mark.parametrize("layer", [GELU("none"), BiasGELU(8)], ids=repr)
def test_layers_can_be_copied_and_pickled(layer: torch.nn.Module) -> None:
    x = torch.randn(4, 8)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("make", [lambda: GELU("erf"), lambda: BiasGELU(8, approximate="erf")])  # type: ignore[arg-type]
def test_an_unknown_formula_is_refused_when_the_layer_is_made(make: object) -> None:
    with pytest.raises(ValueError, match="approximate must be one of 'tanh', 'none', 'sigmoid', got 'erf'"):
        make()  # type: ignore[operator]
