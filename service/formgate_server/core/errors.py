"""Why a call could not be answered. A denial is none of these: it is a value."""

from __future__ import annotations

from collections.abc import Mapping


class FormgateError(Exception):
    """A call that can not be answered.

    ``reason`` is a stable UPPER_SNAKE word for programs, the message is for the caller to read: neither may hold a
    secret or an internal. ``metadata`` names things for programs, such as the id of what is there already. ``detail``
    is for the log, and told to no caller.
    """

    reason = "INTERNAL"

    def __init__(
        self, message: str, *, reason: str = "", metadata: Mapping[str, str] | None = None, detail: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.reason = reason or self.reason
        self.metadata = dict(metadata or {})


class InvalidArgumentError(FormgateError):
    """Wrong in any state: ``field`` is the path of the field in the request, such as ``grants[3].resource``."""

    reason = "INVALID_FIELD"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}", metadata={"field": field})
        self.field = field
        self.description = description


class FailedPreconditionError(FormgateError):
    """Wrong in this state."""

    reason = "WRONG_STATE"


class UnauthenticatedError(FormgateError):
    """The calling service showed no valid token."""

    reason = "INVALID_SERVICE_TOKEN"


class PermissionDeniedError(FormgateError):
    """The calling service may not do this."""

    reason = "ROLE_NOT_ALLOWED"


class NotFoundError(FormgateError):
    """There is no such thing, or the caller may not know of it."""

    reason = "NOT_FOUND"


class AlreadyExistsError(FormgateError):
    """There is one already."""

    reason = "ALREADY_EXISTS"


class AbortedError(FormgateError):
    """It has changed since the caller read it."""

    reason = "ETAG_MISMATCH"


class UnavailableError(FormgateError):
    """A store is down; the same call may go through later."""

    reason = "STORE_UNAVAILABLE"


class CountersUnavailableError(UnavailableError):
    """The counters' store is down; nothing was done there."""


class LostAnswerError(CountersUnavailableError):
    """The counters' store was asked, and its answer never came: what it was asked for may have been done, or not."""


class UnimplementedError(FormgateError):
    """This server does not do that yet."""

    reason = "UNIMPLEMENTED"
