"""The service's address, and a check that its port is free."""

from __future__ import annotations

import contextlib
import errno
import socket

import psutil

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ServeError


def service_address_of(config: ServeConfig) -> str:
    """Return the URL under which this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"{'https' if config.tls.is_active else 'http'}://{format_host_and_port(host, config.port)}"


def format_host_and_port(host: str, port: int) -> str:
    """Format ``HOST:PORT``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_port_free(host: str, port: int, setting: str = "serve.port") -> None:
    """Raise ServeError if something listens on a port. Serve's own proxy shares ports and would not notice.

    Raises:
        ServeError: the port is in use, or this process may not listen there.
    """
    try:
        family, kind, protocol, _, socket_address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ServeError(f"host {host!r} is not an address of this machine ({error}); use 127.0.0.1") from None
    with socket.socket(family, kind, protocol) as listener:
        # Without this, connections of a service that just ended keep its port for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(socket_address)
            listener.listen(1)
        except OSError as error:
            reason = {
                errno.EADDRINUSE: f"is in use{_describe_listeners(port)}; stop what listens there, or choose another "
                f"with {setting}=...",
                errno.EACCES: f"needs more rights; choose one above 1023 with {setting}=...",
                errno.EADDRNOTAVAIL: "cannot be opened on that host; set serve.host=127.0.0.1",
            }.get(error.errno or 0, f"cannot be opened ({error}); choose another with {setting}=...")
            raise ServeError(f"port {port} on {host} {reason}") from None


def _describe_listeners(port: int) -> str:
    """Describe the processes that listen at a port, as far as this user may see them."""
    with contextlib.suppress(psutil.Error):
        pids = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
        }
        names = [f"{psutil.Process(pid).name()} (process {pid})" for pid in sorted(pids)]
        return " by " + " and ".join(names) if names else ""
    return ""
