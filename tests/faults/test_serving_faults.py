"""Drill: replicas are killed, models are swapped, damaged and rolled back, all while requests come in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.registry.errors import ArtifactError
from pipelines.serve.deployment import deploy
from pipelines.serve.errors import ServeError
from tests.faults.load import open_loop, percentile_ms, question_about
from tests.faults.services import Service, cluster, flip_a_bit, replicas, seconds_until
from tests.pipelines.registry.conftest import QUESTION, picture
from vlmodel.operations.ask import QuestionAnswers

RATE = 20.0  # requests/s
QUIET_S = 5.0
# What it takes for a replica to be back is printed. It is spent on imports, so that a busy machine may take its time.
BACK_S = 120.0


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with cluster():
        yield


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Two replicas of version 1; version 2 is registered."""
    service = Service(tmp_path, replicas=2)
    service.promote(service.register(seed=1))
    service.register(seed=2)
    service.deploy()
    seconds_until(service.is_whole, BACK_S)
    yield service
    deploy.stop_service()


@pytest.fixture(scope="module")
def body() -> bytes:
    return question_about(picture(0))


def answers_of(service: Service) -> list[list[QuestionAnswers]]:
    """What the service says about a few pictures, in all digits."""
    return [service.ask(picture(seed), QUESTION).answers for seed in range(8)]


def versions_served(service: Service) -> set[str]:
    """By enough requests that each replica gets some."""
    return {service.ask(picture(seed), QUESTION).model.version for seed in range(20)}


def test_killed_replica_loses_at_most_its_requests_in_flight(service: Service, body: bytes) -> None:
    victim, other = sorted(replicas())
    with open_loop(service.address, RATE, body, retries=1) as answers:
        time.sleep(QUIET_S)
        # It stands still for a while first, so that it dies with requests on its hands.
        os.kill(victim, signal.SIGSTOP)
        time.sleep(0.5)
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        noticed_s = seconds_until(lambda: not service.is_whole(), BACK_S)
        back_s = noticed_s + seconds_until(service.is_whole, BACK_S)
        time.sleep(2)
    in_flight = [answer for answer in answers if answer.sent <= killed < answer.ended]
    lost = [answer for answer in answers if answer.failed]
    print(
        f"killed: {len(answers)} requests, {len(in_flight)} in flight then, {len(lost)} of which failed and were "
        f"answered at the second try {[a.failed for a in lost]}; slowest {max(a.seconds for a in answers):.2f} s; "
        f"both replicas again after {back_s:.1f} s"
    )
    assert [answer for answer in answers if answer.status != 200] == []
    assert in_flight
    assert set(lost) <= set(in_flight)
    assert other in replicas()


def test_a_swap_refuses_nobody_and_goes_one_way(service: Service, body: bytes) -> None:
    before = replicas()
    with open_loop(service.address, RATE, body) as answers:
        time.sleep(QUIET_S)
        service.promote("2")
        began = time.monotonic()
        service.deploy()
        deployed_s = time.monotonic() - began
        seconds_until(lambda: service.is_whole() and not before & replicas(), BACK_S)
        ended = time.monotonic()
        time.sleep(QUIET_S)
    last_old = max(answer.ended for answer in answers if answer.version == "1")
    first_new = min(answer.ended for answer in answers if answer.version == "2")
    quiet = [answer for answer in answers if answer.ended < began or answer.sent > ended]
    during = [answer for answer in answers if began <= answer.ended and answer.sent <= ended]
    print(
        f"swap: {len(answers)} requests; took {deployed_s:.1f} s; both versions answered for "
        f"{max(0, last_old - first_new):.2f} s; p99 {percentile_ms(quiet, 99):.0f} ms before and after "
        f"({len(quiet)} requests), {percentile_ms(during, 99):.0f} ms during ({len(during)})"
    )
    assert [answer for answer in answers if answer.status != 200] == []
    # A replica has one version for life, so that none of them ever went back.
    assert not before & replicas()
    assert {answer.version for answer in answers if answer.sent > ended} == {"2"}
    assert {answer.version for answer in answers if answer.ended < began} == {"1"}
    assert {answer.version for answer in answers} == {"1", "2"}


