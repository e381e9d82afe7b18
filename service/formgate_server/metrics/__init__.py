"""What is counted, for /metrics. Never by key, account or anything else that a caller can choose.

What each of them says, and what to look at: docs/operations/monitoring.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from formgate.rules.reason import Reason
from formgate_server.core.model import UsageOutcome
from formgate_server.metrics.tally import BUCKETS, Lasting, SummedHistogram, Tally, Timing, watched, write

__all__ = ["VERSION", "Calls", "calls_of", "new_registry", "registry", "watched", "write"]

VERSION = version("formgate-server")

CODES = ("OK", "UNAVAILABLE", "INTERNAL")
"""Codes that are shown from the start, so that the first of them is seen to be one more. Others as they come."""


disable_created_metrics()  # type: ignore[no-untyped-call]  # no series of when each series began


class _Written(Collector):
    """Shows nothing, but has what was counted written before all else is shown: it is the first that is asked."""

    def collect(self) -> Iterable[Metric]:
        write()
        return ()

    def describe(self) -> Iterable[Metric]:
        return ()


def new_registry() -> CollectorRegistry:
    """Return a registry that tells which server this is."""
    new = CollectorRegistry()
    new.register(_Written())
    PlatformCollector(registry=new)
    Info("formgate_build", "This server.", registry=new).info({"version": VERSION})
    return new


registry = new_registry()
"""Of this process. A worker's is shown by its supervisor: a Gauge must say by ``multiprocess_mode`` how it adds up."""
ProcessCollector(registry=registry)
GCCollector(registry=registry)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"formgate_{name}", text, labels, registry=registry)


def _gauge(name: str, text: str, *labels: str, mode: str = "livesum") -> Gauge:
    return Gauge(f"formgate_{name}", text, labels, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]


def _timing(name: str, text: str, *labels: str) -> SummedHistogram:
    return SummedHistogram(f"formgate_{name}", text, labels, registry=registry, buckets=BUCKETS)


# Calls and checks. All labels are made at the start, and found without hashing them.

_calls = _counter("rpc_calls", "Calls of the contract that have ended, by method and gRPC code.", "method", "code")
_call_seconds = _timing("rpc_duration_seconds", "How long calls took, from their arrival to their answer.", "method")
_checks = _counter("checks", "Checks decided, by reason.", "reason")
checks = {reason: Tally(_checks.labels(reason.name)) for reason in Reason}
_check_seconds = _timing("check_duration_seconds", "How long a CheckKey took to be decided, by reason.", "reason")
check_seconds = {reason: Timing(_check_seconds.labels(reason.name)) for reason in Reason}
_leases = _counter("leases", "Leases asked for, by what came of it.", "outcome")
leases = {outcome: Tally(_leases.labels(outcome)) for outcome in ("granted", "refused", "denied")}
degraded_checks = Tally(_counter("checks_degraded", "Checks decided that said `degraded`."))


def decided(reason: Reason, seconds: float, *, degraded: bool) -> None:
    """Count a check that was asked for by itself, and took so long to be decided."""
    checks[reason].count += 1
    check_seconds[reason].observe(seconds)
    if degraded:
        degraded_checks.count += 1


batch_checks_failed = Tally(
    _counter("batch_checks_failed", "Checks of a BatchCheckKeys that could not be decided, while others were.")
)
_near_end = _counter(
    "limits_near_end",
    "How often a check was allowed that left less than a tenth of a limit, by its name in the policies (else: other).",
    "limit",
)


class Calls:
    """What became of the calls of a method."""

    __slots__ = ("_codes", "_method", "timing")

    def __init__(self, method: str) -> None:
        self._method = method
        self.timing = Timing(_call_seconds.labels(method))
        self._codes = {code: Tally(_calls.labels(method, code)) for code in CODES}

    def ended(self, code: str, seconds: float | None) -> None:
        """Count a call; None: how long it took says nothing, as of one that goes on until somebody has enough."""
        tally = self._codes.get(code)
        if tally is None:
            tally = self._codes[code] = Tally(_calls.labels(self._method, code))
        tally.count += 1
        if seconds is not None:
            self.timing.observe(seconds)


_calls_by_path: dict[str, Calls] = {}


def calls_of(path: str) -> Calls:
    """Return the calls of a method by its path, the last part of which is its label, such as ``CheckKey``."""
    found = _calls_by_path.get(path)
    return _calls_by_path.setdefault(path, Calls(path.rpartition("/")[2])) if found is None else found


OTHER = "other"
_near_end_by_name: dict[str, Tally] = {}


def near_end_of(names: Collection[str]) -> dict[str, Tally]:
    """Return a tally for each name of a limit that an operator has chosen, and for ``OTHER``."""
    for name in {*names, OTHER} - set(_near_end_by_name):
        _near_end_by_name[name] = Tally(_near_end.labels(name))
    return {name: _near_end_by_name[name] for name in {*names, OTHER}}


