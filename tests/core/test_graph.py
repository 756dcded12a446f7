"""Compiled graphs for a GPU: what they hold, made without one. Kernels are in them where nothing is beside them.

A recorded plan gives what a launched one gives: there, its nodes are launched, not recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triton_gelu import bias_gelu, bias_gelu_transpose
from triton_gelu.core import compat_torch, graph
from triton_gelu.core import op as op_module
from triton_gelu.core.dispatch import Support
from triton_gelu.core.op import Op
from triton_gelu.core.plan import Launch
from triton_gelu.core.targets import TARGETS
from triton_gelu.ops.bias_geglu import BIAS_GEGLU
from triton_gelu.ops.bias_gelu import BIAS_GELU
from triton_gelu.ops.bias_gelu_mul import BIAS_GELU_MUL
from triton_gelu.ops.bias_gelu_transpose import BIAS_GELU_TRANSPOSE
from triton_gelu.ops.gelu_after_bias import GELU_AFTER_BIAS

SHAPES = [((300, 20), 1), ((2, 7, 33), 1), ((5,), 0), ((0, 4), 1)]


@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("op", [BIAS_GELU, GELU_AFTER_BIAS], ids=lambda op: op.name)
def test_a_recorded_plan_gives_what_a_launched_one_gives(
    op: Op, shape: tuple[int, ...], dim: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(kernel: Any, planned: Launch, tensors: Sequence[Tensor | None]) -> None:
        kernel[planned.grid](*tensors, *planned.integers, **dict(planned.constants), **planned.options)

    monkeypatch.setattr(graph, "_launch", launch)
    monkeypatch.setattr(graph, "stands_alone", lambda level, given: True)
    assert op.recorded is not None
    x, dy, bias = (torch.randn(size, device=device) for size in (shape, shape, shape[dim]))
    for needs in ((True, True), (True, False), (False, True)):
        recorded = op.recorded.backward(dy, x, bias, dim, "tanh", list(needs))
        launched = op.backward(dy, x, bias, dim, "tanh", needs)
        for one, other in zip(recorded, launched, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "dim"), [((300, 20), 1), ((2, 6, 33), 1), ((6,), 0), ((0, 4), 1)], ids=str)
@pytest.mark.parametrize("op", [BIAS_GEGLU, BIAS_GELU_MUL], ids=lambda op: op.name)
def test_a_recorded_plan_of_a_gated_gelu_gives_what_a_launched_one_gives(
    op: Op, shape: tuple[int, ...], dim: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(kernel: Any, planned: Launch, tensors: Sequence[Tensor | None]) -> None:
        kernel[planned.grid](*tensors, *planned.integers, **dict(planned.constants), **planned.options)

    monkeypatch.setattr(graph, "_launch", launch)
    monkeypatch.setattr(graph, "stands_alone", lambda level, given: True)
    assert op.recorded is not None
    x, other, bias, other_bias = (torch.randn(size, device=device) for size in (shape, shape, shape[dim], shape[dim]))
    inputs: tuple[Tensor, ...] = (x, other, bias, other_bias)
    options: tuple[Any, ...] = (dim, "tanh")
    if op is BIAS_GEGLU:
        inputs, options = (x, bias), (dim, "tanh", "second")
    dy = torch.randn_like(op.forward(*inputs, *options))
    for needs in ((True,) * len(inputs), (True, False) * (len(inputs) // 2), (False, True) * (len(inputs) // 2)):
        recorded = op.recorded.backward(dy, *inputs, *options, list(needs))
        launched = op.backward(dy, *inputs, *options, needs)
        for one, two in zip(recorded, launched, strict=True):
            assert (one is None) == (two is None)
            if one is not None and two is not None:
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_bias_that_is_not_there_is_none_even_if_it_is_asked_for(device: str) -> None:
    assert BIAS_GELU.recorded is not None
    x = torch.randn(6, 8, device=device)
    dx, dbias = BIAS_GELU.recorded.backward(x, x, None, 1, "tanh", [True, True])
    assert dx is not None
    assert dbias is None


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Compilers find a GPU behind CPU tensors; the names of the kernels that they record, which are not launched."""
    for op in (BIAS_GELU, GELU_AFTER_BIAS, BIAS_GELU_TRANSPOSE):
        op.register_decompositions()
    kernels: list[str] = []
    monkeypatch.setattr(op_module, "graph_support", lambda x: Support.yes("a test says so"))
    monkeypatch.setattr(graph, "device_target", lambda device: TARGETS["h100"])
    monkeypatch.setattr(graph, "_launch", lambda kernel, planned, tensors: kernels.append(planned.kernel))
    torch.compiler.reset()
    yield kernels
    torch.compiler.reset()


HIDDEN = 64
W1, W2, B = (torch.randn(*size).requires_grad_() for size in ((HIDDEN, 8), (8, HIDDEN), (HIDDEN,)))
KERNEL, CHANNELS = torch.randn(16, 4, 3, requires_grad=True), torch.randn(16, requires_grad=True)
ROWS, SEQUENCES, WAVES = (6, 8), (2, 3, 8), (2, 4, 9)
KEYS: dict[str, Any] = {"approximate": "none"}


def first(x: Tensor) -> Tensor:
    return F.linear(x, W1)


def second(y: Tensor) -> Tensor:
    return F.linear(y, W2)


def mlp(x: Tensor) -> Tensor:
    return second(bias_gelu(first(x), B, **KEYS))


