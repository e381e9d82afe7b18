"""What the HTTP middlewares share: everything but the call to the client, which one of them awaits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from formgate.asking import Check
from formgate.clock import monotonic
from formgate.errors import FormgateError
from formgate.fallback import level_of
from formgate.middleware.answers import Answers, Fields, denial_fields, limit_fields
from formgate.middleware.paths import BadValueError, checked, is_ambiguous
from formgate.middleware.proxies import TrustedProxies
from formgate.middleware.rules import WEBSOCKET, Found, Line, Need, Rules, Values
from formgate.verdict import HttpDenial, Verdict

logger = logging.getLogger("formgate.middleware")

_LONGEST_METHOD = 64
"""Characters that the service takes for a method."""
_PAUSE = 60.0
"""Seconds between two lines of the log that anybody can bring about."""


class Asker(NamedTuple):
    """Who asks: what a request tells of its client."""

    method: str
    authorization: str
    key: str
    """From a header of its own; empty: none."""
    forwarded_for: str
    peer: str

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Asker({self.method}, peer={self.peer!r})"


class NoRuleError(Exception):
    """A rule is for such a request, but says nothing that a policy could answer."""


class Denial(NamedTuple):
    """A request that goes no further, and its answer."""

    status: int
    fields: Fields
    body: bytes


class Guard:
    """A table of rules, and how requests are read and denied."""

    def __init__(  # noqa: PLR0913 - a middleware's settings
        self,
        rules: Iterable[Line],
        trusted_proxies: Iterable[str],
        key_header: str,
        answers: Answers | None,
        *,
        limit_headers: bool,
        clock: Callable[[], float],
    ) -> None:
        """Raises ValueError for rules and proxies that can not be meant."""
        self._rules = Rules(rules)
        self._proxies = TrustedProxies(trusted_proxies)
        self._answers = answers or Answers()
        self._limit_headers = limit_headers
        self._clock = clock
        self.key_header = key_header.lower()
        self._told = -math.inf

    def find(self, method: str, path: str, raw: bytes = b"") -> Found | Denial:
        """Return the rule for a request, or the denial of one that has none."""
        if is_ambiguous(path, raw):
            return self._plain(self._answers.bad_path)
        return self._rules.find(method, path) or self.no_rule(method)

    def no_rule(self, method: str) -> Denial:
        """Deny what no rule is for; an operator is told, for a rule may have been forgotten. Paths may hold secrets."""
        logger.warning("a %s request was denied that no rule matches", method if method.isalpha() else "strange")
        return self._plain(self._answers.no_rule)

    def unasked(self) -> Denial:
        """Deny the answer of a route that has not asked. An operator is told now and then: it may have none to ask."""
        now = monotonic()
        if now - self._told >= _PAUSE:
            self._told = now
            logger.warning(
                "a route has answered without having asked, and was not heard: `requires` is missing, or there is no "
                "such route, or the framework refused the request; said once a minute at most"
            )
        return self._plain(self._answers.no_rule)

    def bad_value(self) -> Denial:
        """Deny what names something that can not exist."""
        return self._plain(self._answers.bad_path)

    def unavailable(self, error: BaseException, asker: Asker) -> Denial:
        """Deny what nobody decided."""
        logger.error("a request was denied that could not be checked: %s", told(error, asker))
        return self._plain(self._answers.unavailable)

    def asked(self, need: Need, values: Values, asker: Asker) -> dict[str, Any]:
        """Return the arguments of ``Client.check``, but for the resources that a function makes.

        Raises BadValueError and NoRuleError.
        """
        if need.by_method and asker.method == WEBSOCKET:  # of a rule for any method, or a route that asks for itself
            raise NoRuleError
        if len(asker.method) > _LONGEST_METHOD:
            raise BadValueError("method")
        return arguments(need, values, asker, self._proxies)

    def denial(self, verdict: Verdict) -> Denial | None:
        """Return the answer to a request that may not go on; None: it may. Only ``True`` is a yes."""
        if verdict.allowed is True:
            return None
        answer = self._answers.denial(verdict)
        return Denial(answer.status, denial_fields(answer, verdict, self.fields(verdict)), answer.body)

    def fields(self, verdict: Verdict) -> Fields:
        """Say where the key's limits stand."""
        return limit_fields(verdict.limits, self._clock()) if self._limit_headers and verdict.limits else []

    def _plain(self, answer: HttpDenial) -> Denial:
        return Denial(answer.status, denial_fields(answer, None, []), answer.body)


def arguments(need: Need, values: Values, asker: Asker, proxies: TrustedProxies) -> dict[str, Any]:
    """Return the arguments of ``Client.check``, but for the resources that a function makes. Raises BadValueError."""
    asked = {**need.asked, "source_ip": proxies.client(asker.peer, asker.forwarded_for)}
    if not need.only_authenticate:
        asked["http_method"] = "GET" if asker.method == WEBSOCKET else asker.method
    if need.level is None and (need.only_authenticate or asker.method == WEBSOCKET):
        # The client is told no method, or that of a handshake, which does not say what the socket is for.
        asked["level"] = level_of(Check(http_method=asker.method))
    if need.templates:
        asked["resources"] = tuple([template.fill(values) for template in need.templates])
    if asker.key:
        asked["key"] = asker.key
    else:
        asked["authorization"] = asker.authorization
    return asked


def told(error: BaseException, asker: Asker) -> str:
    """Say what went wrong, never the key: only our own errors are known not to hold one, and even those are read."""
    kind = type(error).__name__
    if not isinstance(error, FormgateError):
        return kind
    text = f"{kind}: {error}"
    for secret in (asker.key, *asker.authorization.split()[1:]):
        if secret:
            text = text.replace(secret, "…")
    return text


__all__ = ["Asker", "BadValueError", "Denial", "Guard", "NoRuleError", "arguments", "checked", "logger", "told"]
