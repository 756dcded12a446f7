"""What the owner of a GPU runs: the order of its work, its budget, interruptions, and what it leaves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from example_rows import HERE
from steps_that_break import all_steps as steps_that_break

from perf import __main__ as command_line
from perf.operators import OPERATORS, Operator
from perf.rows import CPU_BACKEND, KERNEL_BACKEND, RATIO, THROUGHPUT, TIME, Row, latest_rows, read_rows
from perf.show import report
from perf.time import correct, gpu, measure, steps
from perf.time.steps import Step, all_steps
from perf.time.worker import Lost, Worker
from triton_gelu.core import in_flight

pytestmark = pytest.mark.kernels
TESTS = Path(__file__).parents[1]


class Device:
    """A GPU that isn't there: what it was asked, and a clock that goes on by what each step was thought to take."""

    def __init__(self, breaks: str = "", interrupts: str = "", slowness: float = 1.0) -> None:
        self.asked: list[str] = []
        self.now, self.slowness = 0.0, slowness
        self.breaks, self.interrupts = breaks, interrupts
        self.environments: list[dict[str, str]] = []

    def clock(self) -> float:
        return self.now

    def start(self, step: Step) -> FakeWorker:
        self.environments.append(dict(step.environment))
        return FakeWorker(self)


class FakeWorker:
    """A process that answers with made up numbers, each row labelled as a CPU's."""

    def __init__(self, device: Device) -> None:
        self.device, self.ended = device, False
        self.process = SimpleNamespace(poll=lambda: 1 if self.ended else None)

    def ask(self, step: Step, limit_s: float) -> Iterator[Row]:
        device = self.device
        device.asked.append(step.name)
        device.now += device.slowness * step.seconds
        for wanted in sorted(step.answers, key=str):
            if step.name == device.interrupts:
                raise KeyboardInterrupt
            if step.name == device.breaks:
                self.ended = True
                raise Lost("its process ended: exit code -11")
            yield replace(steps.unanswered(wanted, HERE, "skipped", ""), status="ok", value=0.5)

    def dismiss(self) -> None:
        self.ended = True

    def end(self) -> str:
        self.ended = True
        return ""

    def kill(self) -> None:
        self.ended = True


def shift(output: Path, device: Device, minutes: float = 60) -> gpu.Shift:
    return gpu.Shift(HERE, output, 60 * minutes, device.start, clock=device.clock)  # type: ignore[arg-type]


def position(names: Sequence[str], has: Callable[[str], bool]) -> int:
    return next(place for place, name in enumerate(names) if has(name))


def test_what_is_worth_most_comes_first_and_every_operator_dtype_formula_and_layout_is_checked() -> None:
    every = all_steps()
    names = [step.name for step in every]
    assert len(set(names)) == len(names)
    checked = {wanted[7] for step in every for wanted in step.answers if wanted[0] == "checked"} - {"pytest"}
    assert checked == set(OPERATORS)
    for name, operator in OPERATORS.items():
        mine = [wanted for step in every for wanted in step.answers if wanted[7] == name]
        assert {(dtype, formula) for _, _, _, _, dtype, formula, *_ in mine} == {
            (dtype, formula) for dtype in steps.dtypes() for formula in steps.library.FORMULAS
        }
        assert {wanted[1] for wanted in mine} == set(correct.layouts(operator))
    order = [
        position(names, lambda name: name.startswith("gelu, bfloat16")),
        position(names, lambda name: "width 4096" in name),
        position(names, lambda name: "smallest" in name),
        position(names, lambda name: name.startswith("gelu, float32")),
        position(names, lambda name: "errors" in name),
        position(names, lambda name: "torch.compile" in name),
        position(names, lambda name: "2^28" in name),
        position(names, lambda name: "textbook" in name),
        position(names, lambda name: "host" in name),
        position(names, lambda name: "fc1" in name),
        position(names, lambda name: "encoder" in name),
        names.index("tests"),
    ]
    assert order == sorted(order)
    sizes = {wanted[2] for step in every for wanted in step.answers}
    assert {(32, 10, 64), (8, 1500, 5120), (8, 512, 3072), (2**8, 4096), (2**16, 4096)} <= sizes


