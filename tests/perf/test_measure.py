"""The harness: what it measures is right, what it writes can be read alone, what it says helps."""

from __future__ import annotations

import argparse
import io
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from perf import __main__ as command_line
from perf import cases, models, providers
from perf.cases import Case
from perf.progress import progress
from perf.rows import (
    COPY,
    COPY_SHARE,
    RATIO,
    ROOT,
    THROUGHPUT,
    TIME,
    Row,
    UserError,
    append_row,
    context,
    latest_rows,
    read_rows,
)
from perf.show import compare, plot, table
from perf.time import check, measure, timing

CPU = torch.device("cpu")
HERE = measure.Machine(CPU, threads=1, seconds=0.0)
SMALL = Case("small", (6, 32))
ROW = Row(
    "measured", "small", (6, 32), -1, "float32", "tanh", "forward", "eager", "time", "us", 10.0, 9.0, 11.0, device="d"
)


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # only PyTorch is timed in this process


def wrongly(change: Callable[[torch.Tensor], torch.Tensor]) -> providers.Provider:
    """Eager PyTorch with its answer spoilt."""
    return lambda case: lambda *leaves: change(providers.eager(case)(*leaves))


def notes(rows: Sequence[Row], provider: str) -> str:
    return " ".join(row.note for row in rows if row.provider == provider and row.status == "failed")


def test_a_row_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    row = replace(ROW, dim=None, **context())
    append_row(tmp_path / "deep" / "rows.jsonl", row)
    assert read_rows(tmp_path / "deep" / "rows.jsonl") == [row]
    assert row.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]  # wheels may leave the build out
    assert row.commit
    assert row.run


def test_a_line_torn_by_a_crash_is_dropped_and_written_over(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_row(file, ROW)
    with file.open("a") as torn:
        torn.write('{"kind": "measu')
    assert read_rows(file) == [ROW]
    append_row(file, ROW)
    assert read_rows(file) == [ROW, ROW]


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"kind": "measured"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:1: not a result row"):
        read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="perf measure"):
        read_rows(tmp_path / "missing.jsonl")


def test_a_row_says_what_it_is_or_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: expected one of measured, static, accuracy; got 'guessed'"):
        replace(ROW, kind="guessed")
    with pytest.raises(ValueError, match="has a value exactly when"):
        replace(ROW, value=None)


def test_only_the_newest_answer_to_a_question_counts() -> None:
    newer, other = replace(ROW, value=8.0), replace(ROW, provider="triton_gelu")
    assert latest_rows([ROW, other, newer]) == [newer, other]


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
    assert len(full) == len(sizes) * len(cases.DTYPES) * len(cases.APPROXIMATES) * len(cases.DIRECTIONS)


