"""The kernel road: from tensors to launches.

Planning takes longer than launching, so plans are kept by all that they and the kernels compiled for them depend on:
shape, strides, types and device of the tensors, and Triton's driver. Alignment is left, which each launch looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..ops import bias_gelu_plan as _plan
from . import compat_torch as _seam
from . import targets as _targets
from .launch import Launch
from .matrices import matrices_with_result
from .targets import Target

POINTER_ALIGNMENT = 16  # bytes; the only one that Triton asks for
Maker = Callable[[], Tensor]
Launcher = Callable[[Sequence[Tensor | None]], None]
Finish = tuple[Maker, Launcher]
ForwardPlan = tuple[object, Maker, Launcher | None, bool]
BackwardPlan = tuple[object, Maker, Maker | None, Launcher | None, bool, Finish | None]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
Result = TypeVar("Result")


def forward(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> Tensor:
    """gelu(x + bias) in one launch, in x's dtype and memory format."""
    return forward_on(x.device, dim, approximate)(x, bias)


def forward_on(device: torch.device, dim: int, approximate: str) -> Callable[[Tensor, Tensor | None], Tensor]:
    """`forward` for tensors of one kind, on this device."""
    return on(device, Forward(dim, approximate).__call__)  # a method is called faster than its object


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
    return _kept_backward(x.device, (x.shape, strides, types), *how)(v, vbias, dy, x, bias)


@lru_cache(maxsize=1024)
def _kept_backward(
    device: torch.device, kind: object, dim: int, approximate: str, needs: tuple[bool, bool, bool]
) -> Callable[..., Gradients]:
    """One for all tensors of a kind."""
    return on(device, Backward(dim, approximate, needs).__call__)


def on(device: torch.device, function: Callable[..., Result]) -> Callable[..., Result]:
    """The function, called while the device is the current one: there it takes memory and launches."""
    module: Any = None if device.index is None else torch.get_device_module(device)
    if module is None or module.device_count() == 1:
        return function

    def guarded(*args: Any) -> Result:
        if module.current_device() == device.index:
            return function(*args)
        with module.device(device):
            return function(*args)

    return guarded


class Forward:
    """gelu(x + bias) for tensors of one kind, planned at the first call and when Triton's driver is another."""

    def __init__(self, dim: int, approximate: str) -> None:
        self.dim, self.approximate = dim, approximate
        self.planned: ForwardPlan | None = None

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        planned = self.planned
        if planned is None or planned[0] is not _seam.driver():
            planned = self.planned = self._plan(x, bias)
        _, like_x, run, copies = planned
        y = like_x()
        if run is not None:
            run((dense(x, y) if copies else x, bias if bias is None else bias.contiguous(), y))
        return y

    def _plan(self, x: Tensor, bias: Tensor | None) -> ForwardPlan:
        """For which driver, what makes y, what to launch (None: it has no elements), and whether x must be copied."""
        lies = strides(x)
        like_x = _seam.maker(x.shape, lies, x.dtype, x.device)
        if not x.numel():
            return _seam.driver(), like_x, None, False
        walk, copies = matrices_with_result(lies, x.shape, None if bias is None else self.dim, x.stride())
        launch = _plan.forward(walk, x.itemsize, self.approximate, target(x.device))
        return _seam.driver(), like_x, Run(launch, x.device).__call__, copies


