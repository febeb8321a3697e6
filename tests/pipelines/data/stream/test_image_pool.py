"""Images made by processes beside the consumer: who does the work, and what happens when one of them is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from pipelines.data.stream import decoding_processes
from pipelines.data.stream.dataset import Arrays
from pipelines.data.stream.decoding_processes import DecodingStoppedError
from pipelines.data.stream.image_pool import ImagePool
from pipelines.data.stream.loader import BatchLoader
from tests.jobs.conftest import ROOT


class Told(BatchLoader):
    """Instead of pixels, who makes them. A batch of source 1 cannot be made."""

    source: Any = SimpleNamespace(features=())

    def __len__(self) -> int:
        return 3

    def make_rows(self, number: int) -> Arrays:
        return {name: np.array([number]) for name in ("source_B", "epoch_B", "shard_B", "row_B")}

    def load_inputs_of_rows(self, rows: Arrays) -> Arrays:
        if rows["source_B"][0] == 1:
            raise FileNotFoundError("the tar is gone")
        return {"image.pixels_BHWC": np.array([os.getpid(), threading.get_native_id(), torch_threads(), len(rows)])}


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No processes of another test, and none for the next."""
    decoding_processes.decoding_processes.cache_clear()
    yield
    if decoding_processes.decoding_processes.cache_info().currsize:
        decoding_processes.decoding_processes(2)._executor.shutdown()
    decoding_processes.decoding_processes.cache_clear()


def until_ready() -> None:
    while not decoding_processes.decoding_processes(2).is_ready:
        time.sleep(0.05)


def test_threads_do_the_work_until_processes_are_up() -> None:
    with ImagePool(Told(), 2, in_processes=True) as pool:
        if not decoding_processes.decoding_processes(2).is_ready:
            assert pool.submit(Told().make_rows(0))()["image.pixels_BHWC"][0] == os.getpid()
        until_ready()
        pid, _, threads, names = pool.submit({**Told().make_rows(0), "more": np.zeros(9)})()[
            "image.pixels_BHWC"
        ].tolist()
    assert pid != os.getpid()
    assert threads == 1
    assert names == 4, "only what images are made from is sent"


def test_processes_stay_for_the_next_stream() -> None:
    seen = set()
    for _ in range(3):
        with ImagePool(Told(), 2, in_processes=True) as pool:
            until_ready()
            seen |= {int(pool.submit(Told().make_rows(0))()["image.pixels_BHWC"][0]) for _ in range(4)}
    assert len(seen) <= 2


def test_errors_reach_the_consumer_and_pixels_may_be_written_to() -> None:
    with ImagePool(Told(), 2, in_processes=True) as pool:
        until_ready()
        failing, fine = pool.submit(Told().make_rows(1)), pool.submit(Told().make_rows(2))
        with pytest.raises(FileNotFoundError, match="the tar is gone"):
            failing()
        assert fine()["image.pixels_BHWC"].flags.writeable


def test_a_killed_process_is_an_error_that_says_what_to_do_and_the_next_stream_works() -> None:
    with ImagePool(Told(), 2, in_processes=True) as pool:
        until_ready()
        killed = psutil.Process(int(pool.submit(Told().make_rows(0))()["image.pixels_BHWC"][0]))
        killed.kill()
        killed.wait()
        with pytest.raises(DecodingStoppedError, match=r"lower stream\.workers"):
            _until_it_fails(pool)
    with ImagePool(Told(), 2, in_processes=True) as pool:
        until_ready()
        assert pool.submit(Told().make_rows(0))()["image.pixels_BHWC"][0] != os.getpid()


def _until_it_fails(pool: ImagePool) -> None:
    """The executor needs a moment to notice."""
    for _ in range(100):
        pool.submit(Told().make_rows(0))()
        time.sleep(0.05)


PROGRAM = """
import time
from pipelines.data.stream.decoding_processes import decoding_processes
if __name__ == "__main__":
    processes = decoding_processes(2)
    print(*{future.result() for future in processes._first}, flush=True)
    time.sleep(600)
"""


def test_processes_end_with_a_parent_that_is_killed() -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    children = [psutil.Process(int(pid)) for pid in program.stdout.readline().split()]
    assert children
    program.kill()
    program.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
