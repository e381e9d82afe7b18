"""What a gateway is told of a verdict: headers for who stands behind it, and for the end user."""

from __future__ import annotations

import json
from collections.abc import Iterable

from formgate_server.core.limits import Standing
from formgate_server.core.model import Holder, Key, Rolling
from formgate_server.core.policy import HttpDenial
from formgate_server.core.verdict import Verdict
from formgate_server.wire.gateways.requirement import Ambiguous

PREFIX = "x-formgate-"
"""What the names of all our headers begin with: an end user's own are not for who stands behind the gateway."""
TOKEN = f"{PREFIX}token"
"""Where gateways that ask over HTTP show their service token."""

_SECOND = 1_000_000
_LARGEST = 999_999_999_999_999
"""The largest integer of a structured field (RFC 9651)."""
_RETRY_AFTER = "retry-after"


def is_ours(name: str) -> bool:
    """Tell whether a header might be taken for one of ours: many a server reads ``_`` as ``-``."""
    return name.replace("_", "-").lower().startswith(PREFIX)


def identity(key: Key) -> list[tuple[str, str]]:
    """Return the headers that say whose request it is: ids only, empty where there is none."""
    return [
        ("x-formgate-key-id", key.key_id),
        ("x-formgate-account-id", key.account_id),
        ("x-formgate-environment", key.environment.name.lower()),
        ("x-formgate-created-by", key.created_by),
    ]


def rate_limit(limits: Iterable[Standing], now: int) -> list[tuple[str, str]]:
    """Return ``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-10), seconds rounded up.

    Unlimited ones are left out, and both headers where no limit is left.
    """
    policies, standings = [], []
    seen: set[str] = set()
    for limit, remaining, reset_time in limits:
        if limit.amount is None:
            continue
        name = f"account.{limit.name}" if limit.name in seen and limit.holder is Holder.ACCOUNT else limit.name
        seen.add(name)
        window = f";w={_seconds(limit.per.window)}" if isinstance(limit.per, Rolling) else ""
        reset = "" if reset_time is None else f";t={_seconds(max(reset_time - now, 0))}"
        policies.append(f'"{name}";q={min(limit.amount, _LARGEST)}{window}')
        standings.append(f'"{name}";r={min(remaining, _LARGEST)}{reset}')
    if not policies:
        return []
    return [("ratelimit-policy", ", ".join(policies)), ("ratelimit", ", ".join(standings))]


def denial(verdict: Verdict, now: int) -> HttpDenial:
    """Return the policy's answer to the end user, and where the limits stand."""
    worded = verdict.http_denial
    assert worded is not None, "a denial is worded"  # noqa: S101 - by every policy, for every reason
    headers = list(worded.headers)
    if verdict.retry_after is not None and all(name.lower() != _RETRY_AFTER for name, _ in headers):
        headers.append((_RETRY_AFTER, str(_seconds(verdict.retry_after))))
    return HttpDenial(worded.status, (*headers, *rate_limit(verdict.limits, now)), worded.body)


def ambiguous(why: Ambiguous) -> HttpDenial:
    """Return the answer to an end user whose request can not be decided as it is."""
    body = json.dumps({"error": {"reason": "BAD_REQUEST", "message": why.message}})
    return HttpDenial(400, (("content-type", "application/json"),), body.encode())


def _seconds(microseconds: int) -> int:
    return -(-microseconds // _SECOND)
