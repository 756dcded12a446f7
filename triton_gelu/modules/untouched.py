"""Whether a layer is PyTorch's own, so that its bias may be taken from it and added elsewhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .pointwise import GELU

_FORWARDS: dict[type[nn.Module], Any] = {  # without those that somebody had replaced before this was imported
    kind: kind.forward for kind in (nn.Linear, nn.Conv1d, GELU) if kind.forward.__module__ == kind.__module__
}
_CALL = nn.Module.__call__
_GLOBAL_HOOKS = [  # a name that PyTorch no longer has counts as a hook: layers are then called, which is always right
    getattr(nn.modules.module, f"_global_{when}_hooks", (None,))
    for when in ("forward_pre", "forward", "backward_pre", "backward")
]


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is exactly PyTorch's `kind`, so that its product and its bias may be taken without a call.

    It is not where somebody has changed what it does or counts on its being called: a subclass (LoRA, float8, FSDP2,
    parametrizations), hooks on this layer or on all modules, a `forward` of the instance (offloading) or put into the
    class, `layer.compile()`, other tensors in the place of its parameters (pruning), and parameters that are tensor
    subclasses (sharded or quantised ones). Any of it may come or go at any time, so this is asked at every call.
    """
    if type(layer) is not kind or kind.forward is not _FORWARDS.get(kind) or kind.__call__ is not _CALL:
        return False
    state = layer.__dict__
    if "forward" in state or "_conv_forward" in state or "weight" in state or "bias" in state:
        return False
    if layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks:
        return False
    if layer._buffers or state.get("_compiled_call_impl") is not None:
        return False
    for hooks in _GLOBAL_HOOKS:  # loops: any() takes twice the time
        if hooks:
            return False
    for parameter in layer._parameters.values():
        if type(parameter) is not nn.Parameter and type(parameter) is not Tensor and parameter is not None:
            return False
    return True


def product_and_bias(layer: nn.Module, kind: type[nn.Module], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """`layer(x)` as two summands, for `bias_gelu` to add: taken apart while untouched, else called, and no bias left.

    Args:
        layer: what was made as a `kind`, or whatever somebody has put in its place.
        kind: nn.Linear or nn.Conv1d.
        x: the layer's input.
    """
    if is_untouched(layer, kind):
        return product(kind, layer, x), layer.bias  # type: ignore[return-value]
    return layer(x), None


def product(kind: Any, layer: Any, x: Tensor) -> Tensor:
    """What a layer of PyTorch's gives without its bias."""
    if kind is nn.Linear:
        return nn.functional.linear(x, layer.weight)
    y: Tensor = kind._conv_forward(layer, x, layer.weight, None)
    return y
