"""`python -m triton_gelu`: what a bug report needs, on any machine."""

import sys

import pytest
import torch

from perf.static.gpus import GPUS
from triton_gelu import __main__ as report
from triton_gelu.core import compat_triton
from triton_gelu.ops.bias_gelu import BIAS_GELU
from triton_gelu.ops.bias_gelu_plan import forward_launch


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert report.main(words) == 0
    return capsys.readouterr().out


def test_versions_and_every_device_are_named(capsys: pytest.CaptureFixture[str], device: str) -> None:
    text = printed(capsys)
    assert torch.__version__ in text
    assert sys.version.split()[0] in text
    assert {each.type for each in report.devices()} == {"cpu", device}
    assert all(f"\n{each!s}" in text for each in report.devices())


def test_the_backend_it_names_is_the_one_that_computes_a_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    choice = BIAS_GELU.choose(torch.empty(0, device=device))
    assert choice.backend is BIAS_GELU.launched  # kernels run in these tests, interpreted or not
    assert choice.reason in report.device_line(torch.device(device))
    assert "Triton kernels" in report.device_line(torch.device(device))
    assert "float64: PyTorch" in report.device_line(torch.device(device))
    compat_triton.drives.cache_clear()
    monkeypatch.setattr(compat_triton, "INTERPRETED", False)
    assert "PyTorch, in cache-sized blocks" in report.device_line(torch.device("cpu"))
    assert "Triton has no driver for this device" in report.device_line(torch.device("cpu"))
    compat_triton.drives.cache_clear()
    monkeypatch.setattr(compat_triton, "triton", None)
    assert "Triton is not installed" in printed(capsys)
    compat_triton.drives.cache_clear()


def test_a_shape_is_planned_as_a_call_would_be(capsys: pytest.CaptureFixture[str]) -> None:
    shape = (8, 1280, 3000)
    text = printed(capsys, "--shape", "8,1280,3000", "--dim", "1", "--approximate", "none", "--gpu", "h100")
    assert "computed as 8 x [1280 rows, 3000 columns], bias along its rows" in text
    assert "H100 SXM (sm_90), 132 processors" in text
    assert "A100" not in text
    strides = torch.empty(shape, device="meta").stride()
    seen = report.matrices(shape, 1, strides, strides)
    assert seen is not None
    plan = forward_launch(seen, 2, "none", report.TARGETS["h100"])
    assert f"bias_gelu_forward  grid {'x'.join(map(str, plan.grid))}, {plan.num_warps} warps" in text
    assert "partial sums\n  reduce_partials" in text


def test_without_a_bias_there_is_nothing_to_reduce(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--shape", "64,4096", "--dim", "none", "--target", "sm_80")
    assert "no bias" in text
    assert "reduce_partials" not in text


def test_gpus_that_are_not_here_are_the_analysis_own() -> None:
    assert {key: gpu.target for key, gpu in GPUS.items()} == report.TARGETS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shape 8,x", "expected positive sizes such as 8,1500,5120, got '8,x'"),
        ("--shape 8,4 --dim 2", "--dim: expected one of the 2 dimensions of --shape, got 2"),
        ("--dim x", "expected an integer, or 'none' for no bias, got 'x'"),
        ("--shape 8 --gpu h800", "expected one of a100, a100-40gb, h100, "),
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
