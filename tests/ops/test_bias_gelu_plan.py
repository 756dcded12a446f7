"""The launch plans of bias_gelu, which can be read on any machine."""

import math
from dataclasses import replace

import pytest

from triton_gelu.core import in_flight
from triton_gelu.core.in_flight import InFlight
from triton_gelu.core.matrices import Matrices, matrices
from triton_gelu.core.plan import Backward, Launch
from triton_gelu.core.targets import TARGETS, Target
from triton_gelu.core.tiling import Tile, backward_tile, forward_tile, partial_sums
from triton_gelu.ops import bias_gelu_plan

H100, MI300X = TARGETS["h100"], TARGETS["mi300x"]
KERNEL_LIMITS = (2**31 - 1, 65535, 65535)


def dense(*shape: int, dim: int | None) -> Matrices:
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    m = matrices(shape, dim, strides, strides, strides)
    assert m is not None
    return m


def plan(m: Matrices, itemsize: int = 2) -> tuple[Launch, Backward]:
    return bias_gelu_plan.forward_launch(m, itemsize, "tanh", H100), backward_plan(m, itemsize, H100)


def backward_plan(m: Matrices, itemsize: int, target: Target) -> Backward:
    return bias_gelu_plan.backward_launches(
        m, itemsize, "tanh", target, needs_dy=False, needs_x=True, needs_bias=m.bias != "none"
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
def test_partial_sums_take_a_tenth_of_the_traffic_at_most_and_of_large_calls_a_fortieth(
    shape: tuple[int, ...], dim: int | None, itemsize: int
) -> None:
    m = dense(*shape, dim=dim)
    traffic = 3 * itemsize * math.prod(shape)
    for target in TARGETS.values():
        backward = backward_plan(m, itemsize, target)
        partial = 8 * backward.partials * m.bias_size if backward.reduce else 0
        assert partial <= (0.025 if traffic >= 3 * 2**25 else 0.1) * traffic


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
@pytest.mark.parametrize(("shape", "dim"), [
    ((2048, 4096), 1), ((1638, 5120), 1), ((5592, 1500), 1), ((3, 1280, 3000), 1), ((5, 1280, 1500), 1),
], ids=str)  # fmt: skip
def test_16_megabytes_have_four_programs_a_processor_in_both_passes(
    shape: tuple[int, ...], dim: int, target: Target
) -> None:
    m = dense(*shape, dim=dim)
    forward = bias_gelu_plan.forward_launch(m, 2, "tanh", target)
    backward = backward_plan(m, 2, target)
    fewest = 3.8 if target.processors > 200 else 4  # shares are whole steps
    for launch in (forward, backward.main):
        assert math.prod(launch.grid) >= fewest * target.processors


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
@pytest.mark.parametrize("channels", [1280, 768, 384])
@pytest.mark.parametrize("frames", [1500, 3000])
def test_the_backward_pass_of_a_convolution_is_one_full_wave(frames: int, channels: int, target: Target) -> None:
    m = dense(32, channels, frames, dim=1)
    main = backward_plan(m, 2, target).main
    places = target.processors * in_flight.backward(target, m.alignment(8), "rows", "tanh", double=False).programs
    assert 0.9 * places <= math.prod(main.grid) <= places


@pytest.mark.parametrize(("shape", "dim"), [((2000, 1536), 1), ((12000, 5120), 1), ((8, 1280, 3000), 1)], ids=str)
def test_calls_of_16_megabytes_fill_an_h100(shape: tuple[int, ...], dim: int) -> None:
    _, backward = plan(dense(*shape, dim=dim))
    assert math.prod(backward.main.grid) >= 132


A100, B200 = TARGETS["a100"], TARGETS["b200"]


@pytest.mark.parametrize(("target", "m", "formula", "unroll", "loads", "registers"), [
    (A100, dense(4096, 768, dim=1), "tanh", 1, "free", 64),
    (A100, dense(4096, 1500, dim=1), "tanh", 2, "free", None),
    (H100, dense(4096, 768, dim=1), "tanh", 2, "tied", 80),
    (B200, dense(4096, 768, dim=1), "tanh", 2, "tied", 64),
    (B200, dense(8, 1280, 1500, dim=1), "tanh", 2, "tied", 72),
    (B200, dense(8, 1280, 1500, dim=1), "none", 2, "tied", 64),
    (B200, dense(4096, 1501, dim=1), "tanh", 2, "free", None),
    (MI300X, dense(4096, 768, dim=1), "tanh", 1, "free", None),
], ids=str)  # fmt: skip
def test_a_backward_pass_asks_for_as_many_bytes_as_its_gpu_wants(
    target: Target, m: Matrices, formula: str, unroll: int, loads: str, registers: int | None
) -> None:
    main = bias_gelu_plan.backward_launches(m, 2, formula, target, needs_dy=False, needs_x=True, needs_bias=True).main
    constants = dict(main.constants)
    assert (constants["UNROLL"], constants["LOADS"], main.registers) == (unroll, loads, registers)
    assert main.options == {"num_warps": 4 * 32 // target.warp} | ({"maxnreg": registers} if registers else {})


def test_a_second_backward_pass_has_one_step_at_a_time() -> None:
    m = dense(4096, 768, dim=1)
    main = bias_gelu_plan.backward_launches(m, 2, "tanh", B200, needs_dy=True, needs_x=True, needs_bias=True).main
    assert (dict(main.constants)["UNROLL"], main.registers) == (1, None)


@pytest.mark.parametrize("target", [A100, H100, B200], ids=lambda target: target.name)
def test_64_threads_of_a_forward_pass_ask_for_8_accesses_at_once_unless_those_are_narrow(target: Target) -> None:
    launch = bias_gelu_plan.forward_launch(dense(4096, 768, dim=1), 2, "tanh", target)
    assert (dict(launch.constants)["UNROLL"], dict(launch.constants)["LOADS"], launch.num_warps) == (8, "tied", 2)
    launch = bias_gelu_plan.forward_launch(dense(4096, 1501, dim=1), 2, "tanh", target)
    assert (dict(launch.constants)["UNROLL"], dict(launch.constants)["LOADS"]) == (4, "free")


def test_a_program_has_as_many_threads_where_warps_are_twice_as_large() -> None:
    wide, narrow = MI300X, replace(MI300X, warp=32)
    for m in (dense(4096, 768, dim=1), dense(4096, 96, dim=1), dense(8, 1280, 1500, dim=1)):
        few, many = (bias_gelu_plan.forward_launch(m, 2, "tanh", target) for target in (wide, narrow))
        assert 2 * few.num_warps == many.num_warps
        assert 2 * backward_plan(m, 2, wide).main.num_warps == backward_plan(m, 2, narrow).main.num_warps


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


TILES = [  # of float16: shape, dim of the bias; forward tile of 4 warps, 4 accesses a thread, of 2 and 8; backward
    ((4096, 4096), 1, Tile(4, 1024, 4), Tile(8, 512, 2), Tile(4, 256)),  # warps next to each other; a warp for each row
    ((4096, 1536), 1, Tile(4, 512, 2), Tile(8, 512, 2), Tile(4, 256)),
    ((4096, 96), 1, Tile(128, 32), Tile(128, 32, 2), Tile(32, 32)),
    ((8, 1280, 3000), 1, Tile(32, 128), Tile(32, 128, 2), Tile(8, 128)),  # narrow: little is wasted at the end of a row
    ((8, 1280, 3001), 1, Tile(8, 512), Tile(8, 512, 2), Tile(8, 128)),  # narrow accesses
    ((20480,), None, Tile(1, 4096), Tile(1, 4096, 2), Tile(1, 1024)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "dim", "forward", "tied", "backward"), TILES, ids=str)
def test_tiles_follow_from_the_width_and_where_the_bias_lies(
    shape: tuple[int, ...], dim: int | None, forward: Tile, tied: Tile, backward: Tile
) -> None:
    m = dense(*shape, dim=dim)
    assert forward_tile(m, 2, 1, InFlight(4, "", warps=4)) == forward
    assert forward_tile(m, 2, 1, InFlight(8, "", warps=2)) == tied
    assert backward_tile(m, 2, 1, places=8 * 148) == backward
    assert backward_tile(m, 2, 32, 1).rows * backward_tile(m, 2, 32, 1).cols > backward.rows * backward.cols


@pytest.mark.parametrize(("batch", "length"), [(1, 4096), (7, 1500), (300, 1500), (1, 1), (70000, 3)])
@pytest.mark.parametrize("wanted", [1, 4, 1056])
def test_partial_sums_cover_everything_with_as_many_programs_as_are_wanted_at_most(
    batch: int, length: int, wanted: int
) -> None:
    sums = partial_sums(batch, length, 16, wanted, itemsize=2, share=0.025)
    assert sums.count <= max(wanted, 1)
    assert sums.count == -(-batch // sums.batches) * sums.segments
    assert sums.segments * sums.steps * 16 >= length > (sums.segments - 1) * sums.steps * 16


def test_a_small_sum_is_not_shared_out() -> None:
    assert (
        partial_sums(1, 60, 4, wanted=1056, itemsize=2, share=0.025).count == 1
    )  # two programs would write more than they save
    assert partial_sums(1, 1 << 20, 4, wanted=1056, itemsize=2, share=0.025).count > 1000


def test_a_bias_that_was_added_before_has_a_gradient_too() -> None:
    m = dense(8, 1280, 1500, dim=1)
    plan = bias_gelu_plan.backward_launches(m, 2, "tanh", H100, needs_dy=False, needs_x=True, needs_bias=True)
    constants = dict(plan.main.constants)
    assert (constants["BIAS"], constants["NEEDS_BIAS"]) == ("rows", True)
    assert plan.reduce is not None
    assert plan.reduce.integers == (plan.partials, 1280)
