"""A calling service: each request message is sent to the one method that takes it, over the committed stubs.

::

    manager = Client(server.address, server.token)
    key = manager(CreateKeyRequest(account_id="acme")).key
    refusal = manager.refusal(GetKeyRequest())  # it must be refused; what was told, decoded
    assert (refusal.code, refusal.fields) == (INVALID_ARGUMENT, ["key_id"])
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any, Self

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from formgate.v1 import (
    accounts_pb2,
    accounts_pb2_grpc,
    authorization_pb2,
    authorization_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
)
from tests.support.server import Server

DEADLINE = 5.0
SECOND_POLICY = "second"
"""The policy that servers of ``tests/support/rpc.py`` have beside the default."""

_numbers = count(1)
_STUBS = (
    (authorization_pb2.DESCRIPTOR, authorization_pb2_grpc.AuthorizationServiceStub),
    (keys_pb2.DESCRIPTOR, keys_pb2_grpc.KeyServiceStub),
    (accounts_pb2.DESCRIPTOR, accounts_pb2_grpc.AccountServiceStub),
)

Metadata = Sequence[tuple[str, str | bytes]]


def methods() -> Iterator[MethodDescriptor]:
    """Yield every method of the contract."""
    for file, _ in _STUBS:
        for service in file.services_by_name.values():
            yield from service.methods


def path(method: MethodDescriptor) -> str:
    """Return a method's path on the wire."""
    return f"/{method.containing_service.full_name}/{method.name}"


def request_type(method: MethodDescriptor) -> type[Message]:
    """Return the message that a method takes."""
    return GetMessageClass(method.input_type)


@dataclass(frozen=True)
class Refusal:
    """How a call ended that was not answered, its details decoded."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    domain: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    fields: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    retry_seconds: int | None = None

    @classmethod
    def of(cls, error: grpc.RpcError) -> Self:
        """Decode what a call raised."""
        trailing: Any = error.trailing_metadata()
        packed = dict(trailing or ()).get("grpc-status-details-bin")
        code: grpc.StatusCode = error.code()
        text: str = error.details() or ""
        if packed is None:
            return cls(code, text)
        status = status_pb2.Status.FromString(packed)
        assert (status.code, status.message) == (code.value[0], text), "the status and its details differ"
        return cls.of_status(status)

    @classmethod
    def of_status(cls, status: status_pb2.Status) -> Self:
        """Decode a status, such as that of a batch's item."""
        code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        unpacked = [any(detail.Unpack(known) for known in (info, bad, retry)) for detail in status.details]
        assert all(unpacked), f"a detail that is none of the contract's: {status}"
        return cls(
            code,
            status.message,
            info.reason,
            info.domain,
            tuple(sorted(info.metadata.items())),
            tuple(violation.field for violation in bad.field_violations),
            tuple(violation.description for violation in bad.field_violations),
            retry.retry_delay.seconds if retry.HasField("retry_delay") else None,
        )


class Client:
    """A caller with a service token (empty: none), on a connection of its own; by TLS with ``credentials``."""

    def __init__(
        self,
        address: str,
        token: str = "",
        metadata: Metadata = (),
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, object]] = (("grpc.max_receive_message_length", -1),),
    ) -> None:
        self.token = token
        self.metadata = ((("authorization", f"Bearer {token}"),) if token else ()) + tuple(metadata)
        self.channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self._calls: dict[str, Any] = {}
        self._streams: set[str] = set()
        for file, stub in _STUBS:
            for service in file.services_by_name.values():
                bound = stub(self.channel)
                for method in service.methods:
                    self._calls[method.input_type.full_name] = getattr(bound, method.name)
                    if method.server_streaming:
                        self._streams.update((method.input_type.full_name, path(method)))

    def __call__(self, request: Message, *metadata: tuple[str, str | bytes]) -> Any:
        """Return the answer; of a stream of answers the first. Raises grpc.RpcError."""
        call = self._calls[request.DESCRIPTOR.full_name]
        if request.DESCRIPTOR.full_name in self._streams:
            return _first(call(iter([request]), metadata=(*self.metadata, *metadata), timeout=DEADLINE))
        return call(request, metadata=(*self.metadata, *metadata), timeout=DEADLINE)

    def outcome(self, request: Message, *metadata: tuple[str, str | bytes]) -> Any:
        """Return the answer, or the Refusal; AssertionError where that lacks its details."""
        try:
            return self(request, *metadata)
        except grpc.RpcError as error:
            refusal = Refusal.of(error)
            check_details(refusal)
            return refusal

    def all(self, request: Any) -> list[Any]:
        """Return what a listing lists, page by page."""
        page = self(request)
        (listed,) = (field.name for field in page.DESCRIPTOR.fields if field.name != "next_page_token")
        rows = list(getattr(page, listed))
        while page.next_page_token:
            following = type(request)()
            following.CopyFrom(request)
            following.page_token = page.next_page_token
            page = self(following)
            rows += getattr(page, listed)
        return rows

    def refusal(self, request: Message, *metadata: tuple[str, str | bytes]) -> Refusal:
        """Return how the call was refused; AssertionError where it was answered or the refusal lacks its details."""
        outcome = self.outcome(request, *metadata)
        assert isinstance(outcome, Refusal), f"answered, not refused: {request} -> {outcome}"
        return outcome

    def raw(self, method: str, payload: bytes, metadata: Metadata | None = None) -> bytes | Refusal:
        """Send bytes to the path of a method, and return those of the answer, or how it was refused."""
        sent = self.metadata if metadata is None else tuple(metadata)
        try:
            if method in self._streams:
                call: Any = self.channel.stream_stream(method)
                answer: bytes = _first(call(iter([payload]), metadata=sent, timeout=DEADLINE))
            else:
                call = self.channel.unary_unary(method)
                answer = call(payload, metadata=sent, timeout=DEADLINE)
        except grpc.RpcError as error:
            return Refusal.of(error)
        return answer

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()


def _first(answers: Any) -> Any:
    """Return the first of a stream of answers, and end the stream."""
    try:
        return next(answers)
    finally:
        answers.cancel()


def check_details(refusal: Refusal) -> None:
    """Assert that a refusal tells a program what the contract promises (AIP-193)."""
    assert refusal.domain == "formgate", refusal
    assert refusal.reason, refusal
    assert refusal.reason == refusal.reason.upper(), refusal
    assert bool(refusal.fields) == (refusal.code is grpc.StatusCode.INVALID_ARGUMENT), refusal
    assert all((*refusal.fields, *refusal.descriptions)), refusal
    assert (refusal.retry_seconds is not None) == (refusal.code is grpc.StatusCode.UNAVAILABLE), refusal


def new_account(manager: Client, **fields: object) -> str:
    """Make an account and return its id. It is about noon there: no test may meet the end of a day or month."""
    offset = datetime.now(UTC).hour - 12  # POSIX counts westward
    values: dict[str, Any] = {"time_zone": f"Etc/GMT{offset:+d}", **fields}
    request = accounts_pb2.CreateAccountRequest(account_id=f"account-{next(_numbers)}", **values)
    account_id: str = manager(request).account.account_id
    return account_id


def new_token(manager: Client, role: int, **fields: object) -> tuple[str, str]:
    """Make a service token; returns its id and its secret."""
    made = manager(accounts_pb2.CreateServiceTokenRequest(role=role, **fields))  # type: ignore[arg-type]
    return made.service_token.token_id, made.secret


def database(server: Server) -> sqlite3.Connection:
    """Open a server's database for reading, beside the server; the caller closes it."""
    return sqlite3.connect(f"file:{server.data / 'formgate.db'}?mode=ro", uri=True)
