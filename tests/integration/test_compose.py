"""bias_gelu inside the rest of PyTorch. The tests in `ways` are the rows of the table in docs/composition.md."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICE
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint
from ways import DOCUMENT, TABLE, table, ways

from triton_gelu import GELU, MLP, BiasGELU, LinearGELU, bias_gelu
from triton_gelu.formulas import FORMULAS

Function = Callable[..., Any]


def plain(x: Tensor, bias: Tensor) -> Tensor:
    """What a user of PyTorch would write."""
    return F.gelu(x + bias, approximate="tanh").to(x.dtype)


def compiled(function: Function, backend: str = "aot_eager", **options: Any) -> Function:
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def sharded(along: int) -> Callable[[Function], Function]:
    """Calls with x, the first argument, sharded along a dimension, and with the whole of the others, but for a bias."""

    def shard(function: Function) -> Function:
        def call(x: Tensor, *others: Tensor) -> Any:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.tensor import DTensor, Replicate, Shard

            on = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
            x, *others = (DTensor.from_local(t, on, [Replicate()]) for t in (x, *others))
            if along == x.ndim - 1:
                others = [t.redistribute(placements=[Shard(0)]) for t in others]
            return function(x.redistribute(placements=[Shard(along)]), *others).full_tensor()

        return call

    return shard


def same(function: Function) -> Function:
    return function


def batched(function: Function) -> Function:
    return vmap(function, (0, None))


WAYS: dict[str, Callable[[Function], Function]] = {
    "eager": same,
    "eager, no kernels": same,
    "compiled": compiled,
    "functorch": batched,
    "functorch, no kernels": batched,
    "distributed": sharded(0),
    "distributed, along the bias": sharded(2),
}
EAGER = ("eager", "eager, no kernels")
FUNCTORCH = ("functorch", "functorch, no kernels")
DISTRIBUTED = ("distributed", "distributed, along the bias")


@pytest.fixture(autouse=True)
def _backend(request: pytest.FixtureRequest) -> None:
    """Ways without kernels are those of a machine without Triton."""
    way = request.node.callspec.params.get("way", "") if hasattr(request.node, "callspec") else ""
    if "no kernels" in way:
        request.getfixturevalue("without_kernels")


def inputs(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x, bias = torch.randn(3, 4, 8, device=device, dtype=dtype), torch.randn(8, device=device, dtype=dtype)
    return x.requires_grad_(), bias.requires_grad_()


def loss_and_gradients(function: Function, *args: Tensor) -> list[Tensor]:
    value = function(*args).float().square().sum()
    return [value.detach(), *torch.autograd.grad(value, [a for a in args if a.requires_grad])]


def assert_same(ours: Any, theirs: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@ways(*EAGER, "compiled", *FUNCTORCH, *DISTRIBUTED)
@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)], ids=str)
def test_gradients(way: str, needs: tuple[bool, bool], device: str) -> None:
    args = [t.detach().requires_grad_(need) for t, need in zip(inputs(device), needs, strict=True)]
    assert_same(loss_and_gradients(WAYS[way](bias_gelu), *args), loss_and_gradients(plain, *args))


@ways(*EAGER, "compiled", *FUNCTORCH, *DISTRIBUTED)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_grad_and_inference_mode(way: str, mode: Function, device: str) -> None:
    with mode():
        x, bias = inputs(device)
        y = WAYS[way](bias_gelu)(x, bias)
        assert not y.requires_grad
        assert y.is_inference() == (mode is torch.inference_mode)
        assert_same(y, plain(x, bias))


@ways(*EAGER)
@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=3))[:-1], ids=str)
def test_every_pattern_of_requires_grad(way: str, needs: tuple[bool, bool, bool], device: str) -> None:
    """In the second pass, for x, the bias and the incoming gradient; the first pass is that of "gradients"."""

    def second(function: Function) -> tuple[Tensor | None, ...]:
        torch.manual_seed(0)
        x, bias = (t.detach() for t in inputs(device))
        args = [t.requires_grad_(need) for t, need in zip((x, bias, torch.randn_like(x)), needs, strict=True)]
        y = function(*args[:2])
        if not any(needs[:2]):
            assert not y.requires_grad
            return ()
        wanted = [t for t in args if t.requires_grad]
        first = torch.autograd.grad(y, [t for t in args[:2] if t.requires_grad], args[2], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    assert_same(second(bias_gelu), second(plain), rtol=1e-3, atol=1e-4)


@ways(*EAGER, *FUNCTORCH, "distributed, along the bias", compiled=91469)
def test_second_derivatives(way: str, device: str) -> None:
    x, bias = inputs(device)

    def derivatives(function: Function) -> Any:
        if "functorch" in way:
            return hessian(summed(function), (0, 1))(x[0, :2, :3], bias[:3])
        first = torch.autograd.grad(function(x, bias).square().sum(), (x, bias), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, bias))

    ours = bias_gelu if "functorch" in way else WAYS[way](bias_gelu)
    assert_same(derivatives(ours), derivatives(plain), rtol=1e-3, atol=1e-3)


@ways(*EAGER, *FUNCTORCH)
def test_third_derivatives(way: str, device: str) -> None:
    x, bias = inputs(device)
    x, bias = x[0, :2, :3], bias[:3]

    def derivatives(function: Function) -> list[Tensor]:
        if "functorch" in way:
            second = hessian(lambda x, bias: function(x, bias).square().sum(), (0, 1))
            return [*second(x, bias), *jacrev(second, (0, 1))(x, bias)]
        first = torch.autograd.grad(function(x, bias).square().sum(), (x, bias), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, bias), create_graph=True)
        return [*second, *torch.autograd.grad(sum(g.square().sum() for g in second), (x, bias))]

    assert_same(derivatives(bias_gelu), derivatives(plain), rtol=1e-3, atol=1e-3)


def test_a_second_derivative_of_a_compiled_function_is_refused(device: str) -> None:
    """PyTorch's AOTAutograd says no: https://github.com/pytorch/pytorch/issues/91469."""
    x, bias = inputs(device)
    (dx,) = torch.autograd.grad(compiled(bias_gelu)(x, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()


@ways(*EAGER, compiled=187284)
def test_forward_mode(way: str, device: str) -> None:
    function = compiled(bias_gelu, backend="inductor") if way == "compiled" else bias_gelu
    x, bias = (t.detach() for t in inputs(device))
    with forward_ad.dual_level():
        for tangents in ((x.cos(), bias.cos()), (x.cos(), None), (None, bias.cos())):
            duals = [
                t if tangent is None else forward_ad.make_dual(t, tangent)
                for t, tangent in zip((x, bias), tangents, strict=True)
            ]
            ours = forward_ad.unpack_dual(function(*duals))
            assert ours.tangent is not None
            assert_same(ours.tangent, forward_ad.unpack_dual(plain(*duals)).tangent)


def summed(function: Function) -> Function:
    return lambda x, bias: function(x, bias).square().sum()


def check_transform(way: str, device: str, transform: Callable[[Function, Tensor, Tensor], Any]) -> None:
    x, bias = (t.detach() for t in inputs(device))
    ours = functools.partial(transform, bias_gelu)
    if way == "compiled":
        ours = compiled(ours, dynamic=False)
    assert_same(ours(x, bias), transform(plain, x, bias))


transforms = ways(*FUNCTORCH, "compiled")
slow_transforms = ways(*FUNCTORCH, "compiled", slow=("compiled",))


@transforms
def test_grad(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: grad(summed(f), (0, 1))(x, b))


@slow_transforms
def test_vjp(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: vjp(f, x, b)[1](x))


@transforms
def test_jvp(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: jvp(f, (x, b), (x.cos(), b.cos())))


@transforms
def test_vmap_over_x(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: vmap(f, (1, None))(x, b))


@slow_transforms
def test_vmap_over_bias(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: vmap(f, (None, 0))(x, torch.stack([b, -b])))


@slow_transforms
def test_vmap_over_both(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: vmap(f, (1, 0), 1)(x, torch.stack([b, -b, b.cos(), b.sin()])))


@slow_transforms
def test_nested_vmap(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: vmap(vmap(f, (0, None)), (0, 0))(x, torch.stack([b, -b, b.cos()])))


@slow_transforms
def test_jacrev(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: jacrev(f, (0, 1))(x[0, :2], b))


@slow_transforms
def test_jacfwd(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: jacfwd(f, (0, 1))(x[0, :2], b))


@slow_transforms
def test_hessian(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: hessian(summed(f), (0, 1))(x[0, :2], b))


@slow_transforms
def test_jacrev_of_jacrev(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: jacrev(jacrev(summed(f)))(x[0, :2], b))


@transforms
def test_per_sample_gradients(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: vmap(grad(summed(f), (0, 1)), (0, None))(x, b))


@slow_transforms
def test_gradients_of_an_ensemble(way: str, device: str) -> None:
    check_transform(way, device, lambda f, x, b: vmap(grad(summed(f), (0, 1)), (None, 0))(x, torch.stack([b, -b])))


@ways("eager")
@pytest.mark.parametrize("approximate", FORMULAS)
def test_gradcheck(way: str, approximate: str, device: str) -> None:
    x, bias = (t.detach()[..., :3].double().requires_grad_() for t in inputs(device))

    def function(x: Tensor, bias: Tensor) -> Tensor:
        return bias_gelu(x, bias, approximate=approximate)

    options = {"check_batched_grad": True, "fast_mode": True}
    assert torch.autograd.gradcheck(
        function, (x, bias), check_forward_ad=True, check_batched_forward_grad=True, **options
    )
    assert torch.autograd.gradgradcheck(function, (x, bias), check_fwd_over_rev=True, **options)


@ways("eager")
def test_batched_gradients(way: str, device: str) -> None:
    x, bias = inputs(device)
    ways = torch.randn(5, *x.shape, device=device)
    ours, theirs = (
        torch.autograd.grad(function(x, bias), (x, bias), ways, is_grads_batched=True)
        for function in (bias_gelu, plain)
    )
    assert_same(ours, theirs)


@ways(*EAGER, "compiled", "distributed")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(way: str, dtype: torch.dtype, device: str) -> None:
    """The Linear yields `dtype`, the bias stays in fp32: y has `dtype`, as F.gelu(F.linear(x, w, b)) has."""
    x, bias = inputs(device)
    x = x[1:]  # an even number, which DTensor's Linear asks for
    weight = torch.randn(8, 8, device=device, requires_grad=True)
    with torch.autocast(device, dtype):
        y = WAYS[way](lambda x, w, b: bias_gelu(F.linear(x, w), b))(x, weight, bias)
        theirs = F.gelu(F.linear(x, weight, bias), approximate="tanh")
    assert y.dtype == theirs.dtype == dtype
    dy = torch.randn_like(y)
    gradients, expected = (torch.autograd.grad(t, (x, weight, bias), dy) for t in (y, theirs))
    assert [g.dtype for g in gradients] == [torch.float32] * 3
    assert_same((y, *gradients), (theirs, *expected), rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@ways(*EAGER, "compiled", "distributed")
def test_grad_scaler(way: str, device: str) -> None:
    call = nn.parallel.DistributedDataParallel if way == "distributed" else WAYS[way]
    layers = [nn.Sequential(nn.Linear(8, 8, bias=False, device=device), BiasGELU(8, device=device)) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    x, _ = inputs(device)
    for layer, scale in zip(layers, (1.0, 256.0), strict=True):
        scaler = torch.amp.GradScaler(device, init_scale=scale)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        with torch.autocast(device, torch.float16):
            value = call(layer)(x.detach()).square().mean()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_same(layers[0].state_dict(), layers[1].state_dict(), rtol=1e-3, atol=1e-4)


def checkpointed(x: Tensor, bias: Tensor) -> Any:
    return checkpoint(bias_gelu, x, bias, use_reentrant=False)


@ways(*EAGER, "compiled", "distributed")
def test_checkpoint(way: str, device: str) -> None:
    args = inputs(device)
    assert_same(loss_and_gradients(WAYS[way](checkpointed), *args), loss_and_gradients(plain, *args))


@ways(*EAGER)
def test_reentrant_checkpoint(way: str, device: str) -> None:
    x, bias = inputs(device)
    checkpoint(bias_gelu, x, bias, use_reentrant=True).square().sum().backward()
    assert_same([x.grad, bias.grad], loss_and_gradients(plain, x, bias)[1:])


@ways("eager")
def test_selective_checkpoint(way: str, device: str) -> None:
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    saved = [torch.ops.triton_gelu.bias_gelu.default]

    def function(x: Tensor, bias: Tensor) -> Any:
        contexts = lambda: create_selective_checkpoint_contexts(saved)  # noqa: E731
        return checkpoint(bias_gelu, x, bias, use_reentrant=False, context_fn=contexts)

    args = inputs(device)
    assert_same(loss_and_gradients(function, *args), loss_and_gradients(plain, *args))


@ways(*EAGER, "compiled", "distributed")
def test_saved_tensor_hooks(way: str, device: str) -> None:
    args = inputs(device)
    packed: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.numel()) or 2 * t, lambda t: t / 2)
    for hook in (hooks, torch.autograd.graph.save_on_cpu()):
        with hook:
            ours = loss_and_gradients(WAYS[way](bias_gelu), *args)
        assert_same(ours, loss_and_gradients(plain, *args))
    assert sum(packed) > 0


@ways(*EAGER, "compiled", *FUNCTORCH, *DISTRIBUTED)
def test_hooks_two_backwards_and_retained_graphs(way: str, device: str) -> None:
    x, bias = inputs(device)
    seen: list[Tensor] = []
    x.register_hook(seen.append)
    y = WAYS[way](bias_gelu)(x, bias)
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert_same(x.grad, 2 * seen[0])
    with pytest.raises(RuntimeError, match="a second time"):
        y.sum().backward()


@ways("compiled")
@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
@pytest.mark.parametrize("approximate", FORMULAS)
def test_export(way: str, strict: bool, approximate: str, device: str) -> None:
    layer = BiasGELU(8, approximate=approximate, device=device)
    x = inputs(device)[0].detach()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=strict)
    names = {node.target._schema.name for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith("aten::") for name in names)
    assert ("aten::gelu" if "F.gelu" in FORMULAS[approximate].spelling else "aten::sigmoid") in names
    longer = torch.randn(7, 4, 8, device=device)
    assert_same(program.module()(longer), layer(longer))


@ways("compiled", slow=("compiled",))
def test_aot_inductor(way: str, tmp_path: Path, device: str) -> None:
    layer = nn.Sequential(nn.Linear(8, 8), BiasGELU(8)).to(device)
    x = inputs(device)[0].detach()
    package = torch._inductor.aoti_compile_and_package(
        torch.export.export(layer, (x,)), package_path=str(tmp_path / "layer.pt2")
    )
    assert_same(torch._inductor.aoti_load_package(package)(x), layer(x).detach())


@ways("compiled")
@pytest.mark.parametrize("dynamic", [pytest.param(True, marks=pytest.mark.slow), False], ids=["dynamic", "static"])
def test_inductor(way: str, dynamic: bool, device: str) -> None:
    args = inputs(device)
    function = compiled(lambda x, bias: 2 * bias_gelu(x.sin(), bias), backend="inductor", dynamic=dynamic)
    assert_same(loss_and_gradients(function, *args), loss_and_gradients(lambda x, b: 2 * plain(x.sin(), b), *args))


@ways("compiled", slow=("compiled",))
def test_layers_in_training_and_evaluation(way: str, device: str) -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), MLP(8, 16), BiasGELU(8)).to(device)
    x, _ = inputs(device)
    parameters = list(model.parameters())
    call = compiled(model, backend="inductor")
    for mode in (model.train, model.eval):
        mode()
        ours, theirs = ([y, *torch.autograd.grad(y.square().sum(), [x, *parameters])] for y in (call(x), model(x)))
        assert_same(ours, theirs, rtol=1e-3, atol=1e-4)


