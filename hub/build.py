"""Lays the package out as Hugging Face's `kernels` loads it from its hub: `make hub`.

    python hub/build.py --output dist/hub

Each variant, `build/torch-<backend>/`, is the package with its layers, and metadata whose `id` becomes the name by
which Python imports it. The operators' namespace is that name, so that a copy from the hub and one that pip installed,
or two versions from the hub, keep their operators apart in one process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "triton_gelu"
CARD = ROOT / "hub" / "README.md"
BACKENDS = ("cpu", "cuda", "rocm")
LAYERS = "\nfrom . import hub_layers as layers  # noqa: E402, F401\n"
FLATTENED = '''"""The package is one folder up: older versions of `kernels` look for it in a folder of its own name."""

import importlib.util
import json
import sys
from pathlib import Path

_variant = Path(__file__).resolve().parents[1]
_name = json.loads((_variant / "metadata.json").read_text())["id"]
if _name not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_name, _variant / "__init__.py")
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])
globals().update({name: value for name, value in vars(sys.modules[_name]).items() if not name.startswith("__")})
'''


def main(argv: Sequence[str] | None = None) -> int:
    """Build every variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "hub", help="default: %(default)s")
    output: Path = parser.parse_args(argv).output
    if (output / "build").exists():
        shutil.rmtree(output / "build")
    for backend in BACKENDS:
        build(output / "build" / f"torch-{backend}", backend)
    shutil.copy(CARD, output / "README.md")
    shutil.copy(ROOT / "LICENSE", output / "LICENSE")
    print(f"{output}: {', '.join(f'torch-{backend}' for backend in BACKENDS)}")
    return 0


def build(folder: Path, backend: str) -> None:
    """One variant: the package, what describes it, and a folder for old versions of `kernels`."""
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "__main__.py"))
    with (folder / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(LAYERS)
    (folder / "metadata.json").write_text(json.dumps(metadata(backend), indent=2) + "\n", encoding="utf-8")
    (folder / PACKAGE.name).mkdir()
    (folder / PACKAGE.name / "__init__.py").write_text(FLATTENED, encoding="utf-8")


def metadata(backend: str) -> dict[str, object]:
    """What `kernels` wants to know of a variant. The version is the API's: 0 until it is stable."""
    sources = sorted(PACKAGE.rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:10]
    (version,) = re.findall(r'^__version__ = "(\d+)\.', (PACKAGE / "__init__.py").read_text(), re.MULTILINE)
    return {
        "id": f"_{PACKAGE.name}_{backend}_{digest}",
        "name": PACKAGE.name.replace("_", "-"),
        "version": int(version),
        "license": "Apache-2.0",
        "kernels-minver": "0.17.0",
        "python-depends": [],
        "backend": {"type": backend},
    }


if __name__ == "__main__":
    raise SystemExit(main())
