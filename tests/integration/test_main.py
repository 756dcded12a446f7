"""`python -m triton_gelu`: what a bug report needs, on any machine."""

import sys

import pytest
import torch

from perf.static.gpus import GPUS
from triton_gelu import __main__ as report
from triton_gelu.core import compat_torch as _seam
from triton_gelu.core import launch as _launch
from triton_gelu.core import operators as _operators
from triton_gelu.core import run as _fused


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert report.main(words) == 0
    return capsys.readouterr().out


def test_versions_and_every_device_are_named(capsys: pytest.CaptureFixture[str], device: str) -> None:
    text = printed(capsys)
    assert torch.__version__ in text
    assert sys.version.split()[0] in text
    assert {each.type for each in report.devices()} == {"cpu", device}
    assert all(f"\n{each!s}" in text for each in report.devices())


def test_the_road_it_names_is_the_road_a_call_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    road = _operators.road(torch.empty(0, device=device))
    assert road is _fused  # kernels run in these tests, interpreted or not
    assert "Triton kernels" in report.device_line(torch.device(device))
    assert "float64: PyTorch" in report.device_line(torch.device(device))
    monkeypatch.setattr(_seam, "triton_drives", lambda device_type: False)
    monkeypatch.setattr(_seam, "INTERPRETED", False)
    assert "PyTorch, in blocks" in report.device_line(torch.device("cpu"))
    assert "Triton has no driver for this device" in report.device_line(torch.device("cpu"))
    monkeypatch.setattr(_seam, "kernels", None)
    assert "Triton is not installed" in printed(capsys)


def test_a_shape_is_planned_as_a_call_would_be(capsys: pytest.CaptureFixture[str]) -> None:
    shape = (8, 1280, 3000)
    text = printed(capsys, "--shape", "8,1280,3000", "--dim", "1", "--approximate", "none", "--target", "sm_90")
    assert "walked as 8 x [1280 rows, 3000 columns], bias along its rows" in text
    assert "H100 (sm_90), 132 processors" in text
    assert "A100" not in text
    strides = torch.empty(shape, device="meta").stride()
    walk = report.matrices(shape, 1, strides, strides)
    assert walk is not None
    plan = _launch.forward(walk, 2, "none", report.TARGETS["sm_90"][1])
    assert f"forward   grid {'x'.join(map(str, plan.grid))}, {plan.num_warps} warps" in text
    assert "partial sums\n  finish" in text


def test_without_a_bias_there_is_nothing_to_finish(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--shape", "64,4096", "--dim", "none", "--target", "sm_80")
    assert "no bias" in text
    assert "finish" not in text


def test_gpus_that_are_not_here_are_the_analysis_own() -> None:
    known = {target: (name, plan.processors) for target, (name, plan) in report.TARGETS.items()}
    assert known == {target: (gpu.name.split()[0], gpu.processors) for target, gpu in GPUS.items()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shape 8,x", "expected positive sizes such as 8,1500,5120, got '8,x'"),
        ("--shape 8,4 --dim 2", "--dim: expected one of the 2 dimensions of --shape, got 2"),
        ("--dim x", "expected an integer, or 'none' for no bias, got 'x'"),
        ("--dtype int8", "invalid choice: 'int8'"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        report.main(words.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err
