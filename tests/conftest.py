"""Kernels run in Triton's interpreter on machines without a GPU: the switch must be set before Triton is imported."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # there are as many of these as cores
    torch.set_num_threads(1)

TESTS = Path(__file__).parent
KERNELS = ("core", "formulas", "ops")  # folders of tests of kernels; other files say so by `pytestmark`
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def device() -> str:
    """The device that kernels run on here."""
    return DEVICE


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """Operators forget what they found out of calls before a test, and what they find out in it."""
    import triton_gelu  # noqa: F401
    from triton_gelu.core.op import Op

    ops = [module for name, module in sys.modules.items() if name.startswith("triton_gelu.ops.")]
    operators = {value for module in ops for value in vars(module).values() if isinstance(value, Op)}
    for op in operators:
        op.cache.clear()
    yield
    for op in operators:
        op.cache.clear()


@pytest.fixture
def without_kernels(nothing_kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Triton has no driver for the device."""
    from triton_gelu.core import compat_triton

    answer = False, "Triton has no driver for this device"
    monkeypatch.setattr(compat_triton, "drives", lambda device_type: answer)


@pytest.fixture(autouse=True)
def _same_numbers_every_run() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of kernels by the folders they lie in."""
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in KERNELS:
            item.add_marker("kernels")
