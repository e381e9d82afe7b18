"""What is asked of the service, and how it is put on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from formgate.errors import FieldViolation, InvalidRequestError
from formgate.rules.grants import Level
from formgate.v1 import authorization_pb2 as pb
from formgate.v1.resources_pb2 import ENVIRONMENT_UNSPECIFIED
from formgate.v1.resources_pb2 import Environment as Environment_
from formgate.verdict import Environment


class Check(NamedTuple):
    """One question: may this key do that? Exactly one of ``key`` and ``authorization`` is set.

    All but ``strict`` and ``level``, which are for the client itself, are as in ``formgate.v1.CheckKeyRequest``.
    """

    key: str | None = None
    authorization: str | None = None
    """The raw value of the Authorization header; empty: the request has none."""
    permissions: Sequence[str] = ()
    """All needed. One alone may be given as a text; so may one resource."""
    resources: Sequence[str] = ()
    api_group: str = ""
    environment: Environment | str | None = None
    http_method: str = ""
    source_ip: str = ""
    cost: int = 1
    request_id: str = ""
    policy: str = ""
    tags: Mapping[str, str] | None = None
    explain: bool = False
    strict: bool = False
    """The service itself is to be asked, whatever this process may decide."""
    level: Level | str | None = None
    """How much the request would do, for the fail mode. None: as its HTTP method says, else MANAGE."""

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Check(permissions={self.permissions!r}, resources={self.resources!r}, cost={self.cost!r})"


def to_request(check: Check) -> pb.CheckKeyRequest:
    """Write a check as the message that the service takes. Raises InvalidRequestError; it shows no value."""
    if (check.key is None) == (check.authorization is None):
        raise _invalid("key", "give either `key` or `authorization` (empty where the request has no such header)")
    try:
        return pb.CheckKeyRequest(
            key=check.key,  # type: ignore[arg-type]  # None leaves it unset
            authorization=check.authorization,  # type: ignore[arg-type]  # the same
            permissions=several(check.permissions),
            resources=several(check.resources),
            api_group=check.api_group,
            environment=_environment(check.environment),
            http_method=check.http_method,
            source_ip=check.source_ip,
            cost=check.cost,
            request_id=check.request_id,
            policy=check.policy,
            tags=check.tags,
            explain=check.explain,
        )
    except (TypeError, ValueError):  # what these say may show a key
        raise _invalid("request", "has a value of the wrong type, or text that is no Unicode") from None


def several(given: Sequence[str]) -> Sequence[str]:
    """Return what is given, or the one text that is."""
    return (given,) if isinstance(given, str) else given


def _environment(given: Environment | str | None) -> Environment_.ValueType:
    if given is None or given == "":
        return ENVIRONMENT_UNSPECIFIED
    value = Environment(given) if isinstance(given, int) else Environment.__members__.get(str(given).upper())
    if value is None:
        raise ValueError
    return Environment_.ValueType(value)


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {description}", (FieldViolation(field, description),))
