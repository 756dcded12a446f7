"""A Linear or a convolution with the GELU behind it in one layer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core.dropout import check_dropout_p
from ..functional import Approximate, bias_gelu, check_approximate
from .untouched import product

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class _LayerGELU(nn.Module):
    """A layer of PyTorch's followed by GELU: the product by PyTorch, then its bias and GELU in one pass.

    It is no instance of that layer's class. LoRA, float8 training, quantisers and pruners look for instances of
    nn.Linear and nn.Conv*, and rebuild or merge what they find as `x W^T + b`, which loses a GELU without a word.
    """

    kind: ClassVar[type[nn.Linear | nn.Conv1d | nn.Conv2d]]
    dim: ClassVar[int]
    weight: Tensor
    bias: Tensor | None
    approximate: Approximate
    dropout: float = 0.0

    def __init__(self, *args: Any, approximate: Approximate) -> None:
        check_approximate(approximate)
        super().__init__()
        self.__dict__.update(self.kind(*args).__dict__)  # parameters, their initial values, and hyper-parameters
        self.approximate = approximate

    def reset_parameters(self) -> None:
        self.kind.reset_parameters(self)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        dropout_p = self.dropout if self.training else 0.0
        y = product(self.kind, self, x)
        return bias_gelu(y, self.bias, dim=self.dim, approximate=self.approximate, dropout_p=dropout_p)

    def extra_repr(self) -> str:
        dropout = f", dropout={self.dropout}" if self.dropout else ""
        return f"{self.kind.extra_repr(self)}, approximate={self.approximate!r}{dropout}"  # type: ignore[arg-type]


class LinearGELU(_LayerGELU):
    """GELU of a linear map: the product by PyTorch, then its bias and GELU in one pass.

    It is no nn.Linear, so that no tool takes it for a linear map. LoRA, quantisers and the like pass it by, and
    `ColwiseParallel` and `RowwiseParallel` refuse it with NotImplementedError. For those use `MLP`, whose layers are
    PyTorch's own.

    Args:
        in_features, out_features, bias, device, dtype: those of torch.nn.Linear, as are the parameters and their init.
        approximate: the formula, see `bias_gelu`.
        dropout: the probability of dropout of the result, in training, see `bias_gelu`.

    Raises:
        ValueError: approximate is unknown, or dropout no probability.
    """

    kind = nn.Linear
    dim = -1
    in_features: int
    out_features: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        approximate: Approximate = "tanh",
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype, approximate=approximate)
        self.dropout = check_dropout_p(dropout, "dropout")


class Conv1dGELU(_LayerGELU):
    """GELU of a convolution over `[N, C, L]` or `[C, L]`: the convolution by PyTorch, then bias and GELU in one pass.

    It is no nn.Conv1d, so that no tool takes it for a convolution and loses its GELU.

    Args:
        approximate: the formula, see `bias_gelu`. All else is as in torch.nn.Conv1d, parameters and their init too.

    Raises:
        ValueError: approximate is unknown.
    """

    kind = nn.Conv1d
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


class Conv2dGELU(_LayerGELU):
    """GELU of a convolution over `[N, C, H, W]` or `[C, H, W]`: the two-dimensional `Conv1dGELU`.

    Args:
        approximate: the formula, see `bias_gelu`. All else is as in torch.nn.Conv2d, parameters and their init too.

    Raises:
        ValueError: approximate is unknown.
    """

    kind = nn.Conv2d
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
