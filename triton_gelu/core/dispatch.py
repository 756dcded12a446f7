"""Which backend computes a call (Triton kernels, CPU blocks, plain PyTorch), by its device and dtype, and why.

For debugging, the environment decides instead: `TRITON_GELU_BACKEND=torch` leaves everything to plain PyTorch, and
`TRITON_GELU_BACKEND=kernels` raises where kernels do not run, in eager calls, compiled graphs and fused models. It is
read when the package is imported; calls that are known ask nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import compat_triton
from .declare import Tensors
from .plan import Plan


@dataclass(frozen=True)
class Support:
    """Whether a backend can compute on some tensor, and why or why not."""

    possible: bool
    reason: str

    @classmethod
    def yes(cls, reason: str) -> Support:
        return cls(True, reason)

    @classmethod
    def no(cls, reason: str) -> Support:
        return cls(False, reason)


def always(x: Tensor) -> Support:
    """The support of a backend that takes every tensor."""
    return Support.yes("it takes every tensor")


@dataclass(frozen=True)
class Backend:
    """How an operator is computed in one way, on tensors in memory.

    Attributes:
        name: by which people know it, in rows and messages.
        forward: of the operator's arguments, the result.
        backward: of the gradient of that, the arguments and, last, which gradients are needed: the gradients, in the
            order of the differentiable arguments, None for those that are not needed.
        double_backward: of the gradients of those, each of which may be None for zero, then the arguments of
            `backward` and, last, what is needed: the gradients for dy and the differentiable arguments. None where a
            backend leaves that to plain PyTorch.
        supports: of x, whether it takes tensors like it, and why.
    """

    name: str
    forward: Callable[..., Tensor]
    backward: Callable[..., Tensors]
    double_backward: Callable[..., Tensors] | None = None
    supports: Callable[[Tensor], Support] = always


@dataclass(frozen=True)
class Kernels:
    """The backend of Triton kernels: pure functions that plan a level, and the module that has the kernels.

    A planner takes the target, the strides of a result of x's shape, and the arguments of its level. Of the backward
    pass, sizes may be symbols if it may be recorded in compiled graphs (`in_graphs`).
    """

    module: Any
    forward: Callable[..., Plan]
    backward: Callable[..., Plan]
    double_backward: Callable[..., Plan] | None = None
    supports: Callable[[Tensor], Support] = always
    in_graphs: bool = True

    @property
    def planners(self) -> tuple[Callable[..., Plan] | None, ...]:
        """One for each level."""
        return self.forward, self.backward, self.double_backward


@dataclass(frozen=True)
class Choice:
    """A backend, and why it is the one: why no faster one computes the call, or, of the fastest, why it can."""

    backend: Backend
    reason: str


def choose(backends: Sequence[Backend], x: Tensor) -> Choice:
    """The first of the backends, fastest first, that takes tensors like x."""
    refused: list[str] = []
    for backend in backends:
        support = backend.supports(x)
        if support.possible:
            return Choice(backend, "; ".join(refused) or support.reason)
        refused.append(support.reason)
    raise NotImplementedError(f"no backend takes tensors like these: {'; '.join(refused)}")


SWITCH = "TRITON_GELU_BACKEND"
TORCH, KERNELS = "torch", "kernels"


def parse_switch(value: str) -> str | None:
    """What the environment asks for: plain PyTorch, kernels, or nothing."""
    if value not in ("", TORCH, KERNELS):
        raise ValueError(f"the environment variable {SWITCH} must be {TORCH!r}, {KERNELS!r} or not set, got {value!r}")
    return value or None


demanded = parse_switch(os.environ.get(SWITCH, ""))


def drives(device_type: str) -> Support:
    """Whether kernels run on tensors of this device type, as far as the environment lets them, and why."""
    if demanded == TORCH:
        return Support.no(f"{SWITCH} is {TORCH}")
    possible, reason = compat_triton.drives(device_type)
    return Support(possible, reason)


def insist(support: Support, device_type: str) -> Support:
    """The same support; raises where kernels are demanded and can't run. On meta tensors nothing can."""
    if demanded == KERNELS and not support.possible and device_type != "meta":
        raise RuntimeError(f"{SWITCH} is {KERNELS}, and none run on this {device_type} tensor: {support.reason}")
    return support


def kernels_support(x: Tensor) -> Support:
    """Whether Triton kernels can compute on tensors like x."""
    in_float64 = Support.no("kernels compute in float32")
    return insist(in_float64 if x.dtype is torch.float64 else drives(x.device.type), x.device.type)


def graph_support(x: Tensor) -> Support:
    """Whether Triton kernels can be in compiled graphs that compute on tensors like x."""
    if compat_triton.INTERPRETED:
        return insist(Support.no("Triton's interpreter takes no part in compiled graphs"), x.device.type)
    return kernels_support(x)


def cpu_support(x: Tensor) -> Support:
    """Whether what is made for CPUs can compute on tensors like x."""
    on_cpu = x.device.type == "cpu"
    return Support(on_cpu, f"the device is {'a' if on_cpu else 'no'} CPU")
