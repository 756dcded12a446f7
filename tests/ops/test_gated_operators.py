"""bias_geglu and bias_gelu_mul: values, gradients, layouts, errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_bias_gelu import incoming
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from truth import (
    DTYPES,
    FORMULAS,
    assert_no_worse_than,
    broadcast,
    gelu,
    one_pass,
    spacing,
    summation_slack,
    torch_gelu,
)

from triton_gelu import bias_geglu, bias_gelu_mul
from triton_gelu.core.op import Op
from triton_gelu.ops.bias_geglu import BIAS_GEGLU
from triton_gelu.ops.bias_gelu_mul import BIAS_GELU_MUL

LAYOUTS: dict[str, Callable[[], tuple[Tensor, int]]] = {
    "a Linear's output": lambda: (torch.randn(3, 7, 1000), 2),
    "a width that is not aligned": lambda: (torch.randn(9, 1002), 1),
    "a convolution's output": lambda: (torch.randn(3, 6, 1501), 1),
    "a bias along the first dimension": lambda: (torch.randn(8, 700), 0),
    "a transposed matrix": lambda: (torch.randn(700, 8).t(), 0),
    "an image": lambda: (torch.randn(2, 6, 29, 13), 1),
    "a channels-last image": lambda: (torch.randn(2, 6, 9, 13).contiguous(memory_format=torch.channels_last), 1),
    "a slice of the sequence": lambda: (torch.randn(3, 9, 1000)[:, 1:8], -1),
    "a chunk of the features": lambda: (torch.randn(3, 7, 2000).chunk(2, -1)[1], -1),
    "a chunk of the channels": lambda: (torch.randn(3, 16, 300)[:, :8, 1:], 1),
    "columns with gaps": lambda: (torch.randn(3, 7, 1000)[..., ::2], -1),
    "an expanded tensor": lambda: (torch.randn(7, 1000).expand(3, 7, 1000), -1),
    "a permuted tensor": lambda: (torch.randn(4, 5, 6, 17).permute(2, 0, 3, 1), 1),
    "a half of one element": lambda: (torch.randn(4, 2, 700), 1),
    "two elements": lambda: (torch.ones(2), 0),
    "many rows": lambda: (torch.randn(4000, 6), -1),
    "many batches of a few positions": lambda: (torch.randn(12, 30, 2), 1),
}

FORMS = ("first", "second", "two tensors")
"""Which half of x goes through GELU, or its halves as two tensors, of which the first does."""


def gated(form: str, x: Tensor, bias: Tensor | None, dim: int, approximate: Any = "tanh") -> Tensor:
    """One of the operators on the halves of x + bias."""
    if form == "two tensors":
        biases = (None, None) if bias is None else bias.chunk(2)
        return bias_gelu_mul(*x.chunk(2, dim), *biases, dim=dim, approximate=approximate)
    return bias_geglu(x, bias, activated=form, dim=dim, approximate=approximate)  # type: ignore[arg-type]


def plain(form: str, x: Tensor, bias: Tensor | None, dim: int, approximate: str = "tanh") -> Tensor:
    """The same as a user of PyTorch would write it."""
    u, w = (x + broadcast(bias, x, dim)).chunk(2, dim)
    if form == "second":
        u, w = w, u
    return (torch_gelu(u, approximate) * w).to(x.dtype)


def check(form: str, x: Tensor, bias: Tensor | None, dy: Tensor, dim: int, approximate: str) -> None:
    """Value and gradients are no further from the truth than those of the same thing written in PyTorch."""
    ours = one_pass(lambda x, b: gated(form, x, b, dim, approximate), x, bias, dy)
    theirs = one_pass(lambda x, b: plain(form, x, b, dim, approximate), x, bias, dy)
    true_x, true_bias = x.double(), None if bias is None else bias.double()
    u, w = (true_x + broadcast(true_bias, x, dim)).chunk(2, dim)
    if form == "second":
        u, w = w, u
    true_dx = dy.double() * w * gelu(u, approximate, order=1), dy.double() * gelu(u, approximate)
    dx = torch.cat(true_dx[::-1] if form == "second" else true_dx, dim)
    others = [d for d in range(x.ndim) if d != dim % x.ndim]
    y, sums = gelu(u, approximate) * w, dx.sum(others) if others else dx
    # In float32 a gate is off by some ulps, which PyTorch's largest error, elsewhere in the tensor, need not be.
    slack = [2 * spacing(t, torch.float32) if x.dtype == torch.float32 else 0.0 for t in (y, dx)]
    for our, their, true, more in zip(ours, theirs, (y, dx, sums), (*slack, summation_slack(dx, dim)), strict=True):
        if our is not None and their is not None:
            assert_no_worse_than(their, our, true, more)


@pytest.mark.parametrize(
    ("form", "gradient"), [*((form, "dense") for form in FORMS), ("second", "expanded"), ("second", "transposed")]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_x_and_of_the_incoming_gradient_gives_right_values(
    form: str, layout: str, gradient: str, device: str
) -> None:
    x, dim = LAYOUTS[layout]()
    x = x.to(device)
    y = gated(form, x, None, dim)
    check(form, x, torch.randn(x.shape[dim], device=device), incoming(gradient, y), dim, "tanh")


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape_dim", [((3, 1502), 1), ((3, 8, 40), 1), ((10, 40), 0), ((3, 9, 40), None)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_formula_and_type_is_right_along_every_dimension(
    form: str, shape_dim: tuple[tuple[int, ...], int | None], dtype: torch.dtype, approximate: str, device: str
) -> None:
    shape, dim = shape_dim
    x = (3 * torch.randn(shape, device=device)).to(dtype)
    bias = None if dim is None else torch.randn(shape[dim], device=device).to(dtype)
    dim = -1 if dim is None else dim
    check(form, x, bias, torch.randn_like(x.chunk(2, dim)[0]), dim, approximate)


@pytest.mark.parametrize("width", [1, 7, 1000, 1501])
@pytest.mark.parametrize("form", FORMS)
def test_odd_widths_are_right_in_16_bit(form: str, width: int, device: str) -> None:
    x = torch.randn(5, 2 * width, device=device, dtype=torch.bfloat16)
    bias = torch.randn(2 * width, device=device, dtype=torch.bfloat16)
    check(form, x, bias, torch.randn(5, width, device=device, dtype=torch.bfloat16), -1, "tanh")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias_dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_bias_and_x_may_differ_in_type(form: str, dtype: torch.dtype, bias_dtype: torch.dtype, device: str) -> None:
    x = torch.randn(40, 64, device=device).to(dtype)
    bias = torch.randn(64, device=device).to(bias_dtype)
    y, dx, dbias = one_pass(lambda x, b: gated(form, x, b, -1), x, bias, torch.randn(40, 32, device=device).to(dtype))
    assert dbias is not None
    assert (y.dtype, dx.dtype, dbias.dtype) == (dtype, dtype, bias_dtype)
    true = plain(form, x.double(), bias.double(), -1)
    torch.testing.assert_close(y.double(), true, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("given", list(itertools.product((True, False), repeat=2)), ids=str)
def test_the_biases_of_two_tensors_may_differ_in_type_and_either_may_be_missing(
    given: tuple[bool, bool], device: str
) -> None:
    x, other = (torch.randn(30, 16, device=device).bfloat16() for _ in range(2))
    biases = torch.randn(16, device=device), torch.randn(16, device=device).half()
    tensors = [t.requires_grad_() for t in (x, other)]
    args = *tensors, *(bias.requires_grad_() if there else None for bias, there in zip(biases, given, strict=True))
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in args]
    y = bias_gelu_mul(*args)
    u, w = (doubles[place] + broadcast(doubles[place + 2], x, -1) for place in (0, 1))
    true = torch_gelu(u, "tanh") * w
    torch.testing.assert_close(y.double(), true, rtol=2**-8, atol=1e-6)
    found = torch.autograd.grad(y.sum(), [t for t in args if t is not None])
    expected = torch.autograd.grad(true.sum(), [t for t in doubles if t is not None])
    for ours, theirs, tensor in zip(found, expected, [t for t in args if t is not None], strict=True):
        assert ours.dtype == tensor.dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-5)


def test_two_tensors_may_lie_differently(device: str) -> None:
    x, other = torch.randn(40, 24, device=device), torch.randn(24, 40, device=device).t()
    torch.testing.assert_close(bias_gelu_mul(x, other), torch_gelu(x, "tanh") * other)
    assert bias_gelu_mul(x, other).stride() == x.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_the_result_has_the_memory_format_of_a_pointwise_operator(form: str, layout: str, device: str) -> None:
    x, dim = LAYOUTS[layout]()
    x = x.to(device)
    y = gated(form, x, torch.zeros(x.shape[dim], device=device), dim)
    assert y.stride() == torch.nn.functional.gelu(x.chunk(2, dim)[0]).stride()


@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=2)), ids=str)
@pytest.mark.parametrize("activated", ["first", "second"])
def test_of_a_joined_tensor_only_the_gradients_asked_for_are_computed(
    activated: Any, needs: tuple[bool, bool], device: str
) -> None:
    x = torch.randn(6, 64, device=device, requires_grad=needs[0])
    bias = torch.randn(64, device=device, requires_grad=needs[1])
    y = bias_geglu(x, bias, activated=activated)
    assert y.requires_grad == any(needs)
    if any(needs):
        y.sum().backward()
    assert (x.grad is not None, bias.grad is not None) == needs


@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=4)), ids=str)
def test_of_two_tensors_only_the_gradients_asked_for_are_computed(needs: tuple[bool, ...], device: str) -> None:
    shapes = (6, 64), (6, 64), (64,), (64,)
    tensors = [torch.randn(s, device=device, requires_grad=n) for s, n in zip(shapes, needs, strict=True)]
    whole = [t.detach().clone().requires_grad_() for t in tensors]
    y = bias_gelu_mul(*tensors)
    assert y.requires_grad == any(needs)
    if any(needs):
        y.sum().backward()
    bias_gelu_mul(*whole).sum().backward()
    assert tuple(t.grad is not None for t in tensors) == needs
    for some, all_ in zip(tensors, whole, strict=True):
        if some.grad is not None and all_.grad is not None:
            torch.testing.assert_close(some.grad, all_.grad)


@pytest.mark.parametrize("form", FORMS)
def test_two_runs_give_identical_bits(form: str, device: str) -> None:
    x, bias = torch.randn(3000, 64, device=device), torch.randn(64, device=device)
    dy = torch.randn(3000, 32, device=device)
    runs = [one_pass(lambda x, b: gated(form, x, b, -1), x, bias, dy) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


def test_the_other_half_is_another_result() -> None:
    x = torch.randn(6, 64)
    assert torch.equal(bias_geglu(x, activated="first"), bias_geglu(x.roll(32, -1), activated="second"))
    assert not torch.allclose(bias_geglu(x, activated="first"), bias_geglu(x, activated="second"))


@pytest.mark.parametrize("shape", [(0,), (0, 64), (5, 0), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_empty_tensors_stay_empty_and_have_zero_gradients(form: str, shape: tuple[int, ...], device: str) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    bias = torch.randn(shape[-1], device=device, requires_grad=True)
    y = gated(form, x, bias, -1)
    assert y.shape == (*shape[:-1], shape[-1] // 2)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape
    assert bias.grad is not None
    assert torch.equal(bias.grad, torch.zeros_like(bias))


@pytest.mark.parametrize("form", FORMS)
def test_inputs_are_left_as_they_were(form: str, device: str) -> None:
    x, bias, dy = torch.randn(6, 64, device=device), torch.randn(64, device=device), torch.randn(6, 32, device=device)
    copies = [t.clone() for t in (x, bias, dy)]
    one_pass(lambda x, b: gated(form, x, b, -1), x, bias, dy)
    assert all(map(torch.equal, (x, bias, dy), copies))


def test_only_what_is_given_is_saved_for_the_backward_pass(device: str) -> None:
    x, other = (torch.randn(6, 64, device=device, requires_grad=True) for _ in range(2))
    bias, other_bias = (torch.randn(64, device=device, requires_grad=True) for _ in range(2))
    for call, tensors in (
        (lambda: bias_geglu(x, bias, activated="first"), (x, bias)),
        (lambda: bias_gelu_mul(x, other, bias, other_bias), (x, other, bias, other_bias)),
    ):
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            call()
        assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in tensors}


@pytest.mark.parametrize("form", FORMS[:2])
def test_writing_into_x_before_the_backward_pass_raises(form: str, device: str) -> None:
    x = torch.randn(6, 64, device=device, requires_grad=True).clone()
    y = gated(form, x, None, -1)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize(("shape", "dim"), [((3, 6), 1), ((2, 4, 3), 1), ((4,), 0)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_and_gradgradcheck_pass_in_double(
    form: str, shape: tuple[int, ...], dim: int, approximate: str
) -> None:
    x, bias = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in (shape, shape[dim]))
    for tensors in ((x, bias), (x,)):

        def function(x: Tensor, bias: Tensor | None = None) -> Tensor:
            return gated(form, x, bias, dim, approximate)

        assert torch.autograd.gradcheck(function, tensors)
        assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("form", FORMS)
def test_a_second_derivative_through_the_kernels_is_right(form: str, approximate: str, device: str) -> None:
    x = torch.randn(4, 16, device=device, requires_grad=True)
    bias = torch.randn(16, device=device, requires_grad=True)
    doubles = [t.detach().double().requires_grad_() for t in (x, bias)]

    def second(x: Tensor, bias: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        dx, dbias = torch.autograd.grad(y.square().sum(), (x, bias), create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dbias.square().sum(), (x, bias))

    ours = second(x, bias, gated(form, x, bias, -1, approximate))
    truth = second(*doubles, plain(form, *doubles, -1, approximate))
    for our, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(our.double(), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", ["only the first", "only the second", "only biases"])
def test_a_second_derivative_of_a_part_of_the_gradients_is_right(given: str, device: str) -> None:
    places = {"only the first": (0,), "only the second": (1,), "only biases": (2, 3)}[given]
    shapes = (4, 16), (4, 16), (16,), (16,)
    ours = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
    true = [t.detach().double().requires_grad_() for t in ours]
    results = []
    for tensors, function in (
        (ours, bias_gelu_mul),
        (true, lambda x, w, b, c: torch_gelu(x + b, "tanh") * (w + c)),
    ):
        first = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        results.append(torch.autograd.grad(sum(first[place].square().sum() for place in places), tensors))
    for our, expected in zip(*results, strict=True):
        torch.testing.assert_close(our.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_negated_view_is_read_as_what_it_stands_for(form: str, device: str) -> None:
    x = torch.randn(4, 8, dtype=torch.complex64, device=device).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(gated(form, x, None, -1), gated(form, x.clone(), None, -1))


@pytest.mark.parametrize("form", FORMS)
def test_shapes_and_types_can_be_asked_for_without_data(form: str) -> None:
    y = gated(form, torch.empty(4, 8, dtype=torch.bfloat16, device="meta"), torch.empty(8, device="meta"), -1)
    assert (y.shape, y.dtype, y.device.type) == ((4, 4), torch.bfloat16, "meta")


def test_tensors_without_dimensions_are_numbers(device: str) -> None:
    x, other = torch.tensor(1.5, device=device), torch.tensor(-2.0, device=device)
    torch.testing.assert_close(bias_gelu_mul(x, other), torch_gelu(x, "tanh") * other)


@pytest.mark.parametrize("form", FORMS)
def test_where_there_is_nothing_to_add_up_both_gradients_are_tensors_of_their_own(form: str, device: str) -> None:
    x, bias = (torch.randn(6, device=device, requires_grad=True) for _ in range(2))
    dx, dbias = torch.autograd.grad(gated(form, x, bias, 0).sum(), (x, bias))
    torch.testing.assert_close((dx, dbias), torch.autograd.grad(plain(form, x, bias, 0).sum(), (x, bias)))
    assert dx.data_ptr() != dbias.data_ptr()


@pytest.mark.parametrize("form", FORMS)
def test_a_bias_learns_from_a_tensor_of_inference_mode(form: str, device: str) -> None:
    with torch.inference_mode():
        x = torch.randn(3, 8, device=device)
    bias = torch.randn(8, device=device, requires_grad=True)
    if form == "two tensors":  # no view of such a tensor can be saved either
        x = x.clone()
    ours, theirs = gated(form, x, bias, -1), plain(form, x, bias, -1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), bias)[0] for y in (ours, theirs)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_huge_inputs_give_what_the_limits_say(form: str, dtype: torch.dtype, device: str) -> None:
    big = torch.finfo(dtype).max
    u = torch.tensor([big, -big, torch.inf, -torch.inf, torch.nan, -20.0], device=device, dtype=dtype)
    w = torch.full_like(u, 0.5)
    x = torch.cat((w, u) if form == "second" else (u, w))
    y, dx, _ = one_pass(lambda x, b: gated(form, x, b, 0), x, None, torch.ones_like(u))
    expected = torch.tensor([big / 2, 0, torch.inf, 0, torch.nan, 0], device=device, dtype=dtype)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    du, dw = dx.chunk(2)[:: -1 if form == "second" else 1]
    slopes = torch.tensor([0.5, 0, 0.5, 0, torch.nan, 0], device=device, dtype=dtype)
    torch.testing.assert_close(du, slopes, rtol=0, atol=0, equal_nan=True)
    values = torch.tensor([big, 0, torch.inf, 0, torch.nan, 0], device=device, dtype=dtype)
    torch.testing.assert_close(dw, values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradients_are_rounded_once_in_16_bit(
    form: str, dtype: torch.dtype, approximate: str, device: str
) -> None:
    u = torch.linspace(-5, 5, 1000, device=device).to(dtype).repeat(3)
    w, dy = torch.randn(3000, device=device).to(dtype), torch.randn(3000, device=device).to(dtype)
    x = torch.stack((w, u) if form == "second" else (u, w)).view(-1)
    y, dx, _ = one_pass(lambda x, b: gated(form, x, b, 0, approximate), x, None, dy)
    du, dw = dx.chunk(2)[:: -1 if form == "second" else 1]
    for ours, true, bound in (
        (y, w.double() * gelu(u.double(), approximate), 0.55),
        (dw, dy.double() * gelu(u.double(), approximate), 0.55),
        (du, dy.double() * w.double() * gelu(u.double(), approximate, order=1), 0.6),
    ):
        error = (ours.double() - true).abs() / spacing(true, dtype)
        near_the_root = (gelu(u.double(), approximate, order=1).abs() < 0.01) if bound == 0.6 else error < 0
        assert error[~near_the_root].max() <= bound


class Watched(TorchDispatchMode):
    """Calls are no plain eager ones any more, as under a compiler."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("op", [BIAS_GEGLU, BIAS_GELU_MUL], ids=lambda op: op.name)
