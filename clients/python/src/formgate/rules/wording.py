"""What end users are told where a policy words it no other way, and with which HTTP status."""

from formgate.rules.reason import Reason

TITLES = {reason: reason.name.capitalize().replace("_", " ") for reason in Reason}

MESSAGES = {
    Reason.MISSING_AUTHORIZATION: 'An API key is needed: send it as "Authorization: Bearer YOUR_API_KEY".',
    Reason.MALFORMED_AUTHORIZATION: 'The Authorization header must be "Bearer YOUR_API_KEY".',
    Reason.MALFORMED_KEY: "This is not an API key.",
    Reason.TOO_MANY_INVALID_ATTEMPTS: "Too many invalid API keys from this address. Try again later.",
    Reason.KEY_NOT_FOUND: "The API key is unknown.",
    Reason.KEY_REVOKED: "The API key has been revoked.",
    Reason.KEY_DISABLED: "The API key has been disabled.",
    Reason.KEY_EXPIRED: "The API key has expired.",
    Reason.ACCOUNT_SUSPENDED: "The account has been suspended.",
    Reason.ENVIRONMENT_MISMATCH: "The API key belongs to another environment.",
    Reason.IP_NOT_ALLOWED: "The API key may not be used from this address.",
    Reason.API_GROUP_NOT_ALLOWED: "The API key may not use this API.",
    Reason.PERMISSION_DENIED: "The API key lacks a permission that this needs.",
    Reason.RESOURCE_NOT_ALLOWED: "The API key may not use this resource.",
    Reason.RATE_LIMITED: "Too many requests. Try again later.",
    Reason.QUOTA_EXCEEDED: "The quota of this period is used up.",
    Reason.CREDITS_EXHAUSTED: "The credits are used up.",
}

STATUSES = (
    {reason: 401 for reason in Reason if Reason.OK < reason <= Reason.KEY_EXPIRED}
    | {reason: 403 for reason in Reason if Reason.KEY_EXPIRED < reason <= Reason.RESOURCE_NOT_ALLOWED}
    | {reason: 429 for reason in Reason if reason > Reason.RESOURCE_NOT_ALLOWED}
    | {Reason.TOO_MANY_INVALID_ATTEMPTS: 429}
)

BODY = '{"error": {"reason": "{reason}", "message": "{message}"}}'

_JSON = ("content-type", "application/json")


def headers(status: int) -> tuple[tuple[str, str], ...]:
    """Return the header fields of a denial: a 401 says how to authenticate (RFC 9110, 15.5.2), a 429 when to return."""
    if status == 401:  # noqa: PLR2004 - HTTP
        return _JSON, ("www-authenticate", "Bearer")
    return (_JSON, ("retry-after", "{retry_after}")) if status == 429 else (_JSON,)  # noqa: PLR2004
