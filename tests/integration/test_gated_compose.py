"""bias_geglu and bias_gelu_mul inside the rest of PyTorch: compiled, exported, transformed, sharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_compose import assert_same, compiled, loss_and_gradients, summed
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint
from ways import RANKS, ways

from triton_gelu import GEGLU, MLP, bias_geglu, bias_gelu_mul
from triton_gelu.core.declare import sharding_rules
from triton_gelu.formulas import FORMULAS
from triton_gelu.ops.bias_geglu import BIAS_GEGLU
from triton_gelu.ops.bias_gelu_mul import BIAS_GELU_MUL

pytestmark = pytest.mark.kernels


def first(x: Tensor, bias: Tensor) -> Tensor:
    return bias_geglu(x, bias, activated="first")


def second(x: Tensor, bias: Tensor) -> Tensor:
    return bias_geglu(x, bias, activated="second", approximate="none")


def two(x: Tensor, bias: Tensor) -> Tensor:
    return bias_gelu_mul(*x.chunk(2, -1), *bias.chunk(2, -1), approximate="sigmoid")


def plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What a user of PyTorch would write instead."""
    approximate = {"first": "tanh", "second": "none", "two": "sigmoid"}[function.__name__]

    def written_out(x: Tensor, bias: Tensor) -> Tensor:
        u, w = (x + bias).chunk(2, -1)
        if function is second:
            u, w = w, u
        return (FORMULAS[approximate].standard(u) * w).to(x.dtype)

    return written_out


FUNCTIONS = pytest.mark.parametrize("function", [first, second, two], ids=lambda f: f.__name__)
WITHOUT = pytest.mark.parametrize("without", [False, True], ids=["kernels", "no kernels"])


@pytest.fixture(autouse=True)
def _backend(request: pytest.FixtureRequest) -> None:
    """As on a machine without Triton, where a test says so."""
    if hasattr(request.node, "callspec") and request.node.callspec.params.get("without"):
        request.getfixturevalue("without_kernels")


def inputs(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x, bias = torch.randn(3, 4, 8, device=device, dtype=dtype), torch.randn(8, device=device, dtype=dtype)
    return x.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@FUNCTIONS
def test_it_compiles_in_one_graph(function: Any, backend: str, dynamic: bool, device: str) -> None:
    call = compiled(lambda x, bias: 2 * function(x.sin(), bias), backend=backend, dynamic=dynamic)
    for length in (4, 5, 9):
        x, bias = inputs(device)
        x = torch.randn(3, length, 8, device=device, requires_grad=True)
        ours, theirs = (
            loss_and_gradients(call, x, bias),
            loss_and_gradients(lambda x, b: 2 * plain(function)(x.sin(), b), x, bias),
        )
        assert_same(ours, theirs)


@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
@pytest.mark.parametrize("gated", ["first", "second"])
def test_an_exported_graph_holds_standard_operators(gated: Any, strict: bool, device: str) -> None:
    layer = MLP(8, 6, gated=gated, device=device)
    x = inputs(device)[0].detach()
    sizes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(layer, (x,), dynamic_shapes=sizes, strict=strict)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith("aten.") or "getitem" in name for name in names), names
    longer = torch.randn(7, 4, 8, device=device)
    assert_same(program.module()(longer), layer(longer))


@FUNCTIONS
def test_tracing_to_torchscript_gives_standard_operators(function: Any, device: str) -> None:
    x, bias = (t.detach() for t in inputs(device))
    traced = torch.jit.trace(function, (x, bias))
    assert_same(traced(x.cos(), bias), function(x.cos(), bias))
    assert "triton_gelu::" not in str(traced.graph)


TRANSFORMS: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "grad": lambda f, x, b: grad(summed(f), (0, 1))(x, b),
    "jvp": lambda f, x, b: jvp(f, (x, b), (x.cos(), b.cos())),
    "vmap over x": lambda f, x, b: vmap(f, (1, None))(x, b),
    "vmap over bias": lambda f, x, b: vmap(f, (None, 0))(x, torch.stack([b, -b])),
    "vmap over both": lambda f, x, b: vmap(f, (1, 0), 1)(x, torch.stack([b, -b, b.cos(), b.sin()])),
    "jacrev": lambda f, x, b: jacrev(f, (0, 1))(x[0, :2], b),
    "jacfwd": lambda f, x, b: jacfwd(f, (0, 1))(x[0, :2], b),
    "hessian": lambda f, x, b: hessian(summed(f), (0, 1))(x[0, :2], b),
    "per-sample gradients": lambda f, x, b: vmap(grad(summed(f), (0, 1)), (0, None))(x, b),
    "functionalize": lambda f, x, b: torch.func.functionalize(f)(x, b),
}


@WITHOUT
@pytest.mark.parametrize("transform", TRANSFORMS)
@FUNCTIONS
def test_torch_func_looks_into_it(function: Any, transform: str, without: bool, device: str) -> None:
    x, bias = (t.detach() for t in inputs(device))
    assert_same(TRANSFORMS[transform](function, x, bias), TRANSFORMS[transform](plain(function), x, bias))


@FUNCTIONS
def test_forward_mode(function: Any, device: str) -> None:
    x, bias = (t.detach() for t in inputs(device))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, t.cos()) for t in (x, bias)]
        ours, theirs = (forward_ad.unpack_dual(f(*duals)).tangent for f in (function, plain(function)))
        assert_same(ours, theirs)


