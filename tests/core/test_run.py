"""Plans launched: what kernels give, and which compiled kernel is launched for which tensors."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import jit
from truth import DTYPES, FORMULAS

from perf.accuracy.truth import gelu
from perf.rows import ROOT
from triton_gelu import bias_gelu, bias_gelu_transpose
from triton_gelu.core import compat_triton, run, targets
from triton_gelu.core.matrices import matrices
from triton_gelu.core.plan import Launch
from triton_gelu.core.run import Run
from triton_gelu.core.tiles import store
from triton_gelu.ops import bias_gelu_kernels, bias_gelu_plan
from triton_gelu.ops.bias_gelu import BIAS_GELU
from triton_gelu.ops.bias_gelu_transpose import BIAS_GELU_TRANSPOSE

LAUNCHED = BIAS_GELU.launched
assert LAUNCHED is not None


@pytest.mark.parametrize("approximate", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", ["v and vbias", "v", "vbias"])
def test_the_second_backward_pass_is_the_derivative_of_the_first(
    given: str, dtype: torch.dtype, approximate: str, device: str
) -> None:
    x, dy, v = (torch.randn(3, 5, 40, device=device, dtype=torch.float64) for _ in range(3))
    bias, vbias = torch.randn(5, device=device, dtype=torch.float64), torch.randn(5, device=device, dtype=torch.float64)
    x, dy, v, bias, vbias = (t.to(dtype) for t in (x, dy, v, bias, vbias))
    inputs = [t.double().requires_grad_() for t in (dy, x, bias)]
    u = (inputs[1] + inputs[2][:, None]).detach().requires_grad_()
    y = FORMULAS[approximate].standard(u)
    (slope,) = torch.autograd.grad(y.sum(), u, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), u)
    both = (v.double() if "v" in given.split() else 0) + (vbias.double()[:, None] if "vbias" in given else 0)
    truth = (
        (both * slope).detach(),
        both * dy.double() * bend,
        (both * dy.double() * bend).sum((0, 2)),
    )
    ours = LAUNCHED.double_backward(
        v if "v" in given.split() else None,
        vbias if "vbias" in given else None,
        dy, x, bias, 1, approximate, (True, True, True),
    )  # fmt: skip
    for our, true in zip(ours, truth, strict=True):
        assert our is not None
        assert our.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(our.double(), true, rtol=4 * eps, atol=16 * eps)


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_the_second_backward_pass_computes_what_is_asked_for(needs: tuple[bool, bool, bool], device: str) -> None:
    x, bias = torch.randn(6, 40, device=device), torch.randn(40, device=device)
    everything = LAUNCHED.double_backward(x, bias, x, x, bias, 1, "tanh", (True, True, True))
    some = LAUNCHED.double_backward(x, bias, x, x, bias, 1, "tanh", needs)
    for wanted, one, same in zip(needs, some, everything, strict=True):
        assert (one is not None) == wanted
        assert one is None or same is None or torch.equal(one, same)


@pytest.mark.skipif(not compat_triton.INTERPRETED, reason="takes memory that is there only if it is touched")
def test_rows_of_one_tile_may_lie_gigabytes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "INTERPRETER", replace(targets.INTERPRETER, unroll=4))
    rows, cols, far = 100, 512, 2**31 // 90 // 8 * 8  # the last rows lie more than 2^31 elements away
    x = torch.from_file(str(tmp_path / "x"), shared=True, size=rows * (far + cols), dtype=torch.bfloat16)
    x = x.as_strided((rows, cols), (far, 1)).copy_(torch.randn(rows, cols))
    bias, dy = torch.randn(cols), torch.randn(rows, cols).bfloat16()
    assert torch.equal(LAUNCHED.forward(x, bias, 1, "tanh"), LAUNCHED.forward(x.clone(), bias, 1, "tanh"))
    for far_apart, dense in zip(
        LAUNCHED.backward(dy, x, bias, 1, "tanh", (True, True)),
        LAUNCHED.backward(dy, x.clone(), bias, 1, "tanh", (True, True)),
        strict=True,
    ):
        assert torch.equal(far_apart, dense)


@pytest.mark.parametrize(("shape", "dim"), [((5000, 20), 1), ((2, 7, 555), 1), ((9, 40), 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bias_that_was_added_before_has_a_gradient_too(
    dtype: torch.dtype, shape: tuple[int, ...], dim: int, device: str
) -> None:
    u, dy = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    m = matrices(shape, dim, *[u.stride()] * 4)
    assert m is not None
    how = {"needs_dy": False, "needs_x": True, "needs_bias": True}
    plan = bias_gelu_plan.backward_launches(m, u.itemsize, "tanh", run.device_target(u.device), **how)
    dx, dbias = torch.empty_like(u), torch.empty(shape[dim], device=device, dtype=dtype)
    sums = dbias if plan.reduce is None else torch.empty(plan.partials, shape[dim], device=device)
    Run(plan.main, bias_gelu_kernels, u.device)((dy, None, None, u, None, None, dx, sums))
    if plan.reduce is not None:
        Run(plan.reduce, bias_gelu_kernels, u.device)((sums, dbias))
    zero = torch.zeros(shape[dim], device=device, dtype=dtype)
    for ours, same in zip((dx, dbias), LAUNCHED.backward(dy, u, zero, dim, "tanh", (True, True)), strict=True):
        assert same is not None
        assert torch.equal(ours, same)


@triton.jit
def rounded(x_ptr, y_ptr, BLOCK: tl.constexpr, BF16_CVT: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    store(y_ptr + at, tl.load(x_ptr + at), None, BF16_CVT)


@pytest.mark.parametrize("low", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], ids=hex)
def test_bfloat16_is_rounded_by_hand_as_by_pytorch(low: int, device: str) -> None:
    """From every bfloat16 a bit, a tie or most of the way to the next: subnormals, and past the largest, too."""
    x = ((torch.arange(1 << 16, dtype=torch.int32, device=device) << 16) + low).view(torch.float32)
    y = torch.empty_like(x, dtype=torch.bfloat16)
    rounded[(8,)](x, y, 8192, False)
    numbers = ~x.isnan()
    assert torch.equal(y.view(torch.int16)[numbers], x.to(torch.bfloat16).view(torch.int16)[numbers])


NANS = {  # the last of each is a signalling one
    torch.float32: (torch.int32, (0x7FFFFFFF, -1, 0x7FFF8000, 0x7F800001)),
    torch.float16: (torch.int16, (0x7FFF, -1, 0x7E00, 0x7C01)),
    torch.bfloat16: (torch.int16, (0x7FFF, -1, 0x7FC0, 0x7F81)),
}
MIXED = [(torch.bfloat16, other) for other in DTYPES] + [(dtype, torch.bfloat16) for dtype in DTYPES[::2]]


@pytest.mark.parametrize(("shape", "dim"), [((20, 120), 0), ((5000, 20), 1)], ids=["dbias at once", "finished"])
@pytest.mark.parametrize(("dtype", "others"), MIXED, ids=str)
def test_a_nan_of_any_bits_stays_one(
    dtype: torch.dtype, others: torch.dtype, shape: tuple[int, int], dim: int, device: str
) -> None:
    """Wherever it comes from, each in a channel of its own."""

    def by_channel(tensor: Tensor) -> Tensor:
        return tensor.movedim(dim % tensor.ndim, -1)

    given = []
    for place, size in enumerate((shape, (20,), shape, shape, (20,))):
        tensor = torch.randn(size, device=device).to(others if place else dtype)
        bits, nans = NANS[tensor.dtype]
        by_channel(tensor.view(bits))[..., 4 * place : 4 * place + 4] = torch.tensor(nans, dtype=bits, device=device)
        given.append(tensor)
    x, bias, dy, v, vbias = given
    ours = (
        LAUNCHED.forward(x, bias, dim, "tanh"),
        *LAUNCHED.backward(dy, x, bias, dim, "tanh", (True, True)),
        *LAUNCHED.double_backward(v, vbias, dy, x, bias, dim, "tanh", (True, True, True)),
    )
    x, bias, dy, v, vbias = (by_channel(t.double()) for t in given)
    y, slope, bend = (gelu(x + bias, "tanh", order) for order in range(3))
    dx, ddx = dy * slope, (v + vbias) * dy * bend
    for our, true in zip(ours, (y, dx, dx.sum(0), (v + vbias) * slope, ddx, ddx.sum(0)), strict=True):
        assert our is not None
        assert torch.equal(by_channel(our).isnan(), true.isnan())


ONES = """
import torch, triton
from perf.static import gpus, offline
from triton_gelu.ops import bias_gelu_kernels as kernels
from triton_gelu.ops.bias_gelu import BIAS_GELU
for name in ("bias_gelu_forward", "bias_gelu_backward"):
    setattr(kernels, name, triton.jit(getattr(kernels, name).fn))  # without do_not_specialize
