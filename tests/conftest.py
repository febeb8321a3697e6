"""Fixtures for all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """What jobs keep for later ones (stream.cache) is not left in the user's own cache."""
    os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parents[1] / "build" / "cache")


@pytest.fixture(autouse=True, scope="module")
def _no_tracking_address() -> None:
    """No file of tests leaves the address of its tracking store to the next: mlflow.set_tracking_uri exports it."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A small Ray cluster of this process's own; never one that happens to run on the machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=150 * 1024 * 1024,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """``shared_data("easy-vqa")``: the folder of a real data set beside the repository; skips where it is not."""

    def find(name: str) -> Path:
        folder = Path(__file__).resolve().parents[2] / "shared" / "data" / name
        if not folder.is_dir():
            pytest.skip(f"real data {name!r} is not at ../shared/data, beside the repository")
        return folder

    return find
