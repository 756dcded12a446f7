"""The fast path of eager calls: the cache of calls, what its keys are made of, and source generated for each operator.

What is found out of a call is kept for all like it: that the arguments fit, the backend, the launches. The functions
that ask for it are written as source, once for each operator, out of its declaration: a loop over the arguments would
take half as long again as the rest of a call does. `Op.source` shows that source, and so does a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import compat_torch, run
from .declare import BACKWARD, DOUBLE_BACKWARD, FORWARD, Arg, Tensors, shape_of
from .dispatch import Choice

if TYPE_CHECKING:
    from .op import Op

MOST = 4096


class Cache(dict[object, Any]):
    """What is kept of calls, by what their tensors and options are like; all is forgotten before it is too much."""

    def __setitem__(self, key: object, value: Any) -> None:
        if len(self) >= MOST:
            self.clear()
        super().__setitem__(key, value)


class Call:
    """What was found out about calls of one kind: the options in canonical form, the backend, and what computes."""

    __slots__ = ("choice", "forward", "options")

    options: tuple[Any, ...]
    choice: Choice
    forward: Callable[..., Tensor]


def call_for(op: Op, key: object, given: tuple[Any, ...]) -> Call:
    """What there is to know of a call of the first of its kind; checks its arguments."""
    call = Call()
    call.options = op.check(*given)
    call.choice = op.choose(given[0])
    backend = call.choice.backend
    if backend is op.launched:

        def planned(*tensors: Tensor | None) -> Tensor:
            forward: Callable[..., Tensor] = op.plan(FORWARD, (*tensors, *call.options), planned)
            call.forward = forward
            return forward(*tensors)

        call.forward = planned
    else:
        call.forward = _with_options(backend.forward, call.options)
    op.cache[key] = call
    return call


def _with_options(function: Callable[..., Any], options: tuple[Any, ...]) -> Callable[..., Any]:
    """A function of tensors and options that takes the tensors alone."""

    def with_options(*tensors: Tensor | None) -> Any:
        return function(*tensors, *options)

    return with_options


def backward_for(op: Op, key: object, tensors: tuple[Any, ...], rest: tuple[Any, ...]) -> Callable[..., Tensors]:
    """What computes a backward pass of the first of its kind; it takes the tensors alone."""
    if op.choose(_lead(op, tensors)).backend is op.launched:
        kept = _planned(op, BACKWARD, key, tensors, rest)
    else:
        kept = _with_options(op.fastest(BACKWARD, _lead(op, tensors)), rest)
    op.cache[key] = kept
    return kept


def _planned(op: Op, number: int, key: object, tensors: tuple[Any, ...], rest: tuple[Any, ...]) -> Callable[..., Any]:
    """What launches a level's kernels, kept under the key, and planned anew where Triton's driver is another."""

    def planned(*tensors: Any) -> Any:
        kept = op.cache[key] = op.plan(number, (*tensors, *rest), planned)
        return kept(*tensors)

    return op.plan(number, (*tensors, *rest), planned)


def launch(op: Op, number: int, *given: Any) -> Any:
    """A level of an operator by its kernels, for whoever has no `Call`; what is planned is kept, too."""
    level = op.levels[number]
    tensors, rest = given[: len(level.args)], given[len(level.args) :]
    if number == DOUBLE_BACKWARD:  # kernels read the gradient of dx, if only to find zeros
        whole = zip(level.args, tensors, strict=True)
        tensors = tuple([torch.zeros_like(given[level.lead]) if t is None and a.kind.full else t for a, t in whole])
    rest = tuple([tuple(each) if isinstance(each, (list, tuple)) else each for each in rest])
    key = (number, *[None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors], *rest)
    kept = op.cache.get(key)
    if kept is None:
        kept = op.cache[key] = _planned(op, number, key, tensors, rest)
    return kept(*tensors)


def differentiable_backward(op: Op, call: Call, needs: tuple[bool, ...], *tensors: Tensor | None) -> Tensors:
    """The backward pass where it will be differentiated, or is batched, traced or transformed itself."""
    if op.plain.double_backward is None or not compat_torch.is_plain_eager(*tensors):
        return op.plain.backward(*tensors, *call.options, needs)
    gradients: Tensors = _Backward.apply(op, call, needs, *tensors)
    return gradients


class _Backward(Function):
    """The backward pass, to be differentiated itself; a third derivative is left to plain PyTorch."""

    @staticmethod
    def forward(ctx: Any, op: Op, call: Call, needs: tuple[bool, ...], *tensors: Tensor | None) -> Tensors:
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.op, ctx.options = op, call.options
        gradients: Tensors = op.fastest(BACKWARD, _lead(op, tensors))(*tensors, *call.options, needs)
        return gradients

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
        tensors, op = ctx.saved_tensors, ctx.op
        if all(gradient is None for gradient in incoming):
            return (None,) * (3 + len(tensors))
        plain = torch.is_grad_enabled() or not compat_torch.is_plain_eager(*incoming, *tensors)
        compute = op.plain.double_backward if plain else op.fastest(DOUBLE_BACKWARD, _lead(op, tensors))
        has_gradient = [True, *(arg.differentiable for arg in op.inputs)]
        needs = tuple([n for n, has in zip(ctx.needs_input_grad[3:], has_gradient, strict=True) if has])
        gradients = iter(compute(*incoming, *tensors, *ctx.options, needs))
        return None, None, None, *[next(gradients) if has else None for has in has_gradient]


def _lead(op: Op, tensors: Sequence[Any]) -> Tensor:
    """x among the tensors of a backward pass."""
    x: Tensor = tensors[op.levels[BACKWARD].lead]
    return x


def without_inference_tensors(*tensors: Tensor | None) -> Iterator[Tensor | None]:
    """Copies of tensors that autograd refuses to save, while handling that refusal; any other error goes on."""
    if not any(tensor is not None and tensor.is_inference() for tensor in tensors):
        raise
    return (tensor.clone() if tensor is not None and tensor.is_inference() else tensor for tensor in tensors)


def generate(op: Op) -> tuple[str, Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensors]]:
    """The source of an operator's eager path, and its functions `call`, `forward` and `backward`."""
    text = source(op)
    space: dict[str, Any] = {
        "Function": Function,
        "is_plain_eager": compat_torch.is_plain_eager,
        "is_grad_enabled": torch.is_grad_enabled,
        "is_exporting": compat_torch.is_exporting,
        "takes_custom_op": compat_torch.takes_custom_op,
        "is_sharded": compat_torch.is_sharded,
        "cache": op.cache,
        "call_for": partial(call_for, op),
        "check": op.check,
        "standard": op.standard,
        "plain": op.plain.forward,
        "register_decompositions": op.register_decompositions,
        "register_sharding": op.register_sharding,
        "operator": op.operators[FORWARD]._opoverload,
        "differentiable_backward": partial(differentiable_backward, op),
        "without_inference_tensors": without_inference_tensors,
        "shape_of": shape_of,
        "backward_for": partial(backward_for, op),
    }
    run.exec_source(text, f"<{op.levels[FORWARD].name}, eager>", space)
    space["record"] = compat_torch.apply_without_functorch(space["Recorded"])
    return text, space["call"], space["forward"], space["backward"]


