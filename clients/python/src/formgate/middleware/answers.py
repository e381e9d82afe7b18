"""What is answered over HTTP: the policy's words, byte for byte, and where limits stand.

``RateLimit`` and ``RateLimit-Policy`` are those of draft-ietf-httpapi-ratelimit-headers: lists of structured fields
(RFC 9651), an item a limit, such as ``"rate";r=12;t=30`` (12 left, whole again in 30 s) and ``"rate";q=60;w=60``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from formgate.verdict import Holder, HttpDenial, LimitStatus, Verdict

_LARGEST = 999_999_999_999_999
"""Of a structured field's integer: RFC 9651, 3.3.1."""

Fields = list[tuple[str, str]]
"""Header fields in order, names in lower case."""


def _answer(status: int, reason: str, message: str, *headers: tuple[str, str]) -> HttpDenial:
    body = json.dumps({"error": {"reason": reason, "message": message}}).encode()
    return HttpDenial(status, (("content-type", "application/json"), *headers), body)


_NO_RULE = _answer(403, "NO_RULE", "This is not open to API keys.")
_BAD_PATH = _answer(400, "BAD_PATH", "This path is ambiguous, or names what can not exist.")
_UNAVAILABLE = _answer(503, "UNAVAILABLE", "The API key could not be checked. Try again.", ("retry-after", "1"))


@dataclass(frozen=True, slots=True)
class Answers:
    """What is answered where no policy has words: nobody was asked, or nobody answered."""

    no_rule: HttpDenial = _NO_RULE
    """No rule matches the request, or its route has not asked."""
    bad_path: HttpDenial = _BAD_PATH
    unavailable: HttpDenial = _UNAVAILABLE
    """The service did not answer, or its answer was none."""

    def denial(self, verdict: Verdict) -> HttpDenial:
        """Return the answer to a request that is not allowed: the policy's, where the service has decided."""
        denial = verdict.http_denial
        return self.unavailable if verdict.reason is None or denial is None else denial


def seconds(span: timedelta) -> int:
    """Return whole seconds, rounded up: who waits so long has waited long enough."""
    return max(0, math.ceil(span.total_seconds()))


def limit_fields(limits: Iterable[LimitStatus], now: float) -> Fields:
    """Say where limits stand; nothing where none has an amount. ``now`` in seconds since the Unix epoch."""
    left, policies = [], []
    seen: set[str] = set()
    for limit in limits:
        amount = limit.amount
        if limit.unlimited or amount is None:
            continue
        name = limit.name
        if name in seen and limit.holder is Holder.ACCOUNT:
            name = f"account.{name}"
        seen.add(name)
        quoted = f'"{name}"' if name.isalnum() and name.isascii() else _quoted(name)
        remaining = f"{quoted};r={min(limit.remaining, _LARGEST)}"
        if limit.reset_time is not None:
            remaining += f";t={max(0, math.ceil(limit.reset_time.timestamp() - now))}"
        left.append(remaining)
        policy = f"{quoted};q={min(amount, _LARGEST)}"
        if limit.window is not None:
            policy += f";w={seconds(limit.window)}"
        policies.append(policy)
    if not left:
        return []
    return [("ratelimit-policy", ", ".join(policies)), ("ratelimit", ", ".join(left))]


def _quoted(name: str) -> str:
    """Write a structured field's string; what it can not hold becomes ``?``."""
    safe = "".join(character if " " <= character <= "~" else "?" for character in name)
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'


def denial_fields(denial: HttpDenial, verdict: Verdict | None, extra: Fields) -> Fields:
    """Return all the fields of a denial: the policy's as they are, then ours where it has none of that name."""
    fields = list(denial.headers)
    names = {name.lower() for name, _ in fields}
    if "content-length" not in names:
        fields.append(("content-length", str(len(denial.body))))
    if verdict is not None and verdict.retry_after is not None and "retry-after" not in names:
        fields.append(("retry-after", str(seconds(verdict.retry_after))))
    fields += [field for field in extra if field[0] not in names]
    return fields
