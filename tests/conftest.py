"""What all tests share. Set before torch and matplotlib are imported: one thread a process, no window."""
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository's root."
    return Path(__file__).resolve().parents[1]
