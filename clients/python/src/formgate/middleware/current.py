"""The verdict on the request that is being handled, wherever in its code one is."""

from __future__ import annotations

from contextvars import ContextVar

from formgate.verdict import Verdict

verdict: ContextVar[Verdict | None] = ContextVar("formgate verdict", default=None)


def current_verdict() -> Verdict:
    """Return the verdict by which the request came in. LookupError where nobody was asked: it is no "allowed"."""
    found = verdict.get()
    if found is None:
        raise LookupError("no API key was checked for what runs here")
    return found