def test_a_compiler_is_given_what_is_stored_to_add_up(op: Op, approximate: str) -> None:
    x, dy, bias = (torch.randn(*size).bfloat16() for size in ((300, 16), (300, 8), (16,)))
    with Watched():
        if op is BIAS_GEGLU:
            found = op.plain.backward(dy, x, bias, 1, approximate, "first", (True, True))
        else:
            found = op.plain.backward(dy, *x.chunk(2, 1), *bias.chunk(2), 1, approximate, (True,) * 4)
    gradients, sums = found[: len(found) // 2], found[len(found) // 2 :]
    for dx, dbias in zip(gradients, sums, strict=True):
        assert dx is not None
        assert torch.equal(dbias, dx.sum(0, dtype=torch.float32).to(bias.dtype))


@pytest.mark.parametrize("activated", ["first", "second"])
def test_the_joined_form_passes_opcheck(activated: str) -> None:
    x, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 8, 5), (8,)))
    dy = torch.randn(3, 4, 5, dtype=torch.float64)
    ops, rest = torch.ops.triton_gelu, (1, "tanh", activated)
    torch.library.opcheck(ops.bias_geglu, (x, bias, *rest))
    x, bias = x.detach(), bias.detach()
    torch.library.opcheck(ops.bias_geglu_backward, (dy, x, bias, *rest, [True, False]))
    torch.library.opcheck(ops.bias_geglu_double_backward, (x.cos(), None, dy, x, bias, *rest, [True, True, False]))


