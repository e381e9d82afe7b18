"""For kubelets and Prometheus: /livez, /readyz and /metrics over HTTP, in a thread of their own."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from formgate_server import metrics

_log = structlog.get_logger("formgate.http")
_TEXT = "text/plain; charset=utf-8"
_MOST_CONNECTIONS = 64
_LONGEST_CONNECTION_SECONDS = 30.0
_NO_FILE_SECONDS = 0.1


class HttpServer:
    """Answers GET and HEAD of the three paths. It answers though the event loop may not: that is what livez asks."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        live: Callable[[], bool],
        ready: Callable[[], bool],
        registry: CollectorRegistry = metrics.registry,
    ) -> None:
        """Listen on ``port`` (0: any free one), and show ``registry``. Raises OSError where the port is taken."""
        shown = registry

        class Handler(_Handler):
            registry = shown
            probes = {"/livez": live, "/readyz": ready}  # noqa: RUF012 - never changed

        class Server(_Server):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            message = f"can not listen on {host}:{port}: {error.strerror}"
            raise OSError(message) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    """Connections are few and short, whoever makes them: each has a thread and a file of this process."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128  # a probe does not wait for its SYN to be sent again

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[socket.socket, float] = {}
        super().__init__(address, handler)

    def get_request(self) -> Any:  # noqa: ANN401 - the library's
        try:
            return super().get_request()
        except OSError:  # such as: too many open files. Who waits to be let in goes on waiting: without end, else
            time.sleep(_NO_FILE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the library's
        while len(self._open) >= _MOST_CONNECTIONS:  # the oldest: a probe is answered long before it is that
            self._end(next(iter(self._open)))
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """End what has had its time; called twice a second."""
        latest = time.monotonic() - _LONGEST_CONNECTION_SECONDS
        for connection, began in list(self._open.items()):
            if began < latest:
                self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        """Have the thread of a connection find that it has ended."""
        self._open.pop(connection, None)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - the library's
        self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 - the library's
        error = sys.exc_info()[1]
        if isinstance(error, OSError | ValueError):  # cut off, or no HTTP: strangers may fill no log
            _log.debug("http", line=type(error).__name__)
        else:
            _log.exception("an answer over HTTP failed")


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    probes: dict[str, Callable[[], bool]]
    timeout = 5  # a client that says nothing holds no thread for longer
    protocol_version = "HTTP/1.1"
    server_version = "formgate"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            try:
                encode, content_type = choose_encoder(self.headers.get("accept", ""))
            except (TypeError, ValueError):  # it asks for a version that is none
                encode, content_type = choose_encoder("")
            self._answer(200, content_type, encode(self.registry))
        elif path in self.probes:
            good = self.probes[path]()
            self._answer(200 if good else 503, _TEXT, b"ok\n" if good else b"no\n")
        else:
            self._answer(404, _TEXT, b"there are /livez, /readyz and /metrics\n")

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        _log.debug("http", line=format % args)
