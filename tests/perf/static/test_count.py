"""What is known of a GPU, and how the programs of a launch are added up."""

from __future__ import annotations

import pytest

from perf.static import count
from perf.static.gpus import GPUS

TTIR = """
  tt.func public @toy(%x: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("x"), %y: !tt.ptr<f32> loc("y"), %n: i32) {
    %0 = tt.splat %x : !tt.ptr<bf16> -> tensor<8x!tt.ptr<bf16>> loc(#loc)
    %1:2 = scf.for %i = %c0 to %n step %c1 iter_args(%total = %zero, %p = %0) -> (f32, tensor<8x!tt.ptr<bf16>>) {
      %2 = tt.addptr %p, %i : tensor<8x!tt.ptr<bf16>>, tensor<8xi32> loc(#loc)
      %3 = tt.load %2, %mask, %other : tensor<8x!tt.ptr<bf16>> loc(#loc)
    }
    tt.store %y, %4 : !tt.ptr<f32> loc(#loc)
"""


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 3, 1), (20, 6000, 1), (7, 32768, 5)])
def test_the_sampled_programs_stand_for_the_whole_grid(grid: tuple[int, int, int]) -> None:
    weights = dict(count.sample(grid))
    assert sum(weights.values()) == grid[0] * grid[1] * grid[2]
    assert all(0 <= place < size for program in weights for place, size in zip(program, grid, strict=True))


def test_loads_and_stores_are_followed_through_pointer_arithmetic() -> None:
    assert count.accessed(TTIR) == ({0}, {1})


@pytest.mark.parametrize(
    ("registers", "shared", "blocks"), [(80, 0, 6), (81, 0, 5), (32, 0, 16), (32, 40 * 1024, 5), (255, 0, 2)]
)
def test_registers_and_shared_memory_limit_how_many_blocks_are_resident(
    registers: int, shared: int, blocks: int
) -> None:
    assert GPUS["h100"].resident_blocks(registers, shared, warps_per_block=4) == blocks


def test_a_processor_of_sm_89_holds_48_warps_in_24_blocks() -> None:
    for key in ("l40s", "rtx4090", "rtx5090"):
        assert GPUS[key].resident_blocks(16, 0, warps_per_block=1) == 24
        assert GPUS[key].resident_blocks(32, 0, warps_per_block=4) == 12
    assert GPUS["a100"].resident_blocks(32, 0, warps_per_block=4) == 16


def test_an_amd_compute_unit_holds_eight_waves_of_64_registers_on_each_simd() -> None:
    assert GPUS["mi300x"].resident_blocks(64, 0, warps_per_block=4) == 8


def test_the_budget_of_instructions_is_what_memory_leaves_time_for() -> None:
    gpu = GPUS["b200"]
    elements = gpu.bandwidth / 4  # bf16 in, bf16 out
    assert gpu.per_second("issue") / elements == pytest.approx(18.3, abs=0.1)
    assert gpu.per_second("xu") / elements == pytest.approx(2.3, abs=0.05)


def test_every_number_about_a_gpu_has_a_source_and_says_how_sure_it_is() -> None:
    for gpu in GPUS.values():
        for datum in (gpu.target.bandwidth, gpu.target.clock, *gpu.chip.lanes.values()):
            assert datum is not None
            assert datum.source
            assert datum.sure in ("published", "derived", "assumed")
