"""Every test of this folder is a drill: `make drills` runs it, `make test` does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.trainings import CALM, finish, prepare, start, started


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("drill")


@pytest.fixture(autouse=True)
def _no_training_is_left() -> Iterator[None]:
    """A drill that fails leaves none running beside the next one."""
    yield
    for training in started:
        if training.poll() is None:
            training.terminate()
            training.wait(60)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the drills' data and a training that nothing disturbed; further trainings go there too."""
    folder = tmp_path_factory.mktemp("drill")
    prepare(folder)
    finish(start(CALM, folder), folder, CALM)
    return folder
