"""What the two interceptors share: everything but the call to the client, and how a call is ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from formgate.middleware.guard import Asker, BadValueError, arguments, checked, logger, told
from formgate.middleware.proxies import TrustedProxies
from formgate.middleware.rules import Need
from formgate.rules.reason import Reason
from formgate.verdict import Verdict

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_LIMITS = frozenset({Reason.RATE_LIMITED, Reason.QUOTA_EXCEEDED, Reason.CREDITS_EXHAUSTED})


@dataclass(frozen=True)
class MethodRule:
    """A line of the table: a ``Method`` or ``OpenMethod``."""

    name: str
    """As on the wire, ``/package.Service/Method``, or ``/package.Service/*``: all that have no rule of their own."""


@dataclass(frozen=True)
class Method(MethodRule, Need):
    """Such a call needs a key that may do that; a placeholder of a resource is a field of the request."""

    reads_message: bool = field(init=False, repr=False, compare=False)
    """Whether the resource is in the request."""

    def __post_init__(self) -> None:
        """Raises ValueError for what can not be meant."""
        if self.by_method or not (self.permissions or self.only_authenticate):
            raise ValueError(f"method {self.name}: permissions, or only_authenticate")
        super().__post_init__()
        object.__setattr__(self, "reads_message", callable(self.resources) or any(one.names for one in self.templates))

    def resources_of(self, message: object) -> tuple[str, ...]:
        """Return the resources that a message is about. Raises BadValueError."""
        if callable(self.resources):
            return checked(self.resources(message))  # type: ignore[arg-type] # for gRPC it is given the message
        values = _Fields(message)
        return tuple(template.fill(values) for template in self.templates)


@dataclass(frozen=True)
class OpenMethod(MethodRule):
    """Such a call needs no key; nobody is asked."""


class Refusal(NamedTuple):
    """How a call ends that goes no further."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, bytes], ...]


class Gate:
    """The methods' rules, and how calls are read and refused."""

    def __init__(
        self,
        rules: Iterable[MethodRule],
        trusted_proxies: Iterable[str],
        key_header: str,
        domain: str,
        *,
        exact_reasons: bool,
    ) -> None:
        """Raises ValueError for rules and proxies that can not be meant."""
        self._rules: dict[str, Method | OpenMethod] = {}
        for rule in rules:
            if not isinstance(rule, Method | OpenMethod):
                raise TypeError(f"a rule is a Method or OpenMethod, not {rule!r}")
            service, _, method = rule.name.removeprefix("/").partition("/")
            if not rule.name.startswith("/") or not service or not method or "/" in method:
                raise ValueError(f"method {rule.name!r} is not /package.Service/Method, or /package.Service/*")
            if rule.name in self._rules:
                raise ValueError(f"method {rule.name!r} has two rules")
            self._rules[rule.name] = rule
        self._proxies = TrustedProxies(trusted_proxies)
        self._key_header = key_header.lower()
        self._domain = domain
        self._exact = exact_reasons

    def find(self, method: str) -> Method | OpenMethod | Refusal:
        """Return the rule for a method, or the refusal of one that has none."""
        found = self._rules.get(method) or self._rules.get(method.rpartition("/")[0] + "/*")
        if found is not None:
            return found
        logger.warning("a call of a method was denied that no rule names")
        return self._refusal(grpc.StatusCode.PERMISSION_DENIED, "NO_RULE", "This is not open to API keys.")

    def asker(self, metadata: Iterable[tuple[str, str | bytes]] | None, peer: str) -> Asker:
        """Read who calls."""
        found: dict[str, str] = {}
        for name, value in metadata or ():
            if isinstance(value, str) and name in {"authorization", "x-forwarded-for", self._key_header}:
                found[name] = f"{found[name]}, {value}" if name in found else value
        key = found.get(self._key_header, "") if self._key_header else ""
        return Asker("", found.get("authorization", ""), key, found.get("x-forwarded-for", ""), _address(peer))

    def asked(self, rule: Method, message: object, asker: Asker) -> dict[str, Any]:
        """Return the arguments of ``Client.check``. Raises BadValueError."""
        asked = arguments(rule, _Fields(message), asker, self._proxies)
        if callable(rule.resources):
            asked["resources"] = rule.resources_of(message)
        return asked

    def asked_by_nobody(self, rule: Method, asker: Asker) -> dict[str, Any]:
        """Return the arguments of ``Client.check`` for a call that shows no key, whatever its message will say."""
        source_ip = self._proxies.client(asker.peer, asker.forwarded_for)
        return {**rule.asked, "source_ip": source_ip, "authorization": asker.authorization}

    def refusal(self, verdict: Verdict) -> Refusal | None:
        """Return how a call ends that may not go on; None: it may. Only ``True`` is a yes."""
        if verdict.allowed is True:
            return None
        reason, denial = verdict.reason, verdict.http_denial
        if reason is None or denial is None:
            return self._unavailable()
        code = _code(reason, denial.status)
        word = reason.name if self._exact or reason in _LIMITS else code.name
        return self._refusal(code, word, verdict.message, verdict.retry_after)

    def failed(self, error: BaseException, asker: Asker) -> Refusal:
        """Return how a call ends about which nobody decided."""
        if isinstance(error, BadValueError):
            return self._refusal(grpc.StatusCode.INVALID_ARGUMENT, "BAD_RESOURCE", f"{error} names what can not exist.")
        logger.error("a call was denied that could not be checked: %s", told(error, asker))
        return self._unavailable()

    def empty(self) -> Refusal:
        """Return how a stream ends that says nothing."""
        return self._refusal(grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_STREAM", "The stream has no message.")

    def moved(self, rule: Method, message: object, resources: tuple[str, ...]) -> Refusal | None:
        """Return how a stream ends whose next message is about something else than the first; None: it goes on."""
        try:
            if rule.resources_of(message) == resources:
                return None
        except Exception:  # noqa: BLE001 - what can not be read is not the same
            logger.debug("a stream went on to a message whose resource can not be read")
        return self._refusal(
            grpc.StatusCode.PERMISSION_DENIED, "RESOURCE_CHANGED", "A stream is about one resource; begin another."
        )

    def _unavailable(self) -> Refusal:
        return self._refusal(
            grpc.StatusCode.UNAVAILABLE,
            "UNAVAILABLE",
            "The API key could not be checked. Try again.",
            timedelta(seconds=1),
        )

    def _refusal(
        self, code: grpc.StatusCode, reason: str, message: str, retry_after: timedelta | None = None
    ) -> Refusal:
        status = status_pb2.Status(code=code.value[0], message=message)
        details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=self._domain)]
        if retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromTimedelta(retry_after)
            details.append(retry)
        for detail in details:
            status.details.add().Pack(detail)
        return Refusal(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


class _Fields(Mapping[str, str]):
    """The fields of a message as a resource's placeholders: ``site_id``, ``site.id``."""

    def __init__(self, message: object) -> None:
        self._message = message

    def __getitem__(self, name: str) -> str:
        value: Any = self._message
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise TypeError(f"field {name} is neither text nor a whole number")
        return str(value)

    def __iter__(self) -> Iterator[str]:
        raise TypeError("the fields of a message are not counted here")

    def __len__(self) -> int:
        raise TypeError("the fields of a message are not counted here")


def _code(reason: Reason, status: int) -> grpc.StatusCode:
    """Return the code for a denial: as its policy words it over HTTP, where that is one of the three."""
    if reason in _LIMITS or reason is Reason.TOO_MANY_INVALID_ATTEMPTS:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    usual = grpc.StatusCode.UNAUTHENTICATED if reason <= Reason.KEY_EXPIRED else grpc.StatusCode.PERMISSION_DENIED
    return _CODES.get(status, usual)


def _address(peer: str) -> str:
    """Return the address in what gRPC calls a peer: ``ipv4:192.0.2.1:4711``, ``ipv6:%5B2001:db8::1%5D:4711``."""
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return ""
    return unquote(rest).rpartition(":")[0].strip("[]")
