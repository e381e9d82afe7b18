"""Traces as a collector gets them: a real server, and a receiver of the test's own that speaks OTLP."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from formgate.v1.accounts_pb2 import CreateAccountRequest
from formgate.v1.authorization_pb2 import BatchCheckKeysRequest, CheckKeyRequest
from formgate.v1.keys_pb2 import CreateKeyRequest, GetKeyRequest
from tests.support.client import Client
from tests.support.server import Server, clean_environment, eventually

pytest.importorskip("opentelemetry.sdk", reason="the extra `tracing` is not installed")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)  # type: ignore[no-untyped-call]
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - its name in the proto
        """Take spans."""
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Any]:
        """All spans so far."""
        resources = [each for request in self.requests for each in request.resource_spans]
        return [span for each in resources for scope in each.scope_spans for span in scope.spans]

    def of_trace(self, name: str) -> dict[str, Any]:
        """Return the spans, by name, of the trace that has a span of this name."""
        (first,) = [span for span in self.spans if span.name == name]
        return {span.name: span for span in self.spans if span.trace_id == first.trace_id}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A receiver."""
    made = Collector()
    yield made
    made.server.stop(None)


@pytest.fixture(scope="module")
def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that sends its traces there, every few moments."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    options = ("--tracing", "--log-allowed-sample", "1", "--log-format", "json")
    with Server(tmp_path_factory.mktemp("traced"), *options, environment=environment) as made:
        yield made


def attributes(span: Any) -> dict[str, Any]:
    """Return a span's attributes."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_check_goes_on_in_its_callers_trace(server: Server, collector: Collector) -> None:
    """Call, charge and database are spans of the trace that ``traceparent`` names; the log's line names it, too.

    Neither the key nor the token is in any of it.
    """
    with closing(Client(server.address, server.token)) as manager:
        manager(CreateAccountRequest(account_id="acme"))
        made = manager(CreateKeyRequest(account_id="acme"))
        parent = (("traceparent", f"00-{TRACE}-{SPAN}-01"),)
        with closing(Client(server.address, server.token, parent)) as checker:
            assert checker(CheckKeyRequest(key=made.secret)).allowed
    name = "formgate.v1.AuthorizationService/CheckKey"
    eventually(lambda: name in {span.name for span in collector.spans}, 20, "the span")
    spans = collector.of_trace(name)
    call = spans[name]
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, SPAN)
    assert set(spans) == {name, "charge", "database lookup"}
    assert all(span.parent_span_id == call.span_id for each, span in spans.items() if each != name)
    told = attributes(call)
    assert told["formgate.reason"] == "OK"
    assert told["formgate.key_id"] == made.key.key_id
    assert told["rpc.response.status_code"] == "OK"
    assert attributes(spans["charge"])["formgate.charge.outcome"] == "charged"
    assert attributes(spans["database lookup"])["db.system.name"] == "sqlite"
    assert TRACE in server.log
    whole = b"".join(request.SerializeToString() for request in collector.requests)
    assert made.secret.encode() not in whole
    assert server.token.encode() not in whole


def test_what_is_no_traceparent_begins_a_trace(server: Server, collector: Collector) -> None:
    """Nothing that a caller sends there breaks a call; a change is a span with its transaction; so is a denial's."""
    for broken in ("", "00-0-0-01", f"00-{'0' * 32}-{SPAN}-01", "x" * 3_000):
        with closing(Client(server.address, server.token, (("traceparent", broken),))) as checker:
            assert len(checker(BatchCheckKeysRequest(requests=[CheckKeyRequest(key="x")])).results) == 1
    with closing(Client(server.address, server.token)) as manager:
        refusal = manager.refusal(GetKeyRequest(key_id="key_1"))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    name = "formgate.v1.AuthorizationService/BatchCheckKeys"
    batches = eventually(
        lambda: found if len(found := [span for span in collector.spans if span.name == name]) == 4 else None,
        20,
        "the spans",
    )
    assert len({span.trace_id for span in batches}) == 4
    assert attributes(batches[0])["formgate.checks.MALFORMED_KEY"] == 1
    get_key = "formgate.v1.KeyService/GetKey"
    eventually(lambda: get_key in {span.name for span in collector.spans}, 20, "the span")
    assert attributes(collector.of_trace(get_key)[get_key])["rpc.response.status_code"] == "NOT_FOUND"


def test_what_goes_on_by_itself_is_no_trace(server: Server, collector: Collector) -> None:
    """Every span belongs to a call: what the server does by itself, again and again, would be nothing but noise."""
    calls = {span.trace_id for span in collector.spans if span.name.startswith("formgate.v1.")}
    assert {span.trace_id for span in collector.spans} <= calls
    resource = collector.requests[0].resource_spans[0].resource
    said = attributes(resource)
    assert said["service.name"] == "formgate"
    assert said["deployment.environment.name"] == "test"


def test_a_collector_that_is_away_costs_nothing(tmp_path: Path) -> None:
    """Calls are answered, and the server ends in time, though nobody takes its spans."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with Server(tmp_path, "--tracing", environment=environment) as server, closing(Client(server.address)) as stranger:
        assert stranger.refusal(CheckKeyRequest(key="x")).code is grpc.StatusCode.UNAUTHENTICATED


def test_without_tracing_nothing_of_it_is_there() -> None:
    """A server that does not trace imports nothing of OpenTelemetry, which need not be installed."""
    code = "import sys, formgate_server.server; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_tracing_without_opentelemetry_says_what_to_do(tmp_path: Path) -> None:
    """It does not start, and does not serve without traces that were asked for."""
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('not here')\n")
    command = "import sys; sys.path.insert(0, sys.argv.pop(1)); from formgate_server.cli import main; main()"
    served = ("serve", "--data", str(tmp_path / "d"), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--tracing")
    ended = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path), *served],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=clean_environment(),
    )
    assert ended.returncode == 1
    assert "pip install 'formgate-server[tracing]'" in ended.stderr
