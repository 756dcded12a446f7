"""The plain maths and the CPU backend: their formulas against the truth, every layout, every block."""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor
from truth import FORMULAS, torch_gelu

from perf.accuracy import truth
from perf.accuracy.truth import spacing
from triton_gelu.formulas import Logistic
from triton_gelu.formulas.plain import CLOSED, MILLS, MILLS_SCALE, d2gelu, dgelu, gelu
from triton_gelu.ops import cpu_blocks
from triton_gelu.ops.bias_gelu_cpu import backward, forward

SMALLEST = 2.0**-120
"""Results below it may be flushed to zero."""

WINDOWS = torch.tensor([-13, -10, -8, -6, -4, -3, -2, -1, -0.5, -1e-3, 0, 1e-3, 0.5, 1, 2, 3, 4, 8]).double()


def eager_value(u: Tensor, approximate: str) -> Tensor:
    return forward(u, None, 0, approximate)


def eager_slope(u: Tensor, approximate: str) -> Tensor:
    dx, _ = backward(torch.ones_like(u), u, None, 0, approximate, (True, False))
    assert dx is not None
    return dx


def torch_slope(u: Tensor, approximate: str) -> Tensor:
    u = u.clone().requires_grad_()
    return torch.autograd.grad(torch_gelu(u, approximate).sum(), u)[0]


@pytest.fixture(scope="module")
def floats() -> Tensor:
    """float32 numbers of every size, and their neighbours at each power of two."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.exp(torch.linspace(-103, 88.7, 300_000, dtype=torch.float64))
    usual = 16 * torch.rand(300_000, generator=generator, dtype=torch.float64)
    powers = torch.exp2(torch.arange(-149, 128, dtype=torch.float64))
    magnitudes = torch.cat([sizes, usual, powers, powers * (1 + 2**-23), powers * (1 - 2**-24)]).float()
    return torch.cat([magnitudes, -magnitudes])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts tensors into blocks of a hundred elements."""
    monkeypatch.setattr(cpu_blocks, "block_size", lambda: 100)


def worst_in_windows(got: Tensor, true: Tensor, unit: Tensor, u: Tensor) -> Tensor:
    """The largest error in units, window by window of u."""
    error = torch.where(true.abs() < SMALLEST, 0.0, (got.double() - true).abs() / unit).nan_to_num(math.inf)
    worst = torch.zeros(len(WINDOWS) + 1, dtype=torch.float64)
    return worst.scatter_reduce(0, torch.bucketize(u.double(), WINDOWS), error, "amax")


def compiled_value(u: Tensor, approximate: str) -> Tensor:
    torch.compiler.reset()
    y: Tensor = torch.compile(gelu)(u, approximate)
    return y


