"""Launches plans in eager mode, and keeps the compiled kernels: a plan becomes a function of tensors.

The function is written as source, one line for each allocation, copy and launch of the plan, since a loop over them
would take longer than launching. `source` shows it, and so does a traceback.
"""

from __future__ import annotations

import functools
import linecache
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import compat_torch, compat_triton, targets
from .declare import Kind, Level, half
from .plan import PARTIALS, Launch, Plan
from .targets import Target

POINTER_ALIGNMENT = 16  # bytes; the only one that Triton asks for
Launcher = Callable[[Sequence[Tensor | None]], None]
Planner = Callable[..., Plan]
Result = TypeVar("Result")


def bind(
    level: Level, planner: Planner, kernels: Any, dim: int, given: Sequence[Any], replan: Callable[..., Any]
) -> Callable[..., Any]:
    """What computes a level of an operator on tensors like those `given`, a whole call; it takes the tensors alone.

    Compiled kernels belong to Triton's driver: if that is another one day, the function calls `replan` on its tensors.
    """
    x, tensors = given[level.lead], level.by_name(given)
    needed = level.needed(given)
    if level.needs:
        given = (*given[:-1], needed)
    layout = dense_strides(x)
    kinds, own = {arg.name: arg.kind for arg in level.args}, level.args[level.lead].kind
    plan = planner(device_target(x.device), layout, *given) if x.numel() else Plan()
    values: dict[str, Any] = {
        "driver": compat_triton.driver, "planned_for": compat_triton.driver(), "replan": replan, "dense": dense,
        **{f"strides_{name}": strides_of(kinds[name], own, x, dim) for name in plan.dense},
        **{f"launch_{i}": Run(step.launch, kernels, x.device).__call__ for i, step in enumerate(plan.steps)},
    }  # fmt: skip
    zeros = []
    for place, result in enumerate(level.results):
        if not needed[place]:
            continue
        like = tensors[level.sources[place]]
        if (summed := dict(plan.sums).get(result.name)) is not None:
            values[f"sum_{result.name}"] = _sum(kinds[summed], result.kind, x.ndim, dim, like.dtype)
            continue
        shape = level.shape(place, given, dim)
        lies = strides_of(result.kind, own, x, dim)
        values[f"make_{result.name}"] = compat_torch.allocator(shape, lies, like.dtype, x.device)
        if not x.numel() and 0 not in shape:
            zeros.append(result.name)
    if plan.partials is not None and plan.partials.reduce is not None:
        size = plan.partials.rows, plan.partials.size
        values["make_partials"] = compat_torch.allocator(size, (size[1], 1), torch.float32, x.device)
        values["reduce"] = Run(plan.partials.reduce, kernels, x.device).__call__
    small = tuple([arg.name for arg in level.args if not arg.kind.full and tensors[arg.name] is not None])
    text = source(level, plan, tuple(values), small, tuple(zeros))
    run: Callable[..., Any] = _factory(text, f"<{level.name}, plan {zlib.crc32(text.encode()):08x}>")(**values)
    return on_device(x.device, run)


def source(
    level: Level, plan: Plan, values: tuple[str, ...], contiguous: tuple[str, ...], zeros: tuple[str, ...]
) -> str:
    """The source of what `bind` returns, inside a function of the `values` it refers to."""
    args = ", ".join(arg.name for arg in level.args)
    made = [result.name for result in level.results if f"make_{result.name}" in values]
    lines = [f"if driver() is not planned_for:\n            return replan({args})"]
    lines += [f"{name} = make_{name}()" for name in made]
    lines += [f"{name} = dense({name}, strides_{name})" for name in plan.dense]
    if plan.steps:
        lines += [f"{name} = {name}.contiguous()" for name in contiguous]
    partials = PARTIALS
    if plan.partials is not None and plan.partials.reduce is not None:
        lines.append("partials = make_partials()")
    elif plan.partials is not None:
        partials = plan.partials.result
    usable = {*made, *(arg.name for arg in level.args), PARTIALS}
    for i, step in enumerate(plan.steps):
        names = [partials if name == PARTIALS else str(name) if name in usable else "None" for name in step.tensors]
        lines.append(f"launch_{i}(({', '.join(names)},))")
    if plan.partials is not None and plan.partials.reduce is not None:
        lines.append(f"reduce((partials, {', '.join(plan.partials.results)}))")
    lines += [f"{result} = sum_{result}({arg})" for result, arg in plan.sums]
    lines += [f"{name}.zero_()" for name in zeros]
    given = {*made, *(result for result, _ in plan.sums)}
    results = [result.name if result.name in given else "None" for result in level.results]
    lines.append(f"return {', '.join(results)}{',' * (level.needs and len(results) == 1)}")
    body = "".join(f"        {line}\n" for line in lines)
    return f"def make({', '.join(values)}):\n    def run({args}):\n{body}    return run\n"


