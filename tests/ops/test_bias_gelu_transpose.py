"""bias_gelu_transpose: values and gradients by kernels, and composed of other operations."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from truth import DTYPES, FORMULAS, assert_no_worse_than, summation_slack, torch_gelu, true_pass

from perf.accuracy.truth import spacing
from triton_gelu import bias_gelu_transpose
from triton_gelu.core import targets
from triton_gelu.ops import bias_gelu_transpose_plan
from triton_gelu.ops.bias_gelu_transpose import BIAS_GELU_TRANSPOSE

Function = Callable[..., Tensor]


def plain(x: Tensor, bias: Tensor | None, position: Tensor | None, *, approximate: str = "tanh") -> Tensor:
    """What a user of PyTorch would write."""
    y = torch_gelu(x if bias is None else x + bias[:, None], approximate).to(x.dtype).transpose(1, 2)
    return y if position is None else (y + position).to(x.dtype)


def results(function: Function, inputs: tuple[Tensor | None, ...], dy: Tensor) -> list[Tensor | None]:
    """The value, and the gradients of those inputs that there are."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    gradients = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], dy))
    return [y.detach(), *(None if t is None else next(gradients) for t in leaves)]


def check(
    x: Tensor, bias: Tensor | None, position: Tensor | None, dy: Tensor, approximate: str = "tanh"
) -> list[Tensor | None]:
    """Our results: nothing is further from the truth than the same thing written in PyTorch."""
    inputs = x, bias, position
    ours = results(lambda *t: bias_gelu_transpose(*t, approximate=approximate), inputs, dy)
    theirs = results(lambda *t: plain(*t, approximate=approximate), inputs, dy)
    turned = dy.transpose(1, 2)
    y, dx, dbias = true_pass(x, bias, turned, 1, approximate)
    truth = [
        y.transpose(1, 2) + (0 if position is None else position.double()),
        dx,
        dbias,
        dy.double().sum(0),
    ]
    assert ours[0] is not None
    assert ours[0].is_contiguous()
    for our, their, true, slack in zip(ours, theirs, truth, (0, 0, summation_slack(dx, 1), 0), strict=True):
        assert (our is None) == (their is None)
        if our is not None and their is not None and true is not None:
            assert_no_worse_than(their, our, true, slack)
    return ours


def tensors(n: int, c: int, length: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = (n, c, length), (c,), (length, c), (n, length, c)
    x, bias, position, dy = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    return 3 * x, bias, position, dy


@pytest.fixture
def _kernels_only(nothing_kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BIAS_GELU_TRANSPOSE, "backends", BIAS_GELU_TRANSPOSE.backends[:1])


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("_kernels_only")
def test_every_formula_and_type_is_right(dtype: torch.dtype, approximate: str, device: str) -> None:
    check(*tensors(2, 24, 44, dtype, device), approximate)


@pytest.mark.parametrize("shape", [(3, 5, 75), (1, 16, 64), (4, 1, 1), (1, 1, 130), (2, 65, 3)], ids=str)
@pytest.mark.usefixtures("_kernels_only")
def test_sizes_of_every_kind_are_right_in_16_bit(shape: tuple[int, int, int], device: str) -> None:
    check(*tensors(*shape, torch.bfloat16, device))


@pytest.mark.usefixtures("_kernels_only")
def test_the_slope_at_a_negative_zero_is_a_half(device: str) -> None:
    x = torch.full((1, 16, 64), -0.0, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(bias_gelu_transpose(x, x[0, :, 0].detach()).sum(), x)
    assert (dx == 0.5).all()


LAYOUTS: dict[str, Function] = {
    "a chunk of the channels": lambda t: t.repeat(1, 2, 1)[:, : t.shape[1]],
    "a slice of the sequence": lambda t: torch.cat([t, t], 2)[:, :, 1 : 1 + t.shape[2]],
    "an expanded batch": lambda t: t[:1].expand(t.shape),
    "channels last": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "windows that overlap": lambda t: t.flatten().as_strided(t.shape, (t.shape[1], 1, 1)),
    "batches inside": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["x", "dy"])
def test_any_layout_of_x_and_of_the_incoming_gradient_gives_right_values(of: str, layout: str, device: str) -> None:
    x, bias, position, dy = tensors(2, 8, 40, torch.float32, device)
    x, dy = (LAYOUTS[layout](t) if of == name else t for name, t in (("x", x), ("dy", dy)))
    check(x, bias, position, dy)


@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)], ids=str)
def test_there_may_be_no_bias_and_no_position(given: tuple[bool, bool], device: str) -> None:
    x, bias, position, dy = tensors(2, 9, 40, torch.bfloat16, device)
    check(x, bias if given[0] else None, position if given[1] else None, dy)


