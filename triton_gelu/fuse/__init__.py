"""One call that fuses the GELUs of a model you already have.

A forward pass on example arguments shows which layers feed a GELU, see `trace`. Those layers and the GELU modules are
given another `forward` (`patch`, `layers`, `gelu_modules`); parameters, buffers, hooks and names stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from . import patch
from .gelu import FORMULAS, drives
from .gelu_modules import asks_itself
from .layers import kind_of
from .noted import Layer, Stack, UnfusedSite, Use
from .patch import Change
from .preserve import preserved
from .product import Link
from .trace import UNBIASED, UNKNOWN, Trace
from .written_out import formula_of

__all__ = ["FusionReport", "Site", "UnfusedSite", "fuse", "unfuse"]


@dataclass(frozen=True)
class Site:
    """A layer that an activation follows.

    Attributes:
        name: of the layer, as in `named_modules`; where none is known, of the module that computes what GELU takes.
        formula: "none", "tanh" or "sigmoid" as in `bias_gelu`, the name of another activation, or "?".
        fused: whether its GELU, and in training its bias gradient with it, is now a kernel where there are kernels.
        reason: why not.
        gated: whether that kernel computes the product of the GELU and another tensor, too.
    """

    name: str
    formula: str
    fused: bool
    reason: str = ""
    gated: bool = False

    @property
    def outcome(self) -> str:
        """What became of it, in words."""
        return f"yes{', gated' * self.gated}" if self.fused else f"no: {self.reason}"


@dataclass(frozen=True)
class FusionReport:
    """What `fuse` found: iterate over it for its sites, print it for a table."""

    sites: tuple[Site, ...]
    device_type: str = "cpu"

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def runs(self) -> str:
        """What the device that the model was on will run, in one line."""
        kernels = "each GELU is one kernel; its gradient and the bias's come from one pass over memory"
        if self.device_type == "meta":
            return f"On a device with Triton kernels, {kernels}; elsewhere, PyTorch's own operators run."
        if drives(self.device_type).possible:
            return f"On {self.device_type}, {kernels}."
        return f"On {self.device_type}, there are no kernels: PyTorch's own operators run, as before."

    def __str__(self) -> str:
        rows = [("layer", "formula", "fused")]
        rows += [(site.name, site.formula, site.outcome) for site in self.sites]
        name, formula = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{row[0]:{name}}  {row[1]:{formula}}  {row[2]}" for row in rows]
        return "\n".join([*lines, self.runs] if any(site.fused for site in self.sites) else lines)


def fuse(model: nn.Module, *example_args: Any, **example_kwargs: Any) -> FusionReport:
    """Make the GELU after every biased layer of `model` a kernel, in place, and in training its bias gradient with it.

    Forward, the layer stays PyTorch's own call, and GELU of its output is one kernel, accurate for negative inputs too.
    Backward, one pass over memory gives the gradient of GELU and its sum over rows, which is that of the layer's bias.
    If the GELU is gated, so that it or that of a half of the output is multiplied by the other half or by any tensor of
    its shape, the product is in that kernel, both gradients are in that pass, and the layer needs no bias. On a device
    without kernels, PyTorch's own operators run, until the model is moved; the printed report says so.

    A layer is a module of PyTorch's, such as Linear and the convolutions, or whatever calls their functions or
    `torch.addmm`; a GELU is a call of `torch.nn.functional.gelu` from anywhere, or code that is proven to compute one;
    a gate is a `*` of which the code after the GELU proves that it is the only use.
    The example only chooses the layers: a model that uses their outputs in other ways, now or later, stays right. What
    was chosen is a module of a subclass of its class; else nothing changes: parameters, state_dict, hooks, attributes
    and training mode stay. Copies, pickles and compiling work, torch.export gives PyTorch's operators. Compiled graphs
    with such a layer on a device with kernels are not kept on disk by AOTAutograd. Fusing again changes nothing.

    Args:
        model: any module. The example leaves its buffers and the random state as they were.
        example_args, example_kwargs: of `model.forward`; the model and they may be on the meta device.

    Returns:
        The layers that an activation follows, and the reason for each that is not fused.

    Raises:
        Exception: whatever `model` raises on the example.
    """
    unfuse(model)
    return _apply(_traced(model, example_args, example_kwargs), _device_type(model))


def unfuse(model: nn.Module) -> None:
    """Give every module of `model` that `fuse` has changed its own class back."""
    for module in model.modules():
        patch.restore(module)


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """A forward pass without gradients, or with them if the model raises without: it may ask for some itself."""
    with_gradients = [False, True] if torch.is_grad_enabled() else [False]
    for enabled in with_gradients:
        trace = Trace(model)
        try:
            with preserved(model), torch.set_grad_enabled(enabled), trace:
                model(*args, **kwargs)
        except Exception:
            if enabled == with_gradients[-1]:
                raise
        else:
            break
    return trace


def _device_type(model: nn.Module) -> str:
    return next((parameter.device.type for parameter in model.parameters()), "cpu")


def _apply(trace: Trace, device_type: str) -> FusionReport:
    """Change the layers that can be fused and their GELUs, and say what was found."""
    sites: dict[Site, None] = {}  # ordered, and without the repetitions of a layer that is called twice
    layers: dict[nn.Module, list[Layer]] = {}
    changes: dict[nn.Module, Change] = {}
    for layer in trace.layers:
        _recognize(layer)
        formulas = [use.formula for use in layer.uses if use.formula]
        if not formulas:
            continue
        name, reason, gated = layer.stack[-1].name, _why_not(layer), layer.gate is not None
        sites[Site(name, UNKNOWN if UNKNOWN in formulas else formulas[0], not reason, reason, gated)] = None
        if not reason:
            for each in (layer, *_factors(layer)):
                layers.setdefault(each.stack[-1].module, []).append(each)
    for module, calls in layers.items():
        gelus = {use.stack[-1].module: _gelu_change(use) for layer in calls for use in layer.uses if use.formula}
        gates = [layer.gate for layer in calls if layer.gate]
        kind = kind_of(module)
        ordinals = frozenset() if kind else frozenset(layer.ordinal for layer in calls)
        links = frozenset[Link]().union(*(gate.links for gate in gates))
        tag = bool(gates) or None in gelus.values()
        changes[module] = Change(kind or "calls", tag, bool(gates), links, ordinals)
        changes |= {each: how for each, how in gelus.items() if how is not None}
    for module, how in changes.items():
        patch.change(module, how)
    sites.update((Site(site.name, site.formula, False, site.reason), None) for site in trace.unfused)
    return FusionReport(tuple(sites), device_type)


def _factors(layer: Layer) -> list[Layer]:
    """The layer whose output the GELU is multiplied by, if its bias gradient can be computed with that of the GELU."""
    other = None if layer.gate is None else layer.gate.other
    if other is None or other.obstacle or len(other.uses) > 1 or patch.obstacle(other.stack[-1].module):
        return []
    return [other]


def _recognize(layer: Layer) -> None:
    """If all that is done to a layer's output is a GELU written out in its parent, that is its only use."""
    parents = {use.stack[-1].module: use.stack for use in layer.uses if use.stack and not use.stack[-1].formula}
    if UNKNOWN not in [use.formula for use in layer.uses] or len(parents) != 1:
        return
    ((parent, stack),) = parents.items()
    found = formula_of(parent)
    if found is not None and found.child and parent._modules[found.child] is layer.stack[-1].module:
        layer.uses = [Use(type(parent).__name__, stack, found.formula)]


