"""One forward pass of a model, watched: which layers feed an activation, and from where.

A mode sees every call of a PyTorch function, and hooks tell which module makes it. Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ..functional import Approximate, gelu
from .lazy_bias import GELUS, METADATA, PRODUCERS, VIEWS, Split, keeps_last

OTHERS = {F.relu: "relu", torch.relu: "relu", Tensor.relu: "relu", F.silu: "silu", F.mish: "mish", F.elu: "elu"}
"""Activations that are no GELU: reported, so that nobody wonders."""

ARITHMETIC = ("add", "sub", "mul", "div", "truediv", "pow", "square", "radd", "rsub", "rmul")
GATES = ("erf", "erfc", "tanh", "sigmoid")
"""A GELU written out in Python is arithmetic on the output of a layer, and then one of these."""

UNKNOWN = "?"
"""The formula of an activation that is written out and not recognised."""


@dataclass(eq=False)
class Frame:
    """A call of a module's forward; `formula` if the module is a GELU written out in Python."""

    name: str
    module: nn.Module
    calls: int = 0
    formula: Approximate | None = None


Stack = tuple[Frame, ...]


@dataclass(frozen=True)
class Use:
    """A call of a function on the output of a layer; `formula` if it is an activation."""

    function: str
    stack: Stack
    formula: str = ""


@dataclass(eq=False)
class Layer:
    """A call of one of `PRODUCERS`: the how-manieth in its module's forward, and what stands against fusing it."""

    stack: Stack
    ordinal: int
    dim: int
    width: int
    obstacle: str
    uses: list[Use] = field(default_factory=list)


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: a function, perhaps of the output of a layer, or arithmetic on nothing else."""

    function: str
    module: str
    layer: Layer | None
    arithmetic: bool


@dataclass(frozen=True)
class Loose:
    """A GELU of something else than the output of a layer."""

    name: str
    formula: str
    reason: str


class Survey(TorchFunctionMode):
    """Watches one forward pass of a model: afterwards, see `layers` and `loose`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.loose: list[Loose] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: Stack = ()
        self._outputs: MutableMapping[Tensor, Layer] = WeakTensorKeyDictionary()
        self._origins: MutableMapping[Tensor, Origin] = WeakTensorKeyDictionary()
        self._hooks = ExitStack()

    def __enter__(self) -> Survey:
        self._hooks.enter_context(register_module_forward_pre_hook(self._enter))
        self._hooks.enter_context(register_module_forward_hook(self._leave, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._hooks.close()

    def _enter(self, module: nn.Module, args: Any) -> None:
        follows = len(args) == 1 and isinstance(args[0], Tensor) and args[0] in self._outputs
        formula = formula_written_out(module) if follows else None
        self._stack += (Frame(self._names.get(module, type(module).__name__), module, formula=formula),)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        *below, frame = self._stack
        if frame.formula:
            self._outputs[args[0]].uses.append(Use(type(module).__name__, self._stack, frame.formula))
        self._stack = tuple(below)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func not in METADATA and self._stack and not self._stack[-1].formula:
            self._record(func, args, kwargs, output)
        return output

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        layers = [self._outputs[tensor] for tensor in inputs if tensor in self._outputs]
        if func in VIEWS and layers and layers[0].stack[-1] is self._stack[-1] and keeps_last(output, inputs[0]):
            self._outputs[output] = layers[0]
            return
        name = getattr(func, "__name__", str(func)).strip("_")
        formula = GELUS[func](*args, **kwargs) if func in GELUS else OTHERS.get(func, "")
        for layer in layers:
            layer.uses.append(Use(name, self._stack, formula))
        stem = self._stem(inputs)
        if func in GELUS and not layers:
            self.loose.append(self._loose(inputs[0], formula))
        elif name in GATES and stem and not layers:
            stem.uses.append(Use(name, self._stack, UNKNOWN))
        if func in PRODUCERS:
            self._outputs[output] = self._layer(PRODUCERS[func](*args, **kwargs), output)
            return
        arithmetic = stem is not None and name in ARITHMETIC
        origin = Origin(name, self._stack[-1].name, stem if arithmetic else next(iter(layers), None), arithmetic)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf not in self._outputs:
                self._origins[leaf] = origin

    def _layer(self, split: Split, output: Tensor) -> Layer:
        subclasses = [type(t).__name__ for t in split.operands if type(t) not in (Tensor, nn.Parameter)]
        obstacle = "no bias" if split.bias is None else f"{subclasses[0]} operands" if subclasses else ""
        layer = Layer(self._stack, self._stack[-1].calls, split.dim, output.shape[split.dim], obstacle)
        for frame in self._stack:
            frame.calls += 1
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

    def _loose(self, x: Tensor, formula: str) -> Loose:
        origin = self._origins.get(x)
        if origin is None:
            return self._hooked(formula) or Loose(self._stack[-1].name, formula, "GELU of what comes from outside")
        layer = origin.layer
        if layer is None:
            return Loose(origin.module, formula, f"GELU of what {origin.function} returns")
        gated = x.ndim >= -layer.dim and x.shape[layer.dim] < layer.width
        reason = f"gated: GELU of a part, by {origin.function}" if gated else f"{origin.function} comes before the GELU"
        return Loose(layer.stack[-1].name, formula, reason)

    def _hooked(self, formula: str) -> Loose | None:
        """A GELU of what a hook has made, probably, of the output of the last layer."""
        for layer in self.layers[-1:]:
            for frame in layer.stack:
                if frame.module._forward_hooks and frame not in self._stack and not layer.uses:
                    return Loose(layer.stack[-1].name, formula, f"forward hooks on {frame.name}")
        return None


PROBE = torch.linspace(-8, 8, 1601, dtype=torch.float64)
"""Where modules are asked for their formula: there any two formulas differ by more than 4e-4 somewhere."""

ROUNDING = 1e-6
"""More than what constants in fp32 or with ten digits change."""


def formula_written_out(module: nn.Module) -> Approximate | None:
    """The formula of a module that is named after GELU, has no state, and does not call `torch.nn.functional.gelu`."""
    if "gelu" not in type(module).__name__.lower() or any(module.children()) or module.state_dict():
        return None
    try:
        with torch.no_grad(), _NoGELU():
            y = module.forward(PROBE)
    except Exception:  # whatever it needs, a tensor is not enough
        return None
    formula: Approximate
    for formula in get_args(Approximate):
        truth = gelu(PROBE, approximate=formula)
        if isinstance(y, Tensor) and y.shape == truth.shape and (y - truth).abs().max() < ROUNDING:
            return formula
    return None


class _NoGELU(TorchFunctionMode):
    """Refuses PyTorch's own GELU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in GELUS:
            raise NotImplementedError
        return func(*args, **(kwargs or {}))