@ways("compiled")
def test_a_dimension_that_becomes_dynamic_recompiles_once(way: str, device: str) -> None:
    compilations = 0

    def backend(graph: Any, examples: Any) -> Any:
        nonlocal compilations
        compilations += 1
        return graph.forward

    layer = BiasGELU(8, device=device)
    for mode in (layer.train, layer.eval):
        mode()
        function = compiled(layer, backend=backend)
        compilations = 0
        for length in (5, 6, 7, 19, 64):
            x = torch.randn(2, length, 8, device=device)
            assert_same(function(x), layer(x))
        assert compilations == 2


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the graphs hold kernels")
def test_a_compiler_for_the_cpu_gets_plain_maths() -> None:
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[Any] = []
    backend = aot_autograd(fw_compiler=lambda graph, _: graphs.append(graph) or graph)
    loss_and_gradients(compiled(bias_gelu, backend=backend), *inputs("cpu"))
    assert len(graphs) == 2
    calls = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}
    assert {call.split(".")[0] for call in calls} <= {"aten", "prims"}
    assert {"aten.sigmoid.default", "aten.exp.default"} & calls
    assert not {"aten.gelu.default", "aten.tanh.default"} & calls  # theirs, which is slower


def test_a_compiled_graph_holds_one_operator(device: str) -> None:
    graphs: list[Any] = []
    compiled(bias_gelu, backend=lambda graph, _: graphs.append(graph) or graph.forward)(*inputs(device))
    (graph,) = graphs
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert [str(call) for call in calls] == ["triton_gelu.bias_gelu.default"]


