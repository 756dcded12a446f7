"""One call that fuses the GELUs of a model you already have.

One forward pass on example arguments shows which layers feed a GELU: a mode sees every call of a PyTorch function, and
hooks tell which module makes it. Nothing here knows a model. The layers found are then given a `forward` that lets the
bias wait for the GELU, see `_deferred`; classes, parameters, buffers and hooks stay what they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from triton_gelu._deferred import (
    GELUS,
    METADATA,
    PRODUCERS,
    VIEWS,
    Deferring,
    Split,
    Watch,
    fused_gelu,
    keeps_last,
    watches,
)
from triton_gelu.functional import FORMULAS, Approximate, gelu


@dataclass(frozen=True)
class Site:
    """A layer that an activation follows.

    Attributes:
        name: of the layer, as in `named_modules`; of the activation where no layer is known.
        formula: "none", "tanh" or "sigmoid" as in `bias_gelu`, another activation's name, or "?".
        fused: whether its bias is now added together with the GELU.
        reason: why not.
    """

    name: str
    formula: str
    fused: bool
    reason: str = ""


@dataclass(frozen=True)
class FusionReport:
    """What `fuse` found; iterate over it for its sites, print it for a table."""

    sites: tuple[Site, ...]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __str__(self) -> str:
        rows = [("layer", "formula", "fused")]
        rows += [(site.name, site.formula, "yes" if site.fused else f"no: {site.reason}") for site in self.sites]
        name, formula = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "\n".join(f"{row[0]:{name}}  {row[1]:{formula}}  {row[2]}" for row in rows)


def fuse(model: nn.Module, *example_args: Any, **example_kwargs: Any) -> FusionReport:
    """Fuse, in place, every biased layer of `model` whose output goes into a GELU, with the formula of that GELU.

    A layer is whatever calls `torch.nn.functional.linear`, a convolution or `torch.addmm`; a GELU is
    `torch.nn.functional.gelu`, called from anywhere, or a module without state, named after GELU, that computes one.
    The example forward only chooses the layers. A model that later uses their outputs otherwise stays right.

    Args:
        model: any module; its training mode, buffers and random state are left as they were.
        example_args, example_kwargs: of `model.forward`; the model and they may be on the meta device.

    Returns:
        The layers that an activation follows, and for those that are not fused, the reason.

    Raises:
        Whatever `model` raises on the example.
    """
    unfuse(model)
    survey = _Survey(model)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(), torch.no_grad(), survey:
        model(*example_args, **example_kwargs)
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    return survey.fuse()


def unfuse(model: nn.Module) -> None:
    """Give every module of `model` that `fuse` has changed its own `forward` back."""
    for module in model.modules():
        while isinstance(patch := vars(module).get("forward"), _Patch):
            patch.remove()


class _Patch:
    """A `forward` in place of a module's own. It can be copied and pickled with the module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.previous: Callable[..., Any] | None = vars(module).get("forward")
        module.forward = self

    def remove(self) -> None:
        del self.module.forward
        if self.previous is not None:
            self.module.forward = self.previous

    @property
    def original(self) -> Callable[..., Any]:
        return self.previous or partial(type(self.module).forward, self.module)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)


class _Layer(_Patch):
    """The forward of a layer before a GELU: some of its biases wait."""

    def __init__(self, module: nn.Module, ordinals: frozenset[int]) -> None:
        super().__init__(module)
        self.ordinals = ordinals

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with Deferring(self.ordinals):
            return self.original(*args, **kwargs)


