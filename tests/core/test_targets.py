"""Targets: what the driver and Triton tell of a GPU, and the table of those that are known."""

from types import SimpleNamespace

import pytest
import torch
from triton.backends.compiler import GPUTarget

from triton_gelu.core import compat_triton, run, targets
from triton_gelu.core.targets import TARGETS, Target, key_of, target_of

NAMES = {  # by which drivers report them
    "a100": ("NVIDIA A100-SXM4-80GB",),
    "a100-40gb": ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
    "h100": ("NVIDIA H100 80GB HBM3",),
    "h100-pcie": ("NVIDIA H100 PCIe",),
    "h200": ("NVIDIA H200", "NVIDIA H200 NVL"),
    "b200": ("NVIDIA B200",),
    "gb200": ("NVIDIA GB200",),
    "b300": ("NVIDIA B300 SXM6 AC",),
    "gb300": ("NVIDIA GB300",),
    "l40s": ("NVIDIA L40S",),
    "rtx4090": ("NVIDIA GeForce RTX 4090",),
    "rtx5090": ("NVIDIA GeForce RTX 5090",),
    "mi300x": ("AMD Instinct MI300X",),
    "mi355x": ("AMD Instinct MI355X",),
}


def triton_target(target: Target) -> GPUTarget:
    if target.architecture.startswith("sm_"):
        return GPUTarget("cuda", int(target.architecture.removeprefix("sm_")), target.warp)
    return GPUTarget("hip", target.architecture, target.warp)


def properties(name: str, processors: int) -> SimpleNamespace:
    return SimpleNamespace(name=name, multi_processor_count=processors)


NVIDIA, BLACKWELL = ("ptx", "bf16_cvt"), ("ptx", "f32x2", "bf16_cvt")


@pytest.mark.parametrize(
    ("target", "capabilities"),
    [
        (GPUTarget("cuda", 80, 32), NVIDIA),
        (GPUTarget("cuda", 90, 32), NVIDIA),
        (GPUTarget("cuda", 100, 32), BLACKWELL),
        (GPUTarget("cuda", 120, 32), BLACKWELL),
        (GPUTarget("hip", "gfx942", 64), ()),
        (GPUTarget("hip", "gfx1201", 32), ()),
        (GPUTarget("hip", "gfx950", 64), ("bf16_cvt",)),
        (GPUTarget("hip", "gfx1250", 32), ("bf16_cvt",)),
        (GPUTarget("another", "one", 32), ()),
    ],
    ids=str,
)
def test_plans_know_a_target_s_capabilities_and_warps(target: GPUTarget, capabilities: tuple[str, ...]) -> None:
    got = target_of(properties("some GPU", 10), target)
    assert tuple(name for name in ("ptx", "f32x2", "bf16_cvt") if getattr(got, name)) == capabilities
    assert (got.warp, got.processors, got.known) == (target.warp_size, 10, False)
    assert got.constants == (("PTX", got.ptx), ("F32X2", got.f32x2), ("BF16_CVT", got.bf16_cvt))


@pytest.mark.parametrize("converts", [True, False, None])
def test_intel_s_properties_are_asked_for_by_their_own_names(converts: bool | None) -> None:
    reported = SimpleNamespace(name="Intel(R) Data Center GPU Max 1550", gpu_subslice_count=64, gpu_eu_count=512)
    if converts is not None:
        reported.has_bfloat16_conversions = converts
    got = target_of(reported, GPUTarget("xpu", {}, 16))
    assert (got.processors, got.warp, got.architecture, got.known) == (64, 16, "xpu", False)
    assert got.bf16_cvt == (converts is not False)
    assert not got.ptx


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.key)
def test_a_gpu_of_the_table_is_known_by_name_architecture_and_processors(target: Target) -> None:
    asked = triton_target(target)
    for name in (*NAMES[target.key], target.name):  # the latter offline
        assert target_of(properties(name, target.processors), asked) is target
    for other in (properties(NAMES[target.key][0], 7), properties("another GPU", target.processors)):
        got = target_of(other, asked)
        assert not got.known
        assert (got.processors, got.bandwidth) == (other.multi_processor_count, None)
        assert (got.constants, got.warp) == (target.constants, target.warp)  # planned alike


@pytest.mark.parametrize(
    ("name", "processors", "number"),
    [
        ("NVIDIA GH200 480GB", 132, 90), ("NVIDIA H100 NVL", 132, 90), ("NVIDIA A100 80GB PCIe", 108, 80),
        ("NVIDIA H200", 132, 80), ("NVIDIA GeForce RTX 4090 Laptop GPU", 76, 89), ("NVIDIA L40", 142, 89),
        ("NVIDIA B200", 148, 103),
    ],
)  # fmt: skip
def test_a_gpu_with_other_memory_or_another_chip_is_another_gpu(name: str, processors: int, number: int) -> None:
    assert not target_of(properties(name, processors), GPUTarget("cuda", number, 32)).known


def test_a_gpu_is_named_by_key_name_or_architecture() -> None:
    for target in TARGETS.values():
        assert key_of(target.key) == key_of(target.name) == key_of(target.key.upper()) == target.key
    asked = ("H200", "RTX 4090", "sm_90", "sm_80", "sm_100", "gfx942", "gfx950")
    assert [key_of(each) for each in asked] == ["h200", "rtx4090", "h100", "a100", "b200", "mi300x", "mi355x"]
    with pytest.raises(ValueError, match=r"expected one of a100, a100-40gb, .*, or an architecture .*, got 'h800'"):
        key_of("h800")


def test_a_device_is_asked_for_its_properties_by_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    module = SimpleNamespace(
        get_device_properties=lambda device: asked.append(device) or properties("NVIDIA B200", 148),
        device_count=lambda: 1,
    )
    monkeypatch.setattr(compat_triton, "INTERPRETED", False)
    monkeypatch.setattr(compat_triton, "gpu_target", lambda: GPUTarget("cuda", 100, 32))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    device = torch.device("cuda", 0)
    assert run.device_target(device) is targets.TARGETS["b200"]
    assert asked == [device]
