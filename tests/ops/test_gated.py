"""bias_geglu and bias_gelu_mul: values, gradients, layouts, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from truth import FORMULAS

from triton_gelu import bias_geglu, bias_gelu_mul

HALVES = ("first", "second")


def doubles(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("activated", HALVES)
@pytest.mark.parametrize(("shape", "dim"), [((3, 6), 1), ((2, 4, 3), 1), ((4,), 0)], ids=str)
def test_the_joined_form_passes_gradcheck_and_gradgradcheck(
    shape: tuple[int, ...], dim: int, activated: Any, approximate: Any
) -> None:
    def function(x: Tensor, bias: Tensor) -> Tensor:
        return bias_geglu(x, bias, activated=activated, dim=dim, approximate=approximate)

    tensors = doubles(shape, shape[dim : dim + 1])
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize(("shape", "dim"), [((3, 5), 1), ((2, 3, 4), 1), ((4,), 0)], ids=str)
def test_the_form_of_two_tensors_passes_gradcheck_and_gradgradcheck(
    shape: tuple[int, ...], dim: int, approximate: Any
) -> None:
    def function(x: Tensor, other: Tensor, bias: Tensor, other_bias: Tensor) -> Tensor:
        return bias_gelu_mul(x, other, bias, other_bias, dim=dim, approximate=approximate)

    tensors = doubles(shape, shape, shape[dim : dim + 1], shape[dim : dim + 1])
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


X = torch.randn(4, 8)
ERRORS: dict[str, tuple[Callable[[], Tensor], type[Exception], str]] = {
    "no word on which half": (lambda: bias_geglu(X), TypeError, "activated"),  # type: ignore[call-arg]
    "an unknown half": (
        lambda: bias_geglu(X, activated="third"),  # type: ignore[arg-type]
        ValueError,
        "activated must be 'first' or 'second', got 'third'",
    ),
    "no half at all": (
        lambda: bias_geglu(X, activated=["first"]),  # type: ignore[arg-type]
        ValueError,
        r"activated must be 'first' or 'second', got \['first'\]",
    ),
    "an odd size": (
        lambda: bias_geglu(X[:3], activated="first", dim=0),
        ValueError,
        r"x must have an even size along dim 0, .* got shape \(3, 8\)",
    ),
    "a number": (lambda: bias_geglu(torch.tensor(1.0), activated="first"), ValueError, "x must have at least one dim"),
    "a bias for one half": (
        lambda: bias_geglu(X, torch.zeros(4), activated="first"),
        ValueError,
        r"bias must have shape \(8,\) for x of shape \(4, 8\) and dim 1, got shape \(4,\)",
    ),
    "an unknown formula": (
        lambda: bias_geglu(X, activated="first", approximate="erf"),  # type: ignore[arg-type]
        ValueError,
        "approximate must be one of .* got 'erf'",
    ),
    "another shape": (
        lambda: bias_gelu_mul(X, X[:, :4]),
        ValueError,
        r"other must have shape \(4, 8\) for x of shape \(4, 8\), got shape \(4, 4\)",
    ),
    "another type": (
        lambda: bias_gelu_mul(X, X.half()),
        TypeError,
        "other must have x's dtype, torch.float32, got torch.float16",
    ),
    "another device": (lambda: bias_gelu_mul(X, X.to("meta")), ValueError, "other must be on x's device, cpu, got"),
    "nothing": (lambda: bias_gelu_mul(X, None), TypeError, "other must be a torch.Tensor"),  # type: ignore[arg-type]
    "a bias of the factor of the wrong length": (
        lambda: bias_gelu_mul(X, X, None, torch.zeros(4)),
        ValueError,
        r"other_bias must have shape \(8,\)",
    ),
    "a bias for a number": (
        lambda: bias_gelu_mul(torch.tensor(1.0), torch.tensor(1.0), None, torch.zeros(1)),
        ValueError,
        "x must have at least one dimension for other_bias",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_names_the_argument_and_what_came_and_was_expected(what: str) -> None:
    call, error, message = ERRORS[what]
    with pytest.raises(error, match=message):
        call()
