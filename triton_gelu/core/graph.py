"""The kernels' backward pass in the graphs of torch.compile: where it is recorded, and how.

A compiler fuses ordinary operations with what is beside them, and a kernel that it did not write with nothing. So
kernels are recorded only where they save a pass and nothing is beside them (`stands_alone`): the gradient of a vector
then costs no pass of its own. Everywhere else, and forward, a graph holds ordinary operations.

Sizes may be symbols: a compiler is asked for as little as the plan needs, so that one graph serves all sizes. It adds
up partial sums, and fuses the last of them with whatever comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from . import compat_torch
from .declare import Level, Tensors, empty_results
from .plan import PARTIALS
from .run import Planner, device_target


def stands_alone(level: Level, given: Sequence[Any]) -> bool:
    """Whether kernels move less than a compiler would in a backward pass: a vector has a gradient, and nothing fuses.

    That is so if products, convolutions or the world outside made all that is read whole, and nothing else computes
    with what the operator was given. (Its incoming gradient may well have been made for several.) Where a gradient has
    halves, a compiler moves as few bytes without a vector, but computes both for each element of either.
    """
    sums = [not r.kind.full for r, needed in zip(level.results, level.needed(given), strict=True) if needed]
    halved = any(arg.kind.halved for arg in level.args)
    if not (any(sums) or halved) or compat_torch.may_fuse_products():
        return False
    for place, (arg, tensor) in enumerate(zip(level.args, given, strict=False)):
        if tensor is not None and arg.kind.full and arg.read:
            origin = compat_torch.origin(tensor)
            if origin is None or (place >= level.lead and origin.shared):
                return False
    return True


def record(level: Level, planner: Planner, kernels: Any, dim: int, given: Sequence[Any]) -> Tensors | None:
    """The results of a level of an operator on the tensors of a compiler, by kernels that go into its graph.

    None where the plan wants copies of tensors first: those cost more than the kernels save.
    """
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
    if plan.dense:
        return None
    for arg in level.args:
        tensor = tensors[arg.name]
        if tensor is not None and not arg.kind.full:
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
