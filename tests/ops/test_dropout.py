"""dropout_p of bias_gelu, bias_geglu and bias_gelu_mul: one mask in every pass, drawn as PyTorch draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from truth import DTYPES, FORMULAS, assert_no_worse_than, spacing

from triton_gelu import bias_geglu, bias_gelu, bias_gelu_mul
from triton_gelu.core.dropout import rate, weight
from triton_gelu.core.run import dense_strides
from triton_gelu.ops.dropout import BIAS_GEGLU_DROPOUT, BIAS_GELU_DROPOUT, BIAS_GELU_MUL_DROPOUT

Function = Callable[..., Tensor]
FUNCTIONS: dict[str, tuple[Function, Callable[[tuple[int, ...], int], list[tuple[int, ...]]]]] = {
    "bias_gelu": (bias_gelu, lambda shape, dim: [shape, shape[dim:][:1]]),
    "bias_geglu": (
        lambda x, bias, **rest: bias_geglu(x, bias, activated="first", **rest),
        lambda shape, dim: [
            tuple(size * (1 + (d == dim)) for d, size in enumerate(shape)),
            (2 * shape[dim],),
        ],
    ),
    "bias_gelu_mul": (bias_gelu_mul, lambda shape, dim: [shape, shape, shape[dim:][:1], shape[dim:][:1]]),
}
OPERATORS = {
    "bias_gelu": BIAS_GELU_DROPOUT,
    "bias_geglu": BIAS_GEGLU_DROPOUT,
    "bias_gelu_mul": BIAS_GELU_MUL_DROPOUT,
}


def inputs(name: str, shape: tuple[int, ...], dim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(each, dtype=dtype).requires_grad_() for each in FUNCTIONS[name][1](shape, dim)]


def seeded(function: Function, *args: Any, seed: int = 1, **options: Any) -> Tensor:
    """The function with the generator in a given state, which is afterwards as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return function(*args, **options)


def mask_of(y: Tensor, dim: int, p: float, seed: int = 1) -> Tensor:
    """w of the result of `seeded`."""
    key = seeded(BIAS_GELU_DROPOUT.draw_seed, y, seed=seed)
    assert key is not None
    wide = torch.promote_types(y.dtype, torch.float32)
    return weight(key, y.shape, dim, dense_strides(y), rate(p, y.itemsize), wide)


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("shape", "dim"), [((3, 5), 1), ((2, 3, 4), 1)], ids=str)
def test_gradcheck_and_gradgradcheck_pass_where_the_seed_stays(
    shape: tuple[int, ...], dim: int, name: str, approximate: Any
) -> None:
    rest = (dim, approximate, "first") if name == "bias_geglu" else (dim, approximate)

    def function(*tensors: Tensor) -> Tensor:
        return OPERATORS[name].drop(torch.tensor(5), *tensors, *rest, 0.4)

    tensors = inputs(name, shape, dim)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_result_is_that_without_dropout_times_the_mask_and_so_is_dy(name: str, dtype: torch.dtype) -> None:
    function, tensors = FUNCTIONS[name][0], inputs(name, (60, 37), 1, dtype)
    y = seeded(function, *tensors, dropout_p=0.3)
    w = mask_of(y, 1, 0.3)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    truth = function(*exact)
    dy = torch.randn_like(y)
    rounding = 0.5 * spacing(truth * w, dtype)  # of one product more
    assert_no_worse_than((function(*tensors) * w).to(dtype), y, truth * w, slack=rounding)
    assert torch.equal(y == 0, truth.to(dtype) * w == 0)
    found = torch.autograd.grad(y, tensors, dy)
    expected = torch.autograd.grad(truth, exact, dy.double() * w)
    baseline = torch.autograd.grad(function(*tensors), tensors, (dy * w).to(dtype))
    for ours, theirs, true in zip(found, baseline, expected, strict=True):
        assert_no_worse_than(theirs, ours, true, slack=2.0**-20 * true.abs().max() if true.ndim == 1 else 0.0)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "columns first": lambda x: x.mT.contiguous().mT,
    "with gaps": lambda x: x.repeat(1, 1, 2)[..., : x.shape[-1]],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("dim", [1, 2])
