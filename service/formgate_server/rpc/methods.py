"""Every method of the contract: its path, its messages, who may call it, and what answers it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from formgate.v1 import accounts_pb2, authorization_pb2, keys_pb2
from formgate_server import metrics
from formgate_server.core.errors import UnimplementedError
from formgate_server.core.model import Caller, ServiceRole
from formgate_server.rpc.accounts import AccountServicer
from formgate_server.rpc.authorization import AuthorizationServicer
from formgate_server.rpc.keys import KeyServicer

AUTHORIZATION = authorization_pb2.DESCRIPTOR.services_by_name["AuthorizationService"]
KEYS = keys_pb2.DESCRIPTOR.services_by_name["KeyService"]
ACCOUNTS = accounts_pb2.DESCRIPTOR.services_by_name["AccountService"]
SERVICES = (AUTHORIZATION, KEYS, ACCOUNTS)

_CHECKERS = frozenset({ServiceRole.CHECKER, ServiceRole.MANAGER})
_READERS = frozenset({ServiceRole.AUDITOR, ServiceRole.MANAGER})
_MANAGERS = frozenset({ServiceRole.MANAGER})
_READS = re.compile(r"(Get|List)[A-Z]")
_HUMPS = re.compile(r"(?<=[a-z])(?=[A-Z])")


class Method(NamedTuple):
    """A method: ``handle`` answers a request of the type ``request`` by a caller of one of ``roles``.

    What it returns is the answer, or its bytes, or these and what it has decided. ``is_stream``: it takes requests as
    they come, and yields answers.
    """

    path: str
    request: type[Message]
    roles: frozenset[ServiceRole]
    handle: Callable[[Any, Caller], Any]
    is_stream: bool = False


def methods(authorization: AuthorizationServicer, keys: KeyServicer, accounts: AccountServicer) -> Iterable[Method]:
    """Yield every method of the contract. One that no servicer has answers UNIMPLEMENTED to those who might call it."""
    for service, servicer in zip(SERVICES, (authorization, keys, accounts), strict=True):
        for method in service.methods:
            handle = getattr(servicer, _HUMPS.sub("_", method.name).lower(), _unimplemented)
            path = f"/{service.full_name}/{method.name}"
            metrics.calls_of(path)  # counted, and shown, from the start
            kind = GetMessageClass(method.input_type)
            yield Method(path, kind, roles(service, method), handle, method.server_streaming)


def roles(service: ServiceDescriptor, method: MethodDescriptor) -> frozenset[ServiceRole]:
    """Return who may call a method: checkers decide, auditors read, managers do everything."""
    if service is AUTHORIZATION:
        return _CHECKERS
    return _READERS if _READS.match(method.name) else _MANAGERS


async def _unimplemented(_request: Message, _caller: Caller) -> NoReturn:
    message = "this server does not do that yet"
    raise UnimplementedError(message)