def test_a_plan_is_asked_for_by_a_variable_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "PLANS", ("forward.wide", "backward.deep"))
    mine = [step for step in all_steps() if "plan forward.wide" in step.name]
    assert {way for step in mine for *_, way, _, _ in step.answers} == {"forward"}
    device = Device()
    assert shift(tmp_path / "rows.jsonl", device).work([all_steps()[-1], *mine])
    assert device.environments == [{}, {"TRITON_GELU_PLAN": "forward.wide"}]
    assert {row.provider for row in read_rows(tmp_path / "rows.jsonl")} == {"pytest", "triton_gelu, plan forward.wide"}


@pytest.mark.parametrize("minutes", [4, 10])
def test_the_budget_is_kept_and_what_does_not_fit_is_left_for_another_time(minutes: int, tmp_path: Path) -> None:
    device, every = Device(), all_steps()
    work = shift(tmp_path / "rows.jsonl", device, minutes)
    assert work.work(every)
    assert device.now <= 60 * minutes
    assert device.now > 60 * minutes - max(step.seconds for step in every if step.seconds < 60)
    assert [*device.asked, *(step.name for step in work.late)] != []
    assert {*device.asked, *(step.name for step in work.late)} == {step.name for step in every}
    first = [step.name for step in every][: len(device.asked) // 2]
    assert device.asked[: len(first)] == first


def test_a_second_run_does_what_the_first_left_out(tmp_path: Path) -> None:
    output, every = tmp_path / "rows.jsonl", all_steps()
    first, second, third = Device(), Device(), Device()
    shift(output, first, 4).work(every)
    shift(output, second, 60).work(every)
    assert not set(first.asked) & set(second.asked)
    assert {*first.asked, *second.asked} == {step.name for step in every}
    shift(output, third, 60).work(every)
    assert third.asked == []


def test_rows_of_another_commit_or_device_are_no_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, every = tmp_path / "rows.jsonl", all_steps()[:3]
    shift(output, Device()).work(every)
    monkeypatch.setattr(gpu, "commit", lambda: "another")
    again = Device()
    shift(output, again).work(every)
    assert again.asked == [step.name for step in every]


def test_what_breaks_is_a_failed_row_and_the_others_go_on_in_another_process(tmp_path: Path) -> None:
    output, every = tmp_path / "rows.jsonl", all_steps()[:3]
    device = Device(breaks=every[1].name)
    assert shift(output, device).work(every)
    assert len(device.environments) == 2
    rows = read_rows(output)
    failed = [row for row in rows if row.status == "failed"]
    assert {steps.answer(row) for row in failed} == every[1].answers
    assert {row.note for row in failed} == {"its process ended: exit code -11"}
    assert {steps.answer(row) for row in rows if row.status == "ok"} == every[0].answers | every[2].answers
    again = Device()
    shift(output, again).work(every)
    assert again.asked == [every[1].name]


def test_interrupted_at_any_step_the_file_is_whole_and_the_next_run_goes_on(tmp_path: Path) -> None:
    every = all_steps()
    for place in (0, 5, 60, len(every) - 1):
        output = tmp_path / f"{place}.jsonl"
        work = shift(output, Device(interrupts=every[place].name))
        assert not work.work(every)
        done = {steps.answer(row) for row in read_rows(output)} if output.exists() else set()
        assert done == {wanted for step in every[:place] for wanted in step.answers}
        assert all(row.status == "ok" for row in (read_rows(output) if place else []))
        again = Device()
        assert shift(output, again).work(every)
        assert again.asked == [step.name for step in every[place:]]


def test_a_line_torn_by_a_crash_is_one_step_to_do_again(tmp_path: Path) -> None:
    output, every = tmp_path / "rows.jsonl", all_steps()[:2]
    shift(output, Device()).work(every)
    output.write_text(output.read_text()[:-20])
    again = Device()
    shift(output, again).work(every)
    assert again.asked == [every[1].name]
    assert len(latest_rows(read_rows(output))) == sum(len(step.answers) for step in every)


def test_what_a_cpu_measured_is_never_labelled_a_gpus(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    small = next(step for step in all_steps() if step.name.startswith("smallest"))
    for row in [*small.rows(replace(HERE, seconds=0.0)), *all_steps()[0].rows(HERE)]:
        gpu.append_row(output, row)
    assert {row.backend for row in read_rows(output)} == {CPU_BACKEND}
    assert all(row.device.startswith("CPU: ") for row in read_rows(output))
    assert "No Triton kernel ran".lower() in report.measured(read_rows(output)).lower()


def test_its_rows_are_shown_in_a_report_and_in_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "gpu-h100.jsonl"
    shift(output, Device()).work(all_steps())
    labelled = [
        replace(row, device="NVIDIA H100 80GB HBM3", backend=KERNEL_BACKEND, unit="us")
        for row in read_rows(output)
        if row.kind != "accuracy"
    ]
    times = [row for row in labelled if row.metric == TIME]
    speeds = [replace(row, metric=THROUGHPUT, unit="GB/s") for row in times]
    speeds += [replace(row, metric=RATIO.format("eager"), unit="1") for row in times if row.provider == "triton_gelu"]
    output.unlink()
    for row in [*labelled, *speeds]:
        gpu.append_row(output, row)
    monkeypatch.setattr(report, "cannot_draw", lambda: "nothing to draw with")
    report.write(read_rows(output), output.with_suffix(".md"))
    text, count = output.with_suffix(".md").read_text(), len(correct.layouts(OPERATORS["bias_gelu"]))
    assert f"| bias_gelu | bfloat16 | tanh | {count} of {count} |" in text
    assert "#### Predicted and measured, NVIDIA H100 80GB HBM3" in text
    assert "rank correlation of the predicted and the measured time" in text
    assert "#### tanh, bfloat16, forward, the host's time of a call" in text
    readme = pytest.importorskip("perf.show.readme")
    monkeypatch.setattr(readme, "DATA", tmp_path)
    shown = list(readme.gpu())
    assert shown[0].startswith("**Measured on a GPU**, NVIDIA H100 80GB HBM3")
    assert "| 16384 x 4096, bfloat16, tanh, no bias | 0.50 |  |  |  | 0.50 |  |" in shown
    assert not [line for line in shown if line.startswith("| ,")]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_held_against_float64(name: str) -> None:
    layout, *_ = correct.layouts(OPERATORS[name])
    for dtype, formula in ((steps.BF16, "tanh"), ("float32", "none")):
        (row,) = correct.rows(name, [layout], dtype, formula, HERE)
        assert (row.status, row.kind) == ("ok", "checked"), row.note


def test_a_planted_error_of_an_operator_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*tensors: torch.Tensor, **options: object) -> torch.Tensor:
        y: torch.Tensor = OPERATORS["gelu"].call(*tensors, **options)
        return y if y.dtype == torch.float64 else torch.cat([y.flatten()[1:], y.flatten()[:1]]).view(y.shape)

    monkeypatch.setattr(correct, "OPERATORS", {"wrong": Operator(wrong)})
    (row,) = correct.rows("wrong", ["a permuted tensor"], "bfloat16", "tanh", HERE)
    assert row.status == "failed"
    assert "times what is allowed" in row.note


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backward_pass_is_measured_alone_and_its_gradients_are_checked(dtype: str, tmp_path: Path) -> None:
    case = measure.Case("small", (6, 32), dtype=dtype, direction="backward")
    rows = measure.measured(case, {"eager": measure.providers.eager, "triton_gelu": measure.providers.fused}, HERE)
    assert {(row.provider, row.status) for row in rows} == {("eager", "ok"), ("triton_gelu", "ok"), ("copy", "ok")}
    spoilt = {"wrong": lambda case: lambda x, bias: 2 * measure.providers.eager(case)(x, bias)}
    (row,) = measure.measured(case, spoilt, HERE)
    assert row.note.startswith("dx is wrong")


def test_a_process_survives_what_raises_and_is_replaced_where_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole command, in real processes, as on a GPU; but it is a CPU, with steps that break."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, sys.path)]))
    monkeypatch.setattr(gpu, "gpu_here", lambda: HERE.device)
    monkeypatch.setattr(gpu, "STEPS", "steps_that_break:all_steps")
    monkeypatch.setattr(gpu, "all_steps", lambda sanitize: steps_that_break())
    monkeypatch.setattr(gpu.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(report, "cannot_draw", lambda: "nothing to draw with")
    assert command_line.main(["gpu", "--output", f"{tmp_path}/made", "--minutes", "20"]) == 1
    (output,) = (tmp_path / "made").glob("gpu-*.jsonl")
    assert {path.name for path in (tmp_path / "made").iterdir()} == {output.name, output.with_suffix(".md").name}
    rows = {row.provider: row for row in read_rows(output)}
    assert [rows[name].status for name in ("first", "raises", "dies", "last", "elsewhere")] == [
        "ok", "failed", "failed", "ok", "ok",
    ]  # fmt: skip
    assert rows["raises"].note == "RuntimeError: no such kernel"
    assert rows["dies"].note == "its process ended: exit code 3"
    assert rows["elsewhere"].note == "plan 2"
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == f"Send back {output}: CONTRIBUTING.md tells how."
    assert "failed:  small, float32, tanh, forward, raises: RuntimeError: no such kernel" in said.out
    assert "what a step prints is no answer" in said.err


def test_a_worker_that_hangs_is_ended() -> None:
    worker = Worker("steps_that_break:all_steps", "cpu", {**os.environ, "PYTHONPATH": str(TESTS)})
    with pytest.raises(Lost, match="it was not done after 0 s"):
        list(worker.ask(steps_that_break()[0], 0.0))
    assert worker.process.poll() is not None


def test_without_a_gpu_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["gpu", "--output", str(tmp_path)]
    assert command_line.main(words) == 2
    assert "sees no GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.library, "triton_drives", lambda device_type: False)
    assert command_line.main(words) == 2
    assert "does not drive this GPU" in capsys.readouterr().err
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert command_line.main([*words, "--sanitize"]) == 2
    assert "compute-sanitizer is not in the PATH" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["3", "21", "soon", "-5"])
def test_minutes_are_from_four_to_twenty(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["gpu", "--output", "x", "--minutes", text])
    assert f"expected 4 to 20 minutes, got '{text}'" in capsys.readouterr().err


def test_everything_it_writes_lies_where_it_was_told(tmp_path: Path) -> None:
    assert gpu.file_in(tmp_path, "NVIDIA H100 80GB HBM3") == tmp_path / "gpu-nvidia-h100-80gb-hbm3.jsonl"
    assert gpu.file_in(tmp_path / "mine.jsonl", "NVIDIA H100") == tmp_path / "mine.jsonl"
    environment = gpu.surroundings(tmp_path / "mine.kernels")
    told = [value for name, value in environment.items() if name.endswith(("_CACHE_DIR", "_CACHE_PATH", "TMPDIR"))]
    assert len(told) == 4
    assert all(Path(place).is_relative_to(tmp_path) and Path(place).is_dir() for place in told)
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert "TRITON_INTERPRET" not in environment


def test_a_sanitizer_that_objects_makes_rows_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = [step for step in all_steps(sanitize=True) if step.prefix][:1]
    monkeypatch.setattr(FakeWorker, "end", lambda self: "exit code 9")
    assert shift(tmp_path / "rows.jsonl", Device()).work(watched)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert {(row.status, row.note) for row in rows} == {("failed", "compute-sanitizer: exit code 9")}
    assert len(rows) == len(watched[0].answers)


def test_textbook_kernels_are_timed_where_they_are_counted() -> None:
    case = measure.Case("width 64", (5, 64), dtype=steps.BF16, approximate="sigmoid")
    inputs = case.inputs(HERE.device)
    calls = steps.comparisons.forward_calls(case)
    assert set(calls) == set(steps.comparisons.rivals(case))
    expected = measure.check.expected(case, inputs)
    for call in calls.values():
        assert measure.check.objection(case, call(inputs.x, inputs.bias), expected) == ""


def test_what_nobody_tells_of_a_clock_is_said() -> None:
    (row,) = steps.clock("at the beginning").rows(HERE)
    assert (row.status, row.note) == ("skipped", "nvidia-smi does not tell")


def test_plans_that_are_compared_can_be_asked_for() -> None:
    for plan in steps.PLANS:
        kind, _, _ = plan.partition(".")
        assert in_flight.parse(plan)[kind], plan
