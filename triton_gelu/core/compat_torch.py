"""The seam: what may be missing (Triton) and what PyTorch keeps private, guarded, in one place.

A private name that is gone never makes an answer wrong: the question is then answered so that the slower road is taken.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling

F = TypeVar("F", bound=Callable[..., object])

kernels: Any = None  # the modules of kernels, or None where Triton is not installed
transpose_kernels: Any = None
try:
    from ..ops import bias_gelu_kernels as kernels
    from ..ops import bias_gelu_transpose_kernels as transpose_kernels  # noqa: F401
except ImportError as error:
    if not (error.name or "").startswith("triton") or (error.name or "").startswith("triton_gelu"):
        raise

_knobs: Any = None if kernels is None else kernels.triton.knobs.runtime
_drivers: Any = None if kernels is None else kernels.triton.runtime.driver
INTERPRETED = kernels is not None and bool(_knobs.interpret)
_turn = threading.Lock()

try:
    from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._functorch import peek_interpreter_stack

    forward_ad._current_level  # noqa: B018
    _known = True
except (ImportError, AttributeError):
    _known = False

_makers: Any = None
with contextlib.suppress(ImportError):
    from torch._C._dynamo import guards as _makers

EXACT = (Tensor, torch.nn.Parameter)
OPEN_TYPES = {  # by name: to import them takes a second
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.functional_tensor.FunctionalTensor",
    "torch.distributed.tensor.DTensor",
}
"""The types of tensors that take any operator."""


def constant(function: F) -> F:
    """What torch.compiler.assume_constant_result does, whose import takes seconds: Dynamo calls it untraced."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def ordinary(*tensors: Tensor | None) -> bool:
    """Whether a call on these is plain eager PyTorch on numbers in memory, or, on the meta device, on none.

    Then there is no compiler, transform, mode, subclass or forward-mode AD, and each tensor has an address: one that
    is sparse, empty, zero without memory, or wrapped by a transform has none.
    """
    if (
        not _known
        or is_dynamo_compiling()  # any other compiler has a mode
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
    ):
        return False
    try:
        for tensor in tensors:  # a loop: any() takes twice the time
            if tensor is not None and (
                type(tensor) not in EXACT
                or tensor.is_nested
                or tensor.is_neg()
                or not (tensor.data_ptr() or tensor.is_meta)
            ):
                return False
    except RuntimeError:  # PyTorch's answer to who asks such a tensor for its address
        return False
    return True


def recorder(function: type[Function]) -> Callable[..., Any]:
    """What `function.apply` does for ordinary calls: it then looks for functorch, which takes longer than the rest."""
    return getattr(super(Function, function), "apply", function.apply)


def operable(*tensors: Tensor | None) -> bool:
    """Whether this call may be that of an operator: nothing transforms it, and the tensors' types take any operator."""
    return not _transformed() and all(t is None or _type(t) in OPEN_TYPES for t in tensors)


def sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return _type(tensor) == "torch.distributed.tensor.DTensor"


def _type(tensor: Tensor) -> str:
    return f"{type(tensor).__module__}.{type(tensor).__qualname__}"


@constant
def _transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which don't look into an operator; Dynamo guards both."""
    return not _known or peek_interpreter_stack() is not None or forward_ad._current_level >= 0


@constant
def exporting() -> bool:
    """Whether torch.export is at work. Dynamo must not trace the question: it said yes to it anywhere (#176347)."""
    return torch.compiler.is_exporting()


def let_compilers_look_into(operator: Any, function: Callable[..., object]) -> None:
    """Let compilers replace an operator by what its function does, except in export, which keeps operators."""

    def decompose(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        if exporting():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return function(*args, **kwargs)

    try:
        from torch._subclasses.functional_tensor import FunctionalTensorMode
    except ImportError:
        return
    operator.register_torch_dispatch(FunctionalTensorMode, decompose)
    with contextlib.suppress(ImportError):  # compiled graphs on disk are kept by the source of the kernels in them
        from torch._library.triton import triton_ops_to_kernels

        if kernels is not None and not INTERPRETED:
            triton_ops_to_kernels[str(operator._opoverload.name())] = [
                kernels.bias_gelu_forward,
                kernels.bias_gelu_backward,
            ]


def in_turn(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """In the interpreter, a kernel that waits for others: it patches triton.language, for one kernel at a time."""

    def interpreted(*args: Any, **constants: Any) -> Any:
        with _turn:
            return kernel(*args, **constants)

    return interpreted if INTERPRETED else kernel


def watched() -> bool:
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


def maker(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """What makes `torch.empty_strided` of these while the device is the current one, as compiled graphs do, sooner."""
    quick: Any = getattr(_makers, f"_empty_strided_{device.type}", None)
    try:
        quick((0,), (1,), dtype)
    except (RuntimeError, TypeError):  # not in this PyTorch, or not for this device
        return functools.partial(torch.empty_strided, size, stride, dtype=dtype, device=device)
    return functools.partial(quick, tuple(size), tuple(stride), dtype)


def driver() -> object:
    """Triton's active driver, which compiled kernels belong to; none in the interpreter."""
    return None if INTERPRETED else _drivers.active


def road(x: Tensor) -> Literal["kernels", "blocks", "plain"]:
    """What is fastest on tensors like x in eager mode: kernels, PyTorch on one block after another, or as it is."""
    if x.dtype is not torch.float64 and triton_drives(x.device.type):
        return "kernels"
    return "blocks" if x.device.type == "cpu" else "plain"


@functools.cache
def triton_drives(device_type: str) -> bool:
    """Whether Triton kernels run on tensors of this device type here."""
    if kernels is None:
        return False
    if INTERPRETED:
        return device_type == "cpu"
    try:
        active: Any = driver()
        return device_type == "cuda" or bool(active.get_active_torch_device().type == device_type)
    except RuntimeError:  # no driver is active
        return False


def triton_target() -> Any:
    """What Triton compiles for on the current device: backend, architecture and threads in a warp."""
    active: Any = driver()
    return active.get_current_target()
