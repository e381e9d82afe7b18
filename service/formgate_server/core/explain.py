"""What a check tells of its steps, where it is asked to."""

from __future__ import annotations

from datetime import UTC, datetime

from formgate_server.core.limits import Standing
from formgate_server.core.ports import Charged
from formgate_server.core.verdict import CheckQuery, KeyRecord, Reason, Step, StepOutcome

STEPS = {
    "credential": (Reason.MISSING_AUTHORIZATION, Reason.MALFORMED_AUTHORIZATION, Reason.MALFORMED_KEY),
    "key": (Reason.TOO_MANY_INVALID_ATTEMPTS, Reason.KEY_NOT_FOUND),
    "state": (Reason.KEY_REVOKED, Reason.KEY_DISABLED),
    "expiry": (Reason.KEY_EXPIRED,),
    "account": (Reason.ACCOUNT_SUSPENDED,),
    "environment": (Reason.ENVIRONMENT_MISMATCH,),
    "address": (Reason.IP_NOT_ALLOWED,),
    "api_group": (Reason.API_GROUP_NOT_ALLOWED,),
    "grants": (Reason.PERMISSION_DENIED, Reason.RESOURCE_NOT_ALLOWED),
    "limits": (Reason.RATE_LIMITED, Reason.QUOTA_EXCEEDED, Reason.CREDITS_EXHAUSTED),
}


def explain(reason: Reason, query: CheckQuery, record: KeyRecord | None, charged: Charged | None) -> tuple[Step, ...]:
    """Return every step in order: those before the denying one passed, those after it were skipped."""
    steps = []
    outcome = StepOutcome.PASSED
    for name, reasons in STEPS.items():
        if reason in reasons:
            outcome = StepOutcome.DENIED
        elif outcome is StepOutcome.DENIED:
            outcome = StepOutcome.SKIPPED
        detail = "" if outcome is StepOutcome.SKIPPED else _detail(name, query, record, charged)
        if reason is Reason.TOO_MANY_INVALID_ATTEMPTS and outcome is StepOutcome.DENIED:
            detail = f"from {query.source_ip}; it was not looked for"
        if outcome is StepOutcome.DENIED:
            detail = f"{reason.name}: {detail}" if detail else reason.name
        steps.append(Step(name, outcome, detail))
    return tuple(steps)


def _detail(step: str, query: CheckQuery, record: KeyRecord | None, charged: Charged | None) -> str:
    """Say what a step compared."""
    if step == "credential":
        return "the key" if query.key is not None else "an Authorization header"
    if record is None:
        return ""
    if step == "limits":
        return "; ".join(map(_limit, charged.standings)) if charged is not None and charged.standings else "none"
    return _compared(query, record)[step]


def _compared(query: CheckQuery, record: KeyRecord) -> dict[str, str]:
    key = record.key
    source = f"from {query.source_ip}" if query.source_ip else "no source address"
    return {
        "key": f"{key.key_id} of account {key.account_id}, policy {record.policy.name}",
        "state": key.state.name,
        "expiry": "never" if key.expire_time is None else f"at {_written(key.expire_time)}",
        "account": f"epoch {record.epoch}",
        "environment": key.environment.name,
        "address": f"{source}; {_counted(len(key.ip_rules), 'rule')}" if key.ip_rules else "anywhere",
        "api_group": f"{query.api_group or 'none'}; of {', '.join(key.api_groups)}" if key.api_groups else "all",
        "grants": f"{_asked(query)}; {_counted(len(key.grants), 'grant')}",
    }


def _written(instant: int) -> str:
    return f"{datetime.fromtimestamp(instant // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _asked(query: CheckQuery) -> str:
    what = ", ".join(query.permissions) or query.http_method or "no permission"
    return f"{what} on {' or '.join(query.resources)}" if query.resources else what


def _limit(standing: Standing) -> str:
    limit = standing.limit
    if limit.amount is None:
        return f"{limit.name}: unlimited"
    return f"{limit.name} of the {limit.holder.name.lower()}: {standing.remaining} of {limit.amount} left"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