def test_bytes_count_each_tensor_once() -> None:
    shape, x, bias = (8, 100, 64), 8 * 100 * 64, 64
    assert Case("", shape).compulsory_bytes() == 4 * (2 * x + bias)
    assert Case("", shape, dtype="bfloat16", dim=1).compulsory_bytes() == 2 * (2 * x + 100)
    assert Case("", shape, dim=None).compulsory_bytes() == 4 * 2 * x
    both = Case("", shape, direction="forward_backward").compulsory_bytes()
    assert both == 4 * (2 * x + bias) + 4 * (3 * x + 2 * bias)  # y; then dy, x, dx and b, db


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shape 8,4 --dim 2", "--dim 2 is outside --shape 8,4"),
        ("--device tpu", "expected cpu, cuda or cuda:1"),
        ("--device mps", "only cpu and cuda"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_advice(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["measure", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_times_of_the_interpreter_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert command_line.main(["measure"]) == 2
    assert "env -u TRITON_INTERPRET" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", cases.DTYPES.values())
@pytest.mark.parametrize("approximate", cases.APPROXIMATES)
def test_pytorch_passes_the_check_in_every_shape_of_a_case(dtype: str, approximate: str) -> None:
    shapes = (
        Case("last", (400, 96)),
        Case("channels", (4, 32, 100), dim=1),
        Case("no bias", (30, 64), dim=None),
        Case("linear", (10, 20, 96), in_features=64),
        Case("stem", (6, 32, 50), dim=1, transposed=True),
    )
    for case in cases.product(shapes, dtypes=[dtype], approximates=[approximate], directions=cases.DIRECTIONS):
        inputs = case.inputs(CPU)
        outputs = providers.thunk(case, providers.eager(case), inputs)()
        assert check.objection(case, outputs, check.expected(case, inputs)) == "", case


@pytest.mark.parametrize("dtype", cases.DTYPES.values())
def test_the_other_formula_is_caught_in_every_dtype(dtype: str) -> None:
    for mine, other in (("tanh", "none"), ("none", "tanh"), ("tanh", "sigmoid")):
        case = Case("swapped", (512, 512), dtype=dtype, approximate=mine)
        inputs = case.inputs(CPU)
        outputs = providers.eager(replace(case, approximate=other))(*inputs.leaves)
        assert "y is wrong at" in check.objection(case, outputs, check.expected(case, inputs))


def test_a_wrong_provider_is_caught_and_not_timed(tmp_path: Path) -> None:
    spoilt: dict[str, providers.Provider] = {
        "eager": providers.eager,
        "nan": wrongly(lambda y: torch.where(y == y.max(), math.nan, y)),
        "wider": wrongly(torch.Tensor.double),
        "fewer": wrongly(lambda y: y[:3]),
        "no gradient of the bias": lambda case: (
            lambda x, bias: F.gelu(x + bias.detach() + 0 * bias, approximate="tanh")
        ),
        "raises": lambda case: lambda x, bias: torch.ops.aten.nothing_like_it(x),
    }
    both = replace(SMALL, direction="forward_backward")
    assert measure.sweep([SMALL, both], spoilt, HERE, tmp_path / "rows.jsonl")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert "y is wrong at 1 of 192 elements: nan" in notes(rows, "nan")
    assert "expected (6, 32) in torch.float32" in notes(rows, "wider")
    assert "y is (3, 32)" in notes(rows, "fewer")
    assert "dbias is wrong" in notes(rows, "no gradient of the bias")
    assert "AttributeError" in notes(rows, "raises")
    timed = {row.provider for row in rows if row.status == "ok" and row.direction == both.direction}
    assert timed == {"eager", "copy"}


def test_rows_of_a_case_agree_with_each_other(tmp_path: Path) -> None:
    mine: dict[str, providers.Provider] = {"eager": providers.eager, "triton_gelu": providers.eager}
    measure.sweep([SMALL], mine, HERE, tmp_path / "rows.jsonl")
    found = {(row.provider, row.metric): row for row in read_rows(tmp_path / "rows.jsonl")}
    time, speed = (found["triton_gelu", metric] for metric in (TIME, THROUGHPUT))
    assert speed.value == pytest.approx(SMALL.compulsory_bytes() / time.value / 1e3)  # bytes per us, in GB/s
    assert time.low <= time.value <= time.high
    copy = found["copy", THROUGHPUT]
    assert found["triton_gelu", COPY_SHARE].value == pytest.approx(100 * speed.value / copy.value)
    ratio = found["triton_gelu", RATIO.format("eager")]
    assert 0.2 < ratio.value < 5
    assert ratio.low <= ratio.high
    assert "F.gelu(x + b, approximate='tanh')" in time.note
    assert {row.path for row in found.values()} == {"CPU path"}
    assert all("thread" in row.device for row in found.values())


@pytest.mark.parametrize("name", models.MODELS)
def test_a_whole_model_is_right_in_pytorch_and_with_this_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # nothing is timed, and kernels run as they were decorated
    case = Case(name, (1, 6, 64), dim=None, approximate="none", direction="forward_backward", model=name)
    inputs = case.inputs(CPU)
    expected = check.expected(case, inputs)
    for provider in (providers.eager, providers.fused):
        outputs = providers.thunk(case, provider(case), inputs)()
        assert not check.objection(case, outputs, expected)
        outputs[-1].add_(1e-2 * outputs[-1].abs().max())
        assert "is wrong at" in check.objection(case, outputs, expected)


def test_a_whole_model_of_pytorch_has_none_of_our_layers() -> None:
    for whole in models.MODELS.values():
        plain = whole.plain((1, 6, 64), "none")
        assert not any(type(part).__name__.endswith(("LinearGELU", "Conv1dGELU", "MLP")) for part in plain.modules())
        assert sum(isinstance(part, torch.nn.GELU) for part in plain.modules()) >= models.DEPTH


def test_peak_memory_counts_what_a_call_allocates() -> None:
    case = Case("", (256, 256))
    size = case.elements * 4
    inputs = case.inputs(CPU)
    assert timing.peak_memory(providers.thunk(case, providers.eager(case), inputs), CPU) == 2 * size  # x + b, and y
    assert timing.peak_memory(lambda: inputs.x.abs().neg_(), CPU) == size


def test_timing_interleaves_providers_and_pairs_their_rounds() -> None:
    order: list[str] = []
    thunks = {name: (lambda name=name: order.append(name)) for name in "ab"}
    samples = timing.interleaved(thunks, threads=1, budget_s=0.0)
    assert len(samples["a"]) == len(samples["b"]) == timing.FEWEST_ROUNDS
    assert timing.rotated(("a", "b", "c"), 4) == ("b", "c", "a")


def counting(calls: list[str]) -> dict[str, providers.Provider]:
    """Eager PyTorch that notes which cases it was asked for."""

    def counted(case: Case) -> providers.Call:
        calls.append(case.name)
        return providers.eager(case)

    return {"eager": counted}


def test_a_finished_case_is_not_measured_again_unless_asked_or_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, calls = tmp_path / "rows.jsonl", []
    two = [SMALL, replace(SMALL, name="other")]
    measure.sweep(two[:1], counting(calls), HERE, file)
    measure.sweep(two, counting(calls), HERE, file)
    assert calls == ["small", "other"]
    measure.sweep(two, counting(calls), HERE, file, fresh=True)
    assert calls == ["small", "other"] * 2
    monkeypatch.setattr(measure, "commit", lambda: "another")
    measure.sweep(two[:1], counting(calls), HERE, file)
    assert calls[4:] == ["small"]


def test_ctrl_c_keeps_what_is_done_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(case: Case) -> providers.Call:
        if case.shape == (5, 7):
            raise KeyboardInterrupt
        return providers.eager(case)

    file, calls = tmp_path / "rows.jsonl", []
    words = ["measure", "--shape", "6,32", "--shape", "5,7", "--provider", "eager", "--output", str(file)]
    monkeypatch.setattr(providers, "PROVIDERS", {"eager": interrupted})
    assert command_line.main(words) == measure.INTERRUPTED
    assert f"What was measured is in {file}; the same command goes on from there" in capsys.readouterr().out
    assert {row.shape for row in read_rows(file)} == {(6, 32)}
    monkeypatch.setattr(providers, "PROVIDERS", counting(calls))
    assert command_line.main(words) == 0
    assert calls == ["own"]
    assert {row.shape for row in read_rows(file)} == {(6, 32), (5, 7)}


def test_a_case_that_does_not_fit_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "available_memory", lambda device: 1e9)
    huge = Case("huge", (100_000, 100_000))
    assert measure.sweep([huge], {"eager": providers.eager}, HERE, tmp_path / "rows.jsonl")
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert (row.status, row.value) == ("skipped", None)
    assert "GiB, 0.9 GiB are free" in row.note


def test_without_a_compiler_compiled_providers_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.shutil, "which", lambda name: None)
    measure.sweep([SMALL], {"torch.compile": providers.PROVIDERS["torch.compile"]}, HERE, tmp_path / "rows.jsonl")
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.status == "skipped"
    assert "install g++" in row.note


def test_progress_writes_plain_lines_into_a_pipe_and_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for lively, expected in ((False, "1/2  a\n2/2  b\n"), (True, "━━━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌ 2/2  b  0:00 left")):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda lively=lively: lively)
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress("ab", str)) == ["a", "b"]
        assert (expected in stream.getvalue()) if lively else (expected == stream.getvalue())


