"""What a route requires, as the gateway's own configuration says it: never anything that an end user sends.

=============  ========================================================================================================
permission     Names, separated by commas: all are needed.
resource       Paths, separated by commas: one of them must be covered. ``{2}`` is the second segment of the request's
               path, ``{2*}`` the second and all that follow.
method         ``request``: the request's own, which the policy maps to a level (and none that a header names besides);
               or one, such as ``GET``. Where no permission is said, keys of a policy without ``methods`` are denied: it
               would ask nothing of them.
only           ``authenticate``: the route asks for nothing but a good key.
api_group      The API group of the route.
environment    ``live`` or ``test``: what the key must be of.
policy         Only this policy's keys count.
cost           What a request costs; 1 where it is not said.
path           ``plain``: the request's path must have one reading only, although nothing is taken from it.
key            Where the key is, the first one found: ``authorization`` (which is the default), a header's name, or
               ``query:NAME``. Separated by commas.
address        The header that tells where the request comes from: the last address in it, or ``NAME:2``, the last but
               one. Where it is not said: what the gateway itself tells, if it does.
=============  ========================================================================================================

One of permission, resource, method and only must be there, and nothing else may: a route whose configuration is missing
or misspelt is not answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple, TypeAlias

import structlog

from formgate_server.core import fields
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.model import Environment
from formgate_server.core.verdict import CheckQuery, Reason, Verdict
from formgate_server.wire.gateways import target

_log = structlog.get_logger("formgate.gateways")
_MOST_REMEMBERED = 10_000
_LISTS = frozenset({"permission", "resource", "key"})
_RIGHTS = frozenset({"permission", "resource", "method"})
_NAMES = _RIGHTS | {"only", "api_group", "environment", "policy", "cost", "path", "key", "address"}
_PLACE = re.compile(r"\{([1-9][0-9]?)(\*?)\}")
_HEADER = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
_METHOD = re.compile(r"[A-Z]{1,32}", re.ASCII)
_ADDRESS = re.compile(r"([a-z0-9-]{1,64})(?::([1-9][0-9]?))?", re.ASCII)
_AUTHORIZATION = "authorization"
_OVERRIDES = frozenset({"x-http-method-override", "x-http-method", "x-method-override"})
"""By which many frameworks take another method than the request's."""
_QUERY = "query:"


class Request(NamedTuple):
    """A request as a gateway tells of it.

    ``uri`` is path and query as they were sent, ``headers`` have names in lower case and one value each: several are
    joined by commas. ``address``: where it comes from. Empty: the gateway does not tell.
    """

    method: str
    uri: str
    headers: Mapping[str, str]
    address: str = ""

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Request(method={self.method!r})"


class Ambiguous(NamedTuple):
    """Why a request can not be decided: it is the end user's to put right, and is answered 400."""

    message: str


_Template: TypeAlias = tuple[tuple[str, int, bool], ...]
"""Texts, each with the number of the segment that follows it (0: none), and whether all after it follow, too."""


class Requirement:
    """What one route requires."""

    def __init__(self, parameters: Mapping[str, str]) -> None:
        """Read a route's parameters. Raises InvalidArgumentError."""
        for name, value in parameters.items():
            if name not in _NAMES:
                raise InvalidArgumentError("route", f"says what there is not; there are {', '.join(sorted(_NAMES))}")
            if not value:
                raise InvalidArgumentError(name, "is empty")
        wanted = _RIGHTS & parameters.keys()
        if not wanted and parameters.get("only") != "authenticate":
            raise InvalidArgumentError(
                "route", "requires nothing: say permission, resource, method or only=authenticate"
            )
        if wanted and "only" in parameters:
            raise InvalidArgumentError("only", f"can not be said together with {', '.join(sorted(wanted))}")
        self._method = parameters.get("method", "")
        if self._method != "request" and self._method and not _METHOD.fullmatch(self._method):
            raise InvalidArgumentError("method", "must be `request`, or a method in capitals")
        self._resources = [_template(each) for each in _list(parameters, "resource")]
        if parameters.get("path", "plain") != "plain":
            raise InvalidArgumentError("path", "must be `plain`")
        places = any(number for template in self._resources for _, number, _ in template)
        self._reads_path = places or "path" in parameters
        self._keys = [_key(each) for each in _list(parameters, "key") or (_AUTHORIZATION,)]
        self._address = _address(parameters["address"]) if "address" in parameters else None
        self._same = CheckQuery(
            permissions=fields.asked_permissions(_list(parameters, "permission"), "permission"),
            api_group=fields.identifier(parameters.get("api_group", ""), "api_group"),
            environment=_environment(parameters.get("environment", "")),
            cost=fields.number(_number(parameters.get("cost", "1")), "cost"),
            policy=fields.identifier(parameters.get("policy", ""), "policy"),
            by_method=bool(self._method) and "permission" not in parameters,
        )
        self._policies_told: set[str] = set()
        self.key_headers = tuple(name for name in self._keys if not name.startswith(_QUERY))
        """The headers that a key may be in: they are not for who stands behind the gateway."""
        self.key_parameters = tuple(name.removeprefix(_QUERY) for name in self._keys if name.startswith(_QUERY))
        """The same of the query's parameters."""

    def query(self, request: Request) -> CheckQuery | Ambiguous:
        """Return what to check. Raises InvalidArgumentError where the gateway does not tell what it is told to."""
        parts = target.segments(_told(request.uri, "the request's URI")) if self._reads_path else ()
        if parts is None:
            return Ambiguous("The path is not in its plain form: it could be read in more than one way.")
        resources: list[str] = []
        for template in self._resources:
            resource = _filled(template, parts)
            if resource is None:
                return Ambiguous("The path does not name what this is about.")
            resources.append(resource)
        method = self._method
        if method == "request":
            method = _told(request.method, "the request's method")
            if not _METHOD.fullmatch(method):
                return Ambiguous("The method is not one in capitals.")
            if not _OVERRIDES.isdisjoint(request.headers):
                return Ambiguous("The request names another method in a header: which one is meant?")
        key, authorization = self._credential(request)
        return self._same._replace(
            key=key,
            authorization=authorization,
            source_ip=self._source_ip(request),
            resources=tuple(resources),
            http_method=method,
        )

    def heed(self, verdict: Verdict) -> None:
        """Tell who runs the gateway, once, that keys of a policy can never do what the route requires."""
        if not self._same.by_method or verdict.reason is not Reason.PERMISSION_DENIED or verdict.record is None:
            return
        policy = verdict.record.policy
        if not policy.methods and policy.name not in self._policies_told:
            self._policies_told.add(policy.name)
            why = "the policy has no `methods`: say a permission, or no method"
            _log.warning("a gateway's route requires a method only; it is denied", policy=policy.name, why=why)

    def _credential(self, request: Request) -> tuple[str | None, str | None]:
        """Return the key or the Authorization header's value, one of both; an empty one where there is neither."""
        for name in self._keys:
            if name == _AUTHORIZATION:
                if (authorization := request.headers.get(name)) is not None:
                    return None, authorization
            elif name.startswith(_QUERY):
                if (key := target.parameter(request.uri, name.removeprefix(_QUERY))) is not None:
                    return key, None
            elif (key := request.headers.get(name)) is not None:
                return key, None
        return None, ""

    def _source_ip(self, request: Request) -> str:
        if self._address is None:
            return fields.source_ip(request.address, "address")
        name, place = self._address
        told = [each.strip() for each in request.headers.get(name, "").split(",")]
        if len(told) < place or not told[-place]:
            raise InvalidArgumentError("address", f"is not in {name}, where the route says that the gateway puts it")
        return fields.source_ip(_bare(told[-place]), "address")


