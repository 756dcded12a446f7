"""Values and gradients of every operator against float64, in every class of layout; a row each.

The truth is the same call on float64 tensors, which plain PyTorch computes. A row's value is the largest error over
what is allowed: a final rounding, and float32 arithmetic on the way. That finds what reads or writes in a wrong place,
or not at all. How well the tails are computed `perf.accuracy.ulp_errors` tells, for every number.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from perf.accuracy.truth import spacing
from perf.cases import Case
from perf.layouts import GRADIENTS, LARGE, LAYOUTS, incoming, laid_out
from perf.operators import OPERATORS, Operator
from perf.rows import Row
from perf.time import measure
from perf.time.measure import Machine

EXCESS = "error over what is allowed"
FP32_STEPS = 16  # roundings in float32, those of sums of many terms included
EPS32 = torch.finfo(torch.float32).eps


def layouts(operator: Operator) -> list[str]:
    """The classes of layout that an operator takes."""
    return [name for name in (*LAYOUTS, *LARGE) if operator.takes(*laid_out(name, "meta"))]


def case(layout: str, dtype: str, approximate: str) -> Case:
    """What a row about a layout is about."""
    x, dim = laid_out(layout, "meta")
    return Case(layout, tuple(x.shape), dim, dtype, approximate, "forward_backward")


def rows(name: str, layouts: Sequence[str], dtype: str, approximate: str, machine: Machine) -> Iterator[Row]:
    """A row a layout: the largest error over the allowed one; failed, with the reason, where it is above 1."""
    for layout in layouts:
        torch.manual_seed(zlib.crc32(layout.encode()))
        x, dim = laid_out(layout, machine.device, getattr(torch, dtype))
        blank = measure.blank_row(case(layout, dtype, approximate), machine)
        blank = replace(blank, kind="checked", provider=name, metric=EXCESS, unit="1")
        try:
            excess, worst = checked(OPERATORS[name], x, dim, approximate)
        except (ArithmeticError, AssertionError, NotImplementedError, TypeError, ValueError) as problem:
            yield replace(blank, status="failed", note=f"{type(problem).__name__}: {problem}")
            continue
        if excess <= 1:
            yield replace(blank, status="ok", value=excess, note=worst)
        else:
            yield replace(blank, status="failed", note=f"{worst} is off by {excess:.3g} times what is allowed")


def checked(operator: Operator, x: Tensor, dim: int, approximate: str) -> tuple[float, str]:
    """The largest error of value and gradients, for each kind of incoming gradient, over what is allowed; and which."""
    tensors = operator.tensors(x, dim)
    worst: dict[str, float] = {}
    for kind in GRADIENTS:
        with torch.no_grad():
            dy = incoming(kind, operator.call(*tensors, dim=dim, approximate=approximate))
        ours = outputs(operator, tensors, dy, dim, approximate)
        truth = outputs(operator, [each.double() for each in tensors], dy.double(), dim, approximate)
        for (what, got), true in zip(ours.items(), truth.values(), strict=True):
            if got.shape != true.shape or got.dtype != x.dtype:
                raise AssertionError(
                    f"{what} is {tuple(got.shape)} in {got.dtype}, expected {tuple(true.shape)} in {x.dtype}"
                )
            rounded = operator.magnitude(true, *tensors).double() if what == "y" else true
            allowed = spacing(rounded, x.dtype) + FP32_STEPS * EPS32 * scale(true, dy if what != "y" else None)
            overflows = got.isinf() & (got == true.to(x.dtype))
            error = torch.where(overflows, 0.0, (got.double() - true).abs())
            worst[f"{what}, {kind} gradient"] = float((error / allowed).nan_to_num(nan=math.inf).max())
    name = max(worst, key=lambda each: worst[each])
    return worst[name], name


def outputs(
    operator: Operator, tensors: Sequence[Tensor], dy: Tensor, dim: int, approximate: str
) -> Mapping[str, Tensor]:
    """The value and the gradients of all tensors."""
    leaves = [each.detach().requires_grad_() for each in tensors]
    y = operator.call(*leaves, dim=dim, approximate=approximate)
    gradients = torch.autograd.grad(y, leaves, dy)
    return {"y": y.detach(), **{f"gradient {number}": each for number, each in enumerate(gradients)}}


def scale(true: Tensor, dy: Tensor | None) -> float:
    """The size of what float32 arithmetic rounds: of sums, what many independent terms come to."""
    largest = float(true.abs().max())
    if dy is None:
        return largest
    return max(largest, math.sqrt(dy.numel() / true.numel()) * float(dy.abs().max()))
