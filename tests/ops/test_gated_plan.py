"""The launch plans of gated GELUs, and what their kernels compute on every layout, against plain PyTorch in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from triton_gelu.core.plan import Plan
from triton_gelu.core.targets import INTERPRETER, TARGETS, Target
from triton_gelu.ops import gated_plan
from triton_gelu.ops.bias_geglu import BIAS_GEGLU
from triton_gelu.ops.bias_gelu_mul import BIAS_GELU_MUL

META = torch.device("meta")
H100 = TARGETS["h100"]


def planned(x: Tensor, dim: int, *, bias: bool, target: Target = H100) -> tuple[Plan, Plan]:
    """Forward and backward of the joined form, the first half activated."""
    half = torch.empty_like(x.narrow(dim, 0, x.shape[dim] // 2))
    vector = torch.empty(x.shape[dim], dtype=x.dtype, device=META) if bias else None
    layout = torch.empty_like(x).stride()
    return (
        gated_plan.joined_forward(target, layout, x, vector, dim, "tanh", "first"),
        gated_plan.joined_backward(target, layout, half, x, vector, dim, "tanh", "first", (True, bias)),
    )


@pytest.mark.parametrize(
    ("shape", "dim", "align"), [((64, 8192), 1, 8), ((64, 3000), 1, 4), ((64, 602), 1, 1), ((8, 256, 1500), 1, 4)]
)
def test_the_second_half_is_as_aligned_as_accesses_are_wide(shape: tuple[int, ...], dim: int, align: int) -> None:
    forward, backward = planned(torch.empty(shape, dtype=torch.bfloat16, device=META), dim, bias=True)
    distance = shape[dim] // 2 * (1 if dim == len(shape) - 1 else shape[-1])
    (step,) = forward.steps
    assert (dict(step.launch.constants)["ALIGN"], step.launch.integers[-1]) == (align, distance // align)
    (step,) = backward.steps
    assert dict(step.launch.constants)["ALIGN"] == align
    assert step.launch.integers[-3:] == (distance // align, 0, distance // align)


def test_both_bias_gradients_of_a_joined_tensor_are_one_sum_of_one_launch() -> None:
    _, backward = planned(torch.empty(4096, 2048, dtype=torch.bfloat16, device=META), 1, bias=True)
    assert len(backward.steps) == 1
    assert backward.partials is not None
    assert (backward.partials.result, backward.partials.second, backward.partials.size) == ("dbias", None, 2048)
    assert backward.partials.reduce is not None
    assert backward.partials.reduce.integers == (backward.partials.rows, 2048)


@pytest.mark.parametrize(("shape", "dim"), [((4096, 2048), 1), ((16384, 8192), 1), ((32, 512, 1500), 1)], ids=str)
def test_partial_sums_take_a_tenth_of_the_traffic_at_most_and_of_large_calls_a_fortieth(
    shape: tuple[int, ...], dim: int
) -> None:
    x = torch.empty(shape, dtype=torch.bfloat16, device=META)
    for target in TARGETS.values():
        _, backward = planned(x, dim, bias=True, target=target)
        assert backward.partials is not None
        share = 8 * backward.partials.rows * backward.partials.size / (5 * x.numel())
        assert share <= (0.025 if x.numel() >= 2**25 else 0.1)


def test_tensors_that_do_not_go_together_are_copied() -> None:
    x = torch.empty(6, 5, 8, dtype=torch.bfloat16, device=META).transpose(0, 2)
    layout = torch.empty_like(x).stride()
    half = torch.empty(8, 5, 3, dtype=torch.bfloat16, device=META)
    plan = gated_plan.joined_backward(H100, layout, half, x, None, 2, "tanh", "first", (True, False))
    assert plan.dense == ("dy", "x")


def double(given: tuple[object, ...]) -> list[object]:
    return [each.double() if isinstance(each, Tensor) else each for each in given]


def assert_close(ours: tuple[Tensor | None, ...], true: tuple[Tensor | None, ...]) -> None:
    for mine, truth in zip(ours, true, strict=True):
        assert (mine is None) == (truth is None)
        if mine is not None and truth is not None:
            torch.testing.assert_close(mine.double(), truth.double(), rtol=2e-5, atol=2e-5)


SHAPES = [((9, 64), 1), ((2, 6, 75), 1), ((5, 22), 1), ((4, 40), 0)]


@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("activated", ["first", "second"])
@pytest.mark.parametrize("biased", [True, False])
def test_kernels_compute_the_halves_of_a_tensor(
    shape: tuple[int, ...], dim: int, activated: str, biased: bool, device: str
) -> None:
    x, ddx = (torch.randn(shape, device=device) for _ in range(2))
    bias, ddbias = (torch.randn(shape[dim], device=device) if biased else None for _ in range(2))
    dy, options = torch.randn_like(x.narrow(dim, 0, shape[dim] // 2)), (dim, "tanh", activated)
    kernels, plain = BIAS_GEGLU.launched, BIAS_GEGLU.plain
    assert kernels is not None
    assert kernels.double_backward is not None
    assert plain.double_backward is not None
    given: tuple[object, ...] = x, bias, *options
    assert_close((kernels.forward(*given),), (plain.forward(*double(given)),))
    given = dy, x, bias, *options, (True, biased)
    assert_close(kernels.backward(*given), plain.backward(*double(given)))
    given = ddx, ddbias, dy, x, bias, *options, (True, True, biased)
    assert_close(kernels.double_backward(*given), plain.double_backward(*double(given)))


@pytest.mark.parametrize(("shape", "dim"), SHAPES[:3], ids=str)
@pytest.mark.parametrize("biases", list(itertools.product([True, False], repeat=2)), ids=str)
def test_kernels_compute_two_tensors(shape: tuple[int, ...], dim: int, biases: tuple[bool, bool], device: str) -> None:
    x, dy, ddx, ddother = (torch.randn(shape, device=device) for _ in range(4))
    other = torch.randn(*shape[:-1], 2 * shape[-1], device=device)[..., : shape[-1]]
    bias, other_bias = (torch.randn(shape[dim], device=device) if there else None for there in biases)
    kernels, plain = BIAS_GELU_MUL.launched, BIAS_GELU_MUL.plain
    assert kernels is not None
    assert kernels.double_backward is not None
    assert plain.double_backward is not None
    inputs = x, other, bias, other_bias, dim, "tanh"
    given: tuple[object, ...] = inputs
    assert_close((kernels.forward(*given),), (plain.forward(*double(given)),))
    for needs in ((True, True, *biases), (False, True, biases[0], False), (True, False, False, biases[1])):
        given = dy, *inputs, needs
        assert_close(kernels.backward(*given), plain.backward(*double(given)))
    given = ddx, ddother, bias, other_bias, dy, *inputs, (True, True, True, *biases)
    assert_close(kernels.double_backward(*given), plain.double_backward(*double(given)))


@pytest.mark.usefixtures("nothing_kept")
def test_many_programs_share_both_sums(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_gelu.core import compat_triton, targets

    if compat_triton.INTERPRETED:  # small tiles, several programs
        monkeypatch.setattr(targets, "INTERPRETER", replace(INTERPRETER, tile_scale=1, processors=8))
    x, other, dy = (torch.randn(600, 24, device=device) for _ in range(3))
    given = dy, x, other, torch.randn(24, device=device), torch.randn(24, device=device), 1, "tanh", (True,) * 4
    kernels = BIAS_GELU_MUL.launched
    assert kernels is not None
    ours, true = kernels.backward(*given), BIAS_GELU_MUL.plain.backward(*double(given))
    assert_close(ours[:2], true[:2])
    for mine, truth in zip(ours[2:], true[2:], strict=True):
        assert mine is not None
        torch.testing.assert_close(mine.double(), truth, rtol=1e-5, atol=2e-4)