def measured_rows() -> list[Row]:
    """Two sizes by all providers, as a sweep would have written them."""
    rows = []
    for case in cases.product((SMALL, Case("channels", (2, 8, 4096), dim=1)), approximates=("tanh", "none")):
        for number, provider in enumerate((*providers.PROVIDERS, COPY), start=1):
            row = replace(
                measure.blank_row(case, HERE), provider=provider, status="ok", value=10.0 * number, low=9.0 * number
            )
            rows += [row, replace(row, metric=THROUGHPUT, unit="GB/s", low=8.0 * number, high=11.0 * number)]
    return rows


def test_the_table_says_that_no_kernel_ran_and_what_is_missing() -> None:
    failed = replace(measured_rows()[0], status="failed", value=None, note="y is wrong")
    text = table.render([*measured_rows()[1:], failed])
    assert "CPU path: no Triton kernel ran." in text
    assert "failed: small, eager: y is wrong" in text
    assert "exact (none), float32, forward" in text
    markdown = table.render(measured_rows(), markdown=True)
    assert "| small | 6x32 | 10 us |" in markdown


def test_pictures_are_drawn_from_rows_and_say_what_ran(tmp_path: Path) -> None:
    for row in measured_rows():
        append_row(tmp_path / "rows.jsonl", row)
    assert command_line.main(["plot", str(tmp_path / "rows.jsonl")]) == 0
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    plot.write(measured_rows(), tmp_path / "rows.svg")
    ((name, figure),) = plot_of(measured_rows())
    assert name == "throughput"
    assert "CPU path (no Triton kernel ran)" in figure.get_suptitle()
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "tanh, float32, forward",
        "exact (none), float32, forward",
    ]