# Usage, and keys that there are not.

_usage_records = _counter("usage_records", "Usage records, by outcome.", "outcome")
usage_records = {outcome: Tally(_usage_records.labels(outcome.name)) for outcome in UsageOutcome}
_unknown_keys = _counter("unknown_keys", "Keys that were not known here and not found, or not looked for.", "outcome")
unknown_keys = {
    outcome: Tally(_unknown_keys.labels(outcome)) for outcome in ("not_found", "refused_address", "refused")
}

# Keys at hand.

key_cache_hits = Tally(_counter("key_cache_hits", "Checks whose key was at hand."))
key_cache_misses = Tally(_counter("key_cache_misses", "Reads of a key that was not at hand, or not new enough."))
key_cache_size = _gauge("key_cache_size", "Keys at hand.")
_epoch_reloads = _counter(
    "epoch_reloads", "Checks begun anew: the account's epoch had moved, or the counters' store had none.", "cause"
)
epoch_reloads = {cause: Tally(_epoch_reloads.labels(cause)) for cause in ("moved", "missing")}

# Counters.

_charge_seconds = _timing(
    "charge_duration_seconds", "How long the counters took to charge one check, or a batch in one go.", "size"
)
charge_seconds = {size: Timing(_charge_seconds.labels(size)) for size in ("one", "batch")}
_charge_failures = _counter("charge_failures", "Checks that could not be charged: they were not decided.")
charge_failures = Tally(_charge_failures)

# Stores.

_degraded = _gauge("degraded", "Whether a store is away, by which.", "store")
_degraded_seconds = _counter("degraded_seconds", "For how many seconds a store was away, by which.", "store")
degraded = {
    store: Lasting(_degraded.labels(store), _degraded_seconds.labels(store))
    for store in ("counters", "database", "marks")
}
_breaker = _gauge("circuit_breaker_open", "Whether requests to a store fail at once, for it does not answer.", "store")
_breaker_seconds = _counter("circuit_breaker_open_seconds", "For how many seconds that was so.", "store")
breaker = {store: Lasting(_breaker.labels(store), _breaker_seconds.labels(store)) for store in ("redis", "database")}
_openings = _counter("circuit_breaker_openings", "How often requests to a store began to fail at once.", "store")
breaker_openings = {store: Tally(_openings.labels(store)) for store in ("redis", "database")}

_POOLS = ("lookup", "read", "write")
_database_in_use = _gauge("database_connections_in_use", "Connections to the database that somebody uses.", "pool")
_database_most = _gauge("database_connections_most", "How many there may be.", "pool")
_database_waiting = _gauge("database_waiting", "Who waits for a connection to the database.", "pool")
database_in_use = {pool: _database_in_use.labels(pool) for pool in _POOLS}
database_most = {pool: _database_most.labels(pool) for pool in _POOLS}
database_waiting = {pool: _database_waiting.labels(pool) for pool in _POOLS}
redis_connections = _gauge("redis_connections", "Connections to Redis that may be used.")
redis_requests = _gauge("redis_requests", "Requests to Redis that are under way.")

# Changes.

_publications = _counter(
    "publications", "Epochs published, by who did: the change itself, or whoever polls the changes.", "by", "outcome"
)
publications = {
    (by, outcome): Tally(_publications.labels(by, outcome))
    for by in ("change", "poll")
    for outcome in ("published", "failed")
}
changes_unpublished = _gauge("changes_unpublished", "Changes that a poll has read and could not publish yet.")
poll_age = _gauge(
    "poll_age_seconds", "How long ago the last poll of the changes that could read began.", mode="livemax"
)
publication_age = _gauge(
    "publication_age_seconds",
    "How long ago the last poll began that could read and publish all that it read.",
    mode="livemax",
)
_allowed_seconds = _gauge("allowed_seconds", "The settings that bound these ages.", "setting", mode="livemax")
allowed_seconds = {setting: _allowed_seconds.labels(setting) for setting in ("max_staleness", "database_grace")}

# The log.

_withheld = _counter("log_lines_withheld", "Lines of calls that were too many to be logged, by kind.", "kind")
log_lines_withheld = {kind: Tally(_withheld.labels(kind)) for kind in ("denied", "failed")}

# TLS.

certificate_end = _gauge(
    "tls_certificate_end_timestamp_seconds",
    "When it ends: the server's certificate, and the last of the authorities of clients'.",
    "certificate",
    mode="livemin",
)
certificate_lifetime = _gauge(
    "tls_certificate_lifetime_seconds",
    "For how long that certificate is valid in all, from its beginning to its end.",
    "certificate",
    mode="livemin",
)
_files_refused = _gauge(
    "files_refused",
    "Whether what files hold now can not be used, so that what they held before stays.",
    "files",
    mode="livemax",
)
files_refused = {each: _files_refused.labels(each) for each in ("certificates", "identities")}
