"""Triton's private names, guarded: whether it is installed, which devices it drives, how it launches.

A private name that is gone never makes an answer wrong: the question is then answered so that the slower way is taken.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

triton: Any = None  # None where it is not installed
try:
    import triton  # type: ignore[no-redef]
except ImportError as error:
    if not (error.name or "").startswith("triton"):
        raise

_knobs: Any = None if triton is None else triton.knobs.runtime
_drivers: Any = None if triton is None else triton.runtime.driver
INTERPRETED = triton is not None and bool(_knobs.interpret)
_turn = threading.Lock()


def import_kernels(name: str, package: str) -> Any:
    """The module of kernels with this relative name, or None where Triton is not installed."""
    return None if triton is None else importlib.import_module(name, package)


def driver() -> object:
    """Triton's active driver, which compiled kernels belong to; none in the interpreter."""
    return None if INTERPRETED else _drivers.active


@functools.cache
def drives(device_type: str) -> tuple[bool, str]:
    """Whether Triton kernels run on tensors of this device type here, and why or why not."""
    if triton is None:
        return False, "Triton is not installed"
    if INTERPRETED:
        here = device_type == "cpu"
        return here, f"TRITON_INTERPRET is set: kernels run in Python{'' if here else ', on the CPU alone'}"
    try:
        active: Any = driver()
        driven = device_type == "cuda" or bool(active.get_active_torch_device().type == device_type)
    except RuntimeError:  # no driver is active
        driven = False
    return driven, f"Triton {'drives' if driven else 'has no driver for'} this device"


def gpu_target() -> Any:
    """What Triton's active driver compiles for: the backend, the architecture and the size of a warp."""
    active: Any = driver()
    return active.get_current_target()


def one_at_a_time(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """In the interpreter, a kernel that waits for others: it patches triton.language, for one kernel at a time."""

    def interpreted(*args: Any, **constants: Any) -> Any:
        with _turn:
            return kernel(*args, **constants)

    return interpreted if INTERPRETED else kernel


def is_profiled() -> bool:
    """Whether somebody wants to see launches, or other kernels: a profiler's hooks, or Triton's debug mode."""
    try:
        return bool(_knobs.debug or _knobs.launch_enter_hook.calls or _knobs.launch_exit_hook.calls)
    except AttributeError:  # no chain of hooks, but a single one
        return True


def launcher(
    compiled: Any, grid: tuple[int, int, int], device: int | None, rest: tuple[object, ...]
) -> Callable[[Sequence[Tensor | None]], None]:
    """`compiled[grid]` on tensors and then the `rest`, which nobody watches: half of its time is for those who do.

    The shorter way is taken where this Triton launches as we know it: where `compiled[grid]`, tried on a kernel that
    only remembers, does nothing but hand `run` what we would.
    """
    launch = compiled[grid]
    try:
        active: Any = driver()
        stream, index = active.get_current_stream, active.get_current_device() if device is None else device
        start, tail = (*grid, stream(index), compiled.function, compiled.packed_metadata), (object(), object())
        rehearsal = _Rehearsal(compiled)
        type(compiled).__getitem__(rehearsal, grid)(*tail)
        run, hooks = compiled.run, (_knobs.launch_enter_hook, _knobs.launch_exit_hook)
        known = [(*args[:6], *args[7:]) for args in rehearsal.launches] == [(*start, *hooks, *tail)]
    except (AttributeError, TypeError):
        known = False
    if not known:
        return lambda tensors: launch(*tensors, *rest)
    x, y, z = grid
    function, metadata = compiled.function, compiled.packed_metadata

    def shorter(tensors: Sequence[Tensor | None]) -> None:
        run(x, y, z, stream(index), function, metadata, None, None, None, *tensors, *rest)

    return shorter


class _Rehearsal:
    """A compiled kernel that remembers what it is launched with, and launches nothing."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.launches: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)

    def run(self, *args: Any) -> None:
        self.launches.append(args)


def properties(device: torch.device) -> Any:
    """What PyTorch knows of a device."""
    return torch.get_device_module(device).get_device_properties(device)
