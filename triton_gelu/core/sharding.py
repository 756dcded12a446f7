"""How DTensor shards the operators: all are pointwise in x; the gradient of the bias is a sum over all but `dim`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

Rule = tuple[list[Placement], list[Placement | None]]  # placements of the outputs and of the arguments on one mesh axis


@functools.cache
def register() -> None:
    """Tell DTensor the rules: when the first one is met, since the import takes more than a second."""
    operators = torch.ops.triton_gelu
    register_sharding(operators.forward.default)(_forward)
    register_sharding(operators.backward.default)(_backward)
    register_sharding(operators.double_backward.default)(_double_backward)


def _forward(x: Any, bias: Any, dim: int, approximate: str) -> list[Rule]:
    return [([whole], [whole, bias and vector, None, None]) for whole, vector, _ in _placements(x, dim)]


def _backward(dy: Any, x: Any, bias: Any, dim: int, approximate: str, needs: list[bool]) -> list[Rule]:
    return [
        (_outputs(needs, whole, total), [whole, whole, bias and vector, None, None, None])
        for whole, vector, total in _placements(x, dim)
    ]


def _double_backward(
    v: Any, vbias: Any, dy: Any, x: Any, bias: Any, dim: int, approximate: str, needs: list[bool]
) -> list[Rule]:
    return [
        (
            _outputs(needs, whole, whole, total),
            [v and whole, vbias and vector, whole, whole, bias and vector, None, None, None],
        )
        for whole, vector, total in _placements(x, dim)
    ]


def _placements(x: Any, dim: int) -> Iterator[tuple[Placement, Placement, Placement]]:
    """What x, the bias and the gradient of the bias may be together."""
    yield Replicate(), Replicate(), Replicate()
    for d in range(x.ndim):
        yield (Shard(d), Shard(0), Shard(0)) if d == dim else (Shard(d), Replicate(), Partial())


def _outputs(needs: list[bool], *placements: Placement) -> list[Placement]:
    """An output that is not needed is empty."""
    return [placement if needed else Replicate() for placement, needed in zip(placements, needs, strict=True)]
