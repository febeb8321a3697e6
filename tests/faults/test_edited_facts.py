"""Drill: facts are added and removed while requests come in, and a replica is killed in between (K4)."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipelines.knowledge.store import FactStore
from pipelines.knowledge.triples import Triple, triple_to_fact
from pipelines.serve.deployment import deploy
from pipelines.serve.http.api_keys import FACT_KEY_HASHES_VARIABLE
from tests.faults.load import Answer, open_loop, question_about
from tests.faults.services import Service, cluster, replicas, seconds_until
from tests.pipelines.registry.conftest import picture, save_reading_model

KEY = "a key for facts"
RATE = 20.0  # requests/s
QUIET_S = 3.0
SETTLED_S = 2.0
"""After this all replicas have an edit."""
BACK_S = 120.0


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with cluster():
        yield


@pytest.fixture
def store(tmp_path: Path) -> FactStore:
    store = FactStore.create(str(tmp_path / "store"), "", 0)
    store.put([triple_to_fact(Triple("shape", "Is", "red"), "first", fact_id="first")], None)
    return store


@pytest.fixture
def service(tmp_path: Path, store: FactStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Two replicas of a model that reads facts by names."""
    monkeypatch.setenv(FACT_KEY_HASHES_VARIABLE, hashlib.sha256(KEY.encode()).hexdigest())
    service = Service(tmp_path, save_reading_model, replicas=2, knowledge={"store": store.uri})
    service.promote(service.register(seed=1))
    service.deploy()
    seconds_until(service.is_whole, BACK_S)
    yield service
    deploy.stop_service()


def first_with(answers: list[Answer], fact: str, after: float) -> float:
    """Seconds until the first request was answered with a fact."""
    return (
        min((answer.ended for answer in answers if fact in answer.facts and answer.sent >= after), default=1e9) - after
    )


def test_edits_under_load(service: Service) -> None:
    headers = {"x-fact-key": KEY}
    added = {"head": "shape", "relation": "Is", "tail": "blue", "id": "added"}
    with (
        httpx.Client(base_url=service.address, timeout=60, trust_env=False) as http,
        open_loop(service.address, RATE, question_about(picture(0)), retries=2) as answers,
    ):
        time.sleep(QUIET_S)
        put = http.post("/v1/facts", json=added, headers=headers)
        put_at = time.monotonic()
        time.sleep(QUIET_S)
        victim = min(replicas())
        os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        deleted = http.delete("/v1/facts/first", headers=headers)
        deleted_at = time.monotonic()
        seconds_until(lambda: not service.is_whole(), BACK_S)
        seconds_until(service.is_whole, BACK_S)
        time.sleep(QUIET_S)
    assert (put.status_code, deleted.status_code) == (200, 200), (put.text, deleted.text)
    version = deleted.json()["knowledge_version"]
    late = [a for a in answers if a.sent > deleted_at and "first" in a.facts]
    stale_s = max((a.ended for a in late), default=deleted_at) - deleted_at
    print(
        f"facts: {len(answers)} requests, {len([a for a in answers if a.failed])} answered at a further try; the added "
        f"fact was used {first_with(answers, 'added', put_at):.2f} s after its edit; {len(late)} requests after the "
        f"removal had the fact, the last ended {stale_s:.2f} s later; a replica was killed "
        f"{deleted_at - killed_at:.2f} s before the removal"
    )
    assert [a for a in answers if a.status != 200] == []
    settled = [a for a in answers if a.sent > deleted_at + SETTLED_S]
    assert settled
    assert {a.facts for a in settled} == {("added",)}
    assert all(a.knowledge >= version for a in settled)
    assert all("added" in a.facts for a in answers if a.sent > put_at + SETTLED_S), "a restarted replica has it, too"
