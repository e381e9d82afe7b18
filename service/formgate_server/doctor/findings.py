"""What was found: a thing, how it is, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Status(enum.StrEnum):
    """How a thing is."""

    OK = "ok"
    WARN = "warn"
    """It serves, and may not one day, or not as well as it could."""
    FAIL = "fail"
    """A server does not start with it, or does not keep what it promises."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One of them. No text has a secret in it."""

    subject: str
    status: Status
    text: str
    advice: str = ""
    """What to do; of what is ok, empty."""


def ok(subject: str, text: str) -> Finding:
    """Return that a thing is as it should be."""
    return Finding(subject, Status.OK, text)


def warn(subject: str, text: str, advice: str) -> Finding:
    """Return that it could be better."""
    return Finding(subject, Status.WARN, text, advice)


def fail(subject: str, text: str, advice: str) -> Finding:
    """Return that it will not do."""
    return Finding(subject, Status.FAIL, text, advice)


def clock(subject: str, skew: float) -> Finding:
    """Return how another's clock, ``skew`` seconds before this machine's, is."""
    told = f"its clock is {abs(skew):.3f} s {'before' if skew > 0 else 'behind'} this machine's"
    advice = "have NTP set the clocks of both machines (chronyc tracking, timedatectl)"
    if abs(skew) >= _FAR:
        return fail(subject, told, f"{advice}: keys and certificates end too early or too late")
    return warn(subject, told, advice) if abs(skew) >= _NEAR else ok(subject, told)


_NEAR, _FAR = 1.0, 30.0