@functools.lru_cache(maxsize=1024)
def _factory(text: str, name: str) -> Callable[..., Any]:
    """The function `make` of a source, compiled, and shown by tracebacks and debuggers under this name."""
    make: Callable[..., Any] = exec_source(text, name, {})["make"]
    return make


def exec_source(text: str, name: str, space: dict[str, Any]) -> dict[str, Any]:
    """Run generated source in a namespace, and let tracebacks show its lines."""
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    exec(compile(text, name, "exec"), space)
    return space


def _sum(kind: Kind, result: Kind, ndim: int, dim: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What adds up a tensor of one kind over the dimensions that another kind has not."""
    kept = result.dimensions(ndim, dim)
    others = [place for place, d in enumerate(kind.dimensions(ndim, dim)) if d not in kept]

    def total(tensor: Tensor) -> Tensor:
        return tensor.sum(others, dtype=torch.promote_types(tensor.dtype, dtype)).to(dtype)

    return total


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """How a result like x lies: without gaps, its dimensions in the order of x's strides."""
    return torch.empty_like(x, device="meta").stride()


def strides_of(kind: Kind, own: Kind, x: Tensor, dim: int) -> tuple[int, ...]:
    """How a tensor of some kind lies without gaps: as x, or as half of x, if it is of this kind, else contiguous."""
    if kind is own:
        return dense_strides(x)
    return dense_strides(half(x, dim)) if kind.halved else torch.empty(kind.shape(x.shape, dim), device="meta").stride()


def dense(tensor: Tensor | None, strides: tuple[int, ...]) -> Tensor | None:
    """The tensor, or a copy that has these strides."""
    if tensor is None or tensor.stride() == strides:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def on_device(device: torch.device, function: Callable[..., Result]) -> Callable[..., Result]:
    """The function, called while the device is the current one: there it takes memory and launches."""
    module: Any = None if device.index is None else torch.get_device_module(device)
    if module is None or module.device_count() == 1:
        return function

    def guarded(*args: Any) -> Result:
        if module.current_device() == device.index:
            return function(*args)
        with module.device(device):
            return function(*args)

    return guarded


def device_target(device: torch.device) -> Target:
    """What the launch plans need to know of a device."""
    if compat_triton.INTERPRETED:
        return targets.INTERPRETER
    return targets.target_of(compat_triton.properties(device), on_device(device, compat_triton.gpu_target)())


class Run:
    """Launches a plan on the current stream of its device, the current one, and keeps what Triton compiled for it.

    Triton compiles anew for other types, constants, kinds of integers, devices, drivers, and alignments of pointers. A
    run is for one of each but the last. (On AMD it also asks whether a tensor's storage ends within 2 GiB, so that
    offsets fit 32 bits: ours do or don't by shape and strides, which are a plan's own.)
    """

    def __init__(self, launch: Launch, kernels: Any, device: torch.device) -> None:
        kernel = getattr(kernels, launch.kernel)[launch.grid]
        self.by_triton = compat_triton.one_at_a_time(partial(kernel, **launch.options, **dict(launch.constants)))
        self.grid = launch.grid
        self.integers = launch.integers
        self.constants = tuple([value for _, value in launch.constants])
        self.index = device.index
        self.kept: dict[object, Launcher] = {}

    def __call__(self, tensors: Sequence[Tensor | None]) -> None:
        addresses = 0
        for tensor in tensors:
            if tensor is not None:
                addresses |= tensor.data_ptr()
        aligned = not addresses % POINTER_ALIGNMENT or tuple(
            [t is None or not t.data_ptr() % POINTER_ALIGNMENT for t in tensors]
        )
        launch = self.kept.get(aligned)
        if launch is None or compat_triton.is_profiled():
            compiled = self.by_triton(*tensors, *self.integers)
            if compiled is not None and not compat_triton.is_profiled():  # the interpreter compiles nothing
                self.kept[aligned] = partial(self._load, aligned, compiled)
        else:
            launch(tensors)

    def _load(self, aligned: object, compiled: Any, tensors: Sequence[Tensor | None]) -> None:
        """Launch a kept kernel for the first time."""
        rest = (*self.integers, *self.constants)
        launch = self.kept[aligned] = compat_triton.launcher(compiled, self.grid, self.index, rest)
        launch(tensors)
