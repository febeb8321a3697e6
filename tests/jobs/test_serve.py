"""The service of the serve job gives the answers of the evaluate job, and stops when it is told to."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.data.index import Index
from pipelines.data.reader import ShardReader
from pipelines.serve.client import ask, is_ready
from tests.jobs.conftest import ROOT
from tests.jobs.test_pipeline import DEMO, finished, free_port, setting

# Whole jobs, each of which starts a cluster: slow machines take minutes.
pytestmark = pytest.mark.timeout(1200)

__all__ = ["finished"]


@pytest.mark.usefixtures("finished")
def test_http_gives_the_answers_of_the_evaluate_job(small: list[str], job: Callable[..., object]) -> None:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "jobs.serve", *DEMO, *small, f"serve.port={port}"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        while not is_ready(address):
            assert server.poll() is None, "the serve job ended"
            time.sleep(0.5)
        expected = pq.read_table(Path(setting(small, "storage")) / "demo" / "answers-test.parquet").to_pylist()
        asked = answered_over_http(address, setting(small, "data.tars"), {row["key"] for row in expected})
        assert len(asked) >= 100
        for row in expected:
            best, probability = asked[row["key"], row["text"]]
            assert best == row["predicted"], row
            assert probability == pytest.approx(row["probability"], abs=1e-4)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=100)
    assert not is_ready(address)


def answered_over_http(address: str, tars: str, keys: set[str]) -> dict[tuple[str, str], tuple[str, float]]:
    index = Index.open(tars)
    found = {}
    for shard in index.shards:
        for row, key in enumerate(index.rows(shard.name)["key"].to_pylist()):
            if key in keys and shard.name.startswith("test"):
                (record,) = ShardReader(index).read(shard.name, [row])
                questions = [q.question for q in record.texts.questions]
                for answer in ask(address, record.image, questions).answers:
                    found[key, answer.question] = (answer.answers[0].answer, answer.answers[0].probability)
    return found
