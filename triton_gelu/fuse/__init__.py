"""One call that fuses the GELUs of a model you already have.

A forward pass on example arguments shows which layers feed a GELU, see `_survey`. Those are given a `forward` that lets
the bias wait for the GELU, see `_deferred`; classes, parameters, buffers and hooks stay what they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from types import CodeType
from typing import Any

import torch
from torch import nn

from ..functional import FORMULAS, Approximate
from .lazy_bias import Deferring, Watch, fused_gelu, watches
from .trace import UNKNOWN, Layer, Stack, Survey


@dataclass(frozen=True)
class Site:
    """A layer that an activation follows.

    Attributes:
        name: of the layer, as in `named_modules`; where none is known, of the module that computes what GELU takes.
        formula: "none", "tanh" or "sigmoid" as in `bias_gelu`, the name of another activation, or "?".
        fused: whether its bias is now added together with the GELU.
        reason: why not.
    """

    name: str
    formula: str
    fused: bool
    reason: str = ""


@dataclass(frozen=True)
class FusionReport:
    """What `fuse` found: iterate over it for its sites, print it for a table."""

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

    A layer is whatever calls `torch.nn.functional.linear`, a convolution or `torch.addmm`; a GELU is a call of
    `torch.nn.functional.gelu` from anywhere, or a module without state, named after GELU, that computes one. The
    example only chooses the layers: a model that uses their outputs in other ways, now or later, stays right.
    Parameters, state_dict, hooks and training mode stay; copies, pickling and compiling work. Only call a shallow copy,
    `copy(x)`: its `forward(x)` is that of the model it was copied from. Fusing again changes nothing.

    Args:
        model: any module. The example leaves its buffers and the random state as they were.
        example_args, example_kwargs: of `model.forward`; the model and they may be on the meta device.

    Returns:
        The layers that an activation follows, and the reason for each that is not fused.

    Raises:
        Exception: whatever `model` raises on the example.
    """
    unfuse(model)
    survey = Survey(model)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"), torch.no_grad(), survey:
            model(*example_args, **example_kwargs)
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    return _apply(survey)


def unfuse(model: nn.Module) -> None:
    """Give every module of `model` that `fuse` has changed its own `forward` back."""
    for module in model.modules():
        while isinstance(patch := vars(module).get("forward"), _Patch):
            patch.remove()


CALLED = "called module"
"""The keyword by which a hook tells a patch whose forward it is, as shallow copies share both. No name, so nobody's."""


def _tell(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, CALLED: module}


class _Patch:
    """A `forward` in place of a module's own. It is copied and pickled with the module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.previous: Callable[..., Any] | None = vars(module).get("forward")
        self.hook = module.register_forward_pre_hook(_tell, with_kwargs=True)
        vars(module)["forward"] = self

    def remove(self) -> None:
        self.hook.remove()
        del vars(self.module)["forward"]
        if self.previous is not None:
            vars(self.module)["forward"] = self.previous

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = kwargs.pop(CALLED, self.module)
        return self.run(self.original(module), args, kwargs)

    def run(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What happens in place of `original(*args, **kwargs)`."""
        raise NotImplementedError

    def original(self, module: nn.Module) -> Callable[..., Any]:
        """The forward of `module` that this one has replaced."""
        if isinstance(self.previous, _Patch):
            return partial(self.previous, **{CALLED: module})
        return self.previous or partial(type(module).forward, module)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.previous or partial(type(self.module).forward, self.module))

    @property
    def __code__(self) -> CodeType:  # torch.export reads it
        code: CodeType = inspect.unwrap(type(self.module).forward).__code__
        return code


class _Layer(_Patch):
    """The forward of a module with layers before a GELU: the biases of those calls wait.

    They do not wait beyond a hook on their way: it may take the parameters away, as sharding does.
    """

    def __init__(self, module: nn.Module, ordinals: set[int], way: set[nn.Module]) -> None:
        super().__init__(module)
        self.ordinals = frozenset(ordinals)
        self.way = tuple(way)

    def run(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(module._forward_hooks for module in self.way):
            return original(*args, **kwargs)
        with Deferring(self.ordinals):
            return original(*args, **kwargs)


class _Around(_Patch):
    """The forward of a module with a layer and its GELU inside: while PyTorch compiles, it brings them together."""

    def run(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling():
            return original(*args, **kwargs)
        watches.append(Watch())
        try:
            with watches[-1]:
                return original(*args, **kwargs)
        finally:
            watches.pop()


class _WrittenOut(_Patch):
    """The forward of a module that computes GELU in Python."""

    def __init__(self, module: nn.Module, formula: Approximate) -> None:
        super().__init__(module)
        self.formula = formula

    def run(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fused = fused_gelu(args[0], self.formula) if len(args) == 1 and not kwargs else None
        return original(*args, **kwargs) if fused is None else fused


def _apply(survey: Survey) -> FusionReport:
    """Patch the layers that can be fused, and say what was found."""
    sites: dict[Site, None] = {}  # ordered, and without the repetitions of a layer that is called twice
    ordinals: dict[nn.Module, set[int]] = {}
    ways: dict[nn.Module, set[nn.Module]] = {}
    written_out: dict[nn.Module, Approximate] = {}
    around: dict[nn.Module, None] = {}
    for layer in survey.layers:
        formulas = [use.formula for use in layer.uses if use.formula]
        if not formulas:
            continue
        name, module, reason = layer.stack[-1].name, layer.stack[-1].module, _why_not(layer)
        sites[Site(name, UNKNOWN if UNKNOWN in formulas else formulas[0], not reason, reason)] = None
        if reason:
            continue
        ordinals.setdefault(module, set()).add(layer.ordinal)
        for use in layer.uses:
            shared = _shared(layer.stack, use.stack)
            around[layer.stack[shared - 1].module] = None
            ways.setdefault(module, set()).update(frame.module for frame in layer.stack[shared:])
            if formula := use.stack[-1].formula:
                written_out[use.stack[-1].module] = formula
    for module in ordinals:
        _Layer(module, ordinals[module], ways[module])
    for module, formula in written_out.items():
        _WrittenOut(module, formula)
    for module in around:
        _Around(module)
    sites.update((Site(loose.name, loose.formula, False, loose.reason), None) for loose in survey.loose)
    return FusionReport(tuple(sites))


def _shared(a: Stack, b: Stack) -> int:
    """How many calls two stacks have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(a, b, strict=False)))


def _why_not(layer: Layer) -> str:
    """Why a layer before an activation is not fused, or nothing."""
    for use in layer.uses:
        if use.formula == UNKNOWN:
            return f"a formula with {use.function} that is not recognised"
        if use.formula and use.formula not in FORMULAS:
            return f"{use.formula} is not GELU"
    if layer.obstacle:
        return layer.obstacle
    for frame in layer.stack:
        if frame.module._forward_hooks:
            return f"forward hooks on {frame.name or 'the model'}"
        if isinstance(frame.module, nn.TransformerEncoderLayer) and not frame.module.training:
            return "in eval, nn.TransformerEncoder takes a path in C++"
    return next((f"its output also goes into {use.function}" for use in layer.uses if not use.formula), "")
