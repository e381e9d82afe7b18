"""How the nouns look to people. Every text of the server's goes through ``safe``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.table import Table
from rich.text import Text

from formgate.v1 import accounts_pb2, authorization_pb2, keys_pb2
from formgate.v1 import resources_pb2 as pb
from formgate_server.cli.output import stdout
from formgate_server.cli.syntax import format_grant, format_limit, format_time
from formgate_server.cli.text import safe

# From so many columns on there is room for more than the most necessary.
_WIDE = 110

_USUAL_WIDTH = 80
_TEXTS = frozenset({
    "NAME", "BOUND TO", "DESCRIPTION", "DETAIL", "GROUP", "LIMITS", "MESSAGE", "PERMISSIONS", "PREFIXES", "PLANS",
    "ROWS", "WHY",
})  # fmt: skip

_STYLES = {
    "active": "green",
    "enabled": "green",
    "disabled": "yellow",
    "expired": "red",
    "revoked": "red",
    "suspended": "red",
}


def table(*columns: str) -> Table:
    """Return an empty table. Where it is too wide, the texts in it are folded, and ids and numbers only at the last."""
    roomy = stdout().width >= _USUAL_WIDTH
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, no_wrap=roomy and column not in _TEXTS, overflow="fold")
    return made


def card(fields: Mapping[str, str | Text | Sequence[str]]) -> Table:
    """Return one thing's fields, a line each; a field without a value is left out."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in fields.items():
        if value:
            made.add_row(name, value if isinstance(value, str | Text) else Text("\n".join(value)))
    return made


class Effective(Protocol):
    """The answer to a change."""

    @property
    def effective_time(self) -> Timestamp:
        """From when on it holds."""


def done(answer: Effective, fields: Mapping[str, str | Text | Sequence[str]]) -> Table:
    """Return what a change has made, and from when on that holds."""
    return card({**fields, "in effect from": time(answer.effective_time)})


def word(enum: EnumDescriptor, value: int, prefix: str) -> str:
    """Return an enum's value in small letters, without its prefix; empty: not said; a newer server's: its number."""
    known = enum.values_by_number.get(value)
    name = str(value) if known is None else known.name.removeprefix(prefix).lower()
    return name if value else ""


def environment(value: pb.Environment.ValueType) -> str:
    """Return ``live`` or ``test``."""
    return word(pb.Environment.DESCRIPTOR, value, "ENVIRONMENT_")


def holder(value: pb.Holder.ValueType) -> str:
    """Return ``key`` or ``account``."""
    return word(pb.Holder.DESCRIPTOR, value, "HOLDER_")


def role(value: pb.ServiceRole.ValueType) -> str:
    """Return ``checker``, ``manager`` or ``auditor``."""
    return word(pb.ServiceRole.DESCRIPTOR, value, "SERVICE_ROLE_")


def member_role(value: pb.Role.ValueType) -> str:
    """Return ``member``, ``admin`` or ``global_admin``."""
    return word(pb.Role.DESCRIPTOR, value, "ROLE_")


def level(value: pb.Level.ValueType) -> str:
    """Return ``read``, ``write`` or ``manage``."""
    return word(pb.Level.DESCRIPTOR, value, "LEVEL_")


def outcome(value: authorization_pb2.Outcome.ValueType) -> str:
    """Return what became of a usage record, such as ``accepted``."""
    return word(authorization_pb2.Outcome.DESCRIPTOR, value, "OUTCOME_") or "unspecified"


def time(timestamp: Timestamp) -> str:
    """Return a time in UTC to the second; empty: not set."""
    return format_time(timestamp) if timestamp.ByteSize() else ""


def _short(timestamp: Timestamp, width: int) -> str:
    """Return a time, or where there is no room its date."""
    return time(timestamp) if width >= _WIDE else time(timestamp)[: len("2027-01-31")]


def standing(state: str, expire_time: Timestamp) -> Text:
    """Return a state in its colour; one that would work but for its time is ``expired``."""
    if state == "enabled" and has_passed(expire_time):
        state = "expired"
    return Text(state, style=_STYLES.get(state, ""))


def has_passed(timestamp: Timestamp) -> bool:
    """Tell whether a time is set and over, by this machine's clock."""
    now = Timestamp()
    now.GetCurrentTime()
    return bool(timestamp.ByteSize()) and timestamp.ToNanoseconds() <= now.ToNanoseconds()


def metadata(pairs: Mapping[str, str]) -> list[str]:
    """Return ``NAME=VALUE`` each, by name."""
    return [safe(f"{name}={value}") for name, value in sorted(pairs.items())]


def limits(values: Iterable[pb.Limit]) -> list[str]:
    """Return each limit as it is written on the command line."""
    return [safe(format_limit(limit)) for limit in values]


# ---------------------------------------------------------------------------------------------------------------- keys


def keys(found: Sequence[pb.Key], width: int) -> Table:
    """Return a listing of keys for a terminal of ``width`` columns."""
    wide = width >= _WIDE
    made = table("KEY ID", "NAME", "STATE", "HINT", "EXPIRES", *(["LAST USED"] if wide else []))
    for key in found:
        made.add_row(
            safe(key.key_id),
            safe(key.display_name),
            _key_state(key),
            safe(key.hint),
            _short(key.expire_time, width) or "never",
            *([time(key.last_used_time) or "never"] if wide else []),
        )
    return made


