"""The service on Ray Serve, over real HTTP; and its client."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import ray
from pydantic import ValidationError
from ray import serve

from pipelines.records.comparisons import read_comparisons
from pipelines.serve import ray_private, tls
from pipelines.serve.challenger import deployment as challenger_deployment
from pipelines.serve.client import Client, is_reachable
from pipelines.serve.config import (
    ServeConfig,
    concurrent_forward_passes,
    is_loopback,
    model_threads,
    threads_for_decoding,
)
from pipelines.serve.deployment import deploy, haproxy
from pipelines.serve.deployment.address import check_port_free, service_address_of
from pipelines.serve.deployment.application import build_service_spec, describe_model_for_replicas
from pipelines.serve.errors import ServeError
from pipelines.serve.http.api_keys import KEY_HASHES_VARIABLE
from pipelines.storage import manifest
from tests.pipelines.serve.conftest import LABELS, picture
from tests.pipelines.serve.http_client import events
from tests.pipelines.serve.server import self_signed
from vlmodel.config import ConfigError, dump_config, load_config, parse_config
from vlmodel.inference import Predictor
from vlmodel.processor import Example

QUESTIONS = ["what colour is the circle ?", "is there a square ?"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def service_config(port: int, **changes: object) -> ServeConfig:
    tree = {
        "port": port,
        "num_cpus": 0.5,
        "model_threads": 1,
        "max_body_bytes": 200_000,
        "shutdown_timeout_s": 2.0,
    }
    return parse_config(ServeConfig, {**tree, **changes})


@pytest.mark.parametrize("ingress", ["auto", pytest.param("python", marks=pytest.mark.slow)])
def test_over_https_from_the_first_request_to_an_update(
    ray_local: None, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, ingress: str
) -> None:
    """The first of this file: Serve takes a certificate only when it starts, and then runs for the tests below."""
    own, other = self_signed(tmp_path), self_signed(tmp_path, "other")
    config = service_config(free_port(), tls=dump_config(own), ingress=ingress)
    try:
        address = deploy.deploy_service(config, model_folder, version="1")
        assert address == f"https://127.0.0.1:{config.port}"
        with Client(address, ssl_context=tls.ssl_context_for_own_certificate(own)) as client:
            assert client.ask(picture(), QUESTIONS).model.version == "1"
            assert not is_reachable(address.replace("https", "http"))
            with pytest.raises(
                ServeError, match=r"does not answer at http://.* whether it encrypts, only when it starts"
            ):
                deploy.deploy_service(service_config(config.port), model_folder, version="2")
            assert client.ask(picture(), QUESTIONS).model.version == "1"
            # A renewed certificate is no reason to keep a new model back.
            deploy.deploy_service(service_config(config.port, tls=dump_config(other)), model_folder, version="2")
            assert "shows another certificate than that in" in caplog.text
            assert client.ask(picture(), QUESTIONS).model.version == "2"
    finally:
        deploy.stop_service()


@pytest.fixture(scope="module")
def address(ray_local: None, model_folder: Path) -> Iterator[str]:
    reports: list[str] = []
    config = service_config(free_port())
    yield deploy.deploy_service(config, model_folder, name="vqa", version="3", report=reports.append)
    folder = deploy._ingress.folder
    deploy.stop_service()
    assert not (folder and Path(folder).exists())
    assert reports[-1] == "service: running"
    with Client(service_address_of(config)) as gone, pytest.raises(ServeError, match="is the service running"):
        gone.ask(picture(), QUESTIONS)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as connected:
        yield connected


def test_answers_over_http_are_those_of_the_predictor(address: str, client: Client, model_folder: Path) -> None:
    image = picture(5)
    result = client.ask(image, QUESTIONS, top_k=4, attention=True)
    [expected] = Predictor.from_pretrained(model_folder).predict(
        [Example({"image": image}, tuple(QUESTIONS))], 4, attention=True
    )
    assert [answer.question for answer in result.answers] == QUESTIONS
    for actual, plain in zip(result.answers, expected, strict=True):
        assert [ranked.answer for ranked in actual.answers] == [answer for answer, _ in plain.answers]
        np.testing.assert_allclose([r.probability for r in actual.answers], [p for _, p in plain.answers], atol=1e-5)
        assert actual.attention is not None
        assert plain.attention_HW is not None
        np.testing.assert_allclose(actual.attention.weights, plain.attention_HW, atol=1e-4)
    assert (result.model.name, result.model.version) == ("vqa", "3")
    as_json = {"image": base64.b64encode(image).decode(), "questions": QUESTIONS, "top_k": 4, "attention": True}
    response = httpx.post(f"{address}/v1/vqa", json=as_json)
    assert response.json()["answers"] == result.model_dump()["answers"]


def test_burst_is_batched_and_each_request_gets_its_own_answer(client: Client, model_folder: Path) -> None:
    images = [picture(seed) for seed in range(24)]
    with ThreadPoolExecutor(24) as crowd:
        answers = list(crowd.map(lambda image: client.ask(image, QUESTIONS[:1], top_k=1), images))
    predictor = Predictor.from_pretrained(model_folder)
    expected = [
        predictions[0].answers[0]
        for predictions in predictor.predict([Example({"image": i}, (QUESTIONS[0],)) for i in images], 1)
    ]
    result = [(answer.answers[0].answers[0].answer, answer.answers[0].answers[0].probability) for answer in answers]
    assert [name for name, _ in result] == [name for name, _ in expected]
    np.testing.assert_allclose([p for _, p in result], [p for _, p in expected], atol=1e-5)


def test_refused_requests_get_json_errors(address: str, client: Client) -> None:
    def code(response: httpx.Response) -> tuple[int, str]:
        return response.status_code, response.json()["error"]["code"]

    with httpx.Client(base_url=address) as session:
        files = {"image": ("i", b"no picture")}
        assert code(session.post("/v1/vqa", data={"question": "?"}, files=files)) == (422, "undecodable_image")
        assert code(session.get("/nowhere")) == (404, "not_found")
        assert code(session.post("/v1/vqa", content=b"x", headers={"content-type": "text/x"}))[0] == 415
        rebound = session.get("/v1/model", headers={"host": "rebound.example"})
        assert code(rebound) == (403, "foreign_host")
        slow_timeout = {"x-request-timeout-seconds": "0"}
        assert session.get("/v1/model", headers=slow_timeout).json()["labels"] == len(LABELS)
    with pytest.raises(ServeError, match=r"422: empty_question: .*the question is empty"):
        client.ask(picture(), [" "])
    assert client.ask(picture(), QUESTIONS).model.version == "3"


def test_an_endless_body_over_http_is_cut_off(address: str) -> None:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/v1/vqa")
    connection.putheader("content-type", "application/json")
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for _ in range(4):
        connection.send(chunk)
    response = connection.getresponse()
    assert response.status == 413
    assert b"body_too_large" in response.read()
    connection.close()


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    return sorted((c.laddr.ip, c.laddr.port) for c in process.net_connections("tcp") if c.status == "LISTEN")


def processes(*names: str) -> list[psutil.Process]:
    started = psutil.Process().children(recursive=True)
    return [process for process in started if process.name().removeprefix("ray::").startswith(names)]


def test_nothing_but_ray_itself_listens_beyond_loopback(address: str) -> None:
    port = int(address.rpartition(":")[2])
    hosts = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert hosts == {"127.0.0.1"}
    answering = processes("ServeRep", "ProxyActor", "HAProxyMan", "ServeContr")
    assert len(answering) >= 3
    for process in answering:
        # Each worker of Ray's has one port for Ray's own calls, which follows the address of the node.
        beyond = [host for host, _ in listening(process) if host not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
        assert len(beyond) <= 1, (process.name(), listening(process))


@pytest.mark.skipif(haproxy.find_haproxy() is None or sys.platform != "linux", reason="there is no HAProxy here")
def test_haproxy_answers_and_its_files_are_private(address: str) -> None:
    port, folder = int(address.rpartition(":")[2]), Path(deploy._ingress.folder)
    # A former one answers what it still owes.
    [current] = [process for process in processes("haproxy") if listening(process)]
    assert listening(current) == [("127.0.0.1", port)]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.getuid()
    [node] = [path for path in folder.iterdir() if path.is_dir()]
    assert (node / "admin").stat().st_mode & 0o777 == 0o600
    assert str(node / "haproxy.cfg") in current.cmdline()


@pytest.mark.skipif(sys.platform != "linux", reason="Ray lowers the priority of its workers on Linux alone")
def test_what_answers_requests_comes_before_other_workers(address: str) -> None:
    @ray.remote(num_cpus=0)
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    own = psutil.Process().nice()
    for name in ("ServeRep", "haproxy" if deploy._ingress.is_haproxy else "ProxyActor"):
        assert {process.nice() for process in processes(name)} == {own}, name
    assert ray.get(niceness.remote()) > own


@pytest.mark.slow
def test_a_new_version_replaces_the_old_one_without_a_refused_request(
    address: str, client: Client, model_folder: Path
) -> None:
    config = service_config(int(address.rpartition(":")[2]))
    image = picture()
    with ThreadPoolExecutor(1) as aside:
        update = aside.submit(deploy.deploy_service, config, model_folder, "vqa", "4")
        versions = [client.ask(image, QUESTIONS).model.version]
        while not update.done():
            versions.append(client.ask(image, QUESTIONS).model.version)
    assert update.result() == address
    versions.append(client.ask(image, QUESTIONS).model.version)
    assert versions[0] == "3"
    assert versions[-1] == "4"
    assert versions == sorted(versions)


def test_model_that_does_not_load_keeps_the_previous_one(
    address: str, client: Client, model_folder: Path, tmp_path: Path
) -> None:
    version = client.ask(picture(), QUESTIONS).model.version
    for file in model_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = service_config(int(address.rpartition(":")[2]))
    with pytest.raises(ServeError, match=r"the service did not start: .*version 5 in .* does not load"):
        deploy.deploy_service(config, tmp_path, "vqa", "5")
    assert client.ask(picture(), QUESTIONS).model.version == version
    assert serve.status().applications[deploy.APP_NAME].status != "DEPLOY_FAILED", "Serve wants the former one again"
    deployed = serve.get_app_handle(deploy.APP_NAME).spec.remote().result(timeout_s=60)
    assert (deployed.model["version"], deployed.model["folder"]) == (version, str(model_folder))
    assert parse_config(ServeConfig, deployed.config) == config


def test_plain_service_is_not_mistaken_for_an_encrypted_one(
    address: str, client: Client, tmp_path: Path, model_folder: Path
) -> None:
    version = client.ask(picture(), QUESTIONS).model.version
    encrypted = service_config(int(address.rpartition(":")[2]), tls=dump_config(self_signed(tmp_path)))
    with pytest.raises(ServeError, match=r"does not answer at https://.* whether it encrypts, only when it starts"):
        deploy.deploy_service(encrypted, model_folder, "vqa", "5")
    assert client.ask(picture(), QUESTIONS).model.version == version


@pytest.mark.slow
def test_challenger_is_deployed_and_removed_with_the_champion(
    address: str, client: Client, model_folder: Path, tmp_path: Path
) -> None:
    own = {"mode": "canary", "share": 0.5, "folder": str(tmp_path), "num_cpus": 0.5, "timeout_s": 30.0}
    config = service_config(int(address.rpartition(":")[2]), challenger=own)
    with pytest.raises(ServeError, match="no challenger is named"):
        deploy.deploy_service(config, model_folder, "vqa", "10")
    challenger = describe_model_for_replicas(model_folder, "vqa", "11")
    deploy.deploy_service(config, model_folder, "vqa", "10", challenger=challenger)
    images = [picture(seed) for seed in range(24)]
    sides = {image: client.ask(image, QUESTIONS).model.version for image in images}
    assert set(sides.values()) == {"10", "11"}
    assert {image: client.ask(image, QUESTIONS).model.version for image in images} == sides
    chosen = [image for image, version in sides.items() if version == "11"]
    deadline = time.monotonic() + 60
    while len(comparisons := list(read_comparisons(str(tmp_path)))) < 2 * len(chosen):
        assert time.monotonic() < deadline, f"{len(comparisons)} of {2 * len(chosen)} records"
        time.sleep(0.2)
    assert {comparison.image for comparison in comparisons} == {hashlib.sha256(image).hexdigest() for image in chosen}
    assert {
        (comparison.champion.version, comparison.challenger.version, comparison.agreement) for comparison in comparisons
    } == {("10", "11", 1.0)}

    # A challenger that does not load leaves the former pair as it was.
    broken = {**challenger, "version": "12", "digest": "0" * 64}
    with pytest.raises(ServeError, match=r"the challenger did not start: .*version 12 in .* does not load"):
        deploy.deploy_service(config, model_folder, "vqa", "10", challenger=broken)
    assert {image: client.ask(image, QUESTIONS).model.version for image in images} == sides

    deploy.deploy_service(service_config(config.port), model_folder, "vqa", "10")
    assert {client.ask(image, QUESTIONS).model.version for image in images} == {"10"}
    while challenger_deployment.APP_NAME in serve.status().applications:
        assert time.monotonic() < deadline + 60
        time.sleep(0.2)


@pytest.mark.slow
def test_swapped_model_offers_its_tasks_and_captions_stream_through_the_proxy(
    address: str, folder_of: Callable[[str], Path]
) -> None:
    body = {"image": base64.b64encode(picture()).decode()}
    with httpx.Client(base_url=address) as client:
        assert client.get("/v1/model").json()["tasks"] == ["vqa"]
        assert client.post("/v1/caption", json=body).json()["error"]["code"] == "no_such_task"
        deploy.deploy_service(service_config(int(address.rpartition(":")[2])), folder_of("all"), "all", "9")
        assert client.get("/v1/model").json()["tasks"] == ["vqa", "caption", "classify", "match", "embed"]
        whole = client.post("/v1/caption", json=body).json()
        streamed = events(client.post("/v1/caption", json={**body, "stream": True}))
        assert len(streamed) > 2
        assert json.loads(streamed[-1][1])["captions"] == whole["captions"]
        for task, fields in {"match": {"text": "a circle"}, "embed": {"text": "a circle"}}.items():
            answer = client.post(f"/v1/{task}", json={**body, **fields})
            assert answer.json()["model"] == {"name": "all", "version": "9"}


def test_failed_start_removes_only_its_own_applications(monkeypatch: pytest.MonkeyPatch) -> None:
    applications, ended = {deploy.APP_NAME: None, "of others": None}, []
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=applications))
    monkeypatch.setattr(serve, "delete", applications.pop)
    monkeypatch.setattr(ray_private, "shut_down", lambda timeout_s: ended.append(True))
    deploy._remove_started_applications()
    assert (list(applications), ended) == (["of others"], [])
    applications.clear()
    deploy._remove_started_applications()
    assert ended == [True]


def test_a_busy_port_is_named_before_anything_starts(ray_local: None, model_folder: Path) -> None:
    with socket.socket() as listener:
        # As Serve's own proxy does: shared ports must not be taken for free ones.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        process_pattern = rf"{psutil.Process().name()} \(process {os.getpid()}\)"
        with pytest.raises(
            ServeError, match=rf"port {port} on 127\.0\.0\.1 is in use by {process_pattern}; .*serve\.port="
        ):
            check_port_free("127.0.0.1", port)
    check_port_free("127.0.0.1", port)


@pytest.mark.parametrize("content", [None, "empty"])
def test_a_folder_without_a_model_is_named(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "model"
    if content:
        folder.mkdir()
    with pytest.raises(ServeError, match=f"'{folder}' holds no model"):
        describe_model_for_replicas(folder, "vqa", "1")


def test_beyond_this_machine_only_when_told_to_and_with_keys(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"'0.0.0.0' is reachable from other machines; .*expose = true"):
        load_config(ServeConfig, overrides=["host=0.0.0.0"])
    with pytest.raises(ValidationError):
        ServeConfig(host="example.org")
    exposed = ServeConfig(host="0.0.0.0", expose=True)
    monkeypatch.delenv(KEY_HASHES_VARIABLE, raising=False)
    with pytest.raises(ServeError, match=KEY_HASHES_VARIABLE):
        build_service_spec(exposed, {}, None)
    monkeypatch.setenv(KEY_HASHES_VARIABLE, hashlib.sha256(b"key").hexdigest())
    assert build_service_spec(exposed, {}, None)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_the_builder_for_serve_config_files(model_folder: Path) -> None:
    assert deploy.app({"model_folder": str(model_folder), "version": "2", "serve": {"max_batch_size": 3}})
    with pytest.raises(ServeError, match="model_folder is missing"):
        deploy.app({})
    with pytest.raises(ServeError, match=r"unknown argument 'sha256'; .*digest, golden"):
        deploy.app({"model_folder": str(model_folder), "sha256": "ab"})


def test_builder_passes_digest_and_golden_answers(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr(deploy, "build_champion_application", built.append)
    arguments = {"name": "vqa", "version": "2", "digest": "ab" * 32, "golden": "/models/golden.json"}
    deploy.app({"model_folder": str(model_folder), **arguments})
    deploy.app({"model_folder": str(model_folder)})
    assert built[0].model == {"folder": str(model_folder), **arguments}
    assert built[1].model["digest"] == manifest.folder_digest(model_folder)
    with pytest.raises(ConfigError, match="unknown key 'max_batch'"):
        deploy.app({"model_folder": str(model_folder), "serve": {"max_batch": 3}})


def test_threads_are_shared_among_replicas() -> None:
    assert model_threads(ServeConfig(model_threads=3)) == 3
    assert model_threads(ServeConfig(replicas=10_000)) == 1
    threads = {n: concurrent_forward_passes(ServeConfig(model_threads=n)) for n in (1, 2, 16)}
    assert threads == {1: 1, 2: 2, 16: 4}
    assert concurrent_forward_passes(ServeConfig(model_threads=8, num_gpus=0.5)) == 1
    assert [threads_for_decoding(ServeConfig(num_cpus=n)) for n in (0.5, 1, 4)] == [2, 2, 4]
    assert parse_config(ServeConfig, dump_config(ServeConfig(port=8123))) == ServeConfig(port=8123)
