"""Bytes in flight are counted from machine code as one would by hand, and every GPU has a goal for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf.cases import Case
from perf.static import goals
from perf.static.gpus import GPUS
from perf.static.in_flight import InFlight, followed, streams, whole
from perf.static.machine import amdgcn, sass
from perf.static.machine.code import Code, Issued
from perf.static.machine.issue_order import Planned, Trips

NOTHING = 7  # the number of no scoreboard
PARAMETERS = """
	Attribute:	EIATTR_KPARAM_INFO
	Value:	Index : 0x0	Ordinal : 0x1	Offset  : 0x8	Size    : 0x8
	Attribute:	EIATTR_KPARAM_INFO
	Value:	Index : 0x0	Ordinal : 0x0	Offset  : 0x0	Size    : 0x8
	Attribute:	EIATTR_PARAM_CBANK
	Format:	EIFMT_SVAL
	Value:	0x5 0x480160
	Attribute:	EIATTR_REGCOUNT
	Value:	function: toy(0xc)	register count: 14
	Value:	function: toy(0xc)	min stack size: 0x0
"""
X = frozenset({0})  # the first parameter streams, and the second is the bias


def listing(*lines: tuple[str, int, set[int]]) -> str:
    """What nvdisasm prints of instructions, each with the scoreboard it sets and those it waits for."""
    printed = []
    for place, (text, sets, waits) in enumerate(lines):
        upper = sets << 46 | 7 << 49 | sum(1 << number for number in waits) << 52
        printed += [f"        /*{16 * place:04x}*/   {text} ;   /* 0x0000000000000000 */", f"    /* 0x{upper:016x} */"]
    return "\n".join(printed)


def counted(code: Code, steps: int = 1, streamed: frozenset[int] = X) -> InFlight:
    return followed(code, Issued(((0, len(code.instructions)),)), steps, streamed)


POINTERS = (
    ("MOV R2, c[0x0][0x160]", NOTHING, set()),
    ("MOV R3, c[0x0][0x164]", NOTHING, set()),
    ("IMAD.WIDE R4, R0, 0x10, c[0x0][0x168]", NOTHING, set()),
)


def test_a_wait_ends_a_round_only_if_it_is_for_what_was_asked_after_the_last_one() -> None:
    code = sass.code(
        listing(
            *POINTERS,
            ("LDG.E.128 R8, [R2.64]", 2, set()),
            ("LDG.E.128 R12, [R4.64]", 3, set()),  # the bias, which nobody counts
            ("LDG.E.128 R16, [R2.64+0x800]", 4, set()),
            ("FADD R8, R8, R12", NOTHING, {2, 3}),  # first round: 32 bytes are out, and 16 arrive
            ("FADD R16, R16, R12", NOTHING, {4}),  # asked for before that
            ("LDG.E.64 R20, [R2.64+0x1000]", 2, set()),
            ("LDG.E.64 R22, [R2.64+0x1800]", 2, set()),  # the same scoreboard: there at once
            ("FADD R20, R20, R8", NOTHING, {2}),  # second round
            ("FADD R22, R22, R8", NOTHING, {2}),
        ),
        PARAMETERS,
    )
    assert counted(code) == InFlight(streamed=48, rounds=2, peak=32, steps=1)
    assert counted(code, steps=4).rounds_a_step == 0.5
    assert counted(code).held == 24
    assert counted(code, streamed=frozenset({1})) == InFlight(streamed=16, rounds=1, peak=16, steps=1)


def test_the_factors_of_a_wide_product_have_32_bits_and_its_addend_64() -> None:
    (instruction,) = sass.parse(listing(("IMAD.WIDE R2, R4, R6, R8", NOTHING, set())))
    used = sass.Sass().registers(instruction)
    assert used.reads == {"R4", "R6", "R8", "R9"}
    assert used.writes == {"R2", "R3"}


def test_copies_to_shared_memory_are_out_until_their_group_is_waited_for() -> None:
    copy = ("LDGSTS.E.BYPASS.128 [R30], [R2.64]", NOTHING, set())
    close = ("LDGDEPBAR", 0, set())
    code = sass.code(
        listing(
            *POINTERS,
            copy,
            close,
            copy,
            close,
            copy,
            copy,
            close,  # three groups: 16, 16 and 32 bytes
            ("DEPBAR.LE SB0, 0x1", NOTHING, set()),  # leaves one: 64 are out, 32 arrive
            ("DEPBAR.LE SB0, 0x0", NOTHING, set()),  # asked for before that
        ),
        PARAMETERS,
    )
    assert counted(code) == InFlight(streamed=64, rounds=1, peak=64, steps=1)


def test_an_address_is_followed_through_arithmetic_wide_loads_of_parameters_and_spills() -> None:
    code = sass.code(
        listing(
            ("LDC.128 R4, c[0x0][0x160]", 0, set()),  # both pointers at once
            ("IADD3 R4, P0, R4, R1, RZ", NOTHING, {0}),
            ("STL [R1+0x10], R4", NOTHING, set()),
            ("MOV R4, RZ", NOTHING, set()),
            ("LDL R10, [R1+0x10]", 1, set()),
            ("MOV R11, R5", NOTHING, {1}),
            ("LDG.E.128 R12, [R10.64]", 2, set()),
            ("LDG.E.128 R16, [R6.64]", 3, set()),  # the bias
            ("FADD R12, R12, R16", NOTHING, {2, 3}),
        ),
        PARAMETERS,
    )
    assert counted(code) == InFlight(streamed=16, rounds=1, peak=16, steps=1)


AMD = """
	s_load_dwordx4 s[4:7], s[0:1], 0x0
	s_mov_b32 s8, s4
	s_mov_b32 s12, s6
	buffer_load_dwordx4 v[0:3], v20, s[8:11], 0 offen
	buffer_load_dwordx4 v[4:7], v20, s[12:15], 0 offen
	buffer_load_dwordx4 v[8:11], v21, s[8:11], 0 offen
	s_waitcnt vmcnt(2)
	v_add_f32_e32 v0, v0, v0
	s_waitcnt vmcnt(0)
	buffer_store_dwordx4 v[0:3], v20, s[16:19], 0 offen
	buffer_load_dwordx4 v[0:3], v22, s[8:11], 0 offen
	s_waitcnt vmcnt(0) lgkmcnt(0)
	s_endpgm
	.amdgpu_metadata
    .args:
      - .address_space:  global
        .offset:         0
        .size:           8
      - .address_space:  global
        .offset:         8
        .size:           8
    .private_segment_fixed_size: 0
    .vgpr_count:     2
