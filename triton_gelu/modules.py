"""The layers: GELU, BiasGELU, LinearGELU, Conv1dGELU, Conv2dGELU, MLP."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
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


_FORWARDS: dict[type[nn.Module], Any] = {  # without those that somebody had replaced before this was imported
    kind: kind.forward for kind in (nn.Linear, nn.Conv1d, GELU) if kind.forward.__module__ == kind.__module__
}
_CALL = nn.Module.__call__
_GLOBAL_HOOKS = [  # a name that PyTorch no longer has counts as a hook: layers are then called, which is always right
    getattr(nn.modules.module, f"_global_{when}_hooks", (None,))
    for when in ("forward_pre", "forward", "backward_pre", "backward")
]


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is exactly PyTorch's `kind`, so that its product and its bias may be taken without a call.

    It is not where somebody has changed what it does or counts on its being called: a subclass (LoRA, float8, FSDP2,
    parametrizations), hooks on this layer or on all modules, a `forward` of the instance (offloading) or put into the
    class, `layer.compile()`, other tensors in the place of its parameters (pruning), and parameters that are tensor
    subclasses (sharded or quantised ones). Any of it may come or go at any time, so this is asked at every call.
    """
    if type(layer) is not kind or kind.forward is not _FORWARDS.get(kind) or kind.__call__ is not _CALL:
        return False
    state = layer.__dict__
    if "forward" in state or "_conv_forward" in state or "weight" in state or "bias" in state:
        return False
    if layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks:
        return False
    if layer._buffers or state.get("_compiled_call_impl") is not None:
        return False
    for hooks in _GLOBAL_HOOKS:  # loops: any() takes twice the time
        if hooks:
            return False
    for parameter in layer._parameters.values():
        if type(parameter) is not nn.Parameter and type(parameter) is not Tensor and parameter is not None:
            return False
    return True


def product_and_bias(layer: nn.Module, kind: type[nn.Module], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """`layer(x)` as two summands, for `bias_gelu` to add: taken apart while untouched, else called, and no bias left.

    Args:
        layer: what was made as a `kind`, or whatever somebody has put in its place.
        kind: nn.Linear or nn.Conv1d.
        x: the layer's input.
    """
    if is_untouched(layer, kind):
        return _product(kind, layer, x), layer.bias  # type: ignore[return-value]
    return layer(x), None


def _product(kind: Any, layer: Any, x: Tensor) -> Tensor:
    """What a layer of PyTorch's gives without its bias."""
    if kind is nn.Linear:
        return nn.functional.linear(x, layer.weight)
    y: Tensor = kind._conv_forward(layer, x, layer.weight, None)
    return y


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

    def __init__(self, *args: Any, approximate: Approximate) -> None:
        check_approximate(approximate)
        super().__init__()
        self.__dict__.update(self.kind(*args).__dict__)  # parameters, their initial values, and hyper-parameters
        self.approximate = approximate

    def reset_parameters(self) -> None:
        self.kind.reset_parameters(self)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return bias_gelu(_product(self.kind, self, x), self.bias, dim=self.dim, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"{self.kind.extra_repr(self)}, approximate={self.approximate!r}"  # type: ignore[arg-type]


class LinearGELU(_LayerGELU):
    """GELU of a linear map: the product by PyTorch, then its bias and GELU in one pass.

    It is no nn.Linear, so that no tool takes it for a linear map. LoRA, quantisers and the like pass it by, and
    `ColwiseParallel` and `RowwiseParallel` refuse it with NotImplementedError. For those use `MLP`, whose layers are
    PyTorch's own.

    Args:
        in_features, out_features, bias, device, dtype: those of torch.nn.Linear, as are the parameters and their init.
        approximate: the formula, see `bias_gelu`.

    Raises:
        ValueError: approximate is unknown.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype, approximate=approximate)


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


class MLP(nn.Module):
    """Two linear maps with GELU between them: `fc2(gelu(fc1(x)))`.

    Both are PyTorch's own nn.Linear. LoRA, quantisation, tensor parallelism and whatever else replaces, wraps or hooks
    them does to them what it always does: fc1's bias and GELU are one pass while nobody has touched fc1, and else fc1
    is called, and GELU follows.

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
        check_approximate(approximate)
        super().__init__()
        hidden_features = 4 * in_features if hidden_features is None else hidden_features
        out_features = in_features if out_features is None else out_features
        self.approximate: Approximate = approximate
        self.recompute = recompute
        self.fc1 = nn.Linear(in_features, hidden_features, bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden_features, out_features, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        product, bias = product_and_bias(self.fc1, nn.Linear, x)
        if not (self.recompute and torch.is_grad_enabled()):
            return self._second(product, bias)
        # Computed again with the parameters of this pass, whatever fc2 has then. A touched fc2 may draw random numbers.
        alone = is_untouched(self.fc2, nn.Linear)
        second = partial(self._second, bias=bias, parameters=(self.fc2.weight, self.fc2.bias) if alone else ())
        y: Tensor = checkpoint(second, product, use_reentrant=False, preserve_rng_state=not alone)
        return y

    def _second(self, product: Tensor, bias: Tensor | None, parameters: tuple[Any, ...] = ()) -> Tensor:
        y = bias_gelu(product, bias, approximate=self.approximate)
        z: Tensor = nn.functional.linear(y, *parameters) if parameters else self.fc2(y)
        return z

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, recompute={self.recompute}"
