"""bias_gelu and gelu: values, gradients, layouts, errors."""

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from truth import (
    DTYPES,
    FORMULAS,
    assert_no_worse_than,
    broadcast,
    gelu,
    one_pass,
    summation_slack,
    torch_gelu,
    true_pass,
)

import triton_gelu
from perf.layouts import GRADIENTS, LAYOUTS, incoming, laid_out
from triton_gelu import bias_gelu


def check(x: Tensor, bias: Tensor | None, dy: Tensor, dim: int, approximate: str) -> None:
    """Value and gradients are no further from the truth than those of the same thing written in PyTorch."""
    ours = one_pass(lambda x, b: bias_gelu(x, b, dim=dim, approximate=approximate), x, bias, dy)
    theirs = one_pass(lambda x, b: torch_gelu(x + broadcast(b, x, dim), approximate).to(x.dtype), x, bias, dy)
    truth = true_pass(x, bias, dy, dim, approximate)
    slack = summation_slack(truth[1], dim)
    for our, their, true, more in zip(ours, theirs, truth, (0.0, 0.0, slack), strict=True):
        if our is not None:
            assert_no_worse_than(their, our, true, more)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_x_and_of_the_incoming_gradient_gives_right_values(
    layout: str, gradient: str, device: str
) -> None:
    x, dim = laid_out(layout, device)
    check(x, torch.randn(x.shape[dim], device=device), incoming(gradient, x), dim, "tanh")


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape_dim", [((3, 1501), 1), ((3, 9, 40), 1), ((9, 40), 0), ((3, 9, 40), None)], ids=str)
def test_every_formula_and_type_is_right_along_every_dimension(
    shape_dim: tuple[tuple[int, ...], int | None], dtype: torch.dtype, approximate: str, device: str
) -> None:
    shape, dim = shape_dim
    x = (3 * torch.randn(shape, device=device)).to(dtype)
    bias = None if dim is None else torch.randn(shape[dim], device=device).to(dtype)
    check(x, bias, torch.randn(shape, device=device).to(dtype), dim or 0, approximate)


@pytest.mark.parametrize("width", [1, 7, 1000, 1501])
def test_odd_widths_are_right_in_16_bit(width: int, device: str) -> None:
    x = torch.randn(5, width, device=device, dtype=torch.bfloat16)
    check(x, torch.randn(width, device=device, dtype=torch.bfloat16), torch.randn_like(x), -1, "tanh")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias_dtype", [*DTYPES, torch.float64], ids=str)
def test_bias_and_x_may_differ_in_type(dtype: torch.dtype, bias_dtype: torch.dtype, device: str) -> None:
    x = torch.randn(40, 64, device=device).to(dtype)
    bias = torch.randn(64, device=device).to(bias_dtype)
    y, dx, dbias = one_pass(bias_gelu, x, bias, torch.randn_like(x))
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    assert dbias is not None
    assert dbias.dtype == bias_dtype
    torch.testing.assert_close(y.double(), gelu(x.double() + bias.double(), "tanh"), rtol=2**-7, atol=1e-6)


def test_the_founding_tensor_agrees_with_the_founding_formula(device: str) -> None:
    x = torch.randn(32, 10, 64, device=device)
    y = triton_gelu.GELU()(x)
    u = x.double()
    formula = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    assert y.shape == x.shape
    torch.testing.assert_close(y.double(), formula, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_has_the_memory_format_of_a_pointwise_operator(layout: str, device: str) -> None:
    x, dim = laid_out(layout, device)
    y = bias_gelu(x, torch.zeros(x.shape[dim], device=device), dim=dim)
    assert y.stride() == torch.nn.functional.gelu(x).stride()


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True), (False, False)], ids=str)
def test_only_the_gradients_asked_for_are_computed(needs: tuple[bool, bool], device: str) -> None:
    x = torch.randn(6, 64, device=device, requires_grad=needs[0])
    bias = torch.randn(64, device=device, requires_grad=needs[1])
    y = bias_gelu(x, bias)
    assert y.requires_grad == any(needs)
    if any(needs):
        y.sum().backward()
    assert (x.grad is not None, bias.grad is not None) == needs


def test_two_runs_give_identical_bits(device: str) -> None:
    x, bias = torch.randn(3000, 64, device=device), torch.randn(64, device=device)
    dy = torch.randn_like(x)
    for first, second in zip(one_pass(bias_gelu, x, bias, dy), one_pass(bias_gelu, x, bias, dy), strict=True):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(0,), (0, 64), (5, 0), (2, 0, 3)], ids=str)
