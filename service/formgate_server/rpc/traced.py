"""Calls as spans: what the caller's trace is goes on here (W3C ``traceparent`` in the metadata)."""

from __future__ import annotations

from collections.abc import Callable, Collection

import structlog
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from formgate_server.core.authenticate import Authenticate
from formgate_server.core.model import Caller
from formgate_server.core.verdict import Verdict
from formgate_server.rpc.dispatch import Call, Dispatch
from formgate_server.rpc.line import Ending, Lines
from formgate_server.rpc.methods import Method

_FAULTS = frozenset({"INTERNAL", "UNAVAILABLE", "UNIMPLEMENTED"})
"""Codes that say that something is wrong here, and not with the call."""

_propagator = TraceContextTextMapPropagator()


class TracedDispatch(Dispatch):
    """A Dispatch of which every call is a span, and the log's lines name its trace."""

    def __init__(
        self,
        tracer: Tracer,
        authenticate: Authenticate,
        identify: Callable[[Collection[str]], Caller] | None,
        lines: TracedLines,
    ) -> None:
        super().__init__(authenticate, identify, lines)
        self._tracer = tracer

    async def __call__(self, method: Method, call: Call, payload: bytes) -> bytes:
        """See ``Dispatch``."""
        service, _, name = method.path[1:].partition("/")
        sent = {key: call.get(key) for key in ("traceparent", "tracestate") if key in call.metadata}
        with self._tracer.start_as_current_span(
            f"{service}/{name}",
            _propagator.extract(sent),
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
            record_exception=False,  # it is told by code and reason: a message may hold what a caller sent
            set_status_on_exception=False,
        ) as span:
            trace_id = f"{span.get_span_context().trace_id:032x}"
            with structlog.contextvars.bound_contextvars(trace_id=trace_id):
                return await super().__call__(method, call, payload)


class TracedLines(Lines):
    """Lines of which the span of the call says the same."""

    def tell(self, ending: Ending) -> None:
        """See ``Lines``."""
        span = get_current_span()
        if span.is_recording():
            _tell(span, ending)
        super().tell(ending)


def _tell(span: Span, ending: Ending) -> None:
    span.set_attribute("rpc.response.status_code", ending.code)
    if ending.code in _FAULTS:
        span.set_status(Status(StatusCode.ERROR, ending.reason))
    if ending.caller is not None:
        span.set_attribute("formgate.token_id", ending.caller.token_id)
    outcome = ending.outcome
    if isinstance(outcome, Verdict):
        span.set_attribute("formgate.reason", outcome.reason.name)
        span.set_attribute("formgate.degraded", outcome.degraded)
        if outcome.record is not None:
            span.set_attribute("formgate.key_id", outcome.record.key.key_id)
            span.set_attribute("formgate.account_id", outcome.record.key.account_id)
    else:
        span.set_attribute("formgate.reason", ending.reason)
        for each, times in (outcome or {}).items():
            span.set_attribute(f"formgate.checks.{each.name}", times)
