"""`python -m perf COMMAND`: measure and analyse triton_gelu, draw and compare what came out.

`python -m perf COMMAND --help` tells what a command does, with examples.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from perf.rows import UserError

MODULES = {  # each has add_arguments(parser) and run(args) -> exit code
    "measure": "perf.time.measure",
    "analyse": "perf.static.analyse",
    "saved": "perf.static.saved",
    "compiled": "perf.static.compiled",
    "calls": "perf.time.calls",
    "accuracy": "perf.accuracy.ulp_errors",
    "plot": "perf.show.plot",
    "compare": "perf.show.compare",
    "report": "perf.show.report",
    "gpu": "perf.time.gpu",
    "notebooks": "perf.show.notebooks",
    "suite": "perf.suite",
    "readme": "perf.show.readme",
    "fit": "perf.accuracy.fit",
}
COMMANDS = {
    "measure": "time the cases on this machine",
    "analyse": "compile the kernels for GPUs that are not here, and count",
    "saved": "bytes and launches that fusing saves whole models on GPUs that are not here",
    "compiled": "what torch.compile makes of GELUs in their surroundings on GPUs that are not here",
    "calls": "what a call costs before its kernel runs, and a cold start",
    "accuracy": "errors against the truth, over every input where that is possible",
    "plot": "draw pictures of rows",
    "compare": "what changed between two result files",
    "report": "the same in Markdown, with pictures, for a pull request",
    "gpu": "on a GPU that you lend for ten minutes: is it right, how fast, one file to send back",
    "notebooks": "execute the notebooks and keep their outputs",
    "suite": "record how many tests passed, and on which versions",
    "readme": "rewrite the documents' figures from the committed rows",
    "fit": "fit the polynomials of the formulas and print their errors",
}
MISUSED = 2
CLOSED_PIPE = 141  # what a shell reports of a program that a closed pipe ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = chosen(arguments[:1])
    try:
        command = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as missing:
        return complain(name, f"{missing}. The development set-up has it: pip install -e '.[dev]'")
    parser = argparse.ArgumentParser(
        prog=f"python -m perf {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    try:
        code = int(command.run(parser.parse_args(arguments[1:])))
        sys.stdout.flush()
    except UserError as mistake:
        return complain(name, str(mistake))
    except BrokenPipeError:  # whoever reads has read enough
        discard_output()
        return CLOSED_PIPE
    except OSError as problem:
        discard_output()
        return complain(name, f"{problem.filename or 'the output'} can't be read or written: {problem.strerror}")
    return code


def discard_output() -> None:
    """Send what is still to be written nowhere, so that the interpreter doesn't fail at it once more as it ends."""
    with contextlib.suppress(OSError, ValueError):  # tests replace it by something that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def chosen(first: Sequence[str]) -> str:
    """The command's name; ends the program with the list of commands where there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m perf",
        description=__doc__,
        epilog="\n".join(["commands:", *(f"  {name:10} {task}" for name, task in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    name = parser.parse_args(first).command
    assert isinstance(name, str)
    return name


def complain(name: str, message: str) -> int:
    """Say what is wrong and what to do; the exit code."""
    print(f"python -m perf {name}: {message}", file=sys.stderr)
    return MISUSED


if __name__ == "__main__":
    sys.exit(main())