class _Around(_Patch):
    """The forward of a module with both a layer and its GELU inside: where PyTorch compiles, it brings them together."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.original(*args, **kwargs)
        watches.append(Watch())
        try:
            with watches[-1]:
                return self.original(*args, **kwargs)
        finally:
            watches.pop()


class _WrittenOut(_Patch):
    """The forward of a module that computes GELU in Python."""

    def __init__(self, module: nn.Module, formula: Approximate) -> None:
        super().__init__(module)
        self.formula = formula

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fused = fused_gelu(args[0], self.formula) if len(args) == 1 and not kwargs else None
        return self.original(*args, **kwargs) if fused is None else fused


OTHERS = {F.relu: "relu", torch.relu: "relu", Tensor.relu: "relu", F.silu: "silu", F.mish: "mish", F.elu: "elu"}
"""Activations that are no GELU: reported, so that nobody wonders."""

PARTS = ("chunk", "split", "unbind", "getitem", "narrow", "tensor_split")
"""Functions that take a part of a tensor, as gated layers do."""

ARITHMETIC = ("add", "sub", "mul", "div", "truediv", "pow", "rmul", "radd", "rsub", "square")
GATES = ("erf", "erfc", "tanh", "sigmoid")
"""A formula written out in Python is arithmetic on a layer's output, and then one of these."""


@dataclass(eq=False)
class _Frame:
    """A call of a module's forward."""

    name: str
    module: nn.Module
    calls: int = 0
    formula: str | None = None


@dataclass(eq=False)
class _Use:
    """A call of a function on a layer's output; `formula` is that of an activation."""

    function: str
    stack: tuple[_Frame, ...]
    formula: str = ""


@dataclass(eq=False)
class _Product:
    """The output of one of `PRODUCERS`."""

    stack: tuple[_Frame, ...]
    ordinal: int
    obstacle: str
    uses: list[_Use] = field(default_factory=list)


@dataclass(eq=False)
class _Result:
    """Where a tensor comes from: a function, perhaps of a layer's output or of arithmetic on it."""

    function: str
    product: _Product | None = None
    arithmetic: bool = False


