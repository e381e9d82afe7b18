"""Traces, by OpenTelemetry: spans are sent by OTLP over gRPC, to where the standard ``OTEL_…`` environment says.

Imported only where they are wanted: without, OpenTelemetry need not be there (docs/operations/monitoring.md#traces).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from formgate_server.core.authenticate import Authenticate
from formgate_server.core.model import Caller
from formgate_server.core.ports import Limiter
from formgate_server.rpc.dispatch import Dispatch
from formgate_server.rpc.traced import TracedDispatch, TracedLines
from formgate_server.storage.sql.engine import Database
from formgate_server.storage.sql.parts import Parts
from formgate_server.storage.traced import TracedDatabase, TracedLimiter

_FLUSH_MILLISECONDS = 2_000


class Tracing:
    """A tracer, the thread that sends what it has made, and all that it traces."""

    def __init__(self) -> None:
        ours = version("formgate-server")
        said = OTELResourceDetector().detect()  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
        ourselves = Resource({"service.name": "formgate", "service.version": ours})
        self._provider = TracerProvider(resource=Resource.create().merge(ourselves).merge(said))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("formgate", ours)

    def database(self, parts: Parts) -> Database:
        """Return a Database of which every use is a span."""
        return TracedDatabase(parts, self._tracer)

    def limiter(self, limiter: Limiter) -> Limiter:
        """Return a Limiter whose charges are spans."""
        return TracedLimiter(limiter, self._tracer)

    def dispatch(
        self,
        authenticate: Authenticate,
        identify: Callable[[Collection[str]], Caller] | None,
        *,
        allowed_sample: float,
        per_second: float,
    ) -> Dispatch:
        """Return a Dispatch of which every call is a span; the rest goes to its ``Lines``."""
        lines = TracedLines(allowed_sample=allowed_sample, per_second=per_second)
        return TracedDispatch(self._tracer, authenticate, identify, lines)

    def close(self) -> None:
        """Send what is left, if that can be done soon, and end."""
        self._provider.force_flush(_FLUSH_MILLISECONDS)
        self._provider.shutdown()
