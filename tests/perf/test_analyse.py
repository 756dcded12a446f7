"""Kernels are counted for GPUs that are not here: by hand once, then against the budget and against the last count."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from perf import amdgcn, compare, count, figures, plot_headroom, results, sass
from perf.__main__ import main
from perf.gpus import A100, B200, GPU, GPUS, H100, MI300X
from perf.machine import Code, Untraceable, walk

ROOT = Path(__file__).parents[2]
BASELINE = ROOT / "perf" / "data" / "baseline.jsonl"

# What cuobjdump says of a kernel with the arguments (pointer, i32), the second at 0x160 + 8 of constant bank 0.
ELF = """
	Attribute:	EIATTR_REGCOUNT
	Value:	function: toy(0xc)	register count: 14
	Attribute:	EIATTR_MIN_STACK_SIZE
	Value:	function: toy(0xc)	min stack size: 0x0
	Attribute:	EIATTR_PARAM_CBANK
	Format:	EIFMT_SVAL
	Value:	0x5 0x100160
	Value:	Index : 0x0	Ordinal : 0x1	Offset  : 0x8	Size    : 0x4
	Value:	Index : 0x0	Ordinal : 0x0	Offset  : 0x0	Size    : 0x8
"""

# Counted by hand, with 3 for the second argument:
#   before the loop  6: IMAD, S2R, MOV, ISETP, ISETP and the BRA, which is issued though it is not taken (P1 is true)
#   in the loop      7, three times: CS2R, LDG, FADD, MUFU, IADD3, ISETP, BRA; the LDG is issued for any lanes
#   after it         3: the EXIT ends only the lanes with P0, the STG and the last EXIT are issued for the others
# The branch to itself and the NOP behind it are padding.
#   integer 9 = IMAD + 2 ISETP + 3 (IADD3 + ISETP)    alu 4 = MOV + 3 CS2R    memory 5 = S2R + 3 LDG + STG
#   control 6 = BRA + 3 BRA + 2 EXIT                  fma 3, mufu 3           together 30 = 6 + 3 * 7 + 3
LOOP = """
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
        /*0010*/                   S2R R0, SR_TID.X ;
        /*0020*/                   MOV R4, RZ ;
        /*0030*/                   ISETP.GE.AND P0, PT, R0.reuse, 0x40, PT ;
        /*0040*/                   ISETP.LT.AND P1, PT, RZ, c[0x0][0x168], PT ;
        /*0050*/              @!P1 BRA `(.L_x_1) ;
.L_x_0:
        /*0060*/                   CS2R R2, SRZ ;
        /*0070*/              @!P0 LDG.E.128 R8, [R2.64] ;
        /*0080*/                   FADD R12, R8, R9 ;
        /*0090*/                   MUFU.EX2 R12, R12 ;
        /*00a0*/                   IADD3 R4, R4, 0x1, RZ ;
        /*00b0*/                   ISETP.GE.AND P2, PT, R4, c[0x0][0x168], PT ;
        /*00c0*/              @!P2 BRA `(.L_x_0) ;
.L_x_1:
        /*00d0*/               @P0 EXIT ;
        /*00e0*/                   STG.E [R2.64], R12 ;
        /*00f0*/                   EXIT ;
.L_x_2:
        /*0100*/                   BRA `(.L_x_2);
        /*0110*/                   NOP;
"""

# Counted by hand: S2R, ISETP and BRA; then both ways, 2 and 1; then EXIT.
FORK = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   ISETP.GE.AND P0, PT, R0, 0x7, PT ;
        /*0020*/               @P0 BRA `(.L_x_1) ;
        /*0030*/                   FADD R1, R1, R1 ;
        /*0040*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0050*/                   FMUL R1, R1, R1 ;
.L_x_2:
        /*0060*/                   EXIT ;
"""

# Counted by hand, with 3 for the argument, which is preloaded into s2, and workgroup 1 in s3:
# s_mov once, the loop of v_add, s_add, s_cmp and s_cbranch twice (s4 goes 1, 2, 3), s_endpgm once: 10.
AMD_LOOP = """
	s_mov_b32 s4, s3
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	v_add_f32_e32 v1, v1, v1
	s_add_i32 s4, s4, 1
	s_cmp_lt_i32 s4, s2
	s_cbranch_scc1 .LBB0_1
	s_endpgm
		.amdhsa_user_sgpr_count 3
		.amdhsa_user_sgpr_kernarg_preload_length 1
		.amdhsa_user_sgpr_kernarg_preload_offset 0
		.amdhsa_system_sgpr_workgroup_id_x 1
		.amdhsa_system_sgpr_workgroup_id_y 0
		.amdhsa_system_sgpr_workgroup_id_z 0
	.amdgpu_metadata
      - .offset:         0
        .size:           4
    .private_segment_fixed_size: 0
    .vgpr_count:     2
