"""Whether a known key may do what is asked, but for its limits: a list of checks, in the contract's order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from formgate.rules.grants import Level
from formgate.rules.reason import Reason

if TYPE_CHECKING:
    from formgate.rules.addresses import AddressRules
    from formgate.rules.grants import Grants


@dataclass(frozen=True, slots=True)
class Standing:
    """A key as its checks see it, compiled once."""

    state: Reason
    """KEY_NOT_FOUND (deleted), KEY_REVOKED, KEY_DISABLED, ACCOUNT_SUSPENDED, or OK."""
    expire_time: int | None
    """Microseconds since the Unix epoch; from then on it is expired. None: never."""
    environment: int
    """As in ``formgate.v1.Environment``."""
    addresses: AddressRules | None
    """None: anywhere."""
    api_groups: frozenset[str]
    """Empty: all."""
    grants: Grants
    ceiling: Grants | None = None
    """The creator's rights, where a key never exceeds them."""


class Wanted(NamedTuple):
    """What a check asks of a key."""

    permissions: tuple[str, ...] = ()
    level: Level | None = Level.UNSPECIFIED
    """The level that the HTTP method needs. UNSPECIFIED: none. None: the policy does not know the method."""
    resources: tuple[str, ...] = ()
    api_group: str = ""
    environment: int = 0
    """0: any."""
    source_ip: str = ""


def denial(key: Standing, wanted: Wanted, now: int) -> Reason | None:
    """Say why the key may not; None: it may, if its limits let it. ``now`` in microseconds since the Unix epoch."""
    state = key.state
    if state is not Reason.OK and state is not Reason.ACCOUNT_SUSPENDED:
        return state
    if key.expire_time is not None and now >= key.expire_time:
        return Reason.KEY_EXPIRED
    if state is not Reason.OK:
        return state
    if wanted.environment and wanted.environment != key.environment:
        return Reason.ENVIRONMENT_MISMATCH
    if key.addresses is not None and not key.addresses.allow(wanted.source_ip):
        return Reason.IP_NOT_ALLOWED
    if key.api_groups and wanted.api_group not in key.api_groups:
        return Reason.API_GROUP_NOT_ALLOWED
    if wanted.level is None:
        return Reason.PERMISSION_DENIED
    reason = key.grants.denial(wanted.permissions, wanted.level, wanted.resources)
    if reason is None and key.ceiling is not None:
        return key.ceiling.denial(wanted.permissions, wanted.level, wanted.resources)
    return reason
