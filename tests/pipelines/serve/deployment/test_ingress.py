"""Which ingress a cluster gets, and what is prepared for HAProxy."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

import pytest
import ray

from pipelines.serve.config import ServeConfig
from pipelines.serve.deployment import haproxy, ingress
from pipelines.serve.deployment.haproxy import HAProxyOptions
from pipelines.serve.deployment.ingress import Ingress
from pipelines.serve.errors import ServeError
from tests.pipelines.serve.server import self_signed
from vlmodel.config import parse_config

needs_haproxy = pytest.mark.skipif(haproxy.find_haproxy() is None, reason="there is no HAProxy here")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ingress, "_PARENT_FOLDER", tmp_path)
    return tmp_path


def machines(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    nodes = [{"Alive": True, "NodeManagerAddress": address, "Resources": {}} for address in addresses]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "NodeManagerAddress": "gone", "Resources": {}}])


def test_several_machines_get_the_python_proxy_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, "10.0.0.1", "10.0.0.2", "10.0.0.2")
    chosen, reason = ingress.choose_ingress(ServeConfig(), "127.0.0.1:8000")
    assert (chosen.is_haproxy, chosen.host) == (False, "127.0.0.1")
    assert chosen.environment == {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    assert reason.startswith("the cluster has 2 machines")
    with pytest.raises(ServeError, match=r"serve\.ingress is 'haproxy', and the cluster has 2 machines.*=auto"):
        ingress.choose_ingress(ServeConfig(ingress="haproxy"), "127.0.0.1:8000")
    assert ingress.choose_ingress(ServeConfig(ingress="python"), "127.0.0.1:8000") == (chosen, "")


def test_without_its_program_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    monkeypatch.setattr(haproxy, "find_haproxy", lambda: None)
    assert "no HAProxy on this machine" in str(ingress._prepare_haproxy(ServeConfig(), "127.0.0.1:8000"))
    monkeypatch.setattr(haproxy, "find_haproxy", lambda: "/bin/false")
    assert "/bin/false does not run" in str(ingress._prepare_haproxy(ServeConfig(), "127.0.0.1:8000"))
    assert list(folders.iterdir()) == []


@needs_haproxy
def test_each_service_has_a_folder_of_its_own_and_a_port_of_its_own(folders: Path) -> None:
    one, other = (ingress._prepare_haproxy(ServeConfig(port=port), f"127.0.0.1:{port}") for port in (8001, 8002))
    assert isinstance(one, Ingress)
    assert isinstance(other, Ingress)
    paths = [name for name in one.environment if str(folders) in one.environment[name]]
    assert len(paths) == 6
    for name in (*paths, "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"):
        assert one.environment[name] != other.environment[name]
    assert stat.S_IMODE(Path(one.folder).stat().st_mode) == 0o700
    assert os.access(one.environment["RAY_SERVE_HAPROXY_BINARY_PATH"], os.X_OK)
    assert one.host == "127.0.0.1"
    ingress.remove_haproxy_files(one)
    assert not Path(one.folder).exists()
    assert Path(other.folder).exists()


@needs_haproxy
def test_paths_of_sockets_leave_room_for_the_names_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = ingress._prepare_haproxy(ServeConfig(), "127.0.0.1:8000")
    assert isinstance(prepared, Ingress)
    try:
        for name in ("RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"):
            path = prepared.environment[name]
            # HAProxy binds it under a name with its process id first.
            assert len(f"{path}/{56 * 'n'}.{4_194_304}.tmp") < 108
    finally:
        ingress.remove_haproxy_files(prepared)


@needs_haproxy
def test_the_settings_reach_haproxy(folders: Path, tmp_path: Path) -> None:
    own = self_signed(tmp_path)
    changed = {
        "tls": {"certificate": own.certificate, "key": own.key}, "request_timeout_s": 2.5, "shutdown_timeout_s": 3.0,
        "ingress_metrics_port": 9101,
    }  # fmt: skip
    prepared = ingress._prepare_haproxy(parse_config(ServeConfig, changed), "127.0.0.1:8000")
    assert isinstance(prepared, Ingress)
    certificate = Path(prepared.folder) / "service.pem"
    expected = HAProxyOptions("127.0.0.1:8000", str(certificate), "127.0.0.1:9101", 3)
    assert prepared.environment[haproxy.OPTIONS_VARIABLE] == expected.dump()
    assert certificate.read_bytes() == Path(own.certificate).read_bytes()
    assert Path(f"{certificate}.key").read_bytes() == Path(own.key).read_bytes()
    # Longer than a replica waits for a body, so that its answer is the one that comes.
    assert prepared.environment["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "8"
    assert prepared.environment["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"] == "6"


def test_folders_that_no_haproxy_uses_any_more_are_removed(folders: Path) -> None:
    long_ago = time.time() - 2 * ingress._LEFTOVER_S

    def folder(name: str, at: float = long_ago) -> Path:
        made = folders / name
        made.mkdir()
        os.utime(made, (at, at))
        return made

    left, used, new, foreign = folder("vlserve-a"), folder("vlserve-b"), folder("vlserve-c", time.time()), folder("x")
    lock = os.open(used, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        ingress._remove_leftovers()
    finally:
        os.close(lock)
    assert not left.exists()
    assert all(kept.exists() for kept in (used, new, foreign))


def test_replicas_stay_where_haproxy_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"node:__internal_head__": 1.0}}
    other = {"Alive": True, "NodeManagerAddress": "10.0.0.2", "Resources": {}}
    monkeypatch.setattr(ray, "nodes", lambda: [other, head])
    names = ["SERVE_CONTROLLER_ACTOR", "SERVE_PROXY_ACTOR-1234"]
    monkeypatch.setattr(ray.util, "list_named_actors", lambda all_namespaces: [{"name": name} for name in names])
    assert ingress.replica_machine_address() == ""
    names.append("SERVE_PROXY_ACTOR-fallback-1234")
    assert ingress.replica_machine_address() == "10.0.0.1"
