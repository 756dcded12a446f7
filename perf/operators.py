"""The library's public operators, and what each takes with x: what checks go through. A new operator is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import triton_gelu


@dataclass(frozen=True)
class Operator:
    """A public function, called with x, the tensors that `others` make for an x and a dim, and the options by name.

    `takes` tells which x and dim it has an answer for. `magnitude` bounds, of the true result and the tensors, what is
    rounded on the way to it: larger than the result where the last step is a sum.
    """

    call: Callable[..., Tensor]
    others: tuple[Callable[[Tensor, int], Tensor], ...] = ()
    takes: Callable[[Tensor, int], bool] = lambda x, dim: True
    magnitude: Callable[..., Tensor] = lambda y, *tensors: y.abs()

    def tensors(self, x: Tensor, dim: int) -> tuple[Tensor, ...]:
        """What a call takes: x and the others, in x's dtype and on its device."""
        return (x, *(other(x, dim).to(x) for other in self.others))


def vector(x: Tensor, dim: int) -> Tensor:
    """A bias along dim."""
    return torch.randn(x.shape[dim])


def whole(x: Tensor, dim: int) -> Tensor:
    """Another tensor of x's shape."""
    return torch.randn(x.shape)


def has_halves(x: Tensor, dim: int) -> bool:
    """Whether x has two halves along dim."""
    return x.shape[dim] % 2 == 0


def position(x: Tensor, dim: int) -> Tensor:
    """What a stem adds: [L, C] for an x of [N, C, L]."""
    return torch.randn(x.shape[2], x.shape[1])


def is_of_a_convolution(x: Tensor, dim: int) -> bool:
    """Whether x is [N, C, L], and the bias runs along C."""
    return x.ndim == 3 and dim == 1


OPERATORS: Mapping[str, Operator] = {
    "gelu": Operator(lambda x, *, dim, approximate: triton_gelu.gelu(x, approximate=approximate)),
    "bias_gelu": Operator(triton_gelu.bias_gelu, (vector,)),
    "bias_geglu": Operator(partial(triton_gelu.bias_geglu, activated="first"), (vector,), takes=has_halves),
    "bias_geglu, second half": Operator(
        partial(triton_gelu.bias_geglu, activated="second"), (vector,), takes=has_halves
    ),
    "bias_gelu_mul": Operator(triton_gelu.bias_gelu_mul, (whole, vector, vector)),
    "bias_gelu_transpose": Operator(
        lambda *tensors, dim, approximate: triton_gelu.bias_gelu_transpose(*tensors, approximate=approximate),
        (vector, position),
        takes=is_of_a_convolution,
        magnitude=lambda y, x, bias, position: y.abs() + position.abs(),
    ),
}
