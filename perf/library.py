"""What perf uses of triton_gelu's private names: imported here, and in no other module of perf.

`FORMULAS` and `DTYPES` are the library's lists. All else in perf that varies by formula or dtype follows them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor

from triton_gelu.__main__ import parse_dim, parse_shape
from triton_gelu.core import checks, compat_triton, dispatch, in_flight
from triton_gelu.core.dispatch import Backend
from triton_gelu.core.op import Op
from triton_gelu.core.targets import TARGETS, Datum, Target, key_of
from triton_gelu.formulas import FORMULAS
from triton_gelu.formulas.polynomials import EXACT
from triton_gelu.ops.bias_geglu import BIAS_GEGLU
from triton_gelu.ops.bias_gelu import BIAS_GELU
from triton_gelu.ops.bias_gelu_mul import BIAS_GELU_MUL
from triton_gelu.ops.bias_gelu_transpose import BIAS_GELU_TRANSPOSE

if TYPE_CHECKING:
    from perf.cases import Case

__all__ = [
    "BACKEND_VARIABLE", "DTYPES", "EXACT", "FORMULAS", "PLAN_VARIABLE", "TARGETS", "Datum", "Target",
    "call_by_kernels", "forget_drivers", "gpu_reported_as", "is_interpreted", "kernel_formulas", "key_of",
    "launches_kernels", "parse_dim", "parse_shape", "replaced", "triton_drives",
]  # fmt: skip

DTYPES: Mapping[str, torch.dtype] = {  # what kernels compute, by short names: fp32, bf16, fp16
    str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp"): dtype
    for dtype in reversed(checks.DTYPES)
    if dtype != torch.float64
}
META = torch.device("meta")
PLAN_VARIABLE = in_flight.VARIABLE
BACKEND_VARIABLE = dispatch.SWITCH


def call_by_kernels(case: Case) -> Callable[[], object]:
    """The library's call for a case on the meta device, by the backend that launches kernels.

    `perf.static.offline` compiles what it launches.
    """

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=case.torch_dtype, device=META)

    x, bias = empty(*case.shape), None if case.dim is None else empty(case.bias_length)
    dim = 0 if case.dim is None else case.dim % len(case.shape)
    approximate = case.approximate
    if case.transposed:
        position = empty(*case.position_shape)
        launched = _launched(BIAS_GELU_TRANSPOSE)
        if case.direction == "backward":
            dy = empty(case.shape[0], *case.position_shape)
            return lambda: launched.backward(dy, x, bias, None, approximate, (True, bias is not None, False))
        return lambda: launched.forward(x, bias, position, approximate)
    if case.gated:
        return _gated_call(case)
    launched = _launched(BIAS_GELU)
    if case.direction == "double_backward":
        double, needs = launched.double_backward, (True, True, bias is not None)
        assert double is not None
        return lambda: double(x, bias, x, x, bias, dim, approximate, needs)
    if case.direction == "backward":
        return lambda: launched.backward(x, x, bias, dim, approximate, (True, bias is not None))
    return lambda: launched.forward(x, bias, dim, approximate)


def _gated_call(case: Case) -> Callable[[], object]:
    """The same of a gated GELU; none of its gradients is left out."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=case.torch_dtype, device=META)

    x, y = empty(*case.x_shape), empty(*case.shape)
    bias = None if case.dim is None else empty(case.bias_length)
    options: tuple[Any, ...] = (-1 if case.dim is None else case.dim) % len(case.shape), case.approximate
    op, inputs = (BIAS_GELU_MUL, (x, y, bias, bias)) if case.gated == "two tensors" else (BIAS_GEGLU, (x, bias))
    if op is BIAS_GEGLU:
        options += (case.gated,)
    launched, needs = _launched(op), tuple(each is not None for each in inputs)
    if case.direction == "double_backward":
        double = launched.double_backward
        assert double is not None
        return lambda: double(*inputs, y, *inputs, *options, (True, *needs))
    if case.direction == "backward":
        return lambda: launched.backward(y, *inputs, *options, needs)
    return lambda: launched.forward(*inputs, *options)


def _launched(op: Op) -> Backend:
    """The backend that launches an operator's kernels."""
    assert op.launched is not None
    return op.launched


@contextlib.contextmanager
def replaced(bias_gelu: Callable[..., Tensor], bias_gelu_transpose: Callable[..., Tensor]) -> Iterator[None]:
    """The library's layers, functions and fused models call these two in place of its operators."""
    with (
        mock.patch.object(BIAS_GELU, "call", bias_gelu),
        mock.patch.object(BIAS_GELU, "forward", bias_gelu),
        mock.patch.object(BIAS_GELU_TRANSPOSE, "call", bias_gelu_transpose),
    ):
        yield


def gpu_reported_as(name: str) -> str:
    """The GPU of the table that a driver reports by this name, as rows of counts say it; empty if there is none."""
    return next((key for key, target in TARGETS.items() if re.search(target.reported, name)), "")


def is_interpreted() -> bool:
    """Whether the environment has Triton interpret kernels in Python; read as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def triton_drives(device_type: str) -> bool:
    """Whether kernels run on such a device."""
    return compat_triton.drives(device_type)[0]


def launches_kernels(device: torch.device) -> bool:
    """Whether a call on such a device launches the library's kernels."""
    return BIAS_GELU.choose(torch.empty(0, device=device)).backend is BIAS_GELU.launched


def forget_drivers() -> None:
    """Make the library ask Triton again which devices it drives."""
    compat_triton.drives.cache_clear()


def kernel_formulas() -> tuple[ModuleType, Path]:
    """The formulas as kernels have them, with the constants that `perf fit` makes, and their file."""
    from triton_gelu.formulas import device

    return device, Path(device.__file__ or "")
