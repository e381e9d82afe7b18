"""What a caller of Formgate may have to catch. A denial is none of these: it is a verdict.

No message and no attribute holds a key or a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class FormgateError(Exception):
    """A call that came to nothing.

    ``reason`` is the service's UPPER_SNAKE word for programs (``google.rpc.ErrorInfo``), empty where it said none;
    ``metadata`` names things, such as the id of what is there already.
    """

    def __init__(self, message: str, *, reason: str = "", metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})


class FieldViolation(NamedTuple):
    """What is wrong with one field of a request, such as ``permissions[3]``."""

    field: str
    description: str


class InvalidRequestError(FormgateError):
    """The call is wrong in any state: asking again the same way is of no use."""

    def __init__(
        self,
        message: str,
        fields: tuple[FieldViolation, ...] = (),
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.fields = fields


def invalid_field(field: str, description: str) -> InvalidRequestError:
    """Return the error of a call that is wrong by one field, found before it is sent."""
    return InvalidRequestError(f"{field}: {description}", (FieldViolation(field, description),))


class UnauthenticatedError(FormgateError):
    """The service does not know this client's token."""


class ForbiddenError(FormgateError):
    """The service knows the token; its role may not call this."""


class UnavailableError(FormgateError):
    """The service did not answer, could not be reached, or could not decide; later it may.

    ``retry_after`` in seconds, where the service said it.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after = retry_after


class DeadlineError(UnavailableError):
    """The time that the caller gave is over."""


class BrokenAnswerError(FormgateError):
    """The service answered with nothing, with something unknown, with nonsense or with a fault of its own.

    It never reads as "allowed", whatever the fail mode.
    """


class ClosedError(FormgateError):
    """The client was closed before the call, or during it."""
