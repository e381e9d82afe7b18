"""Why a check was decided so."""

from enum import IntEnum


class Reason(IntEnum):
    """The verdict's reason, numbered as in ``formgate.v1.Reason``.

    In the order in which they are tested: the first that applies wins. There is no member for 0, so that a value that
    was never set can not read as "allowed".
    """

    OK = 1
    MISSING_AUTHORIZATION = 2
    MALFORMED_AUTHORIZATION = 3
    MALFORMED_KEY = 4
    TOO_MANY_INVALID_ATTEMPTS = 5
    KEY_NOT_FOUND = 6
    KEY_REVOKED = 7
    KEY_DISABLED = 8
    KEY_EXPIRED = 9
    ACCOUNT_SUSPENDED = 10
    ENVIRONMENT_MISMATCH = 11
    IP_NOT_ALLOWED = 12
    API_GROUP_NOT_ALLOWED = 13
    PERMISSION_DENIED = 14
    RESOURCE_NOT_ALLOWED = 15
    RATE_LIMITED = 16
    QUOTA_EXCEEDED = 17
    CREDITS_EXHAUSTED = 18
