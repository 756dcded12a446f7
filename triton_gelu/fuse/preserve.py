"""Run a model on an example, and leave it and the random generators as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Afterwards, buffers, the state of random generators and compiled modules are what they were.

    A buffer is written to only if the block has changed it: it may be read-only, shared, or part of a graph whose
    backward pass is still to come. Modules that are compiled run as they are written meanwhile.
    """
    buffers = [_Buffer(module, name) for module in model.modules() for name in module._buffers]
    with ExitStack() as stack:
        stack.enter_context(_random_state(model))
        stack.enter_context(_uncompiled(model))
        try:
            yield
        finally:
            for buffer in buffers:
                buffer.restore()


class _Buffer:
    """A buffer as it was."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.tensor = tensor = module._buffers[name]
        self.value: Tensor | None = None
        self.version: int | None = None
        if tensor is not None and not is_lazy(tensor):
            self.value = tensor.detach().clone()
            self.version = None if tensor.is_inference() else tensor._version

    def restore(self) -> None:
        tensor, value = self.tensor, self.value
        if self.module._buffers.get(self.name, self) is not tensor:
            self.module._buffers[self.name] = tensor
        if tensor is None or value is None or not self._is_changed(tensor, value):
            return
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if (tensor.shape, tensor.dtype, tensor.device) == (value.shape, value.dtype, value.device):
                for dim, stride in enumerate(tensor.stride()):
                    if not stride and tensor.shape[dim] > 1:  # expanded: its elements are one
                        tensor, value = tensor.narrow(dim, 0, 1), value.narrow(dim, 0, 1)
                tensor.copy_(value)
            else:
                tensor.data = value

    def _is_changed(self, tensor: Tensor, value: Tensor) -> bool:
        if self.version is not None and tensor._version != self.version:
            return True
        if (tensor.shape, tensor.dtype, tensor.device) != (value.shape, value.dtype, value.device):
            return True
        if tensor.is_meta or tensor.layout is not torch.strided:
            return False
        return not bool(torch.isclose(tensor, value, rtol=0, atol=0, equal_nan=True).all())


@contextmanager
def _random_state(model: nn.Module) -> Iterator[None]:
    """The generators of Python, NumPy, PyTorch, and of the accelerator that the model is on."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type not in ("cpu", "meta")}
    python, numpy = random.getstate(), sys.modules.get("numpy")
    state: Any = None if numpy is None else numpy.random.get_state()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([]))
            for kind in {device.type for device in devices}:
                mine = [device for device in devices if device.type == kind]
                stack.enter_context(torch.random.fork_rng(mine, device_type=kind))
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(state)


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """The model's own compiled modules run as they are written: of no other model."""
    changed: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        if module._compiled_call_impl is not None:
            changed.append((module, "_compiled_call_impl", module._compiled_call_impl))
            vars(module)["_compiled_call_impl"] = None
        original = module._modules.get("_orig_mod")
        if original is not None and "forward" in vars(module):
            changed.append((module, "forward", vars(module)["forward"]))
            vars(module)["forward"] = original
    try:
        yield
    finally:
        for module, name, value in changed:
            vars(module)[name] = value
