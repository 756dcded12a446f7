"""Private names of PyTorch and Triton: what they tell, and what is left when they are gone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch._vmap_internals import _vmap as old_vmap
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from triton.compiler.compiler import CompiledKernel

from triton_gelu import bias_gelu
from triton_gelu.core import compat_torch, compat_triton
from triton_gelu.ops.bias_gelu import BIAS_GELU, PLAIN


def test_the_private_names_are_there() -> None:
    assert compat_torch._complete


def test_a_plain_call_is_plain_eager() -> None:
    x = torch.randn(4, 8)
    assert compat_torch.is_plain_eager(x, None, torch.nn.Parameter(x[0]))
    with torch.inference_mode():
        assert compat_torch.is_plain_eager(torch.randn(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert compat_torch.is_plain_eager(x)


class Subclass(Tensor):
    pass


@contextmanager
def a_dispatch_mode() -> Iterator[Tensor]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        yield torch.randn(3)


@contextmanager
def a_function_mode() -> Iterator[Tensor]:
    with torch.device("cpu"):
        yield torch.randn(3)


@contextmanager
def forward_mode() -> Iterator[Tensor]:
    with forward_ad.dual_level():
        yield torch.randn(3)


@contextmanager
def a_subclass() -> Iterator[Tensor]:
    yield torch.randn(3).as_subclass(Subclass)


@contextmanager
def a_negated_view() -> Iterator[Tensor]:
    yield torch.randn(3, dtype=torch.complex64).conj().imag


@contextmanager
def zeros_without_memory() -> Iterator[Tensor]:
    yield torch._efficientzerotensor(3)


WITHOUT_ADDRESS = {
    "sparse": lambda: torch.randn(3, 3).to_sparse(),
    "sparse rows": lambda: torch.randn(3, 3).to_sparse_csr(),
    "of oneDNN": lambda: torch.randn(3, 3).to_mkldnn(),
    "functional": lambda: torch._to_functional_tensor(torch.randn(3)),
    "sparse on meta": lambda: torch.randn(3, 3).to_sparse().to("meta"),
    "empty": lambda: torch.empty(0, 3),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("kind", WITHOUT_ADDRESS)
def test_a_tensor_without_an_address_is_not_plain_eager(kind: str) -> None:
    assert not compat_torch.is_plain_eager(torch.randn(3), WITHOUT_ADDRESS[kind]())


def test_a_tensor_on_meta_is_plain_eager() -> None:
    assert compat_torch.is_plain_eager(torch.empty(3, device="meta"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_that_outlived_its_transform_is_not_plain_eager(device: str) -> None:
    escaped: list[Tensor] = []
    vmap(lambda x: escaped.append(x) or x)(torch.randn(3, 4, device=device))
    old_vmap(lambda x: escaped.append(x) or x)(torch.randn(3, 4, device=device))
    assert [type(x) for x in escaped] == [Tensor, Tensor]
    assert not any(map(compat_torch.is_plain_eager, escaped))


@contextmanager
def a_nested_tensor() -> Iterator[Tensor]:
    yield torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize(
    "where",
    [a_dispatch_mode, a_function_mode, forward_mode, a_subclass, a_negated_view, a_nested_tensor, zeros_without_memory],
)
def test_an_unusual_call_is_not_plain_eager(where) -> None:  # type: ignore[no-untyped-def]
    with where() as x:
        assert not compat_torch.is_plain_eager(x)
        assert not compat_torch.is_plain_eager(None, x)


def test_a_transformed_call_is_neither_plain_eager_nor_for_an_operator() -> None:
    asked = []
    vmap(lambda x: asked.append((compat_torch.is_plain_eager(x), compat_torch.takes_custom_op(x))) or x)(
        torch.randn(3, 4)
    )
    assert asked == [(False, False)]


def test_without_the_private_names_the_slower_way_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat_torch, "_complete", False)
    x, bias = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    assert not compat_torch.is_plain_eager(x)
    assert not compat_torch.takes_custom_op(x)

    def plain(x: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(x + bias, approximate="tanh")

    for function in (
        lambda f: torch.autograd.grad(f(x, bias).square().sum(), (x, bias)),
        lambda f: jvp(f, (x, bias), (x, bias)),
        lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)(x, bias),
    ):
        torch.compiler.reset()
        torch.testing.assert_close(function(bias_gelu), function(plain))


@pytest.mark.usefixtures("nothing_kept")
def test_without_a_faster_backend_plain_pytorch_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BIAS_GELU, "backends", (PLAIN,))
    x, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 8), (8,)))
    assert torch.autograd.gradcheck(bias_gelu, (x, bias))
    assert torch.autograd.gradgradcheck(bias_gelu, (x, bias))
    torch.testing.assert_close(bias_gelu(x, bias), F.gelu(x + bias, approximate="tanh"))
    torch.testing.assert_close(vmap(bias_gelu)(x), F.gelu(x, approximate="tanh"))


def test_compilers_take_marked_functions_for_constants() -> None:
    @compat_torch.untraced
    def modules() -> int:
        return len(sys.modules)  # Dynamo would not trace it like this

    doubled = torch.compile(lambda x: x * 2 if modules() else x, backend="eager", fullgraph=True)
    assert torch.equal(doubled(torch.ones(3)), torch.full((3,), 2.0))


class Driver:
    def get_current_device(self) -> int:
        return 3

    def get_current_stream(self, device: int) -> str:
        return f"stream of {device}"


class Kernel:
    """What Triton 3.5 to 3.9 compile to, as far as a launch is concerned."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def run(self, *args: Any) -> None:
        self.launches.append(args)

    def arguments(
        self, grid: tuple[int, int, int], stream: object, hooks: tuple[Any, ...], *args: Any
    ) -> tuple[Any, ...]:
        return (*grid, stream, self.function, self.packed_metadata, *hooks, *args)

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        knobs = triton.knobs.runtime

        def launch(*args: Any) -> None:
            stream = compat_triton.driver().get_current_stream(3)  # type: ignore[attr-defined]
            hooks = "who is launched", knobs.launch_enter_hook, knobs.launch_exit_hook
            self.run(*self.arguments(grid, stream, hooks, *args))

        return launch


