"""Operators of other libraries that do what ours do: as providers of cases, and as functions whose errors are counted.

None of them has to be installed: where one isn't, or has no answer to a case, its rows are skipped and say why.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from perf.cases import TWO, Case
from perf.library import FORMULAS

Call = Callable[..., Tensor]
LIGER_ROW = 1024
INNER = 16  # features of a product that leaves its input as it is: few, and still a shape of tensor cores


@dataclass(frozen=True)
class Library:
    """An operator of another library.

    `provider` turns a case into a call, as those of `perf.providers` do, and `takes` tells which cases, which `what`
    says in words. `alone` is its GELU of one tensor, whose errors are counted. `formula` is the one it computes, and
    `no_backward` why it is not timed with a backward pass. `module` has to be installed, which `package` brings.
    """

    provider: Callable[[Case], Call]
    alone: Callable[[Tensor], Tensor]
    takes: Callable[[Case], bool]
    what: str
    no_backward: str
    formula: str = "tanh"
    module: str = "torch"
    package: str = "torch"

    def missing(self, device: torch.device) -> str:
        """Why it can't be had on this device; empty if it can."""
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            return f"{self.package} is not installed (pip install {self.package})"
        return "" if device.type == "cuda" else "it is a kernel for GPUs"

    def unable(self, case: Case, device: torch.device) -> str:
        """Why it has no answer for a case on a device; empty if it has."""
        if not self.takes(case):
            return f"it computes {self.what} only"
        if case.approximate != self.formula:
            return f"it computes {FORMULAS[self.formula].title} only"
        if case.differentiates:
            return self.no_backward
        return self.missing(device)


def is_linear(case: Case) -> bool:
    """Whether the case is a Linear with its GELU."""
    return case.in_features is not None


def is_gated(case: Case) -> bool:
    """Whether the case is GELU times another tensor, without biases."""
    return case.gated == TWO and case.dim is None


def addmm_activation(case: Case) -> Call:
    """The product whose epilogue is GELU: cuBLASLt's, by PyTorch's private operator."""

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = torch._addmm_activation(bias, x.flatten(0, -2), weight.mT, use_gelu=True)
        return y.view(*x.shape[:-1], -1)

    return call


def epilogue_alone(u: Tensor) -> Tensor:
    """GELU of u by the epilogue of a product that leaves u as it is: one feature is u, the others are zeros."""
    x = u.new_zeros(u.numel(), INNER)
    x[:, 0] = u.flatten()
    weight = u.new_zeros(INNER, INNER)
    weight[0] = 1
    y: Tensor = torch._addmm_activation(u.new_zeros(INNER), x, weight, use_gelu=True)[:, 0].view(u.shape)
    return y


def liger(x: Tensor, other: Tensor) -> Tensor:
    """gelu(x) other, by Liger's kernel."""
    y: Tensor = importlib.import_module("liger_kernel.ops.geglu").LigerGELUMulFunction.apply(x, other)
    return y


def liger_alone(u: Tensor) -> Tensor:
    """GELU of u by Liger's kernel, whose rows can't be of any length."""
    rows = functional.pad(u.flatten(), (0, -u.numel() % LIGER_ROW)).view(-1, LIGER_ROW)
    return liger(rows, torch.ones_like(rows)).flatten()[: u.numel()].view(u.shape)


LIBRARIES: Mapping[str, Library] = {
    "torch._addmm_activation": Library(
        addmm_activation, epilogue_alone, is_linear, "a Linear with its GELU", no_backward="it has no derivative"
    ),
    "Liger GEGLU": Library(
        lambda case: liger,
        liger_alone,
        is_gated,
        "gelu(x) times another tensor without biases",
        no_backward="its backward pass overwrites its inputs",
        module="liger_kernel",
        package="liger-kernel",
    ),
}
