"""Layers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from .functional import Approximate, bias_gelu, check_approximate, gelu

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


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


class _LayerGELU(nn.Module):
    """A layer of torch's, followed by GELU: the product by PyTorch, then its bias and GELU in one pass."""

    dim: int
    bias: Any  # a parameter or None, whatever the types of torch say
    approximate: Approximate

    def __init__(self, *args: Any, approximate: Approximate) -> None:
        check_approximate(approximate)
        super().__init__(*args)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.product(x))

    def product(self, x: Tensor) -> Tensor:
        """The first half: what torch's layer gives without its bias."""
        raise NotImplementedError

    def activation(self, product: Tensor) -> Tensor:
        """The second half: GELU of `product + bias`."""
        return bias_gelu(product, self.bias, dim=self.dim, approximate=self.approximate)

    @property
    def hooked(self) -> bool:
        """Whether somebody, sharding for one, has to see this layer called, so that its halves must not be."""
        hooks = self._forward_pre_hooks, self._forward_hooks, self._backward_pre_hooks, self._backward_hooks
        return any(hooks) or "forward" in vars(self)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, approximate={self.approximate!r}"


class LinearGELU(_LayerGELU, nn.Linear):
    """GELU of a linear map: the product by PyTorch, then its bias and GELU in one pass.

    Args:
        in_features, out_features, bias, device, dtype: those of torch.nn.Linear, as are the parameters and their init.
        approximate: the formula, see `bias_gelu`.

    Raises:
        ValueError: approximate is unknown.
    """

    dim = -1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        approximate: Approximate = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype, approximate=approximate)

    def product(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class _ConvGELU(_LayerGELU):
    def product(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.weight, None)  # type: ignore[operator]
        return y


class Conv1dGELU(_ConvGELU, nn.Conv1d):
    """GELU of a convolution over `[N, C, L]` or `[C, L]`: the convolution by PyTorch, then bias and GELU in one pass.

    Args:
        approximate: the formula, see `bias_gelu`. All else is as in torch.nn.Conv1d, parameters and their init too.

    Raises:
        ValueError: approximate is unknown.
    """

    dim = -2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        approximate: Approximate = "tanh",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding,
            dilation, groups, bias, padding_mode, device, dtype, approximate=approximate,
        )  # fmt: skip


class Conv2dGELU(_ConvGELU, nn.Conv2d):
    """GELU of a convolution over `[N, C, H, W]` or `[C, H, W]`: the two-dimensional `Conv1dGELU`.

    Args:
        approximate: the formula, see `bias_gelu`. All else is as in torch.nn.Conv2d, parameters and their init too.

    Raises:
        ValueError: approximate is unknown.
    """

    dim = -3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        approximate: Approximate = "tanh",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding,
            dilation, groups, bias, padding_mode, device, dtype, approximate=approximate,
        )  # fmt: skip


class MLP(nn.Module):
    """Two linear maps with GELU between them: `fc2(gelu(fc1(x)))`.

    Args:
        in_features: the last dimension of x.
        hidden_features: that of the activation; 4 in_features if None.
        out_features: that of the result; in_features if None.
        approximate: the formula, see `bias_gelu`.
        bias: whether both maps have one.
        recompute: save the pre-activation only, and compute the activation again when fc2's weight gradient needs it:
            a read and a write of it buy its memory. Gradients keep every bit.
        device, dtype: of the parameters.

    Raises:
        ValueError: approximate is unknown.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        *,
        approximate: Approximate = "tanh",
        bias: bool = True,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_features = 4 * in_features if hidden_features is None else hidden_features
        out_features = in_features if out_features is None else out_features
        self.recompute = recompute
        self.fc1 = LinearGELU(in_features, hidden_features, bias, approximate=approximate, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden_features, out_features, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return self._both(x)
        # A hooked fc1 has to be called, so then the product is computed again too.
        first, second = (x, self._both) if self.fc1.hooked else (self.fc1.product(x), self._second)
        y: Tensor = checkpoint(second, first, use_reentrant=False, preserve_rng_state=False)
        return y

    def _both(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.fc1(x))
        return y

    def _second(self, product: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.fc1.activation(product))
        return y

    def extra_repr(self) -> str:
        return f"recompute={self.recompute}"