def plot_of(rows: Sequence[Row]) -> list[tuple[str, plot.Figure]]:
    from perf.show import plot_throughput

    return list(plot_throughput.draw(rows))


def test_two_devices_never_share_a_picture() -> None:
    rows = measured_rows()
    assert len(plot_of([*rows, *(replace(row, device="another") for row in rows)])) == 2


def test_nothing_to_draw_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_row(tmp_path / "rows.jsonl", ROW)
    assert command_line.main(["plot", str(tmp_path / "rows.jsonl")]) == 2
    assert "no rows to draw" in capsys.readouterr().err


def compared(tmp_path: Path, before: Sequence[Row], after: Sequence[Row], *words: str) -> int:
    files = []
    for name, rows in (("before.jsonl", before), ("after.jsonl", after)):
        (tmp_path / name).unlink(missing_ok=True)
        for row in rows:
            append_row(tmp_path / name, row)
        files.append(str(tmp_path / name))
    return command_line.main(["compare", *files, *words])


def test_compare_catches_a_planted_slow_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = replace(ROW, value=20.0, low=18.0, high=22.0)
    assert compared(tmp_path, [ROW], [slower]) == 1
    assert "+100.0%" in capsys.readouterr().out
    assert compared(tmp_path, [slower], [ROW]) == 0
    assert compared(tmp_path, [slower], [ROW], "--exact") == 1
    within = replace(ROW, value=10.9, low=10.5, high=13.0)
    assert compared(tmp_path, [ROW], [within], "--exact") == 0
    wrong = replace(ROW, value=None, low=None, high=None, status="failed", note="y is wrong")
    assert compared(tmp_path, [ROW], [wrong]) == 1


def test_compare_takes_static_rows_exactly_and_only_of_one_triton(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    static = replace(
        ROW,
        kind="static",
        metric="instructions",
        low=None,
        high=None,
        path="compiled offline",
        versions={"triton": "3.9"},
    )
    assert compared(tmp_path, [static], [replace(static, value=10.01)]) == 1
    assert (
        compared(tmp_path, [replace(static, metric="headroom")], [replace(static, metric="headroom", value=9.9)]) == 1
    )
    assert compared(tmp_path, [replace(static, metric="fma")], [replace(static, metric="fma", value=11.0)]) == 0
    capsys.readouterr()
    assert compared(tmp_path, [static], [replace(static, value=99.0, versions={"triton": "3.7"})]) == 0
    assert "different Triton versions are not compared: 3.7 and 3.9" in capsys.readouterr().out


def test_compare_refuses_files_that_have_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(tmp_path, [ROW], [replace(ROW, device="another")]) == 2
    assert "after.jsonl has measured rows of another" in capsys.readouterr().err


def test_compare_says_when_the_machine_itself_was_in_another_state() -> None:
    copy = replace(ROW, provider=COPY)
    found = list(compare.changes([copy], [replace(copy, value=20.0, low=19.0, high=21.0)]))
    assert [each.verdict for each in found] == [compare.CHANGED]
    assert "+100%" in next(compare.caveats(found))


def test_every_command_shows_its_options_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("measure", "plot", "compare"):
        with pytest.raises(SystemExit) as end:
            command_line.main([name, "--help"])
        assert end.value.code == 0
        assert f"python -m perf {name}" in capsys.readouterr().out.partition("examples:")[2]
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in command_line.COMMANDS)


def test_an_unknown_command_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line.main(["mesure"])
    assert end.value.code == 2
    assert "measure" in capsys.readouterr().err


def test_one_command_measures_prints_a_table_and_names_its_files(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    words = ["--shape", "4,8", "--provider", "triton_gelu", "--output", str(output), "--seconds", "0", "--plot"]
    done = subprocess.run(
        [sys.executable, "-m", "perf", "measure", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        f"report:  {output.with_suffix('.md')}",
        f"picture: {output.with_suffix('.png')}",
    ]
    assert all(output.with_suffix(suffix).exists() for suffix in (".jsonl", ".md", ".png"))
    assert {row.provider for row in read_rows(output)} == {"eager", "triton_gelu", "copy"}
