"""The launch plans of bias_gelu_transpose, which can be read on any machine."""

import pytest

from triton_gelu.core.plan import Backward, Launch
from triton_gelu.core.targets import TARGETS
from triton_gelu.ops import bias_gelu_transpose_plan

H100 = TARGETS["h100"]
KERNEL_LIMITS = (2**31 - 1, 65535, 65535)

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
    tiles = bias_gelu_transpose_plan.tiles(shape, bias_gelu_transpose_plan.BACKWARD, H100)
    assert backward.main.integers[3] == tiles.col_tiles
    assert backward.partials == tiles.partials == tiles.col_tiles * backward.main.grid[1]


def transpose_plan(shape: tuple[int, int, int]) -> tuple[Launch, Backward]:
    _, rows, cols = shape
    x, dy = (rows * cols, cols, 1), (rows * cols, rows, 1)
    return (
        bias_gelu_transpose_plan.forward_launch(shape, x, "tanh", H100),
        bias_gelu_transpose_plan.backward_launches(shape, x, dy, "tanh", H100, needs_bias=True),
    )


def test_a_new_batch_or_sequence_does_not_change_what_transposes() -> None:
    plans = [transpose_plan(shape) for shape in ((1, 384, 1500), (7, 384, 1500), (64, 384, 300), (64, 384, 2996))]
    assert len({forward.constants for forward, _ in plans}) == 1
    assert len({backward.main.constants for _, backward in plans}) == 1


def test_a_transposition_counts_in_64_bits_where_a_tile_reaches_far() -> None:
    for shape, wide in (((2, 384, 1500), False), ((1, 1 << 26, 64), True), ((1, 64, 1 << 26), True)):
        forward, backward = transpose_plan(shape)
        assert dict(forward.constants)["INT64_INDEX"] == dict(backward.main.constants)["INT64_INDEX"] == wide
