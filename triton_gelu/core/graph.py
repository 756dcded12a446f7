"""Records plans in the graphs of torch.compile, where sizes may be symbols and the compiler adds up partial sums.

Where a compiler knows a size only as a symbol it is asked for as little as the plan needs, so that one graph serves all
sizes; partial sums are left to the compiler, which fuses the last of them with whatever comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from .declare import Level, Tensors, empty_results, half
from .plan import PARTIALS
from .run import Planner, dense, device_target


def record(level: Level, planner: Planner, kernels: Any, dim: int, given: Sequence[Any]) -> Tensors:
    """The results of a level of an operator on the tensors of a compiler, by kernels that go into its graph."""
    x, tensors = given[level.lead], level.by_name(given)
    if level.needs:
        given = (*given[:-1], level.needed(given))
    results = dict(zip([result.name for result in level.results], empty_results(level, given, dim), strict=True))
    if not x.numel():
        return tuple(
            [result if result is None or not result.numel() else result.zero_() for result in results.values()]
        )
    like_x = [results[each.name] for each in level.results if each.kind is level.args[level.lead].kind]
    layout = next((result.stride() for result in like_x if result is not None), None) or torch.empty_like(x).stride()
    plan = planner(device_target(x.device), layout, *given)
    for arg in level.args:
        tensor = tensors[arg.name]
        if arg.name in plan.dense:
            tensors[arg.name] = dense(tensor, torch.empty_like(half(x, dim)).stride() if arg.kind.halved else layout)
        elif tensor is not None and not arg.kind.full:
            tensors[arg.name] = tensor.contiguous()
    tensors |= results
    if plan.partials is not None:
        tensors[PARTIALS] = x.new_empty((plan.partials.rows, plan.partials.size), dtype=torch.float32)
    for step in plan.steps:
        operands = [None if name is None else tensors.get(name) for name in step.tensors]
        _launch(getattr(kernels, step.launch.kernel), step.launch, operands)
    if plan.partials is not None:
        like = results[plan.partials.result]
        assert like is not None
        results[plan.partials.result] = tensors[PARTIALS].sum(0).to(like.dtype)
    return tuple(results.values())


def _launch(kernel: Any, launch: Any, tensors: Sequence[Tensor | None]) -> None:
    """A launch as a node of the graph; PyTorch's compilers know no limit on registers."""
    wrapped: Any = wrap_triton(kernel)
    wrapped[launch.grid](*tensors, *launch.integers, **dict(launch.constants), num_warps=launch.num_warps)
