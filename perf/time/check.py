"""Checks a case against float64 before it is timed, and says by how much it may miss.

The tolerance is a count of roundings, not a literal: each rounding to the case's dtype moves a result by at most
half an ulp of what is rounded, and arithmetic inside is held to fp32. Accuracy proper, tails included, is the
business of `python -m perf accuracy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perf import models
from perf.accuracy import truth
from perf.cases import TWO, Case, Inputs

EPS32 = torch.finfo(torch.float32).eps
FP32_STEPS = 8  # roundings in an fp32 evaluation of a formula: some polynomial terms, a tanh, a product
BACKWARD_ROUNDINGS = 8  # of the gradient of u * sigmoid(1.702 u), taken operation by operation
MODEL_ROUNDINGS = 256  # of a whole model, in ulp of its largest result
DEVIATIONS = 4  # a sum of many independent errors stays within so many of its standard deviations


@dataclass(frozen=True)
class Expected:
    """One output: its name, its float64 value, and the error allowed at each element."""

    name: str
    value: Tensor
    tolerance: Tensor

    def objection(self, got: Tensor, dtype: torch.dtype) -> str:
        """Why `got` is wrong, in words; empty if it is right."""
        if got.shape != self.value.shape or got.dtype != dtype:
            shape = tuple(self.value.shape)
            return f"{self.name} is {tuple(got.shape)} in {got.dtype}, expected {shape} in {dtype}"
        error = (got.detach().double() - self.value).abs_()
        wrong = ~(error <= self.tolerance)  # so that NaN is wrong
        if not wrong.any():
            return ""
        worst = int((error - self.tolerance).nan_to_num(nan=math.inf).argmax())
        return (
            f"{self.name} is wrong at {int(wrong.sum())} of {wrong.numel()} elements: {got.flatten()[worst]:.6g} "
            f"for {self.value.flatten()[worst]:.6g}, allowed error {self.tolerance.flatten()[worst]:.2g}"
        )


def objection(case: Case, outputs: Tensor | Sequence[Tensor], expected: Sequence[Expected]) -> str:
    """Why the outputs of a provider are wrong, in words; empty if they are right."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    if len(outputs) != len(expected):
        return f"gave {len(outputs)} tensors, expected {', '.join(each.name for each in expected)}"
    complaints = (want.objection(got, case.torch_dtype) for got, want in zip(outputs, expected, strict=True))
    return next(filter(None, complaints), "")


@torch.no_grad()
def expected(case: Case, inputs: Inputs) -> tuple[Expected, ...]:
    """The outputs of `providers.thunk` in float64: y, and with the backward the gradients of the leaves."""
    compute = _whole if case.model else _gated if case.gated else _expected
    outputs = compute(case, inputs)
    return tuple(each for each in outputs if case.direction != "backward" or each.name != "y")


def _whole(case: Case, inputs: Inputs) -> Iterator[Expected]:
    """A model's output and gradients; each may miss by so much of its largest value."""
    model = models.MODELS[case.model].plain(case.shape, case.approximate).double()  # type: ignore[arg-type]
    leaves = [torch.nn.Parameter(leaf.detach().double()) for leaf in inputs.leaves]
    with torch.enable_grad():
        y = models.call(model)(*leaves)
    gradients = () if inputs.dy is None else torch.autograd.grad(y, leaves, inputs.dy.double())
    names = ("y", "dx", *(f"gradient {number}" for number in range(len(leaves) - 1)))
    for name, value in zip(names, (y.detach(), *gradients), strict=inputs.dy is not None):
        miss = MODEL_ROUNDINGS * torch.finfo(case.torch_dtype).eps * value.abs().max()
        yield Expected(name, value, miss.expand_as(value))


