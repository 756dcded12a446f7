"""The kernel road: from tensors to launches."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from triton_gelu import _launch, _seam
from triton_gelu._launch import Launch, Target
from triton_gelu._layout import Matrices, matrices


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) in one launch, in x's dtype and memory format."""
    y = torch.empty_like(x)
    if x.numel():
        (x,), walk = _walk(y, dim if bias is not None else None, x)
        launch = _plan_forward(walk, x.itemsize, approximate, target(x.device))
        with _on(x.device):
            _run(launch, x, bias if bias is None else bias.contiguous(), y)
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
    (dy, v_, x), walk = _walk(dx, None if bias is None else dim, dy, dy if v is None else v, x)
    plan = _plan_backward(
        walk, x.itemsize, approximate, target(x.device), needs_dy=needs_dy, needs_x=needs_x, needs_bias=needs_bias
    )
    partial = torch.empty(plan.slabs, walk.bias_size, dtype=torch.float32, device=x.device) if plan.finish else dbias
    bias, vbias = (t if t is None else t.contiguous() for t in (bias, vbias))
    with _on(x.device):
        _run(plan.walk, dy, None if v is None else v_, vbias, x, bias, ddy, dx, partial)
        if plan.finish:
            _run(plan.finish, partial, dbias)
    return ddy, dx if needs_x else None, dbias


@functools.cache
def target(device: torch.device) -> Target:
    """What the launch plans need to know of a device."""
    if _seam.INTERPRETED:
        return _launch.INTERPRETER
    properties = torch.get_device_module(device).get_device_properties(device)
    return Target(
        processors=properties.multi_processor_count,
        packed=torch.version.hip is None and getattr(properties, "major", 0) >= 10,
    )


def _walk(like: Tensor, dim: int | None, *tensors: Tensor) -> tuple[list[Tensor], Matrices]:
    """The inputs, copied where their strides can't be walked beside those of `like`, and how to walk all of them."""
    inputs = [tensor.resolve_neg() for tensor in tensors]
    walk = _matrices(tuple(like.shape), dim, *(tensor.stride() for tensor in inputs), like.stride())
    if walk is None:
        inputs = [
            tensor if tensor.stride() == like.stride() else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            for tensor in inputs
        ]
        walk = _matrices(tuple(like.shape), dim, *(tensor.stride() for tensor in inputs), like.stride())
        assert walk is not None, "a freshly made tensor is dense"
    return inputs, walk


_matrices = functools.lru_cache(maxsize=1024)(matrices)
_plan_forward = functools.lru_cache(maxsize=1024)(_launch.forward)
_plan_backward = functools.lru_cache(maxsize=1024)(_launch.backward)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the current one: Triton launches there and on its current stream."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    guard: AbstractContextManager[object] = torch.get_device_module(device).device(device)
    return guard


def _run(launch: Launch, *tensors: Tensor | None) -> None:
    kernel = getattr(_seam.kernels, launch.kernel)
    kernel[launch.grid](*tensors, *launch.integers, **dict(launch.constants), num_warps=launch.num_warps)
