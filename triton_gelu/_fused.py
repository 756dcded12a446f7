"""The kernel road: from tensors to launches.

Planning takes longer than launching, so plans are kept by all that they and the kernels compiled for them depend on:
shape, strides, types and device of the tensors, and Triton's driver. Alignment is left, which each launch looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from triton_gelu import _launch, _seam
from triton_gelu._launch import Launch, Target
from triton_gelu._layout import beside

POINTER_ALIGNMENT = 16  # bytes; the only one that Triton asks for
Launcher = Callable[..., None]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) in one launch, in x's dtype and memory format."""
    return Forward(dim, approximate)(x, bias)


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
    strides = dy.stride(), None if v is None else v.stride(), x.stride()
    return _kept_backward((x.shape, strides, types, x.device), *how)(v, vbias, dy, x, bias)


@lru_cache(maxsize=1024)
def _kept_backward(kind: object, dim: int, approximate: str, needs: tuple[bool, bool, bool]) -> Backward:
    """One for all tensors of a kind."""
    return Backward(dim, approximate, needs)


class Forward:
    """gelu(x + bias) for tensors of one kind, planned at the first call and when Triton's driver is another."""

    def __init__(self, dim: int, approximate: str) -> None:
        self.dim, self.approximate = dim, approximate
        self.planned: tuple[object, Launcher | None, bool] = self, None, False

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.empty_like(x)
        driver, run, copies = self.planned
        if driver is not _seam.driver():
            driver, run, copies = self.planned = self._plan(x, bias, y)
        if run is not None:
            run(dense(x, y) if copies else x, bias if bias is None else bias.contiguous(), y)
        return y

    def _plan(self, x: Tensor, bias: Tensor | None, y: Tensor) -> tuple[object, Launcher | None, bool]:
        """For which driver, what to launch (None: there are no elements), and whether x can't be walked as it is."""
        if not x.numel():
            return _seam.driver(), None, False
        walk, copies = beside(y.stride(), x.shape, None if bias is None else self.dim, x.stride())
        launch = _launch.forward(walk, x.itemsize, self.approximate, target(x.device))
        return _seam.driver(), Run(launch, x.device).__call__, copies  # a method is called faster than its object


class Backward:
    """`backward` and `double_backward` for tensors of one kind, planned as `Forward` is."""

    def __init__(self, dim: int, approximate: str, needs: tuple[bool, bool, bool]) -> None:
        self.dim, self.approximate, self.needs = dim, approximate, needs
        self.planned: tuple[object, Launcher | None, bool, tuple[int, int], Launcher | None]
        self.planned = self, None, False, (0, 0), None

    def __call__(self, v: Tensor | None, vbias: Tensor | None, dy: Tensor, x: Tensor, bias: Tensor | None) -> Gradients:
        needs_dy, needs_x, needs_bias = self.needs
        dx, ddy = torch.empty_like(x), torch.empty_like(x) if needs_dy else None
        dbias = torch.empty_like(bias) if bias is not None and needs_bias else None
        driver, run, copies, sums, finish = self.planned
        if driver is not _seam.driver():
            driver, run, copies, sums, finish = self.planned = self._plan(v, dy, x, bias, dx)
        if run is None:
            return ddy, dx if needs_x else None, None if dbias is None else dbias.zero_()
        if copies:
            v, dy, x = None if v is None else dense(v, dx), dense(dy, dx), dense(x, dx)
        partial = dbias if finish is None else torch.empty(sums, dtype=torch.float32, device=x.device)
        bias, vbias = (t if t is None else t.contiguous() for t in (bias, vbias))
        run(dy, v, vbias, x, bias, ddy, dx, partial)
        if finish is not None:
            finish(partial, dbias)
        return ddy, dx if needs_x else None, dbias

    def _plan(
        self, v: Tensor | None, dy: Tensor, x: Tensor, bias: Tensor | None, dx: Tensor
    ) -> tuple[object, Launcher | None, bool, tuple[int, int], Launcher | None]:
        """Like that of `Forward`; then the shape of the partial sums and what adds them up (None: nothing to add)."""
        if not x.numel():
            return _seam.driver(), None, False, (0, 0), None
        along = None if bias is None else self.dim
        strides = dy.stride(), (dy if v is None else v).stride(), x.stride()
        walk, copies = beside(dx.stride(), x.shape, along, *strides)
        needs_dy, needs_x, needs_bias = self.needs
        plan = _launch.backward(
            walk, x.itemsize, self.approximate, target(x.device),
            needs_dy=needs_dy, needs_x=needs_x, needs_bias=needs_bias,
        )  # fmt: skip
        finish = None if plan.finish is None else Run(plan.finish, x.device)
        return _seam.driver(), Run(plan.walk, x.device), copies, (plan.slabs, walk.bias_size), finish


def dense(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor, or a copy that lies as `like` does, a result."""
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def target(device: torch.device) -> Target:
    """What the launch plans need to know of a device."""
    if _seam.INTERPRETED:
        return _launch.INTERPRETER
    properties = torch.get_device_module(device).get_device_properties(device)
    return Target(properties.multi_processor_count, isa=_seam.isa(), warp=_seam.warp())


class Run:
    """Launches a plan on its device's current stream, and keeps what Triton compiled for it.

    Triton compiles anew for other types, constants, kinds of integers, devices, drivers, and alignments of pointers. A
    run is for one of each but the last. (On AMD it also asks whether a tensor's storage ends within 2 GiB, so that
    offsets fit 32 bits: ours do or don't by shape and strides, which are a plan's own.)
    """

    def __init__(self, launch: Launch, device: torch.device) -> None:
        kernel = getattr(_seam.kernels, launch.kernel)[launch.grid]
        self.by_triton = _seam.in_turn(partial(kernel, **launch.options, **dict(launch.constants)))
        self.grid = launch.grid
        self.integers = launch.integers
        self.constants = tuple([value for _, value in launch.constants])
        self.index = device.index
        module: Any = None if device.index is None else torch.get_device_module(device)
        self.one_of_several = module is not None and module.device_count() > 1
        if self.one_of_several:
            self.current_device, self.on_device = module.current_device, partial(module.device, device)
        self.kept: dict[object, Callable[..., Any]] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        if self.one_of_several and self.index != self.current_device():
            with self.on_device():
                return self(*tensors)
        addresses = 0
        for tensor in tensors:
            if tensor is not None:
                addresses |= tensor.data_ptr()
        aligned: object = not addresses % POINTER_ALIGNMENT
        if not aligned:
            aligned = tuple([t is None or not t.data_ptr() % POINTER_ALIGNMENT for t in tensors])
        launch = self.kept.get(aligned)
        if launch is None or _seam.watched():
            compiled = self.by_triton(*tensors, *self.integers)
            if compiled is not None and not _seam.watched():  # the interpreter compiles nothing
                self.kept[aligned] = partial(self._load, aligned, compiled)
        else:
            launch(*tensors)
        return None

    def _load(self, aligned: object, compiled: Any, *tensors: Tensor | None) -> None:
        """Launch a kept kernel for the first time."""
        rest = (*self.integers, *self.constants)
        launch = self.kept[aligned] = _seam.launcher(compiled, self.grid, self.index, rest)
        launch(*tensors)
