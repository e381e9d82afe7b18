"""``envoy.service.auth.v3.Authorization``: Envoy asks for every request, and its route says what that needs.

Envoy shows a service token of its own, as every caller does: ``initial_metadata`` of its ``grpc_service``. Whatever we
can not decide is a gRPC error, which Envoy denies (``failure_mode_allow: false``): an answer without a status would be
a yes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.rpc import code_pb2

from formgate_server import metrics
from formgate_server.core.check_key import CheckKey
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.model import Caller, ServiceRole
from formgate_server.core.policy import HttpDenial
from formgate_server.core.ports import Clock
from formgate_server.core.verdict import Verdict
from formgate_server.rpc.methods import Method
from formgate_server.wire.envoy import ext_authz_pb2 as pb
from formgate_server.wire.gateways import told
from formgate_server.wire.gateways.requirement import Ambiguous, Request, Requirement, Requirements

_PATH = "/envoy.service.auth.v3.Authorization/Check"
_CHECKERS = frozenset({ServiceRole.CHECKER, ServiceRole.MANAGER})
_OVERWRITE = 2
_CODES = {401: code_pb2.UNAUTHENTICATED, 429: code_pb2.RESOURCE_EXHAUSTED}


class ExtAuthz:
    """Answers Envoy."""

    def __init__(self, check_key: CheckKey, clock: Clock) -> None:
        self._check_key = check_key
        self._clock = clock
        self._requirements = Requirements()

    def methods(self) -> Iterator[Method]:
        """Yield what it answers."""
        metrics.calls_of(_PATH)  # counted, and shown, from the start
        yield Method(_PATH, pb.CheckRequest, _CHECKERS, self.check)

    async def check(self, request: pb.CheckRequest, caller: Caller) -> tuple[bytes, Verdict | None]:
        """Decide a request. Raises InvalidArgumentError where Envoy's configuration is not what it must be."""
        extensions = request.attributes.context_extensions
        requirement = self._requirements(frozenset(extensions.items()), extensions.items)
        asked = _request(request.attributes)
        query = requirement.query(asked)
        if isinstance(query, Ambiguous):
            return _denied(told.ambiguous(query), code_pb2.INVALID_ARGUMENT).SerializeToString(), None
        began = perf_counter()
        verdict = await self._check_key(query, caller)
        metrics.decided(verdict.reason, perf_counter() - began, degraded=verdict.degraded)
        requirement.heed(verdict)
        response = self._allowed(verdict, requirement, asked) if verdict.allowed else self._denied(verdict)
        _note(response, verdict)
        return response.SerializeToString(), verdict

    def _allowed(self, verdict: Verdict, requirement: Requirement, asked: Request) -> pb.CheckResponse:
        assert verdict.record is not None, "who is allowed is known"  # noqa: S101 - for the type checker
        all_of_it = told.identity(verdict.record.key)
        identity = [(name, value) for name, value in all_of_it if value]
        # Ours, although Envoy may not have shown that the client sent one, and all else by such a name that it has.
        removed = {told.TOKEN, *(name for name, _ in all_of_it), *filter(told.is_ours, asked.headers)}
        removed -= {name for name, _ in identity}
        response = pb.CheckResponse()
        response.status.code = code_pb2.OK
        allowed = response.ok_response
        _add(allowed.headers, identity)
        allowed.headers_to_remove.extend(sorted(removed.union(requirement.key_headers)))
        allowed.query_parameters_to_remove.extend(requirement.key_parameters)
        _add(allowed.response_headers_to_add, told.rate_limit(verdict.limits, self._clock.now()))
        return response

    def _denied(self, verdict: Verdict) -> pb.CheckResponse:
        denial = told.denial(verdict, self._clock.now())
        return _denied(denial, _CODES.get(denial.status, code_pb2.PERMISSION_DENIED))


def _request(attributes: pb.AttributeContext) -> Request:
    """Read what Envoy tells of the request. Raises InvalidArgumentError."""
    http = attributes.request.http
    if not http.method or not http.path:
        raise InvalidArgumentError("attributes.request.http", "is missing")
    headers = dict(http.headers) or _joined(http.header_map.headers)
    return Request(http.method, http.path, headers, attributes.source.address.socket_address.address)


def _joined(raw: Iterable[pb.HeaderValue]) -> dict[str, str]:
    """Return raw headers by name."""
    headers: dict[str, str] = {}
    for header in raw:
        name, value = header.key.lower(), header.value or header.raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _denied(denial: HttpDenial, code: int) -> pb.CheckResponse:
    response = pb.CheckResponse()
    response.status.code = code
    denied = response.denied_response
    denied.status.code = denial.status
    _add(denied.headers, denial.headers)
    denied.body = denial.body.decode()
    return response


def _add(options: RepeatedCompositeFieldContainer[pb.HeaderValueOption], headers: Iterable[tuple[str, str]]) -> None:
    for name, value in headers:
        option = options.add(append_action=_OVERWRITE)
        option.header.key, option.header.value = name, value


def _note(response: pb.CheckResponse, verdict: Verdict) -> None:
    """Tell access logs and later filters what was decided: %DYNAMIC_METADATA(envoy.filters.http.ext_authz:reason)%."""
    noted = response.dynamic_metadata.fields
    noted["reason"].string_value = verdict.reason.name
    if verdict.record is not None:
        noted["key_id"].string_value = verdict.record.key.key_id
        noted["account_id"].string_value = verdict.record.key.account_id
    if verdict.degraded:
        noted["degraded"].bool_value = True