@pytest.mark.usefixtures("_kernels_only")
def test_many_tiles_and_batches_are_right_and_two_runs_give_identical_bits(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "INTERPRETER", replace(targets.INTERPRETER, tile_scale=1))
    monkeypatch.setattr(bias_gelu_transpose_plan, "PROGRAMS_PER_PROCESSOR", 4)  # then two tiles a program, and sums
    *inputs, dy = tensors(3, 40, 70, torch.float32, device)
    first, second = check(*inputs, dy), results(bias_gelu_transpose, tuple(inputs), dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)


@pytest.mark.usefixtures("_kernels_only")
def test_a_bias_and_a_position_of_another_type_are_not_rounded_before_the_result_is(device: str) -> None:
    x, bias, position, dy = tensors(2, 8, 40, torch.float32, device)
    bias, position = bias * 1e-3, position * 100
    x, dy = x.bfloat16(), dy.bfloat16()
    y, dx, dbias, dposition = results(bias_gelu_transpose, (x, bias, position), dy)
    assert [t.dtype for t in (y, dx, dbias, dposition) if t is not None] == [x.dtype, x.dtype, bias.dtype, bias.dtype]
    true = true_pass(x, bias, x, 1, "tanh")[0].transpose(1, 2) + position
    assert y is not None
    assert dposition is not None
    assert ((y.double() - true).abs() <= 0.501 * spacing(true, y.dtype)).all()
    torch.testing.assert_close(dposition, dy.float().sum(0), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("_kernels_only")
def test_a_nan_of_any_bits_stays_one(device: str) -> None:
    x, bias, position, dy = tensors(2, 8, 40, torch.float32, device)
    x, dy = x.bfloat16(), dy.bfloat16()
    nans = torch.tensor([0x7FFFFFFF, -1, 0x7FFF8000, 0x7F800001], dtype=torch.int32, device=device)
    bias[:4], position[0, 4:] = nans.view(torch.float32), nans.view(torch.float32)
    x.view(torch.int16)[0, 4, 1] = dy.view(torch.int16)[0, 1, 5] = 0x7FFF
    ours, theirs = (results(function, (x, bias, position), dy) for function in (bias_gelu_transpose, plain))
    for our, their in zip(ours, theirs, strict=True):
        assert our is not None
        assert their is not None
        assert torch.equal(our.isnan(), their.isnan())


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
@pytest.mark.usefixtures("_kernels_only")
def test_only_the_gradients_asked_for_are_computed(needs: tuple[bool, bool, bool], device: str) -> None:
    *inputs, dy = tensors(2, 8, 40, torch.float32, device)
    everything = results(bias_gelu_transpose, tuple(inputs), dy)[1:]
    for tensor, needed in zip(inputs, needs, strict=True):
        tensor.requires_grad_(needed)
    y = bias_gelu_transpose(*inputs)
    y.backward(dy)
    for tensor, needed, gradient in zip(inputs, needs, everything, strict=True):
        assert (tensor.grad is not None) == needed
        assert tensor.grad is None or (gradient is not None and torch.equal(tensor.grad, gradient))


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)], ids=str)
def test_empty_tensors_stay_empty_and_have_zero_gradients(shape: tuple[int, int, int], device: str) -> None:
    *inputs, dy = tensors(*shape, torch.float32, device)
    y, *gradients = results(bias_gelu_transpose, tuple(inputs), dy)
    assert y is not None
    assert y.shape == dy.shape
    for tensor, gradient in zip(inputs, gradients, strict=True):
        assert gradient is not None
        assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.usefixtures("without_kernels")
def test_without_triton_it_is_the_same_function(device: str) -> None:
    check(*tensors(2, 8, 40, torch.bfloat16, device), "none")