class Requirements:
    """Reads what routes require, each once."""

    def __init__(self) -> None:
        self._read: dict[Hashable, Requirement | str] = {}

    def __call__(self, said: Hashable, parameters: Callable[[], Iterable[tuple[str, str]]]) -> Requirement:
        """Return the requirement that is known as ``said``, or made of ``parameters``. Raises InvalidArgumentError."""
        known = self._read.get(said)
        if known is None:
            known = self._make(parameters())
            if len(self._read) >= _MOST_REMEMBERED:
                self._read.clear()
            self._read[said] = known
        if isinstance(known, str):
            raise InvalidArgumentError("route", known)
        return known

    def _make(self, parameters: Iterable[tuple[str, str]]) -> Requirement | str:
        try:
            return Requirement(_together(parameters))
        except InvalidArgumentError as error:
            # Once for each route: who runs the gateway must hear of it, and its end users may send any number.
            _log.warning("what a gateway's route requires can not be read; its requests are refused", why=error.message)
            return error.message


def _together(parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return parameters by name: what may have several values can also be said several times."""
    together: dict[str, str] = {}
    for name, value in parameters:
        if name not in together:
            together[name] = value
        elif name in _LISTS:
            together[name] += f",{value}"
        else:
            raise InvalidArgumentError(name, "is said twice")
    return together


def _list(parameters: Mapping[str, str], name: str) -> list[str]:
    if name not in parameters:
        return []
    values = [value.strip() for value in parameters[name].split(",")]
    if not all(values):
        raise InvalidArgumentError(name, "has an empty entry")
    return values


def _number(value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > len(str(fields.LARGEST)):
        raise InvalidArgumentError("cost", "must be a number")
    return int(value)


def _environment(value: str) -> int:
    if not value:
        return 0
    for environment in Environment:
        if value.lower() == environment.name.lower():
            return environment
    raise InvalidArgumentError("environment", "must be live or test")


def _key(value: str) -> str:
    if value.startswith(_QUERY) and len(value) > len(_QUERY):
        return value
    if not _HEADER.fullmatch(value.lower()):
        raise InvalidArgumentError("key", "must be `authorization`, a header's name or query:NAME")
    return value.lower()


def _address(value: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(value.lower())
    if match is None:
        raise InvalidArgumentError("address", "must be a header's name, or NAME:2 for its last value but one")
    return match[1], int(match[2] or 1)


def _bare(address: str) -> str:
    """Return an address without the brackets and the port that some gateways add."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, port = address.partition(":")
    return host if colon and port.isdigit() else address


def _template(value: str) -> _Template:
    """Read a resource with places in it. Raises InvalidArgumentError."""
    fields.resources([_PLACE.sub("x", value)], "resource")
    parts: list[tuple[str, int, bool]] = []
    end = 0
    for place in _PLACE.finditer(value):
        parts.append((value[end : place.start()], int(place[1]), bool(place[2])))
        end = place.end()
    parts.append((value[end:], 0, False))
    return tuple(parts)


def _filled(template: _Template, segments: tuple[str, ...]) -> str | None:
    """Return the resource; None: the path has no such segment, or it is no id."""
    filled = ""
    for text, number, rest in template:
        filled += text
        if number:
            taken = segments[number - 1 :] if rest else segments[number - 1 : number]
            if not taken or not all(map(fields.is_identifier, taken)):
                return None
            filled += "/".join(taken)
    try:
        fields.resources([filled])
    except InvalidArgumentError:  # such as one that is too long
        return None
    return filled


def _told(value: str, what: str) -> str:
    if not value:
        raise InvalidArgumentError("request", f"does not tell {what}, which the route asks for")
    return value