def _gelu_change(use: Use) -> Change | None:
    """How the module of a GELU is changed, or None if it is a call of F.gelu that is told by a tag."""
    frame = use.stack[-1]
    if patch.obstacle(frame.module):
        return None
    if frame.formula:
        return Change("gelu", formula=frame.formula)
    if asks_itself(frame.module):
        return Change("gelu")
    found = formula_of(frame.module)
    return None if found is None else Change("layer and gelu", formula=found.formula, child=found.child)


def _why_not(layer: Layer) -> str:
    """Why a layer before an activation is not fused, or nothing."""
    for use in layer.uses:
        if use.formula == UNKNOWN:
            return f"a formula with {use.function} that is not recognised"
        if use.formula and use.formula not in FORMULAS:
            return f"{use.formula} is not GELU"
    if layer.divided and layer.gate is None:
        return "gated: nothing of its shape multiplies the GELU of a part"
    if layer.obstacle and not (layer.gate and layer.obstacle == UNBIASED):
        return layer.obstacle
    for frame in layer.stack[min(_shared(layer.stack, use.stack) for use in layer.uses) :]:
        if frame.module._forward_hooks:
            return f"forward hooks on {frame.name or 'the model'}"
    for frame in layer.stack:
        if isinstance(frame.module, nn.TransformerEncoderLayer) and not frame.module.training:
            return "in eval, nn.TransformerEncoder takes a path in C++"
    return patch.obstacle(layer.stack[-1].module) or next(
        (f"its output also goes into {use.function}" for use in layer.uses if not use.formula), ""
    )


def _shared(a: Stack, b: Stack) -> int:
    """How many calls two stacks have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(a, b, strict=False)))