def with_its_input(x: Tensor) -> Tensor:
    h = first(x)
    return bias_gelu(h, B) + h


def twice(x: Tensor) -> tuple[Tensor, Tensor]:
    y = bias_gelu(first(x), B)
    return y.sin(), second(y)


def after_its_bias(x: Tensor) -> Tensor:
    return second(GELU_AFTER_BIAS.call(F.linear(x, W1, B.detach()), B, x.ndim - 1, "tanh"))


ALONE: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    "between products": (mlp, ROWS),
    "between products, of sequences": (mlp, SEQUENCES),
    "x from outside": (lambda x: bias_gelu(x, B[:8]), ROWS),
    "what comes next is added": (lambda x: bias_gelu(first(x), B) + 1, ROWS),
    "after a convolution": (lambda x: bias_gelu(F.conv1d(x, KERNEL), CHANNELS, dim=1), WAVES),
    "between convolutions": (
        lambda x: F.conv1d(bias_gelu(F.conv1d(x, KERNEL), CHANNELS, dim=1), torch.ones(2, 16, 3)),
        WAVES,
    ),
    "after a layer with its bias": (after_its_bias, ROWS),
}
BESIDE: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    "no bias": (lambda x: second(bias_gelu(first(x))), ROWS),
    "dropout": (lambda x: second(F.dropout(bias_gelu(first(x), B))), ROWS),
    "a gate": (lambda x: bias_gelu(first(x), B) * first(x + 1), ROWS),
    "a cast before": (lambda x: bias_gelu(first(x).bfloat16(), B), ROWS),
    "a norm before": (lambda x: bias_gelu(F.layer_norm(first(x), (HIDDEN,)), B), ROWS),
    "a norm after": (lambda x: second(F.layer_norm(bias_gelu(first(x), B), (HIDDEN,))), ROWS),
    "a residual of its input": (with_its_input, ROWS),
    "two consumers": (twice, ROWS),
    "a loss": (lambda x: bias_gelu(first(x), B).sum(), ROWS),
    "a product that wants it transposed": (lambda x: F.linear(bias_gelu(first(x), B).mT, torch.ones(5, 3)), SEQUENCES),
    "transposed, with a position": (
        lambda x: bias_gelu_transpose(F.conv1d(x, KERNEL), CHANNELS, torch.ones(7, 16)) @ torch.ones(16, 3),
        WAVES,
    ),
    "sizes that depend on data": (lambda x: mlp(x[x.sum(-1) > 0]), ROWS),
    "sizes that depend on data, x itself": (lambda x: bias_gelu(first(x)[x.sum(-1) > 0], B), ROWS),
}


def compiled(function: Callable[..., Any], shape: tuple[int, ...], **options: Any) -> list[Any]:
    """The graphs of both directions, made of a function; they are not run."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import default_partition

    graphs: list[Any] = []

    class Made(Exception):
        pass

    def partition(joint: Any, inputs: Any, **rest: Any) -> Any:
        forward, backward = default_partition(joint, inputs, **rest)
        graphs.extend([forward, backward])
        raise Made

    x = torch.randn(*shape, requires_grad=True)
    run = torch.compile(
        function, fullgraph=True, backend=aot_autograd(fw_compiler=None, partition_fn=partition), **options
    )
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True), pytest.raises(Exception, match="Made"):
        run(x)
    return graphs


@pytest.mark.parametrize("dynamic", [False, True], ids=["sizes known", "sizes not known"])
@pytest.mark.parametrize("scene", ALONE)
def test_a_graph_holds_the_kernels_backward_pass_where_nothing_is_beside_it(
    scene: str, dynamic: bool, launched: list[str]
) -> None:
    compiled(*ALONE[scene], dynamic=dynamic)
    assert set(launched) == {"bias_gelu_backward"}  # PyTorch 2.9 traces it twice where sizes are not known


@pytest.mark.parametrize("scene", BESIDE)
def test_a_graph_holds_ordinary_operations_where_something_is_beside_them(scene: str, launched: list[str]) -> None:
    for made in compiled(*BESIDE[scene]):
        calls = {str(node.target) for node in made.graph.nodes if node.op == "call_function"}
        assert not {call for call in calls if call.startswith(("triton", "aten.gelu", "aten.tanh"))}
    assert launched == []


@pytest.mark.parametrize("name", ["max_autotune", "max_autotune_gemm"])
def test_a_compiler_that_may_fuse_products_is_given_ordinary_operations(name: str, launched: list[str]) -> None:
    import torch._inductor.config

    with torch._inductor.config.patch({name: True}):
        compiled(mlp, ROWS)
    assert launched == []


@pytest.mark.parametrize("name", ["get_proxy_slot", "get_proxy_mode"])
def test_without_the_private_names_a_graph_holds_ordinary_operations(name: str, launched: list[str]) -> None:
    import torch.fx.experimental.proxy_tensor as names

    real = getattr(names, name)

    def gone(*args: Any) -> Any:  # for us, not for PyTorch
        if sys._getframe(1).f_code is compat_torch._node.__code__:
            raise AttributeError(name)
        return real(*args)

    with mock.patch.object(names, name, gone):
        compiled(mlp, ROWS)
    assert launched == []


def test_outside_of_a_compiler_nobody_knows_where_a_tensor_is_from() -> None:
    assert compat_torch.origin(torch.ones(3)) is None
