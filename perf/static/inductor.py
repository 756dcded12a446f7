"""What torch.compile makes of a model on a GPU that is not here: Inductor's kernels, forward and backward, and bytes.

Dynamo, AOTAutograd and Inductor are PyTorch's own, and work on fakes (perf/static/fake_gpu.py). Only the loading of the
generated code is left out: in its place the graph runs on fakes, so that autograd comes to the backward pass.

A kernel's bytes are those of each tensor that its code loads, and of each that it stores, once: of a part of a tensor,
that part. Products, convolutions and attention are PyTorch's own in any case, and not counted.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from perf.static import fake_gpu
from perf.static.gpus import GPU
from perf.static.offline import Launched

FORWARD, BACKWARD = "forward", "backward"
POINTWISE = "pointwise"
OURS = "triton_gelu's kernel"
SOURCE = re.compile(r"^(\w+) = async_compile\.triton\('\w+', r?'''(.*?)'''", re.MULTILINE | re.DOTALL)


@dataclass
class Kernel:
    """A Triton kernel of a compiled graph; `tensors` has the bytes of its arguments by their names in its source."""

    name: str
    kind: str  # "pointwise", "reduction", "persistent reduction", "template", or OURS
    direction: str
    tensors: Mapping[str, int]
    sizes: Mapping[str, int]  # of its loops and its grid: "xnumel" and such
    moved: int | None = None
    source: str = ""

    @property
    def bytes(self) -> int:
        """Loaded and stored, each tensor once."""
        if self.moved is not None:
            return self.moved
        body = self.source.partition("\ndef ")[2]
        used = [(how, name) for how in ("load", "store") for name in set(re.findall(rf"tl\.{how}\((\w+) \+", body))]
        used += [("store", name) for name in set(re.findall(r"tl\.atomic_\w+\((\w+) \+", body))]
        return sum(self.tensors[name] for _, name in used)


@dataclass
class Compiled:
    """The kernels of both directions in launch order, and the code that Inductor wrote."""

    kernels: list[Kernel] = field(default_factory=list)
    code: dict[str, str] = field(default_factory=lambda: {FORWARD: "", BACKWARD: ""})

    def of(self, direction: str) -> list[Kernel]:
        return [kernel for kernel in self.kernels if kernel.direction == direction]


def compiled(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    gpu: GPU,
    *,
    training: bool = True,
    dynamic: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """A function, or a module on the meta device, compiled in one graph for a GPU, with `options` of Inductor's.

    `inputs` are tensors of any device, of which only shape, type, strides and `requires_grad` matter, or anything else.
    """
    import torch._dynamo
    import torch._functorch.config
    import torch._inductor.config
    from torch._inductor import compile_fx
    from torch._inductor.codegen.triton import TritonKernel
    from torch._inductor.scheduler import Scheduler
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    recorder = _Recorder(Compiled())

    def backend(graph: Any, examples: Any) -> Any:
        return compile_fx.compile_fx(
            graph, examples, inner_compile=recorder.inner_compile, config_patches=dict(options or {})
        )

    torch._dynamo.reset()
    with contextlib.ExitStack() as stack:
        for context in (
            fake_gpu.pretended(gpu),
            mock.patch.object(TritonKernel, "call_kernel", recorder.of_inductor(TritonKernel.call_kernel)),
            mock.patch.object(Scheduler, "codegen_extern_call", recorder.of_users(Scheduler.codegen_extern_call)),
            torch._functorch.config.patch(enable_autograd_cache=False),
            torch._inductor.config.patch({"fx_graph_cache": False, "compile_threads": 1, "triton.cudagraphs": False}),
            torch.set_grad_enabled(training),
            FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True),
        ):
            stack.enter_context(context)
        model = _faked_module(function, {}) if isinstance(function, nn.Module) else function
        result = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)(*map(_faked, inputs))
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.requires_grad]
        if outputs:
            torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
    return recorder.found


def _faked(value: Any) -> Any:
    """A fake on the GPU like a tensor; other values as they are."""
    if not isinstance(value, Tensor):
        return value
    fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda:0")
    fake = nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake
    return fake.requires_grad_(value.requires_grad)


def _faked_module(module: nn.Module, known: dict[int, Any]) -> Any:
    """A copy of a module whose parameters and buffers are fakes; what is shared stays so."""
    if id(module) not in known:
        known[id(module)] = new = copy.copy(module)
        for store in ("_parameters", "_buffers"):
            tensors = vars(module)[store]
            known.update({id(t): _faked(t) for t in tensors.values() if id(t) not in known})
            vars(new)[store] = {name: known[id(t)] for name, t in tensors.items()}
        vars(new)["_modules"] = {name: m and _faked_module(m, known) for name, m in module._modules.items()}
    return known[id(module)]


class _Recorder:
    """Notes kernels as Inductor writes their calls."""

    def __init__(self, found: Compiled) -> None:
        self.found, self.direction = found, FORWARD

    def of_inductor(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """Kernels that Inductor generates."""

        def call_kernel(kernel: Any, name: str, *args: Any, **kwargs: Any) -> Any:
            features = kernel.features
            kind = (
                "template" if "Template" in type(kernel).__name__
                else "persistent reduction" if kernel.persistent_reduction
                else "reduction" if features.is_reduction() else POINTWISE
            )  # fmt: skip
            accesses = features.buf_accesses()
            tensors = {}
            for argument in kernel.args.python_argdefs()[2]:
                if (buffer := getattr(argument, "buffer", None)) is not None:
                    tensors[argument.name] = _bytes(buffer, argument.dtype, accesses.get(buffer, ()))
                elif (count := getattr(argument, "count", None)) is not None:  # memory of the kernel's own
                    tensors[argument.inner_name] = _number(count) * argument.dtype.itemsize
            sizes = {f"{tree.prefix}numel": _number(tree.numel) for tree in kernel.range_trees}
            self.found.kernels.append(Kernel(name, kind, self.direction, tensors, sizes))
            return write(kernel, name, *args, **kwargs)

        return call_kernel

    def of_users(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """Triton kernels that stood in the graph: ours."""
        from torch._inductor import ir
        from torch._inductor.utils import sympy_product

        def codegen_extern_call(scheduler: Any, scheduled: Any) -> Any:
            for node in [each.node for each in scheduled.get_nodes()]:
                if isinstance(node, ir.UserDefinedTritonKernel):
                    name = str(getattr(node.get_kernel_and_metadata()[0], "__name__", ""))
                    given = {key: box for key, box in node.kernel_args.items() if isinstance(box, ir.TensorBox)}
                    size = {key: _number(sympy_product(t.get_size())) * t.dtype.itemsize for key, t in given.items()}
                    used = node.arg_accesses.read_writes
                    moved = sum(size[each.name] for each in (*used.reads, *used.writes) if each.name in size)
                    self.found.kernels.append(Kernel(name, OURS, self.direction, size, {}, moved))
            return write(scheduler, scheduled)

        return codegen_extern_call

    def inner_compile(self, graph: Any, examples: Any, **kwargs: Any) -> Any:
        """Generate the code, keep it, and give back the graph, to run on fakes."""
        from torch._functorch._aot_autograd.utils import make_boxed_func
        from torch._inductor import compile_fx
        from torch._inductor.graph import GraphLowering

        self.direction = BACKWARD if kwargs.get("is_backward") else FORWARD
        first, runnable, written = len(self.found.kernels), copy.deepcopy(graph), []

        def keep(lowering: Any) -> None:
            written.append(lowering.codegen()[0])
            raise _Written

        with mock.patch.object(GraphLowering, "compile_to_module", keep):
            try:
                compile_fx.compile_fx_inner(graph, examples, **kwargs)
            except Exception:  # PyTorch wraps it
                if not written:
                    raise
        code = str(getattr(written[0], "value", written[0]))
        self.found.code[self.direction] += code
        sources = dict(SOURCE.findall(code))
        for kernel in self.found.kernels[first:]:
            kernel.source = sources.get(kernel.name, "")
        return make_boxed_func(runnable.forward)


def machine_code(kernel: Kernel, gpu: GPU) -> Launched:
    """A pointwise kernel of Inductor's, compiled: in the first of the shapes that it would try."""
    import torch._inductor.config
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.runtime import triton_heuristics

    with (
        fake_gpu.pretended(gpu),
        mock.patch.object(triton_heuristics.StaticTritonCompileResult, "can_statically_launch", return_value=None),
    ):
        module = PyCodeCache.load(kernel.source)
        tuner = next(v for v in vars(module).values() if isinstance(v, triton_heuristics.CachingAutotuner))
        tuner.precompile(warm_cache_only=True)
        found = tuner.compile_results[0]
    blocks = {name: size for name, size in found.config.kwargs.items() if name.endswith("BLOCK")}
    grid = [-(-kernel.sizes[f"{axis}numel"] // blocks.get(f"{axis.upper()}BLOCK", 1)) for axis in ("x", "y")
            if f"{axis}numel" in kernel.sizes]  # fmt: skip
    asm = found.kernel.asm
    header = next(line for line in asm["ttir"].splitlines() if "tt.func public" in line)
    names = re.findall(r"%(\w+): [!\w]", header)
    arguments = {
        name: torch.empty(kernel.tensors[name], dtype=torch.uint8, device="meta")
        if name in kernel.tensors
        else kernel.sizes.get(name, 0)
        for name in names
    }
    metadata = found.kernel.metadata
    return Launched(
        name=kernel.name, grid=(*grid, 1, 1)[:3], arguments=arguments, constants=blocks, num_warps=metadata.num_warps,
        shared=metadata.shared, fp_fusion=metadata.enable_fp_fusion, asm=asm,
    )  # fmt: skip


class _Written(Exception):
    """The code is there: nothing is to be loaded."""


def _bytes(buffer: str, dtype: torch.dtype, accesses: Iterator[Any] | Sequence[Any]) -> int:
    """What a kernel reaches of a buffer."""
    from torch._inductor.utils import sympy_product
    from torch._inductor.virtualized import V

    made = V.graph.try_get_buffer(buffer)
    whole = _number(sympy_product(made.get_size())) if made is not None else 1
    reached = sum(_number(each.get_numel()) for each in set(accesses))
    return (min(whole, reached) if reached else whole) * dtype.itemsize


def _number(size: Any) -> int:
    """A size, or what a compiler takes a symbol for."""
    from torch._inductor.virtualized import V

    return int(V.graph.sizevars.optimization_hint(size, fallback=0))