def test_the_form_of_two_tensors_passes_opcheck() -> None:
    x, other, bias, other_bias = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 8, 5), (3, 8, 5), (8,), (8,))
    )
    ops, rest = torch.ops.triton_gelu, (1, "tanh")
    torch.library.opcheck(ops.bias_gelu_mul, (x, other, bias, other_bias, *rest))
    tensors = [t.detach() for t in (x, x, other, bias, other_bias)]
    torch.library.opcheck(ops.bias_gelu_mul_backward, (*tensors, *rest, [True, False, True, True]))


X = torch.randn(4, 8)
ERRORS: dict[str, tuple[Callable[[], Tensor], type[Exception], str]] = {
    "no word on which half": (lambda: bias_geglu(X), TypeError, "activated"),  # type: ignore[call-arg]
    "an unknown half": (
        lambda: bias_geglu(X, activated="third"),  # type: ignore[arg-type]
        ValueError,
        "activated must be 'first' or 'second', got 'third'",
    ),
    "no half at all": (
        lambda: bias_geglu(X, activated=["first"]),  # type: ignore[arg-type]
        ValueError,
        r"activated must be 'first' or 'second', got \['first'\]",
    ),
    "an odd size": (
        lambda: bias_geglu(X[:3], activated="first", dim=0),
        ValueError,
        r"x must have an even size along dim 0, .* got shape \(3, 8\)",
    ),
    "a number": (lambda: bias_geglu(torch.tensor(1.0), activated="first"), ValueError, "x must have at least one dim"),
    "a bias for one half": (
        lambda: bias_geglu(X, torch.zeros(4), activated="first"),
        ValueError,
        r"bias must have shape \(8,\) for x of shape \(4, 8\) and dim 1, got shape \(4,\)",
    ),
    "an unknown formula": (
        lambda: bias_geglu(X, activated="first", approximate="erf"),  # type: ignore[arg-type]
        ValueError,
        "approximate must be one of .* got 'erf'",
    ),
    "another shape": (
        lambda: bias_gelu_mul(X, X[:, :4]),
        ValueError,
        r"other must have shape \(4, 8\) for x of shape \(4, 8\), got shape \(4, 4\)",
    ),
    "another type": (
        lambda: bias_gelu_mul(X, X.half()),
        TypeError,
        "other must have x's dtype, torch.float32, got torch.float16",
    ),
    "another device": (lambda: bias_gelu_mul(X, X.to("meta")), ValueError, "other must be on x's device, cpu, got"),
    "nothing": (lambda: bias_gelu_mul(X, None), TypeError, "other must be a torch.Tensor"),  # type: ignore[arg-type]
    "a bias of the factor of the wrong length": (
        lambda: bias_gelu_mul(X, X, None, torch.zeros(4)),
        ValueError,
        r"other_bias must have shape \(8,\)",
    ),
    "a bias for a number": (
        lambda: bias_gelu_mul(torch.tensor(1.0), torch.tensor(1.0), None, torch.zeros(1)),
        ValueError,
        "x must have at least one dimension for other_bias",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_names_the_argument_and_what_came_and_was_expected(what: str) -> None:
    call, error, message = ERRORS[what]
    with pytest.raises(error, match=message):
        call()
