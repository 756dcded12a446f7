"""The forward of a module that is a GELU, or a layer and its GELU, after a fused layer."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from . import gelu, tagged, tagged_in_graph
from .bias_gradient import fused_gelu
from .layers import REAL_TYPES
from .tagged import Tagged, untag


def _calls_act(self: Any, input: Tensor) -> Tensor:
    """The forward of GELUActivation and GELUTanh of transformers."""
    return self.act(input)  # type: ignore[no-any-return]


def asks_itself(module: nn.Module) -> bool:
    """Whether a module says at every call which GELU it is, see `formula_now`."""
    forward = type(module).forward
    if "forward" in vars(module):
        return False
    if forward is nn.GELU.forward:
        return True
    code: Any = getattr(forward, "__code__", None)
    same = code is not None and (code.co_code, code.co_names) == (_calls_act.__code__.co_code, ("act",))
    return same and formula_now(module) is not None


def formula_now(module: Any) -> Any:
    """The formula of a module for which `asks_itself` is true, or None if it is no GELU any more."""
    if isinstance(module, nn.GELU):
        return module.approximate
    act = getattr(module, "act", None)
    if act is F.gelu:
        return "none"
    if type(act) is functools.partial and act.func is F.gelu:
        return tagged.gelu_formula(None, *act.args, **act.keywords)
    return None


def gelu_forward(original: type[nn.Module], formula: str) -> Callable[..., Any]:
    """A forward for modules of class `original` that are a GELU; without a formula, they say which."""
    plain = original.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or original.forward is not plain:
            return original.forward(self, *args, **kwargs)
        (h,) = args
        if type(h) not in REAL_TYPES or not gelu.has_kernels(h.device.type):
            return plain(self, h)
        now: Any = formula or formula_now(self)
        if is_dynamo_compiling():
            if now not in gelu.FORMULAS or gelu.is_exporting() or gelu.is_transformed():
                return plain(self, h)
            tagged_in_graph.allow_in_graph()
            return tagged_in_graph.gelu_in_graph(h, now)
        if now in gelu.FORMULAS and type(self) is not original:
            if type(h) is Tagged:
                y = tagged.activate(h, now, sys._getframe(1))
                if y is not None:
                    return y
            elif gelu.fits(h):
                return fused_gelu(h, now)
        untag(h)
        return plain(self, h)

    return forward


def layer_and_gelu_forward(original: type[nn.Module], formula: Any, child: str) -> Callable[..., Any]:
    """A forward for modules of class `original` that apply a GELU, written out, to the output of a child."""
    plain = original.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or original.forward is not plain or type(args[0]) not in REAL_TYPES:
            return original.forward(self, *args, **kwargs)
        (input,) = args
        if not gelu.has_kernels(input.device.type):
            return plain(self, input)
        if is_dynamo_compiling():
            if gelu.is_exporting() or gelu.is_transformed():
                return plain(self, input)
            tagged_in_graph.allow_in_graph()
            return tagged_in_graph.gelu_in_graph(getattr(self, child)(input), formula)
        if type(self) is original or not gelu.is_plain_eager():
            return plain(self, input)
        h = getattr(self, child)(input)
        return fused_gelu(h, formula) if gelu.fits(h) else gelu.torch_gelu(h, formula)

    return forward
