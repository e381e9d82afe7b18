"""What is counted, for /metrics. Never by key, account or anything else that a caller can choose."""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, GCCollector, Info, PlatformCollector, ProcessCollector

from formgate.rules.reason import Reason
from formgate_server.core.model import UsageOutcome

VERSION = version("formgate-server")

registry = CollectorRegistry()
ProcessCollector(registry=registry)
PlatformCollector(registry=registry)
GCCollector(registry=registry)
Info("formgate_build", "This server.", registry=registry).info({"version": VERSION})

_checks = Counter("formgate_checks", "Checks decided, by reason.", ["reason"], registry=registry)
checks = {
    reason: _checks.labels(reason.name) for reason in Reason
}  # all from the start, and found without hashing labels
_usage_records = Counter("formgate_usage_records", "Usage records, by outcome.", ["outcome"], registry=registry)
usage_records = {outcome: _usage_records.labels(outcome.name) for outcome in UsageOutcome}
_unknown_keys = Counter(
    "formgate_unknown_keys",
    "Keys that were not known here and not found, or not looked for.",
    ["outcome"],
    registry=registry,
)
unknown_keys = {outcome: _unknown_keys.labels(outcome) for outcome in ("not_found", "refused_address", "refused")}
