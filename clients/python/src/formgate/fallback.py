"""What is decided when the service does not answer."""

from __future__ import annotations

from formgate.asking import Check
from formgate.errors import FormgateError
from formgate.verdict import HttpDenial, Source, Verdict

_MESSAGE = "The request could not be authorized just now; try again."
_UNDECIDED = HttpDenial(
    503,
    (("content-type", "application/json"), ("cache-control", "no-store"), ("retry-after", "1")),
    b'{"error":"unavailable","message":"' + _MESSAGE.encode() + b'"}',
)


def denied(error: FormgateError) -> Verdict:
    """Return the verdict of a check that nobody decided."""
    return Verdict(
        allowed=False,
        reason=None,
        message=_MESSAGE,
        http_status=_UNDECIDED.status,
        http_denial=_UNDECIDED,
        degraded=True,
        source=Source.FALLBACK,
        error=error,
    )


class Fallback:
    """Decides by the fail mode."""

    def decide(self, _check: Check, error: FormgateError) -> Verdict:
        """Return the verdict on a check that the service did not decide, because of ``error``."""
        return denied(error)
