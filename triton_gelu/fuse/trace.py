"""Runs a model once, and records which layers feed an activation, and from where.

A mode of the current thread sees every call of a PyTorch function; the frames on Python's stack tell which modules are
running. So there is no hook on any module, and other threads run as they did. Nothing here knows a model.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .gated import PARTS as DIVISIONS
from .gated import Half, half_of
from .gelu import EXACT_TYPES
from .layers import PRODUCERS, Operands, operands_of, takes_rows
from .noted import Factor, Frame, Gate, Layer, Origin, Stack, UnfusedSite, Use
from .product import Link, links_to_product
from .tagged import METADATA, PRODUCTS, VIEWS, gelu_formula
from .written_out import formula_of

OTHERS = {F.relu: "relu", torch.relu: "relu", Tensor.relu: "relu", F.silu: "silu", F.mish: "mish", F.elu: "elu"}
"""Activations that are no GELU: reported, so that nobody wonders."""

ARITHMETIC = ("add", "sub", "mul", "div", "truediv", "pow", "square", "radd", "rsub", "rmul", "rtruediv")
GATES = ("erf", "erfc", "tanh", "sigmoid")
"""A GELU written out in Python is arithmetic on the output of a layer, and then one of these."""

PARTS = ("chunk", "split", "getitem", "narrow", "unbind", "tensor_split", "select")
"""The functions that divide the output of a layer into a part for the GELU and a part that it gates."""

UNBIASED = "no bias"
"""What stands against fusing a layer without a bias, unless the GELU is gated."""

UNKNOWN = "?"
"""The formula of an activation that is written out and not recognised."""


class Trace(TorchFunctionMode):
    """Watches one forward pass of a model: afterwards, see `layers` and `unfused`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.unfused: list[UnfusedSite] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: Stack = ()
        self._frames: list[FrameType] = []
        self._base: FrameType | None = None
        self._outputs: MutableMapping[Tensor, Layer] = WeakTensorKeyDictionary()
        self._halves: MutableMapping[Tensor, tuple[Layer, Half]] = WeakTensorKeyDictionary()
        self._rearranged: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self._factors: MutableMapping[Tensor, Factor] = WeakTensorKeyDictionary()
        self._origins: MutableMapping[Tensor, Origin] = WeakTensorKeyDictionary()

    def __enter__(self) -> Trace:
        self._base = sys._getframe(1)
        super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._look(None)
        self._base = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_dynamo_compiling() or func in METADATA:  # what compiles by itself is not looked into
            return func(*args, **kwargs)
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        version = _version(leaves[0]) if leaves else None
        output = func(*args, **kwargs)
        self._look(sys._getframe(1))
        if leaves and output is leaves[0] and version == _version(output):
            return output  # dropout in eval, contiguous, to: nothing has happened
        if self._stack and not self._stack[-1].formula:
            self._record(func, args, kwargs, leaves, output, sys._getframe(1))
        elif self._stack and isinstance(output, Tensor):
            self._stack[-1].result = output  # the last one is what the GELU returns
        return output

    def _look(self, frame: FrameType | None) -> None:
        """Bring the stack of modules up to date by the frames of `nn.Module.__call__` below this one."""
        running: list[FrameType] = []
        while frame is not None and frame is not self._base:
            if frame.f_code is CALL:
                running.append(frame)
            frame = frame.f_back
        running.reverse()
        known = 0
        while known < min(len(running), len(self._frames)) and running[known] is self._frames[known]:
            known += 1
        for left in reversed(self._stack[known:]):
            if left.formula and left.argument is not None:
                name = type(left.module).__name__
                self._activate(left.argument, Use(name, self._stack, left.formula), left.result, left.links)
            self._stack = self._stack[:-1]
        del self._frames[known:]
        for each in running[known:]:
            self._frames.append(each)
            self._enter(each.f_locals["self"], each.f_locals["args"], each)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], call: FrameType) -> None:
        frame = Frame(self._names.get(module, type(module).__name__), module)
        if len(args) == 1 and isinstance(args[0], Tensor) and (args[0] in self._outputs or args[0] in self._halves):
            found = formula_of(module)
            if found is not None and not found.child:
                frame.formula, frame.argument, frame.links = found.formula, args[0], links_to_product(call)
        self._stack += (frame,)

    def _activate(self, x: Tensor, use: Use, y: Tensor | None, links: frozenset[Link] | None) -> bool:
        """Note a GELU of x if that is the output of a layer, or a half of it before a gate."""
        half: Half | None = None
        if x in self._outputs:
            layer = self._outputs[x]
        elif x in self._halves and links:
            layer, half = self._halves[x]
        else:
            return False
        layer.uses.append(use)
        layer.divided |= half is not None
        if links and y is not None and x not in self._rearranged:
            self._factors[y] = Factor(use, layer, half, links)
        return True

    def _multiply(self, inputs: list[Tensor]) -> bool:
        """Note a product of a GELU and another tensor."""
        if len(inputs) != 2 or (inputs[0].shape, inputs[0].dtype) != (inputs[1].shape, inputs[1].dtype):
            return False
        for y, other in (inputs, inputs[::-1]):
            factor = self._factors.get(y)
            if factor is not None:
                layer, half = self._halves.get(other, (self._outputs.get(other), None))
                if layer is not None and (half is None or layer is not factor.layer):
                    layer.uses.append(Use("mul", self._stack))
                factor.layer.gate = Gate(factor.use, layer if half is None else None, factor.links)
                return True
        return False

    def _record(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], output: Any, caller: FrameType) -> None:
        layers = [self._outputs[tensor] for tensor in inputs if tensor in self._outputs]
        name = getattr(func, "__name__", str(func)).strip("_")
        if name == "get":  # the getter of an attribute, T or real
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if func in VIEWS and layers and _is_rearranged(output, inputs[0], layers[0]):
            self._outputs[output], self._rearranged[output] = layers[0], True
            return
        formula = gelu_formula(*args, **kwargs) if func is F.gelu else OTHERS.get(func, "")
        use = Use(name, self._stack, formula)
        if func is F.gelu:
            if not self._activate(inputs[0], use, output, links_to_product(caller)):
                self.unfused.append(self._unfused(inputs[0], formula))
        elif not (func in PRODUCTS and self._multiply(inputs)):
            halves = [self._halves[tensor][0] for tensor in inputs if tensor in self._halves]
            for layer in halves if func in DIVISIONS and self._divide(inputs[0], output) else [*layers, *halves]:
                layer.uses.append(use)
        stem = self._stem(inputs)
        if name in GATES and stem and not layers:
            stem.uses.append(Use(name, self._stack, UNKNOWN))
        operands = operands_of(func, args, kwargs)
        if func in PRODUCERS:
            if operands is not None:
                self._outputs[output] = self._layer(operands, output)
            for frame in self._stack:
                frame.calls += 1
        if operands is not None:
            return
        arithmetic = stem is not None and name in ARITHMETIC
        origin = Origin(name, self._stack[-1].name, stem if arithmetic else next(iter(layers), None), arithmetic)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf not in self._outputs:
                self._origins[leaf] = origin

    def _divide(self, h: Tensor, output: Any) -> bool:
        """Note the halves of a layer's output, if a function has returned them."""
        parts = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        found = [half_of(h, part) for part in parts]
        if h not in self._outputs or h in self._rearranged or None in found:
            return False
        self._halves.update((part, (self._outputs[h], half)) for part, half in zip(parts, found, strict=True) if half)
        return True

    def _layer(self, operands: Operands, output: Tensor) -> Layer:
        inputs, bias, dim = operands
        subclasses = [type(t).__name__ for t in inputs if type(t) not in EXACT_TYPES]
        obstacle = UNBIASED if bias is None else f"{subclasses[0]} operands" if subclasses else ""
        if bias is not None and not obstacle and not takes_rows(bias, output, dim):
            obstacle = f"a bias of shape {tuple(bias.shape)}"
        width = output.shape[dim] if output.ndim >= -dim else 1
        layer = Layer(self._stack, self._stack[-1].calls, dim, width, output.numel(), obstacle)
        self.layers.append(layer)
        return layer

    def _stem(self, tensors: list[Tensor]) -> Layer | None:
        """The only layer that these are the output of, or arithmetic on the output."""
        origins = [self._origins.get(tensor) for tensor in tensors]
        stems = {
            origin.layer if origin and origin.arithmetic else self._outputs.get(tensor)
            for tensor, origin in zip(tensors, origins, strict=True)
        }
        return stems.pop() if len(stems) == 1 else None

    def _unfused(self, x: Tensor, formula: str) -> UnfusedSite:
        origin = self._origins.get(x)
        if origin is None:
            outside = UnfusedSite(self._stack[-1].name, formula, "GELU of what comes from outside")
            return self._hooked(formula) or outside
        layer = origin.layer
        if layer is None:
            return UnfusedSite(origin.module, formula, f"GELU of what {origin.function} returns")
        reason = f"{origin.function} comes before the GELU"
        if origin.function in PARTS and x.ndim >= -layer.dim and x.shape[layer.dim] < layer.width:
            reason = f"gated: GELU of a part, by {origin.function}"
            if layer.obstacle:
                reason += f"; {layer.obstacle}"
        return UnfusedSite(layer.stack[-1].name, formula, reason)

    def _hooked(self, formula: str) -> UnfusedSite | None:
        """A GELU of what a hook has made, probably, of the output of the last layer."""
        for layer in self.layers[-1:]:
            for frame in layer.stack:
                if frame.module._forward_hooks and frame not in self._stack and not layer.uses:
                    return UnfusedSite(layer.stack[-1].name, formula, f"forward hooks on {frame.name}")
        return None


CALL = nn.Module._call_impl.__code__


def _version(tensor: Tensor) -> int | None:
    return None if is_lazy(tensor) or tensor.is_inference() else tensor._version


def _is_rearranged(view: Any, of: Tensor, layer: Layer) -> bool:
    """Whether a view has all elements of a layer's output, or of such a view, with the bias along one dimension."""
    if not isinstance(view, Tensor) or view.dtype != of.dtype or view.numel() != layer.numel:
        return False
    if view._base is None or layer.width not in view.shape:  # a copy, or the bias is spread over several dimensions
        return view is of or (layer.dim == -1 and view.ndim > 0 and view.shape[-1] == layer.width)
    return True
