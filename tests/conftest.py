"""What all tests share: the conformance vectors, and steady property tests."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples on every run and machine; speed is no property under test.
settings.register_profile("heatkv", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("heatkv")


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Folder of the numbers that the official implementations gave; it lies next to the repository."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "conformance"
    if not folder.is_dir():
        pytest.skip("no conformance vectors: ../shared/conformance is absent")
    return folder.resolve()


@pytest.fixture(scope="module")
def demo(bench: Any) -> Any:
    """The page of a module's ``bench``, built: its handlers take and return plain values."""
    from app.demo import _Demo

    made = _Demo(bench)
    made.build()
    return made


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell that starts the suite in the background has it ignore Ctrl-C, and the programs it starts inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