LAUNCHED = BIAS_GELU.launched
x = torch.empty(6, 4096, dtype=torch.bfloat16, device="meta")
for x, dim in (x, None), (x[:1], 1), (x[:, :8].contiguous(), 1), (x[:4, None], 1), (x.as_strided((6, 5), (1, 1)), 1):
    bias = None if dim is None else x.new_empty(x.shape[dim])
    how = bias, dim or 0, "tanh"
    call = lambda: (LAUNCHED.forward(x, *how), LAUNCHED.backward(x, x, *how, (True, dim is not None)))
    assert len(offline.launches(gpus.GPUS["b200"], call)) >= 2
"""


def test_kernels_compile_where_a_compiler_makes_constants_of_ones() -> None:
    """Inductor does, whatever a kernel asks for."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", ONES], env=environment, cwd=ROOT, check=True)


@pytest.mark.skipif(not compat_triton.INTERPRETED, reason="of a GPU's own plans others tell")
@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize(("shape", "dim"), [((9, 300), 1), ((2, 3, 555), 1), ((1, 44), 1), ((700,), None)], ids=str)
def test_tiles_in_parts_and_two_steps_at_a_time_change_nothing(
    shape: tuple[int, ...], dim: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, dy, bias = torch.randn(shape), torch.randn(shape), None if dim is None else torch.randn(shape[dim])
    parts: list[object] = []

    class Run(run.Run):
        def __init__(self, launch: Launch, kernels: Any, device: torch.device) -> None:
            super().__init__(launch, kernels, device)
            if launch.kernel != "reduce_partials":
                parts.append(dict(launch.constants)["UNROLL"])

    def results() -> list[Tensor]:
        BIAS_GELU.cache.clear()
        y = LAUNCHED.forward(x, bias, dim or 0, "tanh")
        gradients = LAUNCHED.backward(dy, x, bias, dim or 0, "tanh", (True, bias is not None))
        return [y, *(each for each in gradients if each is not None)]

    monkeypatch.setattr(run, "Run", Run)
    whole = results()
    monkeypatch.setattr(targets, "INTERPRETER", replace(targets.TARGETS["h100"], processors=1))
    y, dx, *dbias = results()
    assert parts == [1, 1, 4 if shape[-1] % 2 else 8, 2]  # narrow accesses are many already
    torch.testing.assert_close([y, dx], whole[:2], rtol=0, atol=0)
    torch.testing.assert_close(dbias, whole[2:], rtol=1e-5, atol=1e-4)


class Compiler:
    """A kernel that remembers for which tensors it was compiled, and which of those compiled ones was launched."""

    def __init__(self) -> None:
        self.compiled_for: list[tuple[Any, ...]] = []
        self.launched: list[int] = []
        self.driver = "Triton's active driver"

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile(*args: Any, num_warps: int, **constants: Any) -> Any:
            number = len(self.compiled_for)
            self.compiled_for.append(args)
            return {grid: lambda *args: self.launched.append(number)}

        return compile


KERNELS = ("bias_gelu_forward", "bias_gelu_backward", "reduce_partials")


@pytest.fixture
def compiler(nothing_kept: None, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    compiler = Compiler()
    kernels = SimpleNamespace(**dict.fromkeys(KERNELS, compiler))
    monkeypatch.setattr(BIAS_GELU, "kernels", replace(BIAS_GELU.kernels, module=kernels))
    monkeypatch.setattr(compat_triton, "driver", lambda: compiler.driver)
    return compiler


def shifted(dtype: torch.dtype, *shape: int, by: int = 1) -> Tensor:
    """A tensor that begins `by` elements after an aligned address."""
    return torch.zeros(math.prod(shape) + by, dtype=dtype)[by:].view(shape)


X, BIAS = torch.zeros(4, 40), torch.zeros(40)
OTHERS = {
    "x starts elsewhere": (shifted(torch.float32, 4, 40), BIAS),
    "the bias starts elsewhere": (X, shifted(torch.float32, 40)),
    "both start elsewhere": (shifted(torch.float32, 4, 40), shifted(torch.float32, 40)),
    "x has another type": (X.half(), BIAS),
    "the bias has another type": (X, BIAS.half()),
    "there is no bias": (X, None),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_was_compiled_for_other_tensors_is_not_launched(other: str, compiler: Compiler) -> None:
    calls = ((X, BIAS), OTHERS[other])
    for x, bias in calls * 2:
        bias_gelu(x, bias)
    assert len(compiler.compiled_for) == 2
    assert compiler.launched == [0, 1]
    for x, bias in calls * 2:
        LAUNCHED.backward(x, x, bias, 1, "tanh", (True, bias is not None))
    assert len(compiler.compiled_for) == 4
    assert compiler.launched == [0, 1, 2, 3]


def test_what_was_compiled_for_another_driver_is_not_launched(compiler: Compiler) -> None:
    bias_gelu(X, BIAS)
    compiler.driver = "another"
    bias_gelu(X, BIAS)
    assert len(compiler.compiled_for) == 2
    assert not compiler.launched


def test_what_is_profiled_is_launched_by_triton_and_not_kept(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for profiled in (True, False, True, False):
        monkeypatch.setattr(compat_triton, "is_profiled", lambda profiled=profiled: profiled)
        bias_gelu(X, BIAS)
    assert len(compiler.compiled_for) == 3
    assert compiler.launched == [1]  # the second, which nobody profiled


class Devices:
    """torch.cuda with `count` devices, of which the first is the current one."""

    def __init__(self, count: int) -> None:
        self.count, self.current, self.switches = count, 0, 0

    def device_count(self) -> int:
        return self.count

    def current_device(self) -> int:
        return self.current

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        self.switches += 1
        yield
        self.current = before


@pytest.mark.parametrize(
    ("count", "device", "switches"), [(1, "cuda:0", 0), (2, "cuda:0", 0), (2, "cuda:1", 1), (2, "cpu", 0)]
)
def test_memory_is_taken_and_kernels_are_launched_on_the_device_of_the_tensors(
    count: int, device: str, switches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices(count)
    monkeypatch.setattr(torch, "get_device_module", lambda device: devices)
    where = run.on_device(torch.device(device), lambda *args: (devices.current, args))
    assert where("x", "y") == (torch.device(device).index or 0, ("x", "y"))
    assert (devices.current, devices.switches) == (0, switches)


@pytest.mark.usefixtures("nothing_kept")
def test_every_kernel_is_launched_on_the_device_of_its_tensors(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[torch.device] = []
    launched: list[list[torch.device]] = []

    def on(device: torch.device, function: Any) -> Any:
        def guarded(*args: Any) -> Any:
            there.append(device)
            result = function(*args)
            there.pop()
            return result

        return guarded

    monkeypatch.setattr(run, "on_device", on)
    monkeypatch.setattr(Run, "__call__", lambda run, tensors: launched.append(there.copy()))
    x, bias = (
        torch.randn(2, 7, 19, device=device, requires_grad=True),
        torch.randn(7, device=device, requires_grad=True),
    )
    bias_gelu(x, bias, dim=1).sum().backward()
    bias_gelu_transpose(x, bias).sum().backward()
    assert len(launched) >= 4
    assert all(where == [x.device] for where in launched)


@pytest.mark.skipif(not hasattr(jit, "native_specialize_impl"), reason="this Triton tells in another way what it asks")
def test_triton_asks_for_nothing_of_a_tensor_that_kept_kernels_dont_know_it_by() -> None:
    seen: dict[object, set[object]] = {}
    for dtype in (*DTYPES, torch.float64):
        for by in range(16):
            for tensor in (shifted(dtype, 4, 40, by=by), shifted(dtype, 40, by=by)):
                known = dtype, tensor.data_ptr() % run.POINTER_ALIGNMENT == 0
                seen.setdefault(known, set()).add(jit.native_specialize_impl(CUDABackend, tensor, False, True, True))
    assert all(len(answers) == 1 for answers in seen.values())


def test_the_gradient_of_an_argument_that_is_not_there_is_none_even_if_it_is_asked_for(device: str) -> None:
    x = torch.randn(2, 7, 19, device=device)
    dx, dbias = LAUNCHED.backward(x, x, None, 1, "tanh", (True, True))
    assert dx is not None
    assert dbias is None
    transposed = BIAS_GELU_TRANSPOSE.launched
    assert transposed is not None
    gradients = transposed.backward(x.mT.contiguous(), x, None, None, "tanh", (True, True, True))
    assert [gradient is not None for gradient in gradients] == [True, False, False]
