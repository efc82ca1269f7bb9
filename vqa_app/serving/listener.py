"""Listening sockets, their addresses, and a server that stops within two seconds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from vqa_app.errors import UsageError

GRACE = 1
"""Seconds that running requests have to finish after Ctrl-C."""
_PORTS_TO_TRY = 50


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Clients can connect at once, and wait for the application.

    Raises:
        UsageError: The port is taken (the message names a free one), or the host is invalid.
    """
    try:
        return _bind(host, port)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            reason = "taken" if error.errno == errno.EADDRINUSE else "not permitted"
            free = _next_free(host, max(port, 1023))
            raise UsageError(
                f"Port {port} is {reason}.",
                f"Port {free} is free: --port {free}." if free else "Choose another with --port.",
            ) from error
        raise UsageError(f"Cannot listen on {host}: {error.strerror}.", "Check --host.") from error


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _next_free(host: str, port: int) -> int | None:
    for candidate in range(port + 1, min(port + _PORTS_TO_TRY, 65536)):
        with contextlib.suppress(OSError), _bind(host, candidate):
            return candidate
    return None


def is_loopback(host: str) -> bool:
    """Return whether a host name or address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(listener: socket.socket, root_path: str = "") -> str:
    """Return the URL of the server for clients on this machine."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1" if listener.family == socket.AF_INET else "::1"
    return _address(host, port, root_path)


def address_for_others(listener: socket.socket, root_path: str = "") -> str | None:
    """Return the URL for other machines, or None if they cannot reach the server.

    They can if it listens on all interfaces and this machine has a network.
    """
    host, port = listener.getsockname()[:2]
    own = _own_host(listener.family) if ipaddress.ip_address(host).is_unspecified else None
    return _address(own, port, root_path) if own else None


def _own_host(family: socket.AddressFamily) -> str | None:
    """Return this machine's address on its network, or None without a network.

    It is the source address that the system picks for a datagram, which is never sent. The
    destinations are reserved for documentation (RFC 5737, RFC 3849).
    """
    destination = "192.0.2.1" if family == socket.AF_INET else "2001:db8::1"
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((destination, 9))
        return str(probe.getsockname()[0])
    return None


def _address(host: str, port: int, root_path: str) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{root_path}/"


class _Server(uvicorn.Server):
    """A uvicorn server that calls `stop` on a signal, before it waits for running requests."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop running work, then shut down as uvicorn does."""
        self._stop()
        super().handle_exit(sig, frame)


def _should_log(record: logging.LogRecord) -> bool:
    """Return whether a log record of uvicorn reports a real error.

    Streams that the shutdown cuts off do not count, nor do requests for an unknown stream, which
    Gradio refuses after it has begun its response.
    """
    error = record.exc_info[1] if record.exc_info else None
    cause = error.__cause__ if error else None
    unknown_stream = isinstance(cause, HTTPException) and cause.status_code == 404
    cut = isinstance(error, asyncio.CancelledError) or "Cancel" in record.getMessage()
    return not unknown_stream and not cut


def serve(
    app: ASGIApp,
    listener: socket.socket | None,
    stop: Callable[[], None],
    start: Callable[[], bool] = lambda: True,
) -> None:
    """Serve until Ctrl-C or SIGTERM, or until `start` fails.

    Args:
        app: The ASGI application.
        listener: A listening socket, as `listen` returns it; None listens nowhere.
        stop: Ends running work when the signal arrives, so that open streams do not hold up the
            shutdown.
        start: Runs in a thread of its own, while the server answers already; the server ends if
            this returns False.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        proxy_headers=False,
    )
    logging.getLogger("uvicorn.error").addFilter(_should_log)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after its shutdown
        server = _Server(config, stop)

        def start_or_end() -> None:
            server.should_exit = not start() or server.should_exit

        threading.Thread(target=start_or_end, name="start", daemon=True).start()
        server.run(sockets=[] if listener is None else [listener])
