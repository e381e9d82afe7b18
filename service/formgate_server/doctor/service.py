"""The server itself: whether it can be reached, serves, and serves what is in the files."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from formgate_server.doctor.findings import Finding, fail, ok, warn
from formgate_server.settings import Settings

Connect = Callable[[str], grpc.Channel]
_GRPC, _HTTP = "grpc", "http"
_START = "start it, or say where it is; before the first start, say --without-server"
_HTTP_OK = 200
_HERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}  # noqa: S104 - it is looked up, not listened on
_DEGRADED = re.compile(r'^formgate_degraded\{.*?store="(\w+)".*?\} ([0-9.e+]+)$', re.MULTILINE)


def reachable(address: str) -> str:
    """Return HOST:PORT at which something that listens at ``address`` is reached from here."""
    host, _, port = address.rpartition(":")
    return f"{_HERE.get(host, host)}:{port}"


def health(address: str, connect: Connect, seconds: float) -> Iterator[Finding]:
    """Ask the server by gRPC whether it serves."""
    with closing(connect(address)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError as error:
            call: Any = error  # what a finished call raises is the call, too
            yield fail(_GRPC, f"{address} does not answer: {call.details()}", _START)
            return
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        yield ok(_GRPC, f"{address} serves")
    else:
        yield fail(_GRPC, f"{address} does not serve: it drains, or starts", "look again in a moment")


def certificate(address: str, given: Settings, seconds: float) -> Iterator[Finding]:
    """See by a handshake alone, for which no certificate of a client is needed, what is served."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whatever it is, it is only looked at
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), seconds) as raw,
            context.wrap_socket(raw, server_hostname=host.strip("[]")) as wrapped,
        ):
            shown = wrapped.getpeercert(binary_form=True) or b""
    except OSError as error:
        yield fail(_GRPC, f"{address} does not answer by TLS: {error.strerror or error}", _START)
        return
    served = x509.load_der_x509_certificate(shown)
    advice = "say --tls-ca-file (and a client certificate) to have its health asked, too"
    if given.tls_cert_file is None or served not in _in_file(given):
        yield warn(_GRPC, f"{address} serves another certificate than {given.tls_cert_file} holds", advice)
    else:
        yield ok(_GRPC, f"{address} serves the certificate of {given.tls_cert_file}; {advice}")


def _in_file(given: Settings) -> list[x509.Certificate]:
    assert given.tls_cert_file is not None  # noqa: S101 - the caller has seen to that
    try:
        return x509.load_pem_x509_certificates(given.tls_cert_file.read_bytes())
    except (OSError, ValueError):
        return []


def probes(address: str, seconds: float) -> Iterator[Finding]:
    """Ask /readyz, and whether a store is away by what /metrics says."""
    try:
        status, _ = _get(address, "/readyz", seconds)
        if status == _HTTP_OK:
            yield ok(_HTTP, f"{address} is ready")
        else:
            yield fail(_HTTP, f"{address} is not ready: it starts, drains or stands still", "look at its log")
        _, metrics = _get(address, "/metrics", seconds)
    except (OSError, http.client.HTTPException) as error:
        yield fail(_HTTP, f"{address} does not answer: {getattr(error, 'strerror', None) or error}", _START)
        return
    for store, value in _DEGRADED.findall(metrics):
        if float(value):
            yield warn(_HTTP, f"the server is degraded: {store}", "see docs/guarantees.md, when something is down")


def _get(address: str, path: str, seconds: float) -> tuple[int, str]:
    host, _, port = address.rpartition(":")
    with closing(http.client.HTTPConnection(host.strip("[]"), int(port), timeout=seconds)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
