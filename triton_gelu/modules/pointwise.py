"""GELU alone, and GELU after a bias of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional import Approximate, bias_gelu, check_approximate, gelu


class GELU(nn.Module):
    """GELU of a tensor of any shape.

    Args:
        approximate: the formula, see `bias_gelu`. The default is `"tanh"`; that of torch.nn.GELU is `"none"`.

    Raises:
        ValueError: approximate is unknown.
    """

    def __init__(self, approximate: Approximate = "tanh") -> None:
        super().__init__()
        check_approximate(approximate)
        self.approximate: Approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class BiasGELU(nn.Module):
    """GELU of `x + bias` with a learned bias, zero at first: what follows a Linear or a convolution without a bias.

    Args:
        num_features: the size of x along dim.
        dim: the dimension of x that the bias runs along.
        approximate: the formula, see `bias_gelu`.
        device, dtype: of the parameter `bias`, of shape [num_features].

    Raises:
        ValueError: approximate is unknown.
    """

    def __init__(
        self,
        num_features: int,
        *,
        dim: int = -1,
        approximate: Approximate = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_approximate(approximate)
        self.num_features = num_features
        self.dim = dim
        self.approximate: Approximate = approximate
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return bias_gelu(x, self.bias, dim=self.dim, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"{self.num_features}, dim={self.dim}, approximate={self.approximate!r}"