OPERATORS = {
    "bias_gelu": lambda x, b: (x, b, 2, "tanh"),
    "bias_gelu without bias": lambda x, b: (x, None, 0, "none"),
    "bias_gelu of a channels-last chunk": lambda x, b: (x.transpose(1, 2)[:, ::2], b[::2], 1, "sigmoid"),
    "bias_gelu_backward": lambda x, b: (x.cos(), x, b, 2, "tanh", [True, True]),
    "bias_gelu_backward for the bias alone": lambda x, b: (x.cos(), x, b, 2, "none", [False, True]),
    "bias_gelu_double_backward": lambda x, b: (x.sin(), b.sin(), x.cos(), x, b, 2, "tanh", [True, True, True]),
    "bias_gelu_double_backward without ddbias": lambda x, b: (
        x,
        None,
        x.cos(),
        x,
        b,
        2,
        "none",
        [1, 1, 0],
    ),
}


@ways("eager")
@pytest.mark.parametrize("case", OPERATORS)
def test_opcheck(way: str, case: str, device: str) -> None:
    x, bias = inputs(device)
    name = case.split()[0]
    args = [
        arg.detach().requires_grad_(name != "bias_gelu_double_backward") if isinstance(arg, Tensor) else arg
        for arg in OPERATORS[case](x, bias)
    ]  # the double backward has no derivative of its own: third derivatives are for bias_gelu
    torch.library.opcheck(getattr(torch.ops.triton_gelu, name), args)