class Backward:
    """`backward` and `double_backward` for tensors of one kind, planned as `Forward` is."""

    def __init__(self, dim: int, approximate: str, needs: tuple[bool, bool, bool]) -> None:
        self.dim, self.approximate, self.needs = dim, approximate, needs
        self.planned: BackwardPlan | None = None

    def __call__(self, v: Tensor | None, vbias: Tensor | None, dy: Tensor, x: Tensor, bias: Tensor | None) -> Gradients:
        planned = self.planned
        if planned is None or planned[0] is not _seam.driver():
            planned = self.planned = self._plan(v, dy, x, bias)
        _, like_x, like_bias, run, copies, finish = planned
        needs_dy, needs_x, _ = self.needs
        dx, ddy = like_x(), like_x() if needs_dy else None
        dbias = None if like_bias is None else like_bias()
        if run is None:
            return ddy, dx if needs_x else None, None if dbias is None else dbias.zero_()
        if copies:
            v, dy, x = None if v is None else dense(v, dx), dense(dy, dx), dense(x, dx)
        vbias = None if vbias is None else vbias.contiguous()
        bias = None if bias is None else bias.contiguous()
        if finish is None:
            run((dy, v, vbias, x, bias, ddy, dx, dbias))
        else:
            sums, add_up = finish[0](), finish[1]
            run((dy, v, vbias, x, bias, ddy, dx, sums))
            add_up((sums, dbias))
        return ddy, dx if needs_x else None, dbias

    def _plan(self, v: Tensor | None, dy: Tensor, x: Tensor, bias: Tensor | None) -> BackwardPlan:
        """Like that of `Forward`, what makes dbias if it is needed, and how partial sums of it are added up, if any."""
        needs_dy, needs_x, needs_bias = self.needs
        lies = strides(x)
        like_x = _seam.maker(x.shape, lies, x.dtype, x.device)
        like_bias = _seam.maker(bias.shape, (1,), bias.dtype, x.device) if bias is not None and needs_bias else None
        if not x.numel():
            return _seam.driver(), like_x, like_bias, None, False, None
        along = None if bias is None else self.dim
        walk, copies = matrices_with_result(
            lies, x.shape, along, dy.stride(), (dy if v is None else v).stride(), x.stride()
        )
        plan = _plan.backward(
            walk, x.itemsize, self.approximate, target(x.device),
            needs_dy=needs_dy, needs_x=needs_x, needs_bias=needs_bias,
        )  # fmt: skip
        finish = None
        if plan.reduce is not None:
            sums = _seam.maker((plan.partials, walk.bias_size), (walk.bias_size, 1), torch.float32, x.device)
            finish = sums, Run(plan.reduce, x.device).__call__
        return _seam.driver(), like_x, like_bias, Run(plan.main, x.device).__call__, copies, finish


def strides(x: Tensor) -> tuple[int, ...]:
    """How a result like x lies."""
    return torch.empty_like(x, device="meta").stride()


def dense(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor, or a copy that lies as `like` does, a result."""
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def target(device: torch.device) -> Target:
    """What the launch plans need to know of a device."""
    if _seam.INTERPRETED:
        return _targets.INTERPRETER
    properties = torch.get_device_module(device).get_device_properties(device)
    return _targets.target_of(properties, on(device, _seam.triton_target)())


class Run:
    """Launches a plan on the current stream of its device, the current one, and keeps what Triton compiled for it.

    Triton compiles anew for other types, constants, kinds of integers, devices, drivers, and alignments of pointers. A
    run is for one of each but the last. (On AMD it also asks whether a tensor's storage ends within 2 GiB, so that
    offsets fit 32 bits: ours do or don't by shape and strides, which are a plan's own.)
    """

    def __init__(self, launch: Launch, device: torch.device, kernels: Any = None) -> None:
        kernel = getattr(kernels or _seam.kernels, launch.kernel)[launch.grid]
        self.by_triton = _seam.in_turn(partial(kernel, **launch.options, **dict(launch.constants)))
        self.grid = launch.grid
        self.integers = launch.integers
        self.constants = tuple([value for _, value in launch.constants])
        self.index = device.index
        self.kept: dict[object, Launcher] = {}

    def __call__(self, tensors: Sequence[Tensor | None]) -> None:
        addresses = 0
        for tensor in tensors:
            if tensor is not None:
                addresses |= tensor.data_ptr()
        aligned = not addresses % POINTER_ALIGNMENT or tuple(
            [t is None or not t.data_ptr() % POINTER_ALIGNMENT for t in tensors]
        )
        launch = self.kept.get(aligned)
        if launch is None or _seam.watched():
            compiled = self.by_triton(*tensors, *self.integers)
            if compiled is not None and not _seam.watched():  # the interpreter compiles nothing
                self.kept[aligned] = partial(self._load, aligned, compiled)
        else:
            launch(tensors)

    def _load(self, aligned: object, compiled: Any, tensors: Sequence[Tensor | None]) -> None:
        """Launch a kept kernel for the first time."""
        rest = (*self.integers, *self.constants)
        launch = self.kept[aligned] = _seam.launcher(compiled, self.grid, self.index, rest)
        launch(tensors)