def _expected(case: Case, inputs: Inputs) -> Iterator[Expected]:
    info = torch.finfo(case.torch_dtype)
    ulp, least = info.eps / 2, info.smallest_normal * info.eps  # half an ulp of 1; the smallest subnormal
    x = inputs.x.double()
    weight = None if inputs.weight is None else inputs.weight.double()
    bias = torch.zeros((), device=x.device) if inputs.bias is None else along(inputs.bias.double(), case)
    u = (x if weight is None else x @ weight.mT) + bias
    gate, slope, _ = truth.gate(u, case.approximate)
    y, dydu = u * gate, gate + u * slope

    roundings = (u * dydu).abs() + (u * u * slope).abs() + 2 * y.abs()  # of u, 1.702 u, the gate and y
    tolerance = least + ulp * roundings + FP32_STEPS / 2 * EPS32 * u.abs()
    if weight is not None:  # x @ w is rounded before the bias comes, and its fp32 sum errs like a random walk
        spread = (x * x @ (weight * weight).mT * weight.shape[-1]).sqrt()
        tolerance += ulp * (u - bias).abs() + 2 * EPS32 * spread
    if case.transposed:  # y is rounded, and so is its sum with the position
        y = y.transpose(1, 2) + inputs.parameters[0].double()
        tolerance = tolerance.transpose(1, 2) + 2 * ulp * y.abs()
    yield Expected("y", y, tolerance)
    if inputs.dy is None:
        return

    dy = inputs.dy.double()
    if case.transposed:
        dposition, misses = dy.sum(0), (dy * dy * EPS32**2).sum(0)
        dy = dy.transpose(1, 2)
    du = dy * dydu
    steps = BACKWARD_ROUNDINGS * ulp + FP32_STEPS * EPS32 * (1 + u.abs())
    miss = 2 * least + dy.abs() * steps  # y' and u y'' are at most about 1
    if weight is None:
        yield Expected("dx", du, miss)
    else:
        yield summed("dx", du @ weight, (miss * miss) @ (weight * weight), ulp)
        terms, misses = du.flatten(0, -2), (miss * miss).flatten(0, -2)
        inward = x.flatten(0, -2)
        yield summed("dweight", terms.mT @ inward, misses.mT @ (inward * inward), ulp)
    if case.dim is not None:
        others = [dim for dim in range(du.ndim) if dim != case.dim % du.ndim]
        yield summed("dbias", du.sum(others), (miss * miss).sum(others), ulp)
    if case.transposed:
        yield summed("dposition", dposition, misses, ulp)


def _gated(case: Case, inputs: Inputs) -> Iterator[Expected]:
    """A gated GELU's output and gradients, in the order of the leaves."""
    info = torch.finfo(case.torch_dtype)
    ulp, least = info.eps / 2, info.smallest_normal * info.eps
    split = -1 if case.dim is None else case.dim
    sums = [inputs.x.double() if inputs.bias is None else inputs.x.double() + along(inputs.bias.double(), case)]
    if case.gated == TWO:
        other, *other_bias = (each.double() for each in inputs.parameters)
        sums.append(other + along(other_bias[0], case) if other_bias else other)
    else:
        sums = list(sums[0].chunk(2, split))
    u, w = sums if case.gated != "second" else sums[::-1]
    gate, slope, _ = truth.gate(u, case.approximate)
    gelu, dydu = u * gate, gate + u * slope

    roundings = (u * dydu).abs() + (u * u * slope).abs() + 2 * gelu.abs()  # as of an ungated GELU
    gelu_misses = least + ulp * roundings + FP32_STEPS / 2 * EPS32 * u.abs()
    yield Expected("y", gelu * w, least + w.abs() * gelu_misses + 3 * ulp * (gelu * w).abs())  # w, and the product
    if inputs.dy is None:
        return
    dy = inputs.dy.double()
    steps = BACKWARD_ROUNDINGS * ulp + FP32_STEPS * EPS32 * (1 + u.abs())
    pair = (dy * w * dydu, 2 * least + (1 + 2 * ulp) * (dy * w).abs() * steps), (
        dy * gelu, 2 * least + dy.abs() * gelu_misses + 2 * ulp * (dy * gelu).abs()
    )  # fmt: skip
    halves = pair if case.gated != "second" else pair[::-1]
    if case.gated != TWO:
        halves = ((torch.cat([d for d, _ in halves], split), torch.cat([miss for _, miss in halves], split)),)  # type: ignore[assignment]
    for (du, miss), name in zip(halves, ("", "other"), strict=False):
        yield Expected(f"d{name or 'x'}", du, miss)
        if case.dim is not None:
            others = [d for d in range(du.ndim) if d != case.dim % du.ndim]
            squares = (miss * miss).sum(others)
            yield summed(f"d{'other_' if name else ''}bias", du.sum(others), squares, ulp)


def summed(name: str, value: Tensor, squares: Tensor, ulp: float) -> Expected:
    """A sum whose terms miss independently: the squares of the misses add up, then one rounding."""
    return Expected(name, value, DEVIATIONS * squares.sqrt() + 2 * ulp * value.abs())


def along(bias: Tensor, case: Case) -> Tensor:
    """The bias as a view that adds along the case's dimension."""
    return bias.view(case.across)