@pytest.mark.parametrize("name", ["bias_gelu", "bias_gelu_backward", "bias_gelu_double_backward"])
@pytest.mark.parametrize("key", ["CPU", "CUDA", "XPU", "PrivateUse1"])
def test_the_operators_are_there_on_every_device(name: str, key: str) -> None:
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"triton_gelu::{name}", key)


def test_the_operators_compute_what_the_function_does(device: str) -> None:
    operators = torch.ops.triton_gelu
    x, bias = inputs(device)
    dy, v, vbias = torch.randn_like(x), torch.randn_like(x), torch.randn_like(bias)
    y = operators.bias_gelu(x, bias, 2, "tanh")
    assert_same(y, plain(x, bias))
    ours = torch.autograd.grad(y, (x, bias), dy.requires_grad_(), create_graph=True)
    theirs = torch.autograd.grad(plain(x, bias), (x, bias), dy, create_graph=True)
    assert_same(ours, theirs)
    for vs in ((v, vbias), (v, torch.zeros_like(vbias)), (torch.zeros_like(v), vbias)):
        second, expected = (torch.autograd.grad(g, (x, bias, dy), vs, retain_graph=True) for g in (ours, theirs))
        assert_same(second, expected, rtol=1e-3, atol=1e-4)


@ways("compiled")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracing_to_torchscript(way: str, device: str) -> None:
    x, bias = (t.detach() for t in inputs(device))
    layer = LinearGELU(8, 6, device=device)
    for function, args in ((lambda x: bias_gelu(x, bias), (x,)), (layer, (x,))):
        traced = torch.jit.trace(function, args)
        assert not {node.kind() for node in traced.graph.nodes()} & {"prim::PythonOp"}
        longer = torch.cat([x, x])
        torch.testing.assert_close(traced(longer), function(longer))
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
        torch.testing.assert_close(torch.jit.load(io.BytesIO(buffer.getvalue()))(x), function(x))