def source(op: Op) -> str:
    """The functions of a plain eager call, written out for the operator's arguments."""
    names = [arg.name for arg in op.inputs]
    tensors, options = ", ".join(names), ", ".join(option.name for option in op.options)
    lead, *others = op.inputs
    key = [f"{lead.name}.shape, {lead.name}.stride(), {lead.name}.dtype, {lead.name}.device", *map(_key, others)]
    like = ", ".join(key)
    key += [f"{each.name}, type({each.name})" if each.type != "str" else each.name for each in op.options]
    recorded = " or ".join(_requires_grad(arg) for arg in op.inputs if arg.differentiable)
    needs = ", ".join(f"needs_{arg.name}" for arg in op.inputs if arg.differentiable)
    every = ", ".join(f"needs_{arg.name}" if arg.differentiable else "_" for arg in op.inputs)
    gradients = ", ".join(f"d{arg.name}" for arg in op.inputs if arg.differentiable)
    returned = ", ".join(f"d{arg.name}" if arg.differentiable else "None" for arg in op.inputs)
    return f"""\
def call({tensors}, {options}):
    if not is_plain_eager({tensors}):
        return general({tensors}, {options})
    try:
        key = ({", ".join(key)})
    except AttributeError:  # {lead.name} is None, as the check will say
        return general({tensors}, {options})
    try:
        found = cache[key]
    except (KeyError, TypeError):  # what can't be hashed is no option, as the check will say
        found = call_for(key, ({tensors}, {options}))
    if ({recorded}) and is_grad_enabled():
        try:
            return record({tensors}, found)
        except RuntimeError:
            return record(*without_inference_tensors({tensors}), found)
    return found.forward({tensors})


def forward({tensors}, {options}):
    key = ({", ".join(key)})
    try:
        found = cache[key]
    except (KeyError, TypeError):
        found = call_for(key, ({tensors}, {options}))
    return found.forward({tensors})


def backward(dy, {tensors}, {options}, needs):
    key = (needs, dy.stride(), dy.dtype, {like}, {options})
    try:
        found = cache[key]
    except KeyError:
        found = backward_for(key, (dy, {tensors}), ({options}, needs))
    return found(dy, {tensors})


def general({tensors}, {options}):
    {options}, = check({tensors}, {options})
    if is_exporting():
        return standard({tensors}, {options})
    if not takes_custom_op({tensors}):
        return plain({tensors}, {options})
    register_decompositions()
    if is_sharded({lead.name}):
        register_sharding()
    return operator({tensors}, {options})


class Recorded(Function):
    @staticmethod
    def forward(ctx, {tensors}, found):
        ctx.save_for_backward({", ".join(arg.name if arg.read else f"shape_of({arg.name})" for arg in op.inputs)})
        ctx.found = found
        return found.forward({tensors})

    @staticmethod
    def backward(ctx, dy):
        {tensors}, = ctx.saved_tensors
        {every}, _ = ctx.needs_input_grad
        if is_grad_enabled() or not is_plain_eager(dy, {tensors}):
            {gradients}, = differentiable_backward(ctx.found, ({needs},), dy, {tensors})
        else:
            {gradients}, = backward(dy, {tensors}, *ctx.found.options, ({needs},))
        return {returned}, None
"""


def _key(arg: Arg) -> str:
    """What a call depends on of a tensor, None too, which the check may refuse; small ones are made contiguous."""
    strides = f"{arg.name}.stride(), " if arg.kind.full else ""
    return f"None if {arg.name} is None else ({arg.name}.shape, {strides}{arg.name}.dtype, {arg.name}.device)"


def _requires_grad(arg: Arg) -> str:
    """Whether a gradient of the argument is asked for."""
    return f"({arg.name} is not None and {arg.name}.requires_grad)" if arg.optional else f"{arg.name}.requires_grad"