class ArgumentsFirst(Kernel):
    def arguments(
        self, grid: tuple[int, int, int], stream: object, hooks: tuple[Any, ...], *args: Any
    ) -> tuple[Any, ...]:
        return (*args, *grid, stream, self.function, self.packed_metadata, *hooks)


class WithoutFunction(Kernel):
    def __getattribute__(self, name: str) -> Any:
        if name == "function":
            raise AttributeError(name)
        return super().__getattribute__(name)

    def arguments(
        self, grid: tuple[int, int, int], stream: object, hooks: tuple[Any, ...], *args: Any
    ) -> tuple[Any, ...]:
        return (*grid, stream, *args)


class Twice(Kernel):
    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        once = super().__getitem__(grid)
        return lambda *args: (once(*args), once(*args))[0]


@pytest.fixture
def _driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat_triton, "driver", Driver)


GRID = (5, 6, 7)


@pytest.mark.usefixtures("_driver")
@pytest.mark.parametrize("device", [None, 3])
def test_a_kernel_that_launches_as_we_know_it_is_launched_without_its_hooks(device: int | None) -> None:
    kernel = Kernel()
    launch = compat_triton.launcher(kernel, GRID, device, (8, "constant"))
    assert not kernel.launches  # a rehearsal is no launch
    launch(("x", "y"))
    assert kernel.launches == [
        (*GRID, "stream of 3", "function", "metadata", None, None, None, "x", "y", 8, "constant")
    ]


@pytest.mark.usefixtures("_driver")
@pytest.mark.parametrize("kind", [ArgumentsFirst, WithoutFunction, Twice])
def test_a_kernel_that_launches_in_another_way_is_launched_in_its_own(kind: type[Kernel]) -> None:
    kernel, same = kind(), kind()
    compat_triton.launcher(kernel, GRID, 3, (8, "constant"))(("x", "y"))
    same[GRID]("x", "y", 8, "constant")
    assert kernel.launches == same.launches
    assert kernel.launches


@pytest.mark.usefixtures("_driver")
def test_the_kernels_of_this_triton_launch_as_we_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    kernel, launches = CompiledKernel.__new__(CompiledKernel), Kernel()
    vars(kernel).update(
        module="loaded", function="function", packed_metadata="metadata", _run=launches.run, name="", src=None
    )
    compat_triton.launcher(kernel, GRID, 3, (8, "constant"))(("x", "y"))
    kernel.module = None  # nothing to unload
    assert launches.launches == [
        (*GRID, "stream of 3", "function", "metadata", None, None, None, "x", "y", 8, "constant")
    ]


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_and_the_debug_mode_watch(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = triton.knobs.runtime
    assert not compat_triton.is_profiled()
    getattr(knobs, hook).add(print)
    assert compat_triton.is_profiled()
    getattr(knobs, hook).remove(print)
    assert not compat_triton.is_profiled()
    with knobs.scope():
        setattr(knobs, hook, print)  # one hook instead of a chain
        assert compat_triton.is_profiled()
    with knobs.scope():
        knobs.debug = True
        assert compat_triton.is_profiled()
    assert not compat_triton.is_profiled()


@pytest.mark.parametrize(
    "makers", [compat_torch._allocators, None], ids=["as compiled graphs do", "without the private name"]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
def test_results_are_made_as_empty_like_makes_them(
    inference: bool, order: tuple[int, ...], device: str, makers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat_torch, "_allocators", makers)
    x = torch.nn.Parameter(torch.empty((2, 3, 4), dtype=torch.float16, device=device).permute(order))
    make = compat_torch.allocator(x.shape, x.stride(), x.dtype, x.device)
    with torch.inference_mode(inference):
        ours, theirs, other = make(), torch.empty_like(x), make()
    for asked in (type, Tensor.size, Tensor.stride, Tensor.is_inference, Tensor.requires_grad.__get__):
        assert asked(ours) == asked(theirs)
    assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device)
    assert device == "meta" or ours.data_ptr() != other.data_ptr()


def test_what_makes_the_tensors_of_compiled_graphs_is_in_this_pytorch() -> None:
    make = compat_torch.allocator((2, 3), (3, 1), torch.float32, torch.device("cpu"))
    assert make.func is compat_torch._allocators._empty_strided_cpu  # type: ignore[attr-defined]


def test_a_compilation_is_no_export() -> None:
    function = torch.compile(lambda x: x * (2 if compat_torch.is_exporting() else 3), backend="eager", fullgraph=True)
    assert torch.equal(function(torch.ones(3)), torch.full((3,), 3.0))
