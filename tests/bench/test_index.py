"""MB a second that the index job reads, against the bare sequential read of the same tars; and what more data costs.

Photograph-like JPEGs of 500 x 375 with five captions each, in 16 tars of BENCH_MB together (400 by default; MB are
10^6 bytes). "Cached" tars are in the page cache; before "cold" runs the system is asked to drop them, which it may not
do in every container. Rates are the median of three rounds in turn, and are those of a warm Ray cluster.

The memory of a build is what its processes hold for themselves, without the object store's shared pages, in the worst
of many moments: the driver, the largest worker, and all together, with Ray's own processes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import webdataset

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.tars.shards import ShardWriter
from tests.bench.conftest import Figure
from tests.bench.photographs import photograph
from vlmodel.media.base import Verify
from vlmodel.sample import SampleTexts

MEGABYTES, TARS, ROUNDS, WORKERS = int(os.environ.get("BENCH_MB", 400)), 16, 3, os.cpu_count() or 1
CAPTION = "a dog runs over the green grass beside the water"
READ = 1 << 20


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    pool = [photograph(rng) for _ in range(100)]
    a_tar = MEGABYTES * 10**6 // TARS // int(np.mean([len(jpeg) for jpeg in pool]))
    with ShardWriter(folder, "train", max_samples=a_tar) as writer:
        for number in range(a_tar * TARS):
            # Each image differs, so that nothing takes it for a copy: a JPEG ends at its end marker.
            jpeg = pool[number % len(pool)] + number.to_bytes(4, "little")
            writer.add(f"{number:07d}", {"image": (jpeg, "jpg")}, SampleTexts((CAPTION,) * 5, ()))
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in files(folder)) / 1e6


def drop(folder: Path) -> None:
    """Ask the system to forget what it holds of the tars."""
    for path in files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def build(folder: Path, verify: Verify) -> None:
    shutil.rmtree(folder / "_index", ignore_errors=True)
    index = build_index(str(folder), IndexConfig(verify=verify))
    assert index.quarantine().num_rows == 0
    assert sum(shard.size for shard in index.shards) == sum(path.stat().st_size for path in files(folder))


def read(folder: Path) -> None:
    """As fast as one reader can: the bytes of each tar in order, and nothing done with them."""
    buffer = bytearray(READ)
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def by_webdataset(folder: Path) -> None:
    """What others would write: webdataset's samples, and the hash of each image; a process for each core."""
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(_hashes, map(str, files(folder))))


def _hashes(tar: str) -> list[str]:
    samples = webdataset.WebDataset(tar, shardshuffle=False)
    return [hashlib.sha256(sample["jpg"]).hexdigest() for sample in samples]


def seconds(run: Callable[[Path], None], folder: Path, cold: bool) -> float:
    drop(folder) if cold else read(folder)
    begun = time.perf_counter()
    run(folder)
    return time.perf_counter() - begun


@pytest.mark.parametrize("cold", [False, True], ids=["cached", "cold"])
def test_rate(tars: Path, cold: bool, ray_local: None, figure: Figure) -> None:
    size, state = megabytes(tars), "cold" if cold else "cached"
    build(tars, "header")  # workers are started
    runs: dict[str, Callable[[Path], None]] = {
        "decode": lambda folder: build(folder, "decode"),
        "header": lambda folder: build(folder, "header"),
        "webdataset": by_webdataset,
        "read": read,
    }
    rounds = [{name: size / seconds(run, tars, cold) for name, run in runs.items()} for _ in range(ROUNDS)]
    rate = {name: statistics.median(found[name] for found in rounds) for name in runs}
    for verify in ("decode", "header"):
        figure(
            f"index, {state} tars, verify={verify}", rate[verify], "MB/s",
            peer="webdataset and sha256", peer_value=rate["webdataset"], limit=rate["read"],
        )  # fmt: skip
    assert min(rate.values()) > 0


@dataclass
class Memory:
    """The most that was held, in bytes."""

    driver: int = 0
    worker: int = 0
    together: int = 0

    def look(self, driver: psutil.Process) -> None:
        held = {driver.pid: _private(driver)}
        for process in driver.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                held[process.pid] = _private(process)
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::"):
                    self.worker = max(self.worker, held[process.pid])
        self.driver = max(self.driver, held[driver.pid])
        self.together = max(self.together, sum(held.values()))


def _private(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


@contextmanager
def watched() -> Iterator[Memory]:
    memory, done, driver = Memory(), threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(0.1):
            memory.look(driver)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()
        memory.look(driver)


def test_four_times_the_data(tars: Path, tmp_path: Path, ray_local: None, figure: Figure) -> None:
    quarter = tmp_path / "quarter"
    quarter.mkdir()
    for path in files(tars)[: TARS // 4]:
        os.link(path, quarter / path.name)
    build(quarter, "decode")  # workers are started, and have grown to what one tar takes
    took: dict[str, list[float]] = {"quarter": [], "all": []}
    most: dict[str, Memory] = {}
    for name, folder in [("quarter", quarter), ("all", tars)] * ROUNDS:
        with watched() as memory:
            took[name].append(seconds(lambda folder: build(folder, "decode"), folder, cold=False))
        most.setdefault(name, memory)  # of the first: what is freed later is not given back to the system
    medians = {name: statistics.median(times) for name, times in took.items()}
    peer = "a quarter of them"
    figure("index of 16 tars", medians["all"], "s", peer=peer, peer_value=medians["quarter"])
    for what in ("driver", "worker", "together"):
        held = {name: getattr(memory, what) / 1e6 for name, memory in most.items()}
        figure(f"index of 16 tars, memory, {what}", held["all"], "MB", peer=peer, peer_value=held["quarter"])
    assert min(medians.values()) > 0
