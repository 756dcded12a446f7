"""Machine code is read and counted as one would by hand."""

from __future__ import annotations

import pytest

from perf.static.gpus import GPUS
from perf.static.machine import amdgcn, sass
from perf.static.machine.code import Code, Untraceable
from perf.static.machine.issue_order import Follower, Planned, Trips

# What cuobjdump says of a kernel.
ELF = """
	Attribute:	EIATTR_REGCOUNT
	Value:	function: toy(0xc)	register count: 14
	Attribute:	EIATTR_MIN_STACK_SIZE
	Value:	function: toy(0xc)	min stack size: 0x0
"""


# Counted by hand, with three trips:
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


# Counted by hand, with two trips: s_mov once, the loop of v_add, s_add, s_cmp and s_cbranch twice, s_endpgm once: 10.
AMD_LOOP = """
	s_mov_b32 s4, s3
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	v_add_f32_e32 v1, v1, v1
	s_add_i32 s4, s4, 1
	s_cmp_lt_i32 s4, s2
	s_cbranch_scc1 .LBB0_1
	s_endpgm
	.amdgpu_metadata
    .private_segment_fixed_size: 0
    .vgpr_count:     2
"""


# A branch, then either of two ways, each of which loads 16 bytes a thread; the second one is longer.
EITHER = """
        /*0000*/                   ISETP.LT.AND P0, PT, RZ, c[0x0][0x168], PT ;
        /*0010*/               @P0 BRA `(.L_x_1) ;
        /*0020*/              @!P1 LDG.E.128 R8, [R2.64] ;
        /*0030*/                   FADD R8, R8, R8 ;
        /*0040*/              @!P1 STG.E.128 [R2.64], R8 ;
        /*0050*/                   EXIT ;
.L_x_1:
        /*0060*/                   LDG.E.128 R8, [R2.64] ;
        /*0070*/                   STG.E.128 [R2.64], R8 ;
        /*0080*/                   EXIT ;
"""

# The same for a compiler that asks twice and lets both ways end together; other ways through load twice, or nothing.
SHARED_END = """
        /*0000*/                   ISETP.LT.AND P0, PT, RZ, c[0x0][0x168], PT ;
        /*0010*/               @P0 BRA `(.L_x_1) ;
        /*0020*/                   LDG.E.128 R8, [R2.64] ;
.L_x_1:
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/              @!P1 LDG.E.128 R8, [R2.64] ;
        /*0050*/                   MOV R4, RZ ;
.L_x_2:
        /*0060*/                   EXIT ;
"""

# s_mov; an outer loop of two inner ones, each skipped where it has no trips, as LLVM lays them out; s_endpgm.
AMD_NEST = """
	s_mov_b32 s4, s3
.LBB0_1:
	s_cbranch_scc1 .LBB0_3
.LBB0_2:
	v_add_f32_e32 v1, v1, v1
	s_cbranch_scc0 .LBB0_2
.LBB0_3:
	s_cbranch_scc1 .LBB0_5
.LBB0_4:
	v_mul_f32_e32 v1, v1, v1
	v_mul_f32_e32 v1, v1, v1
	s_cbranch_scc1 .LBB0_4
.LBB0_5:
	s_add_i32 s4, s4, 1
	s_cbranch_scc1 .LBB0_1
	s_endpgm
	.amdgpu_metadata
    .private_segment_fixed_size: 0
    .vgpr_count:     2
"""


def follower(code: Code) -> Follower:
    return Follower(code, threads=32)


def once(trips: int, **loads: int) -> Trips:
    """A plan with one loop."""
    return Trips((Planned(trips, **loads),))


def counted(code: Code, trips: Trips) -> dict[str, int]:
    """Instructions by heading."""
    found: dict[str, int] = {}
    for place, times in follower(code).follow(trips).times().items():
        heading = code.isa.heading(code.instructions[place])
        found[heading] = found.get(heading, 0) + times
    return found


def test_a_loop_with_predicates_is_counted_as_by_hand() -> None:
    code = sass.code(LOOP, ELF)
    assert counted(code, once(3)) == {"integer": 9, "alu": 4, "memory": 5, "control": 6, "fma": 3, "mufu": 3}
    assert not follower(code).parting
    assert (code.registers, code.stack) == (14, 0)


def test_a_loop_that_is_not_entered_is_not_counted() -> None:
    assert sum(counted(sass.code(LOOP, ELF), once(0)).values()) == 6 + 3


def test_a_loop_may_be_left_by_ending_the_program() -> None:
    """The loop's BRA becomes an EXIT where it is done, and a jump back; what came after the loop is never reached."""
    listing = LOOP.replace("@!P2 BRA `(.L_x_0)", "@P2 EXIT ;\n        /*00c8*/   BRA `(.L_x_0)")
    assert sum(counted(sass.code(listing, ELF), once(3)).values()) == 6 + 3 * 8 - 1


