"""Results: rows of JSONL files that are only appended to; each row can be read alone.

A row can be read alone: it carries what was asked (case, provider), what came out (metric, value, spread) and
where it comes from (device, backend, versions, commit, time). Measuring, analysing and drawing meet only here.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import platform
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

KINDS = ("measured", "static", "accuracy", "checked")  # the last: right or wrong, on a device
DIRECTIONS = ("forward", "backward", "forward_backward", "double_backward")
STATUSES = ("ok", "skipped", "failed")
CPU_BACKEND = "CPU"
KERNEL_BACKEND = "Triton kernel"
OFFLINE = "compiled offline"
BACKENDS = (CPU_BACKEND, KERNEL_BACKEND, OFFLINE, "launch left out", "interpreter")
OLD_BACKENDS = {"CPU path": CPU_BACKEND}  # what rows said whose field was named `path`

# The metrics of measured rows.
TIME = "time"
GRAPH_TIME = "time in a graph"
HOST_TIME = "time of the host"
CLOCK = "clock"  # of a GPU's processors
THROUGHPUT = "throughput"
COPY_SHARE = "share of copy bandwidth"
PEAK_MEMORY = "peak memory"
COMPILED, COMPILED_LIBRARY = "torch.compile", "triton_gelu compiled"  # providers: PyTorch alone, and with us
COPY = "copy"  # the provider of the bandwidth that the others are held against
RATIO = "ratio to {}"  # of times, to another provider's

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "perf" / "results"  # of this machine's own rows
DATA = ROOT / "perf" / "data"  # of those that are committed
SOURCES = ("triton_gelu", "perf")
QUESTION = (
    "kind", "case", "shape", "dim", "dtype", "approximate", "direction", "provider", "metric", "device", "backend",
)  # fmt: skip
VERSIONED = ("torch", "triton", "triton_gelu")


class UserError(Exception):
    """A mistake in what was asked for. Its message says what to do; the command line prints it without a trace."""


@dataclass(frozen=True)
class Row:
    """One number and everything needed to read it alone.

    `dim` is the dimension the bias runs along (None: no bias). `low` and `high` are the 20 % and 80 % quantiles,
    or None where nothing was repeated. `backend` is what `triton_gelu` computes with on that device. A row whose status
    is not "ok" has `value` None and says why in `note`.
    """

    kind: str
    case: str
    shape: tuple[int, ...]
    dim: int | None
    dtype: str
    approximate: str
    direction: str
    provider: str
    metric: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    status: str = "ok"
    note: str = ""
    device: str = ""
    backend: str = CPU_BACKEND
    time: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    run: str = ""

    def __post_init__(self) -> None:
        self._check_types()
        for name, allowed in (
            ("kind", KINDS),
            ("direction", DIRECTIONS),
            ("status", STATUSES),
            ("backend", BACKENDS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if (self.value is None) == (self.status == "ok"):
            raise ValueError(f"a row has a value exactly when its status is 'ok'; got {self.status!r}, {self.value}")
        object.__setattr__(self, "shape", tuple(self.shape))

    def _check_types(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type == "str" and not isinstance(value, str):
                raise ValueError(f"{each.name}: expected text, got {value!r}")
            if each.type == "float | None" and not (value is None or _is_number(value)):
                raise ValueError(f"{each.name}: expected a finite number or null, got {value!r}")
        if not isinstance(self.shape, Sequence) or not all(type(size) is int for size in self.shape):
            raise ValueError(f"shape: expected a list of integers, got {self.shape!r}")
        if self.dim is not None and type(self.dim) is not int:
            raise ValueError(f"dim: expected an integer or null, got {self.dim!r}")
        if not isinstance(self.versions, Mapping):
            raise ValueError(f"versions: expected versions by name, got {self.versions!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def make_writable(path: Path | str) -> None:
    """Create a file of rows, or find out that it can be added to: before hours of measuring, not after them."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as problem:
        raise UserError(f"{path} can't be written: {problem.strerror}; choose another --output") from problem


def append_row(path: Path | str, row: Row) -> None:
    """Add one row, creating file and folders on the way. A last line torn by a crash is dropped first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _end_last_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row), allow_nan=False) + "\n")


def _end_last_line(path: Path) -> None:
    """Drop a last line without its end, unless it is a whole row: then only the end is missing."""
    with path.open("ab+") as file:
        file.seek(0)
        whole, newline, last = file.read().rpartition(b"\n")
        if last and _is_row(last.decode("utf-8", errors="replace")):
            file.write(b"\n")
        elif last:
            file.truncate(len(whole) + len(newline))


def _is_row(line: str) -> bool:
    try:
        parse_row(line)
    except (TypeError, ValueError):
        return False
    return True


def read_rows(path: Path | str) -> list[Row]:
    """All rows of a file, oldest first. Raises `UserError` naming the line that is not a row.

    A last line without its end counts if it is a whole row; else it was torn while it was written.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as problem:
        raise UserError(
            f"{path}: {problem.strerror}. `python -m perf measure` and `analyse` write result files."
        ) from problem
    except UnicodeDecodeError as problem:
        raise UserError(
            f"{path} is not UTF-8 text: PowerShell's > writes UTF-16. Let --output write the file, or convert it."
        ) from problem
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n") and not _is_row(line):
            break
        try:
            rows.append(parse_row(line))
        except (TypeError, ValueError) as problem:
            raise UserError(
                f"{path}:{number}: not a result row ({problem}); remove the line, or take the file's own version"
            ) from problem
    return rows


def parse_row(line: str) -> Row:
    """The row of a line; one from before `backend` was the field's name is understood, too."""
    known = json.loads(line)
    if "path" in known:
        old = known.pop("path")
        known["backend"] = OLD_BACKENDS.get(old, old)
    return Row(**known)


def question(row: Row) -> tuple[Any, ...]:
    """What a row answers: everything but the answer and its provenance."""
    return tuple(getattr(row, name) for name in QUESTION)


def latest_rows(rows: Iterable[Row]) -> list[Row]:
    """The newest answer to each question, in the order the questions were first asked."""
    return list({question(row): row for row in rows}.values())


def context() -> dict[str, Any]:
    """`time`, `versions`, `commit` and `run` of a row made now: `Row(..., **context())`."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": commit(),
        "run": _run(),
    }


@functools.cache
def versions() -> Mapping[str, str]:
    """Versions that decide what a number means; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str:
    """Short commit of this checkout; where the sources differ from it, `+` and a digest of the sources."""
    head = _git("rev-parse", "--short=12", "HEAD") or "unversioned"
    changed = head == "unversioned" or _git("status", "--porcelain", "--", *SOURCES)
    return f"{head}+{_digest_of_sources()}" if changed else head


@functools.cache
def _run() -> str:
    return uuid.uuid4().hex[:8]


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for folder in SOURCES:
        for source in sorted((ROOT / folder).glob("**/*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:8]
