"""The seam: what may be missing (Triton) and what PyTorch keeps private, guarded, in one place.

A private name that is gone never makes an answer wrong: the question is then answered so that the slower road is taken.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

F = TypeVar("F", bound=Callable[..., object])

kernels: Any = None  # the module of kernels, or None where Triton is not installed
try:
    from triton_gelu import _kernels as kernels
except ImportError as error:
    if not (error.name or "").startswith("triton") or (error.name or "").startswith("triton_gelu"):
        raise

INTERPRETED = kernels is not None and bool(kernels.INTERPRETED.value)
_turn = threading.Lock()

try:
    from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack

    forward_ad._current_level, Tensor._is_zerotensor  # noqa: B018
    _known = True
except (ImportError, AttributeError):
    _known = False

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
    """Whether a call on these is plain eager PyTorch on numbers in memory.

    Then there is no compiler, transform, mode, subclass or forward-mode AD, and no tensor stands for what it isn't.
    """
    if (
        not _known
        or torch.compiler.is_compiling()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
    ):
        return False
    for tensor in tensors:  # a loop: any() takes twice the time
        if tensor is not None and (
            type(tensor) not in EXACT
            or tensor.layout is not torch.strided
            or tensor.is_nested
            or tensor.is_neg()
            or tensor._is_zerotensor()
            or is_legacy_batchedtensor(tensor)
        ):
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
            triton_ops_to_kernels[str(operator._opoverload.name())] = [kernels.forward, kernels.backward]


def interpreting() -> threading.Lock:
    """What to hold while a kernel runs on a CPU: the interpreter patches triton.language, for one kernel at a time."""
    return _turn


def driver() -> object:
    """Triton's active driver, which compiled kernels belong to; none in the interpreter."""
    return None if INTERPRETED else kernels.triton.runtime.driver.active


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


def ptx() -> int:
    """How much of NVIDIA's own instructions pays on the active driver's device (see `_formulas`)."""
    target = kernels.triton.runtime.driver.active.get_current_target()
    return 0 if target.backend != "cuda" else 2 if target.arch >= 100 else 1