def compiled_slope(u: Tensor, approximate: str) -> Tensor:
    torch.compiler.reset()
    slope: Tensor = torch.compile(dgelu)(u, approximate)
    return slope


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("ours", [eager_value, gelu, pytest.param(compiled_value, marks=pytest.mark.slow)])
def test_a_float32_value_is_nowhere_worse_than_torchs(
    ours: Callable[[Tensor, str], Tensor], approximate: str, floats: Tensor
) -> None:
    true = truth.gelu(floats.double(), approximate)
    unit = spacing(true, torch.float32)
    worst = worst_in_windows(ours(floats, approximate), true, unit, floats)
    assert (worst <= worst_in_windows(torch_gelu(floats, approximate), true, unit, floats) + 2).all(), worst
    assert worst.max() <= 256


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("ours", [eager_slope, dgelu, pytest.param(compiled_slope, marks=pytest.mark.slow)])
def test_a_float32_derivative_is_nowhere_worse_than_torchs(
    ours: Callable[[Tensor, str], Tensor], approximate: str, floats: Tensor
) -> None:
    u = floats.double()
    true, gate = truth.gelu(u, approximate, order=1), truth.gelu(u, approximate) / u
    unit = spacing(torch.maximum(true.abs(), gate.abs()), torch.float32)  # of the largest term: C + u C' is a sum
    worst = worst_in_windows(ours(floats, approximate), true, unit, floats)
    assert (worst <= worst_in_windows(torch_slope(floats, approximate), true, unit, floats) + 2).all(), worst
    assert worst.max() <= 256
    assert worst[WINDOWS.tolist().index(0) + 1 :].max() <= 3


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_gives_a_rounded_result(dtype: torch.dtype, approximate: str) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = x[x.isfinite()]
    for got, true, bound in (
        (eager_value(x, approximate), truth.gelu(x.double(), approximate), 0.55),
        (eager_slope(x, approximate), truth.gelu(x.double(), approximate, order=1), 0.6),
    ):
        error = torch.where(true.abs() < SMALLEST, 0.0, (got.double() - true).abs() / spacing(true, dtype))
        around_zero = (true.abs() < 0.01) & (true != 0) & (x.abs() < 2)
        assert error[~around_zero].max() <= bound
        assert error.max() <= 1
        assert (got == true.to(dtype)).double().mean() >= 0.99


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_float64_is_right_to_the_rounding_of_its_exponent(order: int, approximate: str) -> None:
    u = torch.cat([torch.linspace(-30, 12, 85), torch.logspace(-20, 0, 11), -torch.logspace(-20, 0, 11)]).double()
    if approximate == "tanh":
        u = u.clamp_min(-17)  # below, exp(t) is not a float64
    got = (gelu, dgelu, d2gelu)[order](u, approximate)
    with mpmath.workdps(60):
        for a, b in zip(u.tolist(), got.tolist(), strict=True):
            exact = mpmath.mpf(a)
            gate = FORMULAS[approximate].exact(exact, mpmath)
            true = mpmath.diff(lambda v: v * FORMULAS[approximate].exact(v, mpmath), exact, order)
            scale = max(abs(true), gate if order else 0)
            assert abs(b - true) <= 2**-52 * (8 - 3 * mpmath.log(gate)) * scale, (a, b, true)


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize(
    ("value", "slope", "dtype"),
    [(eager_value, eager_slope, d) for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]
    + [(gelu, dgelu, d) for d in (torch.float32, torch.float64)],
)
def test_infinities_nan_and_the_largest_numbers_are_what_the_limits_say(
    value: Callable[[Tensor, str], Tensor], slope: Callable[[Tensor, str], Tensor], dtype: torch.dtype, approximate: str
) -> None:
    big = torch.finfo(dtype).max
    x = torch.tensor([math.inf, big, big / 4, -math.inf, -big, -big / 4, math.nan, 0.0, -0.0], dtype=dtype)
    x = x.repeat(9)  # through vectorised and remaining elements alike
    y = torch.tensor([math.inf, big, big / 4, 0, 0, 0, math.nan, 0, 0], dtype=dtype).repeat(9)
    torch.testing.assert_close(value(x, approximate), y, rtol=0, atol=0, equal_nan=True)
    dy = torch.tensor([1, 1, 1, 0, 0, 0, math.nan, 0.5, 0.5], dtype=dtype).repeat(9)
    torch.testing.assert_close(slope(x, approximate), dy, rtol=0, atol=0, equal_nan=True)
    if value is gelu:
        assert d2gelu(x, approximate).isnan().equal(x.isnan())


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_are_shut_and_open_where_u_is_clamped(dtype: torch.dtype, approximate: str) -> None:
    low, high = torch.tensor([CLOSED, FORMULAS[approximate].opened], dtype=dtype)
    assert truth.gelu(low, approximate) == 0
    assert truth.gelu(high, approximate) == high
    assert truth.gelu(high, approximate, order=1) == 1
    gate = FORMULAS[approximate].gate
    if isinstance(gate, Logistic):
        assert torch.exp(high * (gate.linear + gate.cubic * high**2)).float().isfinite()


