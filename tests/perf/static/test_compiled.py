"""What compilers make of GELUs in their surroundings: the committed counts, and how kernels are read. Nothing runs."""

from __future__ import annotations

import re

import pytest
import torch

from perf.__main__ import main
from perf.rows import COMPILED, COMPILED_LIBRARY, DATA, latest_rows, read_rows
from perf.static import inductor, scenes
from perf.static.metrics import BYTES, HEADROOM, INSTRUCTIONS

ROWS = latest_rows(read_rows(DATA / "compiled.jsonl"))
ALIKE = 0.1  # bytes an element
TOLD = {("Linear, GELU, LayerNorm", "none"), ("Linear, GELU, LayerNorm of 1024 (BERT's head)", "none")}
"""The scenes and formulas that docs/compile.md says move more."""
ONE_PASS = "Linear, GELU, Linear", "x + bias, GELU", "GELU, a residual added"


def pairs(metric: str) -> dict[tuple[str, str, str, str], tuple[float, float]]:
    """PyTorch's number and ours, by scene, formula, direction and GPU."""
    found: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for row in ROWS:
        if row.metric == metric and row.value is not None:
            asked = row.case, row.approximate, row.direction, row.device
            found.setdefault(asked, {})[row.provider] = row.value
    return {asked: (each[COMPILED], each[COMPILED_LIBRARY]) for asked, each in found.items()}


def test_every_scene_has_rows_of_both_sides_that_say_nothing_ran() -> None:
    assert {asked[0] for asked in pairs(BYTES)} == {scene.name for scene in scenes.SCENES}
    assert {(row.kind, row.backend, row.status) for row in ROWS} == {("static", "compiled offline", "ok")}


def test_no_scene_moves_more_than_pytorch_alone_but_those_that_are_told() -> None:
    more = {asked[:2] for asked, (plain, ours) in pairs(BYTES).items() if ours > plain + ALIKE}
    assert more == TOLD


def test_one_pass_over_memory_is_saved_where_nothing_is_beside_the_backward_pass() -> None:
    found = [each for asked, each in pairs(BYTES).items() if asked[0] in ONE_PASS and asked[2] == "backward"]
    assert len(found) >= 2 * len(ONE_PASS)
    assert all(plain > 8 and ours < 6.1 for plain, ours in found)


def test_the_bytes_of_a_scene_are_those_of_every_gpu() -> None:
    by_scene: dict[tuple[str, str, str], set[tuple[float, ...]]] = {}
    for (*asked, _), moved in pairs(BYTES).items():
        by_scene.setdefault((asked[0], asked[1], asked[2]), set()).add(tuple(round(each, 1) for each in moved))
    assert all(len(each) == 1 for each in by_scene.values())


def test_ours_is_computed_in_fewer_instructions() -> None:
    assert all(ours < plain for plain, ours in pairs(INSTRUCTIONS).values())
    assert all(ours > plain for plain, ours in pairs(HEADROOM).values())


SOURCE = """
@triton.jit
def triton_red(in_ptr0, in_ptr1, in_out_ptr0, out_ptr1, xnumel, XBLOCK : tl.constexpr):
    tmp0 = tl.load(in_ptr0 + (x0), None)
    for roffset in range(0, 9, 3):
        tmp1 = tl.load(in_out_ptr0 + (x0), None)
        tmp2 = tl.load(in_out_ptr0 + (x0 + 1), None)
        tl.store(in_out_ptr0 + (x0), tmp2, None)
    tl.atomic_add(out_ptr1 + (x0), tmp0, None)
"""


def test_a_kernel_moves_each_tensor_that_it_loads_and_each_that_it_stores_once() -> None:
    sizes = {"in_ptr0": 1, "in_ptr1": 10, "in_out_ptr0": 100, "out_ptr1": 1000}
    kernel = inductor.Kernel("triton_red", "reduction", "forward", sizes, {}, source=SOURCE)
    assert kernel.bytes == 1 + 2 * 100 + 1000


@pytest.mark.parametrize("provider", scenes.STYLES)
@pytest.mark.parametrize("scene", scenes.SCENES, ids=lambda scene: scene.name)
def test_a_scene_computes_the_same_on_both_sides(scene: scenes.Scene, provider: str) -> None:
    model = scene.model(provider, "none")
    out = model(*scene.tensors())
    outs = out if isinstance(out, tuple) else (out,)
    again = scene.model(COMPILED, "none")(*scene.tensors())
    theirs = again if isinstance(again, tuple) else (again,)
    assert [(each.shape, each.dtype) for each in outs] == [(each.shape, each.dtype) for each in theirs]


@pytest.mark.skipif(torch.version.cuda is not None, reason="this is a CUDA build of torch")
def test_another_build_of_pytorch_is_refused_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compiled", "--scene", "no bias"]) == 2
    assert "needs a CUDA build of torch" in capsys.readouterr().err


def test_an_unknown_scene_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compiled", "--scene", "softplus"]) == 2
    assert re.search("Linear, GELU, Linear; the same, of sequences", capsys.readouterr().err)
