"""Fused layers on small tensors: there, PyTorch would add up bias gradients."""

import pytest

from triton_gelu.fuse import gelu


@pytest.fixture(autouse=True)
def small_tensors_take_the_whole_mechanism(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gelu, "SMALL", 0)
