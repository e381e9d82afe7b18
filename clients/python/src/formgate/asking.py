"""What is asked of the service, and how it is put on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from formgate.errors import invalid_field
from formgate.rules.grants import Level
from formgate.v1 import authorization_pb2 as pb
from formgate.v1.resources_pb2 import ENVIRONMENT_UNSPECIFIED
from formgate.v1.resources_pb2 import Environment as Environment_
from formgate.verdict import Environment


class _Fields(NamedTuple):
    """What a check consists of."""

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


class Check(_Fields):
    """One question: may this key do that? Exactly one of ``key`` and ``authorization`` is set.

    All but ``strict`` and ``level``, which are for the client itself, are as in ``formgate.v1.CheckKeyRequest``.

    Permissions and resources are read here, once: a generator that one reader had emptied would say to the next that
    nothing is needed.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # the fields say more

        def __new__(cls, *given: Any, **named: Any) -> Self:  # noqa: ANN401, D102 - see the fields
            asked = super().__new__(cls, *given, **named)
            if asked.permissions.__class__ is tuple and asked.resources.__class__ is tuple:
                return asked
            return cls._make(asked)

        @classmethod
        def _make(cls, iterable: Iterable[Any]) -> Self:  # ``_replace`` comes by here, too
            fields = list(iterable)
            fields[_PERMISSIONS] = _read(fields[_PERMISSIONS])
            fields[_RESOURCES] = _read(fields[_RESOURCES])
            return super()._make(fields)

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Check(permissions={self.permissions!r}, resources={self.resources!r}, cost={self.cost!r})"


_PERMISSIONS, _RESOURCES = map(_Fields._fields.index, ("permissions", "resources"))


def _read(given: Any) -> Any:  # noqa: ANN401 - a caller's, of whatever type
    """Return what can be read again; what can not be read at all stays, and ``several`` refuses it."""
    if isinstance(given, str | tuple | bytes | Mapping) or not isinstance(given, Iterable):
        return given
    return tuple(given)


def to_request(check: Check) -> pb.CheckKeyRequest:
    """Write a check as the message that the service takes. Raises InvalidRequestError; it shows no value."""
    if (check.key is None) == (check.authorization is None):
        raise invalid_field("key", "give either `key` or `authorization` (empty where the request has no such header)")
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
        raise invalid_field("request", "has a value of the wrong type, or text that is no Unicode") from None


def several(given: Iterable[str]) -> tuple[str, ...]:
    """Return what is given, or the one text that is.

    Raises TypeError for all but a text, a tuple and a list: what is read twice must be there twice, and what is missing
    (None) must not say that nothing is needed.
    """
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, tuple | list):
        raise TypeError("texts in a tuple or a list")
    return tuple(given)


def _environment(given: Environment | str | None) -> Environment_.ValueType:
    if given is None or given == "":
        return ENVIRONMENT_UNSPECIFIED
    value = Environment(given) if isinstance(given, int) else Environment.__members__.get(str(given).upper())
    if value is None:
        raise ValueError
    return Environment_.ValueType(value)
