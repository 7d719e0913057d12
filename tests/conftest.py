"""What every test gets: the shared folder where there is one, fixed seeds, and one thread per worker."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# A slow machine is not a failed law, and a law that fails must fail again in the next run.
settings.register_profile("ironbound", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("ironbound")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a pytest-xdist worker: the cores are shared between the workers
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with released weights, data sets and the peers' numbers; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("IRONBOUND_SHARED") or beside)
    if not folder.is_dir():
        pytest.skip("no shared folder: set IRONBOUND_SHARED, or put it beside the repository")
    return folder
