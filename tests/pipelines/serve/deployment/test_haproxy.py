"""HAProxy with the configuration that Serve writes, as mended: a real one before a small application, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.serve import tls
from pipelines.serve.deployment import haproxy, ingress
from pipelines.serve.deployment.haproxy import HAProxyOptions, harden_configuration
from tests.pipelines.serve.server import self_signed, served

pytestmark = pytest.mark.skipif(haproxy.find_haproxy() is None, reason="there is no HAProxy here")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def written_by_serve(folder: Path, port: int, server: str) -> Path:
    """The file that Serve writes for one replica at ``server``, in a folder for a node below ``folder``."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    node = folder / "node"
    node.mkdir()
    file, (host, _, replica) = node / "haproxy.cfg", server.rpartition(":")
    api = HAProxyApi(
        HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=port), is_head=True, has_received_routes=True,
            socket_path=str(node / "admin"), metrics_socket_path=str(node / "log"), server_state_base=str(node),
            server_state_file=str(node / "state"), timeout_client_s=2, timeout_server_s=5,
        ),
        {"one": BackendConfig("one", "/", servers=[ServerConfig("one", host, int(replica))], app_name="one")},
        str(file),
    )  # fmt: skip
    asyncio.run(asyncio.to_thread(api._generate_config_file_internal))
    return file


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers what it was asked, and where it thinks that this comes from."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    received = {"client": scope["client"][0], "scheme": scope["scheme"], "headers": headers, "bytes": len(body)}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(received).encode()})


@contextmanager
def running(folder: Path, server: str, **options: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """HAProxy as Serve starts it, and the port that it listens at."""
    port = free_port()
    file = written_by_serve(folder, 1, server)
    environment = os.environ | {haproxy.OPTIONS_VARIABLE: HAProxyOptions(bind=f"127.0.0.1:{port}", **options).dump()}
    command = [sys.executable, haproxy.__file__, "-db", "-f", str(file), "-dR"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.05)
        yield process, port
    finally:
        process.kill()
        process.communicate()


def ask(port: int, method: str = "GET", path: str = "/", body: bytes = b"", **headers: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body or None, named)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    return json.loads(answer.read())


def test_haproxy_listens_on_one_address_with_a_private_socket(tmp_path: Path) -> None:
    with served(echo) as server, running(tmp_path, server, metrics="") as (process, port):
        listening = {c.laddr for c in psutil.Process(process.pid).net_connections("tcp") if c.status == "LISTEN"}
        assert listening == {("127.0.0.1", port)}
        assert (tmp_path / "node" / "admin").stat().st_mode & 0o777 == 0o600
        descriptor = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        assert ask(port)["client"] == "127.0.0.1"


def test_haproxy_metrics_are_at_the_configured_address(tmp_path: Path) -> None:
    metrics = free_port()
    with served(echo) as server, running(tmp_path, server, metrics=f"127.0.0.1:{metrics}") as (process, port):
        listening = {c.laddr for c in psutil.Process(process.pid).net_connections("tcp") if c.status == "LISTEN"}
        assert listening == {("127.0.0.1", port), ("127.0.0.1", metrics)}
        connection = http.client.HTTPConnection("127.0.0.1", metrics, timeout=30)
        connection.request("GET", "/metrics")
        shown = connection.getresponse().read().decode()
        for name in ("request_errors_total", "current_sessions"):
            assert f'haproxy_frontend_{name}{{proxy="http_frontend"}}' in shown


def test_headers_of_clients_cannot_forge_origin_or_change_serve(tmp_path: Path) -> None:
    with served(echo) as server, running(tmp_path, server, metrics="") as (_, port):
        received = ask(
            port, x_forwarded_for="9.9.9.9", x_forwarded_proto="https", forwarded="for=9.9.9.9",
            x_request_timeout_seconds="0", x_request_disconnect_disabled="?1", authorization="Bearer key",
        )  # fmt: skip
    assert (received["client"], received["scheme"]) == ("127.0.0.1", "http")
    passed = received["headers"]
    assert passed["x-forwarded-for"] == "127.0.0.1"
    assert passed["authorization"] == "Bearer key"
    assert not passed.keys() & {"forwarded", "x-request-timeout-seconds", "x-request-disconnect-disabled"}


def test_it_encrypts_and_says_so(tmp_path: Path) -> None:
    own = self_signed(tmp_path)
    certificate, key = own.files
    (tmp_path / "service.pem").symlink_to(certificate)
    (tmp_path / "service.pem.key").symlink_to(key)
    where = str(tmp_path / "service.pem")
    with served(echo) as server, running(tmp_path, server, metrics="", certificate=where) as (_, port):
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=30, context=tls.ssl_context_for_own_certificate(own)
        )
        connection.request("GET", "/", headers={"x-forwarded-proto": "http"})
        assert json.loads(connection.getresponse().read())["scheme"] == "https"
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(port)