class _Survey(TorchFunctionMode):
    """Watches one forward pass of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.stack: tuple[_Frame, ...] = ()
        self.products: list[_Product] = []
        self.outputs = WeakTensorKeyDictionary()  # the output of a layer -> _Product
        self.results = WeakTensorKeyDictionary()  # any other tensor -> _Result
        self.sites: dict[Site, None] = {}
        self.hooks = ExitStack()

    def __enter__(self) -> _Survey:
        self.hooks.enter_context(register_module_forward_pre_hook(self.enter))
        self.hooks.enter_context(register_module_forward_hook(self.leave, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.hooks.close()

    def enter(self, module: nn.Module, args: Any) -> None:
        frame = _Frame(self.names.get(module, type(module).__name__), module)
        self.stack = (*self.stack, frame)
        if len(args) == 1 and args[0] in self.outputs:
            frame.formula = _formula_written_out(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if formula := self.stack[-1].formula:
            self.outputs[args[0]].uses.append(_Use(type(module).__name__, self.stack, formula))
        self.stack = self.stack[:-1]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func not in METADATA and self.stack and not self.stack[-1].formula:
            self.record(func, args, kwargs, output)
        return output

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name = getattr(func, "__name__", str(func)).strip("_")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        used = [self.outputs[tensor] for tensor in tensors if tensor in self.outputs]
        if func in VIEWS and used and used[0].stack[-1] is self.stack[-1] and keeps_last(output, args[0]):
            self.outputs[output] = used[0]
            return
        formula = GELUS[func](*args, **kwargs) if func in GELUS else OTHERS.get(func, "")
        for product in used:
            product.uses.append(_Use(name, self.stack, formula))
        origin = self.results.get(tensors[0]) if tensors else None
        if origin and origin.arithmetic and name in GATES:
            origin.product.uses.append(_Use(name, self.stack, "?"))
        if func in GELUS and not used:
            self.no_layer_before(formula, origin)
        if func in PRODUCERS:
            self.outputs[output] = self.product(PRODUCERS[func](*args, **kwargs))
        else:
            stems = {self.stem(tensor) for tensor in tensors}
            arithmetic = name in ARITHMETIC and len(stems) == 1 and None not in stems
            result = _Result(name, stems.pop() if arithmetic else used[0] if used else None, arithmetic)
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf not in self.outputs:
                    self.results[leaf] = result

    def product(self, split: Split) -> _Product:
        obstacle = "no bias" if split.bias is None else ""
        for operand in split.operands:
            if type(operand) not in (Tensor, nn.Parameter):
                obstacle = f"{type(operand).__name__} operands"
        product = _Product(self.stack, self.stack[-1].calls, obstacle)
        for frame in self.stack:
            frame.calls += 1
        self.products.append(product)
        return product

    def stem(self, tensor: Tensor) -> _Product | None:
        """The layer that a tensor is the output of, or arithmetic on the output."""
        result = self.results.get(tensor)
        return result.product if result and result.arithmetic else self.outputs.get(tensor)

    def no_layer_before(self, formula: str, origin: _Result | None) -> None:
        name = self.stack[-1].name
        if origin is None:
            reason = "its input comes from outside"
        elif origin.product is None:
            reason = f"GELU of what {origin.function} returns"
        else:
            name = origin.product.stack[-1].name
            part = f"gated: GELU takes a part, by {origin.function}"
            reason = part if origin.function in PARTS else f"{origin.function} stands between it and GELU"
        self.sites[Site(name, formula, False, reason)] = None

    def fuse(self) -> FusionReport:
        """Patch the layers that can be fused, and say what was found."""
        ordinals: dict[nn.Module, set[int]] = {}
        around: dict[nn.Module, None] = {}
        written: dict[nn.Module, str] = {}
        for product in self.products:
            if formulas := [use.formula for use in product.uses if use.formula]:
                reason = _why_not(product)
                layer = product.stack[-1]
                self.sites[Site(layer.name, "?" if "?" in formulas else formulas[0], not reason, reason)] = None
                if reason:
                    continue
                ordinals.setdefault(layer.module, set()).add(product.ordinal)
                for use in product.uses:
                    shared = [a for a, b in zip(product.stack, use.stack, strict=False) if a is b]
                    around[shared[-1].module] = None
                    if use.stack[-1].formula:
                        written[use.stack[-1].module] = use.formula
        for module, numbers in ordinals.items():
            _Layer(module, frozenset(numbers))
        for module, formula in written.items():
            _WrittenOut(module, formula)
        for module in around:
            _Around(module)
        return FusionReport(tuple(self.sites))


def _why_not(product: _Product) -> str:
    """Why a layer before an activation can't be fused, or nothing."""
    for use in product.uses:
        if use.formula == "?":
            return f"a formula with {use.function} that is not recognised"
        if use.formula and use.formula not in FORMULAS:
            return f"{use.formula} is not GELU"
    if product.obstacle:
        return product.obstacle
    for frame in product.stack:
        if isinstance(frame.module, nn.TransformerEncoderLayer) and not frame.module.training:
            return "in eval, nn.TransformerEncoder takes a path in C++"
    return next((f"its output also goes into {use.function}" for use in product.uses if not use.formula), "")


PROBE = torch.linspace(-8, 8, 1601, dtype=torch.float64)
"""Where modules are asked for their formula: there the formulas differ by up to 5e-4, and 0.02."""

ROUNDING = 1e-6
"""More than what constants in fp32 or with ten digits change, less than any two formulas differ."""


def _formula_written_out(module: nn.Module) -> str | None:
    """The formula of a module that is named after GELU, has no state, and does not call `torch.nn.functional.gelu`."""
    if "gelu" not in type(module).__name__.lower() or any(module.children()) or module.state_dict():
        return None
    try:
        with torch.no_grad(), _NoGELU():
            y = module.forward(PROBE)
    except Exception:  # whatever it needs, a tensor is not enough
        return None
    for formula in FORMULAS:
        truth = gelu(PROBE, approximate=formula)
        if isinstance(y, Tensor) and y.shape == truth.shape and (y - truth).abs().max() < ROUNDING:
            return formula
    return None


class _NoGELU(TorchFunctionMode):
    """Refuses calls of torch's GELU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in GELUS:
            raise NotImplementedError
        return func(*args, **(kwargs or {}))