def test_empty_tensors_stay_empty_and_have_zero_gradients(shape: tuple[int, ...], device: str) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    bias = torch.randn(shape[-1], device=device, requires_grad=True)
    y = bias_gelu(x, bias)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape
    assert bias.grad is not None
    assert torch.equal(bias.grad, torch.zeros_like(bias))


def test_inputs_are_left_as_they_were(device: str) -> None:
    x, bias = torch.randn(6, 64, device=device), torch.randn(64, device=device)
    copies = x.clone(), bias.clone()
    one_pass(bias_gelu, x, bias, torch.randn_like(x))
    assert torch.equal(x, copies[0])
    assert torch.equal(bias, copies[1])


def test_only_x_and_bias_are_saved_for_the_backward_pass(device: str) -> None:
    x, bias = torch.randn(6, 64, device=device, requires_grad=True), torch.randn(64, device=device, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        bias_gelu(x, bias)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), bias.data_ptr()}


def test_writing_into_x_before_the_backward_pass_raises(device: str) -> None:
    x = torch.randn(6, 64, device=device, requires_grad=True).clone()
    y = bias_gelu(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("shape_dim", [((3, 5), 1), ((2, 3, 4), 1), ((4,), 0)], ids=str)
def test_gradcheck_and_gradgradcheck_pass_in_double(shape_dim: tuple[tuple[int, ...], int], approximate: str) -> None:
    shape, dim = shape_dim
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(shape[dim], dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, bias: Tensor) -> Tensor:
        return bias_gelu(x, bias, dim=dim, approximate=approximate)

    assert torch.autograd.gradcheck(function, (x, bias))
    assert torch.autograd.gradgradcheck(function, (x, bias))


@pytest.mark.parametrize("approximate", FORMULAS)
def test_a_second_derivative_through_the_kernels_is_right(approximate: str, device: str) -> None:
    x = torch.randn(4, 8, device=device, requires_grad=True)
    bias = torch.randn(8, device=device, requires_grad=True)
    doubles = [t.detach().double().requires_grad_() for t in (x, bias)]

    def second(x: Tensor, bias: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        dx, dbias = torch.autograd.grad(y.sum(), (x, bias), create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dbias.square().sum(), (x, bias))

    ours = second(x, bias, bias_gelu(x, bias, approximate=approximate))
    truth = second(*doubles, torch_gelu(doubles[0] + doubles[1], approximate))
    for our, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(our.double(), true, rtol=1e-5, atol=1e-5)


def test_a_negated_view_is_read_as_what_it_stands_for(device: str) -> None:
    x = torch.randn(4, 8, dtype=torch.complex64, device=device).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(bias_gelu(x), bias_gelu(x.clone()))


@pytest.mark.parametrize("device_type", ["meta"])
def test_shapes_and_types_can_be_asked_for_without_data(device_type: str) -> None:
    x = torch.empty(4, 8, dtype=torch.bfloat16, device=device_type)
    y = bias_gelu(x, torch.empty(8, device=device_type))
    assert (y.shape, y.dtype, y.device.type) == (x.shape, x.dtype, device_type)


def test_a_tensor_without_dimensions_is_one_number(device: str) -> None:
    x = torch.tensor(1.5, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(triton_gelu.gelu(x), x)
    torch.testing.assert_close(triton_gelu.gelu(x), torch_gelu(x, "tanh"))
    torch.testing.assert_close(dx, torch.autograd.grad(torch_gelu(x, "tanh"), x)[0])
    vector = torch.randn(5, device=device)
    slopes = torch.vmap(torch.func.grad(triton_gelu.gelu))(vector)
    torch.testing.assert_close(slopes, torch.vmap(torch.func.grad(lambda x: torch_gelu(x, "tanh")))(vector))


@pytest.mark.parametrize("shape", [(5,), (0,), (0, 1)], ids=str)
@pytest.mark.parametrize("mode", [nullcontext, lambda: FlopCounterMode(display=False)], ids=["", "in a mode"])
def test_where_there_is_nothing_to_add_up_both_gradients_are_tensors_of_their_own(
    shape: tuple[int, ...], mode: Callable[[], AbstractContextManager[object]], device: str
) -> None:
    x, bias = (torch.randn(size, device=device, requires_grad=True) for size in (shape, shape[:1]))
    with mode():
        dx, dbias = torch.autograd.grad(bias_gelu(x, bias, dim=0).sum(), (x, bias))
    theirs = torch.autograd.grad(torch_gelu(x + (bias if len(shape) == 1 else bias[:, None]), "tanh").sum(), (x, bias))
    torch.testing.assert_close((dx, dbias), theirs)
    assert not dx.numel() or dx.data_ptr() != dbias.data_ptr()


def test_a_bias_learns_from_a_tensor_of_inference_mode(device: str) -> None:
    with torch.inference_mode():
        x = torch.randn(3, 8, device=device)
    bias = torch.randn(8, device=device, requires_grad=True)
    ours, theirs = bias_gelu(x, bias), torch_gelu(x + bias, "tanh")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), bias)[0] for y in (ours, theirs)))


