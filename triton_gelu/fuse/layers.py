"""The layers that fuse knows (F.linear, convolutions, addmm), and the forward that a fused layer gets.

That PyTorch adds the bias costs nothing in a Linear, whose product does it. After a convolution it is a pass of its own
on a GPU: in 16 bits 4 bytes an element, more than the 4 of GELU's forward and the 6 of its backward pass. A bias that
waited for GELU would save that pass, but to be right when its data is written meanwhile it has to be copied at every
call, and what stands for the sum has no memory. So it does not wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from . import gelu, tagged, tagged_in_graph
from .bias_gradient import attach
from .gelu import EXACT_TYPES
from .product import trust_function
from .tagged import Tagged

REAL_TYPES = (*EXACT_TYPES, Tagged)


class Kind(NamedTuple):
    """A kind of layer.

    Attributes:
        call: what its forward does, with another bias.
        dim: the dimension of its output that the bias runs along.
        size: the number of elements of its output, or so; where it takes long to say, it counts as large.
    """

    call: Callable[[Any, Tensor, Tensor], Tensor]
    dim: int
    size: Callable[[Any, Tensor], int]


def _linear(layer: Any, input: Tensor, bias: Tensor) -> Tensor:
    return F.linear(input, layer.weight, bias)


def _linear_size(layer: Any, input: Tensor) -> int:
    size: int = input.numel() // (layer.in_features or 1) * layer.out_features
    return size


def _large(layer: Any, input: Tensor) -> int:
    return sys.maxsize


def _convolution(layer: Any, input: Tensor, bias: Tensor) -> Tensor:
    output: Tensor = layer._conv_forward(input, layer.weight, bias)
    return output


def _transformers_conv1d(layer: Any, input: Tensor, bias: Tensor) -> Tensor:
    output = torch.addmm(bias, input.view(-1, input.size(-1)), layer.weight)
    return output.view((*input.shape[:-1], layer.nf))


def _whisper_linear(layer: Any, input: Tensor, bias: Tensor) -> Tensor:
    return F.linear(input, layer.weight.to(input.dtype), bias.to(input.dtype))


def _transposed(function: Callable[..., Tensor]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    def call(layer: Any, input: Tensor, bias: Tensor) -> Tensor:
        rest = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        return function(input, layer.weight, bias, *rest)

    return call


KINDS = {
    "linear": Kind(_linear, -1, _linear_size),
    "conv1d": Kind(_convolution, -2, _large),
    "conv2d": Kind(_convolution, -3, _large),
    "conv3d": Kind(_convolution, -4, _large),
    "conv_transpose1d": Kind(_transposed(F.conv_transpose1d), -2, _large),
    "conv_transpose2d": Kind(_transposed(F.conv_transpose2d), -3, _large),
    "conv_transpose3d": Kind(_transposed(F.conv_transpose3d), -4, _large),
    "transformers.Conv1D": Kind(_transformers_conv1d, -1, _large),
    "whisper.Linear": Kind(_whisper_linear, -1, _linear_size),
}
"""The layers whose forward is known."""


def kind_of(layer: nn.Module) -> str:
    """The key of the layer's forward in KINDS, or "" if it is not known."""
    forward = type(layer).forward
    known: dict[Any, str] = {nn.Linear.forward: "linear"}
    for n in (1, 2, 3):
        known[getattr(nn, f"Conv{n}d").forward] = f"conv{n}d"
        known[getattr(nn, f"ConvTranspose{n}d").forward] = f"conv_transpose{n}d"
    if "transformers.pytorch_utils" in sys.modules:
        known[sys.modules["transformers.pytorch_utils"].Conv1D.forward] = "transformers.Conv1D"
    if "whisper.model" in sys.modules:
        known[sys.modules["whisper.model"].Linear.forward] = "whisper.Linear"
    return known.get(forward, "")


