"""The client for threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import grpc

from formgate.answers import decode, error_of_call, read_response
from formgate.asking import Check, to_request
from formgate.errors import BrokenAnswerError, ClosedError, UnavailableError
from formgate.fallback import Fallback
from formgate.options import Tls, connection
from formgate.rules.grants import Level
from formgate.v1 import authorization_pb2 as pb
from formgate.verdict import Environment, Verdict

_CHECK = "/formgate.v1.AuthorizationService/CheckKey"


class Client:
    """Asks the service, from many threads."""

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        token: str | None = None,
        *,
        tls: Tls | bool | None = None,
        insecure: bool | None = None,
        timeout: float = 0.25,
    ) -> None:
        self._connection = connection(address, token, tls=tls, insecure=insecure)
        self._timeout = timeout
        self._fallback = Fallback()
        self._channel: grpc.Channel | None = None
        self._closed = False

    def check(  # noqa: PLR0913 - as many as a check has
        self,
        key: str | None = None,
        *,
        authorization: str | None = None,
        permissions: Iterable[str] = (),
        resources: Iterable[str] = (),
        api_group: str = "",
        environment: Environment | str | None = None,
        http_method: str = "",
        source_ip: str = "",
        cost: int = 1,
        request_id: str = "",
        policy: str = "",
        tags: Mapping[str, str] | None = None,
        explain: bool = False,
        strict: bool = False,
        level: Level | str | None = None,
        timeout: float | None = None,
    ) -> Verdict:
        """Return the verdict. Raises FormgateError where the call is wrong; silence is a verdict, by the fail mode."""
        check = Check(
            key,
            authorization,
            permissions,
            resources,
            api_group,
            environment,
            http_method,
            source_ip,
            cost,
            request_id,
            policy,
            tags,
            explain,
            strict,
            level,
        )
        return self._decide(check, timeout)

    def check_all(self, checks: Iterable[Check], *, timeout: float | None = None) -> list[Verdict]:
        """Return one verdict each, in order."""
        return [self._decide(check, timeout) for check in checks]

    def _decide(self, check: Check, timeout: float | None) -> Verdict:
        request = to_request(check).SerializeToString()
        try:
            return self._ask(request, self._timeout if timeout is None else timeout)
        except (UnavailableError, BrokenAnswerError) as error:
            return self._fallback.decide(check, error)

    def _ask(self, request: bytes, timeout: float) -> Verdict:
        if self._closed:
            raise ClosedError("the client is closed")
        if self._channel is None:
            self._channel = self._connection.channel()
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(_CHECK)
        try:
            answer = call(request, timeout=timeout, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise error_of_call(error) from None
        return read_response(decode(pb.CheckKeyResponse, answer))

    def close(self) -> None:
        """End the connection."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