def test_the_polynomial_for_mills_ratio_is_as_good_as_it_says() -> None:
    worst = mpmath.mpf(0)
    for a in torch.linspace(0, 14.5, 500).tolist():
        w = MILLS_SCALE * a / (1 + MILLS_SCALE * a)
        ratio = sum(c * w**k for k, c in enumerate(MILLS))
        error = ratio / (mpmath.exp(mpmath.mpf(a) ** 2 / 2) * mpmath.ncdf(-a)) - 1
        worst = max(worst, abs(error) / (4 + a**2 / 2))
    assert worst < 2**-24


LAYOUTS: dict[str, Callable[[], tuple[Tensor, int]]] = {
    "a matrix": lambda: (torch.randn(37, 23), 1),
    "a matrix with a bias down its rows": lambda: (torch.randn(37, 23), 0),
    "rows longer than a block": lambda: (torch.randn(3, 301), 1),
    "a convolution's output": lambda: (torch.randn(5, 7, 31), 1),
    "channels longer than a block": lambda: (torch.randn(2, 3, 250), 1),
    "an image": lambda: (torch.randn(2, 5, 9, 13), 1),
    "a channels-last image": lambda: (torch.randn(2, 5, 9, 13).contiguous(memory_format=torch.channels_last), 1),
    "a transposed matrix": lambda: (torch.randn(23, 37).t(), 0),
    "a permuted tensor": lambda: (torch.randn(4, 5, 6, 7).permute(2, 0, 3, 1), 1),
    "a chunk of the features": lambda: (torch.randn(3, 7, 40).chunk(2, -1)[1], 2),
    "columns with gaps": lambda: (torch.randn(3, 7, 40)[..., ::2], 2),
    "an expanded tensor": lambda: (torch.randn(7, 40).expand(3, 7, 40), 2),
    "a vector": lambda: (torch.randn(450), 0),
    "one element": lambda: (torch.randn(1), 0),
    "a bias of one element": lambda: (torch.randn(9, 1, 31), 1),
    "nothing": lambda: (torch.randn(0, 7), 1),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_any_layout_give_what_one_plain_pass_gives(
    layout: str, approximate: str, dtype: torch.dtype, small_blocks: None
) -> None:
    x, dim = LAYOUTS[layout]()
    x = x.to(dtype)
    dy, bias = torch.randn(x.shape[::-1]).to(dtype).permute(*reversed(range(x.ndim))), torch.randn(x.shape[dim])
    wide = torch.promote_types(dtype, torch.float32)
    u = x.to(wide) + bias.to(wide).view(-1, *[1] * (x.ndim - dim - 1))
    terms = dy * dgelu(u, approximate)
    before = [t.clone() for t in (x, bias, dy)]

    y = forward(x, bias, dim, approximate)
    dx, dbias = backward(dy, x, bias, dim, approximate, (True, True))

    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 16 * torch.finfo(wide).eps}
    torch.testing.assert_close(y, gelu(u, approximate).to(dtype), **tolerance)
    torch.testing.assert_close(dx, terms.to(dtype), **tolerance)
    others = [d for d in range(x.ndim) if d != dim]
    sums = terms.double().sum(others) if others else terms.double()
    torch.testing.assert_close(dbias, sums.float(), rtol=1e-5, atol=1e-5)
    assert y.stride() == dx.stride() == torch.empty_like(x).stride()
    assert all(map(torch.equal, (x, bias, dy), before))