def layer_forward(original: type[nn.Module], kind: str, tag: bool, gated: bool) -> Callable[..., Any]:
    """A forward for layers of class `original`; `tag` if its GELU has to recognize its output, `gated` if gated."""
    plain, (call, dim, size) = original.forward, KINDS[kind]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        recording = torch.is_grad_enabled()
        if not (recording or tag) or len(args) != 1 or kwargs or original.forward is not plain:
            return original.forward(self, *args, **kwargs)
        (input,) = args
        may_be_small = not tag and type(input) in REAL_TYPES and not is_dynamo_compiling()
        if may_be_small and size(self, input) < gelu.SMALL:
            return plain(self, input)
        bias, weight = self.bias, self.weight
        if (bias is None and not tag) or (bias is not None and (bias.ndim != 1 or type(bias) not in EXACT_TYPES)):
            return plain(self, input)
        if type(input) not in REAL_TYPES or type(weight) not in EXACT_TYPES or not gelu.has_kernels(weight.device.type):
            return plain(self, input)
        recorded = recording and bias is not None and bias.requires_grad
        if is_dynamo_compiling():
            if not (recorded or tag) or gelu.is_exporting() or gelu.is_transformed():
                return plain(self, input)
            tagged_in_graph.allow_in_graph()
            h = call(self, input, bias.detach()) if recorded else plain(self, input)
            return tagged_in_graph.layer_in_graph(h, bias if recorded else None, dim, tag, gated)
        if (
            not (recorded or tag)
            or not gelu.is_plain_eager()
            or type(self) is original  # unfused, but somebody has kept the method
        ):
            return plain(self, input)
        if recorded and not (tag and size(self, input) < gelu.SMALL):
            h = attach(call(self, input, bias.detach()), bias, dim)
        else:
            h = plain(self, input)
        if tag and type(h) is Tensor:
            tagged.tag(h, tagged.Watch() if gated else None)
        return h

    return forward


class Operands(NamedTuple):
    """What a call of one of PRODUCERS computes with; the bias is added along dim."""

    inputs: tuple[Tensor, ...]
    bias: Tensor | None
    dim: int


def _of_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operands:
    return Operands((input, weight), bias, -1)


def _of_addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Operands:
    bias = input if input.ndim == 1 and len(input) == mat2.shape[1] and beta == alpha == 1 else None
    return Operands((mat1, mat2), bias, -1)


def _of_convolution(dim: int) -> Callable[..., Operands]:
    def operands(input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any) -> Operands:
        return Operands((input, weight), bias, dim)

    return operands


PRODUCERS: dict[Any, Callable[..., Operands]] = {
    F.linear: _of_linear,
    torch.addmm: _of_addmm,
    F.conv1d: _of_convolution(-2),
    F.conv2d: _of_convolution(-3),
    F.conv3d: _of_convolution(-4),
    F.conv_transpose1d: _of_convolution(-2),
    F.conv_transpose2d: _of_convolution(-3),
    F.conv_transpose3d: _of_convolution(-4),
}
"""The functions that add a bias last."""


def operands_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operands | None:
    """The operands of a call of one of PRODUCERS, in a form in which it can be fused."""
    return None if func not in PRODUCERS or kwargs.get("out") is not None else PRODUCERS[func](*args, **kwargs)


def takes_rows(bias: Tensor, output: Tensor, dim: int) -> bool:
    """Whether the bias has a number for each position along dim. F.linear takes other shapes, too."""
    return bias.ndim == 1 and output.ndim >= -dim and output.shape[dim] == len(bias)


def calling_forward(original: type[nn.Module], calls: frozenset[int], tag: bool, gated: bool) -> Callable[..., Any]:
    """A forward for modules that call PRODUCERS themselves: those at these places are fused. In graphs, none is."""
    plain = original.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling() or type(self) is original or original.forward is not plain:
            return original.forward(self, *args, **kwargs)
        if not gelu.is_plain_eager():
            return plain(self, *args, **kwargs)
        with FusedCalls(calls, tag, gated):
            return plain(self, *args, **kwargs)

    return forward


class FusedCalls(gelu.HarmlessMode):
    """In a module's own forward, does to the outputs of some calls of PRODUCERS what `layer_forward` does."""

    def __init__(self, calls: frozenset[int], tag: bool, gated: bool) -> None:
        super().__init__()
        self.calls, self.tag, self.gated = calls, tag, gated
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCERS:
            return func(*args, **kwargs)
        self.count += 1
        operands = operands_of(func, args, kwargs) if self.count - 1 in self.calls else None
        if operands is None or not _fits(operands, self.tag):
            return func(*args, **kwargs)
        bias, dim = operands.bias, operands.dim
        if bias is not None and bias.requires_grad and torch.is_grad_enabled():
            detached = bias.detach()
            args = tuple(detached if arg is bias else arg for arg in args)
            kwargs = {name: detached if arg is bias else arg for name, arg in kwargs.items()}
            h = attach(func(*args, **kwargs), bias, dim)
        else:
            h = func(*args, **kwargs)
        if self.tag and type(h) is Tensor:
            tagged.tag(h, tagged.Watch() if self.gated else None)
        return h


trust_function(FusedCalls.__torch_function__)


def _fits(operands: Operands, tag: bool) -> bool:
    inputs, bias, _ = operands
    return (
        (tag if bias is None else bias.ndim == 1 and type(bias) in EXACT_TYPES)
        and gelu.has_kernels(inputs[0].device.type)
        and all(type(each) in REAL_TYPES for each in inputs)
    )
