"""The seam: which calls are ordinary, and what is left when private names are gone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jvp, vmap

from triton_gelu import _seam, bias_gelu


def test_the_private_names_are_there() -> None:
    assert _seam._known


def test_a_plain_call_is_ordinary() -> None:
    x = torch.randn(4, 8)
    assert _seam.ordinary(x, None, torch.nn.Parameter(x[0]))
    with torch.inference_mode():
        assert _seam.ordinary(torch.randn(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert _seam.ordinary(x)


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


@pytest.mark.parametrize(
    "where", [a_dispatch_mode, a_function_mode, forward_mode, a_subclass, a_negated_view, zeros_without_memory]
)
def test_an_unusual_call_is_not_ordinary(where) -> None:  # type: ignore[no-untyped-def]
    with where() as x:
        assert not _seam.ordinary(x)
        assert not _seam.ordinary(None, x)


def test_a_transformed_call_is_neither_ordinary_nor_for_an_operator() -> None:
    asked = []
    vmap(lambda x: asked.append((_seam.ordinary(x), _seam.operable(x))) or x)(torch.randn(3, 4))
    assert asked == [(False, False)]


def test_without_the_private_names_the_slower_road_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_seam, "_known", False)
    x, bias = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    assert not _seam.ordinary(x)
    assert not _seam.operable(x)

    def plain(x: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(x + bias, approximate="tanh")

    for function in (
        lambda f: torch.autograd.grad(f(x, bias).square().sum(), (x, bias)),
        lambda f: jvp(f, (x, bias), (x, bias)),
        lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)(x, bias),
    ):
        torch.compiler.reset()
        torch.testing.assert_close(function(bias_gelu), function(plain))


def test_compilers_take_marked_functions_for_constants() -> None:
    @_seam.constant
    def modules() -> int:
        return len(sys.modules)  # Dynamo would not trace it like this

    doubled = torch.compile(lambda x: x * 2 if modules() else x, backend="eager", fullgraph=True)
    assert torch.equal(doubled(torch.ones(3)), torch.full((3,), 2.0))


def test_a_compilation_is_no_export() -> None:
    function = torch.compile(lambda x: x * (2 if _seam.exporting() else 3), backend="eager", fullgraph=True)
    assert torch.equal(function(torch.ones(3)), torch.full((3,), 3.0))
