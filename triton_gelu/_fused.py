"""The kernel road: from tensors to launches.

Planning takes longer than launching, so plans are kept by all that they and the kernels compiled for them depend on:
shape, strides, types and device of the tensors, and Triton's driver. Alignment is left, which each launch looks at.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triton_gelu import _launch, _seam
from triton_gelu._launch import Launch, Target
from triton_gelu._layout import Ints, Matrices, matrices

POINTER_ALIGNMENT = 16  # bytes; the only one that Triton asks for
Types = tuple[Any, ...]  # of x, bias, ...; None where there is no such tensor
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) in one launch, in x's dtype and memory format."""
    return forward_of(x, bias, dim, approximate)(x, bias)


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
) -> Gradients:
    """The gradients of `backward` for dy, x and bias, where those of dx and dbias are v and vbias, in one pass."""
    if v is None:
        if vbias is None:
            return None, None, None
        v, vbias = vbias.to(x.dtype).view(-1, *[1] * (x.ndim - dim - 1)).expand_as(x), None
    return _backward(v, vbias, dy, x, bias, dim, approximate, needs)


def _backward(
    v: Tensor | None, vbias: Tensor | None, dy: Tensor, x: Tensor, bias: Tensor | None, *how: Any
) -> Gradients:
    types = tuple([None if t is None else t.dtype for t in (x, bias, dy, v, vbias)])
    strides = dy.stride(), dy.stride() if v is None else v.stride(), x.stride()
    return _plan_backward(x.shape, strides, types, x.device, _seam.driver(), *how)(v, vbias, dy, x, bias)


def forward_of(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Forward:
    """What `forward` does with all tensors like these."""
    types = x.dtype, None if bias is None else bias.dtype
    return _plan_forward(x.shape, (x.stride(),), types, x.device, _seam.driver(), dim, approximate)


@dataclass(frozen=True)
class Forward:
    """gelu(x + bias) for tensors of one kind; `copies` if x can't be walked as it is."""

    run: Run | None  # None: there are no elements
    copies: bool
    driver: object
    how: tuple[int, str]

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.driver is not _seam.driver():
            return forward(x, bias, *self.how)
        y = torch.empty_like(x)
        if self.run is not None:
            self.run(_dense(x) if self.copies else x, None if bias is None else bias.contiguous(), y)
        return y


@dataclass(frozen=True)
class Backward:
    """The same for `backward` and `double_backward`."""

    run: Run | None
    copies: bool
    needs: tuple[bool, bool, bool]
    sums: tuple[int, int]
    finish: Run | None

    def __call__(self, v: Tensor | None, vbias: Tensor | None, dy: Tensor, x: Tensor, bias: Tensor | None) -> Gradients:
        needs_dy, needs_x, needs_bias = self.needs
        dx, ddy = torch.empty_like(x), torch.empty_like(x) if needs_dy else None
        dbias = torch.empty_like(bias) if bias is not None and needs_bias else None
        if self.run is None:
            return ddy, dx if needs_x else None, None if dbias is None else dbias.zero_()
        if self.copies:
            v, dy, x = None if v is None else _dense(v, x), _dense(dy, x), _dense(x)
        partial = torch.empty(self.sums, dtype=torch.float32, device=x.device) if self.finish else dbias
        bias, vbias = (t if t is None else t.contiguous() for t in (bias, vbias))
        self.run(dy, v, vbias, x, bias, ddy, dx, partial)
        if self.finish:
            self.finish(partial, dbias)
        return ddy, dx if needs_x else None, dbias


def _dense(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """A copy that lies as results do."""
    return torch.empty_like(tensor if like is None else like, dtype=tensor.dtype).copy_(tensor)


@functools.lru_cache(maxsize=1024)
def _plan_forward(
    shape: torch.Size,
    strides: tuple[Ints],
    types: Types,
    device: torch.device,
    driver: object,
    dim: int,
    approximate: str,
) -> Forward:
    if not shape.numel():
        return Forward(None, False, driver, (dim, approximate))
    walk, copies = _walk(shape, strides, types, dim)
    launch = _launch.forward(walk, types[0].itemsize, approximate, target(device))
    return Forward(Run(launch, device), copies, driver, (dim, approximate))


@functools.lru_cache(maxsize=1024)
def _plan_backward(
    shape: torch.Size,
    strides: tuple[Ints, Ints, Ints],
    types: Types,
    device: torch.device,
    driver: object,
    dim: int,
    approximate: str,
    needs: tuple[bool, bool, bool],
) -> Backward:
    if not shape.numel():
        return Backward(None, False, needs, (0, 0), None)
    walk, copies = _walk(shape, strides, types, dim)
    needs_dy, needs_x, needs_bias = needs
    plan = _launch.backward(
        walk, types[0].itemsize, approximate, target(device),
        needs_dy=needs_dy, needs_x=needs_x, needs_bias=needs_bias,
    )  # fmt: skip
    finish = None if plan.finish is None else Run(plan.finish, device)
    return Backward(Run(plan.walk, device), copies, needs, (plan.slabs, walk.bias_size), finish)


def _walk(shape: torch.Size, strides: tuple[Ints, ...], types: Types, dim: int) -> tuple[Matrices, bool]:
    """How to walk tensors, x the last of them, beside results for x; and whether they have to be copied for that."""
    along = None if types[1] is None else dim
    result = torch.empty_like(torch.empty_strided(shape, strides[-1], device="meta")).stride()
    walk = matrices(shape, along, *strides, result)
    if walk is not None:
        return walk, False
    walk = matrices(shape, along, *[result] * (len(strides) + 1))
    assert walk is not None
    return walk, True


def target(device: torch.device) -> Target:
    """What the launch plans need to know of a device."""
    if _seam.INTERPRETED:
        return _launch.INTERPRETER
    properties = torch.get_device_module(device).get_device_properties(device)
    return Target(properties.multi_processor_count, ptx=_seam.ptx())


class Run:
    """Launches a plan on its device's current stream, and keeps what Triton compiled for it.

    Triton compiles anew for other types, constants, kinds of integers, devices, drivers, and alignments of pointers. A
    run is for one of each but the last. (On AMD it also asks whether a tensor's storage ends within 2 GiB, so that
    offsets fit 32 bits: ours do or don't by shape and strides, which are a plan's own.)
    """

    def __init__(self, launch: Launch, device: torch.device) -> None:
        self.kernel = functools.partial(
            getattr(_seam.kernels, launch.kernel)[launch.grid], **launch.options, **dict(launch.constants)
        )
        self.grid = launch.grid
        self.integers = launch.integers
        self.rest = (*launch.integers, *[value for _, value in launch.constants])
        self.index = device.index
        self.current_device: Any = int
        self.on_device: Any = _seam.interpreting
        if device.type != "cpu":
            module: Any = torch.get_device_module(device)
            self.current_device, self.on_device = module.current_device, functools.partial(module.device, device)
        self.compiled: dict[object, Any] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        if self.index == self.current_device():
            return self.launch(*tensors)
        with self.on_device():
            return self.launch(*tensors)

    def launch(self, *tensors: Tensor | None) -> None:
        aligned = tuple([t is None or not t.data_ptr() % POINTER_ALIGNMENT for t in tensors])
        compiled = self.compiled.get(aligned)
        if compiled is None:
            compiled = self.kernel(*tensors, *self.integers)
            if compiled is not None:  # the interpreter compiles nothing
                self.compiled[aligned] = compiled
        else:
            compiled[self.grid](*tensors, *self.rest)