"""


def test_on_amd_operations_end_in_their_order() -> None:
    assert counted(amdgcn.code(AMD)) == InFlight(streamed=48, rounds=2, peak=32, steps=1)
    assert counted(amdgcn.code(AMD), streamed=frozenset({1})) == InFlight(streamed=16, rounds=1, peak=16, steps=1)


def test_a_tensor_streams_unless_it_is_much_smaller_than_another() -> None:
    assert streams([None, 1000, 10, 1000, None, 499, 500]) == {1, 3, 6}
    assert streams([None]) == frozenset()


def test_a_program_is_followed_as_if_all_its_tiles_were_whole() -> None:
    nest = Trips((Planned(3, (Planned(40, loads=8), Planned(2, loads=8))),))
    assert whole(nest) == (Trips((Planned(1, (Planned(16, loads=8), Planned(0, loads=8))),)), 16)
    assert whole(Trips((Planned(2, (Planned(0), Planned(5))),)))[1] == 1
    assert whole(Trips(masked=True, loads=64)) == (Trips(masked=False, loads=64), 1)
    assert whole(Trips((Planned(5),))) == (Trips((Planned(5),)), 5)


def test_every_gpu_has_a_goal_with_its_source_and_says_how_sure_it_is() -> None:
    for gpu in GPUS.values():
        found = goals.published(gpu)
        assert 4 * goals.KIB < found.value <= 64 * goals.KIB
        assert found.source
        assert found.sure in ("published", "derived", "assumed")
        for direction in ("forward", "backward", "double_backward"):
            case = Case("width 4096", (16384, 4096), dtype="bfloat16", direction=direction)
            assert goals.goal(gpu, case).in_flight >= found.value


@pytest.mark.parametrize("key", ["h100", "h200", "b200"])
def test_published_bytes_in_flight_agree_with_the_latency_that_others_are_derived_from(key: str) -> None:
    gpu = GPUS[key]
    assert goals.published(gpu).value == pytest.approx(gpu.bandwidth / gpu.processors * goals.LATENCY.value, rel=0.05)


def test_at_16_mb_a_case_has_the_same_layout() -> None:
    case = Case("width 4096", (16384, 4096), dtype="bfloat16")
    assert goals.small(case).shape == (2048, 4096)
    frames = Case("frames", (32, 1280, 1500), dtype="bfloat16", dim=1)
    assert goals.small(frames).shape == (4, 1280, 1500)
    assert goals.small(replace(frames, dim=0)).shape == frames.shape