@pytest.mark.parametrize("fault", ["weights", "golden answers"])
def test_a_version_that_is_no_good_changes_nothing(service: Service, body: bytes, fault: str) -> None:
    bad = service.registry.download(service.registry.version("2"))
    golden, refusal = str(bad.golden_answers_file), r"version 2 in .* does not load"
    if fault == "weights":
        weights = bad.folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        # It loads, and says something else here than when it was registered.
        golden, refusal = (
            str(service.registry.champion().golden_answers_file),
            r"version 2 in .* is not served: .* golden answers",
        )
    with open_loop(service.address, RATE, body) as answers:
        time.sleep(1)
        with pytest.raises(ServeError, match=refusal):
            deploy.deploy_service(service.config.serve, bad.folder, bad.name, bad.version, golden=golden)
        seconds_until(service.is_whole, BACK_S)
    # It was refused once, and is not what takes a dead replica's place.
    victim = min(replicas())
    # A request may meet both the dead replica and the proxy's restart without it.
    with open_loop(service.address, RATE, body, retries=2) as later:
        os.kill(victim, signal.SIGKILL)
        back_s = seconds_until(lambda: victim not in replicas() and service.is_whole(), BACK_S)
    print(
        f"bad version ({fault}): {len(answers)} requests, all answered by version 1 at the first try; a replica that "
        f"was killed later was back after {back_s:.1f} s ({len(later)} requests, {sum(bool(a.failed) for a in later)} "
        "tried again)"
    )
    assert [answer for answer in (*answers, *later) if answer.version != "1"] == []
    assert versions_served(service) == {"1"}
    assert service.champion == "1"


def test_a_tampered_artifact_is_refused_wherever_it_lies(service: Service, body: bytes) -> None:
    # In the store, before it was ever used: it does not become the champion.
    file = next(path for path in stored_weights(service) if path.read_bytes() != champion_weights(service).read_bytes())
    flip_a_bit(file)
    with pytest.raises(ArtifactError, match=r"not what was stored.*model\.safetensors"):
        service.promote("2")
    assert service.champion == "1"

    # In the replicas' own folder: the one that starts anew refuses it, and says so; the other goes on.
    flip_a_bit(champion_weights(service))
    victim, other = sorted(replicas())
    with open_loop(service.address, RATE, body, retries=1) as answers:
        os.kill(victim, signal.SIGKILL)
        refused_s = seconds_until(lambda: "not those that were deployed" in service.message(), BACK_S)
        assert other in replicas()
        # Deployed again, the registry restores it.
        began = time.monotonic()
        service.deploy()
        seconds_until(lambda: service.is_whole() and other not in replicas(), BACK_S)
        healed_s = time.monotonic() - began
    print(
        f"tampered: {len(answers)} requests, all answered by version 1; the new replica refused the file after "
        f"{refused_s:.1f} s, and {healed_s:.1f} s after the next deployment both ran"
    )
    assert [answer for answer in answers if answer.version != "1"] == []


def test_a_rollback_gives_the_former_answers_byte_for_byte(service: Service) -> None:
    before = answers_of(service)
    service.promote("2")
    service.deploy()
    seconds_until(service.is_whole, BACK_S)
    assert versions_served(service) == {"2"}
    assert answers_of(service) != before

    began = time.monotonic()
    service.roll_back()
    service.deploy()
    seconds_until(service.is_whole, BACK_S)
    print(f"rollback: both replicas answer with version 1 again after {time.monotonic() - began:.1f} s")
    assert service.champion == "1"
    assert versions_served(service) == {"1"}
    assert answers_of(service) == before


def champion_weights(service: Service) -> Path:
    return service.registry.champion().folder / "model.safetensors"


def stored_weights(service: Service) -> list[Path]:
    return list((Path(service.config.storage) / "mlartifacts").rglob("model.safetensors"))
