"""Machine code is read and counted as one would by hand."""

from __future__ import annotations

import pytest

from perf.static.gpus import A100, GPU, H100
from perf.static.machine import amdgcn, sass
from perf.static.machine.code import Code, Untraceable, walk

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
