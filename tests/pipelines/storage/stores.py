"""Stores on loopback for tests: an S3-compatible one that checks signatures, and plain HTTP with ranges."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
from flask import Flask, Response, abort, send_file
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

_EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@dataclass
class Faults:
    """Spoils the answers to some requests for tars, as a busy store does over a bad line.

    Attributes:
        kinds: the faults of the next GETs and HEADs, one each: a status, "cut" for half a body, or "" for none.
        seen: how often each was met.
    """

    app: Any
    kinds: Iterator[int | str] = field(default_factory=lambda: iter(()))
    seen: Counter[int | str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        kind: int | str = ""
        if environ["REQUEST_METHOD"] in ("GET", "HEAD") and environ["PATH_INFO"].endswith(".tar"):
            with self._lock:
                kind = next(self.kinds, "")
                if kind:
                    self.seen[kind] += 1
        if isinstance(kind, int):
            start_response(f"{kind} Fault", [("Content-Type", "text/plain"), ("Content-Length", "0")])
            return [b""]
        body = self.app(environ, start_response)
        return self._halved(body) if kind == "cut" else body

    @staticmethod
    def _halved(body: Iterable[bytes]) -> Iterator[bytes]:
        whole = b"".join(body)  # the announced length stays
        yield whole[: len(whole) // 2]


@dataclass(frozen=True)
class S3Store:
    """A running S3-compatible store.

    Attributes:
        environment: the variables with which it may be used.
        client: boto3's, as another writer would have.
    """

    environment: dict[str, str]
    faults: Faults
    client: Any


@contextmanager
def s3_store() -> Iterator[S3Store]:
    """An S3-compatible store with one user, who may do everything; nobody else may do anything."""
    faults = Faults(DomainDispatcherApplication(create_backend_app))
    with _served(faults, MotoRequestHandler) as endpoint:
        new = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        root = boto3.client("iam", **new, aws_access_key_id="root", aws_secret_access_key="root")
        root.create_user(UserName="trainer")
        key = root.create_access_key(UserName="trainer")["AccessKey"]
        root.put_user_policy(UserName="trainer", PolicyName="all", PolicyDocument=json.dumps(_EVERYTHING))
        httpx.post(f"{endpoint}/moto-api/reset-auth", content=b"0").raise_for_status()
        environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_EC2_METADATA_DISABLED": "true",  # nobody to ask for credentials where there are none
            "AWS_MAX_ATTEMPTS": "1",  # the trying again that is tested is ours
        }
        client = boto3.client(
            "s3", **new, aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"]
        )
        try:
            yield S3Store(environment, faults, client)
        finally:
            httpx.post(f"{endpoint}/moto-api/reset-auth", content=b"inf").raise_for_status()
            # What it stores is the process's, and the next store of the process begins empty.
            httpx.post(f"{endpoint}/moto-api/reset").raise_for_status()


@contextmanager
def http_store(folder: Path) -> Iterator[tuple[str, Faults]]:
    """A folder served read-only, with listings, ETags and ranges; yields its URI, and what spoils it."""
    app = Flask("store")

    @app.get("/tars/", defaults={"name": ""}, strict_slashes=False)
    @app.get("/tars/<path:name>")
    def serve(name: str) -> Response:
        path = folder / name
        if path.is_dir():
            links = (f'<a href="{entry.name}{"/" * entry.is_dir()}">{entry.name}</a>' for entry in path.iterdir())
            return Response("\n".join(links), mimetype="text/html")
        if not path.is_file():
            abort(404)
        if name.startswith("secret"):
            abort(403)
        return send_file(path, conditional=True)

    faults = Faults(app)
    with _served(faults, WSGIRequestHandler) as endpoint:
        yield f"{endpoint}/tars", faults


@contextmanager
def _served(app: Any, handler: type[WSGIRequestHandler]) -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
