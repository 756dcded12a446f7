"""PyTorch's private names, guarded: what kind of call this is, quick allocation, decompositions.

A private name that is gone never makes an answer wrong: the question is then answered so that the slower way is taken.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling

F = TypeVar("F", bound=Callable[..., object])

try:
    from torch._C import (
        _get_function_stack_at,
        _get_tracing_state,
        _len_torch_dispatch_stack,
        _len_torch_function_stack,
    )
    from torch._C._functorch import peek_interpreter_stack
    from torch.utils._device import DeviceContext

    forward_ad._current_level  # noqa: B018
    _complete = True
except (ImportError, AttributeError):
    _complete = False

_top_hooks: Any = None
with contextlib.suppress(ImportError):
    from torch._C._autograd import _top_saved_tensors_default_hooks as _top_hooks

_allocators: Any = None
with contextlib.suppress(ImportError):
    from torch._C._dynamo import guards as _allocators

EXACT = (Tensor, torch.nn.Parameter)
"""The types of tensors that hold numbers, and nothing that wants to see what is done to them."""

TAKE_CUSTOM_OPS = {  # by name: to import them takes a second
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.functional_tensor.FunctionalTensor",
    "torch.distributed.tensor.DTensor",
}
"""The types of tensors that take any operator of torch.library."""


def untraced(function: F) -> F:
    """What torch.compiler.assume_constant_result does, whose import takes seconds: Dynamo calls it, and traces nothing.

    A function with arguments is called with constants only.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_plain_eager(*tensors: Tensor | None) -> bool:
    """Whether a call on these is plain eager PyTorch on numbers in memory, or, on the meta device, on none.

    Then there is no compiler, tracer, transform, mode, subclass or forward-mode AD. And each tensor has an address: one
    that is sparse, empty, zero without memory, or wrapped by a transform has none.
    """
    if (
        not _complete
        or is_dynamo_compiling()  # any other compiler has a mode
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or _get_tracing_state() is not None
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


def is_unseen(*harmless: type) -> bool:
    """Whether a call is neither transformed nor traced, and seen by no mode but those, or a default device.

    A default device changes nothing about tensors that exist.
    """
    return (
        _complete
        and peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not _len_torch_dispatch_stack()
        and (not _len_torch_function_stack() or _are_modes(harmless))
        and _get_tracing_state() is None
    )


def _are_modes(kinds: tuple[type, ...]) -> bool:
    """Whether all function modes that are on are of these kinds, or a default device."""
    modes = [_get_function_stack_at(index) for index in range(_len_torch_function_stack())]
    return all(isinstance(mode, (DeviceContext, *kinds)) for mode in modes)


def saving() -> Any:
    """What tensors that are saved for a backward pass go through now, as a checkpoint's do; None if nothing.

    Where that can't be asked, the answer is another one each time.
    """
    hooks = _top_hooks(False) if _top_hooks else (object(),)
    return hooks and hooks[0]


@functools.cache
def functional_tensor() -> type[Tensor]:
    """The class of AOTAutograd's tensors. It takes a second to import."""
    from torch._subclasses.functional_tensor import FunctionalTensor

    return FunctionalTensor


def apply_without_functorch(function: type[Function]) -> Callable[..., Any]:
    """What `function.apply` does in plain eager calls; it looks for functorch first, which takes longer than that."""
    return getattr(super(Function, function), "apply", function.apply)


def takes_custom_op(*tensors: Tensor | None) -> bool:
    """Whether this call may be that of an operator: nothing transforms it, and the tensors' types take any operator."""
    return not is_transformed() and all(t is None or _type(t) in TAKE_CUSTOM_OPS for t in tensors)


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return _type(tensor) == "torch.distributed.tensor.DTensor"


def _type(tensor: Tensor) -> str:
    return f"{type(tensor).__module__}.{type(tensor).__qualname__}"


@untraced
def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which don't look into an operator; Dynamo guards both."""
    return not _complete or peek_interpreter_stack() is not None or forward_ad._current_level >= 0


@untraced
def is_tracing() -> bool:
    """Whether torch.jit.trace is at work."""
    return _complete and _get_tracing_state() is not None


def is_functionalized() -> bool:
    """Whether torch.func.functionalize is at work, which knows no autograd.Function."""
    interpreter = peek_interpreter_stack() if _complete else None
    return interpreter is not None and interpreter.key().name == "Functionalize"


@untraced
def is_exporting() -> bool:
    """Whether torch.export or torch.jit.trace is at work: what they make has to run where this package is not.

    Dynamo must not trace the question: it said yes to it anywhere (#176347).
    """
    return torch.compiler.is_exporting() or is_tracing()


VIEWS = {"_unsafe_view", "alias", "detach", "getitem", "permute", "squeeze", "t", "transpose", "unsqueeze", "view"}
PRODUCTS = {"_scaled_mm", "addmm", "baddbmm", "bmm", "convolution", "convolution_backward", "mm"}
"""Operations that write their results whatever stands behind them: compilers fuse them with nothing (or, where they
choose among products by measuring, see `may_fuse_products`)."""

MAKERS = {
    "_to_copy",
    "convert_element_type",
    "empty_like",
    "full",
    "full_like",
    "inductor_random",
    "inductor_seeds",
    "inductor_lookup_seed",
    "new_full",
    "ones_like",
    "rand",
    "rand_like",
    "zeros_like",
}
"""Operations that are pointwise to a compiler, though nobody says so of them."""

_NOT_FOUND = ImportError, AttributeError, KeyError, RuntimeError, TypeError


@dataclass(frozen=True)
class Origin:
    """Where a tensor of a graph that is being traced was made: its dimensions there, and whether others use it."""

    ndim: int
    shared: bool


def origin(tensor: Tensor) -> Origin | None:
    """Where a tensor of a compiler's graph was made, if that is a product, a convolution, or outside of the graph.

    None if it is anything else, which a compiler may fuse with what comes next; if it has a size that depends on data;
    and if it can't be found out. It is `shared` if more than one operation of the graph so far computes with it.
    """
    try:
        from torch.fx.experimental.symbolic_shapes import has_free_unbacked_symbols

        if has_free_unbacked_symbols(tensor.shape):
            return None
        node = _node(tensor)
        ndim, shared = tensor.ndim, False
        while True:
            if isinstance(made := node.meta["val"], Tensor):  # and not several, of which the node before took one
                ndim = made.ndim
                shared = shared or sum(isinstance(user.meta.get("val"), Tensor) for user in node.users) > 1
            name = "" if node.op == "placeholder" else _name(node.target)
            if node.op == "placeholder" or name in PRODUCTS:
                return Origin(ndim, shared)
            if name not in VIEWS:
                return None
            node = node.args[0]
    except _NOT_FOUND:
        return None


def is_pointwise(tensor: Tensor) -> bool:
    """Whether a tensor of a compiler's graph is made of those of `origin` by nothing but pointwise operations."""
    try:
        todo, seen = [_node(tensor)], set()
        while todo:
            node = todo.pop()
            if node in seen or not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
                continue
            seen.add(node)
            if node.op != "placeholder" and (name := _name(node.target)) not in PRODUCTS:
                if name not in VIEWS | MAKERS and torch.Tag.pointwise not in node.target.tags:
                    return False
                todo += node.all_input_nodes
        return True
    except _NOT_FOUND:
        return False


def _node(tensor: Tensor) -> Any:
    """The node of a compiler's graph that made a tensor."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

    inner = torch._from_functional_tensor(tensor.elem)  # type: ignore[attr-defined]
    return get_proxy_slot(inner, get_proxy_mode().tracer).proxy.node  # type: ignore[union-attr]


def _name(target: Any) -> str:
    """The name of the operation of a node."""
    return "getitem" if target is operator.getitem else str(target.overloadpacket.__name__)


def may_fuse_products() -> bool:
    """Whether Inductor is asked to try products of its own, with which it fuses what is beside them."""
    config: Any = sys.modules.get("torch._inductor.config")
    return config is not None and bool(
        getattr(config, "max_autotune", False) or getattr(config, "max_autotune_gemm", False)
    )


def register_decomposition(operator: Any, function: Callable[..., object], kernels: Sequence[Any]) -> None:
    """Let compilers replace an operator by what its function does, except in export, which keeps operators.

    torch.library.triton_op does the same at once, for seconds of imports. `kernels` are the Triton kernels in there,
    since compiled graphs on disk are kept by their source.
    """

    def decompose(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        if is_exporting():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return function(*args, **kwargs)

    try:
        from torch._subclasses.functional_tensor import FunctionalTensorMode
    except ImportError:
        return
    operator.register_torch_dispatch(FunctionalTensorMode, decompose)
    with contextlib.suppress(ImportError):
        from torch._library.triton import triton_ops_to_kernels

        if kernels:
            triton_ops_to_kernels[str(operator._opoverload.name())] = list(kernels)


def allocator(
    size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor]:
    """What makes `torch.empty_strided` of these while the device is the current one, as compiled graphs do, sooner."""
    quick: Any = getattr(_allocators, f"_empty_strided_{device.type}", None)
    try:
        quick((0,), (1,), dtype)
    except (RuntimeError, TypeError):  # not in this PyTorch, or not for this device
        return functools.partial(torch.empty_strided, size, stride, dtype=dtype, device=device)
    return functools.partial(quick, tuple(size), tuple(stride), dtype)
