"""What a fused model computes by kernels."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from triton_gelu.fuse import gelu


class Calls:
    """Counts what is computed by GELU's kernels: forward passes by formula, bias gradients with and without GELU's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forward: list[str] = []
        self.gated: list[str] = []
        self.fused_biases = self.summed_biases = 0
        self._forward, self._backward, self._sum = gelu.gelu_forward, gelu.gelu_backward, gelu.sum_to_bias
        for name, counting in (("gelu_forward", self._of_forward), ("gelu_backward", self._of_backward)):
            monkeypatch.setattr(gelu, name, counting)
        monkeypatch.setattr(gelu, "sum_to_bias", self._of_sum)
        for name in ("geglu_forward", "gelu_mul_forward"):
            monkeypatch.setattr(gelu, name, self._of_gated(getattr(gelu, name)))
        for name in ("geglu_backward", "gelu_mul_backward"):
            monkeypatch.setattr(gelu, name, self._of_gated_backward(getattr(gelu, name)))

    def _of_forward(self, h: Tensor, formula: Any) -> Tensor:
        self.forward.append(formula)
        return self._forward(h, formula)

    def _of_backward(self, dy: Tensor, h: Tensor, dim: Any, formula: Any, dtype: Any) -> Any:
        before = self.summed_biases
        gradients = self._backward(dy, h, dim, formula, dtype)
        self.summed_biases = before
        self.fused_biases += gradients[1] is not None
        return gradients

    def _of_sum(self, dh: Tensor, dim: int, dtype: Any) -> Tensor:
        self.summed_biases += 1
        return self._sum(dh, dim, dtype)

    def _of_gated(self, function: Any) -> Any:
        def counting(*args: Any) -> Tensor:
            self.gated.append(args[-1])
            y: Tensor = function(*args)
            return y

        return counting

    def _of_gated_backward(self, function: Any) -> Any:
        def counting(*args: Any) -> Any:
            gradients = function(*args)
            biases = gradients[1:] if len(gradients) == 2 else gradients[2:]
            self.fused_biases += sum(each is not None for each in biases)
            return gradients

        return counting
