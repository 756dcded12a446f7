"""The examples run, small and on a CPU, and learn; where it takes no longer, by interpreted kernels."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
LINES = 80
COMMANDS = re.findall(r"^(?:python|torchrun) .*$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
WITH_KERNELS = {"lora.py", "mlp_sharded.py", "geglu_block.py"}


def run(command: str) -> str:
    """What an example prints."""
    words = shlex.split(command)
    interpreted = bool(WITH_KERNELS & {Path(word).name for word in words})
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    environment |= {"TRITON_INTERPRET": "1", "TRITON_GELU_BACKEND": "kernels"} if interpreted else {}
    module = ["torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    start = ["-m", *module] if words[0] == "torchrun" else []
    command_line = [sys.executable, "-W", "ignore", *start, *words[1:]]
    done = subprocess.run(command_line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(command: str) -> str:
    return next(Path(word).name for word in shlex.split(command) if word.endswith(".py"))


def test_each_example_is_short_and_stands_in_the_readme_with_a_command_that_is_tested() -> None:
    scripts = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert {name: text.count("\n") for name, text in scripts.items() if text.count("\n") >= LINES} == {}
    assert {script(command) for command in COMMANDS} == set(scripts)
    assert all(f"[{name}]({name})" in (EXAMPLES / "README.md").read_text() for name in scripts)


@pytest.mark.slow
@pytest.mark.parametrize("command", [each for each in COMMANDS if script(each) != "accuracy.py"], ids=script)
def test_an_example_runs_and_what_it_trains_learns(command: str) -> None:
    ((first, last),) = re.findall(r"^loss (\S+) -> (\S+) in \d+ steps", run(command), re.MULTILINE)
    assert float(last) < float(first)


@pytest.mark.slow
def test_the_example_of_fsdp_alone_learns_too() -> None:
    command = "torchrun --nproc-per-node 2 examples/mlp_sharded.py --tensor-parallel 1"
    ((first, last),) = re.findall(r"^loss (\S+) -> (\S+) in \d+ steps", run(command), re.MULTILINE)
    assert float(last) < float(first)


def test_the_example_of_accuracy_shows_digits_where_pytorch_has_none() -> None:
    rows = re.findall(
        r"^\w+, .*?(x < -5|-5 <= x < 0)\s+(\S+)\s+(\S+)$", run("python examples/accuracy.py"), re.MULTILINE
    )
    half = len(rows) // 2
    assert half == 4
    assert all(float(theirs) > 30 and float(ours) < 0.53 for _, theirs, ours in rows[:half])  # bfloat16
    assert all(float(theirs) > 1e6 and float(ours) < 250 for _, theirs, ours in rows[half:])  # float32


def rented(tmp_path: Path, python: str | Path) -> subprocess.CompletedProcess[str]:
    """What the script for a rented GPU does with this Python."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHON": str(python), "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", "examples/gpu/run.sh", "4", str(tmp_path / "rows")]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_script_for_a_rented_gpu_says_what_is_missing(tmp_path: Path) -> None:
    done = rented(tmp_path, sys.executable)
    assert done.returncode == 2
    assert "sees no GPU" in done.stderr
    assert done.stderr.splitlines()[-1] == "nothing was measured"
    done = rented(tmp_path, "false")
    assert done.returncode == 2
    assert done.stderr == "false has no PyTorch with Triton: choose an image that has, or set PYTHON\n"
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("code", [0, 1, 130])
def test_the_script_for_a_rented_gpu_ends_with_the_file_to_send_back(tmp_path: Path, code: int) -> None:
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
[ "$1" = -c ] && exit 0
[ "$*" = "-B -m perf gpu --output {tmp_path}/rows/ --minutes 4" ] || exit 9
mkdir -p {tmp_path}/rows
echo row > {tmp_path}/rows/gpu-h200.jsonl
exit {code}
"""
    )
    python.chmod(0o755)
    done = rented(tmp_path, python)
    assert (done.returncode, done.stdout) == (code, f"1 rows to send back: {tmp_path}/rows/gpu-h200.jsonl\n")
