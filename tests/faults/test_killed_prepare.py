"""Drill: ``kill -9`` of the prepare job, again and again, at whatever it is doing.

The same command must go on each time, and at the end the files must be those of an uninterrupted job, byte for byte.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.index.index import Index
from pipelines.data.prepare.files import FOLDER, MANIFEST
from pipelines.data.tars.shards import ShardWriter
from tests.jobs.conftest import ROOT
from vlmodel.sample import SampleTexts

SHARDS, SAMPLES = 12, 40
SETTINGS = ["longest_side=160", "near_duplicates=4", "format=webp", "samples_per_shard=30"]


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    settings = [f"prepare.{setting}" for setting in (*SETTINGS, f"out={folder / out}")]
    command = [sys.executable, "-m", "jobs.prepare", "--config", "jobs/configs/demo.toml"]
    return subprocess.Popen(
        [*command, "cluster.object_store_mb=150", f"data.tars={folder / 'data'}", *settings],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=(folder / f"{out}.log").open("ab"), stderr=subprocess.STDOUT,
    )  # fmt: skip


def write_source(folder: Path) -> None:
    """Pictures, each tenth of them twice, and the index."""
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "data", "train", max_samples=SAMPLES) as writer:
        for number in range(SHARDS * SAMPLES):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((480, 360))
            for copy in range(2 if number % 10 == 0 else 1):
                path = folder / "picture.jpg"
                coarse.save(path, quality=90 - 20 * copy)
                writer.add(
                    f"{number:04d}-{copy}",
                    {"image": (path.read_bytes(), "jpg")},
                    SampleTexts((f"picture {number}",), ()),
                )
    command = [sys.executable, "-m", "jobs.index", "--config", "jobs/configs/demo.toml"]
    subprocess.run([*command, f"data.tars={folder / 'data'}"], cwd=ROOT, check=True)


def finished(out: Path) -> set[str]:
    """What is there as a whole."""
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and not p.name.endswith(".partial")}


def contents(out: Path) -> dict[str, bytes]:
    files = [*out.glob("*.tar"), *out.glob(f"{FOLDER}/**/*.parquet")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def test_a_killed_job_goes_on(tmp_path: Path) -> None:
    write_source(tmp_path)
    assert start(tmp_path, "calm").wait(900) == 0, (tmp_path / "calm.log").read_text()
    out, kills = tmp_path / "out", 0
    while not (out / MANIFEST).exists():
        before = finished(out)
        job = start(tmp_path, "out")
        # Killed when it has done something more: a measurement, a tar, a part of the index.
        while job.poll() is None and len(finished(out) - before) < 12:
            time.sleep(0.01)
        if job.poll() is None:
            job.kill()
            job.wait()
            kills += 1
            time.sleep(3)  # the cluster that the job had started ends with it
        else:
            assert job.returncode == 0, (tmp_path / "out.log").read_text()
        assert kills < 30, (tmp_path / "out.log").read_text()
    assert start(tmp_path, "out").wait(900) == 0, (tmp_path / "out.log").read_text()
    assert kills >= 3
    assert contents(out) == contents(tmp_path / "calm")
    assert Index.open(str(out)).hash == Index.open(str(tmp_path / "calm")).hash
    assert Index.open(str(out)).counts()["train"] + Index.open(str(out)).counts()["val"] == SHARDS * SAMPLES
