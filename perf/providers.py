"""The implementations that are compared: ours, PyTorch's, compiled ones; each turns a case into a call.

`PROVIDERS` names them all. To add one, write such a function and give it a name there.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import triton_gelu
from perf import models
from perf.cases import TWO, Case, Inputs
from triton_gelu.formulas import FORMULAS

Call = Callable[..., Tensor]  # (x), (x, bias) or (x, weight, bias), as the case has them
Provider = Callable[[Case], Call]
Thunk = Callable[[], Tensor | tuple[Tensor, ...]]


def eager(case: Case) -> Call:
    """What a PyTorch user writes: `F.gelu(x + b)`, or `F.gelu(F.linear(x, w, b))`."""
    if case.model:
        return models.call(models.MODELS[case.model].plain(case.shape, case.approximate))  # type: ignore[arg-type]
    gelu = FORMULAS[case.approximate].standard
    if case.gated:
        return _eager_gated(case, gelu)
    if case.in_features is not None:
        return lambda x, weight, bias: gelu(F.linear(x, weight, bias))
    if case.dim is None:
        return lambda x: gelu(x)
    if case.dim in (-1, len(case.shape) - 1):
        return lambda x, bias: gelu(x + bias)
    trailing = [1] * len(case.shape[case.dim :][1:])
    if case.transposed:
        return lambda x, bias, position: gelu(x + bias.view(-1, *trailing)).transpose(1, 2) + position
    return lambda x, bias: gelu(x + bias.view(-1, *trailing))


def _eager_gated(case: Case, gelu: Callable[[Tensor], Tensor]) -> Call:
    """`u, w = (x + b).chunk(2, dim)`, then `gelu(u) * w`; or of two tensors, each with its bias."""
    if case.gated == TWO:
        if case.dim is None:
            return lambda x, other: gelu(x) * other
        shape = case.across
        return lambda x, bias, other, other_bias: gelu(x + bias.view(shape)) * (other + other_bias.view(shape))
    dim, shape = (-1, []) if case.dim is None else (case.dim, case.across)

    def call(x: Tensor, bias: Tensor | None = None) -> Tensor:
        first, second = (x if bias is None else x + bias.view(shape)).chunk(2, dim)
        return gelu(first) * second if case.gated == "first" else first * gelu(second)

    return call


def fused(case: Case) -> Call:
    """What a user of this package writes: `bias_gelu(x, b)`, or `bias_gelu(F.linear(x, w), b)`."""
    if case.model:
        return models.call(models.MODELS[case.model].ours(case.shape, case.approximate))  # type: ignore[arg-type]
    if case.transposed:
        return functools.partial(triton_gelu.bias_gelu_transpose, approximate=case.approximate)  # type: ignore[arg-type]
    if case.gated:
        return _fused_gated(case)
    bias_gelu = functools.partial(triton_gelu.bias_gelu, approximate=case.approximate)  # type: ignore[arg-type]
    if case.in_features is not None:
        return lambda x, weight, bias: bias_gelu(F.linear(x, weight), bias)
    if case.dim is None:
        return lambda x: bias_gelu(x)
    dim = case.dim
    return lambda x, bias: bias_gelu(x, bias, dim=dim)


def _fused_gated(case: Case) -> Call:
    dim = -1 if case.dim is None else case.dim
    options: dict[str, Any] = {"dim": dim, "approximate": case.approximate}
    if case.gated == TWO:
        mul: Call = functools.partial(triton_gelu.bias_gelu_mul, **options)
        return mul if case.dim is None else lambda x, bias, other, other_bias: mul(x, other, bias, other_bias)
    return functools.partial(triton_gelu.bias_geglu, activated=case.gated, **options)  # type: ignore[arg-type]


def compiled(provider: Provider) -> Provider:
    """The same call under `torch.compile`, one graph and static shapes: its best case."""
    return lambda case: torch.compile(provider(case), fullgraph=True, dynamic=False)


BASELINE = "eager"
PROVIDERS: Mapping[str, Provider] = {
    BASELINE: eager,
    "torch.compile": compiled(eager),
    "triton_gelu": fused,
    "triton_gelu compiled": compiled(fused),
}
COMPILED = ("torch.compile", "triton_gelu compiled")
RIVALS = {  # the baselines that a provider's time is divided by
    "torch.compile": ("eager",),
    "triton_gelu": ("eager",),
    "triton_gelu compiled": ("eager", "torch.compile"),
}


def thunk(case: Case, call: Call, inputs: Inputs) -> Thunk:
    """The timed function: gives y, with the backward y and a fresh gradient for each of `inputs.leaves`.

    Of the backward alone it gives the gradients, from one forward pass, which is made when they are first asked for.
    """
    if not case.differentiates:
        return functools.partial(call, *inputs.leaves)
    if case.direction == "backward":
        result = functools.cache(functools.partial(call, *inputs.leaves))

        def backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(result(), inputs.leaves, inputs.dy, retain_graph=True)

        return backward

    def forward_backward() -> tuple[Tensor, ...]:
        y = call(*inputs.leaves)
        return (y, *torch.autograd.grad(y, inputs.leaves, inputs.dy))

    return forward_backward


def expression(case: Case) -> str:
    """What the baseline computes, as one would write it."""
    if case.model:
        return f"{case.model} of PyTorch's layers"
    if case.gated == TWO:
        bias, other_bias = ("", "") if case.dim is None else (" + b", " + c")
        return f"{FORMULAS[case.approximate].spelling.format(u=f'(x{bias})')} * (other{other_bias})"
    if case.gated:
        chunk = f"u, w = {'x' if case.dim is None else '(x + b)'}.chunk(2, {-1 if case.dim is None else case.dim})"
        u, w = ("u", "w") if case.gated == "first" else ("w", "u")
        return f"{FORMULAS[case.approximate].spelling.format(u=u)} * {w} with {chunk}"
    u = "F.linear(x, w, b)" if case.in_features else "x" if case.dim is None else "x + b"
    then = ".transpose(1, 2) + position" if case.transposed else ""
    spelled = FORMULAS[case.approximate].spelling
    if spelled.count("{u}") > 1:
        return f"{spelled.format(u='u')}{then} with u = {u}"
    return f"{spelled.format(u=u)}{then}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The word that chooses providers; `select` reads it."""
    names = ", ".join(PROVIDERS)
    parser.add_argument("--provider", choices=PROVIDERS, action="append", metavar="NAME", help=f"of: {names}")


def select(args: argparse.Namespace) -> dict[str, Provider]:
    """The providers asked for, always with the baseline: every ratio needs it in the same run."""
    wanted = {BASELINE, *(args.provider or PROVIDERS)}
    return {name: provider for name, provider in PROVIDERS.items() if name in wanted}
