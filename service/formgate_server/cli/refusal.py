"""Says what a gRPC error means to whoever typed the command, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from formgate_server.cli.credentials import NO_TOKEN
from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.syntax import format_wait

if TYPE_CHECKING:
    from formgate_server.cli.remote import Server

M = TypeVar("M", bound=Message)

_PATH = re.compile(r"(?:(?:key|account)\.)?(?P<name>\w+)(?:\[(?P<index>\d+)\])?(?:\.(?P<rest>.+))?", re.ASCII)

# What the server has decided about the call; all other codes mean that it could not.
_REFUSALS = frozenset({
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Refusal:
    """A gRPC error, taken apart. ``info``, ``retry`` None: it has none; so a proxy may have made it, or gRPC here."""

    code: grpc.StatusCode
    message: str
    info: ErrorInfo | None = None
    retry: RetryInfo | None = None
    violations: tuple[BadRequest.FieldViolation, ...] = field(default=())


def take_apart(error: grpc.RpcError) -> Refusal:
    """Read a finished call's status and the details that came with it."""
    call: Any = error  # what a finished call raises is the call, too
    sent = next((value for name, value in call.trailing_metadata() or () if name == "grpc-status-details-bin"), b"")
    details = _decoded(sent)
    bad = _first(details, BadRequest)
    return Refusal(
        code=call.code(),
        message=call.details() or "",
        info=_first(details, ErrorInfo),
        retry=_first(details, RetryInfo),
        violations=tuple(bad.field_violations) if bad else (),
    )


def _decoded(details: bytes) -> Status:
    try:
        return Status.FromString(details)
    except DecodeError:
        return Status()


def _first(status: Status, kind: type[M]) -> M | None:
    message = kind()
    return message if any(packed.Unpack(message) for packed in status.details) else None


def explain(error: grpc.RpcError, server: Server) -> CommandError:
    """Return what to tell of ``error``."""
    refusal = take_apart(error)
    code = ExitCode.REFUSED if refusal.code in _REFUSALS else ExitCode.UNDECIDED
    if refusal.info is None:
        return _not_from_formgate(refusal, server, code)
    if refusal.violations:
        details = [f"{spelled(each.field, server.spellings)}: {each.description}" for each in refusal.violations]
        return CommandError("the server does not accept this", code, details=details)
    reason = f" ({refusal.info.reason})" if refusal.info.reason else ""
    return CommandError(f"{refusal.message}{reason}", code, hint=_hint(refusal, server))


def _not_from_formgate(refusal: Refusal, server: Server, code: ExitCode) -> CommandError:
    """Explain an error that no Formgate server has worded: gRPC's own, or that of something else at this address."""
    if refusal.code is grpc.StatusCode.UNAVAILABLE:
        return CommandError(
            f"no server answers at {server.address}",
            code,
            details=[refusal.message] if refusal.message else [],
            hint="start one with `formgate serve`, or say where it is: --address HOST:PORT or FORMGATE_ADDRESS"
            + ("" if server.encrypted.wanted else "; to one that speaks TLS, say what to trust: --tls-ca-file FILE"),
        )
    if refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CommandError(
            f"no answer from {server.address} within {server.timeout:g} s",
            code,
            hint="what it was to change may have changed: look before you repeat it; --timeout SECONDS waits longer",
        )
    if refusal.code is grpc.StatusCode.UNIMPLEMENTED:
        hint = "it is another service, or a Formgate of another version (here: `formgate --version`)"
        return CommandError(f"what answers at {server.address} does not know this call", ExitCode.UNDECIDED, hint=hint)
    return CommandError(f"{refusal.message or 'no reason given'} ({refusal.code.name})", code)


def _hint(refusal: Refusal, server: Server) -> str:
    if server.token is NO_TOKEN and refusal.code in {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }:
        return (
            "the certificate alone does not do: give a token with --token-file, FORMGATE_TOKEN or FORMGATE_TOKEN_FILE"
        )
    if refusal.code is grpc.StatusCode.UNAUTHENTICATED:
        return (
            f"the token of {server.token.source} is not one of this server's, or has ended: give another with "
            "--token-file, FORMGATE_TOKEN or FORMGATE_TOKEN_FILE"
        )
    if refusal.code is grpc.StatusCode.PERMISSION_DENIED:
        return f"the token of {server.token.source} may not do this: one of role manager may"
    if refusal.code is grpc.StatusCode.UNAVAILABLE:
        wait = f" in {format_wait(refusal.retry.retry_delay)}" if refusal.retry else ""
        return f"the server is up, but something that it needs is not: try again{wait}"
    return ""


def spelled(path: str, spellings: Mapping[str, str]) -> str:
    """Return where a request's field stands on the command line: ``grants[1].resource`` is ``--grant no. 2, resource``.

    A field that the command does not offer keeps its own name.
    """
    parts = _PATH.fullmatch(path)
    if parts is None or parts["name"] not in spellings:
        return path
    number = f" no. {int(parts['index']) + 1}" if parts["index"] else ""
    rest = f", {parts['rest']}" if parts["rest"] else ""
    return f"{spellings[parts['name']]}{number}{rest}"
