"""Which backend computes a call (Triton kernels, CPU blocks, plain PyTorch), by its device and dtype, and why."""

from __future__ import annotations

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


def kernels_support(x: Tensor) -> Support:
    """Whether Triton kernels can compute on tensors like x."""
    if x.dtype is torch.float64:
        return Support.no("kernels compute in float32")
    possible, reason = compat_triton.drives(x.device.type)
    return Support(possible, reason)


def cpu_support(x: Tensor) -> Support:
    """Whether what is made for CPUs can compute on tensors like x."""
    on_cpu = x.device.type == "cpu"
    return Support(on_cpu, f"the device is {'a' if on_cpu else 'no'} CPU")
