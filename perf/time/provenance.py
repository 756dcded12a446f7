"""What decides a time on a GPU beyond its name and the versions of packages: its driver, clocks and power limit."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Mapping

import torch

FIELDS = {
    "driver": "driver_version",
    "clock": "clocks.max.sm",
    "memory clock": "clocks.max.mem",
    "power": "power.limit",
}
ASK_S = 10.0
LOAD_BYTES, LOADS = 2**29, 1000  # copies of half a second and more, while nvidia-smi is asked


@functools.cache
def driver() -> Mapping[str, str]:
    """The driver's version, and what the GPU may do at most, as nvidia-smi tells; what is not known is left out."""
    found = {"CUDA": torch.version.cuda or "", "HIP": torch.version.hip or ""}
    found.update(zip(FIELDS, asked(",".join(FIELDS.values())), strict=False))
    return {name: value for name, value in found.items() if value and "N/A" not in value}


def clock_under_load(device: torch.device) -> float | None:
    """The clock of the GPU's processors while it copies, in MHz; None if nobody tells."""
    if device.type != "cuda":
        return None
    source = torch.empty(LOAD_BYTES, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    for _ in range(LOADS):
        target.copy_(source)
    value, *_ = [*asked("clocks.current.sm"), ""]
    number = value.partition(" ")[0]
    return float(number) if number.isdecimal() else None


def asked(fields: str) -> list[str]:
    """What nvidia-smi says of the GPU in use; nothing where it isn't there."""
    if not shutil.which("nvidia-smi"):
        return []
    index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    chosen = str(getattr(torch.cuda.get_device_properties(index), "uuid", index)) if torch.cuda.is_available() else "0"
    name = chosen if chosen.isdecimal() else f"GPU-{chosen.removeprefix('GPU-')}"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [each.strip() for each in done.stdout.strip().split(",")]