def test_threads_that_part_count_both_ways() -> None:
    code = sass.code(FORK, ELF)
    assert sum(counted(code, Trips()).values()) == 3 + 2 + 1 + 1
    assert [code.instructions[follower(code).flow.last(block)].opcode for block in follower(code).parting] == ["BRA"]


def test_a_loop_that_was_not_planned_is_refused() -> None:
    with pytest.raises(Untraceable, match="0 loops were planned, and the code has 1"):
        follower(sass.code(LOOP, ELF)).follow(Trips())
    with pytest.raises(Untraceable, match="2 loops were planned"):
        follower(sass.code(LOOP, ELF)).follow(Trips((Planned(1), Planned(1))))


def test_an_unrolled_loop_is_refused() -> None:
    code = sass.code(LOOP, ELF)
    assert follower(code).follow(once(3, loads=32 * 16))
    twice = LOOP.replace("/*0080*/ ", "/*0078*/ @!P0 LDG.E.128 R8, [R2.64] ;\n        /*0080*/ ")
    with pytest.raises(Untraceable, match=r"is it unrolled\? It ends with .*BRA"):
        follower(sass.code(twice, ELF)).follow(once(3, loads=32 * 16))


@pytest.mark.parametrize(("masked", "instructions"), [(False, 2 + 3), (True, 2 + 4)])
@pytest.mark.parametrize("listing", [EITHER, SHARED_END])
def test_of_two_ways_that_load_a_tile_the_longer_one_is_that_with_masks(
    listing: str, masked: bool, instructions: int
) -> None:
    trips = Trips(masked=masked, loads=32 * 16)
    assert sum(counted(sass.code(listing, ELF), trips).values()) == instructions


def test_code_that_loads_less_than_a_tile_is_refused() -> None:
    with pytest.raises(Untraceable, match="has to load 1024 bytes, and the code loads 512 at most"):
        follower(sass.code(LOOP.replace("BRA `(.L_x_0)", "FADD R12, R8, R9"), ELF)).follow(Trips(loads=1024))


def test_inner_loops_are_gone_through_in_every_trip_of_the_outer_one() -> None:
    code = amdgcn.code(AMD_NEST)
    # s_mov; then of each outer trip 2 + 2 a trip of the first inner loop, 1 + 3 a trip of the second, 2; s_endpgm
    for outer, first, second in ((3, 2, 1), (2, 0, 3), (1, 4, 0)):
        nest = Trips((Planned(outer, (Planned(first), Planned(second))),))
        total = 1 + outer * (1 + 2 * first + 1 + 3 * second + 2) + 1
        assert sum(follower(code).follow(nest).times().values()) == total


def test_amd_code_is_counted_as_by_hand() -> None:
    code = amdgcn.code(AMD_LOOP)
    assert sum(follower(code).follow(once(2)).times().values()) == 10
    assert sum(follower(code).follow(once(1)).times().values()) == 6


def test_where_amd_code_asks_for_any_thread_some_are_active_and_threads_may_part() -> None:
    code = amdgcn.code(AMD_LOOP.replace("s_mov_b32 s4, s3", "s_cbranch_execz .LBB0_1\n\ts_mov_b32 s4, s3"))
    assert sum(follower(code).follow(once(2)).times().values()) == 11
    assert len(follower(code).parting) == 1


@pytest.mark.parametrize(("gpu", "rounds", "unpacks"), [("a100", "alu", "half"), ("h100", "fma", "fma")])
def test_each_gpu_rounds_to_16_bits_and_unpacks_them_in_its_own_pipe(gpu: str, rounds: str, unpacks: str) -> None:
    listing = "  /*0000*/ F2FP.BF16.PACK_AB R0, R1, R2 ;\n  /*0010*/ HADD2.F32 R3, -RZ, R4.H0_H0 ;"
    units = [set(sass.Sass().busy(each)) - {"issue"} for each in sass.parse(listing)]
    chip = GPUS[gpu].chip
    assert [{chip.does.get(unit, unit) for unit in each} for each in units] == [{rounds}, {unpacks}]
    assert {rounds, unpacks} <= set(chip.lanes)


def test_packed_arithmetic_takes_one_slot_and_two_lanes() -> None:
    (instruction,) = sass.parse("        /*0000*/   FFMA2 R4, R4.F32x2.HI_LO, R6.F32x2.HI_LO, R8.F32x2.HI_LO ;")
    assert sass.Sass().busy(instruction) == {"issue": 1, "fma": 2}
    assert sass.Sass().registers(instruction).writes == {"R4", "R5"}


def test_widths_of_accesses_are_read_from_the_opcode() -> None:
    listing = "/*0000*/ LDG.E.128 R8, [R2.64] ;\n /*0010*/ @P0 STG.E.U16 [R2.64], R1 ;\n /*0020*/ LDS.64 R4, [R0] ;"
    found = [sass.Sass().access(each) for each in sass.parse(listing.replace("/*0", "  /*0"))]
    assert found == [("load", 16), ("store", 2), ("shared", 8)]