@pytest.mark.parametrize("beyond", [-1, 0, 1])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_block_more_or_less_changes_no_result(blocks: int, beyond: int) -> None:
    n = blocks * cpu_blocks.block_size() + beyond
    x, dy = torch.randn(n, 1), torch.randn(n, 1)
    bias = torch.randn(1)
    torch.testing.assert_close(forward(x, bias, 1, "tanh"), gelu(x + bias, "tanh"), rtol=1e-6, atol=1e-7)
    dx, dbias = backward(dy, x, bias, 1, "tanh", (True, True))
    terms = dy * dgelu(x + bias, "tanh")
    torch.testing.assert_close(dx, terms, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(dbias, terms.double().sum(0).float(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("approximate", FORMULAS)
def test_a_tensor_without_a_bias_is_computed_the_same(approximate: str, small_blocks: None) -> None:
    x, dy = torch.randn(7, 50), torch.randn(7, 50)
    zero = torch.zeros(50)
    torch.testing.assert_close(forward(x, None, 1, approximate), forward(x, zero, 1, approximate), rtol=0, atol=0)
    dx, dbias = backward(dy, x, None, 1, approximate, (True, False))
    torch.testing.assert_close(dx, backward(dy, x, zero, 1, approximate, (True, False))[0], rtol=0, atol=0)
    assert dbias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("bias_dtype", [torch.bfloat16, torch.float64])
def test_only_what_is_needed_is_computed_in_the_type_of_its_input(dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    x, dy, bias = torch.randn(9, 50).to(dtype), torch.randn(9, 50).to(dtype), torch.randn(50).to(bias_dtype)
    dx, dbias = backward(dy, x, bias, 1, "none", (True, True))
    assert dx is not None
    assert dbias is not None
    assert (dx.dtype, dbias.dtype) == (dtype, bias_dtype)
    assert backward(dy, x, bias, 1, "none", (False, False)) == (None, None)
    only_dx, nothing = backward(dy, x, bias, 1, "none", (True, False))
    assert nothing is None
    torch.testing.assert_close(only_dx, dx, rtol=0, atol=0)
    nothing, only_dbias = backward(dy, x, bias, 1, "none", (False, True))
    assert nothing is None
    torch.testing.assert_close(only_dbias, dbias, rtol=0, atol=0)


GRADIENTS: dict[str, Callable[[int], Tensor]] = {
    "random": lambda rows: torch.randn(rows, 8),
    "one huge, many tiny": lambda rows: torch.cat([torch.full((1, 8), 1e4), torch.full((rows - 1, 8), 1e-4)]),
    "alternating": lambda rows: torch.rand(rows // 2, 2, 8).mul_(torch.tensor([[1.0], [-1.0]])).view(rows, 8),
}


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_bias_gradient_of_many_rows_does_not_lose_the_small_ones(gradient: str) -> None:
    dy = GRADIENTS[gradient](1_000_000).bfloat16()
    x = torch.full_like(dy, 10.0)  # where the derivative is 1, so that the terms are known
    exact, magnitude = dy.double().sum(0), dy.double().abs().sum(0)
    for dtype in (torch.float32, torch.bfloat16):
        _, dbias = backward(dy, x, torch.zeros(8, dtype=dtype), 1, "tanh", (False, True))
        assert dbias is not None
        assert ((dbias.double() - exact).abs() <= 8 * 2**-24 * magnitude + 0.5 * spacing(exact, dtype)).all()


@pytest.mark.parametrize("function", [gelu, dgelu, d2gelu])
@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_plain_formulas_can_be_batched_and_traced(
    function: Callable[[Tensor, str], Tensor], approximate: str, dtype: torch.dtype
) -> None:
    u = torch.randn(6, 11, dtype=dtype)
    expected = function(u, approximate)
    torch.testing.assert_close(torch.vmap(lambda v: function(v, approximate))(u), expected)
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda v: function(v, approximate), tracing_mode="fake")(u)
    torch.testing.assert_close(traced(u), expected)
    torch.compiler.reset()
    compiled = torch.compile(lambda v: function(v, approximate), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(u), expected)
    meta = function(u.to("meta"), approximate)
    assert (meta.shape, meta.dtype) == (u.shape, dtype)
