"""What perf takes from inside the library: no other module of perf imports a private one of it.

`FORMULAS` and `DTYPES` are the library's lists. All else in perf that varies by formula or dtype follows them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from unittest import mock

import torch
from torch import Tensor

from triton_gelu.__main__ import parse_dim, parse_shape
from triton_gelu.core import checks, compat_torch, dispatch
from triton_gelu.core import run as kernels
from triton_gelu.functional import FORMULAS as NAMES
from triton_gelu.ops import bias_gelu_transpose as transpose

if TYPE_CHECKING:
    from perf.cases import Case

__all__ = [
    "DTYPES", "FORMULAS", "call_by_kernels", "forget_drivers", "is_interpreted", "kernel_formulas", "parse_dim",
    "parse_shape", "replaced", "triton_drives",
]  # fmt: skip

TITLES = {"none": "exact"}  # of a formula whose name says too little
FORMULAS: Mapping[str, str] = {name: TITLES.get(name, name) for name in NAMES}  # name: title
DTYPES: Mapping[str, torch.dtype] = {  # what kernels compute, by short names: fp32, bf16, fp16
    str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp"): dtype
    for dtype in reversed(checks.DTYPES)
    if dtype != torch.float64
}
META = torch.device("meta")


def call_by_kernels(case: Case) -> Callable[[], object]:
    """The library's call for a case on the meta device, by the backend that launches kernels.

    `perf.static.offline` compiles what it launches.
    """

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=case.torch_dtype, device=META)

    x, bias = empty(*case.shape), None if case.dim is None else empty(case.bias_length)
    dim = 0 if case.dim is None else case.dim % len(case.shape)
    if case.transposed:
        position = empty(*case.position_shape)
        if case.direction == "backward":
            dy = empty(case.shape[0], *case.position_shape)
            return lambda: transpose.backward(dy, x, bias, case.approximate, True, True)
        return lambda: transpose.forward(x, bias, position, case.approximate)
    if case.direction == "double_backward":
        needs = (True, True, bias is not None)
        return lambda: kernels.double_backward(x, bias, x, x, bias, dim, case.approximate, needs)
    if case.direction == "backward":
        return lambda: kernels.backward(x, x, bias, dim, case.approximate, True, bias is not None)
    return lambda: kernels.forward(x, bias, dim, case.approximate)


@contextlib.contextmanager
def replaced(bias_gelu: Callable[..., Tensor], bias_gelu_transpose: Callable[..., Tensor]) -> Iterator[None]:
    """The library's layers and functions call these two in place of its operators."""
    with (
        mock.patch.object(dispatch, "bias_gelu", bias_gelu),
        mock.patch.object(transpose, "bias_gelu_transpose", bias_gelu_transpose),
    ):
        yield


def is_interpreted() -> bool:
    """Whether the environment has Triton interpret kernels in Python; read as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def triton_drives(device_type: str) -> bool:
    """Whether kernels run on such a device."""
    return compat_torch.triton_drives(device_type)


def forget_drivers() -> None:
    """Make the library ask Triton again which devices it drives."""
    compat_torch.triton_drives.cache_clear()


def kernel_formulas() -> tuple[ModuleType, Path]:
    """The formulas as kernels have them, with the constants that `perf fit` makes, and their file."""
    from triton_gelu.formulas import device

    return device, Path(device.__file__ or "")
