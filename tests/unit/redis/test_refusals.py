import pytest

from formgate_server.storage.redis.errors import LostAnswer, ScriptFailed, StoreUnavailable
from formgate_server.storage.redis.refusals import Refusal, refusal_of

SHA = "a" * 40


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        ("NOSCRIPT No matching script. Please use EVAL.", Refusal.UNKNOWN_SCRIPT),
        ("MOVED 3999 127.0.0.1:6381", Refusal.MOVED),
        ("ASK 3999 127.0.0.1:6381", Refusal.ASK),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Refusal.NOT_NOW),
        ("CLUSTERDOWN Hash slot not served", Refusal.NOT_NOW),
        ("CLUSTERDOWN The cluster is down", Refusal.NOT_HERE),
        ("LOADING Redis is loading the dataset in memory", Refusal.NOT_HERE),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Refusal.NOT_HERE),
        ("BUSY Redis is busy running a script.", Refusal.NOT_HERE),
        ("READONLY You can't write against a read only replica.", Refusal.NOT_HERE),
        (
            (
                f"ERR Error running script (call to f_{SHA}): @user_script:1: @user_script: 1: "
                "-READONLY You can't write against a read only replica. "
            ),
            Refusal.NOT_HERE,
        ),
        (f"READONLY You can't write against a read only replica. script: {SHA}, on @user_script:1.", Refusal.NOT_HERE),
        (
            (
                f"ERR Error running script (call to f_{SHA}): @user_script:1: @user_script: 1: "
                "-OOM command not allowed when used memory > 'maxmemory'. "
            ),
            Refusal.REFUSED,
        ),
        (f"OOM command not allowed when used memory > 'maxmemory'. script: {SHA}, on @user_script:1.", Refusal.REFUSED),
        (f"ERR READONLY You can't write against a read only replica. script: {SHA}, on .", Refusal.NOT_HERE),
        (f"ERR OOM command not allowed when used memory > 'maxmemory'. script: {SHA}, on .", Refusal.REFUSED),
        (f"ERR NOREPLICAS Not enough good replicas to write. script: {SHA}, on .", Refusal.REFUSED),
        ("NOAUTH Authentication required.", Refusal.REFUSED),
        ("NOPERM this user has no permissions to run the 'evalsha' command", Refusal.REFUSED),
    ],
)
def test_what_certifies_that_nothing_happened(error: str, refusal: Refusal) -> None:
    """These replies, in the words of Redis 6.2 and of 7.0, certify that the request did nothing."""
    assert refusal_of(error) is refusal


@pytest.mark.parametrize(
    "error",
    [
        f"ERR Error running script (call to f_{SHA}): @user_script:1: user_script:1: attempt to index a nil value",
        f"WRONGTYPE Operation against a key holding the wrong kind of value script: {SHA}, on @user_script:1.",
        f"NOPERM User formgate has no permissions to run the 'set' command script: {SHA}, on @user_script:2.",
        f"ERR NOPERM User formgate has no permissions to run the 'set' command script: {SHA}, on .",
        f"ERR boo: READONLY You can't write against a read only replica. script: {SHA}, on .",
        f"ERR Error running script (call to f_{SHA}): @user_script:1: boo: nothing of LOADING or -READONLY",
        "ERR value is not an integer or out of range",
        "",
        "WHATEVER comes next",
    ],
)
def test_any_other_error_may_come_after_a_write(error: str) -> None:
    """What is not known to come before the first write is never taken for "nothing happened"."""
    assert refusal_of(error) is Refusal.FAULT


def test_an_error_tells_the_caller_nothing_of_the_inside() -> None:
    """The message is for the caller of the service, the detail for the log."""
    for kind in (StoreUnavailable, LostAnswer, ScriptFailed):
        error = kind("10.0.0.1:6379: connection refused")
        assert "10.0.0.1" not in error.message
        assert "10.0.0.1" in error.detail
        assert "10.0.0.1" in str(error)
