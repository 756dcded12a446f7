"""The device formulas against the truth: every 16-bit input, and float32 from one end of its range to the other.

Results below 2^-120 may be flushed to zero; everything else has a bound, in ulp. The bounds also hold with the
approximate instructions off by as much as their documentation allows, both ways: that stands for silicon.
"""

import functools
from collections.abc import Iterator
from typing import get_args

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from conftest import DEVICE

from perf.accuracy import fit, instruction_errors, truth
from triton_gelu.core.arithmetic import INTERPRETED
from triton_gelu.formulas import FORMULAS, Approximate
from triton_gelu.formulas.device import d2gelu, dgelu, gelu

HALVES = (torch.float16, torch.bfloat16)
TRITON = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
VALUE, SLOPE, BEND = range(3)
COLS = 512
FLUSHED = 2.0**-120

CAPABLE = pytest.mark.parametrize("capable", [False, True], ids=["pure", "pairs"])


@triton.jit
def evaluate(
    u_ptr, y_ptr, FORMULA: tl.constexpr, DTYPE: tl.constexpr, CAPABLE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Value, first and second derivative, before they are rounded to DTYPE."""
    at = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    u = tl.load(u_ptr + at) + 0.0  # as in the kernels, where it is a sum
    tl.store(y_ptr + at, gelu(u, FORMULA, DTYPE, CAPABLE, CAPABLE))
    tl.store(y_ptr + ROWS * COLS + at, dgelu(u, FORMULA, DTYPE, CAPABLE, CAPABLE))
    tl.store(y_ptr + 2 * ROWS * COLS + at, d2gelu(u, FORMULA, DTYPE, CAPABLE, CAPABLE))


def unrounded(x: torch.Tensor, formula: str, capable: bool = False) -> torch.Tensor:
    """[3, n]: value and derivatives at x, for results in the type of x, in float32."""
    rows = triton.next_power_of_2(triton.cdiv(x.numel(), COLS))
    u = torch.zeros(rows * COLS, device=DEVICE)
    u[: x.numel()] = x
    y = torch.empty(3, rows * COLS, device=DEVICE)
    with np.errstate(all="ignore"):
        evaluate[(1,)](u, y, formula, TRITON[x.dtype], capable, rows, COLS)
    return y[:, : x.numel()].cpu()


def results(x: torch.Tensor, formula: str, capable: bool = False) -> torch.Tensor:
    """The same, rounded to the type of x."""
    return unrounded(x, formula, capable).to(x.dtype)


@functools.cache
def exact(dtype: torch.dtype, formula: str, order: int) -> torch.Tensor:
    """The truth at every number of a 16-bit type."""
    return truth.gelu(truth.every(dtype).double(), formula, order)


@pytest.fixture(params=[0, 1, -1], ids=["as interpreted", "high", "low"])
def errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Approximate instructions as they are, then off by the most that is documented, up and down."""
    if request.param and not INTERPRETED:
        pytest.skip("this is silicon")
    with instruction_errors.approximate(request.param):
        yield


def test_the_names_of_the_type_are_those_of_the_list():
    assert get_args(Approximate) == tuple(FORMULAS)
    assert all(formula.name == name for name, formula in FORMULAS.items())


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_truth_is_what_pytorch_calls_the_formula(formula):
    u = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    standard = FORMULAS[formula].standard(u)
    assert torch.equal(eval(FORMULAS[formula].spelling.format(u="u"), {"u": u, "torch": torch, "F": F}), standard)
    torch.testing.assert_close(truth.gelu(u, formula), standard, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_truth_agrees_with_multiple_precision(formula):
    def value(u):
        return u * FORMULAS[formula].exact(u, mpmath)

    points = [*np.linspace(-9, 6, 40), -13.0, -1e-3, 1e-3, 1e-30, -1e-30]
    u = torch.tensor(points, dtype=torch.float64)
    with mpmath.workdps(80):
        for order in (VALUE, SLOPE, BEND):
            expected = [float(mpmath.diff(value, mpmath.mpf(p), order)) for p in points]
            expected = torch.tensor(expected, dtype=torch.float64)
            scale = truth.largest_term(u, formula, order) if order else expected.abs()
            error = (truth.gelu(u, formula, order) - expected).abs() / scale
            assert error.max() < 1e-13


@CAPABLE
@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_every_16_bit_input_is_rounded_almost_correctly(formula, dtype, capable, errors):
    x = truth.every(dtype)
    finite = x.isfinite()
    for order, y in enumerate(results(x, formula, capable)):
        true = exact(dtype, formula, order)
        size = true.abs()
        error = truth.ulps(y, true)
        kept = finite & (size >= FLUSHED)
        crossing = kept & (size < 0.01) & (x.abs() < 4) & (order > VALUE)
        normal = kept & (size >= torch.finfo(dtype).tiny) & ~crossing
        subnormal = kept & (size < torch.finfo(dtype).tiny) & ~crossing

        assert error[normal].max() <= (0.55 if order == VALUE else 0.6)
        assert (error[crossing] <= 2).all()
        assert (error[subnormal] <= 1).all()
        assert (y[finite & ~kept].abs() <= FLUSHED).all()
        assert (error[finite] <= 0.5).double().mean() >= 0.99
        assert error[~finite].max() == 0


UNROUNDED = {torch.float16: 1e-5, torch.bfloat16: 5e-5}


@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_slopes_that_a_bias_gradient_sums_are_right_before_rounding_and_on_average(formula, dtype):
    x, index = truth.every(dtype).double().nan_to_num(nan=torch.inf).sort()
    finite = x.isfinite()
    error = unrounded(truth.every(dtype), formula)[SLOPE].double() - exact(dtype, formula, SLOPE)
    x, error = x[finite], error[index][finite]
    assert error.abs().max() <= UNROUNDED[dtype]
    assert error[x.abs() < 1e-4].abs().max() <= 5e-7  # at 0 the slope is 1/2

    near = x.abs() < 8
    x, error = x[near], error[near]
    distance = torch.cat(torch.gradient(x))
    for deviation in (0.05, 0.3, 1.0):
        for mean in torch.linspace(-3, 3, 61, dtype=torch.float64):
            share = distance * torch.exp(-(((x - mean) / deviation) ** 2) / 2)
            assert abs((share * error).sum() / share.sum()) <= UNROUNDED[dtype] / 5


@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_16_bit_results_rise_and_fall_only_where_the_function_does(formula, dtype, errors):
    x, index = truth.every(dtype).double().nan_to_num(nan=torch.inf).sort()
    y = results(truth.every(dtype), formula)[VALUE].double()[index][x.isfinite()]
    true = exact(dtype, formula, VALUE)[index][x.isfinite()]
    assert (y.diff() * true.diff().sign() >= 0).all()


def float32_points(count: int, formula: str) -> torch.Tensor:
    """Log-spaced over the whole range, more where the function bends, and around powers of two and the slope's zero."""
    generator = np.random.default_rng(0)
    everywhere = np.exp2(generator.uniform(-149, 127.9, count // 4))
    bends = [np.exp2(generator.uniform(-12, 7, count // 8)), generator.uniform(0, 14, count // 8)]
    powers = np.exp2(np.arange(-126.0, 127))[:, None] * (1 + np.arange(-8, 9) * 2.0**-23)
    grid = np.linspace(-1, -0.5, 10_001)
    zero = np.interp(0, truth.gelu(torch.from_numpy(grid), formula, SLOPE).numpy(), grid)
    positive = np.concatenate([everywhere, *bends, powers.ravel(), -zero * (1 + np.arange(-500, 501) * 2.0**-23)])
    return torch.from_numpy(np.concatenate([-positive, positive]).astype(np.float32))


# Value, in ulp of the result, the first for all and the second for 99.9 % of inputs; derivatives, in ulp of the
# largest term of the sum that they are: what cancels in that sum cannot be had back.
FLOAT32_BOUNDS = {"sigmoid": (3, 2, 4, 6), "tanh": (3.5, 2, 5, 8), "none": (5, 3, 4, 4)}


def assert_float32_is_within_its_bounds(x: torch.Tensor, formula: str) -> None:
    u = x.double()
    most, nearly_all, *sums = FLOAT32_BOUNDS[formula]
    y = results(x, formula)
    true = truth.gelu(u, formula)
    error = truth.ulps(y[VALUE], true)[true.abs() >= FLUSHED]
    assert error.max() <= most
    assert error.quantile(0.999) <= nearly_all
    for order, bound in zip((SLOPE, BEND), sums, strict=True):
        true = truth.gelu(u, formula, order)
        scale = truth.largest_term(u, formula, order)
        counts = scale >= FLUSHED
        assert truth.ulps(y[order], true, scale)[counts].max() <= bound
        if order == SLOPE:
            assert truth.ulps(y[order], true)[u >= 0].max() <= 3


@pytest.mark.parametrize("formula", FORMULAS)
def test_float32_is_within_a_few_ulp(formula, errors):
    assert_float32_is_within_its_bounds(float32_points(40_000, formula), formula)


@pytest.mark.slow
@pytest.mark.parametrize("formula", FORMULAS)
def test_ten_million_float32_inputs_are_within_a_few_ulp(formula, errors):
    points = float32_points(10_000_000, formula)
    for start in range(40):
        assert_float32_is_within_its_bounds(points[start::40], formula)


@pytest.mark.parametrize("formula", FORMULAS)
def test_packed_instructions_leave_the_float32_bits_alone(formula):
    x = float32_points(10_000, formula)
    assert torch.equal(results(x, formula, capable=True), results(x, formula))


@CAPABLE
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_special_values_need_no_special_case(formula, dtype, capable):
    inf, nan, most = torch.inf, torch.nan, torch.finfo(dtype).max
    x = torch.tensor([inf, nan, -inf, nan, most, -most, 0.0, -0.0, nan, 1.0], dtype=dtype)
    value, slope, bend = results(x, formula, capable)
    ends = [0, 2, 4, 5, 6, 7]
    assert value[ends].tolist() == [inf, 0, most, 0, 0, 0]
    assert slope[ends[:4]].tolist() == [1, 0, 1, 0]
    assert truth.ulps(slope[ends[4:]], torch.full((2,), 0.5, dtype=torch.float64)).max() <= 1
    assert bend[ends[:4]].tolist() == [0, 0, 0, 0]
    for each in (value, slope, bend):
        assert each.isnan().tolist() == x.isnan().tolist()


def test_a_negative_zero_loses_its_sign():
    x = torch.tensor([-0.0, 0.0])
    for formula in FORMULAS:
        assert not results(x, formula)[VALUE].signbit().any()


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_values_at_x_and_minus_x_differ_by_x(formula):
    x = float32_points(10_000, formula).abs()
    difference = results(x, formula)[VALUE].double() - results(-x, formula)[VALUE].double()
    assert truth.ulps(difference.float(), x.double()).max() <= 2


def test_the_polynomials_are_what_a_fit_finds():
    for polynomial, present in zip(fit.all_fits(), fit.in_the_files(), strict=True):
        again = polynomial.solve()
        assert np.allclose(present, again, rtol=1e-6) or polynomial.error(present) <= 1.05 * polynomial.error(again)