def test_no_layout_of_dy_moves_the_mask(dim: int, x_layout: str, dy_layout: str) -> None:
    x = LAYOUTS[x_layout](torch.randn(4, 6, 21)).detach().requires_grad_()
    y = seeded(bias_gelu, x, torch.zeros(x.shape[dim]), dim=dim, dropout_p=0.5)
    (dx,) = torch.autograd.grad(y, x, LAYOUTS[dy_layout](torch.ones(4, 6, 21)), create_graph=True)
    assert torch.equal(dx == 0, y == 0)
    (d2x,) = torch.autograd.grad(dx.sum(), x)
    assert torch.equal(d2x == 0, y == 0)
    assert torch.equal(mask_of(y, dim, 0.5) == 0, y == 0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_is_drawn_and_nothing_differs_where_p_is_zero(name: str) -> None:
    function, tensors = FUNCTIONS[name][0], inputs(name, (4, 6), 1)
    before = torch.get_rng_state()
    y = function(*tensors, dropout_p=0.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(y, function(*tensors))
    assert y.grad_fn is not None
    assert y.grad_fn.name() == function(*tensors).grad_fn.name()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_is_zero_where_p_is_one(name: str) -> None:
    function, tensors = FUNCTIONS[name][0], inputs(name, (4, 6), 1)
    y = function(*tensors, dropout_p=1)
    assert not y.any()
    for gradient in torch.autograd.grad(y.sum(), tensors, create_graph=True):
        assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_probability_too_small_to_count_drops_nothing(dtype: torch.dtype) -> None:
    x = torch.randn(8, 16, dtype=dtype)
    assert torch.equal(bias_gelu(x, dropout_p=2.0**-40), bias_gelu(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_kernels_pytorchs_own_dropout_follows(name: str, without_kernels: None) -> None:
    function, tensors = FUNCTIONS[name][0], inputs(name, (4, 8), 1, torch.float32)
    y = seeded(function, *tensors, dropout_p=0.3)
    expected = seeded(F.dropout, function(*tensors), 0.3)
    assert torch.equal(y, expected)
    found, wanted = (torch.autograd.grad(each.square().sum(), tensors) for each in (y, expected))
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_the_mean_is_that_without_dropout() -> None:
    x = torch.randn(16)
    many = bias_gelu(x.expand(2**16, 16), dropout_p=0.3).double()
    y = bias_gelu(x).double()
    sigma = y.abs() * (0.3 / 0.7) ** 0.5 / 2**8
    assert ((many.mean(0) - y).abs() < 5 * sigma).all()


def test_nothing_is_saved_but_the_inputs_and_eight_bytes() -> None:
    saved: list[Tensor] = []
    x, bias = torch.randn(64, 64, requires_grad=True), torch.randn(64, requires_grad=True)

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        bias_gelu(x, bias, dropout_p=0.1)
    assert [tensor.data_ptr() for tensor in saved[:2]] == [x.data_ptr(), bias.data_ptr()]
    assert [(tensor.numel(), tensor.dtype) for tensor in saved[2:]] == [(1, torch.int64)]


def drops(x: Tensor) -> Tensor:
    return bias_gelu(x, torch.ones(x.shape[-1]), dropout_p=0.5)


def test_the_generator_of_pytorch_decides() -> None:
    x = torch.randn(8, 32)
    torch.manual_seed(3)
    first, second = drops(x), drops(x)
    torch.manual_seed(3)
    assert torch.equal(drops(x), first)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drops(x)
    assert torch.equal(drops(x), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_draws_the_same_again(use_reentrant: bool) -> None:
    x = torch.randn(8, 32, requires_grad=True)
    y = checkpoint(drops, x, use_reentrant=use_reentrant)
    assert isinstance(y, Tensor)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, y == 0)


def test_a_checkpoint_that_keeps_no_random_state_is_right_only_if_the_seed_is_drawn_before() -> None:
    def with_seed(x: Tensor, seed: Tensor | None) -> Tensor:
        return BIAS_GELU_DROPOUT.call(x, None, seed, -1, "tanh", 0.5)

    x = torch.randn(8, 32, requires_grad=True)
    seed = BIAS_GELU_DROPOUT.draw_seed(x)
    for function, right in ((lambda x: with_seed(x, seed), True), (drops, False)):
        y = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(y, Tensor)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(dx == 0, y == 0) == right


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_function_drops_the_same_in_both_passes_and_other_elements_each_time(backend: str) -> None:
    x = torch.randn(8, 40, requires_grad=True)

    for function in (drops, lambda x: checkpoint(drops, x, use_reentrant=False)):
        compiled = torch.compile(function, fullgraph=True, backend=backend)
        masks = []
        for _ in range(3):
            y = compiled(x)
            (dx,) = torch.autograd.grad(y.sum(), x)
            assert torch.equal(dx == 0, y == 0)
            masks.append(y == 0)
            assert 0.3 < masks[-1].double().mean().item() < 0.7
        assert not torch.equal(masks[0], masks[1])
        assert not torch.equal(masks[1], masks[2])


def test_a_compiled_function_drops_what_eager_mode_drops_with_the_same_seed() -> None:
    def with_seed(x: Tensor, seed: Tensor | None) -> Tensor:
        return BIAS_GELU_DROPOUT.call(x, None, seed, -1, "tanh", 0.5)

    x, seed = torch.randn(8, 40), torch.tensor(11)
    compiled = torch.compile(with_seed, fullgraph=True)
    assert torch.equal(compiled(x, seed) == 0, with_seed(x, seed) == 0)


def test_one_compiled_graph_serves_all_sizes() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(drops, fullgraph=True, backend=counter, dynamic=True)
    for rows in (3, 8, 17):
        x = torch.randn(rows, 40, requires_grad=True)
        y = compiled(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(dx == 0, y == 0)
    assert counter.frame_count == 1


def test_vmap_asks_for_randomness_as_it_does_for_dropout() -> None:
    x = torch.randn(3, 8, 32)
    for function in (drops, lambda x: F.dropout(x, 0.5)):
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(function)(x)
    same = torch.vmap(drops, randomness="same")(x) == 0
    assert torch.equal(same[0], same[1])
    different = torch.vmap(drops, randomness="different")(x) == 0
    assert not torch.equal(different[0], different[1])

    def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        dx, y = torch.func.grad_and_value(lambda x: (drops(x).sum(), drops(x))[0])(x)
        return dx, y

    dx, _ = torch.vmap(gradient, randomness="different")(x)
    assert 0.3 < (dx == 0).double().mean().item() < 0.7


def test_batched_gradients_have_the_mask_of_the_forward_pass() -> None:
    x = torch.randn(8, 32, requires_grad=True)
    y = drops(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones(2, 8, 32), is_grads_batched=True)
    assert torch.equal(dx[0] == 0, y == 0)
    assert torch.equal(dx[0], dx[1])


def test_forward_mode_has_the_mask_too() -> None:
    x = torch.randn(8, 32)
    y, dy = torch.func.jvp(drops, (x,), (torch.ones_like(x),))
    assert torch.equal(dy == 0, y == 0)


def test_an_exported_graph_holds_pytorchs_dropout() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return drops(x)

    exported = torch.export.export(Module(), (torch.randn(64, 32),))
    targets = {str(node.target) for node in exported.graph.nodes}
    assert "aten.dropout.default" in targets
    assert not any("triton_gelu" in target for target in targets)
    y = exported.module()(torch.randn(64, 32))
    assert 0.4 < (y == 0).double().mean().item() < 0.6


def test_a_dtensor_is_refused_since_its_shards_would_share_a_mask() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        x = distribute_tensor(torch.randn(4, 8), init_device_mesh("cpu", (1,)), [Shard(0)])
        with pytest.raises(NotImplementedError, match="dropout_p must be 0 for a DTensor"):
            bias_gelu(x, dropout_p=0.1)
        bias_gelu(x, dropout_p=0.0)
    finally:
        torch.distributed.destroy_process_group()


X = torch.randn(4, 8)


@pytest.mark.parametrize(
    ("dropout_p", "error", "message"),
    [
        (-0.1, ValueError, "dropout_p must be between 0 and 1, got -0.1"),
        (1.1, ValueError, "dropout_p must be between 0 and 1, got 1.1"),
        (float("nan"), ValueError, "dropout_p must be between 0 and 1, got nan"),
        ("0.1", TypeError, "dropout_p must be a float, got str"),
        (None, TypeError, "dropout_p must be a float, got NoneType"),
        (True, TypeError, "dropout_p must be a float, got bool"),
    ],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_error_names_dropout_p_and_what_came(name: str, dropout_p: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        FUNCTIONS[name][0](*inputs(name, (4, 8), 1), dropout_p=dropout_p)


def test_errors_of_other_arguments_are_those_without_dropout() -> None:
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
        bias_gelu([1.0], dropout_p=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bias must have shape \(8,\)"):
        bias_gelu(X, torch.zeros(4), dropout_p=0.1)


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), ()])
def test_empty_tensors_and_numbers_go_through(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, requires_grad=True)
    y = bias_gelu(x, dropout_p=0.5)
    y.sum().backward()
    assert y.shape == shape
    assert x.grad is not None
    assert torch.equal(x.grad == 0, y == 0)


PLACES: dict[str, tuple[Callable[[], Tensor], int]] = {
    "a dimension of one element": (lambda: torch.randn(4, 1, 11), 1),
    "images": (lambda: torch.randn(2, 3, 3, 5), 1),
    "images, channels last": (lambda: torch.randn(2, 7, 3, 5).contiguous(memory_format=torch.channels_last), 1),
    "one column": (lambda: torch.randn(5, 1), 1),
    "transposed": (lambda: torch.randn(9, 33).t(), 0),
    "permuted": (lambda: torch.randn(3, 4, 10).permute(1, 0, 2), 2),
}


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layout", PLACES)
def test_kernels_drop_in_every_layout_what_plain_pytorch_drops(layout: str, with_bias: bool, device: str) -> None:
    make, dim = PLACES[layout]
    x, seed = make().to(device), torch.tensor(99, device=device)
    bias = torch.randn(x.shape[dim], device=device) if with_bias else None
    y = BIAS_GELU_DROPOUT.call(x, bias, seed, dim, "tanh", 0.5)
    assert torch.equal(y == 0, BIAS_GELU_DROPOUT.plain.forward(x, bias, seed, dim, "tanh", 0.5) == 0)
