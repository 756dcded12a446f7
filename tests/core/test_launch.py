"""Launch plans: read on any machine."""

import math

import pytest

from triton_gelu.core.launch import Backward, Launch
from triton_gelu.core.matrices import Matrices, matrices
from triton_gelu.core.targets import TARGETS, Target
from triton_gelu.ops import bias_gelu_plan, bias_gelu_transpose_plan

H100, MI300X = TARGETS["sm_90"], TARGETS["gfx942"]
KERNEL_LIMITS = (2**31 - 1, 65535, 65535)


def dense(*shape: int, dim: int | None) -> Matrices:
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    m = matrices(shape, dim, strides, strides, strides)
    assert m is not None
    return m


def plan(m: Matrices, itemsize: int = 2) -> tuple[Launch, Backward]:
    return (
        bias_gelu_plan.forward(m, itemsize, "tanh", H100),
        bias_gelu_plan.backward(m, itemsize, "tanh", H100, needs_dy=False, needs_x=True, needs_bias=m.bias != "none"),
    )


SHAPES = [
    ((32, 10, 64), 2), ((4096, 768), 1), ((12000, 5120), 1), ((1500, 384), 1), ((1000000, 64), 1), ((1, 16384), 1),
    ((64, 16384), 1), ((8, 1280, 3000), 1), ((1, 80, 480000), 1), ((64, 256, 56, 56), 1), ((5000, 64, 7), 1),
    ((3, 1000000), 0), ((20480,), None), ((1 << 31,), None), ((1 << 21, 1025), 1), ((1,), 0), ((2, (1 << 27) + 8), 0),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_element_is_covered_and_grids_stay_in_bounds(
    shape: tuple[int, ...], dim: int | None, itemsize: int
) -> None:
    m = dense(*shape, dim=dim)
    forward, backward = plan(m, itemsize)
    for launch in (forward, backward.main):
        assert all(0 < n <= limit for n, limit in zip(launch.grid, KERNEL_LIMITS, strict=True))
    constants = dict(forward.constants)
    tiles = forward.grid[1] * forward.grid[2] * constants["BLOCK_ROWS"]
    assert forward.grid[0] * constants["BLOCK_COLS"] >= m.cols
    assert tiles >= m.batch * m.rows
    constants = dict(backward.main.constants)
    _, _, _, segments, batches, steps, *_ = backward.main.integers
    fixed, length = (m.rows, m.cols) if m.bias == "rows" else (m.cols, m.rows)
    block, step = constants["BLOCK_COLS"], constants["BLOCK_ROWS"]
    if m.bias == "rows":
        block, step = step, block
    assert backward.main.grid[0] * block >= fixed
    assert backward.partials % segments == 0
    assert backward.partials // segments * batches >= m.batch
    part = steps * step * constants["UNROLL"]
    assert segments * part >= length
    assert (segments - 1) * part < length  # no program has nothing to add


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
def test_partial_sums_of_large_calls_take_two_percent_of_the_traffic(
    shape: tuple[int, ...], dim: int | None, itemsize: int
) -> None:
    m = dense(*shape, dim=dim)
    traffic = 3 * itemsize * math.prod(shape)
    if dim is None or traffic < 16e6:
        return
    _, backward = plan(m, itemsize)
    partial = 8 * backward.partials * m.bias_size if backward.reduce else 0
    assert partial <= 0.021 * traffic


@pytest.mark.parametrize(("shape", "dim"), [((2000, 1536), 1), ((12000, 5120), 1), ((8, 1280, 3000), 1)], ids=str)
def test_calls_of_16_megabytes_fill_an_h100(shape: tuple[int, ...], dim: int) -> None:
    _, backward = plan(dense(*shape, dim=dim))
    assert math.prod(backward.main.grid) >= 132


@pytest.mark.parametrize(("target", "cols", "needs_dy", "limited"), [
    (H100, 768, False, True), (MI300X, 768, False, False), (H100, 1501, False, False), (H100, 768, True, False),
])  # fmt: skip
def test_nvidia_s_compiler_is_told_how_many_programs_share_a_processor_where_accesses_are_wide(
    target: Target, cols: int, needs_dy: bool, limited: bool
) -> None:
    m = dense(4096, cols, dim=1)
    plan = bias_gelu_plan.backward(m, 2, "tanh", target, needs_dy=needs_dy, needs_x=True, needs_bias=True)
    assert plan.main.options == {"num_warps": 4 * 32 // target.warp} | ({"maxnreg": 64} if limited else {})


def test_a_program_has_as_many_threads_where_warps_are_twice_as_large() -> None:
    target = MI300X
    needs = {"needs_dy": False, "needs_x": True, "needs_bias": True}
    for m in (dense(4096, 768, dim=1), dense(4096, 96, dim=1), dense(8, 1280, 1500, dim=1)):
        assert 2 * bias_gelu_plan.forward(m, 2, "tanh", target).num_warps == plan(m)[0].num_warps
        assert 2 * bias_gelu_plan.backward(m, 2, "tanh", target, **needs).main.num_warps == plan(m)[1].main.num_warps


def test_few_rows_need_no_second_launch() -> None:
    _, backward = plan(dense(64, 16384, dim=1))
    assert backward.partials == 1
    assert backward.reduce is None


@pytest.mark.parametrize(
    ("shapes", "dim"),
    [
        ([(rows, 768) for rows in (1, 2, 7, 64, 1000, 4096, 100000)], 1),
        ([(batch, 80, 1500) for batch in (1, 2, 7, 64)], 1),
        ([(8, 80, frames) for frames in (1500, 2996, 300, 1004)], 1),
    ],
    ids=["number of tokens", "batch size", "sequence length of one divisibility class"],
)
def test_a_new_size_does_not_change_what_is_compiled(shapes: list[tuple[int, ...]], dim: int) -> None:
    plans = [plan(dense(*shape, dim=dim)) for shape in shapes]
    forward = {tuple(item for item in f.constants if item[0] != "BATCHED") for f, _ in plans}
    assert len(forward) == 1
    assert len({b.main.constants for _, b in plans}) == 1


def test_integers_stay_small_enough_for_32_bits_unless_a_size_is_not() -> None:
    forward, _ = plan(dense(1 << 21, 1025, dim=1))
    assert dict(forward.constants)["INT64_INDEX"] is False
    forward, _ = plan(dense((1 << 31) + 8, dim=None))
    assert dict(forward.constants)["INT64_INDEX"] is True
    _, backward = plan(dense(1 << 12, 1 << 20, dim=1))  # few programs: each reaches far
    assert dict(backward.main.constants)["INT64_INDEX"] is True


TRANSPOSED = [(32, 1280, 1500), (1, 384, 1501), (5, 7, 3), (70000, 16, 64), (2, 1 << 20, 1 << 20), (1, 5_000_000, 1)]


@pytest.mark.parametrize("shape", TRANSPOSED, ids=str)
def test_every_element_is_transposed_and_grids_stay_in_bounds(shape: tuple[int, int, int]) -> None:
    batch, rows, cols = shape
    forward, backward = transpose_plan(shape)
    for launch in (forward, backward.main):
        assert all(0 < n <= limit for n, limit in zip(launch.grid, KERNEL_LIMITS, strict=True))
        constants = dict(launch.constants)
        assert launch.integers[1:3] == (rows // constants["ALIGN_Y"], cols // constants["ALIGN"])
        _, _, _, col_tiles, batches, *_ = launch.integers
        assert col_tiles * constants["BLOCK_COLS"] >= cols
        assert launch.grid[0] // col_tiles * constants["BLOCK_ROWS"] >= rows
        assert launch.grid[1] * batches >= batch
        assert constants["BLOCK_ROWS"] * constants["BLOCK_COLS"] >= 4 * 32 * launch.num_warps  # four a thread, or more
    assert backward.partials == backward.main.integers[3] * backward.main.grid[1]


def transpose_plan(shape: tuple[int, int, int]) -> tuple[Launch, Backward]:
    _, rows, cols = shape
    x, dy = (rows * cols, cols, 1), (rows * cols, rows, 1)
    return (
        bias_gelu_transpose_plan.forward(shape, x, "tanh", H100),
        bias_gelu_transpose_plan.backward(shape, x, dy, "tanh", H100, needs_bias=True),
    )


def test_a_new_batch_or_sequence_does_not_change_what_transposes() -> None:
    plans = [transpose_plan(shape) for shape in ((1, 384, 1500), (7, 384, 1500), (64, 384, 300), (64, 384, 2996))]
    assert len({forward.constants for forward, _ in plans}) == 1
    assert len({backward.main.constants for _, backward in plans}) == 1


def test_a_transposition_counts_in_64_bits_where_a_tile_reaches_far() -> None:
    for shape, wide in (((2, 384, 1500), False), ((1, 1 << 26, 64), True), ((1, 64, 1 << 26), True)):
        forward, backward = transpose_plan(shape)
        assert dict(forward.constants)["INT64_INDEX"] == dict(backward.main.constants)["INT64_INDEX"] == wide
