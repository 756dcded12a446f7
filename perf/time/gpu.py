"""The command `gpu`: is it right, and how fast, on a GPU that you lend for some minutes? One file to send back.

It needs Python, PyTorch and Triton, nothing else: no network, no git, no other package. It installs nothing and writes
only where --output says: a file of rows, a report and its pictures, and a folder of compiled kernels that is removed at
the end. What is worth most is done first, so that less time gives fewer rows, not worse ones. Interrupted, it leaves a
file that is whole; started again with the same output, it goes on.

examples:
  python -m perf gpu --output results/                      ten minutes; the file is named for the GPU
  python -m perf gpu --output mine.jsonl --minutes 4
  python -m perf gpu --output mine.jsonl --minutes 20 --sanitize
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import torch

from perf import library
from perf.rows import ROOT, Row, UserError, append_row, commit, make_writable, read_rows, versions
from perf.show import report
from perf.time import measure
from perf.time.measure import INTERRUPTED, Machine
from perf.time.steps import SANITIZER, Answer, Step, all_steps, answer, unanswered
from perf.time.worker import Lost, Worker

MINUTE, REPORT_S = 60.0, 20.0
FEWEST, DEFAULT, MOST = 4, 10, 20  # minutes
SLOWEST, PATIENCE_S = 5.0, 120.0  # a step may take so many times what it was thought to, and so long to start
MOST_LANES = 8  # of steps that run at the same time
STEPS = "perf.time.steps:all_steps"


def minutes(text: str) -> int:
    """The minutes from the command line."""
    if not text.isdecimal() or not FEWEST <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"expected {FEWEST} to {MOST} minutes, got {text!r}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf gpu`."""
    parser.add_argument("--output", type=Path, required=True, help="rows are added to this file, or to one in a folder")
    parser.add_argument(
        "--minutes", type=minutes, default=DEFAULT, help=f"{FEWEST} to {MOST}, all of it (default: %(default)s)"
    )
    parser.add_argument("--sanitize", action="store_true", help="check memory accesses with compute-sanitizer, too")


