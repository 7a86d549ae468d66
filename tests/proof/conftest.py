"""What every test of the proof has: the time that a run of it may take on a busy machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.proof.prove_run import TEST_SECONDS_MAX


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Pytest gives all items of the session to each conftest, not only those of its folder.
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS_MAX))