@pytest.mark.parametrize("approximate", FORMULAS)
def test_gradcheck_and_gradgradcheck_pass_in_double(approximate: str) -> None:
    inputs = [t.requires_grad_() for t in tensors(2, 2, 3, torch.float64, "cpu")[:3]]

    def function(*inputs: Tensor) -> Tensor:
        return bias_gelu_transpose(*inputs, approximate=approximate)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def compiled(function: Function) -> Function:
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def second_derivative(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)


def batched_gradients(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    y = function(*inputs)
    vs = torch.linspace(-1, 1, 3 * y.numel(), device=y.device).view(3, *y.shape)
    return torch.autograd.grad(y, inputs, vs, is_grads_batched=True)


def gradients_by_transform(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = torch.func.grad(lambda *t: function(*t).square().sum(), (0, 1, 2))(*inputs)
    return found


def gradients_of(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*inputs).square().sum(), inputs)


def autocast(function: Function, *inputs: Tensor) -> Tensor:
    with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16):
        return function(*inputs)


WAYS: dict[str, Callable[..., object]] = {
    "compiled": lambda function, *inputs: gradients_of(compiled(function), *inputs),
    "second derivatives": second_derivative,
    "batched gradients": batched_gradients,
    "grad": gradients_by_transform,
    "jvp": lambda function, *inputs: torch.func.jvp(function, inputs, inputs),
    "vmap": lambda function, x, *others: torch.vmap(function, (0, None, None))(torch.stack([x, 2 * x]), *others),
    "per sample gradients": lambda function, x, bias, position: torch.vmap(
        torch.func.grad(lambda b, x: function(x[None], b, position).sum()), (None, 0)
    )(bias, x),
    "autocast": autocast,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_composes_with_pytorch_as_its_composition_does(way: str, device: str) -> None:
    inputs = [t.requires_grad_() for t in tensors(3, 4, 10, torch.float32, device)[:3]]
    torch.testing.assert_close(WAYS[way](bias_gelu_transpose, *inputs), WAYS[way](plain, *inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("without", [False, True], ids=["kernels", "composed"])
def test_x_and_the_bias_are_saved_and_of_the_position_its_shape_and_type(
    without: bool, device: str, request: pytest.FixtureRequest
) -> None:
    if without:
        request.getfixturevalue("without_kernels")
    inputs = [t.requires_grad_() for t in tensors(2, 8, 40, torch.bfloat16, device)[:3]]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = bias_gelu_transpose(*inputs)
    x, bias, position = saved
    assert [x.data_ptr(), bias.data_ptr()] == [t.data_ptr() for t in inputs[:2]]
    assert (position.shape, position.dtype, position.untyped_storage().nbytes()) == ((40, 8), torch.bfloat16, 2)
    dy = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, inputs[2], dy)[0], dy.sum(0))


X, BIAS, POSITION = torch.randn(2, 4, 5), torch.zeros(4), torch.zeros(5, 4)
ERRORS = {
    "a list": (([1.0],), {}, TypeError, "x must be a torch.Tensor, got list"),
    "a matrix": ((X[0],), {}, ValueError, r"three dimensions, \[N, C, L\], got shape \(4, 5\)"),
    "integers": ((X.int(),), {}, TypeError, "x must have .* got torch.int32"),
    "a bias along the positions": ((X, torch.zeros(5)), {}, ValueError, r"bias must have shape \(4,\) .* got .*\(5,\)"),
    "a position that is a number": ((X, BIAS, 1.0), {}, TypeError, "position must be a torch.Tensor .*, got float"),
    "a position like x": ((X, BIAS, X[0]), {}, ValueError, r"position must have shape \(5, 4\) .* got shape \(4, 5\)"),
    "a position of integers": ((X, BIAS, POSITION.int()), {}, TypeError, "position must have .* got torch.int32"),
    "a position elsewhere": ((X, BIAS, POSITION.to("meta")), {}, ValueError, "position must be on x's device, cpu"),
    "an unknown formula": ((X,), {"approximate": "erf"}, ValueError, f"{', '.join(map(repr, FORMULAS))}, got 'erf'"),
}  # fmt: skip


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_names_the_argument_and_what_came_and_was_expected(what: str) -> None:
    args, kwargs, error, message = ERRORS[what]
    with pytest.raises(error, match=message):
        bias_gelu_transpose(*args, **kwargs)
