"""Errors of gated GELUs against the truth, for every number that goes through GELU: y = w gelu(u), and both gradients.

The factor w and the incoming gradient are random, so that each product is rounded as any other. Errors are in ulp of
the result; those of the gradient of u in ulp of the largest term of the sum that the derivative is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from perf.accuracy import instruction_errors, truth
from perf.accuracy.ulp_errors import CPU, FLUSHED, INTERPRETED, SIGNS, empty_row, points, summary
from perf.library import DTYPES, FORMULAS
from perf.rows import Row

Function = Callable[[Tensor, Tensor, str], Tensor]
PARTS: Mapping[str, tuple[str, ...]] = {
    "forward": ("gated value",),
    "backward": ("gradient of the activated half", "gradient of the other half"),
}


def ours(u: Tensor, w: Tensor, approximate: str) -> Tensor:
    """The public function, by whatever backend this process has."""
    import triton_gelu

    return triton_gelu.bias_gelu_mul(u, w, approximate=approximate)  # type: ignore[arg-type]


def eager(u: Tensor, w: Tensor, approximate: str) -> Tensor:
    """PyTorch's own."""
    return FORMULAS[approximate].standard(u) * w


def functions(device: torch.device) -> dict[str, Function]:
    """The columns that this process can compute on a device."""
    if device.type != "cpu":
        return {"triton_gelu": ours, "torch": eager}
    return dict.fromkeys(SIGNS, ours) if INTERPRETED else {"triton_gelu, CPU": ours, "torch": eager}


def errors(function: Function, x: Tensor, approximate: str, direction: str) -> Iterator[tuple[Tensor, Tensor]]:
    """For each part: errors in ulp at every x, and which of them count; those too large for the type don't."""
    generator = torch.Generator().manual_seed(0)
    w, dy = (torch.randn(x.shape, generator=generator).to(x.dtype).to(x.device) for _ in range(2))
    u, factor, incoming = (t.cpu().double() for t in (x, w, dy))
    value = truth.gelu(u, approximate)
    if direction == "forward":
        pairs = [(function(x, w, approximate), factor * value, (factor * value).abs())]
    else:
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        du, dw = torch.autograd.grad(function(*leaves, approximate), leaves, dy)
        slope, largest = truth.gelu(u, approximate, 1), truth.largest_term(u, approximate, 1)
        pairs = [
            (du, incoming * factor * slope, (incoming * factor).abs() * torch.maximum(largest, slope.abs())),
            (dw, incoming * value, (incoming * value).abs()),
        ]
    for got, true, scale in pairs:
        error = truth.ulps(got.cpu(), true, scale)
        rounded = ~u.isfinite() & (error <= 0.5)  # w and the incoming gradient are finite: there results may be, too
        counts = ~(scale < FLUSHED) & ~(scale > torch.finfo(x.dtype).max / 2)
        yield torch.where(rounded, 0.0, error), counts


def rows(dtype_name: str, approximate: str, direction: str, device: torch.device = CPU) -> Iterator[Row]:
    """The rows of one dtype, formula and direction, from the columns that this process can compute on a device."""
    x = points(DTYPES[dtype_name]).to(device)
    blank = empty_row(x, approximate, direction)
    for provider, function in functions(device).items():
        with (
            instruction_errors.approximate(SIGNS.get(provider, 0)),
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
        ):
            warnings.simplefilter("ignore")
            found = list(errors(function, x, approximate, direction))
        for part, (error, counts) in zip(PARTS[direction], found, strict=True):
            about = replace(blank, provider=provider, case=f"{blank.case}: {part}")
            yield from summary(about, x.cpu().double(), error, counts)
