"""The kernel road: from tensors to launches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triton_gelu import _launch, _seam
from triton_gelu._launch import Launch, Target
from triton_gelu._layout import Ints, matrices


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) in one launch, in x's dtype and memory format."""
    y = torch.empty_like(x)
    if x.numel():
        (x,), run = _walk(_plan_forward, y, (x,), None if bias is None else dim, approximate)
        run(x, None if bias is None else bias.contiguous(), y)
    return y


def backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, dim: int, approximate: str, needs_x: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dx = dy * gelu'(x + bias) and dbias, its sum over everything but `dim`: one pass and, at most, one small sum."""
    return _backward(None, None, dy, x, bias, dim, approximate, (False, needs_x, needs_bias))[1:]


def double_backward(
    v: Tensor | None,
    vbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of `backward` for dy, x and bias, where those of dx and dbias are v and vbias, in one pass."""
    if v is None:
        if vbias is None:
            return None, None, None
        v, vbias = vbias.to(x.dtype).view(-1, *[1] * (x.ndim - dim - 1)).expand_as(x), None
    return _backward(v, vbias, dy, x, bias, dim, approximate, needs)


def _backward(
    v: Tensor | None,
    vbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    needs_dy, needs_x, needs_bias = needs
    ddy = torch.empty_like(x) if needs_dy else None
    dx = torch.empty_like(x)
    dbias = torch.empty_like(bias, memory_format=torch.contiguous_format) if bias is not None and needs_bias else None
    if not x.numel():
        return ddy, dx if needs_x else None, dbias if dbias is None else dbias.zero_()
    (dy, v_, x), plan = _walk(
        _plan_backward, dx, (dy, dy if v is None else v, x), None if bias is None else dim, approximate, needs
    )
    partial = torch.empty(plan.sums, dtype=torch.float32, device=x.device) if plan.finish else dbias
    bias, vbias = (t if t is None else t.contiguous() for t in (bias, vbias))
    plan.walk(dy, None if v is None else v_, vbias, x, bias, ddy, dx, partial)
    if plan.finish:
        plan.finish(partial, dbias)
    return ddy, dx if needs_x else None, dbias


def _walk(
    plan: Callable[..., Any], like: Tensor, tensors: tuple[Tensor, ...], *key: object
) -> tuple[tuple[Tensor, ...], Any]:
    """A plan for tensors beside `like`, which is dense, and these: copied, where they cannot be walked as they are."""
    key = (like.device, _seam.driver(), like.itemsize, *key)
    planned = plan(like.shape, like.stride(), tuple([t.stride() for t in tensors]), *key)
    if planned is None:
        tensors = tuple([torch.empty_like(like, dtype=t.dtype).copy_(t) for t in tensors])
        planned = plan(like.shape, like.stride(), (like.stride(),) * len(tensors), *key)
    return tensors, planned


@functools.lru_cache(maxsize=1024)
def _plan_forward(
    shape: Ints,
    y: Ints,
    inputs: tuple[Ints],
    device: torch.device,
    driver: object,
    itemsize: int,
    dim: int | None,
    approximate: str,
) -> _Run | None:
    walk = matrices(shape, dim, *inputs, y)
    return None if walk is None else _Run(_launch.forward(walk, itemsize, approximate, target(device)), device)


@dataclass(frozen=True)
class _Backward:
    walk: _Run
    sums: tuple[int, int]
    finish: _Run | None


@functools.lru_cache(maxsize=1024)
def _plan_backward(
    shape: Ints,
    dx: Ints,
    inputs: tuple[Ints, Ints, Ints],
    device: torch.device,
    driver: object,
    itemsize: int,
    dim: int | None,
    approximate: str,
    needs: tuple[bool, bool, bool],
) -> _Backward | None:
    walk = matrices(shape, dim, *inputs, dx)
    if walk is None:
        return None
    needs_dy, needs_x, needs_bias = needs
    plan = _launch.backward(
        walk, itemsize, approximate, target(device), needs_dy=needs_dy, needs_x=needs_x, needs_bias=needs_bias
    )
    finish = None if plan.finish is None else _Run(plan.finish, device)
    return _Backward(_Run(plan.walk, device), (plan.slabs, walk.bias_size), finish)


def target(device: torch.device) -> Target:
    """What the launch plans need to know of a device."""
    if _seam.INTERPRETED:
        return _launch.INTERPRETER
    properties = torch.get_device_module(device).get_device_properties(device)
    return Target(properties.multi_processor_count, ptx=_seam.ptx())


class _Run:
    """Launches a plan on its device's current stream, and keeps what Triton compiled for it.

    A compiled kernel is good for the types of its tensors and for their alignment, which Triton specialises on; all
    else that it depends on is part of the plan, or of what plans are kept by.
    """

    def __init__(self, launch: Launch, device: torch.device) -> None:
        self.kernel = getattr(_seam.kernels, launch.kernel)[launch.grid]
        self.grid = launch.grid
        self.integers = launch.integers
        self.constants = dict(launch.constants)
        self.num_warps = launch.num_warps
        self.device = device
        self.compiled: dict[object, Any] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        if self.device.type == "cpu":
            with _seam.turn:
                return self.launch(*tensors)
        module = torch.get_device_module(self.device)
        if self.device.index == module.current_device():
            return self.launch(*tensors)
        with module.device(self.device):
            return self.launch(*tensors)

    def launch(self, *tensors: Tensor | None) -> None:
        key = tuple([None if t is None else (t.dtype, t.data_ptr() % 16 == 0) for t in tensors])
        compiled = self.compiled.get(key)
        if compiled is None:
            self.compiled[key] = self.kernel(*tensors, *self.integers, **self.constants, num_warps=self.num_warps)
        else:
            compiled[self.grid](*tensors, *self.integers, *self.constants.values())