"""

TTIR = """
  tt.func public @toy(%x: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("x"), %y: !tt.ptr<f32> loc("y"), %n: i32) {
    %0 = tt.splat %x : !tt.ptr<bf16> -> tensor<8x!tt.ptr<bf16>> loc(#loc)
    %1:2 = scf.for %i = %c0 to %n step %c1 iter_args(%total = %zero, %p = %0) -> (f32, tensor<8x!tt.ptr<bf16>>) {
      %2 = tt.addptr %p, %i : tensor<8x!tt.ptr<bf16>>, tensor<8xi32> loc(#loc)
      %3 = tt.load %2, %mask, %other : tensor<8x!tt.ptr<bf16>> loc(#loc)
    }
    tt.store %y, %4 : !tt.ptr<f32> loc(#loc)
"""


def counted(code: Code) -> dict[str, int]:
    """Instructions by heading."""
    found: dict[str, int] = {}
    for place, times in walk(code).times().items():
        heading = code.isa.heading(code.instructions[place])
        found[heading] = found.get(heading, 0) + times
    return found


def test_a_loop_with_predicates_is_counted_as_by_hand() -> None:
    code = sass.code(LOOP, ELF, [None, 3])
    assert counted(code) == {"integer": 9, "alu": 4, "memory": 5, "control": 6, "fma": 3, "mufu": 3}
    assert not walk(code).parted
    assert (code.registers, code.stack) == (14, 0)


def test_a_loop_that_is_not_entered_is_not_counted() -> None:
    assert sum(counted(sass.code(LOOP, ELF, [None, 0])).values()) == 6 + 3


def test_threads_that_part_count_both_ways() -> None:
    code = sass.code(FORK, ELF, [])
    assert sum(counted(code).values()) == 3 + 2 + 1 + 1
    assert walk(code).parted == {2}


def test_a_loop_of_unknown_length_is_refused() -> None:
    with pytest.raises(Untraceable, match="BRA"):
        walk(sass.code(LOOP, ELF, [None, None]))


def test_amd_code_is_counted_as_by_hand() -> None:
    code = amdgcn.code(AMD_LOOP, [3])
    assert sum(walk(code, (1, 0, 0)).times().values()) == 10
    assert sum(walk(code, (2, 0, 0)).times().values()) == 6


def test_an_amd_comparison_outlives_a_constant_made_of_reversed_bits() -> None:
    skip = "s_cmp_lg_u32 s2, 3\n\ts_brev_b32 s5, 0xc0000000\n\ts_cbranch_scc1 .LBB0_1\n\ts_cmp_lg_u32 s5, 3\n\t"
    code = amdgcn.code(AMD_LOOP.replace("s_mov_b32 s4, s3", skip + "s_cbranch_scc1 .LBB0_1\n\ts_endpgm"), [3])
    assert sum(walk(code, (1, 0, 0)).times().values()) == 6


@pytest.mark.parametrize(("gpu", "rounds", "unpacks"), [(A100, "alu", "half"), (H100, "fma", "fma")])
def test_each_gpu_rounds_to_16_bits_and_unpacks_them_in_its_own_pipe(gpu: GPU, rounds: str, unpacks: str) -> None:
    listing = "  /*0000*/ F2FP.BF16.PACK_AB R0, R1, R2 ;\n  /*0010*/ HADD2.F32 R3, -RZ, R4.H0_H0 ;"
    units = [set(sass.Sass().busy(each)) - {"issue"} for each in sass.parse(listing)]
    assert [{gpu.does.get(unit, unit) for unit in each} for each in units] == [{rounds}, {unpacks}]
    assert {rounds, unpacks} <= set(gpu.lanes)


def test_packed_arithmetic_takes_one_slot_and_two_lanes() -> None:
    (instruction,) = sass.parse("        /*0000*/   FFMA2 R4, R4.F32x2.HI_LO, R6.F32x2.HI_LO, R8.F32x2.HI_LO ;")
    assert sass.Sass().busy(instruction) == {"issue": 1, "fma": 2}
    assert sass.Sass().registers(instruction).writes == {"R4", "R5"}


def test_widths_of_accesses_are_read_from_the_opcode() -> None:
    listing = "/*0000*/ LDG.E.128 R8, [R2.64] ;\n /*0010*/ @P0 STG.E.U16 [R2.64], R1 ;\n /*0020*/ LDS.64 R4, [R0] ;"
    found = [sass.Sass().access(each) for each in sass.parse(listing.replace("/*0", "  /*0"))]
    assert found == [("load", 16), ("store", 2), ("shared", 8)]


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
    assert H100.resident_blocks(registers, shared, warps_per_block=4) == blocks


def test_an_amd_compute_unit_holds_eight_waves_of_64_registers_on_each_simd() -> None:
    assert MI300X.resident_blocks(64, 0, warps_per_block=4) == 8


def test_the_budget_of_instructions_is_what_memory_leaves_time_for() -> None:
    elements = B200.bandwidth.value / 4  # bf16 in, bf16 out
    assert B200.per_second("issue") / elements == pytest.approx(17.5, abs=0.1)
    assert B200.per_second("xu") / elements == pytest.approx(2.2, abs=0.05)


def test_every_number_about_a_gpu_has_a_source_and_says_how_sure_it_is() -> None:
    for gpu in GPUS.values():
        for datum in (gpu.bandwidth, gpu.clock, gpu.latency, *gpu.lanes.values()):
            assert datum.source
            assert datum.sure in ("published", "derived", "assumed")


def analyse(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m perf analyse` in a process of its own: this one interprets kernels, and compiles none."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "perf", "analyse", *arguments]
    return subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=600)


TARGETS = ("sm_90", "sm_100", "gfx942")
OURS = ("--set", "baseline", "--provider", figures.LIBRARY, "--target", *TARGETS)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of the small set, compiled now."""
    path = tmp_path_factory.mktemp("analyse") / "rows.jsonl"
    done = analyse(*OURS, "--output", str(path))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "never run" in done.stdout
    return path


def needs_the_compiler_of_the_baseline(fresh: Path) -> None:
    """Skips a test of counts that another compiler may rightly change."""
    made, mine = (compare.version(results.read(path)[0]) for path in (BASELINE, fresh))
    if made != mine:
        pytest.skip(f"the baseline was made with triton {made}, this is {mine}: another compiler, other counts")


def test_counts_are_those_of_the_committed_baseline(fresh: Path) -> None:
    needs_the_compiler_of_the_baseline(fresh)
    assert main(["compare", str(BASELINE), str(fresh), "--exact"]) == 0, (
        f"counts changed. If that is meant: rm {BASELINE}; python -m perf analyse {' '.join(OURS)} --output {BASELINE}"
    )


def test_a_slower_kernel_is_caught(fresh: Path, tmp_path: Path) -> None:
    slower = tmp_path / "slower.jsonl"
    for row in results.read(fresh):
        assert row.value is not None
        more = row.value * {figures.INSTRUCTIONS: 1.1, figures.HEADROOM: 1 / 1.1}.get(row.metric, 1.0)
        results.append(slower, replace(row, value=more))
    assert main(["compare", str(fresh), str(slower)]) == 1
    assert main(["compare", str(slower), str(fresh)]) == 0


def test_no_kernel_spills_or_moves_more_bytes_than_it_may(fresh: Path) -> None:
    limits = {figures.SPILLS: 0, figures.STACK: 0}
    bytes_moved = {"forward": 4.001, "backward": 6.13}
    for row in results.read(fresh):
        assert row.value is not None
        limit = bytes_moved[row.direction] if row.metric == figures.BYTES else limits.get(row.metric, row.value)
        assert row.value <= limit, row


def test_an_amd_gpu_does_at_most_thirty_percent_more_vector_arithmetic(fresh: Path) -> None:
    needs_the_compiler_of_the_baseline(fresh)
    counts: dict[tuple[object, ...], dict[str, float]] = {}
    for row in results.read(fresh):
        if row.metric == figures.VECTOR and row.value is not None:
            counts.setdefault((row.case, row.approximate, row.direction), {})[row.device] = row.value
    assert counts
    for asked, found in counts.items():
        assert found["gfx942"] <= 1.3 * found["sm_90"], asked


@pytest.mark.parametrize("target", TARGETS)
def test_the_threads_of_a_warp_stay_together(target: str, fresh: Path) -> None:
    if target == "gfx942":  # where a masked store is a branch in some versions of the compiler
        needs_the_compiler_of_the_baseline(fresh)
    parted = [row for row in results.read(fresh) if row.metric == figures.PARTED and row.device == target]
    assert [row.value for row in parted] == [0] * len(parted) != []


def test_static_rows_say_that_nothing_ran(fresh: Path) -> None:
    rows = results.read(fresh)
    assert {(row.kind, row.path) for row in rows} == {("static", "compiled offline")}
    assert all(
        row.versions["triton"] and row.versions["fp_fusion"] in ("on", "off") and row.device in TARGETS for row in rows
    )


def test_the_picture_of_headroom_says_that_nothing_ran(fresh: Path) -> None:
    ((_, picture),) = plot_headroom.draw(results.read(fresh))
    assert "nothing ran" in " ".join(text.get_text() for text in picture.texts)
    assert len(picture.axes) == len(TARGETS)


SHARED = re.compile(r"packed_element = 4 .*-> tensor<(\d+)x(\d+)x")
WARPS = re.compile(r'"ttg.num-warps" = (\d+)')


def test_elements_share_a_reciprocal_only_where_each_thread_has_four_of_its_own(tmp_path: Path) -> None:
    """A compiler fills up what a thread lacks by anything, which would spoil the others; no interpreter shows that."""
    asked = ("--shape", "7", "--shape", "300", "--shape", "262144", "--dim", "none", "--dtype", "bf16")
    done = analyse(*asked, "--target", "sm_100", "--provider", figures.LIBRARY, "--dump", str(tmp_path))
    assert done.returncode == 0, done.stderr + done.stdout
    shared = 0
    for file in tmp_path.glob("*/bias_gelu_forward.ttgir"):
        code = file.read_text()
        threads = 32 * int(WARPS.findall(code)[0])
        for rows, cols in SHARED.findall(code):
            assert int(rows) * int(cols) >= 4 * threads, file
            shared += 1
    assert shared


def test_interpreted_kernels_are_refused_with_advice() -> None:
    done = analyse("--set", "baseline", TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr
    assert "Traceback" not in done.stderr
