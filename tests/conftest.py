"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def find_shared_data() -> Path | None:
    """The folder that holds `cifar100.zip`, where there is one."""
    given = os.environ.get("CLFRAME_TEST_DATA")
    candidates = [Path(given)] if given else []
    candidates.append(Path(__file__).resolve().parents[2] / "shared" / "data")
    return next((c for c in candidates if (c / "cifar100.zip").is_file()), None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    found = find_shared_data()
    if found is None:
        pytest.skip("needs cifar100.zip and tinyimagenet100.zip: set CLFRAME_TEST_DATA to the folder that holds them")
    return found


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests decode into a cache of their own and leave the user's alone."""
    folder = (
        Path(os.environ["CLFRAME_TEST_CACHE"])
        if "CLFRAME_TEST_CACHE" in os.environ
        else tmp_path_factory.mktemp("cache")
    )
    os.environ["CLFRAME_CACHE"] = str(folder)
    return folder
