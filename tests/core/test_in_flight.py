"""How launches ask for memory, and TRITON_GELU_PLAN, which replaces that for measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from triton_gelu.core import in_flight, run
from triton_gelu.core.targets import TARGETS, Target
from triton_gelu.ops.bias_gelu import BIAS_GELU

Override = Callable[[str], None]


@pytest.fixture
def override(monkeypatch: pytest.MonkeyPatch, nothing_kept: None) -> Iterator[Override]:
    """Sets the variable as if before the first call."""

    def set_variable(text: str) -> None:
        monkeypatch.setenv(in_flight.VARIABLE, text)
        in_flight.overrides.cache_clear()

    yield set_variable
    in_flight.overrides.cache_clear()


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
@pytest.mark.parametrize("align", [1, 2, 4, 8])
@pytest.mark.parametrize("axis", ["rows", "cols", "none"])
def test_every_choice_has_a_reason_and_programs_that_fit_a_processor(target: Target, align: int, axis: str) -> None:
    for formula in ("tanh", "none", "sigmoid"):
        backward = (in_flight.backward(target, align, axis, formula, double=double) for double in (False, True))
        for chosen in (in_flight.forward(target, align), *backward):
            assert chosen.reason
            assert chosen.loads in in_flight.LOADS
            assert chosen.loads == "free" or target.ptx
            assert 5 <= chosen.programs <= 8


def test_the_variable_replaces_what_it_names_and_says_so(override: Override) -> None:
    override("forward.unroll=4, forward.warps=4,backward.loads=volatile,backward.registers=0")
    forward = in_flight.forward(TARGETS["b200"], 8)
    assert (forward.unroll, forward.warps, forward.loads) == (4, 4, "tied")
    backward = in_flight.backward(TARGETS["b200"], 8, "cols", "tanh", double=False)
    assert (backward.unroll, backward.loads, backward.registers) == (2, "volatile", None)
    assert all(in_flight.VARIABLE in each.reason for each in (forward, backward))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unroll=4", "got 'unroll=4', expected NAME=VALUE with a name out of forward.unroll"),
        ("forward.share=0.1", "got 'forward.share=0.1', expected NAME=VALUE"),
        ("forward.unroll=3", "got 'forward.unroll=3', expected for forward.unroll one of 1, 2, 4, 8"),
        ("backward.loads", "got 'backward.loads', expected for backward.loads one of free, tied, volatile"),
    ],
)
def test_a_wrong_value_is_answered_with_the_right_ones(override: Override, text: str, message: str) -> None:
    override(text)
    with pytest.raises(ValueError, match=rf"^{in_flight.VARIABLE}: {message}"):
        in_flight.forward(TARGETS["b200"], 8)


def test_loads_are_tied_where_there_are_the_instructions_for_it(override: Override) -> None:
    override("backward.loads=tied")
    with pytest.raises(ValueError, match=r"got backward.loads=tied, expected free or volatile for MI300X"):
        in_flight.backward(TARGETS["mi300x"], 8, "cols", "tanh", double=False)


@pytest.mark.skipif(not run.compat_triton.INTERPRETED, reason="of a GPU's own plans others tell")
def test_a_call_is_planned_as_the_variable_says(override: Override, monkeypatch: pytest.MonkeyPatch) -> None:
    unrolled: list[object] = []

    class Run(run.Run):
        def __init__(self, launch: run.Launch, kernels: object, device: torch.device) -> None:
            super().__init__(launch, kernels, device)
            unrolled.append(dict(launch.constants)["UNROLL"])

    monkeypatch.setattr(run, "Run", Run)
    launched = BIAS_GELU.launched
    assert launched is not None
    x = torch.randn(4, 64)
    plain = launched.forward(x, None, 0, "tanh")
    override("forward.unroll=2")
    BIAS_GELU.cache.clear()
    assert torch.equal(launched.forward(x, None, 0, "tanh"), plain)
    assert unrolled == [1, 2]