def run(args: argparse.Namespace) -> int:
    """Check, measure, report; 1 if something was wrong."""
    until = time.monotonic() + args.minutes * MINUTE - REPORT_S
    measure.refuse_interpreter()
    if args.sanitize and not shutil.which(SANITIZER[0]):
        raise UserError(f"--sanitize: {SANITIZER[0]} is not in the PATH; it comes with the CUDA toolkit")
    machine = Machine(gpu_here(), threads=1, seconds=0.0)
    output = file_in(args.output, machine.name)
    make_writable(output)
    kernels = output.with_suffix(".kernels")
    environment = surroundings(kernels)

    def start(step: Step) -> Worker:
        return Worker(STEPS, str(machine.device), {**environment, **dict(step.environment)}, step.prefix)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lanes = min(MOST_LANES, (os.cpu_count() or 1) // 2 or 1)
    shift = Shift(machine, output, until, start, lanes)
    whole = shift.work(all_steps(sanitize=args.sanitize))
    shutil.rmtree(kernels, ignore_errors=True)
    return told(output, machine, shift, whole=whole)


def told(output: Path, machine: Machine, shift: Shift, *, whole: bool) -> int:
    """Write the report and say where things are; the exit code."""
    rows = read_rows(output)
    failed = [row for row in rows if row.status == "failed" and row.device == machine.name and row.commit == commit()]
    counts = Counter(row.kind for row in rows if row.status == "ok")
    said = [f"{len(shift.late)} steps were left out for lack of time"] if shift.late else []
    report.write(rows, output.with_suffix(".md"), [f"Rows of {machine.name}: {dict(counts)}.", *said])
    print(f"rows:    {output}\nreport:  {output.with_suffix('.md')}", *said, sep="\n")
    if unable := report.cannot_draw():
        print(f"pictures: left out, {unable}")
    for row in failed:
        print(f"failed:  {row.case}, {row.dtype}, {row.approximate}, {row.direction}, {row.provider}: {row.note}")
    if not whole:
        print("Interrupted: the same command goes on from there.")
        return INTERRUPTED
    print(f"Send back {output}: CONTRIBUTING.md tells how.")
    return int(bool(failed))


def file_in(output: Path, name: str) -> Path:
    """The file of rows: the output, or in it, where that is a folder, one named for the GPU."""
    if output.suffix != ".jsonl" and (output.is_dir() or not output.suffix):
        return output / f"gpu-{measure.slug(name)}.jsonl"
    return output


def surroundings(kernels: Path) -> dict[str, str]:
    """The environment of workers: what they compile is kept in one folder, and the library decides as it does."""
    decided = ("TRITON_INTERPRET", "PYTHONPATH", library.PLAN_VARIABLE, library.BACKEND_VARIABLE)
    inherited = {name: value for name, value in os.environ.items() if name not in decided}
    folder = kernels.resolve()
    places = {
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "CUDA_CACHE_PATH": "cuda",
        "TMPDIR": "",
    }
    for place in places.values():
        (folder / place).mkdir(parents=True, exist_ok=True)
    return {
        **inherited, **{name: str(folder / place) for name, place in places.items()},
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


def gpu_here() -> torch.device:
    """The GPU. Raises `UserError`, saying what is missing, where kernels can't run on one."""
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        advice = "is its driver installed?" if built else "this build is for CPUs only, install one for your GPU"
        raise UserError(f"PyTorch {torch.__version__} sees no GPU; {advice} (make gpu TORCH=...)")
    if not library.triton_drives("cuda"):
        raise UserError("Triton is not installed, or does not drive this GPU: pip install triton")
    device = torch.device("cuda", torch.cuda.current_device())
    if not library.launches_kernels(device):
        raise UserError(f"calls launch no kernels here, python -m triton_gelu tells why; {library.BACKEND_VARIABLE}?")
    return device


@dataclass
class Shift:
    """The work of some minutes: which steps are still to be done, in which process each is, and what came out.

    `start` makes a process for a step; `clock` tells the time that `until` is a point of. `late` are the steps that no
    time was left for.
    """

    machine: Machine
    output: Path
    until: float
    start: Callable[[Step], Worker]
    lanes: int = 1
    clock: Callable[[], float] = time.monotonic
    late: list[Step] = field(default_factory=list)
    idle: list[tuple[tuple[object, ...], Worker]] = field(default_factory=list)
    busy: list[Worker] = field(default_factory=list)
    is_over: bool = False
    turn: threading.Lock = field(default_factory=threading.Lock)

    def work(self, steps: Sequence[Step]) -> bool:
        """Do what the output has no answers of, as far as time goes; False where Ctrl-C cut it short."""
        missing = self.missing(steps)
        print(f"{len(steps) - len(missing)} of {len(steps)} steps are done already", file=sys.stderr)
        try:
            for alone, some in groupby(missing, key=lambda step: step.alone):
                lanes = 1 if alone else self.lanes
                self.dismiss(keep=lanes)
                with ThreadPoolExecutor(lanes) as pool:
                    try:
                        for future in [pool.submit(self.do, step) for step in some]:
                            future.result()
                    except BaseException:
                        self.stop()
                        pool.shutdown(cancel_futures=True)
                        raise
        except KeyboardInterrupt:
            return False
        finally:
            self.stop()
        return True

    def missing(self, steps: Iterable[Step]) -> list[Step]:
        """The steps with a question that the output has no answer to, from these sources on this machine."""
        known = self.answered()
        return [step for step in steps if not step.answers <= known]

    def answered(self) -> set[Answer]:
        """The questions that the output has answers to."""
        rows = read_rows(self.output) if self.output.exists() else []
        return {answer(row) for row in rows if self.is_ours(row) and row.status != "failed"}

    def is_ours(self, row: Row) -> bool:
        """Whether a row is from these sources on this machine."""
        here = (self.machine.name, self.machine.backend, commit())
        return (row.device, row.backend, row.commit) == here and row.versions.items() >= versions().items()

    def do(self, step: Step) -> None:
        """Do a step if there is time for it, and append its rows; a question without an answer gets a failed one."""
        now = self.clock()
        if self.is_over or now + step.seconds > self.until:
            self.late.append(step)
            return
        left = int(self.until - now)
        print(f"{left // 60}:{left % 60:02} left  {step.name}", file=sys.stderr, flush=True)
        worker = self.take(step)
        answered: set[Answer] = set()
        try:
            for row in self.asked(worker, step, min(SLOWEST * step.seconds + PATIENCE_S, self.until - now)):
                self.append(row)
                answered.add(answer(row))
        except Lost as lost:
            if self.is_over or self.clock() >= self.until:
                self.late.append(step)
            else:
                for wanted in sorted(step.answers - answered, key=str):
                    self.append(unanswered(wanted, self.machine, "failed", str(lost)))
        except BaseException:
            self.is_over = True  # before the next step is begun
            raise
        self.give(step, worker)

    def asked(self, worker: Worker, step: Step, limit_s: float) -> Iterable[Row]:
        """The rows of a step. What watches the process of a step says at the end of it whether they are right."""
        if not step.prefix:
            return worker.ask(step, limit_s)
        rows = list(worker.ask(step, limit_s))
        if objection := worker.end():
            rows = [replace(row, status="failed", value=None, note=f"{step.prefix[0]}: {objection}") for row in rows]
        return rows

    def append(self, row: Row) -> None:
        """Add a row to the output, one at a time."""
        with self.turn:
            append_row(self.output, row)

    def take(self, step: Step) -> Worker:
        """A process for a step: one that has nothing to do, else a new one."""
        wanted = (step.environment, step.prefix)
        with self.turn:
            place = next((place for place, (kind, _) in enumerate(self.idle) if kind == wanted), None)
            worker = self.start(step) if place is None else self.idle.pop(place)[1]
            self.busy.append(worker)
        return worker

    def give(self, step: Step, worker: Worker) -> None:
        """Take back a process, if it is still there."""
        with self.turn:
            self.busy.remove(worker)
            if worker.process.poll() is None:
                self.idle.append(((step.environment, step.prefix), worker))

    def dismiss(self, keep: int) -> None:
        """End the processes that have nothing to do, but for some: they hold memory of the GPU."""
        for _, worker in self.idle[keep:]:
            worker.dismiss()
        for _, worker in self.idle[keep:]:
            worker.end()
        del self.idle[keep:]

    def stop(self) -> None:
        """End all processes now."""
        self.is_over = True
        for worker in [*self.busy, *(worker for _, worker in self.idle)]:
            worker.kill()
        self.idle.clear()