def answer_to(port: int, *sent: bytes) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of what comes back for some bytes that do not end."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        for part in sent:
            client.sendall(part)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_heads_and_bodies_that_do_not_end_stop_here(tmp_path: Path) -> None:
    begun = b"POST / HTTP/1.1\r\nhost: localhost\r\n"
    with served(echo) as server, running(tmp_path, server, metrics="", request_s=1) as (_, port):
        assert answer_to(port, begun)[0] == 408
        assert answer_to(port, begun, b"x: " + b"a" * 20_000)[0] == 400
        assert answer_to(port, b"no HTTP\r\n\r\n")[0] == 400
        # What has a whole head is answered in the service's own form.
        status, body, _ = answer_to(port, begun, b"content-length: 1000\r\n\r\n", b"x" * 999)
        assert (status, json.loads(body)) == (408, {"error": haproxy_error(408)})
        for given in (0, 1, 16_384, 3_000_000):
            assert ask(port, "POST", body=b"x" * given)["bytes"] == given


def test_endless_head_is_bounded_in_the_kernel(tmp_path: Path) -> None:
    sent = 0
    with served(echo) as server, running(tmp_path, server, metrics="") as (_, port):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client, contextlib.suppress(OSError):
            client.sendall(b"GET / HTTP/1.1\r\nx: ")
            while sent < 100 << 20:
                sent += client.send(b"a" * (1 << 16))
        assert ask(port)["bytes"] == 0
    assert sent < 16 << 20


def test_idle_connections_end_before_replaced_replicas(tmp_path: Path) -> None:
    text = harden_configuration(
        written_by_serve(tmp_path, 1, "127.0.0.1:2").read_text(), HAProxyOptions(keep_alive_s=3), tmp_path
    )
    assert [line.split() for line in text.splitlines() if "http-keep-alive" in line] == [
        ["timeout", "http-keep-alive", "3s"]
    ]
    assert HAProxyOptions.keep_alive_s < ingress._DRAINING_S


def test_streamed_pieces_pass_at_once_and_disconnects_reach_the_replica(tmp_path: Path) -> None:
    heard, gone = threading.Event(), threading.Event()

    async def in_pieces(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        assert await asyncio.to_thread(heard.wait, 60)
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    with served(in_pieces) as server, running(tmp_path, server, metrics="") as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.read1(100) == b"first", "while the rest is not sent yet"
        heard.set()
        answer.close()
        connection.close()
        assert gone.wait(60)


def haproxy_error(status: int) -> dict[str, str]:
    _, code, message = haproxy._ERRORS[status]
    return {"code": code, "message": message}


def test_without_a_replica_it_says_so_and_when_to_come_back(tmp_path: Path) -> None:
    with running(tmp_path, f"127.0.0.1:{free_port()}", metrics="") as (_, port):
        status, body, headers = answer_to(port, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert (status, json.loads(body)["error"], headers["retry-after"]) == (503, haproxy_error(503), "1")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's message about a parent is Linux's")
def test_haproxy_ends_with_its_parent(tmp_path: Path) -> None:
    port, ended = free_port(), f"import os, signal, subprocess, sys; p = subprocess.Popen({sys.executable!r}.split()"
    options = HAProxyOptions(bind=f"127.0.0.1:{port}", metrics="")
    with served(echo) as server:
        file = written_by_serve(tmp_path, 1, server)
        ended += f" + [{haproxy.__file__!r}, '-db', '-f', {str(file)!r}]); print(p.pid, flush=True); signal.pause()"
        parent = subprocess.Popen(
            [sys.executable, "-c", ended], env=os.environ | {haproxy.OPTIONS_VARIABLE: options.dump()},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate()
        child.wait(30)
    assert not psutil.pid_exists(child.pid) or child.status() == psutil.STATUS_ZOMBIE


def test_unknown_configuration_of_serve_is_refused(tmp_path: Path) -> None:
    text = written_by_serve(tmp_path, 1, "127.0.0.1:2").read_text()
    assert harden_configuration(text, HAProxyOptions(), tmp_path).count("bind") == 2, (
        "the service's and the metrics', for others to guard"
    )
    with pytest.raises(ValueError, match=r"0 places like .*stats socket.*serve\.ingress=python"):
        harden_configuration(text.replace("stats socket", "stats sock"), HAProxyOptions(), tmp_path)