@WITHOUT
@FUNCTIONS
def test_third_derivatives(function: Any, without: bool, device: str) -> None:
    x, bias = (t.detach()[..., :4].double().requires_grad_() for t in inputs(device))

    def derivatives(function: Any) -> tuple[Tensor, ...]:
        value = function(x[0], bias)
        for _ in range(3):
            gradients = torch.autograd.grad(value.square().sum(), (x, bias), create_graph=True)
            value = torch.cat([g.flatten() for g in gradients])
        return gradients

    assert_same(derivatives(function), derivatives(plain(function)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", ["eager", "compiled"])
@pytest.mark.parametrize("layer", [MLP(8, 6, gated="first"), GEGLU(8, 6)], ids=lambda layer: type(layer).__name__)
def test_autocast(layer: nn.Module, way: str, dtype: torch.dtype, device: str) -> None:
    layer, x = layer.to(device), inputs(device)[0]
    call = compiled(layer) if way == "compiled" else layer
    parameters = [x, *layer.parameters()]
    with torch.autocast(device, dtype=dtype):
        y = call(x)
    assert y.dtype == dtype
    found = torch.autograd.grad(y.float().sum(), parameters)
    expected = torch.autograd.grad(layer(x).sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("way", ["eager", "reentrant", "compiled"])
@FUNCTIONS
def test_checkpoint(function: Any, way: str, device: str) -> None:
    def saved(x: Tensor, bias: Tensor) -> Tensor:
        return checkpoint(function, x, bias, use_reentrant=way == "reentrant")  # type: ignore[no-any-return]

    args = inputs(device)
    (compiled(saved) if way == "compiled" else saved)(*args).square().sum().backward()
    assert_same([t.grad for t in args], loss_and_gradients(plain(function), *args)[1:])


def test_dtensor_never_puts_the_halves_of_a_joined_tensor_on_different_ranks() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    x, bias, dy = torch.randn(3, 4, 8), torch.randn(8), torch.randn(3, 4, 4)
    forward, backward, _ = BIAS_GEGLU.levels
    whole, *cut = sharding_rules(forward, (x, bias, 2, "tanh", "first"), 2)
    assert whole == ([Replicate()], [Replicate(), Replicate(), None, None, None])
    assert cut == [([Shard(d)], [Shard(d), Replicate(), None, None, None]) for d in (0, 1)]
    _, *cut = sharding_rules(backward, (dy, x, bias, 2, "tanh", "first", [True, True]), 2)
    nothing = [None] * 4
    assert cut == [([Shard(d), Partial()], [Shard(d), Shard(d), Replicate(), *nothing]) for d in (0, 1)]


def test_dtensor_cuts_two_tensors_along_the_bias_too() -> None:
    from torch.distributed.tensor import Replicate, Shard

    x, bias = torch.randn(3, 8), torch.randn(8)
    _, rows, features = sharding_rules(BIAS_GELU_MUL.levels[0], (x, x, bias, None, 1, "tanh"), 1)
    assert rows == ([Shard(0)], [Shard(0), Shard(0), Replicate(), None, None, None])
    assert features == ([Shard(1)], [Shard(1), Shard(1), Shard(0), None, None, None])


@ways("distributed")
@pytest.mark.parametrize("along", [0, 1, 2])
def test_sharded_tensors_give_what_whole_ones_give(way: str, along: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (RANKS,))
    x, bias = inputs("cpu")
    other, other_bias = inputs("cpu")

    def joined(x: Tensor, bias: Tensor) -> Tensor:
        return bias_geglu(x, bias, activated="second")

    for function, tensors in ((joined, (x, bias)), (bias_gelu_mul, (x, other, bias, other_bias))):
        cut = [
            distribute_tensor(t.detach(), mesh, [Shard(along) if t.ndim == 3 else Replicate()]).requires_grad_()
            for t in tensors
        ]
        ours = function(*cut)
        found = torch.autograd.grad(ours.square().sum(), cut)
        theirs = function(*tensors)
        expected = torch.autograd.grad(theirs.square().sum(), tensors)
        assert_same(ours.full_tensor(), theirs)  # type: ignore[attr-defined]
        assert_same([each.full_tensor() for each in found], list(expected))  # type: ignore[attr-defined]


@ways("distributed")
def test_a_gated_layer_whose_features_are_sharded_is_right_or_refused(way: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (RANKS,))
    x = inputs("cpu")[0].detach()
    for layer, name in ((MLP(8, 6, gated="first"), "fc1"), (GEGLU(8, 6), "proj")):
        for parameter in layer.parameters():
            torch.distributed.broadcast(parameter.detach(), 0)
        expected = layer(x)
        with pytest.raises(ValueError, match="a gated GELU needs all 12 features of Linear, got 6"):
            parallelize_module(layer, mesh, {name: ColwiseParallel()})(x)
    layer = GEGLU(8, 6)
    for parameter in layer.parameters():
        torch.distributed.broadcast(parameter.detach(), 0)
    expected = layer(x)
    y = parallelize_module(layer, mesh, {"proj": ColwiseParallel(use_local_output=False)})(x)
    assert_same(y.full_tensor(), expected)


@FUNCTIONS
def test_fake_tensors_have_the_strides_of_real_ones(function: Any, device: str) -> None:
    from torch._subclasses import FakeTensorMode

    x, bias = (t.detach() for t in inputs(device))
    for each in (x, x.transpose(0, 1), x.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        with FakeTensorMode() as mode:
            fake = function(*(mode.from_tensor(t) for t in (each, bias)))
        real = function(each, bias)
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
