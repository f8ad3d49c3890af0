"""Tests of the bridge to Avalanche run where avalanche-lib 0.6.0 is installed, and are skipped elsewhere."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        found = importlib.metadata.version("avalanche-lib")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != "0.6.0":
        mark = pytest.mark.skip(reason=f"needs avalanche-lib 0.6.0, found {found}")
        for item in items:
            if item.path.parent.name == "interop" and "without_avalanche" not in item.name:
                item.add_marker(mark)


@pytest.fixture
def avalanche_warns() -> Iterator[None]:
    """For tests that run Avalanche's own loop: its deprecation warnings are its own, and reset the filters to show them."""
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")
        yield
