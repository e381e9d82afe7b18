"""The log's line of a call: what it says, and how many there are."""

from __future__ import annotations

import random
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from formgate.v1 import keys_pb2
from formgate_server import metrics
from formgate_server.core.model import Caller, ServiceRole
from formgate_server.core.verdict import Reason, Verdict
from formgate_server.rpc.dispatch import Call
from formgate_server.rpc.line import Ending, Lines, Outcome
from formgate_server.rpc.methods import Method

CHECKER = Caller("tok_1", ServiceRole.CHECKER)
ALLOWED, DENIED = Verdict(Reason.OK, "", 200), Verdict(Reason.KEY_REVOKED, "", 401, degraded=True)


async def _never(_request: Any, _caller: Caller) -> bytes:
    raise AssertionError


CHECK = Method("/x.Authorization/CheckKey", keys_pb2.GetKeyRequest, frozenset({ServiceRole.CHECKER}), _never)
CHANGE = Method("/x.Keys/RevokeKey", keys_pb2.GetKeyRequest, frozenset({ServiceRole.MANAGER}), _never)


class Time:
    """A clock that goes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was logged."""
    capture = LogCapture()
    logger = structlog.wrap_logger(None, processors=[capture])
    monkeypatch.setattr("formgate_server.rpc.line._log", logger)
    return capture.entries


def tell(lines: Lines, method: Method = CHECK, code: str = "OK", reason: str = "OK", outcome: Outcome = None) -> None:
    """Tell a call that took 1.5 ms."""
    lines.tell(Ending(method, Call({}, peer=lambda: "ipv4:192.0.2.1:7"), CHECKER, code, reason, outcome, 0.0015))


def test_a_failure_says_to_whoever_runs_the_server_why(told: list[Any]) -> None:
    """What the caller is not told, such as what the database has said."""
    call = Call({}, peer=lambda: "ipv4:192.0.2.1:7")
    Lines().tell(Ending(CHECK, call, CHECKER, "UNAVAILABLE", "STORE_UNAVAILABLE", detail="SQLite: disk I/O error"))
    assert told[0]["detail"] == "SQLite: disk I/O error"


def test_a_denial_has_its_line(told: list[Any]) -> None:
    """Who asked, what became of it, how long it took."""
    tell(Lines(), outcome=DENIED)
    assert told == [
        {
            "event": "call",
            "log_level": "info",
            "method": CHECK.path,
            "code": "OK",
            "reason": "KEY_REVOKED",
            "degraded": True,
            "token_id": "tok_1",
            "role": "CHECKER",
            "peer": "ipv4:192.0.2.1:7",
            "milliseconds": 1.5,
        }
    ]


def test_a_batch_has_one_line(told: list[Any]) -> None:
    """With how many of each reason there were, if it denied any."""
    lines = Lines()
    tell(lines, outcome={Reason.OK: 8})
    tell(lines, outcome={Reason.OK: 7, Reason.RATE_LIMITED: 1})
    assert [line["reasons"] for line in told] == [{"OK": 7, "RATE_LIMITED": 1}]


def test_changes_are_told_each(told: list[Any]) -> None:
    """However little of the checks is."""
    lines = Lines(allowed_sample=0, per_second=1)
    for _ in range(500):
        tell(lines, CHANGE)
    assert len(told) == 500


@pytest.mark.parametrize(("sample", "least", "most"), [(0, 0, 0), (1, 5_000, 5_000), (0.1, 350, 650)])
def test_of_checks_that_allow_a_sample_is_told(told: list[Any], sample: float, least: int, most: int) -> None:
    """About as large as it is to be; none and each are exact. What is left out costs no look at the peer."""
    random.seed(7)
    lines = Lines(allowed_sample=sample)
    for _ in range(5_000):
        tell(lines, outcome=ALLOWED)
    assert least <= len(told) <= most


def test_a_flood_has_a_bound(told: list[Any]) -> None:
    """Ten seconds' worth at once, then so many a second; what is withheld is counted, and told by the next line."""
    clock = Time()
    lines = Lines(per_second=5, monotonic=clock)
    before = metrics.log_lines_withheld["denied"].count
    for _ in range(1_000):
        tell(lines, outcome=DENIED)
    assert len(told) == 50
    assert metrics.log_lines_withheld["denied"].count - before == 950
    clock.now = 0.2
    tell(lines, outcome=DENIED)
    tell(lines, outcome=DENIED)
    assert [line.get("withheld") for line in told[49:]] == [None, 950]
    clock.now = 1_000
    for _ in range(1_000):
        tell(lines, outcome=DENIED)
    assert len(told) == 101, "what is saved has an end"


def test_denials_hide_no_failure(told: list[Any]) -> None:
    """Each kind has a bound of its own; a call without a caller has a line, too."""
    lines = Lines(per_second=1, monotonic=Time())
    for _ in range(100):
        tell(lines, outcome=DENIED)
    lines.tell(Ending(CHECK, Call({}), None, "UNAUTHENTICATED", "MISSING_SERVICE_TOKEN", None, 0.001))
    assert told[-1]["code"] == "UNAUTHENTICATED"
    assert told[-1]["reason"] == "MISSING_SERVICE_TOKEN"
    assert "token_id" not in told[-1]
    assert len(told) == 11