def test_functionalize_looks_into_it(device: str) -> None:
    x, bias = torch.randn(3, 8, device=device), torch.randn(8, device=device)
    torch.testing.assert_close(torch.func.functionalize(bias_gelu)(x, bias), torch_gelu(x + bias, "tanh"))


X = torch.randn(4, 8)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nested tensors are a prototype
    NESTED = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])
ERRORS = {
    "a list": (([1.0],), {}, TypeError, "x must be a torch.Tensor, got list"),
    "nothing": ((None,), {}, TypeError, "x must be a torch.Tensor, got NoneType"),
    "a bias for a number": ((torch.tensor(1.0), torch.zeros(1)), {}, ValueError, "at least one dimension for bias"),
    "a nested tensor": ((NESTED,), {}, TypeError, r"a dense tensor, got a nested tensor: call unbind\(\)"),
    "integers": ((torch.ones(3, dtype=torch.int32),), {}, TypeError, "x must have .*float16.* got torch.int32"),
    "booleans": ((torch.ones(3, dtype=torch.bool),), {}, TypeError, "got torch.bool"),
    "complex numbers": ((torch.ones(3, dtype=torch.complex64),), {}, TypeError, "got torch.complex64"),
    "fp8": ((torch.ones(3).to(torch.float8_e4m3fn),), {}, TypeError, "got torch.float8_e4m3fn"),
    "a sparse tensor": ((X.to_sparse(),), {}, TypeError, "x must be a dense .* got layout torch.sparse_coo"),
    "a quantised tensor": ((torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),), {}, TypeError, "got torch.qint8"),
    "an unknown formula": ((X,), {"approximate": "erf"}, ValueError, f"{', '.join(map(repr, FORMULAS))}, got 'erf'"),
    "a formula that is no word": ((X,), {"approximate": True}, ValueError, "got True"),
    "a formula that can't be hashed": ((X,), {"approximate": ["tanh"]}, ValueError, r"got \['tanh'\]"),
    "a bias that is a number": ((X, 1.0), {}, TypeError, "bias must be a torch.Tensor or None, got float"),
    "a bias of the wrong length": ((X, torch.zeros(4)), {}, ValueError, r"shape \(8,\).*dim 1, got shape \(4,\)"),
    "a bias of two dimensions": ((X, torch.zeros(1, 8)), {}, ValueError, r"got shape \(1, 8\)"),
    "a bias of integers": ((X, torch.zeros(8, dtype=torch.int64)), {}, TypeError, "bias must have .* got torch.int64"),
    "a bias on another device": ((X, torch.zeros(8, device="meta")), {}, ValueError, "x's device, cpu, got meta"),
    "a dim that is too large": ((X,), {"dim": 2}, ValueError, r"dim must be in \[-2, 1\] .* got 2"),
    "a dim that is too small": ((X,), {"dim": -3}, ValueError, "got -3"),
    "a dim that is a float": ((X,), {"dim": 1.0}, TypeError, "dim must be an int, got float"),
    "a dim that is a bool": ((X,), {"dim": True}, TypeError, "dim must be an int, got bool"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("what", ERRORS)
def test_an_error_names_the_argument_and_what_came_and_was_expected(what: str) -> None:
    args, kwargs, error, message = ERRORS[what]
    with pytest.raises(error, match=message):
        bias_gelu(*args, **kwargs)


def test_an_argument_that_equals_a_known_one_is_still_checked() -> None:
    bias_gelu(X, torch.zeros(8), dim=1)
    for dim in (True, 1.0):
        with pytest.raises(TypeError, match="dim must be an int"):
            bias_gelu(X, torch.zeros(8), dim=dim)
