"""One deployment at a time."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipelines.serve.deployment.locks import cluster_lock, port_lock
from pipelines.serve.errors import ServeError


def test_second_deployment_waits_and_names_the_holder(ray_local: None) -> None:
    reports: list[str] = []
    order: list[str] = []

    def second() -> None:
        with cluster_lock(120, reports.append):
            order.append("second")

    with cluster_lock(60, reports.append):
        holder_pattern = rf"process {os.getpid()}\)"
        with (
            pytest.raises(ServeError, match=f"another deployment .*{holder_pattern} has not ended within 0 s"),
            cluster_lock(0, reports.append),
        ):
            pass
        assert reports == []
        waiting = threading.Thread(target=second)
        waiting.start()
        while not reports:
            waiting.join(0.05)
        order.append("first")
    waiting.join(120)
    assert order == ["first", "second"]
    holder = f"{psutil.Process().username()} on {os.uname().nodename}, process {os.getpid()}"
    assert reports == [f"service: waits for another deployment ({holder})"]


def test_of_those_who_begin_at_once_one_is_first(ray_local: None) -> None:
    begin, inside, most_inside = threading.Barrier(3), [0], [0]

    def hold_lock() -> None:
        begin.wait()
        with cluster_lock(300, lambda line: None):
            inside[0] += 1
            most_inside[0] = max(most_inside[0], inside[0])
            time.sleep(0.1)
            inside[0] -= 1

    threads = [threading.Thread(target=hold_lock) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most_inside) == ([0], [1])


def test_at_one_port_the_second_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with (
        port_lock(8000, 0),
        port_lock(8001, 0),
        pytest.raises(ServeError, match=r"started at port 8000; choose another with serve\.port="),
        port_lock(8000, 0),
    ):
        pass
    with port_lock(8000, 0):
        pass
    [folder] = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
