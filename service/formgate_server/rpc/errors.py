"""From the core's errors to ``google.rpc.Status`` (AIP-193): a code, a message, and details that a program can read."""

from __future__ import annotations

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from formgate_server.core import errors
from formgate_server.log import blot

DOMAIN = "formgate"
_RETRY_SECONDS = 1

_CODES: dict[type[errors.FormgateError], code_pb2.Code] = {
    errors.InvalidArgumentError: code_pb2.INVALID_ARGUMENT,
    errors.FailedPreconditionError: code_pb2.FAILED_PRECONDITION,
    errors.UnauthenticatedError: code_pb2.UNAUTHENTICATED,
    errors.PermissionDeniedError: code_pb2.PERMISSION_DENIED,
    errors.NotFoundError: code_pb2.NOT_FOUND,
    errors.AlreadyExistsError: code_pb2.ALREADY_EXISTS,
    errors.AbortedError: code_pb2.ABORTED,
    errors.UnavailableError: code_pb2.UNAVAILABLE,
    errors.UnimplementedError: code_pb2.UNIMPLEMENTED,
}


def to_status(error: errors.FormgateError) -> status_pb2.Status:
    """Return the status that tells ``error``. A secret in the place of an id, which messages name, is not told back."""
    metadata = {name: blot(value) for name, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    details = [_packed(info)]
    if isinstance(error, errors.InvalidArgumentError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.description)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if isinstance(error, errors.UnavailableError):
        delay = duration_pb2.Duration(seconds=_RETRY_SECONDS)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), code_pb2.INTERNAL)
    return status_pb2.Status(code=code, message=blot(error.message), details=details)


def internal() -> status_pb2.Status:
    """Return the status of a fault of ours: what it was stands in the log only."""
    error = errors.FormgateError("internal error; the server's log says more")
    return to_status(error)


def _packed(
    detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