def key(shown: pb.Key) -> Table:
    """Return all about a key."""
    return card(
        {
            "key": safe(shown.key_id),
            "account": safe(shown.account_id),
            "name": safe(shown.display_name),
            "state": _key_state(shown),
            "environment": environment(shown.environment),
            "hint": safe(shown.hint),
            "created": time(shown.create_time),
            "created by": safe(shown.created_by),
            "expires": time(shown.expire_time) or "never",
            "revoked": time(shown.revoke_time),
            "last used": time(shown.last_used_time) or "never",
            "last used from": safe(shown.last_used_ip),
            "grants": [safe(format_grant(grant)) for grant in shown.grants] or "those of the policy",
            "API groups": [safe(group) for group in shown.api_groups] or "all",
            "addresses": [safe(rule) for rule in shown.ip_rules] or "any",
            "limits": limits(shown.limits) or "those of the plan and the account",
            "metadata": metadata(shown.metadata),
            "etag": safe(shown.etag),
        }
    )


def _key_state(shown: pb.Key) -> Text:
    return standing(word(pb.KeyState.DESCRIPTOR, shown.state, "KEY_STATE_"), shown.expire_time)


def changed_key(
    answer: (
        keys_pb2.UpdateKeyResponse
        | keys_pb2.RevokeKeyResponse
        | keys_pb2.DisableKeyResponse
        | keys_pb2.EnableKeyResponse
        | keys_pb2.RotateKeyResponse
    ),
) -> Table:
    """Return a key after a change, and from when on that holds."""
    made = key(answer.key)
    made.add_row("in effect from", time(answer.effective_time))
    return made


# ------------------------------------------------------------------------------------------------------------ accounts


def accounts(found: Sequence[pb.Account], width: int) -> Table:
    """Return a listing of accounts for a terminal of ``width`` columns."""
    made = table("ACCOUNT ID", "NAME", "STATE", "POLICY", "PLAN", "CREATED")
    for shown in found:
        made.add_row(
            safe(shown.account_id),
            safe(shown.display_name),
            _account_state(shown),
            safe(shown.policy),
            safe(shown.plan),
            _short(shown.create_time, width),
        )
    return made


def account(shown: pb.Account) -> Table:
    """Return all about an account."""
    return card(
        {
            "account": safe(shown.account_id),
            "name": safe(shown.display_name),
            "state": _account_state(shown),
            "policy": safe(shown.policy),
            "plan": safe(shown.plan),
            "time zone": safe(shown.time_zone) or "the plan's",
            "limits": limits(shown.limits) or "those of the plan",
            "created": time(shown.create_time),
            "epoch": str(shown.epoch),
            "etag": safe(shown.etag),
        }
    )


def changed_account(answer: accounts_pb2.UpdateAccountResponse) -> Table:
    """Return an account after a change, and from when on that holds."""
    made = account(answer.account)
    made.add_row("in effect from", time(answer.effective_time))
    return made


def _account_state(shown: pb.Account) -> Text:
    return standing(word(pb.AccountState.DESCRIPTOR, shown.state, "ACCOUNT_STATE_"), Timestamp())


# ------------------------------------------------------------------------------------------------------------- members


def members(found: Sequence[pb.Member], width: int) -> Table:
    """Return a listing of members for a terminal of ``width`` columns."""
    made = table("MEMBER ID", "ROLE", "LEVEL", "PERMISSIONS", "SET")
    for shown in found:
        made.add_row(
            safe(shown.member_id),
            member_role(shown.role),
            level(shown.level),
            safe(" ".join(shown.permissions)),
            _short(shown.update_time, width),
        )
    return made


def changed_member(answer: accounts_pb2.SetMemberResponse) -> Table:
    """Return a member after a change, and from when on that holds."""
    shown = answer.member
    return done(
        answer,
        {
            "member": safe(shown.member_id),
            "account": safe(shown.account_id),
            "role": member_role(shown.role),
            "level": level(shown.level) or "none",
            "permissions": [safe(permission) for permission in shown.permissions] or "none",
            "added": time(shown.create_time),
            "set": time(shown.update_time),
        },
    )


# -------------------------------------------------------------------------------------------------------------- tokens


def tokens(found: Sequence[pb.ServiceToken], width: int) -> Table:
    """Return a listing of service tokens for a terminal of ``width`` columns."""
    made = table("TOKEN ID", "NAME", "ROLE", "STATE", "BOUND TO", "EXPIRES")
    for shown in found:
        made.add_row(
            safe(shown.token_id),
            safe(shown.display_name),
            role(shown.role),
            _token_state(shown),
            ", ".join(_bonds(shown)),
            _short(shown.expire_time, width) or "never",
        )
    return made


def token(shown: pb.ServiceToken) -> Table:
    """Return all about a service token."""
    return card(
        {
            "token": safe(shown.token_id),
            "name": safe(shown.display_name),
            "role": role(shown.role),
            "state": _token_state(shown),
            "bound to": _bonds(shown) or "nothing: it sees every account",
            "created": time(shown.create_time),
            "expires": time(shown.expire_time) or "never",
            "revoked": time(shown.revoke_time),
        }
    )


def _token_state(shown: pb.ServiceToken) -> Text:
    return standing("revoked" if shown.HasField("revoke_time") else "enabled", shown.expire_time)


def _bonds(shown: pb.ServiceToken) -> list[str]:
    bonds = {"account": shown.account_id, "policy": shown.policy}
    return [safe(f"{kind} {name}") for kind, name in bonds.items() if name]


# --------------------------------------------------------------------------------------------------------------- usage


def usage_result(result: authorization_pb2.UsageResult) -> Table:
    """Return what became of a usage record."""
    return card(
        {
            "record": safe(result.record_id),
            "outcome": outcome(result.outcome),
            "why": safe(result.message),
        }
    )
