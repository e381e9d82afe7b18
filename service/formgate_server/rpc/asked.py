"""What checks ask. Most of what a service asks it asks again and again: that is read and validated once."""

from __future__ import annotations

from formgate.v1.authorization_pb2 import CheckKeyRequest
from formgate_server.core import fields
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.model import Environment
from formgate_server.core.verdict import CheckQuery
from formgate_server.rpc.convert import enum

_MOST_REMEMBERED = 4_096
_LONGEST_REMEMBERED = 1_024
_OWN = len(("key", "authorization", "source_ip", "request_id"))
"""The first so many fields of a CheckQuery are each check's own; the others many have alike."""


class Asked:
    """Reads CheckKeyRequests.

    What is left of a message without the fields that differ from check to check is looked up by its bytes, as protobuf
    writes them. Only what was found valid is remembered, never a credential; what is long, or has tags, is not. What
    is remembered is forgotten all at once when it is too much.
    """

    def __init__(self) -> None:
        self._remembered: dict[bytes, tuple[object, ...]] = {}

    def read(self, message: CheckKeyRequest) -> CheckQuery:
        """Read what a check asks, and take it out of ``message``. Raises InvalidArgumentError."""
        key, authorization = message.key or None, None
        if key is None:
            match message.WhichOneof("credential"):
                case "key":
                    key = ""
                case "authorization":
                    authorization = message.authorization
                case _:
                    raise InvalidArgumentError("credential", "needs one of key and authorization")
            message.ClearField("authorization")
        message.ClearField("key")
        source_ip, request_id = message.source_ip, message.request_id
        if source_ip:
            message.ClearField("source_ip")
        if request_id:
            message.ClearField("request_id")
        written = message.SerializeToString()
        alike = self._remembered.get(written) or self._read(written, message)
        return CheckQuery._make(
            (key, authorization, fields.source_ip(source_ip), fields.identifier(request_id, "request_id"), *alike)
        )

    def _read(self, written: bytes, message: CheckKeyRequest) -> tuple[object, ...]:
        alike = _query(message)[_OWN:]
        if len(written) <= _LONGEST_REMEMBERED and not message.tags:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[written] = alike
        return alike


def _query(message: CheckKeyRequest) -> CheckQuery:
    """Read all but what is a check's own."""
    if message.tags:
        fields.tags(message.tags)
    return CheckQuery(
        permissions=fields.asked_permissions(message.permissions),
        resources=fields.resources(message.resources),
        api_group=fields.identifier(message.api_group, "api_group"),
        environment=enum(Environment, message.environment, "environment") or 0,
        http_method=fields.text(message.http_method, "http_method", 64),
        cost=fields.number(message.cost, "cost") if message.HasField("cost") else 1,
        policy=fields.identifier(message.policy, "policy"),
        explain=message.explain,
    )
