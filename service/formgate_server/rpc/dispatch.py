"""What every call goes through, in this order; each step can end it.

1. authenticate: whose token is it, or whose certificate? First, so that a stranger costs no parsing and learns nothing.
2. authorise: may that role call this method?
3. decode: the bytes, and who acts, as the metadata says.
4. handle: the servicer's method.
5. encode.

However it ends, it is counted, and told in the log (``line.py``).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from formgate_server import metrics
from formgate_server.core import fields
from formgate_server.core.authenticate import Authenticate
from formgate_server.core.errors import FormgateError, InvalidArgumentError, PermissionDeniedError
from formgate_server.core.model import Caller, ServiceRole
from formgate_server.rpc.errors import internal
from formgate_server.rpc.line import Ending, Lines, Outcome
from formgate_server.rpc.methods import Method

_log = structlog.get_logger("formgate.rpc")
_LONGEST_ACTOR = 128
_OK, _INTERNAL = "OK", "INTERNAL"


def _nobody() -> str:
    return ""


class Call(NamedTuple):
    """A call, whatever wire it came by: its metadata, names in lower case, and what says where it came from."""

    metadata: Mapping[str, str | bytes]
    certificate: Callable[[], Collection[str]] = tuple
    """Returns the names in the client's verified certificate, as ``Identities`` has them."""
    peer: Callable[[], str] = _nobody

    def get(self, name: str) -> str:
        """Return the metadata's value of that name; empty: there is none, or it is no text."""
        value = self.metadata.get(name, "")
        return value if isinstance(value, str) else ""


class RpcError(Exception):
    """How a call that can not be answered ends."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class Dispatch:
    """Answers calls."""

    def __init__(
        self,
        authenticate: Authenticate,
        identify: Callable[[Collection[str]], Caller] | None = None,
        lines: Lines | None = None,
    ) -> None:
        """``identify`` finds callers by their certificates' names; None: each needs a token."""
        self._authenticate = authenticate
        self._identify = identify
        self._lines = lines or Lines()

    async def caller(self, call: Call, roles: frozenset[ServiceRole]) -> Caller:
        """Return who calls: by the token that is shown, good or not, else by certificate.

        Raises UnauthenticatedError or PermissionDeniedError.
        """
        if self._identify is None or "authorization" in call.metadata:
            caller = await self._authenticate(call.get("authorization"))
        else:
            caller = self._identify(call.certificate())
        if caller.role not in roles:
            needed = " or ".join(sorted(role.name.lower() for role in roles))
            message = f"this needs a token of role {needed}; this one's is {caller.role.name.lower()}"
            raise PermissionDeniedError(message)
        return caller

    async def __call__(self, method: Method, call: Call, payload: bytes) -> bytes:
        """Answer a call. Raises RpcError."""
        began = time.perf_counter()
        ending = Ending(method, call)
        try:
            ending.caller = await self.caller(call, method.roles)
            request = _decoded(method, payload)
            ending.caller = _acting(ending.caller, call)
            response: Message | bytes | tuple[bytes, Outcome] = await method.handle(request, ending.caller)
            if isinstance(response, tuple):
                answer, ending.outcome = response
            else:
                answer = response if isinstance(response, bytes) else response.SerializeToString()
            ending.code = ending.reason = _OK
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            raise _failed(ending, error) from None
        finally:
            self.ended(ending, began)
        return answer

    async def stream(self, method: Method, call: Call, payloads: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Answer a call that goes on. Raises RpcError. Its token must be good for each answer anew.

        It has no end of its own: that the caller has enough, or its connection is old, is no failure.
        """
        began = time.perf_counter()
        ending = Ending(method, call)

        async def requests() -> AsyncIterator[Message]:
            async for payload in payloads:
                yield _decoded(method, payload)

        try:
            ending.caller = _acting(await self.caller(call, method.roles), call)
            ending.code = ending.reason = _OK
            async with aclosing(method.handle(requests(), ending.caller)) as responses:
                async for response in responses:
                    await self.caller(call, method.roles)
                    yield response.SerializeToString()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            raise _failed(ending, error) from None
        finally:
            self.ended(ending, began, lasting=True)

    def ended(self, ending: Ending, began: float, *, lasting: bool = False) -> None:
        """Count and tell a call that has ended, ``began`` by ``time.perf_counter``: one of a wire's own, too.

        ``lasting``: how long it took says nothing of how fast it was answered, and is no part of the metrics.
        """
        ending.seconds = time.perf_counter() - began
        metrics.calls_of(ending.called.path).ended(ending.code, None if lasting else ending.seconds)
        self._lines.tell(ending)


def _failed(ending: Ending, error: Exception) -> RpcError:
    """Note how a call fails, and return what its caller is told."""
    if isinstance(error, FormgateError):
        return RpcError(ending.failed(error))
    _log.exception("a call failed for a fault of ours", method=ending.called.path)
    ending.code = ending.reason = _INTERNAL
    return RpcError(internal())


def _decoded(method: Method, payload: bytes) -> Message:
    try:
        return method.request.FromString(payload)
    except DecodeError:
        name = method.request.DESCRIPTOR.full_name
        raise InvalidArgumentError("request", f"is no valid {name}: broken, or a string is not UTF-8") from None


def _acting(caller: Caller, call: Call) -> Caller:
    """Return the caller with the member for whom it acts, as it says."""
    if "formgate-actor" not in call.metadata and "formgate-actor-ip" not in call.metadata:
        return caller
    actor, actor_ip = call.get("formgate-actor"), call.get("formgate-actor-ip")
    fields.text(actor, "formgate-actor", _LONGEST_ACTOR)
    return replace(caller, actor=actor, actor_ip=fields.source_ip(actor_ip, "formgate-actor-ip"))
