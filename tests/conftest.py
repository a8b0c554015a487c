"""Fixtures that more than one test module uses."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The third-party development data beside a developer's checkout; tests that need it skip without it."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("third-party development data (../shared/data) is not at hand")
    return path
