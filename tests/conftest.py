"""Shared by all tests: one thread a process, no network, and the folder of real slides where there is one."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: tests run one process a core, and two that fight for cores are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Let a failing check of the contract show its values."""
    pytest.register_assert_rewrite("contract")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real slides, patches and tables; ABBE_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("ABBE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "slides").is_dir():
        if "ABBE_DATA" in os.environ:
            pytest.fail(f"ABBE_DATA is {folder}, which has no folder `slides`")
        pytest.skip(f"real slides and tables, in {folder}, are absent; CONTRIBUTING.md says where each file is from")
    return folder
