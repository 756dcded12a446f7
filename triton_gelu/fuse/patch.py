"""Changes a module, and changes it back: a generated subclass of its own class, with another `forward`.

There is one such class for each class and way of changing it, and nothing on the instance: no attribute, no hook. The
class passes for the original as `module.__class__`; that of a class of PyTorch's also compares equal to it and has its
hash, so that tables by type are read as before. Only `type(module) is nn.Linear` is false. Copies and pickles of a
module stay fused.
"""

from __future__ import annotations

import copyreg
import threading
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .gelu_modules import gelu_forward, layer_and_gelu_forward
from .layers import KINDS, calling_forward, layer_forward
from .product import Link, trust

Class = type[nn.Module]


@dataclass(frozen=True)
class Change:
    """What becomes of the forward of a module.

    Attributes:
        kind: a key of `layers.KINDS`, "calls" for other modules that call a layer's function, "gelu" for a GELU,
            "layer and gelu" for a module that is both.
        tag: of a layer, whether its output is tagged for its GELU.
        gated: of a layer, whether that GELU is a factor.
        links: the calls by which it gets to the product.
        calls: of a module that calls the functions of layers, which of its calls are followed by a GELU.
        formula: of a GELU; "" if the module says at each call.
        child: the layer in the module whose output it is the GELU of.
    """

    kind: str
    tag: bool = False
    gated: bool = False
    links: frozenset[Link] = frozenset()
    calls: frozenset[int] = frozenset()
    formula: str = ""
    child: str = ""

    def forward(self, original: Class) -> Callable[..., Any]:
        """The forward of modules whose class was `original`."""
        if self.kind in KINDS:
            return layer_forward(original, self.kind, self.tag, self.gated)
        if self.kind == "calls":
            return calling_forward(original, self.calls, self.tag, self.gated)
        if self.kind == "gelu":
            return gelu_forward(original, self.formula)
        if self.kind == "layer and gelu":
            return layer_and_gelu_forward(original, self.formula, self.child)
        raise ValueError(f"unknown kind {self.kind!r}")


def change(module: nn.Module, how: Change) -> None:
    """Change a module, which `obstacle` has nothing against."""
    _set_class(module, changed_class(type(module), how))


def restore(module: nn.Module) -> None:
    """Give a module that was changed its own class back, whatever else has been made of it since."""
    cls: Any = type(module)
    if _change_of(cls) is not None:
        _set_class(module, vars(cls)["_original"])
    elif any(_change_of(base) is not None for base in cls.__bases__):  # a class made of ours, as parametrizations do
        cls.__bases__ = tuple(base if _change_of(base) is None else vars(base)["_original"] for base in cls.__bases__)


def obstacle(module: nn.Module) -> str:
    """Why the class of this module must not be changed, or ""."""
    cls = type(module)
    if is_parametrized(module):
        return "a parametrized layer"
    if "forward" in vars(module):
        return "its forward is replaced on the instance"
    if isinstance(module, torch.jit.ScriptModule) or not isinstance(cls.forward, FunctionType):
        return "its forward is no Python function"
    try:
        changed_class(cls, Change("gelu"))
    except TypeError:
        return f"{cls.__name__} can't be subclassed"
    return ""


_set_class = cast(Any, object.__dict__["__class__"]).__set__
_classes: MutableMapping[object, Class] = WeakValueDictionary()
_metaclasses: dict[tuple[type, type], type] = {}
_lock = threading.RLock()


def changed_class(original: Class, how: Change) -> Class:
    """The subclass of `original` for modules that are changed like this. Pickles call it."""
    trust(how.links)
    with _lock:
        key = id(original), how  # the class keeps the original alive
        found = _classes.get(key)
        if found is None:
            found = _classes[key] = _generate(original, how)
        return found


def _generate(original: Class, how: Change) -> Class:
    forward: Any = how.forward(original)
    forward.__wrapped__ = original.forward  # what inspect and torch.jit.script look at
    body: dict[str, Any] = {"_original": original, "_change": how, "forward": forward}
    body |= {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    body["__class__"] = property(lambda module: original, _set_class)
    if original.__reduce_ex__ is object.__reduce_ex__:
        body["__reduce_ex__"] = _reduce_ex
    metaclass: Any = _metaclass(original)
    made: Class = metaclass(original.__name__, (original,), body)
    return made


class _Changed(type):
    """The metaclass of generated classes, by which pickle knows them."""


class _Equal(_Changed):
    """The same for classes of PyTorch's. Others may call super(), which Dynamo looks up by comparing classes."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or vars(cls).get("_original", cls) is other

    def __hash__(cls) -> int:
        original = vars(cls).get("_original")
        return type.__hash__(cls) if original is None else hash(original)


def _metaclass(original: Class) -> type:
    wanted = _Equal if original.__module__.startswith("torch.nn.") else _Changed
    key = wanted, type(original)
    if key not in _metaclasses:
        made: type = wanted if type(original) is type else type(wanted.__name__, (wanted, type(original)), {})
        copyreg.pickle(made, _reduce_class)
        _metaclasses[key] = made
    return _metaclasses[key]


def _change_of(cls: type) -> Change | None:
    return vars(cls).get("_change") if "_original" in vars(cls) else None


def _reduce_class(cls: Any) -> Any:
    how = _change_of(cls)
    return cls.__qualname__ if how is None else (changed_class, (vars(cls)["_original"], how))


def _reduce_ex(module: Any, protocol: Any) -> Any:
    """As object's, without pickle's check of `module.__class__`."""
    reduced: Any = object.__reduce_ex__(module, max(int(protocol), 2))
    function, args, *rest = reduced
    return (_new, args, *rest) if function is copyreg.__newobj__ else (function, args, *rest)  # type: ignore[attr-defined]


def _new(cls: Any) -> Any:
    return cls.__new__(cls)
