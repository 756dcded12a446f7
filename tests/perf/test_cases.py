"""Sets of cases have what they promise, and options choose among them."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from perf import cases
from perf.cases import Case
from perf.rows import UserError
from perf.time import measure


def test_quick_runs_from_the_smallest_shape_to_whisper_large_in_one_dtype_and_formula() -> None:
    quick = cases.quick()
    assert quick[0].shape == (32, 10, 64)
    assert {case.shape[0] for case in quick} == {1, 32}
    assert max(case.elements for case in quick) == 1500 * 4 * 1280
    special = [case for case in quick if (case.dtype, case.approximate) != ("float32", "tanh") and not case.model]
    assert len({case.shape for case in special}) == 2
    names = " ".join(case.name for case in quick)
    assert all(word in names for word in ("bert", "gpt2", "vit", "conv1", "linear", "encoder", "mlps"))


def test_full_has_every_dtype_formula_and_direction_at_every_size() -> None:
    full = cases.full()
    assert len(set(full)) == len(full)
    sizes = {(case.name, case.shape) for case in full}
    assert len(full) == len(sizes) * len(cases.DTYPES) * len(cases.FORMULAS) * len(cases.DIRECTIONS)


def test_bytes_count_each_tensor_once() -> None:
    shape, x, bias = (8, 100, 64), 8 * 100 * 64, 64
    assert Case("", shape).compulsory_bytes() == 4 * (2 * x + bias)
    assert Case("", shape, dtype="bfloat16", dim=1).compulsory_bytes() == 2 * (2 * x + 100)
    assert Case("", shape, dim=None).compulsory_bytes() == 4 * 2 * x
    both = Case("", shape, direction="forward_backward").compulsory_bytes()
    assert both == 4 * (2 * x + bias) + 4 * (3 * x + 2 * bias)  # y; then dy, x, dx and b, db


def test_bytes_of_gated_cases_count_both_halves_or_both_tensors() -> None:
    shape, y = (8, 100, 64), 8 * 100 * 64
    joined, two = (Case("", shape, gated=gated) for gated in ("first", cases.TWO))
    assert (joined.x_shape, two.x_shape) == ((8, 100, 128), shape)
    assert joined.compulsory_bytes() == two.compulsory_bytes() == 4 * (3 * y + 128)
    both = replace(joined, direction="forward_backward").compulsory_bytes()
    assert both == 4 * (3 * y + 128) + 4 * (5 * y + 2 * 128)
    assert Case("", shape, dim=1, gated="second").x_shape == (8, 200, 64)


def test_the_gated_set_has_models_in_their_own_formulas() -> None:
    found = cases.gated()
    assert {case.approximate for case in found if case.joined} == {"none"}
    assert {case.approximate for case in found if not case.joined} == {"tanh"}
    assert all(word in " ".join(case.name for case in found) for word in ("sdxl", "modernbert", "gemma", "t5-xxl"))


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    measure.add_arguments(parser)
    return parser.parse_args(words)


def test_a_case_of_ones_own_is_what_was_asked_for() -> None:
    chosen = cases.select(arguments("--shape", "8,1500,5120", "--dim", "1", "--dtype", "bf16", "--approximate", "none"))
    assert chosen == (Case("own", (8, 1500, 5120), 1, "bfloat16", "none", "forward"),)
    assert cases.select(arguments("--shape", "4,4", "--dim", "none"))[0].dim is None


def test_options_narrow_a_set() -> None:
    chosen = cases.select(arguments("--set", "full", "--dtype", "fp16", "--approximate", "sigmoid"))
    assert {(case.dtype, case.approximate) for case in chosen} == {("float16", "sigmoid")}
    with pytest.raises(UserError, match="--set quick has no such case"):
        cases.select(arguments("--dtype", "fp16"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shape 8,x", "expected positive sizes such as 8,1500,5120"),
        ("--dtype int8", "expected fp32, bf16, fp16"),
        ("--dim x", "'none' for no bias"),
        ("--provider nobody", "triton_gelu compiled"),
        ("--threads 0", "expected a positive integer"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        arguments(*words.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err
