"""What gateways that ask over HTTP are answered, whatever speaks HTTP: nginx, Traefik and Caddy ask ``GET /check?…``.

The query is the route's requirement, written in the gateway's configuration. What the end user sends is read only where
that says so: the credential, and by ``X-Forwarded-Method`` and ``X-Forwarded-Uri``, which the gateway sets, what was
asked for. The gateway itself shows a service token in ``X-Formgate-Token``.

nginx can pass no denial on but its status. With ``denied=403`` in the query the policy's answer is in
``X-Formgate-Denial``, and ``GET /denial?`` and that gives it back.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl

import structlog

from formgate_server import metrics
from formgate_server.core.check_key import CheckKey
from formgate_server.core.errors import FormgateError, InvalidArgumentError, UnavailableError
from formgate_server.core.model import Caller, ServiceRole
from formgate_server.core.policy import HttpDenial
from formgate_server.core.ports import Clock
from formgate_server.core.verdict import Verdict
from formgate_server.rpc.dispatch import Call, Dispatch
from formgate_server.rpc.line import Ending
from formgate_server.wire.auth_http import is_name
from formgate_server.wire.gateways import told
from formgate_server.wire.gateways.requirement import Ambiguous, Request, Requirements


class Asked(NamedTuple):
    """What a gateway asks for, as metrics and the log name it, and who may."""

    path: str
    roles: frozenset[ServiceRole]


_log = structlog.get_logger("formgate.gateways")
_CHECKERS = frozenset({ServiceRole.CHECKER, ServiceRole.MANAGER})
_LONGEST_SECONDS = 5.0
_TOLD_EVERY_SECONDS = 10.0
_MOST_PARAMETERS = 100
_CHECK = Asked("/formgate.gateways.Http/Check", _CHECKERS)
_CALLED = {"/check": _CHECK, "/denial": Asked("/formgate.gateways.Http/Denial", _CHECKERS)}
_DENIED = ("denied", "403")
_JSON = (("content-type", "application/json"),)


def _error(status: int, reason: str, message: str, *headers: tuple[str, str]) -> HttpDenial:
    body = json.dumps({"error": {"reason": reason, "message": message}})
    return HttpDenial(status, (*_JSON, *headers), body.encode())


_NOT_FOUND = _error(404, "NOT_FOUND", "There are /check and /denial.")
_MISCONFIGURED = _error(500, "GATEWAY_MISCONFIGURED", "The gateway is not set up to ask for this.")
_INTERNAL = _error(500, "INTERNAL", "It could not be decided.")
_UNAVAILABLE = _error(503, "UNAVAILABLE", "It can not be decided for now. Try again.", ("retry-after", "1"))


class Answers:
    """Decides what gateways ask. Nothing but status 200 of ``/check`` is a yes."""

    def __init__(self, dispatch: Dispatch, check_key: CheckKey, clock: Clock) -> None:
        self._dispatch = dispatch
        self._check_key = check_key
        self._clock = clock
        self._requirements = Requirements()
        self._told = 0.0

    async def __call__(self, target: str, headers: Mapping[str, str], peer: str = "") -> HttpDenial:
        """Return the answer to ``GET target``; ``headers`` by name in lower case, several values joined by commas."""
        path, _, query = target.partition("?")
        called = _CALLED.get(path)
        if called is None:
            return _NOT_FOUND
        began = time.perf_counter()
        call = Call({"authorization": f"Bearer {headers.get(told.TOKEN, '')}"}, peer=lambda: peer)
        ending = Ending(called, call)
        try:
            async with asyncio.timeout(_LONGEST_SECONDS):
                ending.caller = caller = await self._dispatch.caller(call, called.roles)
                checks = called is _CHECK
                answer, ending.outcome = await self._check(query, headers, caller) if checks else _unwrapped(query)
        except TimeoutError:
            ending.code, ending.reason, answer = "UNAVAILABLE", "TIMEOUT", _UNAVAILABLE
        except FormgateError as error:
            ending.failed(error)
            answer = self._answer(error)
        except Exception:  # noqa: BLE001 - whatever it was, it is no yes, and the gateway is answered
            _log.exception("a gateway's request failed for a fault of ours")
            ending.code, ending.reason, answer = "INTERNAL", "INTERNAL", _INTERNAL
        else:
            ending.code = ending.reason = "OK"
        finally:
            self._dispatch.ended(ending, began)
        return answer

    async def _check(self, said: str, headers: Mapping[str, str], caller: Caller) -> tuple[HttpDenial, Verdict | None]:
        """Return the answer, and the verdict where there is one."""
        requirement = self._requirements(said, lambda: [pair for pair in _pairs(said) if pair != _DENIED])
        asked = Request(headers.get("x-forwarded-method", ""), headers.get("x-forwarded-uri", ""), headers)
        query = requirement.query(asked)
        verdict = None
        if isinstance(query, Ambiguous):
            denial = told.ambiguous(query)
        else:
            began = time.perf_counter()
            verdict = await self._check_key(query, caller)
            metrics.decided(verdict.reason, time.perf_counter() - began, degraded=verdict.degraded)
            requirement.heed(verdict)
            if verdict.allowed and verdict.record is not None:
                limits = told.rate_limit(verdict.limits, self._clock.now())
                return HttpDenial(200, (*told.identity(verdict.record.key), *limits), b""), verdict
            denial = told.denial(verdict, self._clock.now())
        return _wrapped(denial) if _DENIED in _pairs(said) else denial, verdict

    def _answer(self, error: FormgateError) -> HttpDenial:
        if isinstance(error, UnavailableError):
            return _UNAVAILABLE
        self._tell(error)
        return _MISCONFIGURED

    def _tell(self, error: FormgateError) -> None:
        """Say what is wrong with a gateway now and then: its end users may send any number of requests."""
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY_SECONDS:
            self._told = now
            _log.warning("a gateway asks in a way that can not be answered", reason=error.reason, why=error.message)


def _pairs(query: str) -> list[tuple[str, str]]:
    """Read a query. Raises InvalidArgumentError."""
    if not query:
        return []
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise InvalidArgumentError("route", "is no query such as permission=forms.read") from None


def _wrapped(denial: HttpDenial) -> HttpDenial:
    """Put a denial into a header, for a gateway that knows only how to deny."""
    whole = json.dumps([denial.status, denial.headers, denial.body.decode()], separators=(",", ":"))
    packed = base64.urlsafe_b64encode(whole.encode()).decode()
    return HttpDenial(403, (("x-formgate-denial", packed), ("x-formgate-status", str(denial.status))), b"")


def _unwrapped(packed: str) -> tuple[HttpDenial, None]:
    """Return what ``_wrapped`` was given. Raises InvalidArgumentError."""
    try:
        status, headers, body = json.loads(base64.b64decode(packed, altchars=b"-_", validate=True))
        denial = HttpDenial(int(status), tuple((str(name), str(value)) for name, value in headers), str(body).encode())
    except (ValueError, TypeError, binascii.Error):
        raise InvalidArgumentError("denial", "is not what /check said in X-Formgate-Denial") from None
    if not all(is_name(name) for name, _ in denial.headers):
        raise InvalidArgumentError("denial", "has a header whose name is none")
    if not 400 <= denial.status <= 599:  # noqa: PLR2004 - HTTP: never a yes
        raise InvalidArgumentError("denial", "is none")
    return denial, None
