"""What is timed here is PyTorch, and Triton's interpreter is refused by what times."""

import pytest


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # only PyTorch is timed in this process