@ways("eager")
def test_fake_and_meta_tensors(way: str, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=False):
        for where in ("cpu", "meta", "cuda"):
            x, bias = inputs(where, torch.bfloat16)
            differentiable = where != "cuda" or torch.cuda.is_available()  # autograd asks the driver
            with torch.set_grad_enabled(differentiable):
                y = bias_gelu(x, bias)
            assert (y.shape, y.dtype, y.device.type) == (x.shape, x.dtype, where)
            if differentiable:
                dx, dbias = torch.autograd.grad(y.sum(), (x, bias))
                assert (dx.shape, dbias.shape) == (x.shape, bias.shape)


@ways("eager")
def test_a_default_device(way: str, device: str) -> None:
    with torch.device(device):
        args = inputs(device)
        ours = loss_and_gradients(bias_gelu, *args)
    assert_same(ours, loss_and_gradients(plain, *args))


class Tagged(Tensor):
    """A subclass that leaves everything to Tensor."""


class Wrapped(Tensor):
    """A subclass that knows the operators of PyTorch and no others."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.namespace in ("aten", "prim"), func
        unwrap = lambda t: t.inner if isinstance(t, Wrapped) else t  # noqa: E731
        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        return torch.utils._pytree.tree_map_only(Tensor, Wrapped, func(*args, **kwargs))


@ways("eager")
@pytest.mark.parametrize("subclass", [Tagged, Wrapped], ids=lambda subclass: subclass.__name__)
def test_tensor_subclasses(way: str, subclass: type[Tensor], device: str) -> None:
    x, bias = (t.detach() for t in inputs(device))
    wrap = Wrapped if subclass is Wrapped else lambda t: t.as_subclass(subclass)
    xs, biass = wrap(x).requires_grad_(), wrap(bias).requires_grad_()
    y = bias_gelu(xs, biass)
    assert type(y) is subclass
    y.square().sum().backward()
    unwrap = (lambda t: t.inner) if subclass is Wrapped else lambda t: t.as_subclass(Tensor)
    _, dx, dbias = loss_and_gradients(plain, x.requires_grad_(), bias.requires_grad_())
    assert_same((unwrap(xs.grad), unwrap(biass.grad)), (dx, dbias))


@ways("eager")
def test_modules_are_copied_pickled_saved_and_called_functionally(way: str, device: str) -> None:
    for layer in (GELU("none"), BiasGELU(8, approximate="sigmoid", device=device)):
        x, _ = inputs(device)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
            assert torch.equal(twin(x), layer(x))
        assert_same(functional_call(layer, dict(layer.named_parameters()), (x,)), layer(x))


@ways(*EAGER)
def test_threads(way: str, device: str) -> None:
    args = inputs(device)
    expected = loss_and_gradients(plain, *args)
    start = threading.Barrier(8)

    def call(_: int) -> list[Tensor]:
        start.wait()
        return loss_and_gradients(bias_gelu, *args)

    with ThreadPoolExecutor(8) as pool:
        for ours in pool.map(call, range(8)):
            assert_same(ours, expected)


def in_another_process(queue: Any, device: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    args = inputs(device)
    ours, theirs = loss_and_gradients(bias_gelu, *args), loss_and_gradients(plain, *args)
    queue.put(all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, theirs, strict=True)))


@ways("eager")
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            "fork", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA does not survive a fork")
        ),
        pytest.param("spawn", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_and_spawn_after_import(way: str, method: str, device: str) -> None:
    """From a new process: in this one autograd may have threads, and PyTorch refuses to fork those."""
    code = f"import test_compose; test_compose.fork_or_spawn({method!r}, {device!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=True, timeout=180)


def fork_or_spawn(method: str, device: str) -> None:
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=in_another_process, args=(queue, device))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert queue.get()


IMPORT = """
import sys, time, torch, triton
def touched(*_):
    raise AssertionError("the import asked for a GPU")
torch.cuda._lazy_init = torch._C._cuda_getDeviceCount = touched
type(triton.runtime.driver).active = property(touched)
start = time.process_time()
import triton_gelu
took = time.process_time() - start
assert not torch.cuda.is_initialized()
assert not {"torch._inductor", "torch._dynamo", "torch.distributed.tensor"} & set(sys.modules), sys.modules.keys()
print(took)
"""


@pytest.mark.alone
@ways("eager", slow=("eager",))
def test_the_import_is_quick_and_touches_no_gpu(way: str) -> None:
    keep = lambda name: name not in ("PYTHONDONTWRITEBYTECODE", "TRITON_INTERPRET")  # noqa: E731
    environment = {name: value for name, value in os.environ.items() if keep(name)}
    times = [float(subprocess.check_output([sys.executable, "-c", IMPORT], env=environment)) for _ in range(5)]
    assert min(times) < 0.25  # seconds of a processor


def test_the_table_in_the_documents_is_of_these_tests() -> None:
    assert TABLE.findall(DOCUMENT.read_text()) == [table()], "python tests/integration/ways.py"
