"""A process that does steps on a device, asked for one after another: what breaks or hangs in it ends it alone.

A kernel that reads where it must not leaves a process that can't use the GPU any more; so the steps run in processes of
their own, and the one that asks goes on with a new one. Asked by a line with the name of a step, a worker answers with
lines of JSON: a row each, then the end of the step. What else is printed goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from perf.rows import ROOT, Row
from perf.time import provenance
from perf.time.measure import Machine
from perf.time.steps import Step

ENDS_S = 10.0


class Lost(Exception):
    """A worker that gave no answer; the message says why."""


class Worker:
    """The asking side of a process."""

    def __init__(self, steps: str, device: str, environment: Mapping[str, str], prefix: Sequence[str] = ()) -> None:
        command = [*prefix, sys.executable, "-m", "perf.time.worker", "--steps", steps, "--device", device]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C is the asking side's, and that what it starts ends with it
        )  # fmt: skip
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def ask(self, step: Step, limit_s: float) -> Iterator[Row]:
        """The rows of a step, as they come. Raises `Lost` where the process dies or takes longer than the limit."""
        until = time.monotonic() + limit_s
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(step.name + "\n")
            self.process.stdin.flush()
        except OSError:
            raise Lost(f"its process ended: {self.end()}") from None
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self.kill()
                raise Lost(f"it was not done after {limit_s:.0f} s") from None
            if not line:
                raise Lost(f"its process ended: {self.end()}")
            reply = json.loads(line)
            if "row" in reply:
                yield Row(**reply["row"])
            elif reply["problem"]:
                raise Lost(reply["problem"])
            else:
                return

    def dismiss(self) -> None:
        """Ask for nothing more."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def end(self) -> str:
        """Let it end by itself; how it ended, empty if well."""
        self.dismiss()
        try:
            code = self.process.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "it did not end"
        return f"exit code {code}" if code else ""

    def kill(self) -> None:
        """End it now, and what it has started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def main() -> int:
    """Do steps until nobody asks any more; 1 where the device can't be used after one."""
    parser = argparse.ArgumentParser(prog="python -m perf.time.worker", description=__doc__)
    parser.add_argument("--steps", required=True, help="module:function that lists them")
    parser.add_argument("--device", required=True)
    args = parser.parse_args()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    module, _, function = args.steps.partition(":")
    known: dict[str, Step] = {step.name: step for step in getattr(importlib.import_module(module), function)()}
    machine = Machine(torch.device(args.device), threads=1, seconds=0.0)

    def reply(**content: Any) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    for line in sys.stdin:
        problem = done(known[line.rstrip("\n")], machine, lambda row: reply(row=asdict(row)))
        is_usable = usable(machine.device)
        reply(problem=problem)
        if not is_usable:
            return 1
    return 0


def done(step: Step, machine: Machine, tell: Callable[[Row], object]) -> str:
    """Do a step, and tell its rows, each with what is known of the driver; what went wrong, empty if nothing did."""
    driver = provenance.driver() if machine.device.type == "cuda" else {}
    try:
        for row in step.rows(machine):
            tell(replace(row, versions={**row.versions, **driver}))
    except Exception as problem:  # a kernel that fails to compile, a provider that is anyone's code: the others go on
        first_line, *_ = [*str(problem).strip().splitlines(), ""]
        return f"{type(problem).__name__}: {first_line}"
    return ""


def usable(device: torch.device) -> bool:
    """Whether the device still answers; what is kept of its memory is given back."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
